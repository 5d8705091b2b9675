"""``python -m tests.benchmarks``: measure everything, say what was reached.

Exit code 0 if every row could be measured, whether its target was reached or not; 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.benchmarks.frame import Effort, machine
from tests.benchmarks.measure import pin
from tests.benchmarks.peers import PEERS, load
from tests.benchmarks.report import number, write_pages
from tests.benchmarks.table import ROWS
from tests.campaign.frame import CannotRun

if TYPE_CHECKING:
    from tests.benchmarks.frame import Row


def run_row(row: Row, effort: Effort) -> dict[str, Any]:
    """Run one row and return its line: what was measured, what was reached."""
    began = time.monotonic()
    line: dict[str, Any] = {
        "name": row.name,
        "what": row.what,
        "how": row.how,
        "target": row.target,
    }
    try:
        line |= row.run(effort).to_json()
    except CannotRun as reason:
        line |= {"verdict": "cannot run here", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001 - the other rows shall run; this one has failed
        traceback.print_exc()
        line |= {"verdict": "failed", "reason": repr(error)}
    line["seconds"] = round(time.monotonic() - began, 1)
    return line


def show(line: dict[str, Any]) -> None:
    """Print one row."""
    say(f"{line['name']}: {line['verdict']} ({line['seconds']} s)")
    for check in line.get("checks", ()):
        sign = ">=" if check["at_least"] else "<="
        verdict = "reached" if check["holds"] else "MISSED"
        value = f"{number(check['value'])} {check['unit']}"
        say(f"    {verdict:<8} {check['what']}: {value} ({sign} {number(check['limit'])})")
    if "reason" in line:
        say(f"    {line['reason']}")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201


def peers() -> list[dict[str, Any]]:
    """Say who was compared, in which version and pattern, and who could not be."""
    found = []
    for name, entry in PEERS.items():
        pattern = "" if entry.missing else load(name).PATTERN
        found.append(
            {
                "name": name,
                "label": entry.label,
                "versions": entry.versions,
                "missing": entry.missing,
                "pattern": pattern,
            }
        )
    return found


def run(rows: list[Row], effort: Effort) -> dict[str, Any]:
    """Run rows one after the other and return the results of the run."""
    began = time.monotonic()
    results: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": effort.level,
        "machine": machine(effort.parent),
        "peers": peers(),
        "rows": [],
    }
    for count, row in enumerate(rows, 1):
        say(f"[{count}/{len(rows)}] {row.what} ...")
        line = run_row(row, effort)
        show(line)
        results["rows"].append(line)
    results["seconds"] = round(time.monotonic() - began, 1)
    return results


def merged(results: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Add the rows of earlier runs of the same effort that were not run now, in their order."""
    lines = {row["name"]: row for told in [*earlier, results] for row in told["rows"]}
    efforts = {told["effort"] for told in [*earlier, results]}
    if len(efforts) > 1:
        raise SystemExit(f"these runs are not of one effort: {sorted(efforts)}")
    rows = [lines[row.name] for row in ROWS if row.name in lines]
    seconds = round(sum(told["seconds"] for told in [*earlier, results]), 1)
    return results | {"rows": rows, "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    """Run the rows asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three minutes: fewer, smaller pairs")
    parser.add_argument("--tiny", action="store_true", help="try the code; the figures say nothing")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="*", metavar="ROW", choices=names, help=", ".join(names))
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--merge", type=Path, nargs="*", default=[], help="take rows that are not run from these"
    )
    parser.add_argument("--docs", type=Path, help="write page, plots and history into this folder")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure"
    )
    told = parser.parse_args(arguments)
    level: Literal["full", "quick", "tiny"] = "quick" if told.quick else "full"
    effort = Effort("tiny" if told.tiny else level, told.folder)
    pin()
    chosen = [row for row in ROWS if told.only is None or row.name in told.only]
    results = run(chosen, effort)
    results = merged(results, [json.loads(path.read_text("utf-8")) for path in told.merge])
    say(f"{results['seconds']:.0f} s in all")
    if told.json:
        told.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if told.docs:
        write_pages(results, told.docs)
    return int(any(line["verdict"] == "failed" for line in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
