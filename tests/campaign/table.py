"""The rows of the campaign, in the order of the table of faults.

Each module of rows has a tuple ``ROWS`` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.campaign import model, mutations

if TYPE_CHECKING:
    from tests.campaign.frame import Row

ROWS: Final[tuple[Row, ...]] = tuple(
    sorted((*model.ROWS, *mutations.ROWS), key=lambda row: row.number)
)
