"""What was found, what gave way, and the sentence for a person: pure, from figures alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trialstore._cli.drill.load import Load

Limit = Literal["disk", "CPU", "loop"]

#: A tick later than this, in seconds, is one that an experimenter would notice.
LATE: Final = 0.005
#: A loop that is late oftener than this (and than ten times the idle loop) has given way.
_LATE_SHARE: Final = 0.01
#: A recorder whose queue was full, or holds more than so many seconds of the load in the end, does
#: not keep up; what a disk's bad second leaves in the queue for a while is what the queue is for.
_FULL: Final = 0.95
_QUEUED_SECONDS: Final = 1.0
#: Chunks that come later than this, in seconds, at the end do not keep up either.
_BEHIND: Final = 0.1
#: One interpreter runs Python on one core at a time.
_BUSY: Final = 0.85


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """The disk alone.

    Parameters
    ----------
    throughput : float
        Bytes a second that are durable, in blocks of 1 MiB, synced every 16.
    median, p90, p99, worst : float
        Seconds that an append of 4 KiB and its sync take.
    free : int
        Free bytes.
    """

    throughput: float
    median: float
    p90: float
    p99: float
    worst: float
    free: int


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the load, at `factor` times its rate.

    Parameters
    ----------
    factor : float
        How many times the rate that was asked for.
    bytes_per_second : float
        Of samples.
    seconds : float
        How long it ran.
    chunks : int
        Chunks that were handed over.
    behind : float
        Seconds by which the last chunks were late.
    late : ndarray, shape (ticks,), float32
        Lateness of a loop that wants to run every millisecond, in seconds.
    queue_limit, queue_peak, queue_bytes : int
        The recorder's queue: its bound, at most, and when the last chunk had been handed over.
    longest_to_durable, longest_hold : float
        Seconds, as `Statistics` has them.
    cpu, loop : float
        Share of one core that this process used, and that its event loop used.
    closing : float
        Seconds until everything was durable and published.
    """

    factor: float
    bytes_per_second: float
    seconds: float
    chunks: int
    behind: float
    late: NDArray[np.float32]
    queue_limit: int
    queue_peak: int
    queue_bytes: int
    longest_to_durable: float
    longest_hold: float
    cpu: float
    loop: float
    closing: float

    def share_late(self) -> float:
        """Share of ticks that were noticeably late."""
        return share_late(self.late)

    def to_json(self) -> dict[str, Any]:
        """Return the figures; of the lateness what sums it up."""
        values = asdict(self)
        values["late"] = summary(self.late)
        return values


def share_late(late: NDArray[np.float32]) -> float:
    """Return the share of ticks later than `LATE`; 0 of none."""
    return float(np.mean(late > LATE)) if len(late) else 0.0


def summary(late: NDArray[np.float32]) -> dict[str, float]:
    """Return what sums a lateness up, in seconds."""
    if not len(late):
        return {"ticks": 0}
    return {
        "ticks": len(late),
        "median": float(np.median(late)),
        "p99": float(np.percentile(late, 99)),
        "worst": float(late.max()),
        "share_later_than_5_ms": share_late(late),
    }


@dataclass(frozen=True, slots=True)
class Crash:
    """A recorder that was killed in the middle.

    Parameters
    ----------
    acknowledged : int
        Trials that it had been told to be durable.
    found : int
        Trials that are there.
    missing : tuple of int
        Acknowledged trials that are not there, or hold something else.
    """

    acknowledged: int
    found: int
    missing: tuple[int, ...]


@dataclass(slots=True)
class Findings:
    """What is known by now; a part that was not reached is None or empty."""

    load: Load
    idle: NDArray[np.float32] | None = None
    disk: DiskFigures | None = None
    file_system: tuple[str | None, bool] | None = None
    steps: list[Step] = field(default_factory=list)
    crash: Crash | None = None

    @property
    def asked(self) -> Step | None:
        """The run at the rate that was asked for."""
        return self.steps[0] if self.steps else None

    def limit_of(self, step: Step) -> Limit | None:
        """Say what gave way in a run, or None if it held."""
        if step.loop > _BUSY:
            return "loop"
        if (
            step.queue_peak > _FULL * step.queue_limit
            or step.queue_bytes > _QUEUED_SECONDS * step.bytes_per_second
            or step.behind > _BEHIND
        ):
            return "CPU" if step.cpu > _BUSY else "disk"
        idle = share_late(self.idle) if self.idle is not None else 0.0
        return "loop" if step.share_late() > max(_LATE_SHARE, 10 * idle) else None

    @property
    def holds(self) -> bool:
        """Whether the rate that was asked for was recorded."""
        return self.asked is not None and self.limit_of(self.asked) is None

    @property
    def headroom(self) -> float:
        """The highest factor that held; 0 if none did."""
        return max((s.factor for s in self.steps if self.limit_of(s) is None), default=0.0)

    @property
    def limit(self) -> Limit | None:
        """What gave way first as the rate rose, or None if nothing did."""
        failed = [step for step in self.steps if self.limit_of(step) is not None]
        return self.limit_of(min(failed, key=lambda step: step.factor)) if failed else None

    @property
    def seconds_of_room(self) -> float | None:
        """How long the free space lasts; the journal and its published copy lie side by side."""
        return None if self.disk is None else self.disk.free / (2 * self.load.bytes_per_second)

    @property
    def is_good(self) -> bool:
        """Whether the computer records the load, and nothing was lost in the crash."""
        return self.holds and (self.crash is None or not self.crash.missing)

    def sentences(self) -> list[str]:
        """Return the verdict as a person says it; only what is known."""
        asked = self.asked
        if asked is None:
            return [f"Nothing can be said yet about {self.load}."]
        if self.holds:
            more = (
                f"with {self.headroom:.1f} × headroom" if self.headroom > 1 else "without headroom"
            )
            gave = f" (then the {self.limit} gives way)" if self.limit else ""
            found = [f"This computer records {self.load} {more}{gave}."]
        else:
            found = [f"This computer does NOT record {self.load}: the {self.limit} gives way."]
        found.append(
            f"Worst loop delay {milliseconds(_worst(asked.late))} while recording"
            + (f", {milliseconds(_worst(self.idle))} idle." if self.idle is not None else ".")
        )
        found.append(
            f"After a power cut you lose at most {milliseconds(asked.longest_to_durable)}."
        )
        if self.crash is not None:
            found.append(_told_of(self.crash))
        if self.file_system is not None and self.file_system[1]:
            found.append(
                f"The disk is remote ({self.file_system[0]}): what is called durable may be in the "
                "server's memory only."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "load": {
                "channels": self.load.channels,
                "rate": self.load.rate,
                "dtype": self.load.dtype.str,
                "chunk_seconds": self.load.period,
                "bytes_per_second": self.load.bytes_per_second,
            },
            "idle_loop": None if self.idle is None else summary(self.idle),
            "disk": None if self.disk is None else asdict(self.disk),
            "file_system": None if self.file_system is None else self.file_system[0],
            "is_network": None if self.file_system is None else self.file_system[1],
            "seconds_of_room": self.seconds_of_room,
            "steps": [{**step.to_json(), "limit": self.limit_of(step)} for step in self.steps],
            "crash": None if self.crash is None else asdict(self.crash),
            "holds": self.holds,
            "headroom": self.headroom,
            "limit": self.limit,
            "verdict": " ".join(self.sentences()),
        }


def _worst(late: NDArray[np.float32]) -> float:
    return float(late.max()) if len(late) else 0.0


def _told_of(crash: Crash) -> str:
    if crash.missing:
        return (
            f"A recorder killed in the middle LOST {len(crash.missing)} of {crash.acknowledged} "
            "trials that it had been told to be durable."
        )
    return (
        f"A recorder killed in the middle lost none of {crash.acknowledged} trials that it had "
        "been told to be durable."
    )


def milliseconds(seconds: float) -> str:
    """Write a short time as a person reads it."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
