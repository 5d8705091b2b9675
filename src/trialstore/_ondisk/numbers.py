"""Numbers of frames: which there can be, and which were seen."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: No number of a frame or trial is higher: every JSON reader holds 2**53 exactly, and so many
#: frames would fill 450 petabytes.
MOST: Final = 2**53


class Numbers:
    """A set of integers, kept as runs of consecutive ones; made for rising order.

    Examples
    --------
    >>> seen = Numbers()
    >>> for number in (1, 2, 7, 4):
    ...     seen.add(number)
    >>> (2 in seen, 3 in seen, list(seen.holes()))
    (True, False, [(3, 3), (5, 6)])
    """

    def __init__(self) -> None:
        self._runs: list[list[int]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __contains__(self, number: int) -> bool:
        if not self._runs or number > self._runs[-1][1]:
            return False
        place = bisect_right(self._runs, number, key=_first_of)
        return place > 0 and number <= self._runs[place - 1][1]

    @property
    def first(self) -> int:
        """The lowest number; 0 if there is none."""
        return self._runs[0][0] if self._runs else 0

    @property
    def last(self) -> int:
        """The highest number; 0 if there is none."""
        return self._runs[-1][1] if self._runs else 0

    def add(self, number: int) -> None:
        """Add a number that is not in the set."""
        runs = self._runs
        place = bisect_right(runs, number, key=_first_of) if number < self.last else len(runs)
        runs.insert(place, [number, number])
        for right in (place + 1, place):
            if 0 < right < len(runs) and runs[right - 1][1] + 1 == runs[right][0]:
                runs[right - 1][1] = runs.pop(right)[1]

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield first and last number of each hole between the runs."""
        for left, right in zip(self._runs, self._runs[1:], strict=False):
            yield left[1] + 1, right[0] - 1


def _first_of(run: list[int]) -> int:
    return run[0]
