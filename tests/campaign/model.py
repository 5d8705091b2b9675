"""Any sequence of recording, faults and reading, chosen by Hypothesis and held against a list."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import hypothesis
import hypothesis.core
import hypothesis.errors
from hypothesis.stateful import run_state_machine_as_test

from tests.campaign.frame import CannotRun, Outcome, Row
from tests.machine.driver import Nursery
from tests.machine.machine import machine_for
from tests.machine.model import Breach

if TYPE_CHECKING:
    from tests.campaign.frame import Effort


def row_model(effort: Effort) -> Outcome:
    """Run the state machine; the first breach ends it.

    Raises
    ------
    CannotRun
        Where processes cannot be killed by descriptor.
    """
    if sys.platform != "linux":
        raise CannotRun("recorders are killed through Linux's process descriptors")
    outcome = Outcome("faults")
    settings = hypothesis.settings(
        max_examples=effort.of(40, 150),
        stateful_step_count=effort.of(20, 40),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        # Not made shorter: kills depend on time, and the story is told in full.
        phases=[hypothesis.Phase.generate],
    )
    before = hypothesis.core.global_force_seed
    hypothesis.core.global_force_seed = effort.seed  # type: ignore[assignment] # as its own --hypothesis-seed does
    try:
        with effort.workspace(memory=True) as folder, Nursery() as nursery:
            run_state_machine_as_test(machine_for(nursery, folder, outcome), settings=settings)
    except (Breach, BaseExceptionGroup, hypothesis.errors.FlakyStrategyDefinition):
        if not outcome.problems:  # those the machine has told of itself
            raise
    finally:
        hypothesis.core.global_force_seed = before
    return outcome


ROWS: Final = (
    Row(
        38,
        "any sequence of the above (state machine)",
        "I1 to I6 hold after every step",
        row_model,
    ),
)
