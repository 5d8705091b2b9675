"""A little of the fault campaign in every test run: power cuts and failing write-back on ext4."""

from __future__ import annotations

import pytest

from tests.campaign import forgetful
from tests.campaign.frame import CannotRun, Effort
from tests.campaign.lanes import in_lanes
from tests.campaign.powercuts import cut_power, cut_power_behind_a_reader
from tests.campaign.scarcity import fail_write_back
from tests.test_campaign_kills import run

pytestmark = pytest.mark.slow


def test_the_power_is_cut() -> None:
    """Every durable trial is on the disk, before and after publication."""
    run(cut_power, 5)


def test_the_power_is_cut_behind_a_reader() -> None:
    """What a reader was shown is there after a power cut."""
    run(cut_power_behind_a_reader, 5)


def test_write_back_fails() -> None:
    """No trial that was called durable is missing when the kernel could not write everything."""
    run(fail_write_back, 2)


@pytest.mark.parametrize(
    ("mutant", "tries"),
    [
        (forgetful.cut_power_without_folder_sync, 4),
        (forgetful.cut_power_without_file_sync, 10),
        (forgetful.cut_power_without_published_sync, 10),
        (forgetful.simulate_without_file_sync, 40),
        (forgetful.simulate_without_folder_sync, 40),
    ],
)
def test_missing_syncs_are_noticed(mutant: forgetful.Tries, tries: int) -> None:
    """The checks see what a forgotten fsync loses: they can fail."""
    try:
        outcome = in_lanes(mutant, Effort(), tries, lanes=1)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert not outcome.is_clean
