"""Cells: every value comes back as it was, and what is not data is refused by name."""

from __future__ import annotations

import enum
import math
import pickle
import re
import subprocess
import sys
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trialstore._errors import FormatError, InvalidTrial
from trialstore._ondisk.values import MAX_DEPTH, MAX_ITEMS, decode_value, encode_attrs
from trialstore._reading.columns import decode_cell

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = st.sampled_from(
    [
        BERLIN,
        ZoneInfo("America/New_York"),
        ZoneInfo("Asia/Kathmandu"),
        ZoneInfo("UTC"),
        UTC,
        timezone(timedelta(hours=-3, minutes=-30)),
        timezone(timedelta(seconds=3661, microseconds=7)),
    ]
)
_LEAST = np.nextafter(np.longdouble(0), np.longdouble(1))
Point = namedtuple("Point", "x y")  # noqa: PYI024  (as users write them)


class Hand(enum.StrEnum):
    LEFT = "left"


class Block(enum.IntEnum):
    FIRST = 1


class Colour(enum.Enum):
    RED = "red"


def encode(value: object) -> tuple[str, str]:
    ((name, kind, text),) = encode_attrs({"x": value})
    assert name == "x"
    return kind, text


def same(a: Any, b: Any) -> bool:
    """Equal, of one type, with the same sign of zero, however nested; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, complex | np.complexfloating):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, float | np.floating):
        signs = math.copysign(1, a) == math.copysign(1, b)
        return bool((np.isnan(a) and np.isnan(b)) or (a == b and signs))
    if isinstance(a, np.datetime64 | np.timedelta64):
        return a.dtype == b.dtype and int(a.view(np.int64)) == int(b.view(np.int64))
    if isinstance(a, datetime | time):
        marks = [(v.isoformat(), v.fold, getattr(v.tzinfo, "key", None)) for v in (a, b)]
        return marks[0] == marks[1]
    return bool(a == b)


def numpy_scalars() -> st.SearchStrategy[Any]:
    ints = [
        st.integers(int(np.iinfo(code).min), int(np.iinfo(code).max)).map(np.dtype(code).type)
        for code in "bhilBHIL"
    ]
    f16 = st.integers(0, 2**16 - 1).map(lambda bits: np.uint16(bits).view(np.float16))
    f32 = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))
    thirds = st.integers(1, 10**6).map(lambda n: np.longdouble(n) / np.longdouble(3))
    scales = st.floats(allow_subnormal=True).map(np.longdouble)
    smalls = st.integers(-(2**64), 2**64).map(lambda n: np.longdouble(n) * _LEAST)
    longs = scales | st.tuples(scales, thirds).map(lambda p: p[0] + p[1]) | smalls
    c64 = st.integers(0, 2**64 - 1).map(lambda bits: np.uint64(bits).view(np.complex64))
    clong = st.tuples(longs, longs).map(lambda p: np.array(p).view(np.clongdouble)[0])
    return st.one_of(*ints, f16, f32, longs, c64, clong)


def numpy_times() -> st.SearchStrategy[Any]:
    units = ["Y", "M", "W", "D", "h", "m", "s", "25s", "ms", "us", "ns", "ps", "fs", "as"]
    counts = st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**6), 10**6)
    return st.builds(
        lambda count, unit, kind: np.int64(count).view(f"{kind}8[{unit}]"),
        counts,
        st.sampled_from(units),
        st.sampled_from("mM"),
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=ZONES | st.none(), allow_imaginary=True),
    st.builds(
        lambda value, fold: value.replace(fold=fold),
        st.datetimes(timezones=ZONES | st.none()),
        st.integers(0, 1),
    ),
    st.times(timezones=ZONES | st.none()),
    st.timedeltas(),
    numpy_scalars(),
    numpy_times(),
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.just("$a") | st.just("$dict"), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(SCALARS | NESTED)
@example(datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN))
@example(datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1))
@example(datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN))
@example({"$tuple": [1]})
@example(np.int64(2**61 - 1).view("M8[W]"))  # NumPy does not read back what it writes
@example(timedelta.max)
@example(timedelta.min)
@example([{"$dict": [["$x", (1, 2)]]}, 1 << 9000])
def test_every_supported_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    """decode(encode(value)) is the value, down to type, sign, zone, fold and unit."""
    kind, text = encode(value)
    assert type(kind) is str
    assert type(text) is str
    text.encode()
    assert same(decode_value(kind, text), value)


@given(st.integers(0, 2**16 - 1))
def test_float16_is_exact(bits: int) -> None:
    """Each of the 65 536 half floats comes back."""
    value = np.uint16(bits).view(np.float16)
    assert same(decode_value(*encode(value)), value)


@pytest.mark.parametrize("digits", [640, 4300, 4301, 100_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_of_any_size_whatever_python_allows(digits: int, sign: int) -> None:
    """Neither writing nor reading an int depends on sys.set_int_max_str_digits."""
    value = sign * (1 << (digits * 10 // 3)) - 1
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert decode_value(*encode(value)) == value
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "missing", ""),
        (pd.NA, "missing", ""),
        (pd.NaT, "missing", ""),
        (True, "bool", "True"),
        (np.bool_(False), "bool", "False"),
        (-17, "int", "-17"),
        (0.1, "float", "0.1"),
        (float("-inf"), "float", "-inf"),
        (np.float64(0.1), "float", "0.1"),
        (1 + 2j, "complex", "(1+2j)"),
        (np.complex128(1 + 2j), "complex", "(1+2j)"),
        ("007", "str", "007"),
        (np.str_("é"), "str", "é"),
        (b"\x00\xff", "bytes", "00ff"),
        (np.bytes_(b"ab"), "bytes", "6162"),
        (date(2024, 5, 1), "date", "2024-05-01"),
        (datetime(2024, 5, 1, 12, tzinfo=UTC), "datetime", "2024-05-01T12:00:00+00:00"),
        (
            datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
            "datetime[Europe/Berlin] fold=1",
            "2024-10-27T02:30:00+01:00",
        ),
        (timedelta(milliseconds=-500), "timedelta", "-1 days +23:59:59.500000"),
        (np.int8(-3), "int8", "-3"),
        (np.uint64(2**64 - 1), "uint64", "18446744073709551615"),
        (np.float32(0.1), "float32", "0.1"),
        (np.float32(1e30), "float32", "1e+30"),
        (np.datetime64("2024-05-01T12", "h"), "datetime64[h]", "2024-05-01T12"),
        (np.timedelta64(1500, "ms"), "timedelta64[ms]", "1500"),
        (np.array(3.5), "float", "3.5"),
        (np.array(3, np.int16), "int16", "3"),
        (Hand.LEFT, "str", "left"),
        (Block.FIRST, "int", "1"),
        ([1, None, float("nan")], "json", "[1, null, NaN]"),
        ({"a": [True, "é"]}, "json", '{"a": [true, "é"]}'),
        ((1, (2,)), "tuple", '[1, {"$tuple": [2]}]'),
        (Point(1, 2), "tuple", "[1, 2]"),
        (OrderedDict(b=1, a=2), "json", '{"b": 1, "a": 2}'),
        ([np.float64(0.5), Block.FIRST, Hand.LEFT, pd.NA], "json", '[0.5, 1, "left", null]'),
    ],
    # The type too: NumPy 1 prints its scalars as Python's.
    ids=lambda given: f"{type(given).__name__} {given!r}",
)
def test_the_encoding_is_fixed(value: object, kind: str, text: str) -> None:
    """Kind and text of each type are part of the format: files of today are read tomorrow."""
    assert encode(value) == (kind, text)


def test_order_and_names_are_kept() -> None:
    """Cells come in the order of the mapping."""
    cells = encode_attrs({"b": 1, "a": "x", "reaction time / ms": None})
    assert [cell[0] for cell in cells] == ["b", "a", "reaction time / ms"]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Path("a"),
        Colour.RED,
        len,
        {1, 2},
        bytearray(b"a"),
        memoryview(b"a"),
        range(3),
        pd.Series([1]),
        np.void(b"a"),
        np.ma.masked,
        [Path("a")],
        {1: "a"},
        {"\ud800": 1},
        "\ud800",
        ["\udfff"],
        int,
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),  # the same in every process
)
def test_what_is_not_data_is_refused_by_name(value: object) -> None:
    """A value that no cell can hold raises InvalidTrial with the name of its attribute."""
    with pytest.raises(InvalidTrial, match="attribute 'bad one' "):
        encode_attrs({"good": 1, "bad one": value})


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((1, 1)), np.ma.array(1, mask=True)])
def test_arrays_are_sent_to_where_arrays_belong(value: object) -> None:
    """The error for an array says which calls take one."""
    with pytest.raises(InvalidTrial, match=r"'x' is an array; use add_array\(\)"):
        encode(value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\nb",
        "a\0",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202e",
        "\ufeff",
        "\ud800",
        3,
        None,
        b"a",
        ("a",),
    ],
)
def test_names_that_would_break_a_table_are_refused(name: Any) -> None:
    """A column's name is a non-empty string without control characters."""
    with pytest.raises(InvalidTrial, match="name"):
        encode_attrs({name: 1})


@pytest.mark.parametrize(
    "name", ["a", "µV", "名前", "a b", "a\u00a0b", "=1+1", "a,b", 'a"b', "👩‍🔬"]
)
def test_names_of_any_script_are_kept(name: str) -> None:
    """What a person can read is a name, quotes and commas included."""
    assert encode_attrs({name: 1}) == [(name, "int", "1")]


@pytest.mark.parametrize("attrs", [None, 3, [("a", 1)], "ab", object()])
def test_attributes_that_are_no_mapping_are_refused(attrs: Any) -> None:
    """Anything without items() is InvalidTrial, not an AttributeError."""
    with pytest.raises(InvalidTrial, match="must be a mapping"):
        encode_attrs(attrs)


def test_two_names_that_become_one_are_refused() -> None:
    """Names that differ only by their type would be one column twice."""

    class Odd(str):
        __slots__ = ()
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            return self is other

    with pytest.raises(InvalidTrial, match="same name"):
        encode_attrs({"a": 1, Odd("a"): 2})


class _Trap:
    """Every way to run code by looking at a value."""

    def _sprung(self, *_: object) -> Any:
        raise AssertionError("the user's code was run")

    __repr__ = __str__ = __int__ = __float__ = __index__ = __iter__ = __len__ = _sprung
    __hash__ = __eq__ = __format__ = __reduce__ = __array__ = isoformat = _sprung
    __class__ = property(_sprung)


def test_no_code_of_the_users_is_run_by_a_refused_value() -> None:
    """Refusing an object does not even ask for its repr."""
    with pytest.raises(InvalidTrial, match="'x' is of type _Trap"):
        encode(_Trap())


def test_no_code_of_the_users_is_run_by_a_subclass() -> None:
    """Subclasses of plain types are read by the methods of the plain type."""

    def sprung(*_: object) -> Any:
        raise AssertionError("the user's code was run")

    traps: dict[str, Any] = dict.fromkeys(
        ["__repr__", "__str__", "__int__", "__iter__", "items", "isoformat", "__format__"], sprung
    )
    values = [7, 0.5, "a", b"a", 1j, [1], {"a": 1}, (1,), date(2024, 1, 1), datetime(2024, 1, 1)]  # noqa: DTZ001
    for value in values:
        base: Any = type(value)
        plain = encode(value)
        arguments = (2024, 1, 1) if isinstance(value, date) else (value,)
        assert encode(type("Sub", (base,), traps)(*arguments)) == plain


def test_a_zone_that_fails_is_the_trials_fault() -> None:
    """An exception in a tzinfo of the user's comes out as InvalidTrial with its cause."""

    def fails(*_: object) -> timedelta:
        raise OSError("no")

    broken: Any = type("Broken", (tzinfo,), {"utcoffset": fails})
    with pytest.raises(InvalidTrial, match="'x' could not be read") as caught:
        encode(datetime(2024, 1, 1, tzinfo=broken()))
    assert isinstance(caught.value.__cause__, OSError)


def test_nested_values_are_bounded() -> None:
    """Lists that hold themselves, are too deep or too many, are refused and do not hang."""
    loop: list[object] = []
    loop += [loop, loop]
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    laughs: object = 1
    for _ in range(40):
        laughs = [laughs, laughs]
    for value in (loop, deep, laughs, [0] * (MAX_ITEMS + 1)):
        with pytest.raises(InvalidTrial, match="contains itself"):
            encode(value)


def test_later_changes_do_not_reach_a_cell() -> None:
    """A cell holds what the value was when it was encoded."""
    value = {"a": [1]}
    (cell,) = encode_attrs({"x": value})
    value["a"].append(2)
    assert decode_value(*cell[1:]) == {"a": [1]}


KINDS = [
    *("missing", "bool", "int", "float", "complex", "str", "bytes", "date", "timedelta", "json"),
    *("tuple", "int8", "int64", "uint64", "float16", "float32", "longdouble", "complex64"),
    *("clongdouble", "nonsense", "datetime", "time"),
    *("datetime[Europe/Berlin]", "datetime[Nowhere/Else] fold=1", "datetime[../x]", "time fold=1"),
    *("time[Asia/Tokyo]", "datetime64", "datetime64[ns]", "datetime64[25s]", "datetime64[0s]"),
    *("timedelta64", "timedelta64[Y]", "Timestamp[ns]", "Timestamp[s, Europe/Berlin]"),
    *("Timedelta[us]", "Timestamp[x]", "datetime[", "int[3]", ""),
]
TEXTS = st.one_of(
    st.text(),
    st.text('0123456789-+.eE_ xjnaif()[]{}",:$TNZ@d', max_size=40),
    st.sampled_from(
        [
            *("1e999999999999999999999999", "-1e400", "1e-99999", "nan", "snan", "1_0", " 1", "٣"),
            *("2024-01-01T00:00:00Z", "2024-01-01T00:00:00+01:00", "2024-W01-1", "20240101", "NaT"),
            *("@9223372036854775808", "@-9223372036854775808", "99999-01-01T00:00:00", "0x", "-0x"),
            *("9" * 5000, "0x" + "f" * 5000, "[" * 100_000, '{"$tuple": 3}', '{"$dict": [1]}'),
            *('{"$json": "[]"}', '{"$int": 3}', '{"$int": "a"}', '{"a":' * 5000, "[1" + "0" * 5000),
            *("999999999999999 days 00:00:00", "-1 days 00:00:00", "0 days 24:00:00"),
            *("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "-5000-01-01T00:00:00"),
        ]
    ),
)


@given(st.sampled_from(KINDS) | st.text(), TEXTS)
def test_only_format_errors_come_out(kind: str, text: str) -> None:
    """Any two strings decode to a value or raise FormatError, without a warning."""
    for decode in (decode_value, decode_cell):
        try:
            decode(kind, text)
        except FormatError as error:
            assert repr(kind)[:20] in str(error) or repr(kind)[:20] in str(error.__cause__)  # noqa: PT017


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "x"),
        ("bool", "true"),
        ("int", "1_000"),
        ("int", " 1"),
        ("int", "٣"),
        ("int8", "128"),
        ("float", "1_0.5"),
        ("float", ""),
        ("float32", "1e39"),
        ("longdouble", "1e9999"),
        ("bytes", "0 0"),
        ("bytes", "AB"),
        ("date", "20240101"),
        ("datetime", "2024-01-01"),
        ("datetime[Europe/Berlin]", "2024-01-01T00:00:00"),
        ("datetime[../../etc/passwd]", "2024-01-01T00:00:00+00:00"),
        ("datetime64[D]", "2024-01-01T12"),
        ("datetime64[ns]", "2500-01-01T00:00:00.000000000"),
        ("timedelta", "0 days 00:00:61"),
        ("timedelta", "0 days 00:00:00.000000001"),
        ("json", "3"),
        ("json", '[{"$json": "[]"}]'),
        ("tuple", "{}"),
        ("Timestamp[ns]", "NaT"),
        ("decimal", "1"),
    ],
)
def test_what_we_never_write_is_not_guessed_at(kind: str, text: str) -> None:
    """A text that a lenient parser would take, cut or overflow is refused."""
    with pytest.raises(FormatError):
        decode_value(kind, text)


def test_a_zone_nobody_knows_keeps_its_offset() -> None:
    """Where the zone is unknown or has new rules, instant and clock time stay as recorded."""
    text = "2024-01-01T12:00:00+01:00"
    expected = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    for kind in ("datetime[Mars/Olympus]", "datetime[Asia/Tokyo]"):
        value = decode_value(kind, text)
        assert value == expected
        assert value.isoformat() == text  # type: ignore[attr-defined]


STAMPS = st.builds(
    lambda count, unit, zone: (
        pd.Timestamp(np.datetime64(count, unit))
        if zone is None
        else pd.Timestamp(np.datetime64(count, unit)).tz_localize("UTC").tz_convert(zone)
    ),
    st.integers(0, 3 * 10**9),  # before 1970 the zones of pandas 2 (pytz) differ from zoneinfo
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.none() | st.sampled_from([UTC, BERLIN, "Asia/Kathmandu", timezone(timedelta(hours=-5))]),
)


@given(STAMPS)
@example(pd.Timestamp("2024-10-27T01:30:00.123456789", tz="UTC").tz_convert("Europe/Berlin"))
@example(pd.Timestamp.max)
@example(pd.Timestamp.min)
def test_pandas_timestamps_keep_their_nanoseconds_unit_and_zone(value: pd.Timestamp) -> None:
    """A Timestamp comes back with every nanosecond, its unit and its zone."""
    kind, text = encode(value)
    back: Any = decode_cell(kind, text)
    assert (back, back.unit, back.isoformat()) == (value, value.unit, value.isoformat())
    assert str(back.tz) == str(value.tz)
    assert decode_value(kind, text) == value.asm8


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_pandas_timedeltas_keep_their_unit(count: int, unit: str) -> None:
    """A Timedelta comes back, and its text is one that pandas reads."""
    try:
        value = pd.Timedelta(np.timedelta64(count, unit))  # type: ignore[call-overload]
    except ValueError:  # pandas itself holds fewer than NumPy
        return
    back: Any = decode_cell(*encode(value))
    assert (back, back.unit) == (value, value.unit)


@given(st.timedeltas())
def test_pandas_reads_a_timedelta(value: timedelta) -> None:
    """pandas.to_timedelta understands the text, as far as nanoseconds reach."""
    if abs(value) < timedelta(days=100_000):
        assert pd.Timedelta(encode(value)[1]) == value


def test_print_options_do_not_change_the_data() -> None:
    """NumPy's print options have no effect on what is stored."""
    values = [np.float32(0.1), np.longdouble("0.1"), np.complex64(1 / 3), np.float16(1e-5)]
    plain = [encode(value) for value in values]
    with np.printoptions(precision=2, suppress=True, floatmode="fixed", legacy="1.13"):
        assert [encode(value) for value in values] == plain


def test_neither_pandas_nor_h5py_is_imported() -> None:
    """Encoding and decoding, pandas' kinds included, load no pandas."""
    code = (
        "import sys, trialstore._ondisk.table, trialstore._reading.frame\n"
        "from trialstore._ondisk.values import decode_value, encode_attrs\n"
        "encode_attrs({'a': [1]}); decode_value('Timestamp[ns]', '2024-01-01T00:00:00.000000001')\n"
        "sys.exit('pandas' in sys.modules or 'h5py' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cells_are_plain_strings() -> None:
    """A cell can be sent to another process: no subclass of str slips through."""
    (cell,) = encode_attrs({np.str_("a"): np.str_("b")})
    assert [type(part) for part in cell] == [str, str, str]
    assert pickle.loads(pickle.dumps(cell)) == ("a", "str", "b")
