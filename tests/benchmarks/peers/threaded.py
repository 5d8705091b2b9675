"""The common pattern: trials through an ``asyncio.Queue`` to a function in a thread."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: As much as our own queue takes by default.
PENDING_BYTES: Final = 256 * 2**20


class Threaded(ABC):
    """Collects a trial's chunks on the loop; one task saves trial after trial in a thread."""

    PATTERN: ClassVar[str] = "asyncio.Queue, one task, asyncio.to_thread for each trial"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chunks: list[NDArray[Any]] = []
        self._pending = 0
        self._room = asyncio.Event()
        self._queue: asyncio.Queue[tuple[dict[str, Any], list[NDArray[Any]]] | None] = (
            asyncio.Queue()
        )

    @abstractmethod
    def start(self) -> None:
        """Open files; in a thread."""

    @abstractmethod
    def save(self, trial: int, attrs: dict[str, Any], array: NDArray[Any] | None) -> None:
        """Save one trial; in a thread."""

    @abstractmethod
    def finish(self) -> None:
        """Close files; in a thread."""

    async def open(self) -> None:
        await asyncio.to_thread(self.start)
        self._task = asyncio.create_task(self._work())

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
        await self._queue.put((attrs, chunks))

    async def aclose(self) -> None:
        await self._queue.put(None)
        await self._task
        await asyncio.to_thread(self.finish)

    async def _work(self) -> None:
        trial = 0
        while (item := await self._queue.get()) is not None:
            attrs, chunks = item
            await asyncio.to_thread(self._save, trial, attrs, chunks)
            self._pending -= sum(chunk.nbytes for chunk in chunks)
            self._room.set()
            trial += 1

    def _save(self, trial: int, attrs: dict[str, Any], chunks: list[NDArray[Any]]) -> None:
        self.save(trial, attrs, np.hstack(chunks) if chunks else None)
