"""What trial n of task number t holds: any process can tell it again, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHANNELS: Final = 64
SAMPLES: Final = 20
CHUNKS: Final = 50
_POOL: Final = np.random.default_rng(0).standard_normal((127, CHANNELS, SAMPLES))


def attrs_of(task: int, trial: int) -> dict[str, Any]:
    """Return the attributes of a trial; every third has one more."""
    attrs: dict[str, Any] = {"task": task, "n": trial, "code": f"{trial:04d}"}
    if trial % 3 == 0:
        attrs["hit"] = trial % 2 == 0
    return attrs


def chunk_of(task: int, trial: int, number: int) -> NDArray[np.float64]:
    """Return one chunk, shape (64, 20), float64."""
    pick: NDArray[np.float64] = _POOL[(31 * task + 7 * trial + number) % len(_POOL)]
    return pick + (1000.0 * task + trial)


def array_of(task: int, trial: int) -> NDArray[np.float64]:
    """Return the whole array of a trial, shape (64, 1000), float64."""
    return np.hstack([chunk_of(task, trial, number) for number in range(CHUNKS)])
