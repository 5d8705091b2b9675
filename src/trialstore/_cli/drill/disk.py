"""The disk alone, as a recorder uses it: append and sync. Blocks."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from trialstore._cli.drill.verdict import DiskFigures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BLOCK: Final = 1 << 20
_SYNC_EVERY: Final = 16
_SMALL: Final = 4096
_SYNCS: Final = 300


@dataclass(slots=True)
class _File:
    """A new file that is gone afterwards."""

    path: Path
    fd: int = -1

    def __enter__(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.fd = os.open(self.path, flags, 0o666)
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self.path.unlink()


_sync = getattr(os, "fdatasync", os.fsync)


def measure(folder: Path, seconds: float, tick: Callable[[float], None]) -> DiskFigures:
    """Write and sync for about `seconds`; `tick` hears how much of that is done, from 0 to 1.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    with _File(folder / "throughput") as fd:
        throughput = _throughput(fd, seconds / 2, shutil.disk_usage(folder).free // 10, tick)
    with _File(folder / "latency") as fd:
        syncs = _latencies(fd, seconds / 2, tick)
    free = shutil.disk_usage(folder).free
    worst = float(syncs.max())
    return DiskFigures(throughput, float(np.median(syncs)), *_percentiles(syncs), worst, free)


def _percentiles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    return float(np.percentile(values, 90)), float(np.percentile(values, 99))


def _throughput(fd: int, seconds: float, limit: int, tick: Callable[[float], None]) -> float:
    """Bytes a second that are durable, in large blocks."""
    block = os.urandom(_BLOCK)
    began, written = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds and written < limit:
        for _ in range(_SYNC_EVERY):
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
            written += _BLOCK
        _sync(fd)
        tick(took / seconds / 2)
    return written / (time.perf_counter() - began)


def _latencies(
    fd: int, seconds: float, tick: Callable[[float], None]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds that each small append and its sync take."""
    block = os.urandom(_SMALL)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < _SYNCS and (began := time.perf_counter()) < end:
        os.write(fd, block)
        _sync(fd)
        found.append(time.perf_counter() - began)
        tick(0.5 + len(found) / _SYNCS / 2)
    return np.array(found)
