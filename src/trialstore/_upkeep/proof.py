"""Whether a journal may go: everything in it stands in the published files, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import DamagedData, StorageError
from trialstore._ondisk import chunks, layout, manifest
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.samples import read_chunks, run_at
from trialstore._reading.frame import rows_of
from trialstore._reading.hdf5 import ArrayFile
from trialstore._reading.published import PublishedSource
from trialstore._upkeep.gathering import Gathering
from trialstore._upkeep.published import PublishedSet
from trialstore._upkeep.report import LOST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.manifest import Manifest
    from trialstore._ondisk.samples import ChunkRef, JournalTrial
    from trialstore._ondisk.values import NamedCell
    from trialstore._upkeep.gathering import Tick

_SLAB_BYTES: Final = 32 * 2**20
#: What may lie in a journal besides segments and witnesses.
_OTHERS: Final = frozenset(
    (layout.LOCK, layout.PUBLISH_LOCK, layout.ANSWER, layout.BASE, layout.RESERVE)
)
#: Beside them: that `recover` is at work, see there.
RECOVERING: Final = "recovering.json"


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared, and why it is not enough.

    Parameters
    ----------
    trials, arrays, nbytes : int
        Trials, arrays of trials, and bytes of samples that were compared and found equal.
    damaged : int
        Frames and arrays of the journal that cannot be compared, because they are damaged.
    folders : tuple of pathlib.Path
        Where the journal's segments lie.
    refusal : str or None
        Why the journal is still needed; None if it is not.
    """

    trials: int = 0
    arrays: int = 0
    nbytes: int = 0
    damaged: int = 0
    folders: tuple[Path, ...] = ()
    refusal: str | None = None

    def __str__(self) -> str:
        if self.refusal is not None:
            return self.refusal
        found = (
            f"{self.trials} trials with {self.arrays} arrays ({self.nbytes} bytes of samples) were "
            "compared with the published files just now: every bit is there"
        )
        if self.damaged:
            found += f"; {self.damaged} damaged parts would be gone for good"
        return found


class _NotProved(Exception):
    """Why the journal is still needed."""


def prove(
    task: Path,
    journal: Path,
    extra: Sequence[Path] = (),
    *,
    damaged: bool = False,
    tick: Tick = lambda _: None,
) -> Proof:
    """Compare a journal with a task's published files. Reads only, and never raises.

    Parameters
    ----------
    task : pathlib.Path
        The task's folder, published.
    journal : pathlib.Path
        The journal: in the task's folder, or in the trash.
    extra : sequence of pathlib.Path, optional
        Further folders with segments.
    damaged : bool, optional
        Let damaged parts pass, which were lost before publication and are of use to nobody but a
        person who looks at single bytes.
    tick : callable, optional
        Called with the number of bytes that have been read since the last call.
    """
    try:
        comparison = _Comparison(task, journal, damaged=damaged, tick=tick)
        return comparison.run(extra)
    except _NotProved as reason:
        return Proof(refusal=str(reason))
    except (StorageError, OSError) as error:
        return Proof(refusal=f"it cannot be compared: {error}")


class _Comparison:
    """Compares one journal; `_NotProved` ends it."""

    def __init__(self, task: Path, journal: Path, *, damaged: bool, tick: Tick) -> None:
        self._task = task
        self._journal = journal
        self._may_be_damaged = damaged
        self._tick = tick
        self._manifest = self._published_manifest()
        self._rows: dict[int, list[NamedCell]] = {}
        self._trials = self._arrays = self._nbytes = self._damaged = 0

    def _published_manifest(self) -> Manifest:
        described = manifest.read(self._task)
        if described is None or described.status == "recording":
            raise _NotProved("the task is not published")
        return described

    def run(self, extra: Sequence[Path]) -> Proof:
        """Compare all there is."""
        strangers = sorted(
            name
            for name in (entry.name for entry in self._journal.iterdir())
            if name not in _OTHERS
            and name != RECOVERING
            and not layout.is_of_journal(name)
            and not layout.is_building(name)
        )
        if strangers:
            raise _NotProved(f"it holds files that are not ours: {strangers!r:.200}")
        self._check_published()
        base = manifest.read(self._journal / layout.BASE)
        with Replay((self._journal, *extra), 0 if base is None else base.trials) as replay:
            replay.poll()
            self._check_losses(replay)
            if base is not None:
                self._compare_base(base)
            for trial in replay.trials.values():
                self._compare_trial(trial)
            for (session, number), arrays in replay.uncommitted().items():
                for name, refs in arrays.items():
                    self._compare_loose(f"{number}_{session.hex()[:8]}", number, name, refs)
            folders = tuple(dict.fromkeys(path.parent for path in replay.segments))
        return Proof(self._trials, self._arrays, self._nbytes, self._damaged, folders)

    def _check_published(self) -> None:
        """Verify the published files themselves."""
        found = Gathering(self._tick)
        PublishedSet(self._task, self._manifest, found).check()
        lost = [finding for finding in found.findings if finding.kind in LOST]
        if lost:
            raise _NotProved(f"{lost[0].file!r} of the task is {lost[0].kind}: the journal is "
                             "needed to repair it")  # fmt: skip
        if found.doubts:
            raise _NotProved(f"{found.doubts[0].file!r} of the task {found.doubts[0].text}")
        source = PublishedSource(self._task, self._manifest)
        numbers = source.trial_numbers()
        rows = rows_of(source.columns(), len(numbers))
        self._rows = dict(zip(numbers, rows, strict=True))

    def _check_losses(self, replay: Replay) -> None:
        losses = [loss for loss in replay.losses() if loss.kind != "refused"]
        if losses and not self._may_be_damaged:
            raise _NotProved(
                f"{len(losses)} parts of it are damaged or missing: what is left is evidence"
            )
        self._damaged += len(losses)

    def _compare_base(self, base: Manifest) -> None:
        """What was set aside when the task was resumed must be part of what is published now."""
        source = PublishedSource(self._task, base, self._journal / layout.BASE)
        numbers = source.trial_numbers()
        for number, row in zip(numbers, rows_of(source.columns(), len(numbers)), strict=True):
            self._compare_row(number, row)
        for name, record in base.arrays.items():
            now = self._manifest.arrays.get(name)
            if now is None or any(now.trials.get(t) != s for t, s in record.trials.items()):
                raise _NotProved(f"array {name!r} of the earlier session is not as it was then")

    def _compare_row(self, number: int, row: Sequence[NamedCell]) -> None:
        published = self._rows.get(number)
        cells = sorted(cell for cell in row if cell[1] != "missing")
        if published is None or sorted(published) != cells:
            raise _NotProved(f"the row of trial {number} is not the published one")
        self._trials += 1

    def _compare_trial(self, trial: JournalTrial) -> None:
        self._compare_row(trial.index, trial.commit.row)
        for name in trial.commit.arrays:
            try:
                described = trial.layout_of(name)
                pieces = [chunk.data for chunk in trial.chunks(name)] if not described[0] else None
            except DamagedData as error:
                self._pass_over(error)
                continue
            path = layout.array_path(self._task, name)
            try:
                with ArrayFile(path) as file:
                    self._compare_samples(file, trial, name, described, pieces)
            except DamagedData as error:
                if error.path is not None and error.path.suffix == layout.SEGMENT_SUFFIX:
                    self._pass_over(error)
                    continue
                raise
            self._arrays += 1

    def _compare_samples(
        self,
        file: ArrayFile,
        trial: JournalTrial,
        name: str,
        described: tuple[tuple[int, ...], Any, int],
        scalar: Sequence[Any] | None,
    ) -> None:
        """Compare an array slab by slab."""
        shape, dtype, stack_axis = described
        key = str(trial.index)
        if key not in file.names():
            for _ in trial.chunks(name):  # damaged: that is why it is not there
                pass
        if key not in file.names() or (file.shape(key), file.dtype(key)) != (shape, dtype):
            raise _NotProved(f"array {name!r} of trial {key} is not published")
        if scalar is not None:
            self._require_equal(scalar[0].tobytes(), file.read(key).tobytes(), name, key)
            return
        axis = chunks.samples_axis(len(shape), stack_axis)
        per_sample = max(1, chunks.nbytes(shape, dtype) // max(1, shape[axis]))
        data = (chunk.data for chunk in trial.chunks(name))
        count = trial.commit.arrays[name][0]
        length = max(1, _SLAB_BYTES // per_sample)
        for first, slab in chunks.slabs(data, count, shape, dtype, stack_axis, length):
            part = file.read(key, selection=chunks.along(axis, first, slab.shape[axis]))
            self._require_equal(slab.tobytes(), part.tobytes(), name, key)

    def _compare_loose(self, key: str, trial: int, name: str, refs: Sequence[ChunkRef]) -> None:
        """Compare chunks of a trial that was never committed with those in ``interrupted``."""
        try:
            found = [chunk.data for chunk in read_chunks(refs, trial, name)]
            whole = chunks.join(found, run_at(refs[0])[0].layout.stack_axis)
        except DamagedData as error:
            self._pass_over(error)
            return
        path = layout.array_path(self._task / layout.INTERRUPTED, name)
        if not path.exists():
            raise _NotProved(f"chunks of array {name!r} of an unfinished trial are nowhere else")
        with ArrayFile(path) as file:
            if key not in file.names():
                raise _NotProved(f"chunks of {name!r} of an unfinished trial are nowhere else")
            self._require_equal(whole.tobytes(), file.read(key).tobytes(), name, key)

    def _require_equal(self, ours: bytes, published: bytes, name: str, key: str) -> None:
        if ours != published:
            raise _NotProved(f"array {name!r} of trial {key} differs from the published one")
        self._nbytes += len(ours)
        self._tick(len(ours))

    def _pass_over(self, error: DamagedData) -> None:
        if not self._may_be_damaged:
            raise _NotProved(f"it is damaged, and what is left is evidence: {error}") from error
        self._damaged += 1
