"""Where what is missing should have been."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trialstore._ondisk.losses import Loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trialstore._ondisk.segment_file import Damage

#: A file of a few bytes can claim any number of trials: so many are named one by one.
_NAMED_SINGLY: Final = 100_000


class Places:
    """Where what is missing should have been: damage between the neighbours, or plain absence."""

    def __init__(self, damages: Sequence[Damage], absence: Loss) -> None:
        self._damages = damages
        self._absence = absence
        self._explained: set[int] = set()

    def loss(self, trials: tuple[int, ...], what: str, after: int, before: int) -> Loss:
        """Name a loss whose frames had numbers between `after` and `before`."""
        touching = [
            number
            for number, damage in enumerate(self._damages)
            if damage.last_seq > after and damage.first_seq < before
        ]
        self._explained.update(touching)
        if not touching:
            return replace(self._absence, trials=trials, what=what)
        return _loss_by(self._damages[touching[0]], trials, what)

    def lost(self, first: int, end: int, after: int, before: int) -> Iterator[Loss]:
        """Name the trials ``[first, end)``, one by one as far as that makes sense."""
        for index in range(first, min(end, first + _NAMED_SINGLY)):
            yield self.loss((index,), "1 trial", after, before)
        if (rest := first + _NAMED_SINGLY) < end:
            yield self.loss((), f"{end - rest} trials from {rest} on", after, before)

    def unexplained(self) -> list[Loss]:
        """Name damage that no loss has pointed at."""
        rest = [d for number, d in enumerate(self._damages) if number not in self._explained]
        return [_loss_by(damage, (), "journal frames of no committed trial") for damage in rest]


def _loss_by(damage: Damage, trials: tuple[int, ...], what: str) -> Loss:
    return Loss(trials, what, damage.kind, damage.file, damage.byte_range, damage.evidence)
