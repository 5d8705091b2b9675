"""The recording that the demo plays: a real electrocardiogram, cut into trials.

Record 208 of the MIT-BIH Arrhythmia Database; source and licence stand in ``README.md`` beside this
file.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME: Final = "ecg_mitdb208.npz"
LEAD: Final = "MLII"
SOURCE: Final = {
    "source": "MIT-BIH Arrhythmia Database, record 208, lead MLII, 19:35 to 24:35",
    "doi": "10.13026/C2F305",
    "licence": "ODC-BY 1.0",
    "millivolts": "(adc - 1024) / 200",
}
_ZERO: Final = 1024
_PER_MILLIVOLT: Final = 200.0

#: A beat, for the demo: the signal rises by so much within so short a time, and not again so soon.
#: Found by eye on this recording; it is no clinical detector.
_RISE_MILLIVOLTS: Final = 0.7
_RISE_SECONDS: Final = 0.04
_PAUSE_SECONDS: Final = 0.25


class Ecg(NamedTuple):
    """A recording.

    Attributes
    ----------
    adc : ndarray, shape (samples,), dtype uint16
        Read-only.
    rate : float
        Samples per second.
    """

    adc: NDArray[np.uint16]
    rate: float

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.adc) / self.rate


class Take(NamedTuple):
    """One trial as it is to be recorded.

    Attributes
    ----------
    attrs : dict
        Its row.
    adc : ndarray, shape (samples,), dtype uint16
        Its samples.
    """

    attrs: dict[str, Any]
    adc: NDArray[np.uint16]


def load() -> Ecg:
    """Load the recording that is shipped with the package."""
    path = resources.files("trialstore._cli").joinpath(NAME)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        adc: NDArray[np.uint16] = arrays["adc"]
        rate = float(arrays["rate_hz"])
    adc.flags.writeable = False
    return Ecg(adc, rate)


def cut(ecg: Ecg, seconds: float, trial_seconds: float) -> list[Take]:
    """Cut the first `seconds` of a recording into trials; the last one may be shorter."""
    end = min(len(ecg.adc), max(1, round(seconds * ecg.rate)))
    step = max(1, round(trial_seconds * ecg.rate))
    return [
        _take(ecg, number, start, min(start + step, end))
        for number, start in enumerate(range(0, end, step))
    ]


def millivolts(adc: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Convert samples; same shape."""
    return (adc.astype(np.float64) - _ZERO) / _PER_MILLIVOLT


def beats(adc: NDArray[np.uint16], rate: float) -> int:
    """Count the heart beats in some samples, good enough for a demo."""
    lag = max(1, round(_RISE_SECONDS * rate))
    signal = millivolts(adc)
    steep = np.flatnonzero(signal[lag:] - signal[:-lag] >= _RISE_MILLIVOLTS)
    if steep.size == 0:
        return 0
    return 1 + int(np.count_nonzero(np.diff(steep) > _PAUSE_SECONDS * rate))


def _take(ecg: Ecg, number: int, start: int, end: int) -> Take:
    adc = ecg.adc[start:end]
    attrs = {
        "trial": number,
        "start": start,
        "samples": end - start,
        "beats": beats(adc, ecg.rate),
        "peak_mV": float(millivolts(adc).max()),
    }
    return Take(attrs, adc)
