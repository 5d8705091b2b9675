"""A little of the fault campaign in every test run: stopped, robbed, forked and ended recorders."""

from __future__ import annotations

import pytest

from tests.campaign.endings import end_in_every_way
from tests.campaign.processes import break_the_lock, fork_a_recorder, stop_a_recorder
from tests.test_campaign_kills import run

pytestmark = pytest.mark.slow


def test_stopped() -> None:
    """Nobody else gets the task of a stopped recorder, and it goes on when it is woken."""
    run(stop_a_recorder, 2)


def test_the_lock_is_broken() -> None:
    """The successor's trials are unharmed by a recorder that wakes up late."""
    run(break_the_lock, 4)


def test_forked() -> None:
    """A forked child cannot write, and does not keep the lock."""
    run(fork_a_recorder, 4)


def test_ended_in_every_way() -> None:
    """After every normal end everything accepted is there, on every event loop."""
    run(end_in_every_way, 28)
