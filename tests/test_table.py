"""trials.csv and timing.csv: what goes in comes out, for us and for every other program."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trialstore._errors import FormatError
from trialstore._ondisk.table import (
    Table,
    check_columns,
    parse_columns,
    parse_csv,
    parse_timing,
    render_timing,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trialstore._ondisk.values import NamedCell

NASTY = st.text('",\r\n\0 \ufeff\u2028a;\t\x85é', max_size=5) | st.text(max_size=5)
NAMES = st.text('", ab;é=', min_size=1, max_size=3)
CELLS = st.tuples(st.sampled_from(["str", "json", "bytes"]), NASTY) | st.just(("missing", ""))
ROWS = st.lists(
    st.dictionaries(NAMES, CELLS, max_size=4).map(lambda row: [(n, *row[n]) for n in row]),
    max_size=12,
)


def grown(rows: Sequence[Sequence[NamedCell]]) -> Table:
    table = Table()
    for row in rows:
        table.add(row)
    return table


def model(rows: Sequence[Sequence[NamedCell]]) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """The table as the simplest code there is would hold it."""
    names = list(dict.fromkeys(name for row in rows for name, _, _ in row))
    cells = [{name: (kind, text) for name, kind, text in row} for row in rows]
    return names, [[row.get(name, ("missing", "")) for name in names] for row in cells]


def unrolled(table: Table) -> list[list[str]]:
    return [[kind for kind, count in runs for _ in range(count)] for _, runs in table.kinds()]


@given(ROWS)
@example([[], [], [("a", "str", "x")]])
@example([[("a", "missing", "")], [("a", "str", "")]])
@example([[("a", "str", "\r")], [("b", "str", '"')]])
def test_a_table_holds_its_rows(rows: list[list[NamedCell]]) -> None:
    """Names, texts and kinds are those of the rows, older rows padded, however it grew."""
    names, cells = model(rows)
    table = grown(rows)
    texts = [[text for _, text in row] for row in cells]
    assert len(table) == len(rows)
    assert table.names == names
    assert unrolled(table) == [[row[c][0] for row in cells] for c in range(len(names))]
    assert parse_csv(table.render()) == (names, texts if names else [])
    for _, runs in table.kinds():
        assert all(a[0] != b[0] for a, b in pairwise(runs))


@given(ROWS)
def test_other_programs_read_the_same(rows: list[list[NamedCell]]) -> None:
    """Python's csv module reads the same fields from a table."""
    names, cells = model(rows)
    text = grown(rows).render().decode()
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    expected = [names, *[[text for _, text in row] for row in cells]]
    assert read == (expected if names else [])


@given(ROWS)
def test_quotes_only_where_needed(rows: list[list[NamedCell]]) -> None:
    """The bytes are those of csv.QUOTE_MINIMAL, so that a diff shows only what changed."""
    names, cells = model(rows)
    lines = []
    for fields in [names, *[[text for _, text in row] for row in cells]] if names else []:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(fields)
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    assert grown(rows).render().decode() == "".join(lines)


@given(ROWS, ROWS)
def test_a_published_table_goes_on(before: list[Any], after: list[Any]) -> None:
    """A table taken up from its file and its kinds grows as if it had never been away."""
    table = grown(before)
    kinds = json.loads(json.dumps(table.kinds()))
    resumed = Table.from_csv(table.render(), check_columns(kinds, len(table)), len(table))
    for row in after:
        table.add(row)
        resumed.add(row)
    assert resumed.render() == table.render()
    assert resumed.kinds() == table.kinds()
    assert len(resumed) == len(table)


def test_a_new_column_pads_every_row_before() -> None:
    """Columns stand in order of first appearance; a row without one has an empty field."""
    table = grown([[("a", "int", "1")], [("b", "str", "x"), ("a", "int", "2")], []])
    assert table.render() == b"a,b\n1,\n2,x\n,\n"
    assert table.kinds() == [
        ("a", [("int", 2), ("missing", 1)]),
        ("b", [("missing", 1), ("str", 1), ("missing", 1)]),
    ]


def test_a_lone_missing_value_is_a_row_for_pandas_too() -> None:
    """One column with nothing in it is not a blank line, which pandas would skip."""
    data = grown([[("a", "missing", "")], [("a", "int", "1")], []]).render()
    assert data == b'a\n""\n1\n""\n'
    assert len(pd.read_csv(io.BytesIO(data))) == 3


def test_without_columns_there_are_rows_but_no_bytes() -> None:
    """Trials without attributes are counted, and get their fields when a column appears."""
    table = grown([[]] * 3)
    assert (len(table), table.names, table.kinds(), table.render()) == (3, [], [], b"")
    resumed = Table.from_csv(b"", [], 3)
    resumed.add([("a", "int", "1"), ("b", "int", "2")])
    assert resumed.render() == b"a,b\n,\n,\n,\n1,2\n"


def test_a_row_with_a_name_twice_changes_nothing() -> None:
    """A refused row leaves the table as it was."""
    table = grown([[("a", "int", "1")]])
    with pytest.raises(FormatError, match="'b'"):
        table.add([("b", "int", "1"), ("b", "int", "2")])
    assert table.render() == b"a\n1\n"


def test_chunks_are_the_table() -> None:
    """A long table comes in pieces that join to what render() gives."""
    rows: list[list[NamedCell]] = [[("a", "int", str(row))] for row in range(10_000)]
    table = grown([*[[]] * 9_000, *rows])
    table.add([("b", "int", "1")])
    chunks = list(table.chunks())
    assert len(chunks) > 3
    assert b"".join(chunks) == table.render()
    assert parse_csv(table.render())[1][9_000:-1] == [[str(row), ""] for row in range(10_000)]


def test_long_fields_are_read() -> None:
    """A field longer than the csv module's limit of 128 KiB comes back."""
    text = 'a,"\n' * 100_000
    table = grown([[("a", "json", text)], [("a", "str", "b" * 10**6)]])
    assert parse_csv(table.render()) == (["a"], [[text], ["b" * 10**6]])


def test_pandas_reads_an_ordinary_table() -> None:
    """Without trialstore, pandas sees numbers as numbers and missing values as missing."""
    rows: list[list[NamedCell]] = [
        [("n", "int", "1"), ("x", "float", "0.5"), ("s", "str", "a,\nb")],
        [("n", "int", "2"), ("x", "missing", ""), ("s", "str", 'say "hi"')],
    ]
    frame = pd.read_csv(io.BytesIO(grown(rows).render()))
    assert frame["n"].tolist() == [1, 2]
    assert frame["x"].isna().tolist() == [False, True]
    assert frame["s"].tolist() == ["a,\nb", 'say "hi"']


@pytest.mark.parametrize(
    "data",
    [
        b"a,b\n1,2",
        b"a,b\n1\n",
        b"a,b\n1,2,3\n",
        b"a,b\n1,2,3\n4\n",
        b"a,b\n1\n2\n",
        b"a,b\n\n1,2\n",
        b"a\n\n",
        b"\n",
        b"\n1\n",
        b"a,a\n1,2\n",
        b"a\n\xff\n",
        b'a\n"1\n',
        b'a\n1"\n',
        b'a\n1"2"\n',
        b'a\n"1"2\n',
        b'a,b\n"1"\n',
        b'a,b\n"1","2"\n\n',
        b"a\r\n1\r\n",
        b"a\n1\r2\n",
    ],
    ids=repr,
)
def test_what_we_never_write_is_refused(data: bytes) -> None:
    """A table that is cut, ragged or of another dialect raises FormatError."""
    with pytest.raises(FormatError):
        parse_csv(data)


@given(st.binary() | st.text('a",\n\r1', max_size=30).map(str.encode))
def test_only_format_errors_come_out_of_the_parsers(data: bytes) -> None:
    """Any bytes parse to a rectangular table or raise FormatError."""
    try:
        names, rows = parse_csv(data)
    except FormatError:
        pass
    else:
        assert all(len(row) == len(names) for row in rows)
        assert len(set(names)) == len(names)
    with suppress(FormatError):
        parse_timing(data)


@given(st.text('a",\n\r1', max_size=30))
def test_what_is_read_is_what_is_written(text: str) -> None:
    """A table that parses means the same after it was parsed and written again."""
    try:
        names, rows = parse_csv(text.encode())
    except FormatError:
        return
    table = grown([[(n, "str", t) for n, t in zip(names, row, strict=True)] for row in rows])
    if rows:
        assert parse_csv(table.render()) == (names, rows)


@pytest.mark.parametrize("cut", range(1, 34))
def test_a_cut_table_is_never_read_as_whole(cut: int) -> None:
    """Every prefix but those that end with a row is refused; those are caught by their kinds."""
    table = grown([[("a", "str", "x,y"), ("b", "str", "1\n2")], [("b", "int", "3")], []])
    data = table.render()
    with pytest.raises(FormatError):
        Table.from_csv(data[: len(data) - cut], table.kinds(), len(table))


def test_hostile_quotes_take_linear_time() -> None:
    """Megabytes of quotes are refused or read without backtracking."""
    for text in ('"' * 10**6, '"a' * 10**6, 'a\n"' + '"",' * 10**6, '"\n' * 10**6):
        try:
            parse_csv((text + "\n").encode())
        except FormatError as error:
            assert len(str(error)) < 1000  # noqa: PT017


@pytest.mark.parametrize(
    "described",
    [
        None,
        {},
        [1],
        [["a"]],
        [["a", 3]],
        [["a", []]],
        [["a", [["int", 2]]]],
        [["a", [["int", 4]]]],
        [["a", [["int", 4], ["int", -1]]]],
        [["a", [["int", 3], ["int", 0]]]],
        [["a", [["int", True], ["int", 2]]]],
        [["a", [["int", 3.0]]]],
        [["a", [[3, 3]]]],
        [["a", [["int"]]]],
        [["", [["int", 3]]]],
        [["a\n", [["int", 3]]]],
        [[7, [["int", 3]]]],
        [["a", [["int", 3]]], ["a", [["int", 3]]]],
        [["a", [["int", 10**30]]]],
        "ab",
    ],
    ids=repr,
)
def test_columns_from_a_strangers_manifest_are_checked(described: object) -> None:
    """Whatever is not the kinds of three rows raises FormatError."""
    with pytest.raises(FormatError):
        check_columns(described, 3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=8,
)
KINDS = st.lists(st.tuples(st.text(), st.lists(st.tuples(st.text(), JSON), max_size=3)), max_size=3)


@given(JSON | KINDS, st.integers(0, 3) | JSON)
def test_only_format_errors_come_out_of_the_check(described: Any, rows: Any) -> None:
    """Any JSON is either the kinds of a table or a FormatError."""
    try:
        columns = check_columns(described, rows)
    except FormatError:
        return
    assert all(sum(count for _, count in runs) == rows for _, runs in columns)


def test_a_described_table_must_be_the_one_in_the_file() -> None:
    """Names and number of rows of file and manifest must agree."""
    data = b"a\n1\n2\n"
    for columns, rows in (
        ([("b", [("int", 2)])], 2),
        ([("a", [("int", 3)])], 3),
        ([], 2),
        ([("a", [("int", 2)]), ("b", [("int", 2)])], 2),
    ):
        with pytest.raises(FormatError):
            Table.from_csv(data, columns, rows)


def test_columns_are_parsed_without_rows() -> None:
    """A header alone is a table of columns without values."""
    assert parse_columns(b"a,b\n") == (["a", "b"], [[], []])
    names, columns = parse_columns(b'a,"b,"\n')
    assert (names, [list(column) for column in columns]) == (["a", "b,"], [[], []])


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(st.integers(0, 2**40), INT64, INT64, st.none() | INT64)))
def test_timing_comes_back(rows: list[tuple[int, int, int, int | None]]) -> None:
    """Nanoseconds are exact, and a trial without chunks has no first one."""
    assert parse_timing(render_timing(rows)) == rows
    if rows:
        frame = pd.read_csv(io.BytesIO(render_timing(rows)))
        assert frame["unix_ns"].tolist() == [row[1] for row in rows]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"trial,unix_ns\n1,2\n",
        b"trial,unix_ns,monotonic_ns,first_unix_ns\n1,2,,\n",
        b"trial,unix_ns,monotonic_ns,first_unix_ns\n1,2,x,\n",
        b"trial,unix_ns,monotonic_ns,first_unix_ns\n1,2,3.0,4\n",
        b"trial,unix_ns,monotonic_ns,first_unix_ns\n1,2,1_0,4\n",
        "trial,unix_ns,monotonic_ns,first_unix_ns\n1,2,٣,4\n".encode(),
        b"trial,unix_ns,monotonic_ns,first_unix_ns\n1,2," + b"9" * 5000 + b",4\n",
    ],
)
def test_a_foreign_timing_is_refused(data: bytes) -> None:
    """Anything but our four columns of integers raises FormatError."""
    with pytest.raises(FormatError):
        parse_timing(data)
