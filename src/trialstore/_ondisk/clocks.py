"""Dates, times and durations as cells: Python's, NumPy's and pandas', none of them shortened.

An aware time keeps its offset in the text, so that any program reads the right instant, and the
name of its zone in the kind: ``("datetime[Europe/Berlin]", "2024-05-01T12:00:00+02:00")``. Where a
computer does not know the zone, or where its rules have changed since, the value comes back with
the offset that was recorded. pandas is known by the names of its types and never imported here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Cell = tuple[str, str]

_SECOND: Final = 10**9
_DAY: Final = 86_400 * _SECOND
#: Nanoseconds per unit, for the units that pandas has.
_PANDAS_UNITS: Final = {"s": _SECOND, "ms": 10**6, "us": 10**3, "ns": 1}

_ZONE_NAME: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_CLOCK: Final = re.compile(r"(datetime|time)(?:\[([^\]]{1,64})\])?( fold=1)?")
_UNITS: Final = re.compile(
    r"(datetime64|timedelta64)(?:\[((?:[1-9]\d{0,8})?(?:[YMWDhms]|[munpfa]s))\])?"
)
_PANDAS: Final = re.compile(r"(Timestamp|Timedelta)\[(s|ms|us|ns)(?:, ([^\]]{1,64}))?\]")
_ISO: Final = re.compile(r"-?\d+(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?)?)?")
_OFFSET: Final = re.compile(r"(.+?)([-+]\d\d:\d\d(?::\d\d)?)?")
_DURATION: Final = re.compile(r"(-?\d{1,15}) days \+?(\d\d):(\d\d):(\d\d)(?:\.(\d{6}|\d{9}))?")


class Refusal(Exception):
    """Why a value is not data, worded to follow the name of its attribute in an InvalidTrial."""


def decode(kind: str, text: str) -> object:
    """Undo the encoders of this module.

    Raises
    ------
    ValueError
        `kind` is not one of theirs, or `text` is not of that kind; sometimes a TypeError or an
        OverflowError of Python's or NumPy's.
    """
    if (match := _CLOCK.fullmatch(kind)) is not None:
        return _parse_clock(datetime if match[1] == "datetime" else time, match[2], match[3], text)
    if (match := _UNITS.fullmatch(kind)) is not None:
        parse = _parse_datetime64 if match[1] == "datetime64" else _parse_timedelta64
        return parse(match[2], text)
    if (match := _PANDAS.fullmatch(kind)) is not None:
        if match[1] == "Timestamp":
            return parse_timestamp(kind, text)[0]
        count = _parse_duration(text, _PANDAS_UNITS[match[2]])
        return _timedelta64(_decimal(str(count)), match[2])
    raise ValueError(kind)


# --- time zones -------------------------------------------------------------------------------


def _zone_name(zone: tzinfo | None) -> str | None:
    """Name of an IANA zone of ``zoneinfo`` or pytz (which pandas 2 uses), else None."""
    name: object = None
    if isinstance(zone, ZoneInfo):
        name = zone.key
    elif type(zone).__module__.partition(".")[0] == "pytz":
        name = getattr(zone, "zone", None)
    return name if isinstance(name, str) and _ZONE_NAME.fullmatch(name) else None


def _zone(name: str) -> ZoneInfo | None:
    """Find the zone called `name`; None where it is not known."""
    if _ZONE_NAME.fullmatch(name) is None:
        raise ValueError(name)
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        return None


def _offset_text(offset: timedelta) -> str:
    return time(tzinfo=timezone(offset)).isoformat()[len("00:00:00") :]


# --- Python's datetime and time ---------------------------------------------------------------


def encode_datetime(value: datetime) -> Cell:
    """Encode a datetime; its zone, its offset and its fold are kept."""
    return _clock_kind("datetime", value), datetime.isoformat(value)


def encode_time(value: time) -> Cell:
    """Encode a time of day; its zone, its offset and its fold are kept."""
    return _clock_kind("time", value), time.isoformat(value)


def _clock_kind(kind: str, value: datetime | time) -> str:
    if value.tzinfo is not None:
        if (name := _zone_name(value.tzinfo)) is not None:
            kind = f"{kind}[{name}]"
        elif value.utcoffset() is None:
            raise Refusal("has a time zone that tells no offset; use zoneinfo.ZoneInfo")
    return f"{kind} fold=1" if value.fold else kind


def _parse_clock(
    kind: type[datetime | time], zone: str | None, fold: str | None, text: str
) -> datetime | time:
    value = kind.fromisoformat(text)
    if value.isoformat() != text or (zone and kind is datetime and value.tzinfo is None):
        raise ValueError(text)  # fromisoformat takes more than isoformat writes
    if fold:
        value = value.replace(fold=1)
    if zone and (known := _zone(zone)) is not None:
        placed = value.replace(tzinfo=known)
        if placed.utcoffset() == value.utcoffset():
            return placed
    return value


# --- durations --------------------------------------------------------------------------------


def timedelta_text(value: timedelta) -> str:
    """Text of a timedelta, which ``pandas.to_timedelta`` reads, too."""
    seconds = value.days * 86_400 + value.seconds
    return _duration_text(seconds * _SECOND + value.microseconds * 1000)


def parse_timedelta(text: str) -> timedelta:
    """Undo `timedelta_text`."""
    return timedelta(microseconds=_parse_duration(text, 1000))


def _duration_text(nanoseconds: int) -> str:
    days, rest = divmod(nanoseconds, _DAY)
    seconds, rest = divmod(rest, _SECOND)
    fraction = f".{rest // 1000:06d}" if rest % 1000 == 0 else f".{rest:09d}"
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{days} days {'+' if days < 0 else ''}{clock}{fraction if rest else ''}"


def _parse_duration(text: str, unit: int) -> int:
    """Return how many units of `unit` nanoseconds `text` stands for."""
    if (match := _DURATION.fullmatch(text)) is None:
        raise ValueError(text)
    days, hours, minutes, seconds = (int(match[group]) for group in (1, 2, 3, 4))
    fraction = int((match[5] or "").ljust(9, "0"))
    total = days * _DAY + (hours * 3600 + minutes * 60 + seconds) * _SECOND + fraction
    if _duration_text(total) != text or total % unit:
        raise ValueError(text)
    return total // unit


# --- NumPy ------------------------------------------------------------------------------------


def encode_datetime64(value: np.datetime64) -> Cell:
    """Encode a NumPy datetime of any unit."""
    return value.dtype.name, _datetime64_text(value)


def encode_timedelta64(value: np.timedelta64) -> Cell:
    """Encode a NumPy timedelta of any unit, as its number of units."""
    return value.dtype.name, "NaT" if np.isnat(value) else str(_count(value))


def _datetime64(value: Any, unit: Any) -> np.datetime64:
    return np.datetime64(value, unit)


def _timedelta64(value: Any, unit: Any) -> np.timedelta64:
    return np.timedelta64(value, unit)


def _count(value: np.datetime64 | np.timedelta64) -> int:
    return int(value.view(np.int64))


def _unit(value: np.datetime64 | np.timedelta64) -> str:
    return np.datetime_data(value.dtype)[0]


def _datetime64_text(value: np.datetime64) -> str:
    """ISO 8601, or the number of units where NumPy does not read back what it writes."""
    text, unit = str(value), value.dtype.name[len("datetime64[") : -1]
    try:
        exact = _count(_parse_datetime64(unit, text)) == _count(value)
    except ValueError:
        exact = False
    return text if exact else f"@{_count(value)}"


def _parse_datetime64(unit: str | None, text: str) -> np.datetime64:
    if text == "NaT":
        return _datetime64("NaT", unit) if unit else np.datetime64("NaT")
    if unit is None:
        raise ValueError(text)
    if text.startswith("@"):
        return _datetime64(_decimal(text[1:]), unit)
    if _ISO.fullmatch(text) is None:  # NumPy would warn about an offset
        raise ValueError(text)
    value = _datetime64(text, unit)
    if str(value) != text:  # NumPy cuts and overflows in silence
        raise ValueError(text)
    return value


def _parse_timedelta64(unit: str | None, text: str) -> np.timedelta64:
    count: Any = "NaT" if text == "NaT" else _decimal(text)
    return _timedelta64(count, unit) if unit else np.timedelta64(count)


def _decimal(text: str) -> int:
    """Parse a count that NumPy holds; the smallest 64-bit integer is its NaT."""
    if len(text) > len(str(-(2**63))) or str(value := int(text)) != text or abs(value) >= 2**63:
        raise ValueError(text)
    return value


# --- pandas -----------------------------------------------------------------------------------


def pandas_encoder(base: type) -> Callable[[Any], Cell] | None:
    """Return the encoder of one of pandas' scalar types, known by its name, else None."""
    if base.__module__.partition(".")[0] != "pandas":
        return None
    return _PANDAS_ENCODERS.get(base.__name__)


def parse_timestamp(kind: str, text: str) -> tuple[np.datetime64, tzinfo | None]:
    """Instant (in UTC, if there is a zone) and zone of a cell of kind ``Timestamp``.

    Raises
    ------
    ValueError
        `kind` or `text` is not of that kind.
    """
    match, parts = _PANDAS.fullmatch(kind), _OFFSET.fullmatch(text)
    if match is None or parts is None or (match[3] and not parts[2]):
        raise ValueError(text)
    local = _parse_datetime64(match[2], parts[1])
    if np.isnat(local):
        raise ValueError(text)
    if parts[2] is None:
        return local, None
    offset = time.fromisoformat("00:00:00" + parts[2]).utcoffset() or timedelta()
    zone = _zone(match[3]) if match[3] else None
    utc = local - _seconds(offset)
    return utc, zone if zone is not None and _fits(zone, utc, offset) else timezone(offset)


def _seconds(offset: timedelta) -> np.timedelta64:
    return np.timedelta64(offset // timedelta(seconds=1), "s")


def _fits(zone: ZoneInfo, utc: np.datetime64, offset: timedelta) -> bool:
    instant = _datetime64(utc, "s").item()
    if not isinstance(instant, datetime):  # before year 1 or after 9999
        return False
    try:
        instant = instant.replace(tzinfo=UTC).astimezone(zone)
    except OverflowError:
        return False
    return instant.utcoffset() == offset


def _encode_timestamp(value: Any) -> Cell:
    utc: np.datetime64 = value.asm8
    unit, offset, zone = _unit(utc), value.utcoffset(), _zone_name(value.tzinfo)
    kind = f"Timestamp[{unit}, {zone}]" if zone else f"Timestamp[{unit}]"
    if offset is None:
        return kind, _datetime64_text(utc)
    if offset.microseconds:
        raise Refusal("has a time zone with fractions of seconds; convert it to UTC")
    return kind, _datetime64_text(utc + _seconds(offset)) + _offset_text(offset)


def _encode_pandas_timedelta(value: Any) -> Cell:
    count: np.timedelta64 = value.asm8
    unit = _unit(count)
    return f"Timedelta[{unit}]", _duration_text(_count(count) * _PANDAS_UNITS[unit])


_PANDAS_ENCODERS: Final[dict[str, Callable[[Any], Cell]]] = {
    "NAType": lambda _: ("missing", ""),
    "NaTType": lambda _: ("missing", ""),
    "Timestamp": _encode_timestamp,
    "Timedelta": _encode_pandas_timedelta,
}
