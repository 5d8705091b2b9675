"""From cells to a DataFrame, with the dtypes that were recorded and nothing guessed.

Which dtype a column gets is in `trialstore._reading.columns`.
"""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

from trialstore._errors import FormatError
from trialstore._ondisk.table import parse_columns
from trialstore._reading.columns import Column, decode_cell, series_of
from trialstore._reading.plain import parse_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from trialstore._ondisk.table import Columns, Runs
    from trialstore._ondisk.values import NamedCell

    #: Name, run-length coded kinds and texts of each column.
    Cells = list[tuple[str, Runs, Sequence[str]]]

__all__ = [
    "build_frame",
    "columns_from_csv",
    "columns_from_rows",
    "decode_cell",
    "frame_from_csv",
    "frame_from_foreign_csv",
    "frame_from_rows",
    "joined",
    "rows_of",
    "without",
]


def columns_from_csv(data: bytes, columns: Columns) -> Cells:
    """Return the columns of a published table, with what its manifest says of their kinds.

    Raises
    ------
    FormatError
        `data` is not a table of these columns.
    """
    names, texts = parse_columns(data)
    if names != [name for name, _ in columns]:
        raise FormatError(f"the table has the columns {names!r:.200}, its manifest names others")
    return [(name, runs, cells) for (name, runs), cells in zip(columns, texts, strict=True)]


def columns_from_rows(rows: Sequence[Sequence[NamedCell]]) -> Cells:
    """Return the columns of the table that rows, as the journal holds them, become.

    Raises
    ------
    FormatError
        A row names a column twice.
    """
    tables = []
    for names, group in itertools.groupby(rows, key=_names_of):
        if len(set(names)) != len(names):
            raise FormatError(f"a row has two cells of the same name: {names!r:.200}")
        alike = list(group)
        columns: Cells = []
        for place, name in enumerate(names):
            runs = _runs_of([row[place][1] for row in alike])
            columns.append((name, runs, [row[place][2] for row in alike]))
        tables.append((columns, len(alike)))
    return joined(tables)


def _names_of(row: Sequence[NamedCell]) -> tuple[str, ...]:
    return tuple([name for name, _, _ in row])


def _runs_of(kinds: list[str]) -> Runs:
    if kinds.count(kinds[0]) == len(kinds):  # as in most columns, and ten times faster to find out
        return [(kinds[0], len(kinds))]
    return [(kind, sum(1 for _ in run)) for kind, run in itertools.groupby(kinds)]


def joined(tables: Sequence[tuple[Cells, int]]) -> Cells:
    """Put tables, of so many rows each, below one another; a column that one lacks is missing."""
    known = [({name: (runs, texts) for name, runs, texts in cells}, rows) for cells, rows in tables]
    result: Cells = []
    for name in dict.fromkeys(name for cells, _ in tables for name, _, _ in cells):
        all_runs: Runs = []
        all_texts: list[str] = []
        for columns, rows in known:
            runs, texts = columns.get(name, ([("missing", rows)] if rows else [], [""] * rows))
            if all_runs and runs and all_runs[-1][0] == runs[0][0]:
                (kind, count), *runs = runs
                all_runs[-1] = (kind, all_runs[-1][1] + count)
            all_runs += runs
            all_texts += texts
        result.append((name, all_runs, all_texts))
    return result


def without(columns: Cells, rows: Sequence[int]) -> Cells:
    """Leave out some rows, given by number."""
    unwanted = set(rows)
    result: Cells = []
    for name, runs, texts in columns:
        kinds = [kind for kind, count in runs for _ in range(count)]
        kept = [row for row in range(len(texts)) if row not in unwanted]
        new_runs = _runs_of([kinds[row] for row in kept]) if kept else []
        result.append((name, new_runs, [texts[row] for row in kept]))
    return result


def rows_of(columns: Cells, rows: int) -> list[list[NamedCell]]:
    """Return name, kind and text of the cells of each row, missing ones left out."""
    found: list[list[NamedCell]] = [[] for _ in range(rows)]
    for name, runs, texts in columns:
        start = 0
        for kind, count in runs:
            if kind != "missing":
                for row in range(start, start + count):
                    found[row].append((name, kind, texts[row]))
            start += count
    return found


def frame_from_csv(data: bytes, columns: Columns, rows: int) -> pd.DataFrame:
    """Make the DataFrame of a published table.

    Parameters
    ----------
    data : bytes
        The whole ``trials.csv``.
    columns : list
        Its kinds, checked by `check_columns`.
    rows : int
        Its number of rows (a table without columns can have some, too).

    Raises
    ------
    FormatError
        `data` is not a table of these columns and rows, or a cell is not of its kind.
    """
    parsed = parse_plain(data, columns, rows)
    if parsed is None:
        return build_frame(columns_from_csv(data, columns), rows)
    import pandas as pd

    index = pd.RangeIndex(rows)
    series = {
        name: series_of(Column(name, runs, cells), index)
        if isinstance(cells := parsed[name], list)
        # With its dtype, or pandas 3 makes its own kind of string of objects that are all texts.
        else pd.Series(cells, index=index, dtype=cells.dtype, copy=False)
        for name, runs in columns
    }
    return pd.DataFrame(series, index=index, columns=list(series))


def frame_from_rows(rows: Sequence[Sequence[NamedCell]]) -> pd.DataFrame:
    """Make the DataFrame of rows as the journal holds them, equal to that of the table they become.

    Parameters
    ----------
    rows : sequence of sequence of (str, str, str)
        Name, kind and text of the cells of each trial.

    Raises
    ------
    FormatError
        A row names a column twice, or a cell is not of its kind.
    """
    return build_frame(columns_from_rows(rows), len(rows))


def frame_from_foreign_csv(data: bytes, name: str) -> pd.DataFrame:
    """Read a table that trialstore did not write, as AxoPy reads its own: what pandas makes of it.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        What to call the file in errors.

    Raises
    ------
    FormatError
        pandas cannot read it.
    """
    import pandas as pd

    try:
        return pd.read_csv(io.BytesIO(data), low_memory=False)
    except (ValueError, OverflowError, RecursionError) as error:  # ParserError is a ValueError
        raise FormatError(f"{name!r} is not a CSV table that pandas can read: {error}") from error


def build_frame(columns: Sequence[tuple[str, Runs, Sequence[str]]], rows: int) -> pd.DataFrame:
    """Make a DataFrame of decoded columns.

    Parameters
    ----------
    columns : sequence of (str, list of (str, int), sequence of str)
        Name, run-length coded kinds and texts of each column; names are unique.
    rows : int
        Length of every column.

    Returns
    -------
    pandas.DataFrame
        Index ``0 ... rows - 1``; dtypes as the table in `trialstore._reading.columns` has them.

    Raises
    ------
    FormatError
        A column has another length, or a cell is not of its kind; the message names both.

    Examples
    --------
    >>> build_frame([("code", [("str", 1), ("missing", 1)], ["007", ""])], 2)["code"].tolist()
    ['007', None]
    """
    import pandas as pd

    index = pd.RangeIndex(rows)
    series = {}
    for name, runs, texts in columns:
        if len(texts) != rows or sum(count for _, count in runs) != rows:
            raise FormatError(f"column {name!r} has {len(texts)} cells in a table of {rows} rows")
        series[name] = series_of(Column(name, runs, texts), index)
    return pd.DataFrame(series, index=index, columns=list(series))
