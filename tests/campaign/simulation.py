"""Row 5: the power is cut at every moment of a recording, on a simulated disk."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign.frame import Outcome, Row
from tests.power import check, two_lives
from trialstore.testing import PowerCutDisk, use

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaign.frame import Effort
    from tests.power import Life


def cut_power(effort: Effort) -> Outcome:
    """Record two tasks' lives once, then look at states of the disk that a cut may leave."""
    outcome = Outcome("states of the disk")
    logging.getLogger("trialstore").setLevel(logging.CRITICAL)  # failing over is what is tried
    with effort.workspace(memory=True) as folder:
        world = folder / "world"
        world.mkdir()
        disk = PowerCutDisk(world)
        lives = _record(disk, world)
        states = disk.states(limit=effort.of(150, 4000), seed=effort.seed)
        outcome.figures["operations of the recording"] = disk.position
        outcome.figures["states that were possible"] = states.total
        for state in states:
            after = folder / "after"
            disk.materialise(state, after)
            outcome.tried += 1
            outcome.acknowledged += sum(len(life.acknowledged(state.position)) for life in lives)
            try:
                check(state, after, lives)
            except AssertionError as error:
                outcome.breach("silent", str(error))
            shutil.rmtree(after)
    return outcome


def _record(disk: PowerCutDisk, world: Path) -> list[Life]:
    async def record() -> list[Life]:
        return await two_lives(world / "data", disk)

    with use(disk):
        return anyio.run(record)


ROWS: Final = (
    Row(
        5,
        "Power cut, simulated: unsynced bytes kept, dropped, zeroed, garbage, torn",
        "Every acknowledged trial is there in every state; published paths hold verified sets.",
        cut_power,
    ),
)
