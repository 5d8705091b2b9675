"""Where what is missing should have been."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from trialstore._ondisk.losses import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trialstore._ondisk.segment_file import Damage

#: What is lost with the row of a trial.
ROW: Final = "1 trial"


class Places:
    """Where what is missing should have been: damage between the neighbours, or plain absence.

    Parameters
    ----------
    damages : sequence of Damage
        In any order.
    absence : callable
        ``absence(trial, before)``: what is said of a trial where there is no damage before the
        frame `before`.
    room : int
        How many trials may be named one by one, over all calls of `lost`.
    """

    def __init__(
        self, damages: Sequence[Damage], absence: Callable[[int, int], Loss], room: int
    ) -> None:
        self._damages = sorted(damages, key=lambda damage: damage.first_seq)
        self._firsts = [damage.first_seq for damage in self._damages]
        # The highest end so far never falls, so that it can be searched.
        self._ends = list(accumulate((damage.last_seq for damage in self._damages), max))
        self._absence = absence
        self._room = room
        self._explained: set[int] = set()

    def loss(self, trials: tuple[int, ...], what: str, after: int, before: int) -> Loss:
        """Name a loss whose frames had numbers between `after` and `before`."""
        damage = self._between(after, before)
        if damage is None:
            return replace(self._absence(trials[0], before), trials=trials, what=what)
        return _loss_by(damage, trials, what)

    def lost(self, first: int, end: int, after: int, before: int) -> Iterator[Loss]:
        """Name the trials ``[first, end)``, one by one as far as there is room."""
        if first >= end:
            return
        named = min(end, first + self._room)
        self._room -= named - first
        sample = self.loss((first,), ROW, after, before)
        for index in range(first, named):
            yield replace(sample, trials=(index,))
        if named < end:
            yield replace(sample, trials=(), what=f"{end - named} trials from {named} on")

    def unexplained(self) -> list[Loss]:
        """Name damage that no loss has pointed at."""
        rest = [d for number, d in enumerate(self._damages) if number not in self._explained]
        return [_loss_by(damage, (), "journal frames of no committed trial") for damage in rest]

    def _between(self, after: int, before: int) -> Damage | None:
        """Return the first damage that touches the frames between two; all that do explain it."""
        start, stop = bisect_right(self._ends, after), bisect_left(self._firsts, before)
        touching = [n for n in range(start, stop) if self._damages[n].last_seq > after]
        self._explained.update(touching)
        return self._damages[touching[0]] if touching else None


def _loss_by(damage: Damage, trials: tuple[int, ...], what: str) -> Loss:
    return Loss(trials, what, damage.kind, damage.file, damage.byte_range, damage.evidence)
