"""What is missing, in words that a person can act on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from trialstore._errors import FormatError, printable

#: ``refused``: the queue was full and ``on_full="drop"``. ``damaged``: durable bytes that do not
#: fit their checksum. ``missing``: durable frames that are not there any more, or accepted trials
#: that the recorder could not write before it had to end. ``superseded``: frames that a recorder
#: wrote after another had taken the task over. ``torn``: accepted, and not yet durable when the
#: power was cut; what was written after it had reached the disk before it.
LossKind = Literal["refused", "damaged", "missing", "superseded", "torn"]
_KINDS: frozenset[str] = frozenset(get_args(LossKind))


@dataclass(frozen=True, slots=True)
class Loss:
    """One thing that was accepted, or offered and refused, and that cannot be read.

    Parameters
    ----------
    trials : tuple of int
        Numbers of the trials concerned; empty when they have none (a refused trial gets no number).
    what : str
        What is missing, for a person: ``"1 trial"``, ``"3 chunks of 'emg'"``.
    kind : {'refused', 'damaged', 'missing', 'superseded', 'torn'}
        The class of the loss.
    file : str
        Name of the file concerned, relative to the task's folder; empty for a refusal.
    byte_range : tuple of int or None
        First byte and the byte after the last, where the loss has a place in `file`.
    evidence : str
        How it is known.
    """

    trials: tuple[int, ...]
    what: str
    kind: LossKind
    file: str = ""
    byte_range: tuple[int, int] | None = None
    evidence: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the loss as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Loss:
        """Undo `to_json`.

        Raises
        ------
        FormatError
            If `value` is not what `to_json` gives.
        """
        match value:
            case {
                "trials": [*trials],
                "what": str(what),
                "kind": str(kind),
                "file": str(file),
                "byte_range": byte_range,
                "evidence": str(evidence),
            } if kind in _KINDS and all(type(trial) is int for trial in trials):
                pass
            case _:
                raise FormatError(f"not the record of a loss: {value!r:.80}")
        match byte_range:
            case None:
                span = None
            case [int(first), int(end)]:
                span = (first, end)
            case _:
                raise FormatError(f"not the record of a loss: {value!r:.80}")
        shown = map(printable, (what, file, evidence))  # they come to stand in messages
        return cls(tuple(trials), next(shown), kind, next(shown), span, next(shown))  # type: ignore[arg-type]
