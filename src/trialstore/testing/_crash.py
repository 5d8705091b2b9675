"""What a power cut may leave: all states, or a sample of them, and how to see one on a disk."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trialstore import StorageError
from trialstore.testing._doubt import Effect
from trialstore.testing._operations import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from trialstore.testing._doubt import Fate
    from trialstore.testing._moments import Cut


@dataclass(frozen=True, slots=True, repr=False)
class State:
    """One thing that a power cut may leave.

    Attributes
    ----------
    position : int
        How many operations had been done; compare with `PowerCutDisk.position`.
    index : int
        Number of this outcome among those of its position.
    """

    position: int
    index: int
    _cut: Cut
    _lost: frozenset[int]
    _fates: tuple[tuple[int, Fate], ...]
    _seed: int

    def __str__(self) -> str:
        names = [
            f"{edit.name!r} {'not removed' if edit.node is None else 'lost'}"
            for number, step in enumerate(self._cut.pending)
            if number in self._lost
            for edit in step.edits
        ]
        called = {
            node: name
            for names in self._cut.names(frozenset()).values()
            for name, node in names.items()
        }
        files = [
            f"{called.get(number, '?')!r} {effect.value}{f' at {at}' if at else ''}"
            for number, (effect, at) in self._fates
        ]
        where = f"power cut after operation {self.position} ({self._cut.label})"
        return f"{where}: {', '.join(names + files) or 'everything kept'} [{self.index}]"

    def __repr__(self) -> str:
        return f"<{self}>"

    def write_to(self, folder: Path) -> None:
        """Write this state into an empty or new folder.

        Raises
        ------
        StorageError
            If there is something in it.
        OSError
            If it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StorageError(f"{str(folder)!r} is not empty: give each state a new folder")
        self._write(folder, ROOT, self._cut.names(self._lost), dict(self._fates))

    def _write(
        self,
        path: Path,
        number: int,
        folders: Mapping[int, Mapping[str, int]],
        fates: Mapping[int, Fate],
    ) -> None:
        for name, node in folders[number].items():
            if node in folders:
                (path / name).mkdir()
                self._write(path / name, node, folders, fates)
            else:
                dice = random.Random(f"{self._seed} {self.position} {node}")
                fate = fates.get(node, (Effect.KEPT, 0))
                (path / name).write_bytes(self._cut.files[node].content(fate, dice))


class States:
    """Crash states, all of them or a sample that is the same for the same seed.

    Attributes
    ----------
    total : int
        How many there are.

    Notes
    -----
    ``len(states)`` says how many of them are given out. A sample has as many of each position as
    of any other, as far as that has so many. The states in which everything in doubt was kept, all
    names were lost, or all bytes were lost are more likely to be among them than others.
    """

    def __init__(self, moments: Sequence[Cut], limit: int | None, seed: int) -> None:
        self._moments = moments
        self._seed = seed
        self._choices = [_Choices(moment) for moment in moments]
        self.total: int = sum(choices.total for choices in self._choices)
        self._shares = _shares([choices.total for choices in self._choices], limit, seed)

    def __len__(self) -> int:
        return sum(self._shares)

    def __iter__(self) -> Iterator[State]:
        """Yield the states, positions ascending."""
        for moment, choices, share in zip(self._moments, self._choices, self._shares, strict=True):
            for index in choices.sample(share, self._seed):
                yield choices.state(index, self._seed, moment)

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.total} crash states>"


class _Choices:
    """The outcomes of one moment, numbered without being made."""

    def __init__(self, moment: Cut) -> None:
        self._names = moment.losses_of_names()
        self._files = moment.doubtful()
        self.total = len(self._names)
        for _, fates in self._files:
            self.total *= len(fates)
        self._position = moment.position

    def sample(self, count: int, seed: int) -> list[int]:
        if count >= self.total:
            return list(range(self.total))
        # Everything kept, all names lost, all bytes lost (the second fate of every file).
        bytes_lost, radix = 0, 1
        for _, fates in reversed(self._files):
            bytes_lost += radix
            radix *= len(fates)
        corners = [0, radix if len(self._names) > 1 else 0, bytes_lost]
        dice = random.Random(f"{seed} {self._position}")
        drawn = set(corners)
        while len(drawn) < min(self.total, count + len(corners)):
            drawn.add(dice.randrange(self.total))
        return sorted(dice.sample(sorted(drawn), count))

    def state(self, index: int, seed: int, moment: Cut) -> State:
        rest = index
        chosen: list[tuple[int, Fate]] = []
        for number, fates in reversed(self._files):
            rest, digit = divmod(rest, len(fates))
            if digit:
                chosen.append((number, fates[digit]))
        lost = self._names[rest]
        return State(moment.position, index, moment, lost, tuple(chosen[::-1]), seed)


def _shares(totals: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """Give each moment an equal part of `limit`; what one does not need goes to the others."""
    if limit is None or sum(totals) <= limit:
        return list(totals)
    shares, left = [0] * len(totals), limit
    if limit < len(totals):
        for number in random.Random(seed).sample(range(len(totals)), limit):
            shares[number] = 1
        return shares
    order = sorted(range(len(totals)), key=lambda number: totals[number])
    for done, number in enumerate(order):
        shares[number] = min(totals[number], left // (len(totals) - done))
        left -= shares[number]
    return shares
