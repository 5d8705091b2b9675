"""What is left: the time that the end of a task takes, and the memory that is kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.content import Device, attrs_of, differences
from tests.benchmarks.frame import Bar, Check, Outcome, Row, alternate, median
from tests.benchmarks.measure import children, conclude
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.process import measure
from tests.benchmarks.rows_loop import paced, require_right, verify_all
from tests.shims import Action, Call, Faults
from trialstore import PublishFailed

if TYPE_CHECKING:
    from tests.benchmarks.frame import Effort, Figures

_MIB: Final = 2**20
#: Samples of 64 channels, 1 MB.
_BLOCK_SAMPLES: Final = 2000
#: An hour of the paced load.
_HOUR_TRIALS: Final = 72_000
#: Requests to publish, each of half a minute.
_PATIENCE: Final = 10


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
    device = Device(_BLOCK_SAMPLES)

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
            if trial % 100 == 0:  # as in an hour: what waits is a queue's matter, not a session's
                await ours.task.flush()
        # Written within minutes, published by a child of the lowest priority: not in one timeout.
        for _ in range(_PATIENCE):
            with contextlib.suppress(PublishFailed):
                await ours.task.publish()
                break
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
