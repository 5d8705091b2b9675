"""Making a task's folder ready for a recorder: create, replace, repeat, resume.

Blocking functions, each called once in the worker thread. What fails leaves nothing half done.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import (
    DamagedData,
    FormatError,
    StorageError,
    TaskExists,
    TaskNotFound,
)
from trialstore._ondisk import layout, manifest, recovery
from trialstore._ondisk.boot import boot_id
from trialstore._ondisk.entries import LossNote, Opening, encode
from trialstore._ondisk.lock import Lock, acquire, holder
from trialstore._ondisk.mounts import file_system_of, is_network
from trialstore._ondisk.segments import JournalWriter
from trialstore._recording import environment
from trialstore._recording.claims import (
    Place,
    claim,
    discard,
    lock_patiently,
    move_to_trash,
    refusals,
    remove_idle,
    undo,
)
from trialstore._recording.ownership import Ownership
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.manifest import Manifest

logger = logging.getLogger("trialstore")

_RUNS: Final = 10_000
_ORPHAN: Final = (
    "task {!r} has lost its manifest.json and cannot be resumed: bring it back, or record under "
    "another name (tables and arrays beside it are read as they are)"
)
_NOT_OURS: Final = (
    "task {!r} was not recorded by trialstore and cannot be resumed: record under another name"
)


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
    with refusals(f"task {task!r}"):
        layout.check_not_casefold_equal(place.subject, layout.list_folders(place.root), "subject")
        layout.check_no_links(place.root, subject_folder)
        place.disk.make_folders(subject_folder)
        layout.check_not_casefold_equal(task, layout.list_folders(subject_folder), "task")
    for run in range(1, _RUNS):
        name = layout.check_name(task if run == 1 else layout.run_name(task, run), "task")
        folder = place.folder(name)
        lock = claim(place, name)
        if lock is None and overwrite and not repeat:
            discard(place, name)
            lock = claim(place, name)
        if lock is not None:
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
        with refusals(f"task {name!r}"):
            return _begin(
                place,
                folder,
                described,
                recovery.Plan(described, published=False, trials=0),
                arrays,
                lock,
            )
    except BaseException:
        undo(place, folder)
        lock.release()
        # Once more with the lock's descriptor, if there was none left to look with; but not under
        # the feet of another who has the task by now.
        if holder(lock.path) is None:
            undo(place, folder)
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
    with refusals(f"task {task!r}"):
        layout.check_no_links(place.root, folder / layout.JOURNAL / layout.BASE)
    # Before anything is made in a folder that may not be ours.
    before = manifest.read(folder)
    if before is None and not (folder / layout.JOURNAL).is_dir():
        is_ours = (folder / layout.TIMING).exists()  # nobody else writes one
        raise FormatError((_ORPHAN if is_ours else _NOT_OURS).format(task))
    with refusals(f"task {task!r}"):
        is_new = place.disk.make_folder(folder / layout.JOURNAL)
        lock = lock_patiently(folder / layout.JOURNAL / layout.LOCK)
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
            if is_new:  # a refusal leaves the task as it was
                remove_idle(place, folder / layout.JOURNAL, is_ours=True)
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
    lock: Lock,
) -> Opened:
    """Write the manifest, create the first segment: in this order, each step durable."""
    session = uuid.uuid4().hex
    journal_folder = folder / layout.JOURNAL
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
    # What is taken up counts as durable from now on: only a note can tell what never was.
    torn = tuple(loss for loss in steps.losses if loss.kind == "torn")
    journal.start([encode(LossNote(torn))] if torn else [])
    return Opened(
        folder, described.task, lock, journal, steps.trials, dict(arrays), tuple(fallbacks)
    )


def _set_published_aside(place: Place, folder: Path, lock: Lock) -> Lock:
    """Begin a fresh journal on top of what is published; an old one goes to the trash."""
    journal = folder / layout.JOURNAL
    if any(layout.segment_number(path.name) is not None for path in journal.iterdir()):
        move_to_trash(place, journal, f"{folder.name}.{layout.JOURNAL}")
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


class Prepared:
    """A task being opened in the thread, and who it belongs to in the end."""

    def __init__(self, prepare: Callable[[], Opened]) -> None:
        self._prepare = prepare
        self._opened: Opened | None = None
        self._is_unwanted = False

    def run(self) -> None:
        """Open the task; let go of it at once if nobody waits any more."""
        self._opened = self._prepare()
        if self._is_unwanted:
            self._let_go()

    def take(self, *, is_wanted: bool) -> Opened | None:
        """Return the opened task; otherwise see that it is let go of, now or when it comes."""
        if is_wanted and self._opened is not None:
            return self._opened
        self._is_unwanted = True
        self._let_go()
        return None

    def _let_go(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.journal.close()
            opened.lock.release()
