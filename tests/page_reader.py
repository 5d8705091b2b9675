"""A reader of journals, written from docs/reference/format.md alone, as a stranger would."""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CRC = struct.Struct("<I").pack
FRAME = struct.Struct("<4sBBHQQQIIIIII")
NUMPY = ["float32", *(f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64))]
SIMPLE: dict[str, Any] = {
    "missing": lambda _: None,
    "bool": lambda text: text == "True",
    "int": lambda text: int(text, 0),
    **{"bytes": bytes.fromhex, "float": float, "complex": complex, "str": str},  # noqa: PIE800
    **{kind: getattr(np, kind) for kind in NUMPY},
    **{kind.__name__: kind.fromisoformat for kind in (date, time, datetime)},
}


@dataclass
class Trial:
    """What the page calls a trial; an array of it that is not whole is None."""

    seq: int
    session: bytes
    times: tuple[int, int, int | None]
    attrs: dict[str, Any]
    arrays: dict[str, Any]


def padded(length: int) -> int:
    """Round up to a multiple of 8."""
    return -(-length // 8) * 8


def session_of(path: Path, data: bytes) -> bytes:
    """Take the session from either copy of the header, else from the witness."""
    for copy in (data[:32], data[32:64]):
        if copy[:8] == b"\x89TRS\r\n\x1a\n" and copy[28:] == CRC(zlib.crc32(copy[:28])):
            assert copy[24:28] == b"\1\0\0\0", "a version that this reader does not know"
            return copy[8:24]
    said = path.with_suffix(".witness").read_bytes()
    for slot in (said[:88], said[512:600]):
        if slot[:8] == b"TRSW\1\0\0\0" and slot[84:] == CRC(zlib.crc32(slot[:84])):
            return slot[16:32]
    raise ValueError(f"nothing in {path} can be read")


def frames_of(data: bytes, session: bytes) -> Iterator[tuple[int, int, Any, bytes | None]]:
    """Yield seq, type, description and samples (None if damaged) of each frame of a segment."""
    at, known = 64, set()
    while at + 56 <= len(data):
        magic, kind, _, size, length, seq, _, _, *lengths, crc = FRAME.unpack_from(data, at)
        meta_length, meta_crc, body_crc, _ = lengths
        begin, whole, end = (at + 56 + n for n in (padded(meta_length), length, padded(length)))
        fits = crc == zlib.crc32(data[at : at + 52], zlib.crc32(session)) and seq not in known
        if magic != b"\xf1TrF" or not fits or size != 56 or begin > whole or end > len(data):
            at += 8
            continue
        meta, body, at = data[at + 56 :][:meta_length], data[begin:whole], end
        known.add(seq)
        if kind <= 7 and zlib.crc32(meta) == meta_crc:
            yield seq, kind, json.loads(meta), body if zlib.crc32(body) == body_crc else None


def read_journal(*folders: Path) -> dict[int, Trial]:
    """Return the trials of a journal, which may lie in two folders, by number."""
    segments = [path for folder in folders for path in folder.glob("*.segment")]
    limits: dict[bytes, float] = {}
    trials: dict[int, Trial] = {}
    runs: dict[tuple[bytes, int, str], dict[int, Any]] = {}
    for path in sorted(segments, key=lambda segment: int(segment.stem)):
        data = path.read_bytes()
        session = session_of(path, data)
        for seq, kind, meta, body in frames_of(data, session):
            if seq > limits.get(session, math.inf):
                continue
            if kind == 1 and session not in limits:
                limits = {other: min(limit, meta["after"]) for other, limit in limits.items()}
                limits[session] = math.inf
                trials = {n: t for n, t in trials.items() if t.seq <= limits[t.session]}
            elif kind == 2:
                known = runs.setdefault((session, meta["trial"], meta["array"]), {})
                if known.get(meta["first"], (None, None))[1] is None:
                    known[meta["first"]] = (meta, body)
            elif kind == 3 and meta["trial"] not in trials:
                times = meta["unix_ns"], meta["monotonic_ns"], meta["first_unix_ns"]
                attrs = {name: value_of(kind, text) for name, kind, text in meta["row"]}
                trials[meta["trial"]] = Trial(seq, session, times, attrs, meta["arrays"])
    for number, trial in trials.items():
        for name, (count, _) in trial.arrays.items():
            found = runs.get((trial.session, number, name), {})
            trial.arrays[name] = array_of([found[first] for first in sorted(found)], count)
    return dict(sorted(trials.items()))


def array_of(runs: list[tuple[dict[str, Any], bytes | None]], count: int) -> Any:
    """Return the array that runs of chunks are, or None if one is missing or damaged."""
    pieces: list[Any] = []
    for meta, body in runs:
        if meta["first"] != len(pieces) or body is None:
            return None
        dtype, at = np.lib.format.descr_to_dtype(tuples(meta["dtype"])), 0
        for length, _, _ in meta["chunks"]:
            shape = tuple(length if size is None else size for size in meta["shape"])
            pieces.append(np.ndarray(shape, dtype, body, at))
            at += math.prod(shape) * dtype.itemsize
    if len(pieces) != count or count == 1:
        return pieces[0] if len(pieces) == count else None
    axis = runs[0][0]["stack_axis"]
    pieces = [*map((np.atleast_2d, np.atleast_1d, np.atleast_3d)[axis], pieces)]
    return np.concatenate(pieces, min(axis, pieces[0].ndim - 1))


def tuples(described: Any) -> Any:
    """Make of the lists of JSON what NumPy's own files have: a field is a tuple."""
    if not isinstance(described, list):
        return described
    return [(name, tuples(kind), *map(tuple, shape)) for name, kind, *shape in described]


def value_of(kind: str, text: Any) -> Any:
    """Return the value of an attribute; of a kind that is not known here, kind and text."""
    if kind in {"json", "tuple"}:
        value = json.loads(text, object_hook=special)
        return value if kind == "json" else tuple(value)
    if kind == "timedelta":
        days, hours, minutes, seconds = text.replace(" days ", ":").replace("+", "").split(":")
        return timedelta(int(days), float(seconds), minutes=int(minutes), hours=int(hours))
    return SIMPLE[kind](text) if kind in SIMPLE else (kind, text)


def special(found: dict[str, Any]) -> Any:
    """Give an object with one key that begins with $ its meaning."""
    key, value = next(iter(found.items())) if len(found) == 1 else ("", None)
    if key in {"$tuple", "$dict"}:
        return tuple(value) if key == "$tuple" else dict(value)  # type: ignore[arg-type]
    return value_of(key[1:], value) if key.startswith("$") else found
