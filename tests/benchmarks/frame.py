"""What a row is given and what it answers: pairs that alternate, medians, verdicts."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

#: A measurement: figures by name, as its process printed them.
Figures = dict[str, Any]
Pairs = list[tuple[Figures, Figures]]

_PACKAGES: Final = ("trialstore", "numpy", "pandas", "h5py", "anyio")


class WrongData(Exception):
    """What was read back is not what was stored: figures of who loses data say nothing."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a row shall measure.

    Parameters
    ----------
    level : {"full", "quick", "tiny"}
        All of it; three minutes for everything; or so little that only the code is tried.
    parent : pathlib.Path
        Folder on the disk to be measured.
    """

    level: Literal["full", "quick", "tiny"]
    parent: Path

    def of(self, full: T, quick: T, tiny: T) -> T:
        """Return what fits the level."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.level]

    @property
    def pairs(self) -> int:
        """How many pairs a median is of."""
        return self.of(5, 2, 1)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give an empty folder, gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="trialstore-bench-", dir=self.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a row must reach, and what it reached.

    Parameters
    ----------
    what : str
        What was measured.
    value : float
        The median.
    limit : float
        What it must not exceed, or must reach.
    unit : str
        ``"x"`` for ratios.
    samples : int
        How many pairs, or measurements, the median is of.
    at_least : bool
        The limit is the least that is allowed, not the most.
    """

    what: str
    value: float
    limit: float
    unit: str
    samples: int
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure of one way to do it, for tables and plots.

    Parameters
    ----------
    chart : str
        What is compared: bars of one chart belong together.
    who : str
        Whose figure it is.
    value : float
        The median.
    unit : str
        Its unit.
    samples : int
        How many measurements the median is of.
    """

    chart: str
    who: str
    value: float
    unit: str
    samples: int = 1


@dataclass(slots=True)
class Outcome:
    """What a row has found, filled while it runs."""

    checks: list[Check] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``reached``, ``MISSED``, or ``nothing measured``."""
        if not self.checks:
            return "nothing measured"
        return "reached" if all(check.holds for check in self.checks) else "MISSED"

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        found = asdict(self)
        for line, check in zip(found["checks"], self.checks, strict=True):
            line["holds"] = check.holds
        return found | {"verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of benchmarks.

    Parameters
    ----------
    name : str
        For the command line.
    what, how, target : str
        What is measured, how, and what it must reach, in words.
    run : callable
        Measures; may raise `CannotRun`.
    """

    name: str
    what: str
    how: str
    target: str
    run: Callable[[Effort], Outcome]


def alternate(first: Callable[[], Figures], second: Callable[[], Figures], pairs: int) -> Pairs:
    """Measure A B A B ..., so that what drifts drifts for both."""
    return [(first(), second()) for _ in range(pairs)]


def ratio(pairs: Pairs, figure: str) -> float:
    """Median over the pairs of the second's figure as a multiple of the first's."""
    return float(statistics.median(second[figure] / first[figure] for first, second in pairs))


def median(measured: Sequence[Figures], figure: str) -> float:
    """Median of one figure."""
    return float(statistics.median(each[figure] for each in measured))


def machine(folder: Path) -> dict[str, Any]:
    """Say where the figures come from."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_gib": round(_memory() / 2**30, 1),
        "platform": platform.platform(),
        "file_system": _file_system(folder),
        "python": platform.python_version(),
        "versions": versions(_PACKAGES),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed versions of packages; those that are not installed are left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _file_system(folder: Path) -> str:
    """Type and options of the mount that `folder` is on, as Linux tells them."""
    best, told = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, options, *_ = line.split()
            if folder.resolve().is_relative_to(point) and len(point) >= len(best):
                best, told = point, f"{kind} ({options})"
    return told
