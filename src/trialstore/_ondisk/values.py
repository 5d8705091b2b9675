"""What a table cell is: a value as ``(kind, text)``, and back again, exactly.

`text` is what stands in the CSV cell and `kind` says which type it was; the journal, the CSV file
and the manifest share this one encoding.

==========================  =============================  =========================================
kind                        text                           Python value
==========================  =============================  =========================================
missing                     (empty)                        None, pandas.NA, pandas.NaT
bool                        True                           bool, numpy.bool
int                         -17                            int; from 2048 bits on hexadecimal, 0x...
float, complex              0.1, (1+2j)                    float, complex, float64, complex128
str, bytes                  as is, hexadecimal             str, bytes, numpy.str_, numpy.bytes_
date, time, datetime        ISO 8601                       also ``datetime[Europe/Berlin] fold=1``
timedelta                   -1 days +23:59:59.5            as pandas.to_timedelta reads it
int8 ... uint64             -17                            NumPy integers
float16, float32, ...       0.1                            also longdouble, complex64, clongdouble
datetime64[ns]              2024-01-02T03:04:05.000000000  or ``@17``: units since 1970
timedelta64[ms]             1500                           number of units
Timestamp[ns, Asia/Tokyo]   ISO 8601 with the offset       pandas.Timestamp
Timedelta[ns]               0 days 00:00:01.000000001      pandas.Timedelta
json, tuple                 [1, {"a": null}]               list and dict, tuple, nested
==========================  =============================  =========================================

Subclasses (enumerations of int or str, named tuples) are kept as the plain type they derive from;
all NaN are one: sign and payload are not kept. Numbers are in `numerals`, times in `clocks`.
"""

from __future__ import annotations

import json
import unicodedata
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from trialstore._errors import FormatError, InvalidTrial
from trialstore._ondisk import clocks, numerals
from trialstore._ondisk.clocks import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: ``(kind, text)`` of one value, and the same with the name of its attribute in front.
Cell: TypeAlias = tuple[str, str]
NamedCell: TypeAlias = tuple[str, str, str]

MISSING: Final[Cell] = ("missing", "")

#: Limits of one nested attribute: what is larger belongs into an array, and would hold up the loop.
MAX_DEPTH: Final = 50
MAX_ITEMS: Final = 100_000

#: U+FEFF is a byte order mark at the start of a file; the others turn the text around them.
_REFUSED_IN_NAMES: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def encode_attrs(attrs: Mapping[str, object]) -> list[NamedCell]:
    """Encode the attributes of a trial, all of them or none.

    Parameters
    ----------
    attrs : Mapping
        Names and values. It is read once, before anything is encoded, and is never changed.

    Returns
    -------
    list of (str, str, str)
        Name, kind and text, in the order of `attrs`; `decode_value` gives each value back, equal
        and of the same type (the table above says which become the plain type beside them).

    Raises
    ------
    InvalidTrial
        `attrs` is not a mapping, a name is not a printable string, or a value is not data.

    Examples
    --------
    >>> encode_attrs({"target": 3, "hand": "left", "rt": None})
    [('target', 'int', '3'), ('hand', 'str', 'left'), ('rt', 'missing', '')]
    """
    plain = type(attrs) is dict
    items: Iterable[tuple[str, object]] = list(attrs.items()) if plain else _snapshot(attrs)
    cells: list[NamedCell] = []
    for name, value in items:
        if type(name) is not str or not name or not name.isprintable():
            name = check_name(name)
            plain = False
        try:
            if (fixed := _FIXED.get(type(value))) is not None:
                cells.append((name, fixed[0], fixed[1](value)))
            else:
                cells.append((name, *_encode(value)))
        except Refusal as refusal:
            raise InvalidTrial(f"attribute {name!r} {refusal}") from None
        except Exception as error:
            reason = f"could not be read ({type(error).__name__}); store plain data"
            raise InvalidTrial(f"attribute {name!r} {reason}") from error
    if not plain and len({name for name, _, _ in cells}) != len(cells):
        names = [cell[0] for cell in cells]
        raise InvalidTrial(f"two attributes have the same name: {names!r:.200}")
    return cells


def fixed_encoder(kind: type) -> tuple[str, Callable[[Any], str]]:
    """Return the name of a kind that does not depend on the value, and what makes its text.

    Raises
    ------
    KeyError
        Values of that type are of several kinds, or of none.
    """
    return _FIXED[kind]


def decode_value(kind: str, text: str) -> object:
    """Undo `encode_attrs` for one cell.

    pandas' own scalars come back as NumPy's, because this side does not know pandas: a Timestamp as
    ``datetime64`` (in UTC if it had a zone), a Timedelta as ``timedelta64``.
    `trialstore._reading.frame.decode_cell` gives them back as they were.

    Parameters
    ----------
    kind, text : str
        Any two strings; time and memory are bounded by their length.

    Raises
    ------
    FormatError
        `kind` is unknown, or `text` does not stand for a value of that kind.

    Examples
    --------
    >>> decode_value("int", "3"), decode_value("tuple", '[1, "a"]')
    (3, (1, 'a'))
    """
    try:
        if (decoder := _DECODERS.get(kind)) is not None:
            return decoder(text)
        return clocks.decode(kind, text)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise FormatError(f"{text!r:.80} is not a value of kind {kind!r:.80}") from error


def check_name(name: object) -> str:
    """Return `name` as a plain string if a column may be called so.

    Raises
    ------
    InvalidTrial
        It is not a string, is empty, or has characters that cannot be seen or would break a table.
    """
    if not issubclass(type(name), str):
        shown = repr(name) if type(name) in {int, float, bool, bytes, type(None)} else "one"
        raise InvalidTrial(f"attribute names are strings, not {type(name).__name__}: {shown}")
    plain = str.__str__(name)
    if not plain:
        raise InvalidTrial("an attribute has an empty name; give it one")
    for character in plain:
        category = unicodedata.category(character)
        if category in {"Cc", "Cs", "Zl", "Zp"} or character in _REFUSED_IN_NAMES:
            raise InvalidTrial(f"attribute name {plain!r} holds {character!r}; leave it out")
    return plain


def _snapshot(attrs: object) -> list[tuple[str, object]]:
    try:
        return [(name, value) for name, value in attrs.items()]  # type: ignore[attr-defined]
    except Exception as error:
        raise InvalidTrial(f"attributes must be a mapping, not {type(attrs).__name__}") from error


def _encode(value: object) -> Cell:
    """Encode a value whose exact type need not be known: by its first known base class."""
    for base in type(value).__mro__:
        if (fixed := _FIXED.get(base)) is not None:
            return fixed[0], fixed[1](value)
        if (varying := _VARYING.get(base) or clocks.pandas_encoder(base)) is not None:
            return varying(value)
    raise Refusal(
        f"is of type {type(value).__name__}, which is not data for a table; "
        "store a number, a string or a list of them, or use pickle() for objects"
    )


def _str_text(value: str) -> str:
    if str.isascii(value):
        return str.__str__(value)
    try:
        str.encode(value)
    except UnicodeEncodeError as error:
        raise Refusal(f"is not valid Unicode at character {error.start}; decode it first") from None
    return str.__str__(value)


def _array(value: Any) -> Cell:
    if type(value) is np.ndarray and value.ndim == 0:
        return _encode(value[()])
    raise Refusal("is an array; use add_array() and stack(), or append()")


def _missing(text: str) -> None:
    if text:
        raise ValueError(text)


# --- nested values ----------------------------------------------------------------------------


class _Nested:
    """Copies a nested value into what JSON can hold, and counts.

    What JSON has no type for becomes an object with the one key ``$kind``; a dict of the user's
    that looks like one becomes ``{"$dict": [[key, value]]}``.
    """

    def __init__(self) -> None:
        self._items = 0

    def copy(self, value: Any, depth: int = 0) -> object:
        self._items += 1
        if self._items > MAX_ITEMS or depth > MAX_DEPTH:
            limits = f"{MAX_ITEMS} items or {MAX_DEPTH} levels, or contains itself"
            raise Refusal(f"has more than {limits}; use an array or pickle()")
        for base in type(value).__mro__:
            if base is dict:
                return self._dict(list(dict.items(value)), depth + 1)
            if base is list or base is tuple:
                items = [self.copy(item, depth + 1) for item in [*base.__iter__(value)]]
                return items if base is list or depth == 0 else {"$tuple": items}
        return self._scalar(value)

    def _dict(self, items: list[tuple[object, object]], depth: int) -> object:
        copied: dict[str, object] = {}
        for key, value in items:
            if type(key) is not str:
                raise Refusal(f"is a dict with a key of type {type(key).__name__}; use str keys")
            copied[_str_text(key)] = self.copy(value, depth)
        if len(copied) == 1 and next(iter(copied)).startswith("$"):
            return {"$dict": [list(pair) for pair in copied.items()]}
        return copied

    @staticmethod
    def _scalar(value: object) -> object:
        kind, text = _encode(value)
        if kind in {"bool", "float", "str", "missing"} or (kind == "int" and "x" not in text):
            return _DECODERS[kind](text)
        return {"$" + kind: text}


def _json_text(value: object) -> str:
    return json.dumps(_Nested().copy(value), ensure_ascii=False)


def _from_tag(found: dict[str, Any]) -> object:
    if len(found) != 1 or not (key := next(iter(found))).startswith("$"):
        return found
    if key == "$dict":
        return dict(found[key])
    if key == "$tuple" and type(found[key]) is list:
        return tuple(found[key])
    if key in {"$json", "$tuple"} or type(found[key]) is not str:
        raise ValueError(key)
    return decode_value(key[1:], found[key])


def _json(text: str) -> object:
    value = json.loads(text, object_hook=_from_tag)
    if type(value) not in {list, dict}:
        raise ValueError(text)
    return value


def _tuple(text: str) -> object:
    if type(value := _json(text)) is not list:
        raise ValueError(text)
    return tuple(value)


# --- the tables -------------------------------------------------------------------------------

_INTS: Final[tuple[Any, ...]] = tuple(np.dtype(code).type for code in np.typecodes["AllInteger"])

_FIXED: Final[dict[type, tuple[str, Callable[[Any], str]]]] = {
    type(None): ("missing", lambda _: ""),
    bool: ("bool", bool.__repr__),
    np.bool_: ("bool", str),
    int: ("int", numerals.int_text),
    float: ("float", float.__repr__),
    np.float64: ("float", float.__repr__),
    complex: ("complex", complex.__repr__),
    np.complex128: ("complex", complex.__repr__),
    str: ("str", _str_text),
    bytes: ("bytes", bytes.hex),
    date: ("date", date.isoformat),
    timedelta: ("timedelta", clocks.timedelta_text),
    list: ("json", _json_text),
    dict: ("json", _json_text),
    tuple: ("tuple", _json_text),
    **{scalar: (np.dtype(scalar).name, numerals.item_text) for scalar in _INTS},
    np.float16: ("float16", numerals.np_float_text),
    np.float32: ("float32", numerals.np_float_text),
    np.complex64: ("complex64", numerals.np_complex_text),
}
if np.longdouble is not np.float64:
    _FIXED[np.longdouble] = ("longdouble", numerals.np_float_text)
    _FIXED[np.clongdouble] = ("clongdouble", numerals.np_complex_text)

_VARYING: Final[dict[type, Callable[[Any], Cell]]] = {
    datetime: clocks.encode_datetime,
    time: clocks.encode_time,
    np.datetime64: clocks.encode_datetime64,
    np.timedelta64: clocks.encode_timedelta64,
    np.ndarray: _array,
}

_DECODERS: Final[dict[str, Callable[[str], object]]] = {
    "missing": _missing,
    "bool": numerals.parse_bool,
    "int": numerals.parse_int,
    "float": numerals.parse_float,
    "complex": numerals.parse_complex,
    "str": str,
    "bytes": lambda text: numerals.same(bytes.fromhex(text), bytes.hex, text),
    "date": lambda text: numerals.same(date.fromisoformat(text), date.isoformat, text),
    "timedelta": clocks.parse_timedelta,
    "json": _json,
    "tuple": _tuple,
    **{np.dtype(scalar).name: numerals.np_int(scalar) for scalar in _INTS},
    "float16": numerals.np_float(np.float16),
    "float32": numerals.np_float(np.float32),
    "longdouble": numerals.np_float(np.longdouble),
    "complex64": numerals.np_complex(np.complex64, numerals.np_float(np.float32)),
    "clongdouble": numerals.np_complex(np.clongdouble, numerals.np_float(np.longdouble)),
}
