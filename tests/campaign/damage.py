"""Rows 9 to 14: a journal that was damaged after it was written.

Three golden journals are damaged in every way, each mutant is read, and what comes back is held
against the memory: nothing wrong (I2), nothing unharmed missing (I1), everything else named (I3),
nothing changed on disk (I4).
"""

from __future__ import annotations

import itertools
import json
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from tests.campaign.bench import (
    NAMES,
    Bench,
    Journal,
    Span,
    frames_of,
    golden,
    remembered,
    witness_of,
)
from tests.campaign.frame import Effort, Outcome, Row
from tests.golden.make import memory_of
from tests.journals import Recording
from trialstore._ondisk.journal import FrameType, encode_frame, encode_header, salt_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

SECTORS: Final = (512, 4096)
#: Mutants of each journal at quick effort.
_QUICK: Final = 400


def sampled(
    effort: Effort, mutants: Sequence[T], quick: int = _QUICK, full: int | None = None
) -> Sequence[T]:
    """Return all of them (or `full`) at full effort, else the same few every time."""
    most = full if effort.is_full else quick
    if most is None or len(mutants) <= most:
        return mutants
    return random.Random(effort.seed).sample(mutants, most)


@contextmanager
def benches(effort: Effort, outcome: Outcome, *more: Journal) -> Iterator[list[Bench]]:
    """Lay each golden journal, or these, on a bench of its own."""
    with effort.workspace(memory=True) as folder:
        known = more or [golden(name) for name in NAMES]
        yield [Bench(folder / journal.name, journal, outcome) for journal in known]


def row_9(effort: Effort) -> Outcome:
    """Cut every file of a journal at every byte."""
    outcome = Outcome("cuts")
    with benches(effort, outcome) as all_benches:
        for bench in all_benches:
            files = bench.known.files
            cuts = [(name, at) for name, data in files.items() for at in range(len(data))]
            for name, at in sampled(effort, cuts):
                bench.try_files({name: files[name][:at]}, f"{name} cut at byte {at}")
    return outcome


def row_10(effort: Effort) -> Outcome:
    """Flip every bit, and give every byte other values."""
    outcome = Outcome("flips and overwritten bytes")
    dice = random.Random(effort.seed)
    with benches(effort, outcome) as all_benches:
        for bench in all_benches:
            files = bench.known.files
            places = [(name, at) for name, data in files.items() for at in range(len(data))]
            bits = [(*place, bit) for place in places for bit in range(8)]
            for name, at, bit in sampled(effort, bits):
                flipped = files[name][at] ^ 1 << bit
                _overwrite(bench, name, at, bytes([flipped]), f"bit {bit} of byte {at}", most=1)
                outcome.count("bits flipped")
            values = [
                (*place, value) for place in places for value in (0, 0xFF, dice.randrange(256))
            ]
            for name, at, value in sampled(effort, values):
                _overwrite(bench, name, at, bytes([value]), f"byte {at} = {value}", most=1)
                outcome.count("bytes overwritten")
    return outcome


def row_11(effort: Effort) -> Outcome:
    """Zero every sector, and fill it with ones and with noise."""
    outcome = Outcome("sectors overwritten")
    noise = random.Random(effort.seed).randbytes(max(SECTORS))
    with benches(effort, outcome) as all_benches:
        for bench in all_benches:
            mutants = [
                (name, at, size, filler)
                for size in SECTORS
                for name, data in bench.known.files.items()
                for at in range(0, len(data), 8 if effort.is_full else size // 8)
                for filler in (bytes(size), b"\xff" * size, noise[:size])
            ]
            for name, at, size, filler in mutants:
                _overwrite(bench, name, at, filler, f"{size} bytes at {at} = {filler[:2].hex()}...")
                outcome.count(f"of {size} bytes")
    return outcome


def _overwrite(
    bench: Bench, name: str, at: int, data: bytes, where: str, *, most: int | None = None
) -> None:
    old = bench.known.files[name]
    new = (old[:at] + data + old[at + len(data) :])[: len(old)]
    bench.try_files({name: new}, f"{name}: {where}", most=most)


def row_12(effort: Effort) -> Outcome:
    """Let a disk mix up sectors, and a person files."""
    outcome = Outcome("sectors and files mixed up")
    with benches(effort, outcome) as all_benches:
        for bench in all_benches:
            for size in SECTORS[:1] if not effort.is_full else (64, *SECTORS):
                for name in bench.known.segments:
                    _mix_up_sectors(bench, name, size, 32 if effort.is_full else size // 4)
            _mix_up_files(bench)
    return outcome


def _mix_up_sectors(bench: Bench, name: str, size: int, step: int) -> None:
    data, count = bench.known.files[name], bench.outcome.count
    elsewhere = bench.known.files[bench.known.segments[-1]]
    for at in range(0, len(data) - size, step):
        end = at + size
        sector, where = data[at:end], f"{name}: {size} bytes at {at}"
        for stale in (data[max(at - size, 0) :][:size], elsewhere[at:end].ljust(size, b"\0")):
            mutant = {name: data[:at] + stale + data[end:]}
            bench.try_files(mutant, f"{where} stale", is_moved=at < size)
            count("stale")
        removed = data[:at] + data[end:]
        bench.try_files({name: removed}, f"{where} removed", [Span(name, at, end)])
        count("removed")
        for place in (end, len(data) // 16 * 8):
            doubled = data[:place] + sector + data[place:]
            told = f"{where} doubled at {place}"
            bench.try_files({name: doubled}, told, [Span(name, place, place)])
            count("doubled")
        for other in range(end, len(data) - size, size):
            swapped = data[:at] + data[other:][:size] + data[end:other] + sector
            swapped += data[other + size :]
            spans = [Span(name, at, end), Span(name, other, other + size)]
            told = f"{where} swapped with {other}"
            bench.try_files({name: swapped}, told, spans, is_moved=True)
            count("swapped")


def _mix_up_files(bench: Bench) -> None:
    files, segments, count = bench.known.files, bench.known.segments, bench.outcome.count
    for name in files:
        bench.try_files({name: None}, f"{name} deleted")
        count("files deleted")
    # With the newest witness the last evidence would go.
    for name in segments[:-1]:
        bench.try_files({name: None, witness_of(name): None}, f"{name} deleted with its witness")
        count("files deleted")
    bench.try_files({witness_of(name): None for name in segments}, "all witnesses deleted")
    strangers = {"000001.witness of another": golden("clean").files["000001.witness"]}
    for (source, data), target in itertools.product((files | strangers).items(), segments):
        target = witness_of(target)
        if source.endswith("ness") and source != target:
            bench.try_files({target: data}, f"{source} copied over {target}")
            count("witnesses copied")
    for number, source in itertools.product((7, 10**6), segments):
        copies = {f"{number:06d}.witness": files[witness_of(source)]}
        bench.try_files(copies, f"witness of {source} copied to {number}")
        copies[f"{number:06d}.segment"] = files[source]
        bench.try_files(copies, f"{source} copied to {number}")
        count("segments copied")


def row_13(effort: Effort) -> Outcome:
    """Append garbage, and what once were frames of another journal or of this one."""
    outcome = Outcome("appendices")
    dice = random.Random(effort.seed)
    with benches(effort, outcome) as all_benches:
        strangers = [bench.known.files["000001.segment"] for bench in all_benches]
        alien = _segment_of(bytes(range(16, 32)), 12)
        for bench in all_benches:
            for name in bench.known.segments:
                own = bench.known.files[name]
                tails = [dice.randbytes(n) for n in range(1, effort.of(20, 200))]
                tails += [bytes(n) for n in range(1, effort.of(20, 200))]
                tails += [b"\xf1TrF" * n for n in range(1, effort.of(10, 50))]
                tails += [alien, alien[64:], *(alien[64:][:n] for n in range(0, len(alien), 16))]
                tails += [own, own[64:], *strangers, *(stranger[64:] for stranger in strangers)]
                for number, tail in enumerate(tails):
                    where = f"{name}: appendix {number} of {len(tail)} bytes"
                    bench.try_files({name: own + tail}, where)
                    padded = own + bytes(-len(own) % 8) + tail
                    bench.try_files({name: padded}, f"{where}, at a multiple of 8")
    return outcome


def _segment_of(session: bytes, frames: int) -> bytes:
    """Return a segment of another session, whose numbers go on from any of ours."""
    data, previous = encode_header(session), 0
    for seq in range(10, 10 + frames):
        meta = json.dumps(
            {
                "trial": seq,
                "row": [["n", "int", "666"]],
                "arrays": {},
                "unix_ns": 1,
                "monotonic_ns": 2,
                "first_unix_ns": None,
            }
        ).encode()
        pieces, previous = encode_frame(
            *(FrameType.TRIAL, meta),
            seq=seq,
            synced_to=seq - 1,
            previous=previous,
            salt=salt_of(session),
        )
        data += b"".join(pieces)
    return data


def row_14(effort: Effort) -> Outcome:
    """Damage every byte of a frame whose samples are themselves a journal."""
    outcome = Outcome("damaged frames around a journal")
    foreign = golden("clean").files["000001.segment"]
    with effort.workspace(memory=True) as folder:
        # What a recorder could have stored of its own segment: all that was there before.
        own = _around(folder / "first", b"").files["000001.segment"]
        own = own[: next(f for f in frames_of(own) if f.type == FrameType.CHUNKS).offset]
        inside = {"foreign": foreign, "foreign, cut": foreign[:2000], "own": own}
        inside |= {f"own, cut at {n}": own[:n] for n in range(300, len(own), 150)}
        inside["own, shifted"] = bytes(4) + own
        around = {what: _around(folder / what, data) for what, data in inside.items()}
    with benches(effort, outcome, *around.values()) as all_benches:
        for bench in all_benches:
            data = bench.known.files["000001.segment"]
            outer = next(f for f in frames_of(data) if f.type == FrameType.CHUNKS)
            mutants = [(at, bit) for at in range(outer.offset, outer.end) for bit in range(8)]
            for at, bit in sampled(effort, mutants, 300, 2000):
                _overwrite(
                    *(bench, "000001.segment", at, bytes([data[at] ^ 1 << bit])),
                    where=f"bit {bit} of byte {at}",
                    most=1,
                )
    return outcome


def _around(folder: Path, inside: bytes) -> Journal:
    """Record a journal of eight trials; the fifth has bytes as its samples."""
    recording = Recording(folder, session="ff" * 16)
    for index in range(8):
        if index == 4:
            recording.append("blob", np.frombuffer(inside, "u1"))
        recording.trial(n=index, text="x" * 40)
        recording.commit()
    recording.close()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    memory = json.loads(json.dumps(memory_of([recording])))
    return remembered(folder.name, files, memory)


ROWS: Final = (
    Row(9, "journal cut at every byte", "nothing is silent while the witness is there", row_9),
    Row(10, "every bit flipped, every byte overwritten", "at most one trial is lost", row_10),
    Row(11, "every sector overwritten", "what was durable is never called torn", row_11),
    Row(12, "sectors and files mixed up", "what is whole is found wherever it stands", row_12),
    Row(13, "garbage and foreign frames appended", "none of it is taken for a frame", row_13),
    Row(14, "a journal stored as samples, its frame damaged", "it never comes to light", row_14),
)
