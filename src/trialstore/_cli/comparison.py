"""What was read back against what was played: every row, every sample, bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trialstore import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trialstore import TaskReader
    from trialstore._cli.ecg import Take


def differences(reader: TaskReader, array: str, takes: Sequence[Take]) -> list[str]:
    """Name everything that was read and is not what was played; empty if all is equal.

    Parameters
    ----------
    reader : TaskReader
        The task to read.
    array : str
        Name of the array; each trial's is compared with the samples as shape (1, samples).
    takes : sequence of Take
        What was played.
    """
    found: list[str] = []
    for comparison in (_in_rows(reader, takes), _in_samples(reader, array, takes)):
        try:
            found.extend(comparison)
        except StorageError as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def _in_rows(reader: TaskReader, takes: Sequence[Take]) -> Iterator[str]:
    yield from (f"lost: {loss.what} ({loss.evidence})" for loss in reader.losses)
    found = reader.trials
    if len(found) != len(takes):
        yield f"{len(found)} rows where {len(takes)} trials were played"
        return
    names = list(takes[0].attrs) if takes else []
    if list(found.columns) != names:
        yield f"columns {list(found.columns)} where {names} were played"
        return
    for name in names:
        for take, value in zip(takes, found[name].tolist(), strict=True):
            played = take.attrs[name]
            if type(value) is not type(played) or value != played:
                yield f"trial {take.attrs['trial']}: {name} is {value!r}, played was {played!r}"


def _in_samples(reader: TaskReader, array: str, takes: Sequence[Take]) -> Iterator[str]:
    for number, take in enumerate(takes):
        found, played = reader.array(array, trial=number), take.adc[np.newaxis]
        if (found.dtype, found.shape) != (played.dtype, played.shape):
            yield (
                f"trial {number}: {found.dtype} of shape {found.shape},"
                f" played was {played.dtype} of shape {played.shape}"
            )
        elif odd := int(np.count_nonzero(found != played)):
            yield f"trial {number}: {odd} of {played.size} samples differ"
