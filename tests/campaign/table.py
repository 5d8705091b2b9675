"""The rows of the campaign, in the order of the table of faults.

Each module of rows has a tuple ``ROWS`` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.campaign import (
    afterwards,
    clockfaults,
    damage,
    diskfaults,
    endings,
    forgetful,
    fullfaults,
    interruptions,
    kills,
    limitfaults,
    model,
    mutations,
    powercuts,
    processes,
    recoveries,
    rofaults,
    scarcity,
    simulation,
    slowfaults,
    strayfaults,
    watching,
)

if TYPE_CHECKING:
    from tests.campaign.frame import Row

ROWS: Final[tuple[Row, ...]] = tuple(
    sorted(
        (
            *model.ROWS,
            *mutations.ROWS,
            *kills.ROWS,
            *interruptions.ROWS,
            *recoveries.ROWS,
            *powercuts.ROWS,
            *forgetful.ROWS,
            *scarcity.ROWS,
            *processes.ROWS,
            *endings.ROWS,
            *clockfaults.ROWS,
            *diskfaults.ROWS,
            *fullfaults.ROWS,
            *limitfaults.ROWS,
            *rofaults.ROWS,
            *slowfaults.ROWS,
            *strayfaults.ROWS,
            *simulation.ROWS,
            *damage.ROWS,
            *afterwards.ROWS,
            *watching.ROWS,
        ),
        key=lambda row: row.number,
    )
)
