"""What a check has found: plain records that print, compare and become JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

FindingKind = Literal["torn", "damaged", "missing", "refused", "superseded"]

#: The classes of what is not there, as a report spells them out.
CLASSES: Final[dict[FindingKind, str]] = {
    "torn": "torn before acknowledgement",
    "damaged": "acknowledged and damaged",
    "missing": "acknowledged and missing",
    "refused": "refused",
    "superseded": "written after another recorder had taken the task over",
}
#: Those of them that break a promise.
LOST: Final[frozenset[FindingKind]] = frozenset(("damaged", "missing", "superseded"))

#: Exit codes: nothing acknowledged is missing, cannot tell, something acknowledged is missing.
WHOLE: Final = 0
UNKNOWN: Final = 1
LOSSES: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not there, or not as it was.

    Parameters
    ----------
    kind : {'torn', 'damaged', 'missing', 'refused', 'superseded'}
        Its class; `CLASSES` spells them out.
    trials : tuple of int
        Numbers of the trials concerned; empty where they have none.
    what : str
        What is concerned, for a person: ``"array 'emg'"``.
    file : str
        Path of the file, relative to the task's folder (absolute on a fallback disk).
    byte_range : tuple of int or None
        First byte and the byte after the last, where the finding has a place in `file`.
    evidence : str
        How it is known.
    """

    kind: FindingKind
    trials: tuple[int, ...]
    what: str
    file: str = ""
    byte_range: tuple[int, int] | None = None
    evidence: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values."""
        span = None if self.byte_range is None else list(self.byte_range)
        return {
            "class": CLASSES[self.kind],
            "kind": self.kind,
            "trials": list(self.trials),
            "what": self.what,
            "file": self.file,
            "byte_range": span,
            "evidence": self.evidence,
        }


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a file that a person may want to know.

    Parameters
    ----------
    file : str
        Path relative to the task's folder; ``"."`` for the folder itself.
    text : str
        What there is to say, and what to do.
    """

    file: str
    text: str

    def to_json(self) -> dict[str, str]:
        """Return the remark as plain JSON values."""
        return {"file": self.file, "text": self.text}


@dataclass(frozen=True, slots=True)
class Part:
    """A file that was checked, and how much of it is whole.

    Parameters
    ----------
    file : str
        Path relative to the task's folder.
    trials : int or None
        Trials in it that are whole; None for what is not counted in trials.
    """

    file: str
    trials: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the part as plain JSON values."""
        return {"file": self.file, "trials": self.trials}


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What was found in one task.

    Parameters
    ----------
    path : pathlib.Path
        Folder of the task.
    status : str
        ``complete``, ``interrupted``, ``recording``, ``foreign`` (no manifest of ours), or
        ``unreadable``.
    is_published : bool
        Whether the trials are in plain files; otherwise they are in the journal.
    acknowledged : int
        Trials that were durable, as far as manifest, journal and witnesses tell.
    recovered : int
        Trials of which everything is whole; with what survived without being acknowledged.
    damaged : int
        Acknowledged trials of which something is damaged or missing.
    unacknowledged : int
        Trials that were begun and never acknowledged.
    findings : tuple of Finding
        Everything that is not there or not as it was.
    doubts : tuple of Remark
        Why one cannot tell whether something is missing.
    remarks : tuple of Remark
        What else there is to say.
    whole : tuple of Part
        What was checked and is whole.
    """

    path: Path
    status: str
    is_published: bool = False
    acknowledged: int = 0
    recovered: int = 0
    damaged: int = 0
    unacknowledged: int = 0
    findings: tuple[Finding, ...] = ()
    doubts: tuple[Remark, ...] = ()
    remarks: tuple[Remark, ...] = ()
    whole: tuple[Part, ...] = ()

    @property
    def losses(self) -> tuple[Finding, ...]:
        """Findings of what was acknowledged."""
        return tuple(finding for finding in self.findings if finding.kind in LOST)

    @property
    def exit_code(self) -> int:
        """0: nothing acknowledged is missing; 3: something is; 1: cannot tell."""
        if self.losses:
            return LOSSES
        return UNKNOWN if self.doubts else WHOLE

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "path": str(self.path),
            "status": self.status,
            "published": self.is_published,
            "exit_code": self.exit_code,
            "trials": {
                "acknowledged": self.acknowledged,
                "recovered": self.recovered,
                "damaged": self.damaged,
                "never_acknowledged": self.unacknowledged,
            },
            "findings": [finding.to_json() for finding in self.findings],
            "doubts": [remark.to_json() for remark in self.doubts],
            "remarks": [remark.to_json() for remark in self.remarks],
            "whole": [part.to_json() for part in self.whole],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What was found below a folder.

    Parameters
    ----------
    path : pathlib.Path
        What was looked at: a task, a subject, a root, or a folder of roots.
    tasks : tuple of TaskReport
        One for each task, in the order of their paths.
    remarks : tuple of Remark
        What lies there and is no task.

    Examples
    --------
    >>> from trialstore import upkeep
    >>> report = upkeep.check("data")  # doctest: +SKIP
    >>> report.exit_code, [task.path.name for task in report.tasks if task.losses]  # doctest: +SKIP
    (0, [])
    """

    path: Path
    tasks: tuple[TaskReport, ...]
    remarks: tuple[Remark, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: nothing acknowledged is missing; 3: something is; 1: cannot tell, or no task."""
        codes = {task.exit_code for task in self.tasks}
        if LOSSES in codes:
            return LOSSES
        return UNKNOWN if UNKNOWN in codes or not codes else WHOLE

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "path": str(self.path),
            "exit_code": self.exit_code,
            "tasks": [task.to_json() for task in self.tasks],
            "remarks": [remark.to_json() for remark in self.remarks],
        }


class Progress(NamedTuple):
    """How far long work has come.

    Attributes
    ----------
    task : pathlib.Path
        Folder of the task that is being looked at.
    number, tasks : int
        Which task of how many, counted from 1.
    done, total : int
        Bytes of this task that were read, and about how many there are.
    """

    task: Path
    number: int
    tasks: int
    done: int
    total: int
