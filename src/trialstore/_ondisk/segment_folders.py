"""Where the segments of a journal lie, and which of them are gone."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from trialstore._ondisk import layout, witness
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.segment_file import SegmentFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from trialstore._ondisk.witness import Witness

#: Number of a segment, and which folder it lies in: the order in which segments are read.
Key = tuple[int, int]


class SegmentFolders:
    """The folders of one journal.

    Parameters
    ----------
    folders : sequence of pathlib.Path
        The journal folder, and fallback folders.

    Attributes
    ----------
    files : dict
        Every segment that was found, in order; those that were deleted since, too.
    lost : dict
        What the witnesses say of segments that are gone.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self.files: dict[Key, SegmentFile] = {}
        self.lost: dict[Key, Witness] = {}

    def __len__(self) -> int:
        return len(self._folders)

    def __iter__(self) -> Iterator[SegmentFile]:
        return iter(self.files.values())

    def add(self, folder: Path) -> None:
        """Look into one more folder from now on."""
        if folder not in self._folders:
            self._folders.append(folder)

    def look(self) -> None:
        """Find segments that have come, or have gone before anybody read them.

        Raises
        ------
        FileNotFoundError
            If the journal folder is gone (published, or moved), or another journal is in its place.
        """
        found: dict[Key, Path] = {}
        witnessed: dict[Key, Path] = {}
        for position, folder in enumerate(self._folders):
            # A second folder may be on a disk that is not there today.
            with contextlib.suppress(OSError) if position else contextlib.nullcontext():
                for path in folder.iterdir():
                    segment = path.with_suffix(layout.SEGMENT_SUFFIX)
                    if (number := layout.segment_number(segment.name)) is not None:
                        kind = found if path == segment else witnessed
                        kind[number, position] = segment
        for key in found.keys() & self.files.keys():
            self._let_go_if_replaced(key)
        fresh = sorted(found.keys() - self.files.keys())
        for key in fresh:
            with contextlib.suppress(FileNotFoundError):
                self.files[key] = SegmentFile(found[key])
        if fresh:
            self.files = dict(sorted(self.files.items()))
        lonely = witnessed.keys() - found.keys() - self.files.keys()
        self.lost = {key: said for key in sorted(lonely) if (said := _lost(witnessed[key]))}
        if self.lost:
            self._folders[0].stat()  # raises if the journal was taken away while we looked

    def _let_go_if_replaced(self, key: Key) -> None:
        """Forget a file whose name was given to another one.

        A recorder whose first segment cannot be synced takes it away, and the next recorder begins
        with the same number: a reader that kept the old file saw trials without their chunks (found
        by the soak, with a disk that fails every second).

        Raises
        ------
        FileNotFoundError
            If frames of the old one were given out: nothing fits together any more.
        """
        file = self.files[key]
        if not file.is_replaced():
            return
        if file.seen:
            raise FileNotFoundError(errno.ENOENT, "the journal was replaced", str(file.path))
        file.close()
        del self.files[key]

    def close(self) -> None:
        """Let go of every file."""
        for file in self.files.values():
            file.close()


def _lost(segment: Path) -> Witness | None:
    """What the witness of a segment says that is really gone: a recorder makes the witness last."""
    try:
        said = witness.latest(read_file(layout.witness_path(segment), 2 * witness.SLOT_SIZE))
        return None if os.path.lexists(segment) else said
    except OSError:
        return None
