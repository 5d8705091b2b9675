"""What a task must hold: a plain list, how much of it was acknowledged, and the comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from tests.campaign.content import attrs_of, joined
from trialstore import DamagedData, FormatError, InvalidName, InvalidTrial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trialstore import TaskReader


class Breach(AssertionError):
    """A promise that was broken.

    Parameters
    ----------
    kind : {'silent', 'wrong', 'broken'}
        As in the campaign.
    what : str
        What was found.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


@dataclass(slots=True)
class Task:
    """One task as it must be.

    Parameters
    ----------
    name : str
        Its name.
    serials : list of int
        What was handed over, by trial number; a serial tells the whole content of a trial.
    floor : int
        So many trials are acknowledged at a level that all faults since then leave standing.
    streamed : int or None
        Chunks of this serial were appended, and no trial has committed them.
    pickles : dict
        For each pickle the serials that may be found in it; None: it may not be there.
    damage : {'none', 'journal', 'other'}
        Which kind of file we have damaged; one damage for each task.
    is_open : bool
        A recorder has it.
    is_exposed : bool
        A power cut or a fault of the disk may have cost the witness, which is never synced, and no
        later session has said how far it got: a damage now would be the second one.
    """

    name: str
    serials: list[int] = field(default_factory=list)
    floor: int = 0
    streamed: int | None = None
    pickles: dict[str, set[int | None]] = field(default_factory=dict)
    damage: str = "none"
    is_open: bool = False
    is_exposed: bool = False
    named: set[int] = field(default_factory=set)
    #: Trials that a power cut took (or our damage) before anybody was told that they were durable,
    #: though not what came after.
    torn: set[int] = field(default_factory=set)

    def settle(self, count: int) -> None:
        """A new session has found `count` trials: these are durable now, the others are gone."""
        if count < self.floor:
            raise Breach("silent", f"{self.name}: {self.floor} acknowledged, goes on at {count}")
        if count > len(self.serials):
            raise Breach("wrong", f"{self.name}: goes on at {count} of {len(self.serials)}")
        del self.serials[count:]
        self.floor = count
        self.streamed = None
        self.is_exposed = False

    def end(self, failed: Sequence[int]) -> None:
        """The task was closed; a disk that stayed sick has cost the trials that are named."""
        self.floor = max(self.floor, min(failed, default=len(self.serials)))

    # --- comparison -------------------------------------------------------------------------------

    def check(self, reader: TaskReader) -> int:
        """Hold what a reader says against the list (I1 to I3); return how many trials it has.

        Raises
        ------
        Breach
            At the first difference.
        """
        try:
            return self._check(reader)
        except (DamagedData, FormatError) as refusal:
            # A damaged manifest or published table is refused whole: that is an answer.
            if self.damage != "other":
                raise Breach("broken", f"{self.name}: {refusal!r}") from refusal
            return 0

    def _check(self, reader: TaskReader) -> int:
        losses = reader.losses
        named = {trial for loss in losses for trial in loss.trials}
        torn = {trial for loss in losses if loss.kind == "torn" for trial in loss.trials}
        new = torn - self.torn if self.damage == "none" else set()
        if new and not self.is_exposed:
            raise Breach("broken", f"{self.name}: no power was cut, but {losses}")
        if early := {trial for trial in new if trial < self.floor}:
            raise Breach("broken", f"{self.name}: {early} were acknowledged, but {losses}")
        self.torn |= torn
        if self.damage == "none" and any(loss.kind != "torn" for loss in losses):
            raise Breach("broken", f"{self.name}: nothing was damaged, but {losses}")
        if not self.is_open and not self.named <= named:
            raise Breach("silent", f"{self.name}: {self.named - named} are no longer named")
        rows = reader.trials
        found = [int(trial) for trial in rows.index]
        missing = set(range(self.floor)) - set(found) - named
        if missing:
            raise Breach("silent", f"{self.name}: acknowledged trials {sorted(missing)} missing")
        if found != sorted(set(found)) or (found and found[-1] >= len(self.serials)):
            raise Breach("wrong", f"{self.name}: {found} of {len(self.serials)} trials")
        for trial, row in zip(found, rows.to_dict("records"), strict=True):
            values = {str(key): value for key, value in row.items() if not pd.isna(value)}
            if values != attrs_of(self.serials[trial]):
                raise Breach("wrong", f"{self.name}: row {trial} is {values}")
        for trial in found:
            self._check_arrays(reader, trial, named)
        if not self.is_open:
            self.named = named
        return len(found)

    def _check_arrays(self, reader: TaskReader, trial: int, named: set[int]) -> None:
        expected = joined(self.serials[trial])
        for name in reader.array_names:
            found = _read(reader, name, trial)
            if isinstance(found, DamagedData):
                if self.damage == "other" or (self.damage == "journal" and trial in named):
                    continue
                if trial in self.torn & named:
                    continue
                if self.damage == "journal" and self.is_open:
                    continue  # samples are checked by nobody while a recorder is at work
                raise Breach("broken", f"{self.name}: array {name!r} of {trial}: {found}")
            if not equal(found, expected.get(name)):
                raise Breach("wrong", f"{self.name}: array {name!r} of {trial} is {found!r:.500}")
        if not expected.keys() <= set(reader.array_names) and self.damage == "none":
            raise Breach("silent", f"{self.name}: no arrays {sorted(expected)} of trial {trial}")

    def check_pickles(self, reader: TaskReader) -> None:
        """Hold the pickles against what was stored; raises as `check`."""
        for name, serials in self.pickles.items():
            try:
                found: Any = reader.pickle(name)
            except InvalidName:
                if None not in serials:
                    raise Breach("silent", f"{self.name}: pickle {name!r} is gone") from None
                continue
            except (DamagedData, FormatError) as refusal:
                if self.damage != "other":
                    raise Breach("broken", f"{self.name}: {refusal!r}") from refusal
                continue
            if found.get("serial") not in serials:
                raise Breach("wrong", f"{self.name}: pickle {name!r} is {found}, not {serials}")

    def check_published(self, folder: Path) -> None:
        """Look at the published arrays with nothing of ours (I6); raises as `check`."""
        if self.damage == "other":
            return
        for path in folder.glob("*.hdf5"):
            with h5py.File(path, "r", locking=False) as file:
                for key in file:
                    if key == "timing":
                        continue
                    expected = joined(self.serials[int(key)]).get(path.stem)
                    if not equal(file[key][()], expected):
                        raise Breach("wrong", f"{self.name}: {path.name} holds another {key}")


def _read(reader: TaskReader, name: str, trial: int) -> NDArray[Any] | DamagedData | None:
    try:
        return reader.array(name, trial=trial)
    except InvalidTrial:
        return None
    except DamagedData as refusal:
        return refusal


def equal(found: NDArray[Any] | None, expected: NDArray[Any] | None) -> bool:
    """Whether two arrays are the same, dtype and all; None is equal to None."""
    if found is None or expected is None:
        return found is expected
    return found.dtype == expected.dtype and np.array_equal(found, expected)
