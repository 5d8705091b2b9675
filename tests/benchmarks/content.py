"""The model: what trial number n holds, so that any process can tell it again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHANNELS: Final = 64
#: A tick of the paced load: 40 samples of 64 channels, 20 KB; a trial has 50 ticks, 1 MB.
TICK_SAMPLES: Final = 40
TRIAL_TICKS: Final = 50

_NUMBERS: Final = ("trial", "block", "target", "reaction", "x", "y", "hit")


def attrs_of(trial: int) -> dict[str, Any]:
    """Return the eight attributes of a trial."""
    return {
        "trial": trial,
        "block": trial // 20,
        "target": trial % 8,
        "reaction": trial / 7,
        "x": trial * 0.25,
        "y": -trial / 3,
        "hit": trial % 3 == 0,
        "hand": "left" if trial % 2 else "right",
    }


class Device:
    """An amplifier: every call fills the same buffer anew, as real drivers do.

    Whoever keeps a chunk must copy it; who does not is found out by `differences`.
    """

    def __init__(self, samples: int) -> None:
        noise = np.random.default_rng(samples)
        self._buffer: NDArray[np.float64] = noise.standard_normal((CHANNELS, samples))
        self._next = 0

    def read(self) -> NDArray[np.float64]:
        """Return the next chunk; the one before is gone."""
        self._buffer[0, 0] = self._next
        self._next += 1
        return self._buffer


def trial_array(trial: int, samples: int, chunks: int) -> NDArray[np.float64]:
    """Return what a reader must give for a trial of so many chunks from one `Device`."""
    device = Device(samples)
    device._next = trial * chunks
    return np.hstack([device.read().copy() for _ in range(chunks)])


def differences(
    found: Iterator[tuple[dict[str, Any], NDArray[Any] | None]],
    trials: int,
    samples: int,
    chunks: int,
) -> list[str]:
    """Hold what was read back against the model; return what differs, nothing if all is well.

    Parameters
    ----------
    found : iterator of (dict, numpy.ndarray or None)
        Attributes and array of each trial, in order. Numbers may come back as text or as floats.
    trials : int
        How many there must be.
    samples, chunks : int
        Samples of a chunk, and chunks of a trial; no chunks: trials without arrays.
    """
    wrong: list[str] = []
    count = 0
    for trial, (attrs, array) in enumerate(found):
        count += 1
        expected = attrs_of(trial)
        if not all(_is_same(attrs[name], expected[name]) for name in _NUMBERS):
            wrong.append(f"attributes of trial {trial}")
        if attrs["hand"] != expected["hand"]:
            wrong.append(f"text of trial {trial}")
        if not chunks:
            continue
        if array is None or not np.array_equal(array, trial_array(trial, samples, chunks)):
            wrong.append(f"array of trial {trial}")
    if count != trials:
        wrong.append(f"{count} trials instead of {trials}")
    return wrong


def _is_same(value: Any, expected: float) -> bool:
    """Compare numbers that may have come through a text; QCoDeS keeps 15 digits of a float."""
    if isinstance(value, str) and value in {"True", "False"}:
        value = value == "True"
    return math.isclose(float(value), float(expected), rel_tol=1e-14)
