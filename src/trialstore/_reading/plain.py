"""Large published tables, read by pandas' own parser: five times faster than cell by cell.

It is told the dtypes that were recorded, and guesses nothing. What it might read in another way
than we do (quotes, missing values, dates, nested values) it does not get to see, or gets as text.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

from trialstore._ondisk.table import is_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from trialstore._ondisk.table import Columns

#: Below this many rows pandas' parser takes longer to set up than ours to finish.
LEAST_ROWS: Final = 1000
#: Kinds of which a column without gaps is parsed at once.
_DTYPES: Final = {"int": "int64", "float": "float64", "str": "object"}
#: The first pandas whose floats are exact without being asked for it, which it then warns of.
_EXACT: Final = (3, 1)


def parse_plain(data: bytes, columns: Columns, rows: int) -> dict[str, Any] | None:
    """Return the columns of a table, or None if it is one to be read cell by cell.

    Guarantee: every float is the nearest to its text, as ``float()`` has it.

    Parameters
    ----------
    data : bytes
        The whole file.
    columns : list
        Its kinds, checked by `check_columns`.
    rows : int
        Its number of rows.

    Returns
    -------
    dict of str to (numpy.ndarray or list of str), or None
        An array is the column itself (int64, float64, or strings as objects); a list has the texts
        of the cells. None also where a cell is not of its kind: reading cell by cell names it.
    """
    names = [name for name, _ in columns]
    if rows < LEAST_ROWS or not is_plain(data) or not data.startswith(_header(names)):
        return None
    dtypes = {name: _DTYPES.get(_only(runs), "object") for name, runs in columns}
    frame = _parsed(data, dtypes)
    if frame is None or len(frame) != rows:
        return None
    return {
        name: frame[name].to_numpy() if _only(runs) in _DTYPES else frame[name].to_list()
        for name, runs in columns
    }


def _header(names: Sequence[str]) -> bytes:
    return (",".join(names) + "\n").encode()


def _only(runs: list[tuple[str, int]]) -> str:
    """Return the kind of all cells, or nothing if there are several."""
    return runs[0][0] if len(runs) == 1 else ""


def _parsed(data: bytes, dtypes: dict[str, str]) -> pd.DataFrame | None:
    import pandas as pd

    floats = [name for name, dtype in dtypes.items() if dtype == "float64"]
    is_exact = tuple(map(int, pd.__version__.split(".")[:2])) >= _EXACT
    precision: dict[str, Any] = {} if is_exact else {"float_precision": "round_trip"}
    try:
        frame: pd.DataFrame = pd.read_csv(
            io.BytesIO(data),
            engine="c",
            dtype=dtypes,
            index_col=False,
            quoting=csv.QUOTE_NONE,
            skip_blank_lines=False,
            keep_default_na=False,
            na_values={name: ["nan"] for name in floats},
            low_memory=False,
            **precision,
        )
    except (ValueError, OverflowError):  # not of the kind, not UTF-8, or too large for the dtype
        return None
    return frame
