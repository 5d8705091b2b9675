"""The rows of the benchmarks, in the order of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.benchmarks import rows_calls, rows_ends, rows_loop, rows_read, rows_write

if TYPE_CHECKING:
    from tests.benchmarks.frame import Row

ROWS: Final[tuple[Row, ...]] = (
    *rows_loop.ROWS,
    *rows_calls.ROWS,
    *rows_write.ROWS,
    *rows_ends.ROWS,
    *rows_read.ROWS,
)
