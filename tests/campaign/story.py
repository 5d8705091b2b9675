"""What an experiment on a sick disk is to record, and what it has told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A stop before each attempt to create the task.
BEFORE_CREATING: Final = -1


@dataclass(frozen=True, slots=True)
class Settings:
    """What is recorded, and how.

    Parameters
    ----------
    root, fallback : str
        Where; no second disk if `fallback` is empty.
    count : int
        Trials.
    flush_every : int
        Everything must be durable after so many trials.
    publish_every : int
        Published between blocks of so many; 0: only at the end.
    bulk : int
        Bytes of one more array in each trial.
    child : bool
        Whether the publisher is a process of its own.
    lasting : bool
        Give up at the first trouble, instead of waiting until it is over.
    stops : tuple of int
        Before these trials, and before closing if `count` is among them, wait to be told to go on;
        `BEFORE_CREATING` stands for each attempt to create the task.
    late : float
        Ticks of the loop that come later than so many seconds are counted.
    """

    root: str
    fallback: str = ""
    count: int = 12
    flush_every: int = 3
    publish_every: int = 0
    bulk: int = 0
    on_full: Literal["wait", "raise", "drop"] = "wait"
    queue_bytes: int = 256 * 2**20
    close_timeout: float = 20.0
    child: bool = True
    keep_journal: bool = False
    lasting: bool = False
    stops: tuple[int, ...] = ()
    late: float = 0.1


@dataclass(slots=True)
class Told:
    """What an experiment on a sick disk has told, put together."""

    submitted: int = 0
    accepted: int = 0
    durable: set[int] = field(default_factory=set)
    published: int = 0
    refusals: list[str] = field(default_factory=list)
    half_made: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failovers: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    write_failures: list[str] = field(default_factory=list)
    publish_failures: list[str] = field(default_factory=list)
    full: int = 0
    dropped: int = 0
    is_closed: bool = False
    closing: float = 0.0
    late: float = 0.0
    times_late: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take one event in."""
        match event:
            case {"submitted": int(number)}:
                self.submitted = max(self.submitted, number + 1)
            case {"accepted": int(count)}:
                self.accepted = count
            case {"durable": int(count)}:
                self.durable.update(range(count))
            case {"published": int(count)}:
                self.published = max(self.published, count)
            case {"refused": str(error), "left": bool(left)}:
                self.refusals.append(error)
                if left:
                    self.half_made.append(error)
            case {"warning": str(what)}:
                self.warnings.append(what)
            case {"failover": str(what)}:
                self.failovers.append(what)
            case {"trouble": str(what)}:
                self.troubles.append(what)
            case {"failed": str(error), "trials": list(trials)}:
                self.failed.update(trials)
                self.write_failures.append(error)
            case {"not published": str(error)}:
                self.publish_failures.append(error)
            case {"full": str()}:
                self.full += 1
            case {"dropped": int()}:
                self.dropped += 1
            case {"closed": True, **rest}:
                self.is_closed = True
                self.closing = rest["seconds"]
                self.late, self.times_late = rest["late"], rest["times_late"]
                self.statistics = rest["statistics"]
