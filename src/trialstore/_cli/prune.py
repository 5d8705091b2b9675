"""``trialstore prune``: delete what is proved to be superfluous, after a yes.

Exit codes: 0 everything that was offered is gone, or there was nothing; 1 the answer was no, or
something could not be deleted; 2 an option makes no sense, 130 interrupted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from trialstore import upkeep
from trialstore._cli.check import JSON, PATH  # noqa: TC001 - typer looks at them
from trialstore._cli.report import counted
from trialstore._cli.terminal import bar, console, line, print_json, refusals

if TYPE_CHECKING:
    from rich.console import Console


def prune(
    path: PATH,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing.")] = False,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Offer what holds damaged data, too: evidence.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Show what is superfluous and what proves it, ask, and delete it: trash and kept journals."""
    if as_json and not (yes or dry_run):
        raise typer.BadParameter("--json cannot ask: add --yes or --dry-run", param_hint="'--json'")
    with refusals(), bar() as progress:
        plan = upkeep.plan_pruning(path, damaged=damaged, progress=progress)
    if not as_json:
        _show_plan(plan, console())
    elif dry_run:
        print_json(plan.to_json())
    if dry_run:
        return
    if plan.candidates and not yes and not _confirmed(plan):
        raise typer.Exit(1)
    with refusals():
        report = upkeep.prune(plan)
    if as_json:
        print_json(report.to_json())
    elif plan.candidates:
        _show_report(report, console())
    if report.kept:
        raise typer.Exit(1)


def _confirmed(plan: upkeep.PruningPlan) -> bool:
    total = decimal(sum(candidate.nbytes for candidate in plan.candidates))
    count = len(plan.candidates)
    what = "this entry" if count == 1 else f"these {count} entries"
    return typer.confirm(f"Delete {what} ({total}) for good?", default=False)


def _show_plan(plan: upkeep.PruningPlan, terminal: Console) -> None:
    for candidate in plan.candidates:
        head = f"  {candidate.kind}, {decimal(candidate.nbytes)}"
        terminal.print(line((repr(str(candidate.path)), "bold"), head))
        terminal.print(line(f"  {candidate.proof}"))
    for entry in plan.kept:
        terminal.print(line((f"{str(entry.path)!r}  is kept: {entry.reason}", "dim")))
    if not plan.candidates:
        terminal.print("There is nothing to delete.")


def _show_report(report: upkeep.PruningReport, terminal: Console) -> None:
    freed = decimal(sum(candidate.nbytes for candidate in report.deleted))
    entries = counted(len(report.deleted), "entry").replace("entrys", "entries")
    terminal.print(f"Deleted {entries}, {freed}.")
    for entry in report.kept:
        terminal.print(line((f"{str(entry.path)!r}  is kept: {entry.reason}", "bold yellow")))
