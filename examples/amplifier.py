"""Streaming an amplifier: its chunks reach the disk while the trial still runs.

Run it with ``python examples/amplifier.py [FOLDER]``. The amplifier is simulated by a thread that
calls back with a buffer which it uses again, as many drivers do.
"""

from __future__ import annotations

import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import numpy as np

from trialstore import ArrayInfo, Storage, WriteFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from numpy.typing import NDArray

    from trialstore import Receipt, TaskWriter

    Chunk = NDArray[np.float64]

RATE = 2000.0  # samples per second
CHANNELS = ["FCR", "ECR", "BIC", "TRI"]
CHUNK = 40  # samples for each call of the driver: 20 ms


@asynccontextmanager
async def amplifier(on_chunk: Callable[[Chunk], None]) -> AsyncIterator[None]:
    """Call ``on_chunk(buffer)`` every 20 ms in the driver's own thread."""
    stop, rng = threading.Event(), np.random.default_rng()
    buffer = np.empty((len(CHANNELS), CHUNK))

    def drive() -> None:
        while not stop.wait(CHUNK / RATE):
            buffer[:] = rng.normal(0.0, 0.05, buffer.shape)
            on_chunk(buffer)

    driver = threading.Thread(target=drive, name="amplifier")
    driver.start()
    try:
        yield
    finally:
        stop.set()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(driver.join)


def into(task: TaskWriter) -> Callable[[Chunk], None]:
    """Return a callback for the driver that appends each chunk to the task's open trial."""
    loop = anyio.lowlevel.current_token()

    def on_chunk(buffer: Chunk) -> None:
        # In the loop's thread `append_nowait` copies the chunk and never waits; should the queue be
        # full because the disk has stopped answering, it raises QueueFull, here in the driver.
        anyio.from_thread.run_sync(task.append_nowait, "emg", buffer, token=loop)

    return on_chunk


async def confirm(receipt: Receipt) -> None:
    """Tell when a trial is safe, while the experiment goes on."""
    try:
        await receipt.durable()
    except WriteFailed as error:
        print(f"trial {receipt.index} could not be saved: {error}")
    else:
        print(f"trial {receipt.index} is durable: it survives a power cut")


async def experiment(root: str) -> None:
    """Record three trials of muscle activity."""
    emg = ArrayInfo(rate=RATE, unit="mV", channels=CHANNELS, dims=("channel", "time"))
    async with Storage(root) as storage, anyio.create_task_group() as background:
        storage.subject_id = "p0"
        async with (
            storage.create_task("stream", arrays={"emg": emg}, repeat=True) as task,
            amplifier(into(task)),
        ):
            for cue in ("flex", "extend", "rest"):
                await anyio.sleep(0.4)  # here the person moves
                receipt = await task.write({"cue": cue})  # ends the trial that was streamed
                background.start_soon(confirm, receipt)
        figures = storage.statistics()
        print(f"{figures.trials.published} trials in {task.root}")
        print(f"the queue held {figures.queue_peak} bytes at most")


if __name__ == "__main__":
    anyio.run(experiment, sys.argv[1] if len(sys.argv) > 1 else "data")
