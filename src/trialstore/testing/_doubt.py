"""What may have become of one file's bytes: those that no sync has made safe are in doubt."""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from trialstore.testing._operations import Write

SECTOR: Final = 512
PAGE: Final = 4096


class Effect(enum.Enum):
    """What became of a file's bytes that were not yet safe."""

    #: All of them are there.
    KEPT = "kept"
    #: None of them is; the file is as long as it safely was.
    DROPPED = "dropped"
    #: The file has its length, and zeros.
    ZEROED = "zeroed"
    #: The file has its length, and anything.
    GARBAGE = "garbage"
    #: Those before a sector or page are there, the rest is not, nor is the file longer.
    TORN = "torn"
    #: Those from a page on are there, zeros before it: a later page was written first.
    REORDERED = "reordered"
    #: Those of the first writes are there, those of later ones are not.
    STALE = "stale"


#: An effect, and the byte (or number of writes) at which it changes.
Fate = tuple[Effect, int]


class Loose(NamedTuple):
    write: Write
    #: A later sync succeeded; kept apart only because an earlier one failed.
    is_safe: bool = False
    is_doomed: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """A file between syncs: what is safe of it, and what was written since."""

    base: bytes = b""
    loose: tuple[Loose, ...] = ()

    def synced(self, content: bytes | None) -> File:
        if content is not None:
            return File(content)
        if any(loose.is_doomed for loose in self.loose):
            safe = (
                loose if loose.is_doomed else Loose(loose.write, is_safe=True)
                for loose in self.loose
            )
            return File(self.base, tuple(safe))
        return File(self._written(self.loose))

    def sync_failed(self) -> File:
        doomed = (
            loose if loose.is_safe else Loose(loose.write, is_doomed=True) for loose in self.loose
        )
        return File(self.base, tuple(doomed))

    def _written(self, loose: Iterable[Loose]) -> bytes:
        image = bytearray(self.base)
        for (_, offset, data), *_ in loose:
            image.extend(bytes(max(0, offset + len(data) - len(image))))
            image[offset : offset + len(data)] = data
        return bytes(image)

    def _safe(self) -> bytes:
        return self._written(loose for loose in self.loose if loose.is_safe)

    def _unsafe(self) -> list[tuple[int, int]]:
        """Spans of bytes in doubt; what was safely written over them since is none of them."""
        spans: list[tuple[int, int]] = []
        for (_, offset, data), is_safe, _ in self.loose:
            end = offset + len(data)
            if is_safe:
                left = [(first, min(last, offset)) for first, last in spans]
                right = [(max(first, end), last) for first, last in spans]
                spans = [(first, last) for first, last in left + right if first < last]
            else:
                spans.append((offset, end))
        return spans

    def fates(self) -> list[Fate]:
        """Everything that may have become of it, the whole first."""
        fates: list[Fate] = [(Effect.KEPT, 0)]
        spans = self._unsafe()
        if not spans:
            return fates
        first, last = min(span[0] for span in spans), max(span[1] for span in spans)
        fates += [(Effect.DROPPED, 0), (Effect.ZEROED, 0), (Effect.GARBAGE, 0)]
        inside = range(first // SECTOR * SECTOR + SECTOR, last, SECTOR)
        fates += [(Effect.TORN, at) for at in inside]
        fates += [(Effect.REORDERED, at) for at in inside if at % PAGE == 0]
        unsafe = sum(not loose.is_safe for loose in self.loose)
        return fates + [(Effect.STALE, count) for count in range(1, unsafe)]

    def content(self, fate: Fate, dice: random.Random) -> bytes:
        """What it holds after a power cut with this outcome."""
        effect, at = fate
        whole = self._written(self.loose)
        if effect is Effect.KEPT:
            return whole
        if effect is Effect.DROPPED:
            return self._safe()
        if effect is Effect.STALE:
            numbers = itertools.count()
            return self._written(
                loose for loose in self.loose if loose.is_safe or next(numbers) < at
            )
        safe = self._safe()
        if effect is Effect.TORN:
            image = bytearray(safe.ljust(min(at, len(whole)), b"\0"))
        elif effect is Effect.REORDERED:
            image = bytearray(safe.ljust(len(whole), b"\0"))
        else:
            image = bytearray(whole)
        for first, last in self._unsafe():
            if effect is Effect.TORN and first < at:
                image[first : min(last, at)] = whole[first : min(last, at)]
            elif effect is Effect.REORDERED and last > at:
                image[max(first, at) : last] = whole[max(first, at) : last]
            elif effect is Effect.ZEROED:
                image[first:last] = bytes(last - first)
            elif effect is Effect.GARBAGE:
                image[first:last] = dice.randbytes(last - first)
        return bytes(image)
