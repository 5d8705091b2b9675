"""What several test modules share."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from trialstore import Storage, StorageReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from anyio.from_thread import BlockingPortal

    from trialstore import Receipt, TaskReader, TaskWriter


def reader_of(root: Path, task: str = "reach", subject: str = "p0") -> TaskReader:
    """Return the reader of one task."""
    storage = StorageReader(root)
    storage.subject_id = subject
    return storage.require_task(task)


@asynccontextmanager
async def open_task(
    root: Path, task: str = "reach", subject: str = "p0", **options: Any
) -> AsyncIterator[TaskWriter]:
    """Record one new task in a Storage of its own; `options` go to `create_task`."""
    async with Storage(root) as storage:
        storage.subject_id = subject
        async with storage.create_task(task, **options) as writer:
            yield writer


class SyncTask:
    """A task that is recorded on an event loop in another thread, one call after the other."""

    def __init__(self, portal: BlockingPortal, storage: Storage, name: str, **options: Any) -> None:
        self._portal = portal
        self._storage = storage
        self._writer: TaskWriter = portal.call(self._create, name, options)
        self.root = self._writer.root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._portal.call(self._writer.__aexit__, kind, error, trace)

    async def _create(self, name: str, options: dict[str, Any]) -> TaskWriter:
        return await self._storage.create_task(name, **options)

    async def _resume(self) -> TaskWriter:
        return await self._storage.resume_task(self.root.name)

    def append(self, name: str, chunk: Any) -> None:
        self._portal.call(self._writer.append, name, chunk)

    def write(self, trial: Any) -> Receipt:
        return self._portal.call(self._writer.write, trial)

    def pickle(self, obj: object, name: str) -> None:
        self._portal.call(self._writer.pickle, obj, name)

    def flush(self) -> None:
        self._portal.call(self._writer.flush)

    def publish(self) -> None:
        self._portal.call(self._writer.publish)

    def close(self) -> None:
        self._portal.call(self._writer.aclose)

    def resume(self) -> None:
        """Take the task up again after it was closed."""
        self._writer = self._portal.call(self._resume)


class Lab:
    """A Storage that stays open, for tests that do not care about event loops."""

    def __init__(self, portal: BlockingPortal, storage: Storage) -> None:
        self._portal = portal
        self._storage = storage
        self._tasks = itertools.count()

    def create(self, name: str | None = None, **options: Any) -> SyncTask:
        """Create a task of a name of its own; `options` go to `create_task`."""
        chosen = name or f"task{next(self._tasks)}"
        return SyncTask(self._portal, self._storage, chosen, **options)


@contextmanager
def open_lab(root: Path, **options: Any) -> Iterator[Lab]:
    """Open a Storage in another thread, with its publisher running; `options` are its own."""
    storage = Storage(root, **options)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(storage):
        storage.subject_id = "p0"
        lab = Lab(portal, storage)
        lab.create().close()
        yield lab
