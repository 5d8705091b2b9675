"""What a `PowerCutDisk` remembers: one record for each thing that was done to the disk."""

from __future__ import annotations

from typing import Final, NamedTuple

#: The watched folder itself.
ROOT: Final = 0


class Write(NamedTuple):
    """Bytes that were written to a file and are not yet safe."""

    file: int
    offset: int
    data: bytes


class Synced(NamedTuple):
    """A sync that succeeded; `content` is the whole file, if it was written past the port."""

    file: int
    content: bytes | None = None


class SyncFailed(NamedTuple):
    """A sync that failed."""

    file: int


class Edit(NamedTuple):
    """One name in one folder leads to another file or folder, or (None) to nothing."""

    folder: int
    name: str
    node: int | None


class Renamed(NamedTuple):
    """Names that change in one step, safe when `folder` is synced; `made` is a new folder."""

    folder: int
    edits: tuple[Edit, ...]
    made: int | None = None


class FolderSynced(NamedTuple):
    """A sync of a folder that succeeded."""

    folder: int


Operation = Write | Synced | SyncFailed | Renamed | FolderSynced


class Logged(NamedTuple):
    """One operation, and what to call it in a message."""

    operation: Operation
    label: str
