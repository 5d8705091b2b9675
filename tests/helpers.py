"""What several test modules share."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from trialstore import Storage, StorageReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trialstore import TaskReader, TaskWriter


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
