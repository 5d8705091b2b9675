"""The writing end of one segment of a task's journal, from its creation to its end or poisoning.

Never reopened, and never believed after an error: Linux answers the next fsync of the same
descriptor with success and loses the pages (reliability.md, 1.5).
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Final

from trialstore._ondisk import layout
from trialstore._ondisk.boot import boot_id
from trialstore._ondisk.disk import Identity
from trialstore._ondisk.journal import HEADER_SIZE, encode_frame, encode_header, salt_of
from trialstore._ondisk.witness import SLOT_SIZE, Witness
from trialstore._ondisk.yielding import give_way

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Buffer, Disk
    from trialstore._ondisk.entries import Entry

_COPY_BYTES: Final = 8 * 2**20
_UNKNOWN: Final = Identity(-1, -1)


class JournalGone(OSError):
    """The segment was renamed, replaced or deleted by somebody while it was written."""


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
        self.path = folder / layout.segment_name(number)
        self._fd = disk.create(self.path)
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
        JournalGone
            If the file does not stand at `path` any more.
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
        give_way()
        self._require_ours()
        if self._disk.size(self._fd) != self._offset:
            # Writing on would leave a hole, or stand behind somebody's bytes.
            raise OSError(errno.EIO, "the journal was cut or added to by somebody", str(self.path))
        self._disk.write(self._fd, pieces)
        give_way()
        self._disk.sync(self._fd)
        # Again: what was stolen while we wrote has taken our bytes, and its sync says nothing.
        self._require_ours()
        if self._disk.identity_at(self.path) != self._identity:
            raise JournalGone(errno.ESTALE, "the journal was renamed or deleted", str(self.path))
        offset += sum(map(len, pieces))
        self._seq = self.durable_seq = seq
        self._previous, self._offset = previous, offset
        give_way()
        self._testify(trials)

    def _require_ours(self) -> None:
        """Somebody's stray close() may have given our number to another file: not into that."""
        if not all(self._disk.identity(fd) == identity for fd, identity in self._descriptors()):
            raise OSError(
                errno.EBADF, "the journal's descriptor is not ours any more", str(self.path)
            )

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

    @property
    def is_deleted(self) -> bool:
        """Whether no name leads to the file any more; its bytes go when it is closed."""
        return self._disk.names_of(self._fd) == 0

    def copy_to(self, folder: Path, number: int) -> Path:
        """Write what is durable, and no name leads to any more, to a new file in `folder`.

        The bytes keep their checksums: what cannot be read back right stays visibly damaged.

        Raises
        ------
        OSError
            If it cannot be written; nothing is left behind then.
        """
        path = folder / layout.segment_name(number)
        fd = self._disk.create(path)
        try:
            for offset in range(0, self._offset, _COPY_BYTES):
                length = min(_COPY_BYTES, self._offset - offset)
                self._disk.write(fd, [self._disk.read_at(self._fd, length, offset)])
            self._disk.sync(fd)
            self._disk.sync_folder(folder)
        except OSError:
            with contextlib.suppress(OSError):
                self._disk.remove(path)
            raise
        finally:
            self._disk.close(fd)
        return path

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
