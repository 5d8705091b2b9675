"""Collects what is found in one task, and counts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trialstore._upkeep.report import Finding, Part, Remark, TaskReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from trialstore._upkeep.report import FindingKind

    #: Called with the number of bytes that have been read since the last call.
    Tick = Callable[[int], None]


@dataclass(slots=True)
class Gathering:
    """Findings of one task, as they come.

    Parameters
    ----------
    tick : callable
        Called with the number of bytes that have been read since the last call.
    """

    tick: Tick
    acknowledged: int = 0
    #: Trials that are whole though nobody was told that they were durable.
    survived: int = 0
    findings: list[Finding] = field(default_factory=list)
    doubts: list[Remark] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    whole: list[Part] = field(default_factory=list)

    def lose(
        self,
        kind: FindingKind,
        trials: Iterable[int],
        what: str,
        file: str,
        span: tuple[int, int] | None = None,
        evidence: str = "",
    ) -> None:
        """Name something that is not there, or not as it was."""
        self.findings.append(Finding(kind, tuple(trials), what, file, span, evidence))

    def doubt(self, file: str, text: str) -> None:
        """Say why one cannot tell."""
        self.doubts.append(Remark(file, text))

    def remark(self, file: str, text: str) -> None:
        """Say something that is no loss."""
        self.remarks.append(Remark(file, text))

    def keep(self, file: str, trials: int | None = None) -> None:
        """Say that a file was checked and is whole, or so many trials of it."""
        self.whole.append(Part(file, trials))

    def report(self, path: Path, status: str, *, is_published: bool) -> TaskReport:
        """Sum up."""
        damaged = {
            trial
            for finding in self.findings
            for trial in finding.trials
            if finding.kind in ("damaged", "missing")
        }
        begun = {t for finding in self.findings if finding.kind == "torn" for t in finding.trials}
        return TaskReport(
            path,
            status,
            is_published,
            acknowledged=self.acknowledged,
            recovered=max(0, self.acknowledged + self.survived - len(damaged)),
            damaged=len(damaged),
            unacknowledged=len(begun),
            findings=tuple(self.findings),
            doubts=tuple(self.doubts),
            remarks=tuple(self.remarks),
            whole=tuple(self.whole),
        )
