"""``python -m tests.soak --minutes N``: record, let everything go wrong, compare everything.

Progress every ten seconds, a JSON summary at the end; exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import anyio
import numpy as np

from tests.soak import footprint
from tests.soak.content import array_of, attrs_of
from tests.soak.recording import Experiment, Ledger, Plan
from tests.soak.sick import SickDisk
from trialstore import StorageError, TaskReader
from trialstore._ondisk.disk import use
from trialstore._recording import publisher

#: A publisher that was killed at the last moment begins again, at the lowest priority.
_PATIENCE: Final = 120.0
_WARM_UP: Final = 60.0


def main() -> int:
    """Run the soak as told on the command line; return the exit code."""
    told = _arguments()
    logging.getLogger("trialstore").setLevel(logging.CRITICAL)  # it warns of every stall, rightly
    folder = Path(tempfile.mkdtemp(prefix="trialstore-soak-", dir=told.folder))
    seconds = told.minutes * 60
    plan = Plan(folder / "data", seconds, block=told.block, seed=told.seed)
    disk = SickDisk(told.seed, told.stall_every, told.fail_every)
    experiment = Experiment(plan, disk)
    reader = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.reader", str(plan.root), str(told.seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        with use(disk):
            options = {"use_uvloop": told.backend == "uvloop"} if told.backend != "trio" else {}
            loop = "trio" if told.backend == "trio" else "asyncio"
            anyio.run(experiment.run, backend=loop, backend_options=options)
        read = json.loads(reader.communicate(timeout=_PATIENCE)[0])
    finally:
        reader.kill()
        reader.wait()
    ledger = experiment.ledger
    _judge(ledger, read, plan)
    summary = _summary(ledger, disk, read, told, seconds)
    print(json.dumps(summary, indent=2))  # noqa: T201
    if told.json:
        told.json.write_text(json.dumps(summary, indent=2) + "\n")
    if ledger.problems:
        print(f"the data are kept in {folder}")  # noqa: T201
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--backend", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    parser.add_argument("--block", type=int, default=40, help="trials of a block")
    parser.add_argument("--stall-every", type=float, default=8.0, metavar="SECONDS")
    parser.add_argument("--fail-every", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--folder", type=Path, help="where to record; default: temporary files")
    parser.add_argument("--json", type=Path, help="write the summary here too")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _judge(ledger: Ledger, read: dict[str, Any], plan: Plan) -> None:
    """Compare every accepted trial, and what the process takes up, with what they must be."""
    for problem in read["problems"]:
        ledger.breach(f"reader: {problem}")
    for (subject, name), (number, count) in ledger.tasks.items():
        _compare(ledger, plan.root / subject / name, number, count)
    warm = [look for seconds, look in ledger.looks if seconds >= min(_WARM_UP, plan.seconds / 3)]
    for grown in warm[-1].growth_over(warm[0]):
        ledger.breach(f"grown between two rounds, {grown}")
    publisher.reap()  # what was left to itself has ended; the next Storage would do it
    left = footprint.look()
    if left.children or left.zombies:
        ledger.breach(f"left behind: {left}")


def _compare(ledger: Ledger, folder: Path, number: int, count: int) -> None:
    """Hold one task against what was recorded, bit for bit."""
    reader = TaskReader(folder)
    end = time.monotonic() + _PATIENCE
    while (folder / "journal").is_dir() and time.monotonic() < end:
        time.sleep(0.1)
    try:
        if reader.status != "complete" or reader.losses:
            ledger.breach(f"{folder}: {reader.status}, {reader.losses}")
        rows = reader.trials
        if rows["n"].tolist() != list(range(count)):
            ledger.breach(f"{folder}: {len(rows)} of {count} trials")
        for trial, values in enumerate(rows.to_dict("records")):
            expected = attrs_of(number, trial)
            if {name: values[name] for name in expected if name in values} != expected:
                ledger.breach(f"{folder}: row {trial} is {values}")
        for trial, array in enumerate(reader.iterarray("emg")):
            if array is None or not np.array_equal(array, array_of(number, trial)):
                ledger.breach(f"{folder}: samples of trial {trial}")
            ledger.counts["trials compared"] += 1
    except StorageError as error:
        ledger.breach(f"{folder}: {error!r}")


def _summary(
    ledger: Ledger,
    disk: SickDisk,
    read: dict[str, Any],
    told: argparse.Namespace,
    seconds: float,
) -> dict[str, Any]:
    late = np.sort(ledger.lateness) * 1e3
    looks = {f"{seconds:.0f} s": look._asdict() for seconds, look in ledger.looks}
    kept = list(looks)[:: max(1, len(looks) // 10)]
    return {
        "backend": told.backend,
        "seconds": seconds,
        "tasks": len(ledger.tasks),
        "trials": ledger.trials,
        **dict(sorted(ledger.counts.items())),
        "stalls of the disk": disk.stalls,
        "seconds stalled": round(disk.stalled_seconds, 1),
        "errors of the disk": disk.failures,
        "trials followed live": read["followed"],
        "windows read": read["reads"],
        "loop lateness, ms": {
            f"p{share}": round(float(late[min(int(len(late) * share / 100), len(late) - 1)]), 2)
            for share in (50, 99, 99.9, 100)
        },
        "footprints": {name: looks[name] for name in kept},
        "problems": ledger.problems,
    }


if __name__ == "__main__":
    sys.exit(main())
