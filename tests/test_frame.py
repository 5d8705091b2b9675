"""DataFrames: the dtypes that were recorded, no value changed, missing is missing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trialstore._errors import FormatError
from trialstore._ondisk.table import Table
from trialstore._ondisk.values import encode_attrs
from trialstore._reading.frame import (
    build_frame,
    frame_from_csv,
    frame_from_foreign_csv,
    frame_from_rows,
)
from trialstore._reading.plain import parse_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2024, 5, 1, 12)  # noqa: DTZ001  (naive times are recorded, too)
NAN = float("nan")


def frame_of(*values: object) -> pd.DataFrame:
    """The DataFrame of one column ``x``, made both ways; ``...`` leaves the attribute out."""
    return frame_of_attrs([{"i": 0} if value is ... else {"i": 0, "x": value} for value in values])


def frame_of_attrs(attrs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    table = Table()
    rows = [encode_attrs(row) for row in attrs]
    for row in rows:
        table.add(row)
    frame = frame_from_csv(table.render(), table.kinds(), len(table))
    live = frame_from_rows(rows)
    pd.testing.assert_frame_equal(frame, live, check_exact=True)
    assert list(frame.columns) == list(live.columns) == table.names
    return frame


def exactly(a: Any, b: Any) -> bool:
    """Equal and of one kind; NaN equals NaN, whatever it is nested in."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(exactly(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(exactly, a, b))
    if isinstance(a, complex | np.complexfloating):
        return exactly(a.real, b.real) and exactly(a.imag, b.imag)
    return bool(a == b or (a != a and b != b))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, -2, 2**63 - 1], "int64"),
        ([1, 2**64 - 1], "uint64"),
        ([-1, 2**63], "object"),
        ([1, 2**64], "object"),
        ([1 << 3000, 1], "object"),
        ([1, ..., None], "Int64"),
        ([2**64 - 1, None], "UInt64"),
        ([2**64, None], "object"),
        ([np.int64(1), 2], "int64"),
        ([np.int64(1), 2**63], "object"),
        ([np.int8(1), np.int8(-128)], "int8"),
        ([np.uint64(2**64 - 1)], "uint64"),
        ([np.uint16(1), None], "UInt16"),
        ([np.int8(1), 1], "object"),
        ([0.1, NAN, float("-inf")], "float64"),
        ([0.1, NAN, None], "Float64"),
        ([1, 0.5], "float64"),
        ([1, 0.5, None], "Float64"),
        ([2**53, 0.5], "float64"),
        ([2**53 + 1, 0.5], "object"),
        ([10**400, 0.5], "object"),
        ([np.float32(0.1), np.float32("inf")], "float32"),
        ([np.float32(0.1), None], "Float32"),
        ([np.float16(0.1)], "float16"),
        ([np.float16(0.1), None], "object"),
        ([np.float32(0.1), 0.1], "object"),
        ([np.longdouble("0.1")], np.dtype(np.longdouble)),
        ([1j, 2 + 0.5j], "complex128"),
        ([np.complex64(1j)], "complex64"),
        ([1j, None], "object"),
        ([True, False], "bool"),
        ([True, None, ...], "boolean"),
        ([True, 1], "object"),
        (["007", "", "nan", "None", "NA", "True"], "object"),
        (["1", None], "object"),
        (["1", 1], "object"),
        ([None, ...], "object"),
        ([b"\x00", b""], "object"),
        ([[1], (2,), {"a": [NAN]}], "object"),
        ([date(2024, 5, 1)], "object"),
        ([NOON, None], "datetime64[us]"),
        ([NOON.replace(year=1), NOON.replace(year=9999)], "datetime64[us]"),
        ([NOON.replace(fold=1)], "object"),
        ([NOON.replace(tzinfo=UTC), None], "datetime64[us, UTC]"),
        ([NOON.replace(tzinfo=BERLIN)], "datetime64[us, Europe/Berlin]"),
        ([NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=UTC)], "object"),
        ([NOON.replace(tzinfo=BERLIN), NOON], "object"),
        ([datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN)], "object"),
        ([datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1)], "datetime64[us, Europe/Berlin]"),
        ([datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))], "datetime64[us, UTC+05:00]"),
        ([np.datetime64(NOON, "ns"), None], "datetime64[ns]"),
        ([np.datetime64("2024", "Y"), None], "datetime64[s]"),
        ([np.datetime64("2024-05-01", "D")], "datetime64[s]"),
        ([np.int64(2**62).view("M8[D]")], "object"),
        ([np.int64(5).view("M8[25s]")], "object"),
        ([np.int64(5).view("M8[ps]")], "object"),
        ([np.datetime64("NaT", "ns")], "datetime64[ns]"),
        ([np.datetime64("NaT", "ns"), None], "object"),
        ([np.timedelta64(5, "h"), None], "timedelta64[s]"),
        ([np.timedelta64(5, "ms")], "timedelta64[ms]"),
        ([np.timedelta64(5, "M")], "object"),
        ([timedelta(days=-1), None], "timedelta64[us]"),
        ([timedelta.max], "object"),
        ([pd.Timestamp(1).as_unit("ns"), None], "datetime64[ns]"),
        ([pd.Timestamp(1, tz="UTC").as_unit("ns")], "datetime64[ns, UTC]"),
        ([pd.Timestamp(1).as_unit("s"), pd.Timestamp(1).as_unit("ns")], "object"),
        ([pd.Timedelta(5).as_unit("ms"), None], "timedelta64[ms]"),
    ],
    ids=repr,
)
def test_a_column_has_the_dtype_that_was_recorded(values: list[Any], dtype: Any) -> None:
    """Each mixture of types gets the dtype of the table, and each value is the one recorded."""
    frame = frame_of(*values)
    assert str(frame["x"].dtype) == str(dtype)
    assert frame["x"].isna().tolist() == [
        value is ... or value is None or (dtype != "Float64" and value != value) for value in values
    ]
    for found, value in zip(frame["x"], values, strict=True):
        if value is not None and value is not ...:
            assert exactly(found, value)
            assert dtype != "object" or type(found) is type(value)


def test_strings_stay_strings() -> None:
    """Leading zeros, the word None and the empty string come back as they are."""
    frame = frame_of("007", "None", "", None, "nan")
    assert frame["x"][0] == "007"
    assert frame["x"].tolist() == ["007", "None", "", None, "nan"]


def test_a_nan_is_not_a_missing_value() -> None:
    """A NaN that was measured and a value that was not given can be told apart."""
    column = frame_of(NAN, None, 1.0)["x"]
    assert np.isnan(column[0])
    assert column[1] is pd.NA
    assert column.isna().tolist() == [False, True, False]
    objects = frame_of(NAN, None, "a")["x"]
    assert np.isnan(objects[0])
    assert objects[1] is None


def test_the_order_is_that_of_first_appearance() -> None:
    """Columns come in the order in which trials brought them; rows are numbered from 0."""
    frame = frame_of_attrs([{}, {"b": 1}, {"a": "x", "b": 2}])
    assert list(frame.columns) == ["b", "a"]
    assert frame.index.equals(pd.RangeIndex(3))
    assert frame["b"].isna().tolist() == [True, False, False]


def test_trials_without_attributes_are_rows() -> None:
    """A table without columns still has its rows, and an empty one has none."""
    assert frame_of_attrs([{}, {}]).shape == (2, 0)
    assert frame_of_attrs([]).shape == (0, 0)
    empty = build_frame([("a", [], [])], 0)
    assert (list(empty.columns), len(empty)) == (["a"], 0)


def test_a_frame_can_be_worked_with() -> None:
    """Filtering, grouping and assigning work as with any DataFrame."""
    frame = frame_of_attrs([{"hand": hand, "rt": rt} for hand, rt in [("l", 1.0), ("r", 2.0)] * 5])
    assert frame[frame["hand"] == "l"]["rt"].mean() == 1.0
    assert frame.groupby("hand")["rt"].sum().to_dict() == {"l": 5.0, "r": 10.0}
    frame.loc[0, "rt"] = 7.0
    frame["new"] = frame["rt"] * 2
    assert frame.loc[0, "new"] == 14.0


ZONED = st.datetimes(timezones=st.sampled_from([BERLIN, UTC, timezone(timedelta(hours=-3))]))
TIMES64 = st.builds(
    lambda count, unit, kind: np.int64(count).view(f"{kind}8[{unit}]"),
    st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**9), 10**9),
    st.sampled_from(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "25s"]),
    st.sampled_from("mM"),
)
COLUMN_VALUES: list[st.SearchStrategy[Any]] = [
    st.integers(),
    st.integers(0, 2**64),
    st.integers(-128, 127).map(np.int8),
    st.integers(0, 2**64 - 1).map(np.uint64),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.floats().map(np.longdouble),
    st.integers() | st.floats(),
    st.booleans(),
    st.text(),
    st.sampled_from(["", "007", "nan", "None", "NA", '"', "\r", "a,b\n", "\0"]),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.datetimes(),
    st.datetimes(timezones=st.just(BERLIN), allow_imaginary=True),
    ZONED,
    st.dates(),
    st.times(),
    st.timedeltas(),
    TIMES64,
    st.integers(0, 3 * 10**18).map(pd.Timestamp),
    st.integers(0, 3 * 10**18).map(lambda n: pd.Timestamp(n, tz=BERLIN)),
    st.integers(-(10**18), 10**18).map(pd.Timedelta),
    st.lists(st.integers() | st.floats() | st.text(), max_size=2),
    st.lists(st.integers() | ZONED, max_size=2).map(tuple),
    st.dictionaries(st.text(max_size=2), st.none() | st.floats(), max_size=2),
]
COLUMN = st.sampled_from(COLUMN_VALUES).flatmap(
    lambda values: st.lists(st.one_of(values, values, st.none(), st.just(...)), max_size=6)
)
MIXED = st.lists(st.one_of(*COLUMN_VALUES, st.none(), st.just(...)), max_size=6)


@given(COLUMN | MIXED)
@example([0, 0.5, 2**53 + 1])
@example([np.float32(1e-45), None])
def test_csv_and_journal_give_the_same_frame(values: list[Any]) -> None:
    """Live rows and the published table make equal frames that hold each recorded value."""
    frame = frame_of(*values)
    if "x" not in frame:
        assert all(value is ... for value in values)
        return
    for row, value in enumerate(values):
        found = frame["x"][row]
        if value is None or value is ...:
            assert found is None or found is pd.NA or found is pd.NaT
        else:
            assert exactly(found, value) or (pd.isna(value) and found is pd.NaT)


@pytest.mark.parametrize(
    ("runs", "texts", "where"),
    [
        ([("int", 2)], ["1", "1.5"], "column 'x', row 1"),
        ([("int", 2)], ["1", ""], "column 'x', row 1"),
        ([("int", 1), ("missing", 1)], ["1", "2"], "column 'x', row 1"),
        ([("int", 2)], ["1,2", "3"], "column 'x', row 0"),
        ([("int8", 2)], ["1", "128"], "column 'x', row 1"),
        ([("int64", 1), ("int", 1)], [str(2**63), "1"], "column 'x', row 0"),
        ([("float", 2)], ["1", "1_0"], "column 'x', row 1"),
        ([("float", 1), ("int64", 1)], ["1", str(2**70)], "column 'x', row 1"),
        ([("float32", 2)], ["1", "1e39"], "column 'x', row 1"),
        ([("bool", 2)], ["True", "true"], "column 'x', row 1"),
        ([("int[9]", 2)], ["1", "2"], "column 'x', row 0"),
        ([("datetime64[bogus]", 2)], ["1", "2"], "column 'x', row 0"),
        ([("Timestamp[s]", 2)], ["@1", "1"], "column 'x', row 1"),
        ([("int", 3)], ["1", "2"], "column 'x' has 2 cells"),
        ([("int", 1)], ["1", "2"], "column 'x' has 2 cells"),
    ],
    ids=repr,
)
def test_a_cell_that_is_not_of_its_kind_is_named(
    runs: list[tuple[str, int]], texts: list[str], where: str
) -> None:
    """Damage in a table is told by column and row; no other value is put in its place."""
    with pytest.raises(FormatError, match=where):
        build_frame([("x", runs, texts)], 2)


FUZZED_KINDS = st.sampled_from(
    [
        *("int", "int8", "uint64", "float", "float16", "float32", "longdouble", "bool", "str"),
        *("missing", "complex", "bytes", "datetime", "datetime[Europe/Berlin]", "date", "json"),
        *("timedelta", "datetime64[ns]", "timedelta64[Y]", "Timestamp[s]", "Timedelta[ns]", "no"),
        *("Timestamp[ns, Europe/Berlin]", "datetime64", "datetime fold=1", "datetime64[x]"),
    ]
)
FUZZED_TEXTS = st.sampled_from(
    [
        *("", "0", "-1", "1e400", "nan", "9" * 30, "2024-01-01T00:00:00", "NaT", "True", "[1]"),
        *("2024-01-01T00:00:00+01:00", "0001-01-01T00:00:00+14:00", "1 days 00:00:00", "@5"),
        *("9999-12-31T23:59:59-14:00", "@9223372036854775807", "@-9223372036854775807+00:00"),
        *("106751991 days 00:00:00", "-99999999999999 days +01:00:00", "(1+2j)", "00", "x"),
    ]
)


@given(st.lists(st.tuples(FUZZED_KINDS, FUZZED_TEXTS | st.text(max_size=5)), max_size=3))
def test_only_format_errors_come_out(cells: list[tuple[str, str]]) -> None:
    """Any kinds and texts make a frame or raise FormatError, without a warning."""
    runs = [(kind, 1) for kind, _ in cells]
    try:
        frame = build_frame([("x", runs, [text for _, text in cells])], len(cells))
    except FormatError:
        return
    assert len(frame) == len(cells)


def test_a_table_of_other_columns_is_refused() -> None:
    """The manifest's columns and those of the file must be the same, in order."""
    with pytest.raises(FormatError, match="'a'"):
        frame_from_csv(b"a\n1\n", [("b", [("int", 1)])], 1)
    with pytest.raises(FormatError, match="2 rows"):
        frame_from_csv(b"a\n1\n", [("a", [("int", 2)])], 2)


def test_a_large_table_is_exact() -> None:
    """The quick way through a large plain table gives the same as one value at a time."""
    rng = np.random.default_rng(7)
    attrs: list[dict[str, Any]] = [
        {"n": int(n), "u": int(u), "x": float(x), "b": bool(n % 2), "s": f"w{n}"}
        for n, u, x in zip(
            rng.integers(-(2**62), 2**62, 5000),
            rng.integers(0, 2**64, 5000, np.uint64),
            rng.standard_normal(5000) * 10.0 ** rng.integers(-300, 300, 5000),
            strict=True,
        )
    ]
    frame = frame_of_attrs(attrs)
    assert frame.to_dict("records") == attrs
    assert [str(dtype) for dtype in frame.dtypes] == [
        "int64",
        "uint64",
        "float64",
        "bool",
        "object",
    ]


def plain_table(**columns: Any) -> tuple[pd.DataFrame, bool]:
    """The frame of a table long enough for pandas' parser, and whether that one read it."""
    table = Table()
    attrs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in attrs:
        table.add(encode_attrs(row))
    data, kinds, rows = table.render(), table.kinds(), len(table)
    return frame_of_attrs(attrs), parse_plain(data, kinds, rows) is not None


def test_pandas_parser_gives_the_same_as_cell_by_cell() -> None:
    """Any bits of a float, NaN, texts that look like something else, and gaps come back."""
    bits = np.random.default_rng(3).integers(0, 2**64, 3000, np.uint64)
    floats = bits.view(np.float64).tolist()
    floats[:4] = [NAN, float("inf"), float("-inf"), -0.0]
    texts = ["", "nan", "NA", "None", " x ", "007", "1e3", "\u00e4", "#", "-"]
    frame, is_quick = plain_table(
        x=floats,
        n=list(range(-1500, 1500)),
        s=[texts[row % len(texts)] for row in range(3000)],
        b=[row % 7 == 0 for row in range(3000)],
        gaps=[None if row % 5 else row for row in range(3000)],
        mixed=[row if row % 2 else row / 8 for row in range(3000)],
    )
    assert is_quick
    found = frame["x"].to_numpy()
    expected = np.array(floats)
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), is_nan)
    assert np.array_equal(found.view(np.int64)[~is_nan], expected.view(np.int64)[~is_nan])
    assert frame["s"].tolist()[:10] == texts
    assert [str(dtype) for dtype in frame.dtypes] == [
        *("float64", "int64", "object", "bool", "Int64", "float64"),
    ]


@pytest.mark.parametrize("odd", ["a,b", 'say "x"', "two\nlines", "nul\0", "\r"])
def test_what_needs_quotes_is_read_cell_by_cell(odd: str) -> None:
    """Texts that pandas' parser would take apart come back whole."""
    frame, is_quick = plain_table(s=["x"] * 1500 + [odd], n=list(range(1501)))
    assert not is_quick
    assert frame["s"].iloc[-1] == odd


@pytest.mark.parametrize("change", [(b"\n7,7\n", b"\n7,7,7\n"), (b"\n7,7\n", b"\n7\n")])
def test_a_large_table_of_uneven_rows_is_refused(change: tuple[bytes, bytes]) -> None:
    """A row that is too long or too short is no row, however many there are."""
    table = Table()
    for row in range(2000):
        table.add(encode_attrs({"a": row, "b": row}))
    data = table.render()
    assert change[0] in data
    with pytest.raises(FormatError, match="fields"):
        frame_from_csv(data.replace(*change), table.kinds(), len(table))


def test_axopys_tables_are_read_as_axopy_reads_them() -> None:
    """A table that pandas wrote comes back as pandas reads it."""
    written = pd.DataFrame({"block": [0, 0], "x": [0.5, NAN], "hand": ["left", "right"]})
    frame = frame_from_foreign_csv(written.to_csv(index=False).encode(), "trials.csv")
    pd.testing.assert_frame_equal(frame, written)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe\n\x81", b'a\n"1\n', b"a,b\n1,2\n1,2,3\n"])
def test_a_foreign_table_that_is_broken_is_named(data: bytes) -> None:
    """What pandas cannot read raises FormatError with the name of the file."""
    with pytest.raises(FormatError, match=r"'p0/trials\.csv'"):
        frame_from_foreign_csv(data, "p0/trials.csv")


@given(st.binary() | st.text('a",\n\r1\0', max_size=30).map(str.encode))
def test_only_format_errors_come_out_of_foreign_tables(data: bytes) -> None:
    """Any bytes are a DataFrame or a FormatError."""
    try:
        frame = frame_from_foreign_csv(data, "trials.csv")
    except FormatError:
        return
    assert isinstance(frame, pd.DataFrame)
