"""trialstore."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trialstore import Storage, StorageReader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials
    from trialstore import TaskReader


class Ours:
    """A task that is streamed: append for each chunk, write for each trial."""

    PATTERN: ClassVar[str] = (
        "Storage with its defaults, append_nowait for each chunk, write for each trial"
    )

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        self._options = options
        self.stack = AsyncExitStack()

    async def open(self) -> None:
        self.storage = await self.stack.enter_async_context(Storage(self._folder, **self._options))
        self.storage.subject_id = "p0"
        self.task = await self.storage.create_task("reach")

    def append_nowait(self, chunk: NDArray[Any]) -> None:
        self.task.append_nowait("emg", chunk)

    async def append(self, chunk: NDArray[Any]) -> None:
        await self.task.append("emg", chunk)

    async def write(self, attrs: dict[str, Any]) -> None:
        await self.task.write(attrs)

    async def aclose(self) -> None:
        await self.task.aclose()
        await self.stack.aclose()

    @staticmethod
    def reader(folder: Path) -> TaskReader:
        """Return the reader of the task."""
        storage = StorageReader(folder)
        storage.subject_id = "p0"
        return storage.require_task("reach")

    @staticmethod
    def read(folder: Path) -> Trials:
        reader = Ours.reader(folder)
        rows = reader.trials.to_dict("records")
        if "emg" not in reader.array_names:
            yield from (({str(k): v for k, v in row.items()}, None) for row in rows)
            return
        for row, array in zip(rows, reader.iterarray("emg"), strict=True):
            yield {str(key): value for key, value in row.items()}, np.asarray(array)
