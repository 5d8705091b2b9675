r"""``trials.csv`` and ``timing.csv``: pure functions between rows and bytes.

One dialect: UTF-8, ``\n`` at the end of each line, the header first, quotes only where a field
holds a comma, a quote or a line break. A missing value and an empty string are both an empty field,
as pandas and spreadsheets expect; the kinds, which stand in the manifest, tell them apart.
"""

from __future__ import annotations

import re
import reprlib
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from trialstore._errors import FormatError, InvalidTrial
from trialstore._ondisk.values import MISSING, check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trialstore._ondisk.values import NamedCell

#: Each column's name and run-length coded kinds: ``[("rt", [("missing", 1), ("float", 9)])]``.
Runs: TypeAlias = list[tuple[str, int]]
Columns: TypeAlias = list[tuple[str, Runs]]

#: Lines per chunk of a rendered table: enough to be fast, little enough to write a table in pieces.
_CHUNK_LINES: Final = 4096

#: One field; possessive, so that no text can make it backtrack. Line breaks stand only in quotes.
_TEXT: Final = r'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+))'
_FIELD: Final = re.compile(_TEXT + ",")
_RECORD: Final = re.compile(f"(?:{_TEXT},)++")
_BREAKS: Final = re.compile(r'["\r\n]')
_SPECIAL: Final = re.compile(r'[",\r\n]')

_TIMING_NAMES: Final = ("trial", "unix_ns", "monotonic_ns", "first_unix_ns")
_INT64: Final = re.compile(r"-?\d{1,19}", re.ASCII)


def _line(texts: Sequence[str]) -> str:
    """Render one row, as ``csv.QUOTE_MINIMAL`` does."""
    line = ",".join(texts)
    if line.count(",") >= len(texts) or _BREAKS.search(line):
        line = ",".join(map(_quoted, texts))
    return line + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


class _Kinds:
    """Run-length coded kinds of one column."""

    __slots__ = ("counts", "kinds")

    def __init__(self, runs: Iterable[tuple[str, int]]) -> None:
        self.kinds: list[str] = []
        self.counts: list[int] = []
        for kind, count in runs:
            self.kinds.append(kind)
            self.counts.append(count)

    def add(self, kind: str) -> None:
        if self.kinds and self.kinds[-1] == kind:
            self.counts[-1] += 1
        else:
            self.kinds.append(kind)
            self.counts.append(1)


class Table:
    r"""A table that grows row by row and is rendered as CSV whenever somebody wants to look.

    Every row that was added is in every rendering after it, once, and in order. A row costs time in
    proportion to the number of columns, however many rows there are.

    Examples
    --------
    >>> table = Table()
    >>> table.add([("target", "int", "3")])
    >>> table.add([("target", "int", "4"), ("hand", "str", "left")])
    >>> table.render()
    b'target,hand\n3,\n4,left\n'
    >>> table.kinds()
    [('target', [('int', 2)]), ('hand', [('missing', 1), ('str', 1)])]
    """

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, _Kinds] = {}
        self._bare = 0  # rows from before the first column; they have no lines
        self._blocks: list[tuple[int, list[str]]] = []  # lines, by how many fields they have

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order of first appearance."""
        return list(self._columns)

    def add(self, row: Sequence[NamedCell]) -> None:
        """Add one row; columns that are new to it are missing in every row before.

        Parameters
        ----------
        row : sequence of (str, str, str)
            Name, kind and text of each cell, as `encode_attrs` gives them.

        Raises
        ------
        FormatError
            Two cells have the same name; the table is left as it was.
        """
        cells = {name: (kind, text) for name, kind, text in row}
        if len(cells) != len(row):
            raise FormatError(f"a row has two cells of the same name: {[c[0] for c in row]!r:.200}")
        for name in cells:
            if name not in self._columns:
                self._columns[name] = _Kinds([("missing", self._rows)] if self._rows else [])
        texts = []
        for name, column in self._columns.items():
            kind, text = cells.get(name, MISSING)
            column.add(kind)
            texts.append(text)
        self._append(texts)

    def _append(self, texts: Sequence[str]) -> None:
        self._rows += 1
        if not texts:
            self._bare += 1
            return
        if not self._blocks or self._blocks[-1][0] != len(texts):
            self._blocks.append((len(texts), []))
        self._blocks[-1][1].append(_line(texts))

    def kinds(self) -> Columns:
        """Run-length coded kinds of each column, every run as long as it can be."""
        return [
            (name, list(zip(column.kinds, column.counts, strict=True)))
            for name, column in self._columns.items()
        ]

    def render(self) -> bytes:
        """Return the whole table as CSV; without columns, no bytes at all."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole table as CSV, header first, in pieces of some thousand lines."""
        width = len(self._columns)
        if not width:
            return
        yield _line(self.names).encode()
        for portion in _portions(self._bare):
            yield "".join(_widened(["\n"] * len(portion), 1, width)).encode()
        for narrow, lines in self._blocks:
            for portion in _portions(len(lines)):
                piece = lines[portion.start : portion.stop]
                yield "".join(_widened(piece, narrow, width)).encode()

    @classmethod
    def from_csv(cls, data: bytes, columns: Columns, rows: int) -> Table:
        """Take up a table that was published before, to add further rows.

        Parameters
        ----------
        data : bytes
            The whole file, as `render` gave it.
        columns : list
            Its kinds, as `kinds` gave them.
        rows : int
            Its number of rows.

        Raises
        ------
        FormatError
            `data` is not such a table, or does not have these columns and rows.
        """
        names, lines = parse_csv(data)
        table = cls()
        for name, runs in check_columns(columns, rows):
            table._columns[name] = _Kinds(runs)
        if names != table.names or (names and len(lines) != rows):
            raise FormatError(
                f"the table has {len(lines)} rows of {names!r:.200}, "
                f"its description {rows} rows of {table.names!r:.200}"
            )
        for texts in lines:
            table._append(texts)
        table._rows = rows
        table._bare = rows - len(lines)
        return table


def _portions(lines: int) -> Iterator[range]:
    for start in range(0, lines, _CHUNK_LINES):
        yield range(start, min(start + _CHUNK_LINES, lines))


def _widened(lines: Sequence[str], narrow: int, width: int) -> Iterable[str]:
    """Pad lines of `narrow` fields to `width`; a lone empty field must not be a blank line."""
    if width == 1:
        return ('""\n' if line == "\n" else line for line in lines)
    if narrow == width:
        return lines
    end = "," * (width - narrow) + "\n"
    return (line[:-1] + end for line in lines)


def parse_csv(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Read a table of our dialect.

    Parameters
    ----------
    data : bytes
        Any bytes; time and memory are in proportion to their number.

    Returns
    -------
    names : list of str
        Names of the columns; without columns there are no rows either.
    rows : list of list of str
        The texts of each row, as many as there are columns, exactly as they were recorded.

    Raises
    ------
    FormatError
        `data` is not UTF-8, is cut short, has rows of different widths or two columns of one name.
    """
    names, columns = parse_columns(data)
    return names, [list(row) for row in zip(*columns, strict=True)]


def parse_columns(data: bytes) -> tuple[list[str], list[Sequence[str]]]:
    """Read a table as `parse_csv` does, but return the texts of each column.

    Raises
    ------
    FormatError
        As `parse_csv`.
    """
    if not data:
        return [], []
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"the table is not UTF-8 at byte {error.start}") from error
    if not text.endswith("\n"):
        raise FormatError("the table does not end with a line break; it was cut short")
    if '"' in text or "\r" in text:
        names, *rows = _records(text[:-1].split("\n"))
        columns = _transposed(rows, len(names))
    else:
        names, columns = text[: text.index("\n")].split(","), _plain_columns(text, data)
    if len(set(names)) != len(names):
        raise FormatError(f"two columns of the table have the same name: {names!r:.200}")
    return names, columns


def is_plain(data: bytes) -> bool:
    """Whether a table is whole and needs no quotes, so that commas and line breaks alone divide it.

    Parameters
    ----------
    data : bytes
        Any bytes.
    """
    has_others = any(special in data for special in (b'"', b"\r", b"\0"))
    return data.endswith(b"\n") and not has_others and _is_even(data, _plain_width(data))


def _plain_width(data: bytes) -> int:
    return data.count(b",", 0, data.index(b"\n")) + 1


def _is_even(data: bytes, width: int) -> bool:
    """Whether each line of a table without quotes has so many fields."""
    ends = np.frombuffer(data, np.uint8)
    ends = ends[(ends == ord(",")) | (ends == ord("\n"))] == ord("\n")
    if len(ends) % width or not ends[width - 1 :: width].all() or ends.sum() != len(ends) // width:
        return False
    return width > 1 or b"\n\n" not in b"\n" + data


def _plain_columns(text: str, data: bytes) -> list[Sequence[str]]:
    """Columns of a table without quotes: one split of the whole text, some three times faster."""
    width = _plain_width(data)
    if not _is_even(data, width):
        raise FormatError(f"the rows of the table do not all have {width} fields")
    fields = text[:-1].replace("\n", ",").split(",")
    return [fields[column::width] for column in range(width, 2 * width)]


def _transposed(rows: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
    for number, row in enumerate(rows):
        if len(row) != width:
            raise FormatError(f"row {number} of the table has {len(row)} fields instead of {width}")
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _records(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the fields of each record; one with an open quote goes on in the next line."""
    pieces: list[str] = []
    quotes = 0
    for line in lines:
        pieces.append(line)
        quotes += line.count('"')
        if quotes % 2:
            continue
        yield _fields(line if len(pieces) == 1 else "\n".join(pieces), quotes)
        pieces, quotes = [], 0
    if pieces:
        raise FormatError("a quoted field of the table does not end; it was cut short")


def _fields(record: str, quotes: int) -> list[str]:
    if not quotes and "\r" not in record:
        return record.split(",") if record else []
    if _RECORD.fullmatch(record + ",") is None:
        raise FormatError(f"not a record of the table: {record!r:.80}")
    found: list[tuple[str, str]] = _FIELD.findall(record + ",")
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in found]


def check_columns(described: object, rows: int) -> Columns:
    """Check the kinds of a table as they were found in a manifest, that is, somebody's JSON.

    Parameters
    ----------
    described : object
        What `Table.kinds` gave, after a way through JSON.
    rows : int
        How many rows the table has.

    Raises
    ------
    FormatError
        It is not such a structure, or the counts of a column do not add up to `rows`.
    """
    if type(described) is not list or type(rows) is not int or rows < 0:
        raise FormatError(f"not the columns of {rows!r} rows: {reprlib.repr(described)}")
    columns: Columns = []
    for column in described:
        if not _is_list(column, 2) or not _is_list(column[1]):
            raise FormatError(f"not the kinds of a column: {reprlib.repr(column)}")
        columns.append((_checked_name(column[0]), [_checked_run(run) for run in column[1]]))
        if sum(count for _, count in columns[-1][1]) != rows:
            raise FormatError(f"the kinds of column {column[0]!r:.80} are not those of {rows} rows")
    if len(dict(columns)) != len(columns):
        raise FormatError(f"two columns have the same name: {[c[0] for c in columns]!r:.200}")
    return columns


def _is_list(found: object, length: int | None = None) -> bool:
    return isinstance(found, list | tuple) and length in {None, len(found)}


def _checked_name(name: object) -> str:
    try:
        return check_name(name)
    except InvalidTrial as error:
        raise FormatError(f"not the name of a column: {reprlib.repr(name)}") from error


def _checked_run(run: object) -> tuple[str, int]:
    match run:
        case [str() as kind, int() as count] if type(count) is int and count > 0:
            return kind, count
    raise FormatError(f"not a kind and its count: {reprlib.repr(run)}")


class Timing(NamedTuple):
    """When a trial came, in nanoseconds.

    Attributes
    ----------
    trial : int
        Its number.
    unix_ns, monotonic_ns : int
        When it was accepted, by the clock on the wall and by the one that never jumps.
    first_unix_ns : int or None
        When its first chunk came; None for a trial without streamed chunks.
    """

    trial: int
    unix_ns: int
    monotonic_ns: int
    first_unix_ns: int | None


def render_timing(rows: Iterable[tuple[int, int, int, int | None]]) -> bytes:
    """Render ``timing.csv``; `parse_timing` gives the same rows back."""
    lines = [",".join(_TIMING_NAMES)]
    for trial, unix, monotonic, first in rows:
        lines.append(f"{trial},{unix},{monotonic},{'' if first is None else first}")
    return ("\n".join(lines) + "\n").encode()


def parse_timing(data: bytes) -> list[Timing]:
    """Read ``timing.csv``.

    Raises
    ------
    FormatError
        It has other columns, or a field is not an integer of at most 19 digits.
    """
    names, rows = parse_csv(data)
    if names != [*_TIMING_NAMES]:
        raise FormatError(f"timing.csv has the columns {names!r:.200}, not {_TIMING_NAMES!r}")
    timing = []
    for row in rows:
        if not all(map(_INT64.fullmatch, row if row[3] else row[:3])):
            raise FormatError(f"not a row of timing.csv: {row!r:.200}")
        trial, unix, monotonic = map(int, row[:3])
        timing.append(Timing(trial, unix, monotonic, int(row[3]) if row[3] else None))
    return timing
