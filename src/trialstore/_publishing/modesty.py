"""The child's priority: below everything else, from its first moment.

Loads nothing, so that it is done before the interpreter loads NumPy and h5py: a tenth of a second
of work beside an experiment's first ticks.
"""

from __future__ import annotations

import contextlib
import os


def be_modest() -> None:
    """Take the lowest priority that the system offers."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
