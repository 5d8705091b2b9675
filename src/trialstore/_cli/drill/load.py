"""What is recorded: so many channels, so often, in such chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s|min)\s*")
_UNITS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def seconds_of(text: str) -> float:
    """Return a duration such as ``1ms``, ``30s`` or ``2min`` in seconds.

    Raises
    ------
    ValueError
        If it is none, or not longer than nothing.
    """
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration: write 1ms, 0.5s, 30s or 2min")
    return seconds


@dataclass(frozen=True, slots=True)
class Load:
    """A steady stream of samples.

    Parameters
    ----------
    channels : int
        Number of channels.
    rate : float
        Sampling rate of each, in Hz.
    dtype : numpy.dtype
        Of a sample.
    chunk : float
        Seconds of signal in each chunk.
    """

    channels: int
    rate: float
    dtype: np.dtype[Any]
    chunk: float

    @property
    def samples(self) -> int:
        """Samples of each channel in a chunk."""
        return max(1, round(self.rate * self.chunk))

    @property
    def period(self) -> float:
        """Seconds between two chunks."""
        return self.samples / self.rate

    @property
    def bytes_per_second(self) -> float:
        """Bytes of samples in a second."""
        return self.channels * self.rate * self.dtype.itemsize

    def times(self, factor: float) -> Load:
        """Return the same load at a higher rate, in chunks that come as often."""
        return replace(self, rate=self.rate * factor)

    def chunk_of(self, number: int) -> NDArray[Any]:
        """Return chunk `number`: shape (channels, samples), the same in every process."""
        shape = (self.channels, self.samples)
        ramp = np.arange(self.channels * self.samples, dtype=np.uint64) + np.uint64(number * 7919)
        if self.dtype.kind in "iu":
            return (
                (ramp % np.uint64(2 ** (8 * self.dtype.itemsize - 1)))
                .astype(self.dtype)
                .reshape(shape)
            )
        return (ramp % np.uint64(1021)).astype(self.dtype).reshape(shape)

    def __str__(self) -> str:
        rate = f"{self.rate / 1e3:g} kHz" if self.rate >= 1e3 else f"{self.rate:g} Hz"  # noqa: PLR2004 - kilo
        return f"{self.channels} channel{'s' * (self.channels != 1)} at {rate} ({self.dtype})"
