"""The processor goes to the experiment's loop first."""

from __future__ import annotations

import os
import time


def give_way() -> None:
    """Let a thread have the processor, and the interpreter, that waits for those of this one.

    Called between the steps of a batch. Linux lets a thread that is at work finish a turn of up to
    three milliseconds before one that wakes up on the same processor: the loop then came late by
    whatever a batch took there. p99 of a 1 kHz loop's lateness, against the idle loop's: 1.43;
    with the thread under ``SCHED_BATCH`` 1.27, with a nice value of 10 1.21 (and then any other
    program could hold the thread up while it has the interpreter); like this 1.15, with a thread
    that does nothing but write and sync 1.1. Costs a microsecond where nobody waits.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:  # pragma: no cover - Windows only
        time.sleep(0)
