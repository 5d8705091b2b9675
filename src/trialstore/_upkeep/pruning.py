"""Deleting what is superfluous: only what is offered with a proof, and only after a yes.

Candidates are what lies in a root's trash, journals that were kept beside published files, and what
an earlier `prune` had begun to delete. Each is moved out of sight in one step and deleted then.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from trialstore._errors import StorageError
from trialstore._ondisk import disk, layout, manifest
from trialstore._ondisk.lock import acquire, holder
from trialstore._upkeep import clearing
from trialstore._upkeep.checking import check_task, ticker
from trialstore._upkeep.discovery import (
    TRASH_SUFFIX,
    find_tasks,
    is_journal,
    is_task,
    size_of,
)
from trialstore._upkeep.proof import prove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trialstore._upkeep.gathering import Tick
    from trialstore._upkeep.report import Progress, TaskReport

CandidateKind = Literal["journal", "overwritten task", "replaced journal", "being deleted"]
#: As `create_task` and `resume_task` name what they move to the trash.
_TRASHED: Final = re.compile(r"(?P<name>.+)\.(?P<when>\d{8}T\d{6})-[0-9a-f]{8}")
_DAMAGED: Final = "it holds damaged data, which is evidence: name --damaged to delete it"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be deleted, and why.

    Parameters
    ----------
    path : pathlib.Path
        The folder or file.
    kind : str
        ``journal``, ``overwritten task``, ``replaced journal`` or ``being deleted``.
    nbytes : int
        Its size.
    proof : str
        What proves that it may go.
    task : pathlib.Path
        Folder of the task that it belongs to.
    identity : tuple of int
        Which folder it was that was looked at: device, number, and when entries were changed.
    stamp : tuple of int
        Which manifest the task had then.
    """

    path: Path
    kind: CandidateKind
    nbytes: int
    proof: str
    task: Path
    identity: tuple[int, ...]
    stamp: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as plain JSON values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "bytes": self.nbytes,
            "proof": self.proof,
            "task": str(self.task),
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that one might think superfluous, and why it stays."""

    path: Path
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the entry as plain JSON values."""
        return {"path": str(self.path), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """What may be deleted.

    Parameters
    ----------
    path : pathlib.Path
        Where it was looked for.
    candidates : tuple of Candidate
        What may be deleted.
    kept : tuple of Kept
        What stays, and why.
    trash : tuple of pathlib.Path
        Trash that was looked through; folders in it that are empty go without saying.
    """

    path: Path
    candidates: tuple[Candidate, ...]
    kept: tuple[Kept, ...] = ()
    trash: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "path": str(self.path),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "kept": [entry.to_json() for entry in self.kept],
        }


@dataclass(frozen=True, slots=True)
class PruningReport:
    """What became of a plan.

    Parameters
    ----------
    deleted : tuple of Candidate
        What is gone.
    kept : tuple of Kept
        What is not, and why.
    """

    deleted: tuple[Candidate, ...]
    kept: tuple[Kept, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "deleted": [candidate.to_json() for candidate in self.deleted],
            "kept": [entry.to_json() for entry in self.kept],
        }


# --- deciding -------------------------------------------------------------------------------------


def plan(
    path: Path, progress: Callable[[Progress], object] | None = None, *, damaged: bool = False
) -> PruningPlan:
    """Look at kept journals and at the trash; change nothing.

    Raises
    ------
    StorageError
        If `path` is not a folder, or something may not be listed.
    """
    planner = _Planner(progress, damaged=damaged)
    try:
        tasks = [task for task in find_tasks(path).tasks if not _is_in_trash(task)]
        scopes = sorted(_scopes(path.absolute(), tasks), key=str)
        scopes = [scope for scope in scopes if layout.is_folder(_trash(scope.root))]
        trash = [found for scope in scopes for found in _trash_of(scope)]
        planner.total = len(tasks) + len(trash)
        for task in tasks:
            planner.look_at_task(task)
        for entry, task in trash:
            planner.look_at_trash(entry, task)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be looked through: {error}") from error
    places = tuple(_trash(scope.root) for scope in scopes)
    return PruningPlan(path, tuple(planner.candidates), tuple(planner.kept), places)


class _Planner:
    """Collects what may go and what stays."""

    def __init__(self, progress: Callable[[Progress], object] | None, *, damaged: bool) -> None:
        self._progress = progress
        self._damaged = damaged
        self._number = 0
        self.total = 0
        self.candidates: list[Candidate] = []
        self.kept: list[Kept] = []

    def _tick(self, folder: Path) -> Tick:
        self._number += 1
        return ticker(folder, self._number, self.total, self._progress)

    def look_at_task(self, task: Path) -> None:
        """Offer a journal that was kept, and what an earlier run had begun to delete."""
        journal = task / layout.JOURNAL
        tick = self._tick(task)
        owner = holder(journal / layout.LOCK)
        if owner is None:
            for path in clearing.leftovers(task):
                if layout.is_folder(path):
                    self._offer(path, "being deleted", "an earlier prune or publisher had proved "
                                "that it may go, and was stopped", task)  # fmt: skip
        if not is_journal(journal) or _stamp(task) is None or not _is_published(task):
            return
        if owner is not None:
            self.kept.append(Kept(journal, f"in use by {owner}"))
            return
        self._offer_proved(journal, "journal", task, tick)

    def _offer_proved(self, journal: Path, kind: CandidateKind, task: Path, tick: Tick) -> None:
        proof = prove(task, journal, damaged=self._damaged, tick=tick)
        elsewhere = [str(folder) for folder in proof.folders if folder != journal]
        if proof.refusal is not None:
            self.kept.append(Kept(journal, proof.refusal))
        elif elsewhere:
            self.kept.append(Kept(journal, f"a part of it lies in {elsewhere!r}"))
        else:
            self._offer(journal, kind, str(proof), task)

    def look_at_trash(self, entry: Path, task: Path) -> None:
        """Offer an entry of the trash if what replaced it is there."""
        tick = self._tick(entry)
        if layout.is_building(entry.name):
            self._offer(entry, "being deleted", "an earlier prune had been told to delete it, and "
                        "was stopped", task)  # fmt: skip
        elif not layout.is_folder(entry) or _TRASHED.fullmatch(entry.name) is None:
            self.kept.append(Kept(entry, "it was not put into the trash by trialstore"))
        elif (owner := holder(_lock_of(entry))) is not None:
            self.kept.append(Kept(entry, f"in use by {owner}"))
        elif not is_task(entry) and is_journal(entry):
            self._offer_proved(entry, "replaced journal", task, tick)
        else:
            self._look_at_overwritten(entry, task, tick)

    def _look_at_overwritten(self, entry: Path, task: Path, tick: Tick) -> None:
        report = check_task(entry, None, tick)
        if not is_task(task):
            reason = (
                f"nothing stands in its place: {str(task)!r} holds no task, so its "
                f"{report.recovered} trials are nowhere else"
            )
            self.kept.append(Kept(entry, reason))
        elif report.losses and not self._damaged:
            self.kept.append(Kept(entry, _DAMAGED))
        else:
            self._offer(entry, "overwritten task", _overwritten(entry, report), task)

    def _offer(self, path: Path, kind: CandidateKind, proof: str, task: Path) -> None:
        identity = _identity(path)
        nbytes = size_of(path) if layout.is_folder(path) else path.lstat().st_size
        stamp = _stamp(task) or ()
        self.candidates.append(Candidate(path, kind, nbytes, proof, task, identity, stamp))


def _overwritten(entry: Path, report: TaskReport) -> str:
    match = _TRASHED.fullmatch(entry.name)
    when = "" if match is None else match["when"]
    day = f"{when[:4]}-{when[4:6]}-{when[6:8]}"
    return (
        f"recorded anew with allow_overwrite=True on {day}, and the new task is there; its own "
        f"{report.recovered} trials are nowhere else"
    )


def _is_published(task: Path) -> bool:
    try:
        described = manifest.read(task)
    except StorageError:
        return False
    return described is not None and described.status != "recording"


def _stamp(task: Path) -> tuple[int, ...] | None:
    try:
        status = (task / layout.MANIFEST).lstat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _lock_of(entry: Path) -> Path:
    inner = entry / layout.JOURNAL / layout.LOCK
    return inner if inner.exists() else entry / layout.LOCK


def _is_in_trash(task: Path) -> bool:
    return any(part.name.endswith(TRASH_SUFFIX) for part in task.parents)


def _trash_of(scope: _Scope) -> Iterator[tuple[Path, Path]]:
    """Yield entries of a root's trash, each with the task it was replaced by."""
    root, subject, task = scope
    for folder in sorted(_trash(root).iterdir()):
        if subject not in (None, folder.name) or not layout.is_folder(folder):
            continue
        for entry in sorted(folder.iterdir()):
            match = _TRASHED.fullmatch(entry.name)
            name = "" if match is None else match["name"]
            if is_journal(entry) and not is_task(entry):
                name = name.removesuffix(f".{layout.JOURNAL}")
            # What an earlier run had hidden has lost its name, and belongs to whoever comes.
            if task in (None, name) or layout.is_building(entry.name):
                yield entry, root / folder.name / (name or "?")


def _trash(root: Path) -> Path:
    return root.with_name(root.name + TRASH_SUFFIX)


class _Scope(NamedTuple):
    """Root, subject and task whose trash is meant; None for all of them."""

    root: Path
    subject: str | None = None
    task: str | None = None


def _scopes(path: Path, tasks: list[Path]) -> set[_Scope]:
    """What a path stands for: one task, one subject, or whole roots."""
    if path.name.endswith(TRASH_SUFFIX):
        return {_Scope(path.with_name(path.name.removesuffix(TRASH_SUFFIX)))}
    found = [task.absolute() for task in tasks]
    if path in found:
        return {_Scope(path.parent.parent, path.parent.name, path.name)}
    if any(task.parent == path for task in found):
        return {_Scope(path.parent, path.name)}
    roots = {task.parent.parent for task in found if task.is_relative_to(path)}
    return {_Scope(root) for root in roots} or {_Scope(path)}


# --- acting ---------------------------------------------------------------------------------------


def apply(
    steps: PruningPlan, progress: Callable[[Candidate], object] | None = None
) -> PruningReport:
    """Delete the candidates of a plan, if they are still what was looked at."""
    deleted, kept = [], []
    for candidate in steps.candidates:
        if progress is not None:
            progress(candidate)
        try:
            reason = _delete(candidate)
        except (StorageError, OSError) as error:
            reason = f"could not be deleted: {error}"
        if reason is None:
            deleted.append(candidate)
        else:
            kept.append(Kept(candidate.path, reason))
    for trash in steps.trash:
        with contextlib.suppress(OSError):
            _remove_empty(trash)
    return PruningReport(tuple(deleted), tuple(kept))


def _delete(candidate: Candidate) -> str | None:
    """Delete one candidate; return why not, if it has changed."""
    path = candidate.path
    if candidate.kind == "being deleted":
        clearing.delete(path)
        return None
    lock = acquire(_lock_of(path), "publisher") if _has_lock(path) else None
    try:
        if (_identity(path), _stamp(candidate.task) or ()) != (candidate.identity, candidate.stamp):
            return "it has changed since it was looked at: plan again"
        hidden = clearing.hide(path)
    finally:
        if lock is not None:
            lock.release()
    clearing.delete(hidden)
    return None


def _has_lock(path: Path) -> bool:
    return _lock_of(path).exists()


def _identity(path: Path) -> tuple[int, ...]:
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _remove_empty(trash: Path) -> None:
    """Remove folders of a trash, and the trash itself, when nothing is left in them."""
    for folder in (*sorted(trash.iterdir()), trash):
        if layout.is_folder(folder) and not any(folder.iterdir()):
            disk.current().remove_folder(folder)
