"""A little of the fault campaign in every test run: kills, in recording, recovery, publication."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.campaign.frame import CannotRun, Effort
from tests.campaign.interruptions import kill_while_recording
from tests.campaign.kills import kill_at_random
from tests.campaign.lanes import in_lanes
from tests.campaign.recoveries import kill_while_publishing, kill_while_recovering
from tests.campaign.scarcity import run_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.frame import Outcome
    from tests.campaign.lanes import Lane

pytestmark = pytest.mark.slow


def run(function: Callable[[Lane], Outcome], tries: int) -> None:
    """Make a few tries in one lane; nothing may be lost, wrong or broken."""
    try:
        outcome = in_lanes(function, Effort(), tries, lanes=1)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert outcome.is_clean, "\n".join(outcome.problems)


def test_killed_at_random_times() -> None:
    """What was acknowledged is there; the next recorder goes on where the last was killed."""
    run(kill_at_random, 20)


def test_killed_at_calls_of_the_disk() -> None:
    """Whichever call it was, what was durable is there and recording goes on."""
    run(kill_while_recording, 8)


def test_killed_while_recovering() -> None:
    """Recovery that was killed twice ends as one clean recovery does."""
    run(kill_while_recovering, 8)


def test_killed_while_publishing() -> None:
    """A published path holds nothing or a whole set, and publishing again gives the same files."""
    run(kill_while_publishing, 8)


def test_out_of_memory() -> None:
    """What does not fit into memory is refused as a whole; the publisher's death costs nothing."""
    run(run_out_of_memory, 4)
