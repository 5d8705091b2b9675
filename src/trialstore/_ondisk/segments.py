"""The writing end of a task's journal: append, sync, and go on elsewhere when the disk fails.

A segment is never reopened. After an error it is poisoned: no second fsync is asked of that
descriptor, because Linux answers the next one with success and loses the pages (reliability.md,
1.5); everything that is not yet durable is written again, from memory, to a new segment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trialstore._ondisk import layout
from trialstore._ondisk.boot import boot_id
from trialstore._ondisk.disk import Identity
from trialstore._ondisk.entries import Opening, PoisonNote, encode
from trialstore._ondisk.journal import HEADER_SIZE, encode_frame, encode_header, salt_of
from trialstore._ondisk.witness import SLOT_SIZE, Witness

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Buffer, Disk
    from trialstore._ondisk.entries import Entry

#: Another recorder would have to create this many segments between our look and our open.
_NUMBERS_TRIED: Final = 1000
_UNKNOWN: Final = Identity(-1, -1)


class Segment:
    """One file of the journal, from its creation to its end or its poisoning."""

    def __init__(
        self, disk: Disk, folder: Path, number: int, session: bytes, seq: int, previous: int
    ) -> None:
        self._disk = disk
        self._salt = salt_of(session)
        self._session = session
        self.durable_seq = seq
        self._seq = seq
        self._previous = previous
        self._offset = HEADER_SIZE
        self._statements = 0
        self._witness_fd = -1
        self._identity = self._witness_identity = _UNKNOWN
        self.path, self._fd = _create_from(disk, folder, number)
        try:
            self._identity = disk.identity(self._fd)
            self._witness_fd = disk.create(layout.witness_path(self.path))
            self._witness_identity = disk.identity(self._witness_fd)
            disk.write(self._witness_fd, [bytes(2 * SLOT_SIZE)])
            disk.write(self._fd, [encode_header(session)])
            disk.sync(self._fd)
            disk.sync_folder(folder)
        except OSError:
            self.close()
            self.remove()
            raise

    @property
    def previous(self) -> int:
        """CRC of the last durable frame."""
        return self._previous

    def commit(self, entries: Sequence[Entry], trials: int) -> None:
        """Append `entries` and make them durable.

        Guarantee: when this returns, the bytes of every entry are in the file that stands at
        `path`, and the disk has said so.

        Raises
        ------
        OSError
            If that cannot be known; then nothing is known of the entries.
        """
        seq, previous, offset = self._seq, self._previous, self._offset
        pieces: list[Buffer] = []
        for kind, meta, body in entries:
            seq += 1
            framed, previous = encode_frame(
                kind,
                meta,
                body,
                seq=seq,
                synced_to=self.durable_seq,
                previous=previous,
                salt=self._salt,
            )
            pieces += framed
        # Somebody's stray close() may have given our number to another file: never write into that.
        if not all(self._disk.identity(fd) == identity for fd, identity in self._descriptors()):
            raise OSError(
                errno.EBADF, "the journal's descriptor is not ours any more", str(self.path)
            )
        self._disk.write(self._fd, pieces)
        self._disk.sync(self._fd)
        if self._disk.identity_at(self.path) != self._identity:
            raise OSError(errno.ESTALE, "the journal was renamed or deleted", str(self.path))
        offset += sum(map(len, pieces))
        self._seq = self.durable_seq = seq
        self._previous, self._offset = previous, offset
        self._testify(trials)

    def _testify(self, trials: int) -> None:
        self._statements += 1
        statement = Witness(
            count=self._statements,
            session=self._session,
            boot=boot_id(),
            seq=self.durable_seq,
            offset=self._offset,
            trials=trials,
            chain=self._previous,
            monotonic_ns=time.monotonic_ns(),
        )
        # The witness is evidence beside the journal; the trials are durable whether it can be
        # written or not.
        with contextlib.suppress(OSError):
            self._disk.write_at(self._witness_fd, statement.encode(), statement.position)

    def _descriptors(self) -> tuple[tuple[int, Identity], ...]:
        return (self._fd, self._identity), (self._witness_fd, self._witness_identity)

    def close(self) -> None:
        """Let go of the file, once; a descriptor that became somebody else's is left to them."""
        for fd, identity in self._descriptors():
            if fd >= 0 and self._is_ours(fd, identity):
                self._disk.close(fd)
        self._fd = self._witness_fd = -1

    def _is_ours(self, fd: int, identity: Identity) -> bool:
        try:
            return identity in {_UNKNOWN, self._disk.identity(fd)}
        except OSError as error:
            return error.errno != errno.EBADF

    def remove(self) -> None:
        """Take away a segment that never held a durable frame."""
        with contextlib.suppress(OSError):
            self._disk.remove(self.path)
            self._disk.remove(layout.witness_path(self.path))


class JournalWriter:
    """Appends to a task's journal from the worker thread, failing over by itself.

    Parameters
    ----------
    disk : Disk
        Where calls go.
    folder : pathlib.Path
        The task's journal folder, which exists.
    opening : Opening
        What the first frame of each segment says.
    fallback : pathlib.Path or None
        Folder for segments when `folder` cannot be written; made when it is needed.
    previous : int
        CRC of the last frame of the journal that this session goes on from.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        opening: Opening,
        *,
        fallback: Path | None = None,
        previous: int = 0,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._fallback = fallback
        self._opening = opening
        self._session = bytes.fromhex(opening.session)
        self._durable_seq = opening.after
        self._previous = previous
        self._segment: Segment | None = None
        self._number = 0
        self._trials = opening.trials
        self._pid = os.getpid()
        self._failed: tuple[str, str] | None = None
        self.poisoned: list[str] = []

    @property
    def durable_seq(self) -> int:
        """Number of the last durable frame of the task."""
        return self._durable_seq

    @property
    def path(self) -> Path | None:
        """The segment being written, or None while there is none that works."""
        return None if self._segment is None else self._segment.path

    def start(self) -> None:
        """Create the first segment; raise OSError if that cannot be done."""
        self._segment = self._open(self._folder, ())

    def commit(self, entries: Sequence[Entry], trials: int) -> None:
        """Make `entries` durable, in a new segment if need be.

        Parameters
        ----------
        entries : sequence of Entry
            All that is not durable yet. Called again with the same (or more) after a failure.
        trials : int
            Number of the task's trials once they are durable, for the witness.

        Raises
        ------
        OSError
            If neither the present segment nor a new one could take them; they are not durable.
        """
        self._trials = trials
        failure: OSError | None = None
        if self._segment is not None:
            try:
                self._segment.commit(entries, trials)
            except OSError as error:
                self._poison(self._segment, error)
                failure = error
            else:
                self._settle(self._segment)
                return
        for folder in (self._folder, self._fallback):
            if folder is None:
                continue
            try:
                self._segment = self._open(folder, entries)
            except OSError as error:
                failure = failure or error
            else:
                return
        raise failure or OSError(errno.EIO, "no segment could be created", str(self._folder))

    def _open(self, folder: Path, entries: Sequence[Entry]) -> Segment:
        """Create a segment with its opening and `entries` durable, or leave nothing behind."""
        if folder is self._fallback:
            self._disk.make_folders(folder)
        # One numbering for both folders: readers take segments in the order of their numbers.
        number = 1 + max(self._number, *map(_highest, (self._folder, self._fallback)))
        segment = Segment(
            self._disk, folder, number, self._session, self._durable_seq, self._previous
        )
        head = [encode(replace(self._opening, after=self._durable_seq))]
        if self._failed is not None:
            head.append(encode(PoisonNote(*self._failed)))
        try:
            segment.commit([*head, *entries], self._trials)
        except OSError:
            segment.close()
            segment.remove()
            raise
        self._settle(segment)
        self._failed = None
        self._number = layout.segment_number(segment.path.name) or number
        return segment

    def _settle(self, segment: Segment) -> None:
        self._durable_seq = segment.durable_seq
        self._previous = segment.previous

    def _poison(self, segment: Segment, error: OSError) -> None:
        self._failed = (segment.path.name, f"{type(error).__name__}: {error}")
        self.poisoned.append(f"{segment.path.name}: {error}")
        segment.close()
        self._segment = None

    def close(self) -> None:
        """Let go of the present segment; no frame is written."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def forget_after_fork(self) -> None:
        """In a forked child: close the descriptors, write nothing."""
        if os.getpid() != self._pid:
            self.close()


def _highest(folder: Path | None) -> int:
    """Highest number that a segment or witness in a folder has; 0 if none can be seen."""
    try:
        names = [] if folder is None else [path.name for path in folder.iterdir()]
    except OSError:
        return 0
    segments = (name.replace(f".{layout.WITNESS}", layout.SEGMENT_SUFFIX) for name in names)
    return max((layout.segment_number(name) or 0 for name in segments), default=0)


def _create_from(disk: Disk, folder: Path, first: int) -> tuple[Path, int]:
    """Create the first segment from a number on that is not there yet."""
    for number in range(first, first + _NUMBERS_TRIED):
        path = folder / layout.segment_name(number)
        try:
            return path, disk.create(path)
        except FileExistsError:
            continue
    raise OSError(errno.EEXIST, "no free number for a segment", str(folder))
