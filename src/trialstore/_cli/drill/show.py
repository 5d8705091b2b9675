"""What the terminal shows of a drill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from trialstore._cli.drill.verdict import milliseconds, summary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from trialstore._cli.drill.verdict import Findings


def show(findings: Findings, console: Console) -> None:
    """Print the tables and the verdict, of whatever is known."""
    for part in (_surroundings(findings), _steps(findings)):
        if part is not None:
            console.print(part)
            console.print()
    style = "bold green" if findings.is_good else "bold red"
    for sentence in findings.sentences():
        console.print(Text(sentence, style=style), soft_wrap=True)


def _surroundings(findings: Findings) -> RenderableType | None:
    if findings.disk is None:
        return None
    disk, room = findings.disk, findings.seconds_of_room
    table = Table("disk", "", show_edge=False, pad_edge=False)
    if findings.file_system is not None:
        kind, is_network = findings.file_system
        table.add_row("file system", f"{kind or 'unknown'}, {'network' if is_network else 'local'}")
    table.add_row("throughput, synced", in_bytes(disk.throughput) + "/s")
    table.add_row(
        "append + sync of 4 KiB",
        f"median {milliseconds(disk.median)}, 90 % {milliseconds(disk.p90)}, "
        f"99 % {milliseconds(disk.p99)}, worst {milliseconds(disk.worst)}",
    )
    assert room is not None
    table.add_row("free", f"{in_bytes(disk.free)}: {_duration(room)} of this load")
    if findings.idle is not None:
        idle = summary(findings.idle)
        table.add_row(
            "idle loop",
            f"99 % {milliseconds(idle['p99'])}, worst {milliseconds(idle['worst'])} late",
        )
    return table


def _steps(findings: Findings) -> RenderableType | None:
    if not findings.steps:
        return None
    table = Table(
        "rate", "data/s", "late 99 %", "worst", "durable in", "CPU", "gives way",
        show_edge=False, pad_edge=False,
    )  # fmt: skip
    for step in sorted(findings.steps, key=lambda step: step.factor):
        late, limit = summary(step.late), findings.limit_of(step)
        table.add_row(
            f"{step.factor:.3g} ×",
            in_bytes(step.bytes_per_second),
            milliseconds(late.get("p99", 0.0)),
            milliseconds(late.get("worst", 0.0)),
            milliseconds(step.longest_to_durable),
            f"{step.cpu:.0%}",
            Text("nothing", "green") if limit is None else Text(f"the {limit}", "red"),
        )
    return table


def in_bytes(count: float) -> str:
    """Write a number of bytes as a person reads it."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
