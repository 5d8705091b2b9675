"""Looking at tasks: which kind each is, and what there is to say of it. Nothing is written."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import DamagedData, FormatError, StorageError
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.lock import holder
from trialstore._ondisk.pickles import unsealed
from trialstore._upkeep import clearing
from trialstore._upkeep.discovery import find_tasks, is_journal, size_of, strangers
from trialstore._upkeep.foreign import check_foreign
from trialstore._upkeep.gathering import Gathering
from trialstore._upkeep.journals import check_journal, check_manifest_losses, published_so_far
from trialstore._upkeep.published import PublishedSet, check_interrupted
from trialstore._upkeep.report import Progress, Report, TaskReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trialstore._ondisk.manifest import Manifest
    from trialstore._upkeep.gathering import Tick

#: A task may be published, or resumed, between two looks at it; not over and over.
_LOOKS: Final = 5
_OURS: Final = frozenset(
    (layout.TRIALS, layout.TIMING, layout.MANIFEST, layout.JOURNAL, layout.INTERRUPTED)
)


def check_below(
    path: Path, fallback: Path | None, progress: Callable[[Progress], object] | None
) -> Report:
    """Check every task at or below a folder.

    Raises
    ------
    StorageError
        If `path` is not a folder.
    """
    tasks, remarks = find_tasks(path)
    reports = []
    for number, task in enumerate(tasks, 1):
        tick = ticker(task, number, len(tasks), progress)
        reports.append(check_task(task, fallback, tick))
    return Report(path, tuple(reports), tuple(remarks))


def ticker(
    task: Path, number: int, tasks: int, progress: Callable[[Progress], object] | None
) -> Tick:
    """Return what counts the bytes that were read of one task and tells `progress`."""
    if progress is None:
        return lambda _: None
    done, total = 0, size_of(task)

    def tick(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(Progress(task, number, tasks, min(done, total), total))

    tick(0)
    return tick


def check_task(task: Path, fallback: Path | None = None, tick: Tick = lambda _: None) -> TaskReport:
    """Check one task, also while it is recorded, published or resumed."""
    for _ in range(_LOOKS):
        before = _stamp(task)
        try:
            report = _Look(task, fallback, tick).report()
        except FileNotFoundError:
            continue  # the journal has just been published and taken away
        except OSError as error:
            found = Gathering(tick)
            found.doubt(".", f"cannot be read: {error}")
            return found.report(task, "unreadable", is_published=False)
        if _stamp(task) == before:
            return report
    found = Gathering(tick)
    found.doubt(".", "keeps changing while it is looked at: try again")
    return found.report(task, "unreadable", is_published=False)


def _stamp(task: Path) -> tuple[int, ...] | None:
    try:
        status = (task / layout.MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class _Look:
    """One look at one task."""

    def __init__(self, task: Path, fallback: Path | None, tick: Tick) -> None:
        self._task = task
        self._fallback = fallback
        self._found = Gathering(tick)
        self._described: Manifest | None = None

    def report(self) -> TaskReport:
        """Decide what kind of task it is, and look at it."""
        found, task = self._found, self._task
        is_readable = self._read_manifest()
        described = self._described
        if is_readable and described is not None and described.status != "recording":
            status, is_published = self._check_published(described), True
        elif is_journal(task / layout.JOURNAL):
            status, is_published = self._check_journal(), False
        elif described is None:
            check_foreign(task, found)
            status, is_published = "foreign" if is_readable else "unreadable", True
        elif is_readable:
            published_so_far(task, described, found)
            status, is_published = "recording", False
        else:
            # A manifest that was edited: what it says of the data still fits the data, or not.
            PublishedSet(task, described, found).check()
            found.acknowledged = described.trials
            status, is_published = "unreadable", True
        check_interrupted(task, found)
        self._check_pickles()
        self._look_around()
        return found.report(task, status, is_published=is_published)

    def _read_manifest(self) -> bool:
        """Read the manifest, or what can be made of it; return whether it can be believed."""
        try:
            self._described = manifest.read(self._task)
        except DamagedData as error:
            self._found.lose("damaged", (), "the manifest", layout.MANIFEST, None, str(error))
            self._described = as_if_whole(self._task / layout.MANIFEST)
            return False
        except FormatError as error:
            self._found.doubt(layout.MANIFEST, str(error))
            return False
        return True

    def _check_published(self, described: Manifest) -> str:
        found = self._found
        check_manifest_losses(described, found)
        PublishedSet(self._task, described, found).check()
        journal = self._task / layout.JOURNAL
        if layout.is_folder(journal) and clearing.segments_of(journal):
            found.remark(layout.JOURNAL, "was kept beside the published files; 'trialstore prune' "
                         "deletes it once everything in it is proved to be in them")  # fmt: skip
        return described.status

    def _check_journal(self) -> str:
        owner = holder(self._task / layout.JOURNAL / layout.LOCK)
        is_recording = owner is not None and owner.role == "recorder"
        if owner is not None:
            self._found.remark(layout.JOURNAL, f"is in use by {owner}")
        extra = fallback_folders(self._task, self._described, self._fallback)
        try:
            status = check_journal(self._task, extra, self._found, is_recording=is_recording)
        except FormatError as error:
            self._found.doubt(layout.JOURNAL, str(error))
            return "unreadable"
        except DamagedData as error:
            self._found.lose("damaged", (), "the journal", layout.JOURNAL, None, str(error))
            return "unreadable"
        if owner is None:
            self._found.remark(layout.JOURNAL, "is not published yet: 'trialstore recover' does it")
        return status

    def _check_pickles(self) -> None:
        """Check what pickles say of themselves: it is older than what the manifest says."""
        named = {finding.file for finding in self._found.findings}
        for path in sorted(self._task.glob(f"*{layout.PICKLE_SUFFIX}")):
            with contextlib.suppress(OSError):  # a link or a device, or named before
                try:
                    unsealed(read_file(path), path)
                except DamagedData as error:
                    if path.name not in named:
                        what = f"pickle {path.stem!r}"
                        self._found.lose("damaged", (), what, path.name, None, str(error))

    def _look_around(self) -> None:
        found, described, task = self._found, self._described, self._task
        known = set(_OURS)
        if described is not None:
            known.update(described.files)
            place = [unicodedata.normalize("NFC", name) for name in (task.parent.name, task.name)]
            if [described.subject, described.task] != place:
                found.remark(".", f"was recorded as task {described.task!r} of subject "
                             f"{described.subject!r}, and renamed or moved since")  # fmt: skip
        if described is None or described.status == "recording":
            known.update(name + layout.ARRAY_SUFFIX for name in layout.array_names_in(task))
            known.update(p.name for p in task.glob(f"*{layout.PICKLE_SUFFIX}"))
        found.remarks.extend(strangers(task, known))


def fallback_folders(
    task: Path, described: Manifest | None, fallback: Path | None
) -> tuple[Path, ...]:
    """Return where a task's segments lie below a ``fallback_root``, under either of its names.

    Folders are those of its own sessions: a task that was overwritten may have left others there.

    Raises
    ------
    OSError
        If a folder cannot be listed.
    """
    if fallback is None:
        return ()
    names = [(task.parent.name, task.name)]
    if described is not None:
        names.append((described.subject, described.task))
    known = () if described is None else described.sessions
    sessions = {session[:12] for session in known}
    homes = [
        fallback / subject / name
        for subject, name in dict.fromkeys(names)
        if layout.is_valid_name(subject) and layout.is_valid_name(name)
    ]
    return tuple(
        folder
        for home in homes
        if layout.is_folder(home)
        for folder in sorted(home.iterdir())
        if clearing.is_fallback(folder) and is_journal(folder)
        if folder.name.rpartition("-")[2] in sessions
        or clearing.is_part_of(folder, task / layout.JOURNAL)
    )


def as_if_whole(path: Path) -> Manifest | None:
    """Return what a manifest says whose own checksum does not fit, or None.

    Nothing of it may be believed but the checksums of data which that data turns out to fit: then
    only the rest was edited.
    """
    try:
        values: dict[str, Any] = json.loads(read_file(path))
        values.pop("checksum", None)
        body = json.dumps(values)[:-1].encode()
        sealed = body + f',\n  "checksum": "crc32:{crc32(body):08x}"\n}}\n'.encode()
        return manifest.decode(sealed, path)
    except (OSError, ValueError, AttributeError, RecursionError, StorageError):
        return None
