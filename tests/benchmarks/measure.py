"""The process of one measurement: ``python -m tests.benchmarks.measure MODULE:FUNCTION``.

Parameters come as JSON on standard input, figures go as one line of JSON to standard output.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from tests.benchmarks.frame import Figures

#: The machine that the targets are set for has two cores; more would hide what disturbs the loop.
_CORES: Final = 2


def pin() -> None:
    """Let this process and its children run on two cores, the same ones for every measurement."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])


def conclude(figures: Figures) -> NoReturn:
    """Tell the figures and end at once, whatever is still open, and all children with us."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
    for child in children():
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    os._exit(0)


def children() -> list[int]:
    """Process numbers of our children (none where the system does not tell)."""
    found = []
    for told in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(number) for number in told.read_text().split()]
    return found


def main() -> NoReturn:
    """Call the function that is named on the command line."""
    pin()
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    conclude(function(**json.load(sys.stdin)))


if __name__ == "__main__":
    main()
