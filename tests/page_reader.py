"""A reader of journals, written from docs/reference/format.md alone, as a stranger would write it."""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Run = tuple[dict[str, Any], bytes | None]

HEADER = struct.Struct("<8s16sII")
FRAME = struct.Struct("<4sBBHQQQIIIIII")
WITNESS = struct.Struct("<8sQ16s16sQQQIQI")


@dataclass
class Trial:
    """What the page calls a trial; an array of it that is not whole is None."""

    seq: int
    session: bytes
    times: tuple[int, int, int | None]
    attrs: dict[str, Any]
    arrays: dict[str, Any] = field(default_factory=dict)


def padded(length: int) -> int:
    """Round up to a multiple of 8."""
    return -(-length // 8) * 8


def session_of(path: Path, data: bytes) -> bytes:
    """Take the session from either copy of the header, else from the witness."""
    for at in (0, 32):
        if len(data) >= at + 32:
            magic, session, version, crc = HEADER.unpack_from(data, at)
            if magic == b"\x89TRS\r\n\x1a\n" and crc == zlib.crc32(data[at : at + 28]):
                assert version == 1, "a version that this reader does not know"
                return bytes(session)
    said = path.with_suffix(".witness").read_bytes()
    for at in (0, 512):
        magic, _, session, *_, crc = WITNESS.unpack_from(said, at)
        if magic == b"TRSW\x01\0\0\0" and crc == zlib.crc32(said[at : at + 84]):
            return bytes(session)
    raise ValueError(f"nothing in {path} can be read")


def frames_of(data: bytes, session: bytes) -> Iterator[tuple[int, int, Any, bytes | None]]:
    """Yield seq, type, description and samples (None if damaged) of each frame of a segment."""
    at, last = 64, 0
    while at + 56 <= len(data):
        magic, kind, _, size, length, seq, *crcs, crc = FRAME.unpack_from(data, at)
        _, _, meta_length, meta_crc, body_crc, _ = crcs
        begin = at + 56 + padded(meta_length)
        end, whole = at + 56 + padded(length), at + 56 + length
        fits = crc == zlib.crc32(data[at : at + 52], zlib.crc32(session))
        if magic != b"\xf1TrF" or not fits or size != 56 or begin > whole or end > len(data):
            at += 8
            continue
        meta, body = data[at + 56 : at + 56 + meta_length], data[begin:whole]
        at = end
        if seq <= last:
            continue
        last = seq
        if kind <= 7 and zlib.crc32(meta) == meta_crc:
            yield seq, kind, json.loads(meta), body if zlib.crc32(body) == body_crc else None


def read_journal(*folders: Path) -> dict[int, Trial]:
    """Return the trials of a journal, which may lie in two folders, by number."""
    segments = [path for folder in folders for path in folder.glob("*.segment")]
    limits: dict[bytes, float] = {}
    trials: dict[int, Trial] = {}
    counts: dict[int, dict[str, list[int]]] = {}
    runs: dict[tuple[bytes, int, str], dict[int, Run]] = {}
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
                trials[meta["trial"]] = Trial(seq, session, times, attrs)
                counts[meta["trial"]] = meta["arrays"]
    for number, trial in trials.items():
        for name, (count, _) in counts[number].items():
            found = runs.get((trial.session, number, name), {})
            trial.arrays[name] = array_of([found[first] for first in sorted(found)], count)
    return dict(sorted(trials.items()))


def array_of(runs: list[Run], count: int) -> Any:
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
    if len(pieces) != count or count < 2:
        return pieces[0] if len(pieces) == count else None
    axis = runs[0][0]["stack_axis"]
    if axis == 1:
        return np.concatenate([np.atleast_1d(p) for p in pieces], min(pieces[0].ndim, 2) > 1)
    return np.concatenate([(np.atleast_2d, None, np.atleast_3d)[axis](p) for p in pieces], axis)


def tuples(described: Any) -> Any:
    """Make of the lists of JSON what NumPy's own files have: a field is a tuple."""
    if not isinstance(described, list):
        return described
    return [(name, tuples(kind), *map(tuple, shape)) for name, kind, *shape in described]


def value_of(kind: str, text: str) -> Any:
    """Return the value of an attribute; of a kind that is not known here, kind and text."""
    if kind in {"json", "tuple"}:
        value = json.loads(text, object_hook=special)
        return value if kind == "json" else tuple(value)
    if kind == "timedelta":
        days, _, clock = text.partition(" days ")
        hours, minutes, seconds = clock.lstrip("+").split(":")
        return timedelta(int(days), float(seconds), minutes=int(minutes), hours=int(hours))
    if kind.startswith(("datetime64[", "timedelta64[")) and text[0] != "@":
        unit = kind[:-1].partition("[")[2]
        scalar: Any = np.datetime64 if kind.startswith("datetime64") else np.timedelta64
        return scalar(text if kind.startswith("datetime64") or text == "NaT" else int(text), unit)
    if kind in SIMPLE:
        return SIMPLE[kind](text)
    return getattr(np, kind)(text) if kind in NUMPY else (kind, text)


def special(found: dict[str, Any]) -> Any:
    """Give an object with one key that begins with $ its meaning."""
    key, value = next(iter(found.items())) if len(found) == 1 else ("", None)
    if not key.startswith("$"):
        return found
    if key in {"$tuple", "$dict"}:
        return tuple(value) if key == "$tuple" else dict(value)
    return value_of(key[1:], value)


NUMPY = {f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)} | {"float32"}
SIMPLE: dict[str, Any] = {
    "missing": lambda _: None,
    "bool": lambda text: text == "True",
    "int": lambda text: int(text, 0),
    "float": float,
    "complex": complex,
    "str": str,
    "bytes": bytes.fromhex,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "datetime": datetime.fromisoformat,
}
