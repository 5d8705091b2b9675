"""PyTables in a thread of its own, as Autopilot's ``Subject`` stores its trials."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tables

from tests.benchmarks.peers.threaded import PENDING_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials


class Row(tables.IsDescription):  # type: ignore[misc]
    """The eight attributes."""

    trial = tables.Int64Col(pos=0)
    block = tables.Int64Col(pos=1)
    target = tables.Int64Col(pos=2)
    reaction = tables.Float64Col(pos=3)
    x = tables.Float64Col(pos=4)
    y = tables.Float64Col(pos=5)
    hit = tables.BoolCol(pos=6)
    hand = tables.StringCol(8, pos=7)


class PyTables:
    """A file that one thread keeps open; trials come through a ``queue.Queue``."""

    PATTERN: ClassVar[str] = (
        "Autopilot's Subject.data_thread: one thread keeps the file open, takes trials from a "
        "queue.Queue, and flushes the table after each"
    )

    def __init__(self, folder: Path) -> None:
        self._path = folder / "trials.h5"
        self._chunks: list[NDArray[Any]] = []
        self._pending = 0
        self._queue: queue.Queue[tuple[dict[str, Any], list[NDArray[Any]]] | None] = queue.Queue()

    async def open(self) -> None:
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def append_nowait(self, chunk: NDArray[Any]) -> None:
        self._chunks.append(chunk.copy())
        self._pending += chunk.nbytes

    async def append(self, chunk: NDArray[Any]) -> None:
        while self._pending > PENDING_BYTES:
            self._room.clear()
            await self._room.wait()
        self.append_nowait(chunk)

    async def write(self, attrs: dict[str, Any]) -> None:
        chunks, self._chunks = self._chunks, []
        self._queue.put((attrs, chunks))

    async def aclose(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        with tables.open_file(str(self._path), "w") as file:
            table = file.create_table("/", "trials", Row)
            group = file.create_group("/", "emg")
            trial = 0
            while (item := self._queue.get()) is not None:
                attrs, chunks = item
                for name, value in attrs.items():
                    table.row[name] = value
                table.row.append()
                table.flush()
                if chunks:
                    file.create_array(group, f"trial{trial}", np.hstack(chunks))
                file.flush()
                self._loop.call_soon_threadsafe(self._saved, sum(c.nbytes for c in chunks))
                trial += 1

    def _saved(self, nbytes: int) -> None:
        self._pending -= nbytes
        self._room.set()

    @staticmethod
    def read(folder: Path) -> Trials:
        with tables.open_file(str(folder / "trials.h5")) as file:
            for trial, row in enumerate(file.root.trials.read()):
                attrs = {name: row[name] for name in row.dtype.names}
                attrs["hand"] = attrs["hand"].decode()
                name = f"/emg/trial{trial}"
                yield attrs, file.get_node(name).read() if name in file else None
