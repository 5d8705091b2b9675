"""The writing end of a task's journal: append, sync, and go on elsewhere when the disk fails.

After an error a segment is poisoned: no second fsync is asked of that descriptor; everything that
is not yet durable is written again, from memory, to a new segment.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trialstore._ondisk import layout
from trialstore._ondisk.entries import PoisonNote, encode
from trialstore._ondisk.segment import JournalGone, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.entries import Entry, Opening

#: Room for the end of a recording on a full disk: a few frames, a traceback among them.
RESERVE_BYTES: Final = 256 * 2**10
#: A thread that hangs in a call of the disk may have taken the next numbers.
_SALVAGE_GAP: Final = 100


class TakenOver(OSError):
    """Another recorder has the task now: whatever were written further, nobody would read."""


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
    hold : callable or None
        Makes sure that the task is still ours, taking its lock again if somebody deleted it;
        returns whether that was needed, raises `TakenOver` if another has the task, and
        FileNotFoundError if `folder` is gone.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        opening: Opening,
        *,
        fallback: Path | None = None,
        previous: int = 0,
        hold: Callable[[], bool] | None = None,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._fallback = fallback
        self._opening = opening
        self._session = bytes.fromhex(opening.session)
        self._durable_seq = opening.after
        self._previous = previous
        self._hold = hold
        self._segment: Segment | None = None
        self._orphans: list[Segment] = []
        self._number = 0
        self._trials = opening.trials
        self._pid = os.getpid()
        self._failed: tuple[str, str] | None = None
        self.poisoned: list[str] = []

    @property
    def session(self) -> str:
        """The recording session's uuid, hexadecimal."""
        return self._opening.session

    @property
    def durable_seq(self) -> int:
        """Number of the last durable frame of the task."""
        return self._durable_seq

    @property
    def path(self) -> Path | None:
        """The segment being written, or None while there is none that works."""
        return None if self._segment is None else self._segment.path

    @property
    def fallback(self) -> Path | None:
        """Folder for segments when the task's own cannot be written."""
        return self._fallback

    def start(self, notes: Sequence[Entry] = ()) -> None:
        """Create the reserve and the first segment, which begins with the opening and `notes`.

        Raises
        ------
        OSError
            If there can be no segment.
        """
        self._number = max(map(_highest, (self._folder, self._fallback)))
        self._segment = self._open(self._folder, notes)
        reserve = self._folder / layout.RESERVE
        # Without it recording goes as well; a disk that is that full is warned of anyway.
        with contextlib.suppress(OSError):
            self._disk.remove(reserve)
            self._disk.allocate(reserve, RESERVE_BYTES)

    def commit(self, entries: Sequence[Entry], trials: int) -> None:
        """Make `entries` durable, in a new segment if need be.

        Guarantee: when this returns, `entries` and all before them are durable in files that stand
        where a reader looks for them, and no other recorder had the task by then.

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
                self._require_ours()
            except OSError as error:
                self._poison(self._segment, error)
                failure = error
            else:
                self._settle(self._segment)
                return
        folders = self._folders()
        try:
            self._restore()
            self._require_ours()
        except FileNotFoundError as error:  # the whole folder was moved away, and may come back
            failure = error
            folders.remove(self._folder)
        for folder in folders:
            try:
                self._segment = self._open(folder, entries)
            except OSError as error:
                failure = failure or error
            else:
                return
        raise failure or OSError(errno.EIO, "no segment could be created", str(self._folder))

    def _folders(self) -> list[Path]:
        return [folder for folder in (self._folder, self._fallback) if folder is not None]

    def _require_ours(self) -> None:
        if self._hold is not None and self._hold() and _highest(self._folder) > self._number:
            raise TakenOver(errno.ESTALE, "another recorder has the task", str(self._folder))

    def _restore(self) -> None:
        """Write again what somebody deleted, or gave a name that no reader looks for.

        Raises
        ------
        FileNotFoundError
            If the folder was moved away with all that is in it.
        OSError
            If it cannot be written now.
        """
        while self._orphans:
            orphan = self._orphans[0]
            if orphan.is_deleted:
                self._disk.make_folders(self._folder)
            copy = orphan.copy_to(self._folder, self._next_number())
            self._note_number(copy)
            self._orphans.pop(0).close()

    def _next_number(self) -> int:
        """Number of a new file: readers take segments of both folders in the order of numbers."""
        return 1 + max(self._number, *map(_highest, (self._folder, self._fallback)))

    def _note_number(self, path: Path) -> None:
        self._number = layout.segment_number(path.name) or self._number

    def _open(self, folder: Path, entries: Sequence[Entry]) -> Segment:
        """Create a segment with its opening and `entries` durable, or leave nothing behind."""
        if folder is self._fallback:
            self._disk.make_folders(folder)
        try:
            segment = self._written(folder, self._next_number(), entries)
        except FileExistsError:  # somebody's stray file, put there since we looked
            segment = self._written(folder, self._next_number(), entries)
        self._settle(segment)
        self._note_number(segment.path)
        self._failed = None
        return segment

    def _written(self, folder: Path, number: int, entries: Sequence[Entry]) -> Segment:
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
        return segment

    def _settle(self, segment: Segment) -> None:
        self._durable_seq = segment.durable_seq
        self._previous = segment.previous

    def _poison(self, segment: Segment, error: OSError) -> None:
        self._failed = (segment.path.name, f"{type(error).__name__}: {error}")
        self.poisoned.append(f"{segment.path.name}: {error}")
        if isinstance(error, JournalGone):
            self._orphans.append(segment)
        else:
            segment.close()
        self._segment = None

    # --- the end ----------------------------------------------------------------------------------

    def give_reserve_back(self) -> None:
        """Make the reserve's room free, for the end."""
        with contextlib.suppress(OSError):
            self._disk.remove(self._folder / layout.RESERVE)

    def salvage(self, entries: Sequence[Entry]) -> Path:
        """Write `entries` to the fallback folder while another thread hangs in `commit`.

        Guarantee: touches neither the task's own disk nor what the hanging thread uses; what is
        written by both is read once.

        Raises
        ------
        OSError
            If there is no fallback folder, or it cannot be written either.
        """
        if self._fallback is None:
            raise OSError(errno.ENODEV, "there is no fallback_root", str(self._folder))
        self._disk.make_folders(self._fallback)
        segment = self._written(self._fallback, self._number + _SALVAGE_GAP, entries)
        segment.close()
        return segment.path

    def close(self) -> None:
        """Let go of the present segment; no frame is written."""
        self.give_reserve_back()
        self._close_files()

    def _close_files(self) -> None:
        for segment in (*self._orphans, self._segment):
            if segment is not None:
                segment.close()
        self._orphans, self._segment = [], None

    def forget_after_fork(self) -> None:
        """In a forked child: close the descriptors, write nothing."""
        if os.getpid() != self._pid:
            self._close_files()


def _highest(folder: Path | None) -> int:
    """Highest number that a segment or witness in a folder has; 0 if none can be seen."""
    try:
        names = [] if folder is None else [path.name for path in folder.iterdir()]
    except OSError:
        return 0
    segments = (name.replace(f".{layout.WITNESS}", layout.SEGMENT_SUFFIX) for name in names)
    return max((layout.segment_number(name) or 0 for name in segments), default=0)
