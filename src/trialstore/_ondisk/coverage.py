"""Which frames of a journal are accounted for, over all its segments.

Frames are numbered through, so that whatever is gone leaves a hole in the numbers, be it a byte, a
sector or a whole file. Only the end needs a witness.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from trialstore._ondisk import layout
from trialstore._ondisk.numbers import MOST
from trialstore._ondisk.segment_file import Damage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trialstore._ondisk.losses import LossKind
    from trialstore._ondisk.segment_file import SegmentFile
    from trialstore._ondisk.witness import Witness


class Part(NamedTuple):
    """One segment of a journal, or the witness of one that is gone.

    Parameters
    ----------
    number : int
        Number of the segment.
    file : SegmentFile or None
        The segment, if it is there.
    said : Witness or None
        What the witness of a segment says that is not there.
    limit : int
        Frames of the part's session above this came after another session had taken over.
    """

    number: int
    file: SegmentFile | None
    said: Witness | None
    limit: int


@dataclass(slots=True)
class Coverage:
    """What is not there.

    Parameters
    ----------
    damages : list of Damage
        Inside segments, before the last whole frame; acknowledged or not.
    absences : list of Damage
        At the end of segments, and whole segments; all of it was acknowledged.
    cut : set of int
        Numbers of the segments whose end is among `absences`: it is not torn.
    """

    damages: list[Damage] = field(default_factory=list)
    absences: list[Damage] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)


def coverage(parts: Sequence[Part]) -> Coverage:
    """Account for every frame number from 1 on.

    Parameters
    ----------
    parts : sequence of Part
        In the order of their numbers.
    """
    found = Coverage()
    durable = _durable(parts)
    covered = 0
    before: Part | None = None
    nameless: Damage | None = None
    for part, known in zip(parts, durable, strict=True):
        if part.said is not None:
            covered = _lost_segment(found, part, part.said, covered)
        elif part.file is not None and part.file.session:
            file = part.file
            found.damages += file.damages(covered)
            first = file.seen.first
            if first > covered + 1 and not file.begins_late:
                if nameless is not None:
                    found.absences.append(replace(nameless, last_seq=first - 1))
                else:
                    found.absences.append(_hole(found, before, part, covered))
            nameless = None
            covered = max(covered, min(file.seen.last, part.limit))
            short = file.shortfall(known)
            if short is not None:
                found.absences.append(short)
                covered = max(covered, min(short.last_seq, part.limit))
        elif part.file is not None and (short := part.file.shortfall(MOST)) is not None:
            nameless = nameless or replace(short, first_seq=covered + 1)
            found.cut.add(part.number)
        before = part
    if nameless is not None:
        found.absences.append(nameless)
    return found


def _durable(parts: Sequence[Part]) -> list[int]:
    """For each part, up to which frame it can be durable: later ones of its session begin there."""
    begins: dict[bytes, int] = {}
    durable = []
    for part in reversed(parts):
        session = b"" if part.file is None else part.file.session
        durable.append(begins.get(session, MOST + 1) - 1)
        if part.file is not None and part.file.seen:
            begins[session] = min(begins.get(session, MOST + 1), part.file.seen.first)
    return durable[::-1]


def _lost_segment(found: Coverage, part: Part, said: Witness, covered: int) -> int:
    """Name a segment of which only the witness is there; return what is accounted for then."""
    evidence = (
        f"the segment is gone; its witness says that frames up to {said.seq} and the first "
        f"{said.trials} trials of the task were durable"
    )
    name = layout.segment_name(part.number)
    first = min(covered + 1, said.seq)
    found.absences.append(Damage(name, first, said.seq, None, evidence, "missing"))
    return max(covered, min(said.seq, part.limit))


def _hole(found: Coverage, before: Part | None, part: Part, covered: int) -> Damage:
    """Name the frames between two segments, at the place where they most likely stood."""
    assert part.file is not None
    first, last = covered + 1, part.file.seen.first - 1
    evidence = f"{part.file.path.name} goes on from frame {last}"
    if before is not None and before.file is not None and before.number + 1 == part.number:
        # No file is missing between the two: the end of the one before is.
        span = before.file.tail
        found.cut.add(before.number)
        kind: LossKind = "damaged" if span[0] < span[1] else "missing"
        return Damage(before.file.path.name, first, last, span, evidence, kind)
    number = 1 if before is None else before.number + 1
    name = layout.segment_name(min(number, part.number))
    return Damage(name, first, last, None, evidence, "missing")
