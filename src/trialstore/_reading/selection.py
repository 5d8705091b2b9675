"""Which part of a dataset is read, and into what: pure functions beside the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from trialstore._errors import StorageError


def hyperslab(
    selection: tuple[slice, ...], shape: tuple[int, ...], name: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Start, count and step along every axis."""
    if len(selection) > len(shape):
        raise StorageError(f"selection of {len(selection)} axes from {name!r} of shape {shape}")
    rest = (slice(None),) * (len(shape) - len(selection))
    ranges = [
        range(*chosen.indices(length))
        for chosen, length in zip((*selection, *rest), shape, strict=True)
    ]
    if any(axis.step < 1 for axis in ranges):
        raise StorageError(f"selection from {name!r} runs backwards: {selection!r}")
    return (
        tuple(axis.start for axis in ranges),
        tuple(len(axis) for axis in ranges),
        tuple(axis.step for axis in ranges),
    )


def without_metadata(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Drop h5py's notes on a dtype (encoding, enum, opaque); `numpy.save` warns about them."""
    if dtype.names is not None:
        return np.dtype(
            {
                "names": dtype.names,
                "formats": [without_metadata(dtype[name]) for name in dtype.names],
                "offsets": [dtype.fields[name][1] for name in dtype.names] if dtype.fields else [],
                "itemsize": dtype.itemsize,
            }
        )
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((without_metadata(base), shape))
    return np.dtype(dtype.str)
