"""zarr-python, format 3: one array per trial, by its asynchronous interface."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr
import zarr.api.asynchronous

from tests.benchmarks.peers.threaded import PENDING_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials


class Zarr:
    """A task beside the experiment's takes trials from a queue and awaits zarr's own calls."""

    PATTERN: ClassVar[str] = (
        "AsyncGroup.create_array and AsyncArray.setitem for each trial, one uncompressed chunk, "
        "attributes in its metadata; asyncio.Queue and one task"
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chunks: list[NDArray[Any]] = []
        self._pending = 0
        self._room = asyncio.Event()
        self._queue: asyncio.Queue[tuple[dict[str, Any], list[NDArray[Any]]] | None] = (
            asyncio.Queue()
        )

    async def open(self) -> None:
        self._group = await zarr.api.asynchronous.open_group(
            store=zarr.storage.LocalStore(self._folder / "trials.zarr"), mode="w"
        )
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

    async def _work(self) -> None:
        trial = 0
        while (item := await self._queue.get()) is not None:
            attrs, chunks = item
            whole = np.hstack(chunks) if chunks else np.empty((0, 0))
            array = await self._group.create_array(
                str(trial),
                shape=whole.shape,
                dtype=whole.dtype,
                chunks=tuple(max(1, length) for length in whole.shape),
                compressors=None,
                attributes=attrs,
            )
            if chunks:
                await array.setitem(..., whole)
            self._pending -= whole.nbytes
            self._room.set()
            trial += 1

    @staticmethod
    def read(folder: Path) -> Trials:
        group: Any = zarr.open_group(folder / "trials.zarr", mode="r")
        for trial in range(len(group)):
            array = group[str(trial)]
            yield dict(array.attrs), array[...] if array.size else None
