"""Finishing what was cut off: decide first, act after; killed at any point, it is run again.

A task's journal is published as its own publisher would have done it. Then the journal goes, once
every bit of it was found in the published files; where something is damaged it stays, unchanged.
A small note in the journal says that it was `recover` which published it: a journal that somebody
keeps on purpose is never touched.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trialstore._errors import DamagedData, FormatError, StorageError, TaskLocked
from trialstore._ondisk import disk, layout, manifest
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.lock import acquire, holder
from trialstore._publishing.service import publish_once
from trialstore._upkeep import clearing
from trialstore._upkeep.checking import check_task, fallback_folders
from trialstore._upkeep.discovery import DAMAGED_MANIFEST, find_tasks, is_journal
from trialstore._upkeep.proof import RECOVERING, prove
from trialstore._upkeep.report import Remark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trialstore._ondisk.manifest import Manifest
    from trialstore._upkeep.report import Finding, Report

Action = Literal["publish", "finish", "clear", "leave"]


@dataclass(frozen=True, slots=True)
class RecoveryStep:
    """What is to be done with one task.

    Parameters
    ----------
    task : pathlib.Path
        Folder of the task.
    action : {'publish', 'finish', 'clear', 'leave'}
        Publish its journal; take the journal away, which an earlier run has published; remove
        hidden files of a publisher that was killed; or leave it alone.
    reason : str
        Why.
    recovered : int
        Trials that are whole and will be published.
    findings : tuple of Finding
        What is lost, and what was never acknowledged.
    files : tuple of pathlib.Path
        Hidden files that are removed.
    fallbacks : tuple of pathlib.Path
        Further folders in which segments may lie.
    """

    task: Path
    action: Action
    reason: str
    recovered: int = 0
    findings: tuple[Finding, ...] = ()
    files: tuple[Path, ...] = ()
    fallbacks: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the step as plain JSON values."""
        return {
            "task": str(self.task),
            "action": self.action,
            "reason": self.reason,
            "recovered": self.recovered,
            "findings": [finding.to_json() for finding in self.findings],
            "files": [str(path) for path in self.files],
        }


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What `recover` does below a folder.

    Parameters
    ----------
    path : pathlib.Path
        The folder.
    steps : tuple of RecoveryStep
        One for each task with which there is something to do, or to say why not.
    """

    path: Path
    steps: tuple[RecoveryStep, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {"path": str(self.path), "steps": [step.to_json() for step in self.steps]}


# --- deciding -------------------------------------------------------------------------------------


def plan(path: Path, fallback: Path | None = None) -> RecoveryPlan:
    """Look at every task below a folder and decide; changes nothing.

    Raises
    ------
    StorageError
        If `path` is not a folder.
    """
    steps = (_decide(task, fallback) for task in find_tasks(path).tasks)
    return RecoveryPlan(path, tuple(step for step in steps if step is not None))


def _decide(task: Path, fallback: Path | None) -> RecoveryStep | None:
    journal = task / layout.JOURNAL
    files = tuple(clearing.leftovers(task))
    owner = holder(journal / layout.LOCK)
    described, refusal = _manifest_of(task)
    if owner is not None:
        return RecoveryStep(task, "leave", f"in use by {owner}")
    if refusal is not None:
        return RecoveryStep(task, "leave", refusal)
    if described is not None and described.status != "recording":
        if _note(journal) is not None:
            reason = "an earlier recover had published it and was stopped"
            fallbacks = fallback_folders(task, described, fallback)
            return RecoveryStep(task, "finish", reason, described.trials, (), files, fallbacks)
        return _cleared(task, files)
    if not is_journal(journal):
        return _cleared(task, files)
    if not any(layout.segment_number(name.name) is not None for name in journal.iterdir()):
        return RecoveryStep(task, "leave", "its journal holds no segment: there is nothing to "
                            "publish", files=files)  # fmt: skip
    report = check_task(task, fallback)
    # A manifest that says nothing is no obstacle: the journal tells all of it.
    doubts = [doubt for doubt in report.doubts if doubt.file != layout.MANIFEST]
    if doubts:
        return RecoveryStep(task, "leave", f"{doubts[0].file!r} {doubts[0].text}")
    return RecoveryStep(
        task,
        "publish",
        "the recorder ended without publishing it",
        report.recovered,
        report.findings,
        files,
        fallback_folders(task, described, fallback),
    )


def _cleared(task: Path, files: tuple[Path, ...]) -> RecoveryStep | None:
    if not files:
        return None
    return RecoveryStep(task, "clear", "a publisher was killed while it built files", files=files)


def _manifest_of(task: Path) -> tuple[Manifest | None, str | None]:
    """Return the manifest, if it can be believed, or why the task must be left alone."""
    try:
        return manifest.read(task), None
    except (DamagedData, FormatError) as error:
        if _is_newer(task / layout.MANIFEST):
            return None, str(error)
        if not is_journal(task / layout.JOURNAL):
            return None, f"{error}; there is no journal to make a new one of"
    return None, None


def _is_newer(path: Path) -> bool:
    try:
        match json.loads(read_file(path)):
            case {"format": manifest.FORMAT, "version": int(version)}:
                return version > manifest.VERSION
    except (OSError, ValueError, RecursionError):
        pass
    return False


# --- acting ---------------------------------------------------------------------------------------


def apply(steps: RecoveryPlan, *, keep_journal: bool = False) -> dict[Path, str]:
    """Do what a plan says; return, by task, what could not be done and why."""
    failures = {}
    for step in steps.steps:
        try:
            _act(step, keep_journal=keep_journal)
        except FileNotFoundError:
            continue  # its own publisher has just done it
        except (StorageError, OSError) as error:
            failures[step.task] = f"could not be recovered: {error}"
    return failures


def _act(step: RecoveryStep, *, keep_journal: bool) -> None:
    match step.action:
        case "publish":
            _publish(step, keep_journal=keep_journal)
        case "finish":
            _finish(step)
        case "leave":
            return
    if holder(step.task / layout.JOURNAL / layout.LOCK) is None:
        for path in step.files:
            clearing.delete(path)


def _publish(step: RecoveryStep, *, keep_journal: bool) -> None:
    journal = step.task / layout.JOURNAL
    if holder(journal / layout.LOCK) is not None:
        raise TaskLocked(f"{str(step.task)!r} has been taken up since")
    _keep_manifest_aside(step.task)
    if not keep_journal:
        _write_note(journal, is_proved=False)
    fallbacks = [str(folder) for folder in step.fallbacks]
    publish_once(step.task, {"keep_journal": True, "fallback": fallbacks})
    if not keep_journal:
        _finish(step)


def _keep_manifest_aside(task: Path) -> None:
    """Give a damaged manifest another name: the journal tells all that a new one needs."""
    try:
        manifest.read(task)
    except (DamagedData, FormatError):
        path = task / layout.MANIFEST
        with contextlib.suppress(OSError):
            crc = crc32(read_file(path))
            disk.current().replace(path, path.with_name(f"{DAMAGED_MANIFEST}{crc:08x}"))


def _finish(step: RecoveryStep) -> None:
    """Take the journal of a task away that we have published, once it is proved superfluous."""
    task, journal = step.task, step.task / layout.JOURNAL
    lock = acquire(journal / layout.LOCK, "publisher")
    try:
        note = _note(journal)
        if note is None:
            return
        described = manifest.read(task)
        if described is None or described.status == "recording":
            return
        if note["is_proved"]:
            others = [Path(folder) for folder in note["folders"]]
        else:
            proof = prove(task, journal, step.fallbacks)
            losses = [loss for loss in described.losses if loss.kind != "refused"]
            others = [folder for folder in proof.folders if folder != journal]
            mine = all(clearing.is_part_of(folder, journal) for folder in others)
            if proof.refusal is not None or losses or not mine:
                # Evidence: it stays, as it was, for prune and for people.
                _remove_note(journal)
                return
            _write_note(journal, is_proved=True, folders=others)
        for folder in others:
            _remove_part(folder, journal)
        hidden = clearing.hide(journal)
        lock.release()
        clearing.delete(hidden)
    finally:
        lock.release()


def _remove_part(folder: Path, journal: Path) -> None:
    if folder.is_dir() and clearing.is_part_of(folder, journal):
        clearing.delete(folder)


def _note(journal: Path) -> dict[str, Any] | None:
    """Return our note in a journal, unless a recorder has gone on with it since."""
    with contextlib.suppress(OSError, ValueError):
        match json.loads(read_file(journal / RECOVERING, 1 << 20)):
            case {"sessions": [*sessions], "is_proved": bool(proved), "folders": [*folders]} if all(
                isinstance(folder, str) for folder in folders
            ):
                if sessions == sorted(set(clearing.segments_of(journal).values())):
                    return {"is_proved": proved, "folders": folders}
    return None


def _write_note(journal: Path, *, is_proved: bool, folders: Sequence[Path] = ()) -> None:
    note = {
        "sessions": sorted(set(clearing.segments_of(journal).values())),
        "is_proved": is_proved,
        "folders": [str(folder) for folder in folders],
    }
    disk.current().write_file(journal / RECOVERING, json.dumps(note).encode())


def _remove_note(journal: Path) -> None:
    for path in clearing.building_in(journal):
        clearing.delete(path)
    disk.current().remove(journal / RECOVERING)


def with_failures(report: Report, failures: Mapping[Path, str]) -> Report:
    """Add to a report what could not be done."""
    tasks = tuple(
        replace(task, doubts=(*task.doubts, Remark(".", failures[task.path])))
        if task.path in failures
        else task
        for task in report.tasks
    )
    return replace(report, tasks=tasks)
