"""``trialstore recover``: publish what no recorder will publish any more.

Exit codes: as those of `check`, whose report it ends with. With ``--dry-run``: 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from trialstore import upkeep
from trialstore._cli.check import FALLBACK, JSON, PATH, finding_lines, show
from trialstore._cli.report import counted
from trialstore._cli.terminal import bar, console, line, print_json, refusals

if TYPE_CHECKING:
    from rich.console import Console

_VERBS: Final = {
    "publish": "will be published",
    "finish": "will lose its journal",
    "clear": "will be cleared",
    "leave": "is left alone",
}


def recover(
    path: PATH,
    *,
    fallback: FALLBACK = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    keep_journal: Annotated[
        bool, typer.Option("--keep-journal", help="Leave the journals in place.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Publish tasks that were cut off, as far as their journals are whole, and check them."""
    with refusals():
        plan = upkeep.plan_recovery(path, fallback=fallback)
    if dry_run and as_json:
        print_json(plan.to_json())
    if not as_json:
        _show_plan(plan, console())
    if dry_run:
        return
    with refusals(), bar() as progress:
        report = upkeep.recover(
            path, fallback=fallback, keep_journal=keep_journal, progress=progress
        )
    show(report, as_json=as_json)
    raise typer.Exit(report.exit_code)


def _show_plan(plan: upkeep.RecoveryPlan, terminal: Console) -> None:
    if not plan.steps:
        terminal.print("There is nothing to recover.")
    for step in plan.steps:
        what = f"{_VERBS[step.action]}: {step.reason}"
        if step.action == "publish":
            what += f"; {counted(step.recovered, 'trial')} recovered"
        terminal.print(line((repr(str(step.task)), "bold"), f"  {what}"))
        for text in finding_lines(step.findings):
            terminal.print(text)
        for path in step.files:
            terminal.print(line(f"  remove       {path.name!r}"))
    terminal.print()
