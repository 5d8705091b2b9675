"""Rows by template and packed columns: the same as the slow way and plain lists."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trialstore._errors import InvalidTrial
from trialstore._ondisk import rows
from trialstore._ondisk.entries import encode_row
from trialstore._ondisk.rows import encode_attributes
from trialstore._ondisk.values import encode_attrs
from trialstore._recording.columns import Columns

NAMES = st.text(st.sampled_from('ab%"\\ é{}s0.'), min_size=1, max_size=4)
USUAL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2047, 2049).map(lambda bits: 2**bits - 1),
    st.floats(),
    st.text(max_size=12),
)
OTHERS = st.one_of(
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=3),
    st.integers(-128, 127).map(np.int8),
    st.floats(width=32).map(np.float32),
)
ROWS = st.dictionaries(NAMES, st.one_of(USUAL, USUAL, USUAL, OTHERS), max_size=6)


class Evil(type):
    """A metaclass whose classes must not be asked anything."""

    def __hash__(cls) -> int:
        raise RuntimeError("hashed")

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("compared")


class Name(str):
    """A name that claims to be any other."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("a")


def slowly(attrs: Any) -> str:
    return encode_row(encode_attrs(attrs))


@given(ROWS)
@example({"%s": "%d", "%": 5, "a": None, "b": "%r"})
@example({"a": 2**2048, "b": None, "c": 1})
@example({"a": 10**5000})
@example({"a": "x" * 5000, "b": 2**2047})
def test_a_template_writes_what_is_written_without_one(attrs: dict[str, Any]) -> None:
    """The first row of its kind, which makes the template, and the second, which uses it."""
    expected = slowly(attrs)
    assert encode_attributes(attrs)[0] == expected
    assert encode_attributes(dict(attrs))[0] == expected
    assert [[name, *cell] for name, *cell in json.loads(expected)] == [
        list(cell) for cell in encode_attrs(attrs)
    ]


@given(st.lists(ROWS, max_size=4))
def test_rows_are_alike_only_if_names_order_and_types_are_the_same(
    many: list[dict[str, Any]],
) -> None:
    """And of the usual types, alike ones are known to be."""
    kinds: dict[int, tuple[Any, ...]] = {}
    for attrs in [*many, *many]:
        _, likeness = encode_attributes(attrs)
        kind = (*attrs, *map(type, attrs.values()))
        if likeness is not None:
            assert kinds.setdefault(id(likeness), kind) == kind
    usual = [row for row in many if all(type(v) in {int, str} for v in row.values())]
    for attrs in usual:
        if not any(type(v) is int and v.bit_length() > 2000 for v in attrs.values()):
            assert encode_attributes(attrs)[1] is encode_attributes(attrs)[1] is not None


def test_an_integer_is_hexadecimal_from_2048_bits_on_in_a_row_of_many_empty_cells() -> None:
    """The row is then hardly longer than its template."""
    attrs: dict[str, Any] = {f"n{number}": None for number in range(400)}
    for wide in (1, 2**2048, -(2**2048), 2**2048 - 1):
        attrs["wide"] = wide
        assert encode_attributes(attrs)[0] == slowly(attrs)


def test_python_may_be_told_to_write_fewer_digits() -> None:
    """Integers of 4,300 digits are refused by Python, of 640 if it is told so."""
    encode_attributes({"n": 1})
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert encode_attributes({"n": 10**700})[0] == slowly({"n": 10**700})
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"a": "\ud800"}, "attribute 'a' is not valid Unicode"),
        ({"a": object()}, "attribute 'a' is of type object"),
        ({1: 1}, "attribute names are strings"),
        ({"a\0b": 1}, "holds"),
        ({"": 1}, "empty name"),
    ],
)
def test_what_cannot_be_encoded_is_named_with_and_without_a_template(
    attrs: dict[Any, Any], message: str
) -> None:
    """A template of a row that looks alike does not change what is said."""
    encode_attributes({"a": "text"})
    encode_attributes({"a": 1, "b": 1})
    for _ in range(2):
        with pytest.raises(InvalidTrial, match=message):
            encode_attributes(attrs)


def test_no_code_of_the_users_is_run() -> None:
    """Not of a value's class, not of a name's."""
    encode_attributes({"a": 1})
    value = Evil("Value", (), {})()
    for _ in range(2):
        with pytest.raises(InvalidTrial, match="attribute 'a'"):
            encode_attributes({"a": value})
    named: dict[str, Any] = {Name("b"): 1}
    assert encode_attributes(named)[0] == '[["b","int","1"]]'


def test_templates_do_not_fill_the_memory() -> None:
    """Who names attributes after trials has a new kind of row each time."""
    for number in range(2000):
        attrs = {f"trial {number}": number}
        assert encode_attributes(attrs)[0] == slowly(attrs)
    assert len(rows._templates) <= 256


# --- columns --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(ROWS, st.booleans()), max_size=12), st.booleans())
@example([({"a": 1}, False), ({"a": 2**63}, False), ({"a": 2}, False)], False)
@example([({"a": 1, "b": 2**63}, False), ({"a": 1, "b": 2**63}, False)], False)
@example(
    [({"a": 1, "b": 0.5}, False), ({"b": 0.5, "a": 1}, False), ({"b": 1.5, "a": 2}, False)], False
)
@example([({"a": 1}, False), ({"a": True}, False), ({"a": 1.0}, True), ({"a": 1}, False)], False)
@example([({"a": 1}, True), ({"a": 2}, False), ({"b": 2}, False)], False)
@example([({"a": 1}, False), ({"a": 2**63}, False)], True)
def test_columns_hold_what_lists_would(
    many: list[tuple[dict[str, Any], bool]], is_kept: bool
) -> None:
    """Whoever looks in between changes nothing; what he keeps grows; values keep their types."""
    columns = Columns()
    expected: dict[str, list[Any]] = {}
    kept = columns.data if is_kept else {}
    for number, (attrs, is_looked_at) in enumerate(many):
        for name in attrs.keys() - expected.keys():
            expected[name] = [None] * number
        for name, column in expected.items():
            column.append(attrs.get(name))
        columns.add(attrs, encode_attributes(attrs)[1])
        if is_looked_at:
            assert _told(columns.data) == _told(expected)
    assert _told(columns.data) == _told(expected)
    if is_kept:
        assert kept is columns.data
        assert all(type(column) is list for column in kept.values())


def test_columns_of_numbers_are_packed() -> None:
    """An hour's worth of trials takes eight bytes a number, not forty."""
    columns = Columns()
    for number in range(1000):
        attrs = {"n": number, "x": number / 7}
        columns.add(attrs, encode_attributes(attrs)[1])
    assert {type(column).__name__ for column in columns._columns.values()} == {"array"}
    assert columns.data == {"n": [*range(1000)], "x": [number / 7 for number in range(1000)]}


def _told(columns: dict[str, list[Any]]) -> dict[str, list[tuple[type, str]]]:
    """Tell types apart, and take NaN for equal to itself."""
    return {
        name: [(type(value), repr(value)) for value in columns[name]] for name in sorted(columns)
    }
