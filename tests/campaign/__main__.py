"""``python -m tests.campaign``: inject every fault, count, say what was lost.

Exit code 0 if every row that can run here is clean, 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.campaign.frame import CannotRun, Effort, Row
from tests.campaign.report import render
from tests.campaign.table import ROWS
from trialstore._publishing.modesty import be_modest


def run_row(row: Row, effort: Effort) -> dict[str, Any]:
    """Run one row and return its line: what was tried, what was lost."""
    began = time.monotonic()
    line: dict[str, Any] = {"number": row.number, "fault": row.fault, "promise": row.promise}
    try:
        outcome = row.run(effort)
    except CannotRun as reason:
        line |= {"verdict": "cannot run here", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001 - the other rows shall run; this one has failed
        traceback.print_exc()
        line |= {"verdict": "failed", "reason": repr(error)}
    else:
        line |= {"verdict": "clean" if outcome.is_clean else "BROKEN", **outcome.to_json()}
    line["seconds"] = round(time.monotonic() - began, 1)
    return line


def show(line: dict[str, Any]) -> None:
    """Print one line of the report."""
    text = f"{line['number']:>3} {line['verdict']:<16} {line['fault']}: "
    if "tried" in line:
        text += (
            f"{line['tried']} {line['unit']}, {line['acknowledged']} acknowledged trials, "
            f"{line['named']} lost and named, {line['silent']} silently, {line['wrong']} wrong"
        )
        text += "".join(f"; {figure} {value}" for figure, value in line["figures"].items())
    else:
        text += line["reason"]
    print(f"{text} ({line['seconds']} s)", flush=True)  # noqa: T201
    for problem in line.get("problems", ()):
        print(f"      {problem}", flush=True)  # noqa: T201


def machine() -> dict[str, Any]:
    """Say where the figures come from."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "trialstore": importlib.metadata.version("trialstore"),
    }


def rows_of(path: Path, effort: Effort) -> list[dict[str, Any]]:
    """Return the rows of an earlier run, which must have made the same effort."""
    results = json.loads(path.read_text())
    if results["effort"] != ("full" if effort.is_full else "quick"):
        raise SystemExit(f"{str(path)!r} is of a {results['effort']} campaign")
    rows: list[dict[str, Any]] = results["rows"]
    return rows


def main() -> int:
    """Run the rows asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the few minutes for every change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", metavar="ROW")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--report", type=Path, help="write the page here")
    parser.add_argument(
        "--merge", type=Path, nargs="*", default=[], help="take rows that are not run from these"
    )
    told = parser.parse_args()
    be_modest()  # as the publishers, which would hardly have their turn beside us
    effort = Effort(is_full=not told.quick, seed=told.seed)
    results: dict[str, Any] = {
        "effort": "full" if effort.is_full else "quick",
        "seed": told.seed,
        "machine": machine(),
        "rows": [],
    }
    earlier = {line["number"]: line for path in told.merge for line in rows_of(path, effort)}
    for row in ROWS:
        if told.only is not None and row.number not in told.only:
            line = earlier.get(row.number)
        else:
            line = run_row(row, effort)
            show(line)
        if line is not None:
            results["rows"].append(line)
        if told.json:  # after each row: hours of work are not lost with the last
            told.json.write_text(json.dumps(results, indent=2) + "\n")
    if told.report:
        told.report.write_text(render(results))
    return int(any(line["verdict"] in {"BROKEN", "failed"} for line in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
