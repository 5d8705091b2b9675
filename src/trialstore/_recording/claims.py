"""Where tasks go, and whose a task's folder is: claim it, lock it, trash it, take it back.

Blocking functions, each called in the worker thread.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import StorageError, TaskLocked
from trialstore._ondisk import layout
from trialstore._ondisk.lock import Lock, acquire, holder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Disk

#: How long a task that is resumed or overwritten may wait for its publisher to finish.
PUBLISHER_PATIENCE: Final = 20.0
_SESSION: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where tasks of one Storage go.

    Parameters
    ----------
    disk : Disk
        Where calls go.
    root : pathlib.Path
        The data's root.
    subject : str
        The subject.
    fallback_root : pathlib.Path or None
        Where segments go when the root's disk fails.
    """

    disk: Disk
    root: Path
    subject: str
    fallback_root: Path | None

    def folder(self, task: str) -> Path:
        """Folder of a task, spelled as it is on disk."""
        return layout.spelled(layout.spelled(self.root, self.subject), task)

    def fallbacks(self, task: str, sessions: Sequence[str]) -> list[Path]:
        """Folders for segments when the task's own cannot be written, one for each session.

        A task that is overwritten, or recorded on another computer under the same names, must not
        find another's segments there. Raises OSError for a link.
        """
        if self.fallback_root is None:
            return []
        root = self.fallback_root.absolute()
        home = root / self.subject / task
        ours = [session for session in sessions if _SESSION.fullmatch(session)]
        folders = [home / f"{layout.JOURNAL}-{session[:12]}" for session in ours]
        for folder in folders:
            layout.check_no_links(root, folder)
        return folders


def claim(place: Place, task: str) -> Lock | None:
    """Make a task's folder and lock it; None if the task has begun before, or another begins it.

    A folder in which a `create` was killed before it had anything to keep is taken: nobody could
    ever record under that name again.

    Raises
    ------
    StorageError
        If the disk refuses; a folder that stays empty is not left behind.
    """
    folder = place.folder(task)
    journal = folder / layout.JOURNAL
    with refusals(f"task {task!r}"):
        layout.check_no_links(place.root, folder)
        if not place.disk.make_folder(folder) and not _has_not_begun(folder):
            return None
        lock = None
        try:
            place.disk.make_folder(journal)
            lock = acquire(journal / layout.LOCK, "recorder")
            if _has_not_begun(folder, is_ours=True):
                for path in (*folder.iterdir(), *journal.iterdir()):
                    if layout.is_building(path.name):
                        place.disk.remove(path)
                return lock
        except TaskLocked:
            return None
        except BaseException:
            if lock is not None:
                lock.release()  # first: there may be no descriptor left to look with
            remove_idle(place, journal)
            with contextlib.suppress(OSError):
                place.disk.remove_folder(folder)
            raise
    lock.release()
    return None


def _has_not_begun(folder: Path, *, is_ours: bool = False) -> bool:
    """Whether all there is are a journal without a segment and files that were only being made.

    An empty folder may be anybody's, and is a task, as in AxoPy.
    """
    journal = folder / layout.JOURNAL
    if not layout.is_folder(journal):
        return False
    others = (_names(folder) - {layout.JOURNAL}) | (_names(journal) - {layout.LOCK})
    is_idle = is_ours or holder(journal / layout.LOCK) is None
    return is_idle and all(map(layout.is_building, others))


def _names(folder: Path) -> set[str]:
    """Names in a folder; that of a folder ends in a slash."""
    return {
        path.name + "/" * (layout.is_folder(path) and path.name != layout.JOURNAL)
        for path in folder.iterdir()
    }


def lock_patiently(path: Path) -> Lock:
    """Take the lock; wait for a publisher that is finishing the task, not for a recorder."""
    end = time.monotonic() + PUBLISHER_PATIENCE
    while True:
        try:
            return acquire(path, "recorder")
        except TaskLocked:
            owner = holder(path)
            if owner is not None and (owner.role == "recorder" or time.monotonic() > end):
                raise
            time.sleep(0.02)
        except FileNotFoundError:
            # The publisher has just taken the finished journal away.
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()


def discard(place: Place, task: str) -> None:
    """Move a task that may be overwritten to the trash; nothing is deleted.

    A publisher is waited for: also one that tries again what failed has the task for moments.

    Raises
    ------
    TaskLocked
        If a recorder has it, or a publisher for longer than `PUBLISHER_PATIENCE`.
    StorageError
        If the operating system refuses.
    """
    folder = place.folder(task)
    lock_path = folder / layout.JOURNAL / layout.LOCK
    end = time.monotonic() + PUBLISHER_PATIENCE
    while (owner := holder(lock_path)) is not None:
        if owner.role == "recorder" or time.monotonic() > end:
            raise TaskLocked(f"task {task!r} cannot be overwritten: in use by {owner}")
        time.sleep(0.02)
    with refusals(f"task {task!r}"):
        move_to_trash(place, folder, task)


def move_to_trash(place: Place, path: Path, name: str) -> None:
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    target = layout.trash_path(place.root.absolute(), place.subject, name, stamp)
    layout.check_no_links(place.root.absolute().parent, target.parent)
    place.disk.make_folders(target.parent)
    place.disk.replace(path, target)


def undo(place: Place, folder: Path) -> None:
    """Take back what `create` made; whatever cannot be taken back is not ours to force."""
    with contextlib.suppress(OSError):
        journal = folder / layout.JOURNAL
        made = journal.glob("*") if layout.is_folder(journal) else ()
        for path in (*made, folder / layout.MANIFEST):
            place.disk.remove(path)
        if layout.is_folder(journal):
            place.disk.remove_folder(journal)
        place.disk.remove_folder(folder)


def remove_idle(place: Place, journal: Path, *, is_ours: bool = False) -> None:
    """Take a journal away that holds nothing but a lock, of ours or of nobody."""
    lock = journal / layout.LOCK
    with contextlib.suppress(OSError):
        holds_nothing = {path.name for path in journal.iterdir()} <= {layout.LOCK}
        if holds_nothing and (is_ours or holder(lock) is None):
            place.disk.remove(lock)
            place.disk.remove_folder(journal)


@contextlib.contextmanager
def refusals(what: str) -> Any:
    """Turn the operating system's refusals into ours, with the name of the culprit."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what} cannot be opened for recording: {error}") from error
