"""A task that is not published yet: read from its journal, on top of what was published before."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from trialstore._errors import DamagedData
from trialstore._ondisk import layout, recovery
from trialstore._ondisk.lock import holder
from trialstore._ondisk.replay import Replay
from trialstore._reading.frame import columns_from_rows, joined
from trialstore._reading.published import PublishedSource
from trialstore._reading.source import (
    ArraySummary,
    Times,
    Window,
    attrs_of,
    frame_of,
    summary,
)
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.samples import JournalTrial
    from trialstore._reading.frame import Cells


class JournalSource:
    """Follows a journal.

    Guarantee: while a recorder has the task, exactly its durable trials are shown; afterwards every
    trial that is whole.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder.

    Raises
    ------
    FileNotFoundError
        If there is no journal (any more).
    StorageError
        If the journal cannot be understood.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = folder / layout.JOURNAL / layout.LOCK
        manifest = recovery.base_manifest(folder)
        self._base: PublishedSource | None = None
        self._base_trials = 0
        if manifest is not None:
            aside = folder / layout.JOURNAL / layout.BASE
            self._base = PublishedSource(folder, manifest, aside)
            self._base_trials = manifest.trials
        self._replay = Replay((folder / layout.JOURNAL,), self._base_trials)
        self.is_recording = False
        self._kept = 0
        self.poll()

    def poll(self) -> None:
        """Look what has come since; raises as the constructor does."""
        # The lock before and after: a recorder that ends or begins meanwhile counts as recording.
        was_recording = self._has_recorder()
        self._replay.poll()
        self.is_recording = was_recording or self._has_recorder()
        if not self.is_recording:
            self._kept = self._replay.last_seq

    def _has_recorder(self) -> bool:
        owner = holder(self._lock)
        return owner is not None and owner.role == "recorder"

    @property
    def status(self) -> str:
        """``recording``, or how the last session ended: ``complete`` or ``interrupted``."""
        if self.is_recording:
            return "recording"
        end = self._replay.end
        return "interrupted" if end is None else end.status

    @property
    def metadata(self) -> dict[str, Any]:
        """What the experimenter said of the task, from the journal's first frame."""
        openings = self._replay.openings
        if not openings:  # a task that was being resumed, its first frame not yet written
            return {} if self._base is None else self._base.metadata
        return dict(openings[0].description.get("metadata", {}))

    def _declared(self) -> dict[str, ArrayInfo]:
        found = {} if self._base is None else self._base.declared()
        for opening in self._replay.openings:
            described = opening.description.get("arrays", {})
            for name, info in described.items() if isinstance(described, dict) else ():
                found[name] = ArrayInfo.from_json(info)
        return found

    def _trials(self) -> list[JournalTrial]:
        # Whoever takes the task up keeps what survived: it does not vanish until that is said.
        durable = max(self._replay.synced_to, self._kept)
        found = sorted(self._replay.trials.values(), key=lambda trial: trial.index)
        if self.is_recording:
            found = [trial for trial in found if trial.seq <= durable]
        return found

    def file_record(self, name: str) -> dict[str, int] | None:
        """Know nothing: the manifest tells only of what is published."""
        del name
        return None

    def columns(self) -> Cells:
        rows = [trial.commit.row for trial in self._trials()]
        columns = columns_from_rows(rows)
        if self._base is None:
            return columns
        return joined(
            [(self._base.columns(), len(self._base.trial_numbers())), (columns, len(rows))]
        )

    def attrs(self, trials: Sequence[int]) -> list[dict[str, Any]]:
        published = [trial for trial in trials if trial < self._base_trials]
        found = self._base.attrs(published) if self._base is not None and published else []
        fresh = [trial for trial in trials if trial >= self._base_trials]
        return found + [attrs_of(self._replay.trials[trial].commit.row) for trial in fresh]

    def frame(self) -> pd.DataFrame:
        return frame_of(self.columns(), self.trial_numbers())

    def times(self) -> list[Times]:
        base = [] if self._base is None else self._base.times()
        commits = [trial.commit for trial in self._trials()]
        return base + [(c.trial, c.unix_ns, c.monotonic_ns, c.first_unix_ns) for c in commits]

    def trial_numbers(self) -> list[int]:
        base = [] if self._base is None else self._base.trial_numbers()
        return base + [trial.index for trial in self._trials()]

    def array_names(self) -> list[str]:
        first: dict[str, int] = {}
        if self._base is not None:
            first |= self._base.first_trials()
        for trial in self._trials():
            for name in trial.commit.arrays:
                first.setdefault(name, trial.index)
        # As the manifest will have them: by trial, within one the declared ones before the others.
        declared = list(self._declared())
        places = {name: place for place, name in enumerate(declared)}
        return sorted(first, key=lambda name: (first[name], places.get(name, len(declared))))

    def info(self, name: str) -> ArraySummary:
        shapes: dict[int, tuple[int, ...]] = {}
        dtypes: list[np.dtype[Any] | None] = []
        info = self._declared().get(name, ArrayInfo())
        stack_axis = info.stack_axis
        if self._base is not None and name in self._base.array_names():
            known = self._base.info(name)
            shapes.update(known.shapes)
            dtypes.append(known.dtype)
            stack_axis = known.stack_axis
        for trial in self._trials():
            if name in trial.commit.arrays:
                with contextlib.suppress(DamagedData):  # reading it raises; `losses` names it
                    shapes[trial.index], dtype, stack_axis = trial.layout_of(name)
                    dtypes.append(dtype)
        return summary(info, dtypes, shapes, stack_axis)

    def has(self, name: str, trial: int) -> bool:
        if trial < self._base_trials:
            return self._base is not None and self._base.has(name, trial)
        found = self._replay.trials.get(trial)
        return found is not None and name in found.commit.arrays

    def require_whole(self, name: str, trial: int) -> None:
        # What is in the journal alone tells of its arrays itself: reading them raises.
        if self._base is not None and trial < self._base_trials:
            self._base.require_whole(name, trial)

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        if trial < self._base_trials and self._base is not None:
            return self._base.read(name, trial, window, verify=verify)
        found = self._replay.trials[trial]
        return found.array(name) if window is None else found.window(name, *window)

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        if self._base is not None:
            if name in self._base.array_names():
                yield from self._base.each(name, verify=verify)
            else:
                yield from (None for _ in self._base.trial_numbers())
        for trial in self._trials():
            has = name in trial.commit.arrays
            yield self.read(name, trial.index, None, verify=verify) if has else None

    def some(self, name: str, trials: Sequence[int]) -> Iterator[NDArray[Any]]:
        published = [trial for trial in trials if trial < self._base_trials]
        if self._base is not None and published:
            yield from self._base.some(name, published)
        for trial in trials[len(published) :]:
            yield self.read(name, trial, None, verify=True)

    def losses(self) -> list[Loss]:
        base = [] if self._base is None else self._base.losses()
        # While recording, samples were checked by nobody yet and will be by the publisher.
        return base + self._replay.losses(check_samples=not self.is_recording)

    def close(self) -> None:
        """Let go of the segments."""
        self._replay.close()
