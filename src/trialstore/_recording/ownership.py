"""Whether a task is still this recorder's, whatever was done to its folder meanwhile."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trialstore._errors import StorageError, TaskLocked
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.lock import acquire
from trialstore._ondisk.segments import TakenOver

if TYPE_CHECKING:
    from pathlib import Path

    from trialstore._ondisk.lock import Lock


class Ownership:
    """Holds a task's lock, and takes it again when its file was deleted by hand.

    A recorder that was stopped while somebody cleaned up "stale" locks must not write on as if
    nothing had happened: another recorder, or the publisher of one, may have the task by now.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder.
    lock : Lock
        Its lock, held.
    session : str
        The uuid of this recorder's session, hexadecimal.
    """

    def __init__(self, folder: Path, lock: Lock, session: str) -> None:
        self._folder = folder
        self._lock = lock
        self._session = session

    def hold(self) -> bool:
        """Make sure that the task is ours; return whether the lock had to be taken again.

        Raises
        ------
        TakenOver
            If another process has the lock, or the task was resumed or published by another.
        OSError
            If the lock cannot be looked at or taken; FileNotFoundError if its folder is gone.
        """
        if self._lock.held:
            return False
        if self._was_taken():
            raise self._taken("its manifest says that another went on with it")
        try:
            fresh = acquire(self._lock.path, "recorder", patience=0.0)
        except TaskLocked as error:
            raise self._taken(str(error)) from error
        self._lock.become(fresh)
        return True

    def _was_taken(self) -> bool:
        try:
            described = manifest.read(self._folder)
        except StorageError:
            return False  # damaged: the journal tells
        if described is None:
            return False
        return described.status != "recording" or described.sessions[-1:] != [self._session]

    def _taken(self, how: str) -> TakenOver:
        folder = self._folder / layout.JOURNAL
        return TakenOver(errno.ESTALE, f"the task was taken over: {how}", str(folder))
