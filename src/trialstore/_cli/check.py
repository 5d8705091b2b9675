"""``trialstore check``: say whether everything that was acknowledged is still there.

Exit codes: 0 nothing acknowledged is missing, 3 something is, 1 cannot tell, 2 an option makes no
sense, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from trialstore import upkeep
from trialstore._cli.report import counted
from trialstore._cli.terminal import bar, console, line, print_json, ranges, refusals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text

PATH = Annotated[
    Path, typer.Argument(help="A task, a subject, a root, or a folder of roots.", exists=True)
]
FALLBACK = Annotated[
    Path | None,
    typer.Option(help="The fallback_root of the recordings, if the journal does not tell it."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_STYLES: Final = {"torn": "yellow", "refused": "yellow"}
_VERDICTS: Final = {
    upkeep.WHOLE: ("Nothing that was acknowledged is missing.", "green"),
    upkeep.UNKNOWN: ("Cannot tell whether something is missing.", "bold yellow"),
    upkeep.LOSSES: ("Something that was acknowledged is missing or damaged.", "bold red"),
}


def check(path: PATH, *, fallback: FALLBACK = None, as_json: JSON = False) -> None:
    """Say of every task whether everything that was acknowledged is there; changes nothing."""
    with refusals(), bar() as progress:
        report = upkeep.check(path, fallback=fallback, progress=progress)
    show(report, as_json=as_json)
    raise typer.Exit(report.exit_code)


def show(report: upkeep.Report, *, as_json: bool) -> None:
    """Print a report."""
    if as_json:
        print_json(report.to_json())
        return
    terminal = console()
    for task in report.tasks:
        for text in task_lines(task):
            terminal.print(text)
    for remark in report.remarks:
        terminal.print(line((f"{remark.file!r} {remark.text}", "dim")))
    if report.tasks or report.remarks:
        terminal.print()
    terminal.print(_sum(report))


def _sum(report: upkeep.Report) -> Text:
    if not report.tasks:
        return line((f"No task at or below {str(report.path)!r}: cannot tell.", "bold yellow"))
    acknowledged = sum(task.acknowledged for task in report.tasks)
    counts = f"{counted(len(report.tasks), 'task')}, {counted(acknowledged, 'trial')}. "
    return line(counts, _VERDICTS[report.exit_code])


def task_lines(task: upkeep.TaskReport) -> Iterator[Text]:
    """Say what there is to say of one task; one line if all is well."""
    style = _VERDICTS[task.exit_code][1]
    yield line((repr(str(task.path)), "bold"), f"  {task.status}  ", (_counts(task), style))
    yield from finding_lines(task.findings)
    for doubt in task.doubts:
        yield line(("  cannot tell  ", "bold yellow"), f"{doubt.file!r} {doubt.text}")
    if task.exit_code != upkeep.WHOLE and task.whole:
        parts = (
            repr(part.file) + ("" if part.trials is None else f" ({counted(part.trials, 'trial')})")
            for part in task.whole
        )
        yield line(("  still whole  ", "green"), ", ".join(parts))
    for remark in task.remarks:
        yield line((f"  note         {remark.file!r} {remark.text}", "dim"))


def finding_lines(findings: Sequence[upkeep.Finding]) -> Iterator[Text]:
    """Name each finding, with its place and its evidence."""
    for finding in findings:
        where = "" if not finding.trials else f"{ranges(finding.trials)}: "
        place = repr(finding.file) if finding.file else ""
        if finding.byte_range is not None:
            place += f", bytes {finding.byte_range[0]} to {finding.byte_range[1]}"
        said = ": ".join(text for text in (place, finding.evidence) if text)
        style = _STYLES.get(finding.kind, "bold red")
        yield line((f"  {finding.kind:<11}  ", style), f"{where}{finding.what}")
        yield line(f"               {said}")


def _counts(task: upkeep.TaskReport) -> str:
    if task.exit_code == upkeep.WHOLE and not task.unacknowledged:
        extra = task.recovered - task.acknowledged
        told = f", and {extra} that nobody was told of" if extra > 0 else ""
        return f"{counted(task.acknowledged, 'trial')}, all whole{told}"
    return (
        f"{counted(task.acknowledged, 'trial')} acknowledged, {task.recovered} recovered,"
        f" {task.damaged} damaged or missing, {task.unacknowledged} never acknowledged"
    )
