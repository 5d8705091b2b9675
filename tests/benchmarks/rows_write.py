"""What reaches the disk: sustained capture, rows only, a burst."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.content import CHANNELS, Device, attrs_of, differences
from tests.benchmarks.frame import Bar, Check, Outcome, Row, alternate, median, ratio
from tests.benchmarks.measure import conclude
from tests.benchmarks.peers import PEERS, available, chosen, load
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.process import measure
from tests.benchmarks.rows_loop import require_right

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tests.benchmarks.frame import Effort, Figures

_MIB: Final = 2**20
#: As large as one batch of ours, which ends with one fdatasync.
_BATCH_BYTES: Final = 32 * _MIB
#: Blocks of this many samples of 64 channels are 4 KB, 64 KB and 1 MB.
_BLOCKS: Final = {"4 KB": 8, "64 KB": 128, "1 MB": 2048}
_IOV_MAX: Final = 1024


# --- sustained capture ----------------------------------------------------------------------------


def capture(
    who: str, folder: str, samples: int, nbytes: int, seconds: float, pace: float = 0.0
) -> Figures:
    """Store blocks as fast as they are accepted, until so many bytes or so many seconds.

    Raw may be held to a `pace`, in MB/s.
    """
    writers: dict[str, Callable[[Path, Device, int, float], int]] = {
        "trialstore": _capture_ours,
        "raw": partial(_capture_raw, pace=pace),
        "h5py": _capture_h5py,
        "copy": _capture_nothing,
    }
    began = time.perf_counter()
    stored = writers[who](Path(folder), Device(samples), nbytes, began + seconds)
    took = time.perf_counter() - began
    return {"mb_per_s": stored / took / 1e6, "bytes": stored, "seconds": took}


def _capture_raw(folder: Path, device: Device, nbytes: int, end: float, pace: float = 0.0) -> int:
    """The limit: nothing but system calls, synced as often as ours; never ahead of its pace."""
    block = device.read().data.cast("B")
    pieces = [block] * min(_IOV_MAX, max(1, _BATCH_BYTES // len(block)))
    fd = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    stored = unsynced = 0
    began = time.perf_counter()
    while stored < nbytes and time.perf_counter() < end:
        written = os.writev(fd, pieces)
        stored, unsynced = stored + written, unsynced + written
        if unsynced >= _BATCH_BYTES:
            os.fdatasync(fd)
            unsynced = 0
            if pace:
                due = began + stored / pace / 1e6
                time.sleep(max(0.0, due - time.perf_counter()))
    os.fdatasync(fd)
    os.close(fd)
    return stored


def _capture_h5py(folder: Path, device: Device, nbytes: int, end: float) -> int:
    """One dataset that grows with each block, synced once at the end."""
    import h5py

    first = device.read()
    length, stored = first.shape[1], 0
    with h5py.File(folder / "emg.hdf5", "w") as file:
        chunks = (CHANNELS, max(length, 128))
        emg = file.create_dataset(
            "emg", (CHANNELS, 0), "f8", maxshape=(CHANNELS, None), chunks=chunks
        )
        while stored < nbytes and time.perf_counter() < end:
            samples = stored // (first.nbytes // length)
            emg.resize(samples + length, axis=1)
            emg[:, samples:] = device.read()
            stored += first.nbytes
    fd = os.open(folder / "emg.hdf5", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    return stored


def _capture_nothing(_: Path, device: Device, nbytes: int, end: float) -> int:
    """The interpreter's limit: awaiting a call that copies its block and forgets it."""

    async def take(block: NDArray[np.float64]) -> None:
        block.tobytes()

    async def take_all() -> int:
        taken, size = 0, device.read().nbytes
        while taken < nbytes and time.perf_counter() < end:
            for _ in range(1000):
                await take(device.read())
            taken += 1000 * size
        return taken

    return asyncio.run(take_all())


def _capture_ours(folder: Path, device: Device, nbytes: int, end: float) -> int:
    return asyncio.run(_capture_on_loop(folder, device, nbytes, end))


async def _capture_on_loop(folder: Path, device: Device, nbytes: int, end: float) -> int:
    ours = Ours(folder)
    # A capture is timed from its first block, as the others: opening is the row "start".
    began = time.perf_counter()
    await ours.open()
    opened = time.perf_counter()
    size = device.read().nbytes
    per_trial = max(1, 64 * _MIB // size)
    stored = trial = 0
    while stored < nbytes and time.perf_counter() < end:
        for _ in range(per_trial):
            await ours.append(device.read())
        stored += per_trial * size
        await ours.write(attrs_of(trial))
        trial += 1
    await ours.task.flush()
    took = time.perf_counter() - opened
    # What is not published yet is the publisher's row; here it would only take disk and time.
    conclude(
        {
            "mb_per_s": stored / took / 1e6,
            "bytes": stored,
            "seconds": took,
            "opened_s": opened - began,
        }
    )


def capture_checked(folder: str, samples: int, trials: int) -> Figures:
    """Store a little in the same way and hold it against the model."""
    return asyncio.run(_capture_checked(Path(folder), samples, trials))


async def _capture_checked(folder: Path, samples: int, trials: int) -> Figures:
    ours = Ours(folder)
    await ours.open()
    device = Device(samples)
    for trial in range(trials):
        for _ in range(10):
            await ours.append(device.read())
        await ours.write(attrs_of(trial))
    await ours.aclose()
    return {"wrong": differences(Ours.read(folder), trials, samples, 10)}


def run_capture(effort: Effort) -> Outcome:
    """Raw and ours in turn, for each size of block; h5py beside them at 4 KB."""
    outcome = Outcome()
    nbytes = effort.of(4 * 10**9, 128 * 10**6, 64 * 10**6)
    seconds = effort.of(60.0, 3.0, 2.0)

    def run(who: str, samples: int, seconds: float = seconds, pace: float = 0.0) -> Figures:
        told: dict[str, Any] = {"samples": samples, "nbytes": nbytes, "seconds": seconds}
        with effort.workspace() as folder:
            return measure(capture, who=who, folder=folder, pace=pace, **told)

    least = {"4 KB": 0.4, "64 KB": 0.75, "1 MB": 0.85}
    for block, samples in _BLOCKS.items():
        turns = effort.of(effort.pairs, 1, 1)
        pairs = alternate(partial(run, "raw", samples), partial(run, "trialstore", samples), turns)
        share, count = ratio(pairs, "mb_per_s"), len(pairs)
        what = f"blocks of {block}, as a share of raw writev + fdatasync"
        outcome.checks.append(Check(what, share, least[block], "x", count, at_least=True))
        ours = median([pair[1] for pair in pairs], "mb_per_s")
        chart = f"sustained capture, blocks of {block}"
        raw = median([pair[0] for pair in pairs], "mb_per_s")
        outcome.bars += [
            Bar(chart, "raw writev + fdatasync", raw, "MB/s", count),
            Bar(chart, "trialstore", ours, "MB/s", count),
        ]
        if block == "4 KB":
            # Its rate does not depend on how long it runs.
            theirs = [run("h5py", samples, effort.of(5.0, 1.0, 0.2)) for _ in range(turns)]
            rate = median(theirs, "mb_per_s")
            outcome.bars.append(Bar(chart, "h5py append", rate, "MB/s", len(theirs)))
            copied = median([run("copy", samples) for _ in range(turns)], "mb_per_s")
            who = "awaiting a call that only copies"
            outcome.bars.append(Bar(chart, who, copied, "MB/s", turns))
            # A virtual machine may give memory of files back that is not used again at once, and
            # pays for it anew: then who writes half as fast has less than half of the disk.
            paced = median([run("raw", samples, pace=10 * rate) for _ in range(turns)], "mb_per_s")
            who = "raw writev + fdatasync, held to ten times h5py's rate"
            outcome.bars.append(Bar(chart, who, paced, "MB/s", turns))
            what = f"blocks of {block}, as a multiple of h5py append"
            outcome.checks.append(Check(what, ours / rate, 10, "x", count, at_least=True))
        with effort.workspace() as folder:
            found = measure(capture_checked, folder=folder, samples=samples, trials=3)
        require_right(outcome, f"trialstore, {block}", found["wrong"])
    outcome.notes.append(
        f"{nbytes / 1e9:g} GB each, or {seconds:g} s where that is earlier; raw is synced after "
        "each 32 MiB, as large as one of our batches; h5py for a few seconds, synced once"
    )
    return outcome


# --- rows only ------------------------------------------------------------------------------------


def rows_only(peer: str, folder: str, trials: int, verify: bool = False) -> Figures:
    """Store rows without arrays as fast as accepted, until durable (ours) or in files (others)."""
    return asyncio.run(_rows_only(peer, Path(folder), trials, verify=verify))


async def _rows_only(name: str, folder: Path, trials: int, *, verify: bool) -> Figures:
    peer = load(name)(folder)
    await peer.open()
    rows = [attrs_of(trial) for trial in range(trials)]
    began = time.perf_counter()
    for row in rows:
        await peer.write(row)
    if isinstance(peer, Ours):
        await peer.task.flush()
        took = time.perf_counter() - began
        await peer.aclose()
    else:
        await peer.aclose()
        took = time.perf_counter() - began
    wrong = differences(load(name).read(folder), trials, 0, 0) if verify else []
    return {"rows_per_s": trials / took, "wrong": wrong}


def row_cost(peer: str, folder: str, trials: int) -> Figures:
    """Measure a row at the beginning and one at the end: processor time until it is durable.

    Not the time on the clock, most of which is one sync of the disk for a hundred rows.
    """
    return asyncio.run(_row_cost(peer, Path(folder), trials))


async def _row_cost(name: str, folder: Path, trials: int) -> Figures:
    peer = load(name)(folder)
    await peer.open()

    async def block(first: int) -> float:
        began = time.process_time()
        for trial in range(first, first + 100):
            await peer.write(attrs_of(trial))
        if isinstance(peer, Ours):
            await peer.task.flush()
        return (time.process_time() - began) / 100 * 1e6

    starts = range(0, trials, 100)
    times = [await block(first) for first in starts]
    few = min(10, max(1, len(times) // 2))
    # The first block pays for what is done once.
    early, late = statistics.median(times[1 : few + 1] or times), statistics.median(times[-few:])
    conclude({"early_us": early, "late_us": late})


def run_rows(effort: Effort) -> Outcome:
    """Rows per second; whether a row costs more the more there are."""
    outcome = Outcome()
    trials = effort.of(100_000, 5_000, 500)
    fewer = {"axopy": effort.of(1000, 500, 20), "zarr": effort.of(500, 100, 20)}
    for name in chosen(effort):
        count = effort.of(effort.pairs, 1, 1) if name == "trialstore" else 1
        many = trials if name == "trialstore" else fewer.get(name, effort.of(5000, 1000, 20))
        measured = []
        for turn in range(count):
            with effort.workspace() as folder:
                measured.append(
                    measure(rows_only, peer=name, folder=folder, trials=many, verify=turn == 0)
                )
        require_right(outcome, PEERS[name].label, measured[0]["wrong"])
        rate = median(measured, "rows_per_s")
        outcome.bars.append(Bar("rows only", PEERS[name].label, rate, "rows/s", count))
        if name == "trialstore":
            what = f"{trials:,} rows of 8 attributes, to durable"
            outcome.checks.append(Check(what, rate, 20_000, "rows/s", count, at_least=True))
    _add_row_cost(outcome, effort, trials)
    return outcome


def _add_row_cost(outcome: Outcome, effort: Effort, trials: int) -> None:
    grown = effort.of(trials, trials // 2, trials)
    names = {"trialstore": grown, "axopy": effort.of(2000, 700, 200)}
    for name, many in names.items():
        if name not in available():
            continue
        # More than once, as a machine that changes its speed in between makes any ratio.
        count, found = effort.of(effort.pairs, 1, 1) if name == "trialstore" else 1, []
        for _ in range(count):
            with effort.workspace() as folder:
                found.append(measure(row_cost, peer=name, folder=folder, trials=many))
        label = PEERS[name].label
        early, late = median(found, "early_us"), median(found, "late_us")
        outcome.bars += [
            Bar("cost of a row", f"{label}, row 100", early, "us", count),
            Bar("cost of a row", f"{label}, row {many:,}", late, "us", count),
        ]
        if name == "trialstore":
            what = f"cost of a row at {many:,} as a multiple of that at 100"
            grown_by = statistics.median(each["late_us"] / each["early_us"] for each in found)
            outcome.checks.append(Check(what, grown_by, 1.25, "x", count))


# --- a burst --------------------------------------------------------------------------------------

_BURST_SAMPLES: Final = 2000


def burst(peer: str, folder: str, trials: int, verify: bool = False) -> Figures:
    """Hand over trials of 1 MB as fast as accepted; measure until safe and until closed."""
    return asyncio.run(_burst(peer, Path(folder), trials, verify=verify))


async def _burst(name: str, folder: Path, trials: int, *, verify: bool) -> Figures:
    peer = load(name)(folder)
    await peer.open()
    device = Device(_BURST_SAMPLES)
    figures: Figures = {}
    began = time.perf_counter()
    for trial in range(trials):
        await peer.append(device.read())
        await peer.write(attrs_of(trial))
    if isinstance(peer, Ours):
        await peer.task.flush()
        figures["durable_s"] = time.perf_counter() - began
    await peer.aclose()
    figures["closed_s"] = time.perf_counter() - began
    os.sync()
    figures["synced_s"] = time.perf_counter() - began
    wrong = differences(load(name).read(folder), trials, _BURST_SAMPLES, 1) if verify else []
    return figures | {"wrong": wrong}


def run_burst(effort: Effort) -> Outcome:
    """h5py in a thread and ours in turn, then the others once."""
    outcome = Outcome()
    trials = effort.of(400, 120, 10)

    def run(name: str, *, verify: bool = False) -> Figures:
        with effort.workspace() as folder:
            return measure(burst, peer=name, folder=folder, trials=trials, verify=verify)

    count = effort.of(effort.pairs, 1, 1)
    pairs = alternate(partial(run, "h5py"), partial(run, "trialstore"), count)
    chart = f"burst of {trials} trials of 1 MB"
    for figure, limit in (("durable", 0.6), ("published", 1.2)):
        key = "durable_s" if figure == "durable" else "closed_s"
        share = statistics.median(ours[key] / theirs["closed_s"] for theirs, ours in pairs)
        what = f"until {figure}, as a multiple of h5py in a thread until closed"
        outcome.checks.append(Check(what, share, limit, "x", count))
        time_s = median([pair[1] for pair in pairs], key)
        outcome.bars.append(Bar(chart, f"trialstore, {figure}", time_s, "s", count))
    theirs = [pair[0] for pair in pairs]
    outcome.bars += [
        Bar(chart, "h5py + csv in a thread, closed", median(theirs, "closed_s"), "s", count),
        Bar(chart, "the same, and synced", median(theirs, "synced_s"), "s", count),
    ]
    # What a published trial cannot cost less than: its bytes in the journal and in HDF5, each safe.
    raw = []
    for _ in range(count):
        with effort.workspace() as folder:
            nbytes = trials * Device(_BURST_SAMPLES).read().nbytes
            raw.append(
                measure(
                    capture,
                    who="raw",
                    folder=folder,
                    samples=_BURST_SAMPLES,
                    nbytes=nbytes,
                    seconds=60.0,
                )
            )
    once = median(raw, "seconds")
    outcome.bars += [
        Bar(chart, "raw writev + fdatasync, once", once, "s", count),
        Bar(chart, "raw writev + fdatasync, twice", 2 * once, "s", count),
    ]
    for name in chosen(effort):
        found = run(name, verify=True)
        require_right(outcome, PEERS[name].label, found["wrong"])
        if name not in {"trialstore", "h5py"}:
            label = f"{PEERS[name].label}, closed"
            outcome.bars.append(Bar(chart, label, found["closed_s"], "s"))
    outcome.notes.append("AxoPy, h5py, PyTables, zarr and MCAP never sync: closed is not durable")
    return outcome


ROWS: Final = (
    Row(
        "capture",
        "Sustained capture",
        "blocks of 4 KB, 64 KB and 1 MB, as fast as accepted, from the first block until all are "
        "durable",
        ">= 0.4, 0.75, 0.85 x raw writev + fdatasync of the same bytes; >= 10 x h5py append at "
        "4 KB",
        run_capture,
    ),
    Row(
        "rows",
        "Rows only",
        "100 000 trials of 8 attributes, as fast as accepted, until durable; processor time of a "
        "row until it is durable, at the beginning and at the end",
        ">= 20 000 rows/s; cost per row at 100 000 as at 100",
        run_rows,
    ),
    Row(
        "burst",
        "Burst of 400 trials of 1 MB",
        "as fast as accepted, until durable and until published; h5py until its file is closed",
        "<= 0.6 x and <= 1.2 x the time of h5py in a thread until closed",
        run_burst,
    ),
)
