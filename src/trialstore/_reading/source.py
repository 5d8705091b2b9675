"""Where a task's trials come from: published files, the journal, or another program's files.

Three classes with the same methods; `CurrentSource` chooses the right one at each question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trialstore._reading.frame import build_frame, decode_cell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.values import NamedCell
    from trialstore._reading.frame import Cells
    from trialstore.design import ArrayInfo

Window = tuple[int, int]

#: Number, acceptance (unix, monotonic) and first chunk (unix) of a trial, times in nanoseconds.
Times = tuple[int, int, int, int | None]


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """What is known of one array of a task.

    Parameters
    ----------
    dtype : numpy.dtype or None
        Of every trial, or None if trials differ.
    shapes : dict
        Shape for each trial number that has the array.
    rate : float or None
        Sampling rate in hertz.
    unit : str or None
        Unit of the samples.
    channels : tuple of str or None
        Names of the channels.
    dims : tuple of str or None
        Name of each axis.
    stack_axis : int
        Axis along which chunks were stacked, as AxoPy's.
    """

    dtype: np.dtype[Any] | None
    shapes: dict[int, tuple[int, ...]]
    rate: float | None
    unit: str | None
    channels: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    stack_axis: int


def summary(
    info: ArrayInfo,
    dtypes: Sequence[np.dtype[Any] | None],
    shapes: dict[int, tuple[int, ...]],
    stack_axis: int,
) -> ArraySummary:
    """Put a declaration and what was found together; a dtype of None stands for several."""
    first = dtypes[0] if dtypes else None
    same = all(found is not None and found == first for found in dtypes)
    return ArraySummary(
        first if same else None, shapes, info.rate, info.unit, info.channels, info.dims, stack_axis
    )


def frame_of(columns: Cells, numbers: list[int]) -> pd.DataFrame:
    """Make the DataFrame of these trials; one without gaps keeps a plain index."""
    frame = build_frame(columns, len(numbers))
    if numbers != list(range(len(numbers))):
        import pandas as pd

        frame.index = pd.Index(numbers, dtype="int64")
    return frame


def attrs_of(row: Sequence[NamedCell]) -> dict[str, Any]:
    """Return the attributes of one trial as they were recorded, without those that are missing."""
    return {name: decode_cell(kind, text) for name, kind, text in row if kind != "missing"}


class Source(Protocol):
    """One place that trials come from."""

    @property
    def status(self) -> str:
        """``recording``, ``complete``, ``interrupted`` or ``foreign``."""
        ...

    @property
    def metadata(self) -> dict[str, Any]:
        """What the experimenter said of the task."""
        ...

    def file_record(self, name: str) -> dict[str, int] | None:
        """Size and CRC-32 that a file must have, or None if nothing is known of it."""
        ...

    def columns(self) -> Cells:
        """Return the columns of the trials in `trial_numbers`, not yet decoded."""
        ...

    def attrs(self, trials: Sequence[int]) -> list[dict[str, Any]]:
        """Return the attributes of some trials, without those that are missing."""
        ...

    def frame(self) -> pd.DataFrame:
        """Return one row per trial, indexed by trial number."""
        ...

    def times(self) -> list[Times]:
        """Return number, acceptance (unix, monotonic) and first chunk (unix) in nanoseconds."""
        ...

    def trial_numbers(self) -> list[int]:
        """Return the numbers of the trials whose rows are whole."""
        ...

    def array_names(self) -> list[str]:
        """Return names of arrays that some trial has, or had."""
        ...

    def info(self, name: str) -> ArraySummary:
        """Describe one array."""
        ...

    def has(self, name: str, trial: int) -> bool:
        """Whether a trial has an array."""
        ...

    def require_whole(self, name: str, trial: int) -> None:
        """Raise DamagedData if an array of a trial was lost: it must not look as if never there."""
        ...

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        """Return one trial's array or a part of it."""
        ...

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        """Yield the array of each trial in `trial_numbers`, None where a trial has none."""
        ...

    def some(self, name: str, trials: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the arrays of some trials, which have one; verified, and the file opened once."""
        ...

    def losses(self) -> list[Loss]:
        """Return what is missing."""
        ...
