"""What is declared about an array before its first sample, and checked on every chunk."""

from __future__ import annotations

import math
import numbers
import unicodedata
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trialstore._arrays import checked_stack_axis
from trialstore._errors import FormatError, InvalidTrial
from trialstore._ondisk import chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike


@dataclass(frozen=True, init=False)
class ArrayInfo:
    """What is known about an array before its first sample.

    Parameters
    ----------
    rate : float, optional
        Sampling rate in Hz.
    unit : str, optional
        Unit of a sample, such as ``"mV"``.
    channels : sequence of str, optional
        Names along the dimension ``"channel"``.
    dims : sequence of str, optional
        Name of each dimension of a chunk, such as ``("channel", "time")``.
    stack_axis : {0, 1, 2}, default 1
        Stack chunks like ``vstack``, ``hstack`` or ``dstack``.
    dtype : dtype_like, optional
        Only chunks of exactly this dtype are taken.

    Raises
    ------
    InvalidTrial
        If one of them is not what is said here; the message names it.

    Examples
    --------
    >>> info = ArrayInfo(rate=2000.0, unit="mV", channels=["FCR", "ECR"], dims=("channel", "time"))
    >>> info.refusal(np.dtype("f8"), (3, 10))
    "has 3 channels where ('FCR', 'ECR') are declared"
    """

    rate: float | None
    unit: str | None
    channels: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    stack_axis: int
    dtype: np.dtype[Any] | None

    def __init__(
        self,
        rate: float | None = None,
        unit: str | None = None,
        channels: Sequence[str] | None = None,
        dims: Sequence[str] | None = None,
        stack_axis: int = 1,
        dtype: DTypeLike | None = None,
    ) -> None:
        fields = {
            "rate": None if rate is None else _checked_rate(rate),
            "unit": None if unit is None else _checked_label(unit, "unit"),
            "channels": None if channels is None else _checked_labels(channels, "channels"),
            "dims": None if dims is None else _checked_labels(dims, "dims"),
            "stack_axis": checked_stack_axis(stack_axis),
            "dtype": None if dtype is None else _checked_dtype(dtype),
        }
        names = fields["dims"]
        if isinstance(names, tuple) and len(set(names)) < len(names):
            raise InvalidTrial(f"dims must differ from one another: {names!r:.80}")
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def refusal(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
        """Say why a chunk of `dtype` and `shape` is not what was declared, or None if it is."""
        if self.dtype is not None and dtype != self.dtype:
            return f"has dtype {dtype} where {self.dtype} is declared"
        if self.dims is None:
            return None
        if len(shape) != len(self.dims):
            return f"has {len(shape)} dimensions where {self.dims} are declared"
        if self.channels is not None and "channel" in self.dims:
            size = shape[self.dims.index("channel")]
            if size != len(self.channels):
                return f"has {size} channels where {self.channels} are declared"
        return None

    def to_json(self) -> dict[str, Any]:
        """Describe it by what JSON can hold."""
        return {
            "rate": self.rate,
            "unit": self.unit,
            "channels": None if self.channels is None else list(self.channels),
            "dims": None if self.dims is None else list(self.dims),
            "stack_axis": self.stack_axis,
            "dtype": None if self.dtype is None else chunks.dtype_to_json(self.dtype),
        }

    @classmethod
    def from_json(cls, described: object) -> ArrayInfo:
        """Undo `to_json`; what is missing is undeclared, and keys of newer versions are left alone.

        Raises
        ------
        FormatError
            If `described` is no such description.
        """
        if not isinstance(described, dict):
            raise FormatError(f"not the description of an array: {described!r:.80}")
        dtype = described.get("dtype")
        try:
            return cls(
                rate=described.get("rate"),
                unit=described.get("unit"),
                channels=described.get("channels"),
                dims=described.get("dims"),
                stack_axis=described.get("stack_axis", 1),
                dtype=None if dtype is None else chunks.dtype_from_json(dtype),
            )
        except InvalidTrial as error:
            raise FormatError(f"not the description of an array: {error}") from error


def _checked_rate(rate: object) -> float:
    if not isinstance(rate, bool) and isinstance(rate, numbers.Real):
        try:
            hertz = float(rate)
        except OverflowError:
            hertz = math.inf
        if 0 < hertz < math.inf:
            return hertz
    raise InvalidTrial(f"rate must be a positive number in Hz, not {rate!r:.80}")


def _checked_label(label: object, what: str) -> str:
    """Text that both JSON and an HDF5 attribute can hold and a terminal can show."""
    if not isinstance(label, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in label):
        raise InvalidTrial(f"{what} must be text without control characters, not {label!r:.80}")
    return str(label)


def _checked_labels(labels: object, what: str) -> tuple[str, ...]:
    if isinstance(labels, (str, bytes, Mapping, AbstractSet)) or not isinstance(labels, Iterable):
        raise InvalidTrial(f"{what} must be a sequence of names, not {labels!r:.80}")
    return tuple(_checked_label(label, what) for label in labels)


def _checked_dtype(described: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(described)
    except (TypeError, ValueError, SyntaxError) as error:
        raise InvalidTrial(f"dtype must be a NumPy dtype, not {described!r:.80}") from error
    if (reason := chunks.refusal_of_dtype(dtype)) is not None:
        raise InvalidTrial(f"dtype {dtype} {reason}")
    return dtype
