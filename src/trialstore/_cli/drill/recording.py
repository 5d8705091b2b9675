"""The load through the real recorder, while a probe looks how late the loop is."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

import anyio

from trialstore import ArrayInfo, Storage
from trialstore._cli.drill.loop import Probe
from trialstore._cli.drill.verdict import Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trialstore import TaskWriter
    from trialstore._cli.drill.load import Load

ARRAY: Final = "signal"
SUBJECT: Final = "drill"
TRIAL_SECONDS: Final = 1.0
#: Chunks made beforehand: making data is the experiment's work, not the recorder's.
_VARIANTS: Final = 16
#: What a Storage has if nobody says otherwise.
_QUEUE_BYTES: Final = 256 * 2**20


async def feed(
    task: TaskWriter, load: Load, seconds: float, tick: Callable[[float], None]
) -> tuple[int, float]:
    """Append chunks when they are due; return how many, and by how much the last ones were late.

    Every second of signal is a trial.
    """
    chunks = [load.chunk_of(number) for number in range(_VARIANTS)]
    total, per_trial = int(seconds / load.period), max(1, round(TRIAL_SECONDS / load.period))
    began = time.perf_counter()
    for number in range(total):
        wait = began + number * load.period - time.perf_counter()
        if wait > 0:
            await anyio.sleep(wait)
        await task.append(ARRAY, chunks[number % _VARIANTS])
        if number % per_trial == per_trial - 1:
            await task.write({"first_chunk": number + 1 - per_trial})
            tick(number / total)
    return total, max(0.0, time.perf_counter() - began - total * load.period)


async def record(
    root: Path, name: str, load: Load, factor: float, seconds: float, tick: Callable[[float], None]
) -> Step:
    """Record a load for some seconds and return what it took.

    Raises
    ------
    StorageError
        If it could not be recorded.
    """
    probe = Probe(seconds)
    faster = load.times(factor)
    info = ArrayInfo(rate=faster.rate, dims=("channel", "time"))
    async with Storage(root, queue_bytes=_QUEUE_BYTES) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(name, arrays={ARRAY: info}) as task:
            await anyio.sleep(0.5)  # the publisher's start is not the load's
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(probe.run)
                cpu, loop, wall = time.process_time(), time.thread_time(), time.perf_counter()
                chunks, behind = await feed(task, faster, seconds, tick)
                cpu, loop = time.process_time() - cpu, time.thread_time() - loop
                wall = time.perf_counter() - wall
                found = storage.statistics()
                tasks.cancel_scope.cancel()
            began = time.perf_counter()
        ended = time.perf_counter() - began
    return Step(
        factor=factor,
        bytes_per_second=faster.bytes_per_second,
        seconds=wall,
        chunks=chunks,
        behind=behind,
        late=probe.late,
        queue_limit=_QUEUE_BYTES,
        queue_peak=found.queue_peak,
        queue_bytes=found.queue_bytes,
        longest_to_durable=found.longest_to_durable,
        longest_hold=found.longest_hold,
        cpu=cpu / wall,
        loop=loop / wall,
        closing=ended,
    )


def file_system(task: Path) -> tuple[str | None, bool]:
    """Return what a task's manifest tells of its disk: kind of file system, and whether remote."""
    environment = json.loads((task / "manifest.json").read_text("utf-8"))["environment"]
    told = environment["file_system"]
    return told["type"], told["network"]
