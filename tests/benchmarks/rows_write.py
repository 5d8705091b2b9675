"""What reaches the disk: sustained capture, rows only, a burst, the end of a task, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.content import CHANNELS, Device, attrs_of, differences
from tests.benchmarks.frame import Bar, Check, Outcome, Row, alternate, median, ratio
from tests.benchmarks.measure import children, conclude
from tests.benchmarks.peers import PEERS, available, chosen, load
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.process import measure
from tests.benchmarks.rows_loop import paced, require_right, verify_all
from tests.shims import Action, Call, Faults

if TYPE_CHECKING:
    from tests.benchmarks.frame import Effort, Figures

_MIB: Final = 2**20
#: As large as one batch of ours, which ends with one fdatasync.
_BATCH_BYTES: Final = 32 * _MIB
#: Blocks of this many samples of 64 channels are 4 KB, 64 KB and 1 MB.
_BLOCKS: Final = {"4 KB": 8, "64 KB": 128, "1 MB": 2048}
_IOV_MAX: Final = 1024
#: An hour of the paced load.
_HOUR_TRIALS: Final = 72_000


# --- sustained capture ----------------------------------------------------------------------------


def capture(who: str, folder: str, samples: int, nbytes: int, seconds: float) -> Figures:
    """Store blocks as fast as they are accepted, until so many bytes or so many seconds."""
    writer = {"trialstore": _capture_ours, "raw": _capture_raw, "h5py": _capture_h5py}[who]
    began = time.perf_counter()
    stored = writer(Path(folder), Device(samples), nbytes, began + seconds)
    took = time.perf_counter() - began
    return {"mb_per_s": stored / took / 1e6, "bytes": stored, "seconds": took}


def _capture_raw(folder: Path, device: Device, nbytes: int, end: float) -> int:
    """The limit: nothing but system calls, synced as often as ours."""
    block = device.read().data.cast("B")
    pieces = [block] * min(_IOV_MAX, max(1, _BATCH_BYTES // len(block)))
    fd = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    stored = unsynced = 0
    while stored < nbytes and time.perf_counter() < end:
        written = os.writev(fd, pieces)
        stored, unsynced = stored + written, unsynced + written
        if unsynced >= _BATCH_BYTES:
            os.fdatasync(fd)
            unsynced = 0
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
    nbytes = effort.of(4 * 10**9, 256 * 10**6, 64 * 10**6)
    seconds = effort.of(60.0, 10.0, 2.0)

    def run(who: str, samples: int, seconds: float = seconds) -> Figures:
        with effort.workspace() as folder:
            return measure(
                capture, who=who, folder=folder, samples=samples, nbytes=nbytes, seconds=seconds
            )

    least = {"4 KB": 0.4, "64 KB": 0.75, "1 MB": 0.85}
    for block, samples in _BLOCKS.items():
        pairs = alternate(partial(run, "raw", samples), partial(run, "trialstore", samples),
                          effort.pairs)  # fmt: skip
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
            theirs = [run("h5py", samples, effort.of(5.0, 2.0, 0.2)) for _ in range(effort.pairs)]
            rate = median(theirs, "mb_per_s")
            outcome.bars.append(Bar(chart, "h5py append", rate, "MB/s", len(theirs)))
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
    trials = effort.of(100_000, 20_000, 500)
    fewer = {"axopy": effort.of(1000, 500, 20), "zarr": effort.of(500, 100, 20)}
    for name in chosen(effort):
        count = effort.pairs if name == "trialstore" else 1
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
        with effort.workspace() as folder:
            found = measure(row_cost, peer=name, folder=folder, trials=many)
        label = PEERS[name].label
        outcome.bars += [
            Bar("cost of a row", f"{label}, row 100", found["early_us"], "us"),
            Bar("cost of a row", f"{label}, row {many:,}", found["late_us"], "us"),
        ]
        if name == "trialstore":
            what = f"cost of a row at {many:,} as a multiple of that at 100"
            outcome.checks.append(Check(what, found["late_us"] / found["early_us"], 1.25, "x", 1))


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
    trials = effort.of(400, 200, 10)

    def run(name: str, *, verify: bool = False) -> Figures:
        with effort.workspace() as folder:
            return measure(burst, peer=name, folder=folder, trials=trials, verify=verify)

    pairs = alternate(partial(run, "h5py"), partial(run, "trialstore"), effort.pairs)
    count = len(pairs)
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
    for name in chosen(effort):
        found = run(name, verify=True)
        require_right(outcome, PEERS[name].label, found["wrong"])
        if name not in {"trialstore", "h5py"}:
            label = f"{PEERS[name].label}, closed"
            outcome.bars.append(Bar(chart, label, found["closed_s"], "s"))
    outcome.notes.append("AxoPy, h5py, PyTables, zarr and MCAP never sync: closed is not durable")
    return outcome


# --- the end of a task ----------------------------------------------------------------------------


def end(folder: str, seconds: float) -> Figures:
    """Measure aclose after so much of the paced load."""
    return asyncio.run(_end(Path(folder), seconds))


async def _end(folder: Path, seconds: float) -> Figures:
    ours = Ours(folder)
    await ours.open()
    await paced(ours, seconds)
    began = time.perf_counter()
    await ours.task.aclose()
    took = time.perf_counter() - began
    await ours.stack.aclose()
    return {"close_s": took}


def run_end(effort: Effort) -> Outcome:
    """Close after a short and after a long task, in turn."""
    outcome = Outcome()
    short, long = effort.of((6.0, 60.0), (2.0, 8.0), (0.2, 0.6))
    pairs_run = effort.of(3, 1, 1)

    def run(seconds: float) -> Figures:
        with effort.workspace() as folder:
            return measure(end, folder=folder, seconds=seconds)

    pairs = alternate(partial(run, short), partial(run, long), pairs_run)
    more = statistics.median(late["close_s"] - early["close_s"] for early, late in pairs)
    for side, seconds in enumerate((short, long)):
        closed = median([pair[side] for pair in pairs], "close_s")
        what = f"aclose after {seconds:g} s of the paced load"
        outcome.checks.append(Check(what, closed, 0.5, "s", len(pairs)))
        outcome.bars.append(Bar("end of a task", f"after {seconds:g} s", closed, "s", len(pairs)))
    what = f"longer after {long:g} s than after {short:g} s"
    outcome.checks.append(Check(what, more, 0.1, "s", len(pairs)))
    outcome.notes.append(f"{len(pairs)} pairs: each takes more than {short + long:g} s")
    verify_all(outcome, effort, ["trialstore"])
    return outcome


# --- memory ---------------------------------------------------------------------------------------


def resident(process: int | str = "self") -> int:
    """Bytes of memory that a process has at present."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The most memory seen, by a thread that looks a hundred times a second."""

    def __init__(self) -> None:
        self.most = resident()
        self._is_over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._is_over.wait(0.01):
            self.most = max(self.most, resident())

    def stop(self) -> int:
        self._is_over.set()
        return self.most


def stalled(folder: str, queue_bytes: int, seconds: float, mark: str) -> Figures:
    """Hand over blocks of 1 MB as fast as accepted while the disk stands still for a while."""
    return asyncio.run(_stalled(Path(folder), queue_bytes, seconds, Path(mark)))


async def _stalled(folder: Path, queue_bytes: int, seconds: float, mark: Path) -> Figures:
    ours = Ours(folder, queue_bytes=queue_bytes)
    await ours.open()
    device = Device(_BURST_SAMPLES)

    async def trials(count: int, until: float = float("inf")) -> None:
        for trial in range(count):
            await ours.append(device.read())
            await ours.write(attrs_of(trial))
            if time.perf_counter() > until:
                return

    await trials(20)
    await ours.task.flush()
    before, peak = resident(), _Peak()
    await asyncio.to_thread(mark.touch)
    began = time.perf_counter()
    await trials(10**9, began + seconds + 0.5)
    await ours.task.flush()
    most = peak.stop()
    gc.collect()
    figures = {
        "growth_mib": (most - before) / _MIB,
        "kept_mib": (resident() - before) / _MIB,
        "queue_peak_mib": ours.storage.statistics().queue_peak / _MIB,
        "waited_s": time.perf_counter() - began,
    }
    conclude(figures)


def many_trials(folder: str, trials: int) -> Figures:
    """Record small trials; measure the memory after a tenth of them and after all."""
    return asyncio.run(_many_trials(Path(folder), trials))


async def _many_trials(folder: Path, trials: int) -> Figures:
    ours = Ours(folder)
    await ours.open()
    device = Device(1)

    async def some(first: int, last: int) -> tuple[int, int]:
        for trial in range(first, last):
            await ours.append(device.read())
            await ours.write(attrs_of(trial))
        await ours.task.publish()
        gc.collect()
        return resident(), sum(map(resident, children()))

    ours_before, child_before = await some(0, trials // 10)
    ours_after, child_after = await some(trials // 10, trials)
    figures = {
        "growth_mib": (ours_after - ours_before) / _MIB,
        "child_growth_mib": (child_after - child_before) / _MIB,
    }
    await ours.aclose()
    return figures | {"wrong": differences(Ours.read(folder), trials, 1, 1)}


def run_memory(effort: Effort) -> Outcome:
    """A stalled disk, and an hour's worth of trials."""
    outcome = Outcome()
    queue_bytes = effort.of(256, 256, 32) * _MIB
    seconds = effort.of(10.0, 2.0, 0.5)
    with effort.workspace() as folder, Faults() as faults:
        mark = folder / "mark"
        below = folder / "data"
        stall = threading.Thread(target=_stall, args=(faults, below, mark, seconds))
        stall.start()
        found = measure(
            stalled,
            environment=faults.environment,
            folder=below,
            queue_bytes=queue_bytes,
            seconds=seconds,
            mark=mark,
        )
        stall.join()
        faults.require_attached()
    allowed = queue_bytes / _MIB + 64
    outcome.checks += [
        Check(f"growth while the disk stands still for {seconds:g} s", found["growth_mib"],
              allowed, "MiB", 1),
        Check("kept afterwards", found["kept_mib"], 64, "MiB", 1),
        Check("the queue was full", found["queue_peak_mib"] * _MIB / queue_bytes, 0.95, "x", 1,
              at_least=True),
    ]  # fmt: skip
    trials = effort.of(_HOUR_TRIALS, _HOUR_TRIALS // 12, 300)
    with effort.workspace() as folder:
        hour = measure(many_trials, folder=folder, trials=trials)
    require_right(outcome, "trialstore", hour["wrong"])
    outcome.checks.append(
        Check(f"growth from {trials // 10:,} trials to {trials:,}", hour["growth_mib"], 8, "MiB", 1)
    )
    outcome.bars += [
        Bar("memory", "growth while the disk stands still", found["growth_mib"], "MiB"),
        Bar("memory", "kept afterwards", found["kept_mib"], "MiB"),
        Bar("memory", f"recorder, {trials:,} trials", hour["growth_mib"], "MiB"),
        Bar("memory", f"publisher, {trials:,} trials", hour["child_growth_mib"], "MiB"),
    ]
    outcome.notes.append(f"{_HOUR_TRIALS:,} trials are an hour of the paced load; 64 samples each")
    return outcome


def _stall(faults: Faults, below: Path, mark: Path, seconds: float) -> None:
    """Let the disk stand still from when the load begins on."""
    end = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.01)
    rule = faults.arm(Call.WRITE | Call.SYNC, below, action=Action.HANG, count=0)
    time.sleep(seconds)
    rule.stop()


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
    Row(
        "end",
        "End of a task",
        "aclose after a short and a long time of the paced load",
        "the same time (within 0.1 s), under 0.5 s",
        run_end,
    ),
    Row(
        "memory",
        "Memory",
        "resident memory while the disk stands still under full load (every write and sync hangs); "
        "resident memory over an hour's worth of trials",
        "growth <= queue_bytes + 64 MiB; falls back (to 64 MiB); no growth (8 MiB) in an hour's "
        "worth of trials",
        run_memory,
    ),
)
