"""Which dtype a column of recorded cells gets.

A column becomes a pandas dtype only if that dtype holds each of its values exactly; otherwise it is
``object`` and holds the values themselves.

====================================  ====================  ======================================
values recorded                       dtype                 with some missing
====================================  ====================  ======================================
int                                   int64, else uint64    Int64, UInt64 (pandas.NA)
float                                 float64               Float64 (NaN stays NaN, missing is NA)
int and float                         float64, if exact     Float64
bool                                  bool                  boolean (pandas.NA)
NumPy integers, float32, of one type  that dtype            Int8 ... UInt64, Float32
float16, longdouble, complex          that dtype            object (None)
datetimes of one zone, or of none     datetime64[us, zone]  the same (NaT)
datetime64, Timestamp of one unit     datetime64[unit]      the same (NaT)
timedelta, timedelta64, Timedelta     timedelta64[unit]     the same (NaT)
str, and everything else              object                object (None)
====================================  ====================  ======================================

The masked dtypes are built together with their mask: pandas' usual constructors, and ``read_csv``,
take a NaN that was recorded for a missing value. What pandas computes from such a column follows
its own rules (pandas 3 turns NaN into NA). Strings are ``object`` as pandas 2 and 3 agree on that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import FormatError
from trialstore._ondisk.clocks import parse_timestamp
from trialstore._ondisk.numerals import plain_numbers
from trialstore._ondisk.values import decode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.table import Runs

#: numpy.int64 is what NumPy makes of an int, so the two may mix; numpy.float64 is kept as a float.
_INT64S: Final = frozenset({"int", "int64"})
_NP_INTS: Final = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"})
#: NumPy dtypes of which pandas has no masked form.
_UNMASKED: Final = frozenset({"float16", "longdouble", "complex64", "clongdouble", "complex"})
#: Units that pandas does not have, but that are seconds: of a point in time, and of a duration.
_PANDAS_UNITS: Final = frozenset({"s", "ms", "us", "ns"})
_COARSE_UNITS: Final = {"M": frozenset("YMWDhm"), "m": frozenset("WDhm")}
_SMALL_INTEGERS: Final = re.compile(r"-?\d{1,18}(?:,-?\d{1,18})*+", re.ASCII)
#: numpy.timedelta64 in microseconds ends before datetime.timedelta does, and overflows in silence.
_LONGEST: Final = timedelta(microseconds=2**63 - 1)


def decode_cell(kind: str, text: str) -> object:
    """Undo `encode_attrs` for one cell, pandas' own scalars included.

    Parameters
    ----------
    kind, text : str
        Any two strings.

    Raises
    ------
    FormatError
        `kind` is unknown, or `text` does not stand for a value of that kind.
    """
    value: Any = decode_value(kind, text)
    if not kind.startswith(("Timestamp[", "Timedelta[")):
        return value
    import pandas as pd

    try:
        if kind.startswith("Timedelta["):
            return pd.Timedelta(value)
        _, zone = parse_timestamp(kind, text)
        stamp = pd.Timestamp(value)
        return stamp if zone is None else stamp.tz_localize("UTC").tz_convert(zone)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{text!r:.80} is beyond what pandas can hold as {kind!r}") from error


@dataclass(frozen=True)
class Column:
    """The cells of one column, decoded when somebody asks.

    Parameters
    ----------
    name : str
        For the messages of errors.
    runs : list of (str, int)
        Run-length coded kinds.
    texts : sequence of str
        As many as the runs count.
    """

    name: str
    runs: Runs
    texts: Sequence[str]

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Kinds of the values that are not missing."""
        return frozenset(kind for kind, _ in self.runs) - {"missing"}

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """Where a value is missing."""
        flags = [kind == "missing" for kind, _ in self.runs]
        return np.repeat(np.array(flags, bool), [count for _, count in self.runs])

    @cached_property
    def held(self) -> Sequence[str]:
        """Texts of the values that are not missing."""
        return list(compress(self.texts, ~self.missing)) if self.missing.any() else self.texts

    def pieces(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield kind and texts of each run."""
        start = 0
        for kind, count in self.runs:
            yield kind, self.texts[start : start + count]
            start += count

    @cached_property
    def values(self) -> list[Any]:
        """Every value as it was recorded, None where it is missing.

        Raises
        ------
        FormatError
            A cell is not of its kind; the message names column and row.
        """
        values: list[Any] = []
        for kind, texts in self.pieces():
            if kind == "str":
                values.extend(texts)
                continue
            for text in texts:
                try:
                    values.append(decode_cell(kind, text))
                except FormatError as error:
                    where = f"column {self.name!r}, row {len(values)}"
                    raise FormatError(f"{where}: {error}") from error
        return values


def series_of(column: Column, index: pd.RangeIndex) -> pd.Series[Any]:
    """Make the Series of a column.

    Raises
    ------
    FormatError
        A cell is not of its kind; the message names column and row.
    """
    import pandas as pd

    if (array := _exact_array(column)) is not None:
        return pd.Series(array, index=index, copy=False)
    if column.kinds == {"str"} and not column.missing.any():
        return pd.Series(list(column.texts), index=index, dtype=object)
    objects = np.empty(len(index), object)
    for row, value in enumerate(column.values):
        objects[row] = value  # one by one: NumPy would spread a list over several rows
    return pd.Series(objects, index=index, dtype=object, copy=False)


def _exact_array(column: Column) -> Any:
    """Return an array of a better dtype than ``object`` that holds every value exactly, or None.

    Cells that are not of their kind give None as well: decoding them one by one names the culprit.
    """
    if not column.kinds or (column.missing.any() and any(compress(column.texts, column.missing))):
        return None
    builder = _builder_of(column.kinds)
    return None if builder is None else builder(column)


def _builder_of(kinds: frozenset[str]) -> Callable[[Column], Any] | None:
    """Return what can hold values of all `kinds`, None where only ``object`` can."""
    families = {kind.partition("[")[0].partition(" ")[0] for kind in kinds}
    if families == {"datetime"}:
        return _datetimes
    if len(kinds) == 1:
        (kind,), (family,) = kinds, families
        return _BUILDERS.get(kind) or _BUILDERS_OF_TIMES.get(family)
    if kinds <= _INT64S:
        return _integers
    return _floats if kinds <= _INT64S | {"float"} else None


# --- numbers ------------------------------------------------------------------------------------


def _parsed(column: Column, number: type[int | float]) -> list[Any] | None:
    if not plain_numbers(column.held):
        return None
    try:
        return list(map(number, column.held))
    except ValueError:  # not a number, or an integer of more than 600 digits
        return None


def _integers(column: Column) -> Any:
    values: Any = _small_integers(column.held)
    if values is not None:
        lowest, highest = values.min(), values.max()
    elif (values := _parsed(column, int)) is not None:
        lowest, highest = min(values), max(values)
    else:
        return None
    for dtype in ["int64", "uint64"] if column.kinds == {"int"} else column.kinds - {"int"}:
        limits = np.iinfo(dtype)
        if limits.min <= lowest and highest <= limits.max:
            return _masked(column, np.array(values, dtype))
    return None


def _small_integers(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """Parse integers of at most 18 digits, some five times faster than one by one, else None."""
    joined = ",".join(texts)
    if _SMALL_INTEGERS.fullmatch(joined) is None or joined.count(",") != len(texts) - 1:
        return None
    return np.fromstring(joined, np.int64, sep=",")


def _floats(column: Column) -> Any:
    if (values := _parsed(column, float)) is None:
        return None
    for kind, texts in column.pieces():
        if kind in _INT64S and not all(_is_exact(kind, text) for text in texts):
            return None
    return _masked(column, np.array(values, np.float64))


def _is_exact(kind: str, text: str) -> bool:
    try:
        return int(float(text)) == decode_value(kind, text)
    except (OverflowError, FormatError):
        return False


def _float32s(column: Column) -> Any:
    if (values := _parsed(column, float)) is None:
        return None
    wide = np.array(values, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return _masked(column, narrow) if (np.isinf(narrow) == np.isinf(wide)).all() else None


def _booleans(column: Column) -> Any:
    values = list(map({"True": True, "False": False}.get, column.held))
    return None if None in values else _masked(column, np.array(values, bool))


def _masked(column: Column, held: NDArray[Any]) -> Any:
    """Put the values in their rows; those that are missing are only in the mask."""
    import pandas as pd

    if not column.missing.any():
        return held
    values = np.zeros(len(column.missing), held.dtype)
    values[~column.missing] = held
    masked: dict[str, Any] = {
        "b": pd.arrays.BooleanArray,
        "f": pd.arrays.FloatingArray,
        "i": pd.arrays.IntegerArray,
        "u": pd.arrays.IntegerArray,
    }
    return masked[held.dtype.kind](values, column.missing.copy())


def _unmasked(column: Column) -> Any:
    (kind,) = column.kinds
    return None if column.missing.any() else np.array(column.values, np.dtype(kind))


# --- dates and times ----------------------------------------------------------------------------


def _datetimes(column: Column) -> Any:
    zones = {value.tzinfo for value in column.values if value is not None}
    if len(zones) > 1 or any(map(_has_idle_fold, column.values)):
        return None
    local = _times(column, lambda value: value.replace(tzinfo=None), "datetime64[us]")
    if (zone := zones.pop()) is None:
        return local
    offsets = _times(column, datetime.utcoffset, "timedelta64[us]")
    try:
        moments = _in_zone(local - offsets, zone)
    except (OverflowError, ValueError):  # in UTC, or in pandas, it is before year 1 or after 9999
        return None
    same = np.array_equal(moments.tz_localize(None).to_numpy(), local, equal_nan=True)
    return moments if same else None  # a time that clocks skipped is shown as another by pandas


def _has_idle_fold(value: datetime | None) -> bool:
    """Say whether a fold is set that makes no difference, and that pandas would not keep."""
    if value is None or not value.fold:
        return False
    return value.utcoffset() == value.replace(fold=0).utcoffset()


def _timestamps(column: Column) -> Any:
    zones = {value.tzinfo for value in column.values if value is not None}
    if len(zones) > 1:
        return None
    units = {value.unit for value in column.values if value is not None}
    moments = _times(column, lambda value: value.asm8, f"datetime64[{units.pop()}]")
    return moments if (zone := zones.pop()) is None else _in_zone(moments, zone)


def _in_zone(utc: NDArray[np.datetime64], zone: Any) -> pd.DatetimeIndex:
    import pandas as pd

    return pd.DatetimeIndex(utc).tz_localize("UTC").tz_convert(zone)


def _timedeltas(column: Column) -> Any:
    if any(value is not None and abs(value) > _LONGEST for value in column.values):
        return None
    return _times(column, lambda value: value, "timedelta64[us]")


def _pandas_timedeltas(column: Column) -> Any:
    (kind,) = column.kinds
    return _times(column, lambda value: value.asm8, f"timedelta64{kind.removeprefix('Timedelta')}")


def _numpy_times(column: Column) -> Any:
    (kind,) = column.kinds
    array = _times(column, lambda value: value, kind)
    unit, multiple = np.datetime_data(array.dtype)
    recorded_nat = np.isnat(array) & ~column.missing
    if multiple != 1 or (recorded_nat.any() and column.missing.any()):
        return None
    if unit in _PANDAS_UNITS:
        return array
    if unit not in _COARSE_UNITS[array.dtype.kind]:
        return None
    try:
        seconds = array.astype(f"{array.dtype.kind}8[s]")
    except OverflowError:  # NumPy 2.5 says so; before, the comparison below did
        return None
    return seconds if np.array_equal(seconds.astype(kind), array, equal_nan=True) else None


def _times(column: Column, convert: Callable[[Any], Any], dtype: str) -> NDArray[Any]:
    """Convert the values to a NumPy dtype of times, NaT where they are missing."""
    values = [None if value is None else convert(value) for value in column.values]
    return np.array(values, dtype)


# --- the table ------------------------------------------------------------------------------------

_BUILDERS: Final[dict[str, Callable[[Column], Any]]] = {
    "bool": _booleans,
    "float": _floats,
    "float32": _float32s,
    "timedelta": _timedeltas,
    **dict.fromkeys(_INT64S | _NP_INTS, _integers),
    **dict.fromkeys(_UNMASKED, _unmasked),
}
_BUILDERS_OF_TIMES: Final[dict[str, Callable[[Column], Any]]] = {
    "Timestamp": _timestamps,
    "Timedelta": _pandas_timedeltas,
    "datetime64": _numpy_times,
    "timedelta64": _numpy_times,
}
