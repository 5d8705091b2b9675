"""What a call costs the loop, and what the start of a recording does."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.content import (
    TICK_SAMPLES,
    Device,
    attrs_of,
    differences,
)
from tests.benchmarks.frame import (
    Bar,
    Check,
    Outcome,
    Row,
    median,
)
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.process import measure
from tests.benchmarks.rows_loop import require_right, verify_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.frame import Effort, Figures

#: The three loops take turns so often in one process.
_ROUNDS: Final = 7
_STORAGE: Final = "from trialstore import Storage"
_BELOW: Final = "import asyncio, numpy, anyio, anyio.from_thread, anyio._backends._asyncio"
_NO_BYTECODE: Final = "PYTHONDONTWRITEBYTECODE"


# --- cost of a call -------------------------------------------------------------------------------


def call_cost(folder: str, calls: int) -> Figures:
    """Measure what a call costs on the loop, beside the copy of the same bytes."""
    return asyncio.run(_call_cost(Path(folder), calls))


async def _call_cost(folder: Path, calls: int) -> Figures:
    ours = Ours(folder)
    await ours.open()
    device = Device(TICK_SAMPLES)
    append, write, copy, alone = [], [], [], []
    for _ in range(_ROUNDS):
        await ours.task.flush()
        copy.append(_copying(device, calls))
        append.append(_timed(lambda: ours.task.append_nowait("emg", device.read()), calls))
        await ours.task.write(attrs_of(0))
        await ours.task.flush()
        write.append(_writing(ours, calls))
        await ours.task.flush()
        with ours.storage._recorder.writer.committing:  # the thread waits: nothing but the call
            alone.append(_writing(ours, calls))
    figures = {
        "copy_us": statistics.median(copy),
        "append_us": statistics.median(append),
        "write_us": statistics.median(write),
        "alone_us": statistics.median(alone),
    }
    await ours.aclose()
    return figures


def _copying(device: Device, calls: int) -> float:
    kept: list[bytes] = []  # as the queue keeps them: memory that is new costs more
    return _timed(lambda: kept.append(device.read().tobytes()), calls)


def _writing(ours: Ours, calls: int) -> float:
    rows = iter([attrs_of(trial) for trial in range(calls)])
    return _timed(lambda: ours.task.write_nowait(next(rows)), calls)


def _timed(call: Callable[[], object], calls: int) -> float:
    """Microseconds per call; the collector's pauses are the loop's matter, not the call's."""
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    took = time.perf_counter() - began
    gc.enable()
    return took / calls * 1e6


def run_call(effort: Effort) -> Outcome:
    """Measure the calls in several processes; the three loops alternate inside each."""
    outcome = Outcome()
    measured = []
    for _ in range(effort.pairs):
        with effort.workspace() as folder:
            measured.append(measure(call_cost, folder=folder, calls=effort.of(1000, 1000, 20)))
    copy = median(measured, "copy_us")
    append = statistics.median(each["append_us"] - each["copy_us"] for each in measured)
    write = median(measured, "write_us")
    count = len(measured)
    outcome.checks += [
        Check("append_nowait of 20 KB, beyond the copy", append, 5, "us", count),
        Check("write_nowait of a trial with 8 attributes", write, 25, "us", count),
    ]
    alone = median(measured, "alone_us")
    outcome.notes.append(
        f"write_nowait while the thread that writes is kept waiting: {alone:.3g} us"
    )
    chart = "a call on the loop"
    outcome.bars += [
        Bar(chart, "copying 20 KB", copy, "us", count),
        Bar(chart, "append_nowait of 20 KB", copy + append, "us", count),
        Bar(chart, "write_nowait of 8 attributes", write, "us", count),
    ]
    verify_all(outcome, effort, ["trialstore"])
    return outcome


# --- start ----------------------------------------------------------------------------------------


def start_up(folder: str) -> Figures:
    """Measure from entering the Storage to the first accepted write, and what the loop felt."""
    return asyncio.run(_start_up(Path(folder)))


async def _start_up(folder: Path) -> Figures:
    longest = 0.0
    is_over = False

    async def watch() -> None:
        nonlocal longest
        while not is_over:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    began = time.perf_counter()
    ours = Ours(folder)
    await ours.open()
    opened = time.perf_counter() - began
    await ours.write(attrs_of(0))
    accepted = time.perf_counter() - began
    process = ours.storage._recorder.publisher._process
    child_works = process is not None and process.poll() is None
    is_over = True
    await watcher
    figures = {
        "opened_ms": opened * 1e3,
        "accepted_ms": accepted * 1e3,
        "held_ms": longest * 1e3,
        "child_works": child_works,
    }
    await ours.aclose()
    return figures | {"wrong": differences(Ours.read(folder), 1, 0, 0)}


def import_time(statement: str, cache: str) -> float:
    """Milliseconds that a statement takes in a fresh process; its bytecode is kept in `cache`."""
    program = (
        f"import time; began = time.perf_counter(); {statement};"
        "print((time.perf_counter() - began) * 1e3)"
    )
    told = {name: value for name, value in os.environ.items() if name != _NO_BYTECODE}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, capture_output=True, check=True, env=told | {"PYTHONPYCACHEPREFIX": cache}
    )
    return float(ended.stdout)


def run_start(effort: Effort) -> Outcome:
    """Import, enter, write; each in fresh processes."""
    outcome = Outcome()
    count = effort.of(11, 2, 1)
    with tempfile.TemporaryDirectory() as cache:
        import_time(_STORAGE, cache)  # compiles, as an installation does
        imports, loads, below = (
            statistics.median(import_time(statement, cache) for _ in range(count))
            for statement in ("import trialstore", _STORAGE, _BELOW)
        )
    measured = []
    for _ in range(count):
        with effort.workspace() as folder:
            measured.append(measure(start_up, folder=folder))
            require_right(outcome, "trialstore", measured[-1]["wrong"])
    outcome.verified = outcome.verified[:1]
    accepted = median(measured, "accepted_ms")
    outcome.checks += [
        Check("import trialstore", imports, 150, "ms", count),
        Check(_STORAGE, loads, 150, "ms", count),
        Check("longest hold of the loop until the first write", median(measured, "held_ms"), 20,
              "ms", count),
    ]  # fmt: skip
    outcome.bars += [
        Bar("start", "import trialstore", imports, "ms", count),
        Bar("start", "from trialstore import Storage", loads, "ms", count),
        Bar("start", "of it NumPy and AnyIO", below, "ms", count),
        Bar("start", "Storage entered and task open", median(measured, "opened_ms"), "ms", count),
        Bar("start", "first write accepted", accepted, "ms", count),
    ]
    ready = child_ready(effort)
    outcome.bars.append(Bar("start", "child ready", ready, "ms", count))
    outcome.checks.append(
        Check("first write accepted, as a share of the child's start", accepted / ready, 1, "x",
              count)
    )  # fmt: skip
    return outcome


def child_ready(effort: Effort) -> float:
    """Milliseconds that a publisher needs to start and to end again, with nothing to do."""
    from trialstore._recording.publisher import _PROGRAM

    times = []
    for _ in range(effort.of(5, 2, 1)):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", _PROGRAM], input=b"", check=True)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


ROWS: Final = (
    Row(
        "call",
        "Cost of a call on the loop",
        "append_nowait of 20 KB beside the copy alone, write_nowait of a trial with 8 attributes; "
        "thousands of calls, the garbage collector off",
        "the copy + 5 us; 25 us",
        run_call,
    ),
    Row(
        "start",
        "Start",
        "import trialstore in a fresh process; Storage entered, task created, first write accepted "
        "while another task watches the loop",
        "import < 150 ms; < 20 ms on the loop; no wait for the child",
        run_start,
    ),
)
