"""A reader beside a recorder that is killed and taken up: whole trials, and no false alarm."""

from __future__ import annotations

import pytest

from tests.campaign.lanes import Lane
from tests.campaign.watching import watch


@pytest.mark.slow
def test_a_live_reader_sees_a_growing_prefix_of_whole_trials() -> None:
    """A sample of what the campaign does for millions of polls, on the disk and in memory."""
    outcome = watch(Lane(number=0, lanes=1, count=400, seed=1, is_full=False))
    assert outcome.is_clean, outcome.problems
    assert {"journals in memory", "journals on the disk"} <= outcome.figures.keys()
