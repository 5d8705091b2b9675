"""One measurement: a function of ours in a fresh process, pinned as all others are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.benchmarks.frame import Figures

ROOT: Final = Path(__file__).parents[2]
#: No measurement of ours takes so long; one that does is told of instead of waited for.
_PATIENCE: Final = 300.0


class MeasurementFailed(Exception):
    """The process of a measurement ended without figures; the message holds its last words."""


def measure(
    function: Callable[..., Figures],
    *,
    environment: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Figures:
    """Call a module-level function in a fresh process and return its figures.

    Parameters
    ----------
    function : callable
        Takes and returns what JSON can hold.
    environment : Mapping, optional
        Added to the environment: what `tests.shims` gives, for a slow disk.

    Raises
    ------
    MeasurementFailed
        The process ended without figures.
    """
    told = dict(os.environ, PYTHONPATH=os.pathsep.join((str(ROOT), *filter(None, sys.path))))
    told |= environment or {}
    name = f"{function.__module__}:{function.__qualname__}"
    os.sync()  # what an earlier measurement left in the page cache is none of this one's business
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.measure", name],
            input=json.dumps(parameters, default=str).encode(),
            capture_output=True,
            timeout=_PATIENCE,
            cwd=ROOT,
            env=told,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise MeasurementFailed(f"{name} {parameters}: nothing after {_PATIENCE:.0f} s") from late
    try:
        figures: Figures = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        words = ended.stderr.decode(errors="replace")[-2000:]
        raise MeasurementFailed(f"{name} {parameters}: exit {ended.returncode}\n{words}") from None
    return figures
