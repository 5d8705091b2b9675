"""What a row of the campaign is given and what it answers."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Problems kept with their description; the counts are complete.
_PROBLEMS_KEPT: Final = 10
#: Kinds of breaches, the worst first.
_KINDS: Final = ("silent", "wrong", "broken")


def _severity(problem: str) -> int:
    return _KINDS.index(problem.partition(":")[0])


class CannotRun(Exception):
    """The fault cannot be injected on this machine; the row is not counted as passed."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a row shall try.

    Parameters
    ----------
    is_full : bool
        The full campaign, whose results are published; otherwise the few minutes for every change.
    seed : int
        All randomness of a row comes from it.
    """

    is_full: bool = False
    seed: int = 1

    def of(self, quick: int, full: int) -> int:
        """Return how often to try."""
        return full if self.is_full else quick

    @contextlib.contextmanager
    def workspace(self, *, memory: bool = False) -> Iterator[Path]:
        """Give an empty folder on the disk (or in memory, where there is one), gone afterwards."""
        shared = Path("/dev/shm")
        parent = shared if memory and shared.is_dir() else None
        folder = Path(tempfile.mkdtemp(prefix="trialstore-campaign-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Outcome:
    """What came of a row: counted while it runs.

    Parameters
    ----------
    unit : str
        What was tried, in the plural: ``"kills"``.
    tried : int
        How many faults were injected.
    acknowledged : int
        Trials that had been acknowledged at a level that the fault leaves standing, over all tries.
    named : int
        Acknowledged trials that are missing or damaged, and named with their class.
    silent : int
        Acknowledged trials that are missing and not named (I1, I3). The goal is zero.
    wrong : int
        Trials returned that were not submitted so (I2). The goal is zero.
    broken : int
        Breaches of anything else that the row promises (I4 to I6, and what its line says).
    figures : dict
        Further counts worth telling: integers are added up, of floats the largest is kept.
    problems : list of str
        The first breaches, each with what is needed to repeat it.
    """

    unit: str
    tried: int = 0
    acknowledged: int = 0
    named: int = 0
    silent: int = 0
    wrong: int = 0
    broken: int = 0
    figures: dict[str, int | float | str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether something was tried, and no promise was broken."""
        return self.tried > 0 and not (self.silent or self.wrong or self.broken)

    def count(self, figure: str, by: int = 1) -> None:
        """Add to one of the further figures."""
        self.figures[figure] = int(self.figures.get(figure, 0)) + by

    def peak(self, figure: str, value: float) -> None:
        """Note a further figure of which the largest counts."""
        self.figures[figure] = max(float(self.figures.get(figure, 0.0)), float(value))

    def breach(self, kind: str, what: str, by: int = 1) -> None:
        """Count a breach: `kind` is ``silent``, ``wrong`` or ``broken``."""
        setattr(self, kind, getattr(self, kind) + by)
        self._keep([f"{kind}: {what}"])

    def add(self, other: Outcome) -> None:
        """Take the counts of another part of the same row in."""
        for name in ("tried", "acknowledged", "named", "silent", "wrong", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for figure, value in other.figures.items():
            if isinstance(value, str):
                self.figures[figure] = value
            elif isinstance(value, float):
                self.peak(figure, value)
            else:
                self.figures[figure] = self.figures.get(figure, 0) + value  # type: ignore[operator]
        self._keep(other.problems)

    def _keep(self, problems: list[str]) -> None:
        """Keep the worst: a silent loss is told though a hundred other breaches came first."""
        worst_first = sorted([*self.problems, *problems], key=_severity)
        self.problems = worst_first[:_PROBLEMS_KEPT]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of faults.

    Parameters
    ----------
    number : int
        As in the table of faults.
    fault : str
        What happens to the recorder.
    promise : str
        What must hold beside I1 to I4.
    run : callable
        Injects the fault and counts; raises `CannotRun`.
    """

    number: int
    fault: str
    promise: str
    run: Callable[[Effort], Outcome]
