"""The rows of the campaign, in the order of the table of faults.

Each module of rows has a tuple ``ROWS`` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.campaign import (
    endings,
    forgetful,
    interruptions,
    kills,
    model,
    mutations,
    powercuts,
    processes,
    recoveries,
    scarcity,
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
        ),
        key=lambda row: row.number,
    )
)
