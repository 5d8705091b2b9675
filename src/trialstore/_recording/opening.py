"""Making a task's folder ready for a recorder: create, replace, repeat, resume.

Blocking functions, each called once in the worker thread. What fails leaves nothing half done.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import (
    DamagedData,
    FormatError,
    StorageError,
    TaskExists,
    TaskLocked,
    TaskNotFound,
)
from trialstore._ondisk import layout, manifest, recovery
from trialstore._ondisk.boot import boot_id
from trialstore._ondisk.entries import Opening
from trialstore._ondisk.lock import Lock, acquire, holder
from trialstore._ondisk.mounts import file_system_of, is_network
from trialstore._ondisk.segments import JournalWriter
from trialstore._recording import environment
from trialstore._recording.ownership import Ownership
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.manifest import Manifest

logger = logging.getLogger("trialstore")

#: How long a resumed task may wait for the publisher of a killed recorder to finish.
PUBLISHER_PATIENCE: Final = 20.0
_RUNS: Final = 10_000
_SESSION: Final = re.compile("[0-9a-f]{32}")
_ORPHAN: Final = (
    "task {!r} has lost its manifest.json and cannot be resumed: bring it back, or record under "
    "another name (tables and arrays beside it are read as they are)"
)
_NOT_OURS: Final = (
    "task {!r} was not recorded by trialstore and cannot be resumed: record under another name"
)


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


@dataclass(frozen=True, slots=True)
class Opened:
    """A task that is ready to be recorded; its lock is held and its first segment is durable."""

    folder: Path
    task: str
    lock: Lock
    journal: JournalWriter
    first: int
    arrays: dict[str, ArrayInfo]
    fallbacks: tuple[Path, ...] = ()


def prepare_root(disk: Disk, root: Path) -> None:
    """Create the root if need be and make sure that it can be written.

    Raises
    ------
    StorageError
        If it is a file, or nothing can be created in it.
    """
    try:
        disk.make_folders(root.absolute())
        probe = root / f".writable-{uuid.uuid4().hex}"
        disk.close(disk.create(probe))
        disk.remove(probe)
    except OSError as error:
        raise StorageError(f"root {str(root)!r} cannot be used for recording: {error}") from error
    kind = file_system_of(root)
    if is_network(kind):
        logger.warning(
            "root %r lies on a network file system (%s): what is called durable may be in the "
            "server's memory only, and locks may not hold between computers",
            str(root),
            kind,
        )


def create(
    place: Place,
    task: str,
    *,
    metadata: Mapping[str, Any],
    arrays: Mapping[str, ArrayInfo],
    repeat: bool,
    overwrite: bool,
) -> Opened:
    """Create a new task.

    Raises
    ------
    TaskExists
        If the subject has started it before, and neither `repeat` nor `overwrite` is set.
    TaskLocked
        If it is to be overwritten and is being recorded.
    InvalidName
        If subject or task differ from an existing name only in case.
    StorageError
        If the disk refuses.
    """
    subject_folder = place.folder(task).parent
    with _refusals(f"task {task!r}"):
        layout.check_not_casefold_equal(place.subject, layout.list_folders(place.root), "subject")
        layout.check_no_links(place.root, subject_folder)
        place.disk.make_folders(subject_folder)
        layout.check_not_casefold_equal(task, layout.list_folders(subject_folder), "task")
    for run in range(1, _RUNS):
        name = layout.check_name(task if run == 1 else layout.run_name(task, run), "task")
        folder = place.folder(name)
        with _refusals(f"task {name!r}"):
            layout.check_no_links(place.root, folder)
            is_new = place.disk.make_folder(folder)
        if is_new:
            break
        if overwrite and not repeat:
            _discard(place, name)
            with _refusals(f"task {name!r}"):
                is_new = place.disk.make_folder(folder)
        if is_new:
            break
        if not repeat:
            raise TaskExists(
                f"subject {place.subject!r} has already started {name!r}: choose another name, "
                "or use repeat=True, resume_task or allow_overwrite=True"
            )
    else:
        raise TaskExists(f"subject {place.subject!r} has {_RUNS} runs of {task!r}")
    described = manifest.Manifest(
        "recording",
        place.subject,
        name,
        start=environment.clocks(),
        environment=environment.describe(subject_folder),
        metadata=dict(metadata),
        arrays={
            array: manifest.ArrayRecord(info.to_json(), info.stack_axis)
            for array, info in arrays.items()
        },
    )
    try:
        with _refusals(f"task {name!r}"):
            return _begin(
                place,
                folder,
                described,
                recovery.Plan(described, published=False, trials=0),
                arrays,
            )
    except BaseException:
        _undo(place, folder)
        raise


def resume(place: Place, task: str) -> Opened:
    """Take up a task that was closed or cut off.

    Raises
    ------
    TaskNotFound
        If there is none.
    TaskLocked
        If another recorder has it, or its publisher does not finish in time.
    FormatError
        If it was not recorded by trialstore, or by a newer version.
    DamagedData
        If its manifest or a published table does not fit its checksum.
    StorageError
        If the disk refuses.
    """
    folder = place.folder(task)
    if not folder.is_dir():
        raise TaskNotFound(
            f"subject {place.subject!r} has not started {task!r} yet: use create_task"
        )
    with _refusals(f"task {task!r}"):
        layout.check_no_links(place.root, folder / layout.JOURNAL / layout.BASE)
    # Before anything is made in a folder that may not be ours.
    before = manifest.read(folder)
    if before is None and not (folder / layout.JOURNAL).is_dir():
        is_ours = (folder / layout.TIMING).exists()  # nobody else writes one
        raise FormatError((_ORPHAN if is_ours else _NOT_OURS).format(task))
    with _refusals(f"task {task!r}"):
        place.disk.make_folder(folder / layout.JOURNAL)
        lock = _lock_patiently(folder / layout.JOURNAL / layout.LOCK)
        try:
            # The openings name these too; one of them may be damaged.
            sessions = [] if before is None else before.sessions
            steps = recovery.plan(folder, place.fallbacks(task, sessions))
            if steps.manifest is None and not steps.segments:
                raise FormatError(_NOT_OURS.format(task))
            recovery.apply(place.disk, steps)
            if steps.published and steps.manifest is not None:
                _require_published(folder, steps.manifest)
                lock = _set_published_aside(place, folder, lock)
            described = steps.manifest or manifest.Manifest("recording", place.subject, task)
            # The folder may have been renamed since; what goes on is called as it is now.
            described = replace(described, subject=place.subject, task=task)
            arrays = {
                name: ArrayInfo.from_json(record.info) for name, record in described.arrays.items()
            }
            return _begin(place, folder, described, steps, arrays, lock)
        except BaseException:
            lock.release()
            raise


def _require_published(folder: Path, described: Manifest) -> None:
    """Refuse to go on behind published files that were edited or are gone.

    Raises
    ------
    DamagedData
        Naming the file.
    """
    for table in (layout.TRIALS, layout.TIMING):
        manifest.read_described(folder, described, table)
    for name, record in described.arrays.items():
        path = layout.array_path(folder, name)
        said = described.files.get(path.name)
        if not record.trials or said is None:
            continue
        try:
            size = path.lstat().st_size
        except OSError as error:
            raise DamagedData(
                f"{str(path)!r} cannot be read: {error}; bring it back before the task is resumed, "
                "or record under another name",
                path,
            ) from error
        if size != said["size"]:
            raise DamagedData(
                f"{str(path)!r} is not as it was published: bring it back before the task is "
                "resumed, or record under another name",
                path,
            )


def _begin(
    place: Place,
    folder: Path,
    described: Manifest,
    steps: recovery.Plan,
    arrays: Mapping[str, ArrayInfo],
    lock: Lock | None = None,
) -> Opened:
    """Lock, write the manifest, create the first segment: in this order, each step durable."""
    session = uuid.uuid4().hex
    journal_folder = folder / layout.JOURNAL
    if lock is None:
        place.disk.make_folder(journal_folder)
        lock = acquire(journal_folder / layout.LOCK, "recorder")
    try:
        described = replace(
            described, status="recording", sessions=[*described.sessions, session], traceback=None
        )
        place.disk.write_file(folder / layout.MANIFEST, described.encode())
        # The folder's name: that in the manifest may be a stranger's.
        fallbacks = place.fallbacks(folder.name, described.sessions)
        fallback = fallbacks[-1] if fallbacks else None
        description = {
            "subject": place.subject,
            "task": described.task,
            "start": environment.clocks(),
            "boot": boot_id().hex(),
            "environment": described.environment,
            "metadata": described.metadata,
            "arrays": {name: info.to_json() for name, info in arrays.items()},
            "fallback": None if fallback is None else str(fallback),
        }
        opening = Opening(session, steps.last_seq, steps.trials, description)
        journal = JournalWriter(
            place.disk,
            journal_folder,
            opening,
            fallback=fallback,
            previous=steps.last_crc,
            hold=Ownership(folder, lock, session).hold,
        )
        place.disk.remove(journal_folder / layout.ANSWER)
        journal.start()
    except BaseException:
        lock.release()
        raise
    return Opened(
        folder, described.task, lock, journal, steps.trials, dict(arrays), tuple(fallbacks)
    )


def _lock_patiently(path: Path) -> Lock:
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


def _set_published_aside(place: Place, folder: Path, lock: Lock) -> Lock:
    """Begin a fresh journal on top of what is published; an old one goes to the trash."""
    journal = folder / layout.JOURNAL
    if any(layout.segment_number(path.name) is not None for path in journal.iterdir()):
        _move_to_trash(place, journal, f"{folder.name}.{layout.JOURNAL}")
        lock.release()
        place.disk.make_folder(journal)
        lock = acquire(journal / layout.LOCK, "recorder")
    try:
        base = journal / layout.BASE
        place.disk.make_folder(base)
        for path in layout.published_files(folder):
            place.disk.link(path, base / path.name)
        place.disk.sync_folder(base)
    except BaseException:
        lock.release()  # the caller knows only the one before
        raise
    return lock


def _discard(place: Place, task: str) -> None:
    """Move a task that may be overwritten to the trash; nothing is deleted."""
    folder = place.folder(task)
    lock_path = folder / layout.JOURNAL / layout.LOCK
    owner = holder(lock_path)
    if owner is not None:
        raise TaskLocked(f"task {task!r} cannot be overwritten: in use by {owner}")
    with _refusals(f"task {task!r}"):
        _move_to_trash(place, folder, task)


def _move_to_trash(place: Place, path: Path, name: str) -> None:
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    target = layout.trash_path(place.root.absolute(), place.subject, name, stamp)
    layout.check_no_links(place.root.absolute().parent, target.parent)
    place.disk.make_folders(target.parent)
    place.disk.replace(path, target)


def _undo(place: Place, folder: Path) -> None:
    """Take back what `create` made; whatever cannot be taken back is not ours to force."""
    with contextlib.suppress(OSError):
        journal = folder / layout.JOURNAL
        made = journal.glob("*") if layout.is_folder(journal) else ()
        for path in (*made, folder / layout.MANIFEST):
            place.disk.remove(path)
        if layout.is_folder(journal):
            place.disk.remove_folder(journal)
        place.disk.remove_folder(folder)


@contextlib.contextmanager
def _refusals(what: str) -> Any:
    """Turn the operating system's refusals into ours, with the name of the culprit."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what} cannot be opened for recording: {error}") from error
