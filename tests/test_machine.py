"""Any sequence of recording, faults and reading, held against a plain list."""

from __future__ import annotations

import faulthandler
import gc
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.campaign.frame import Outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.leaves_files,
    pytest.mark.skipif(sys.platform != "linux", reason="kills by pidfd"),
]


def test_the_state_machine(tmp_path: Path) -> None:
    """I1 to I6 hold after every step of any sequence of recording, faults and reading.

    Many more of them: ``pytest tests/test_machine.py --hypothesis-profile=campaign``.
    """
    from tests.machine.driver import Nursery
    from tests.machine.machine import machine_for

    # It has a patience of its own, for each answer of a recorder.
    faulthandler.cancel_dump_traceback_later()
    profile = hypothesis.settings.default
    assert profile is not None
    outcome = Outcome("faults")
    with Nursery() as nursery:
        run_state_machine_as_test(
            machine_for(nursery, tmp_path, outcome),
            settings=hypothesis.settings(
                profile,
                max_examples=profile.max_examples // 5,
                stateful_step_count=20,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
    gc.collect()  # readers close their files when they go, and Hypothesis keeps some
    assert outcome.tried
