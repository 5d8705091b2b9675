"""A task that is not published yet: read from its journal, on top of what was published before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trialstore._ondisk import chunks, layout, recovery
from trialstore._ondisk.lock import holder
from trialstore._ondisk.replay import Replay
from trialstore._reading.source import (
    ArraySummary,
    PublishedSource,
    Times,
    Window,
    numbered,
    summary,
)
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.replay import JournalTrial


class JournalSource:
    """Follows a journal.

    Guarantee: while a recorder has the task, exactly its durable trials are shown; afterwards every trial
    that is whole.

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
            tables = folder / layout.JOURNAL / layout.BASE
            self._base = PublishedSource(folder, manifest, tables)
            self._base_trials = manifest.trials
        self._replay = Replay((folder / layout.JOURNAL,), self._base_trials)
        self.is_recording = False
        self.poll()

    def poll(self) -> None:
        """Look what has come since; raises as the constructor does."""
        # The lock first: a recorder that ends between the two looks is then seen as still recording.
        owner = holder(self._lock)
        self.is_recording = owner is not None and owner.role == "recorder"
        self._replay.poll()

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
        return dict(openings[0].description.get("metadata", {})) if openings else {}

    def _declared(self) -> dict[str, ArrayInfo]:
        found: dict[str, ArrayInfo] = {}
        for opening in self._replay.openings:
            described = opening.description.get("arrays", {})
            for name, info in described.items() if isinstance(described, dict) else ():
                found[name] = ArrayInfo.from_json(info)
        return found

    def _trials(self) -> list[JournalTrial]:
        durable = self._replay.synced_to
        found = sorted(self._replay.trials.values(), key=lambda trial: trial.index)
        if self.is_recording:
            found = [trial for trial in found if trial.seq <= durable]
        return found

    def frame(self) -> pd.DataFrame:
        from trialstore._reading.frame import frame_from_rows

        rows = [] if self._base is None else self._base.rows()
        numbers = [] if self._base is None else self._base.trial_numbers()
        for trial in self._trials():
            rows.append(trial.commit.row)
            numbers.append(trial.index)
        return numbered(frame_from_rows(rows), numbers)

    def times(self) -> list[Times]:
        base = [] if self._base is None else self._base.times()
        commits = [trial.commit for trial in self._trials()]
        return base + [(c.trial, c.unix_ns, c.monotonic_ns, c.first_unix_ns) for c in commits]

    def trial_numbers(self) -> list[int]:
        base = [] if self._base is None else self._base.trial_numbers()
        return base + [trial.index for trial in self._trials()]

    def array_names(self) -> list[str]:
        names = {} if self._base is None else dict.fromkeys(self._base.array_names())
        for trial in self._trials():
            names.update(dict.fromkeys(trial.commit.arrays))
        return list(names)

    def info(self, name: str) -> ArraySummary:
        shapes: dict[int, tuple[int, ...]] = {}
        dtypes = []
        stack_axis = 1
        if self._base is not None and name in self._base.array_names():
            known = self._base.info(name)
            shapes.update(known.shapes)
            dtypes += [known.dtype] if known.dtype is not None else []
        for trial in self._trials():
            if name in trial.commit.arrays:
                shape, dtype, stack_axis = self._replay.layout_of(trial, name)
                shapes[trial.index] = shape
                dtypes.append(dtype)
        return summary(self._declared().get(name, ArrayInfo()), dtypes, shapes, stack_axis)

    def has(self, name: str, trial: int) -> bool:
        if trial < self._base_trials:
            return self._base is not None and self._base.has(name, trial)
        found = self._replay.trials.get(trial)
        return found is not None and name in found.commit.arrays

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        if trial < self._base_trials and self._base is not None:
            return self._base.read(name, trial, window, verify=verify)
        found = self._replay.trials[trial]
        if window is not None:
            return self._replay.window(found, name, *window)
        pieces = [chunk.data for chunk in self._replay.chunks(found, name)]
        return chunks.join(pieces, self._replay.layout_of(found, name)[2])

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        if self._base is not None:
            if name in self._base.array_names():
                yield from self._base.each(name, verify=verify)
            else:
                yield from (None for _ in self._base.trial_numbers())
        for trial in self._trials():
            has = name in trial.commit.arrays
            yield self.read(name, trial.index, None, verify=verify) if has else None

    def losses(self) -> list[Loss]:
        base = [] if self._base is None else self._base.losses()
        # While recording, samples were checked by nobody yet and will be by the publisher.
        return base + self._replay.losses(check_samples=not self.is_recording)

    def close(self) -> None:
        """Let go of the segments."""
        self._replay.close()
