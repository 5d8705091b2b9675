"""A journal that is not published: what of it is whole, what is lost, what never counted."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from trialstore._errors import DamagedData, FormatError, StorageError
from trialstore._ondisk import layout, recovery
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.table import parse_timing
from trialstore._reading.hdf5 import ArrayFile
from trialstore._upkeep.published import PublishedSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.manifest import Manifest
    from trialstore._ondisk.samples import ChunkRef, JournalTrial
    from trialstore._upkeep.gathering import Gathering
    from trialstore._upkeep.report import FindingKind

_BASE: Final = f"{layout.JOURNAL}/{layout.BASE}"
_OLDER: Final = (
    "perhaps an older copy was unpacked over a newer one; keep a copy of the whole folder, then "
    "bring the newer manifest.json back"
)
_NEVER_BEGUN: Final = (
    "holds no segment: the recorder was stopped before it could begin, or the segments were "
    "deleted or not copied"
)


def check_journal(
    task: Path, extra: Sequence[Path], found: Gathering, *, is_recording: bool
) -> str:
    """Look at a task's journal and at what it builds on; return the status it tells.

    Parameters
    ----------
    task : pathlib.Path
        The task's folder.
    extra : sequence of pathlib.Path
        Further journal folders (a fallback), besides the one that the journal itself names.
    found : Gathering
        Where findings go.
    is_recording : bool
        Whether a recorder goes on writing: its unfinished end is no finding then.

    Raises
    ------
    FileNotFoundError
        If the journal is gone.
    FormatError
        If it comes from a newer version.
    DamagedData
        If the disk cannot read it.
    """
    base = _base(task, found)
    count = 0 if base is None else base.trials
    with Replay((task / layout.JOURNAL, *extra), count) as replay:
        replay.poll()
        look = _Look(task, replay, found, count)
        look.check(is_recording=is_recording)
        end = replay.end
    if base is not None:
        PublishedSet(task, base, found, _BASE).check()
        _pass_on(base.losses, found)
    if is_recording:
        return "recording"
    return "interrupted" if end is None else end.status


def _base(task: Path, found: Gathering) -> Manifest | None:
    try:
        return recovery.base_manifest(task)
    except (DamagedData, FormatError) as error:
        place = f"{_BASE}/{layout.MANIFEST}"
        found.lose("damaged", (), "what was published before the task was resumed", place,
                   None, str(error))  # fmt: skip
        return None


def _pass_on(losses: Iterable[Loss], found: Gathering) -> None:
    for loss in losses:
        found.lose(loss.kind, loss.trials, loss.what, place_of(loss.file), loss.byte_range,
                   loss.evidence)  # fmt: skip


def place_of(file: str) -> str:
    """Path of a loss's file relative to the task: parts of the journal go by their names alone."""
    return f"{layout.JOURNAL}/{file}" if layout.is_of_journal(file) else file


def check_manifest_losses(described: Manifest, found: Gathering) -> None:
    """Count what was acknowledged, and repeat what was lost when the task was published."""
    found.acknowledged = described.trials - len(torn_trials(described.losses))
    _pass_on(described.losses, found)


def torn_trials(losses: Iterable[Loss]) -> set[int]:
    """Return the numbers that trials had of which nobody was told that they were durable."""
    return {trial for loss in losses if loss.kind == "torn" for trial in loss.trials}


class _Look:
    """One look at a journal that has been read."""

    def __init__(self, task: Path, replay: Replay, found: Gathering, base: int) -> None:
        self._task = task
        self._replay = replay
        self._found = found
        self._base = base
        self._losses = replay.losses()
        self._places = {path.name: self._place(path) for path in replay.segments}

    def _place(self, path: Path) -> str:
        at_home = path.parent == self._task / layout.JOURNAL
        return f"{layout.JOURNAL}/{path.name}" if at_home else str(path)

    def check(self, *, is_recording: bool) -> None:
        replay, found = self._replay, self._found
        waiting = {t.index for t in replay.trials.values() if t.seq > replay.synced_to}
        found.acknowledged = replay.count - len(waiting | torn_trials(self._losses))
        self._check_rows(waiting)
        whole = self._check_samples(waiting)
        found.survived = 0 if is_recording else len(waiting & whole)
        if whole:
            found.keep(layout.JOURNAL, len(whole - waiting) if is_recording else len(whole))
        if not is_recording:
            self._check_end()
            self._check_beside()
        if not replay.segments and not self._losses:
            found.doubt(layout.JOURNAL, _NEVER_BEGUN)

    def _check_rows(self, waiting: set[int]) -> None:
        """Name what the journal itself knows to be lost; what was not durable was only torn."""
        for loss in self._losses:
            is_torn = bool(loss.trials) and waiting.issuperset(loss.trials)
            kind: FindingKind = (
                "torn" if is_torn and loss.kind in ("damaged", "missing") else loss.kind
            )
            file = self._places.get(loss.file, place_of(loss.file))
            self._found.lose(kind, loss.trials, loss.what, file, loss.byte_range, loss.evidence)

    def _check_samples(self, waiting: set[int]) -> set[int]:
        """Read every sample of every trial; return the trials that are whole."""
        whole = set()
        for trial in sorted(self._replay.trials.values(), key=lambda trial: trial.index):
            arrays = trial.whole_arrays()
            faults = [
                self._check_array(trial, name, is_torn=trial.index in waiting)
                for name, is_there in arrays.items()
                if is_there
            ]
            if all(arrays.values()) and not any(faults):
                whole.add(trial.index)
        return whole

    def _check_array(self, trial: JournalTrial, name: str, *, is_torn: bool) -> bool:
        """Name an array whose samples do not fit; return whether it had to."""
        try:
            for chunk in trial.chunks(name):
                self._found.tick(chunk.data.nbytes)
        except DamagedData as error:
            place, span = self._place_of_damage(trial.arrays.get(name, ()))
            kind: FindingKind = "torn" if is_torn else "damaged"
            self._found.lose(kind, (trial.index,), f"array {name!r}", place, span, str(error))
            return True
        return False

    def _place_of_damage(self, refs: Sequence[ChunkRef]) -> tuple[str, tuple[int, int] | None]:
        for ref in refs:
            place = self._place(ref.segment.path)
            try:
                frame = ref.segment.frame_at(ref.offset).frame
            except DamagedData:
                return place, None
            try:
                ref.segment.body_of(frame)
            except DamagedData:
                return place, (frame.body_offset, frame.body_offset + frame.body_length)
        return layout.JOURNAL, None

    def _check_end(self) -> None:
        """Name what was being written when the recorder stopped; nobody was told of it."""
        for path, start, end in self._replay.torn:
            evidence = "it was being written when the recorder stopped"
            place = self._place(path)
            self._found.lose("torn", (), "the last frame", place, (start, end), evidence)
        for (_, trial), arrays in self._replay.uncommitted().items():
            if trial < self._replay.count:
                continue  # its row is lost, and named
            for name, refs in arrays.items():
                total = sum(ref.chunks for ref in refs)
                what = f"{total} {'chunk' if total == 1 else 'chunks'} of array {name!r}"
                evidence = "the row that ends the trial was never written"
                place = self._place(refs[0].segment.path)
                self._found.lose("torn", (trial,), what, place, None, evidence)

    def _check_beside(self) -> None:
        """Doubt a journal that knows less than the plain files beside it: it may be an old copy."""
        count = self._replay.count
        with contextlib.suppress(StorageError, OSError):
            rows = parse_timing(read_file(self._task / layout.TIMING))
            self._doubt(layout.TIMING, {row.trial for row in rows if row.trial >= count})
        for name in layout.array_names_in(self._task):
            path = layout.array_path(self._task, name)
            with contextlib.suppress(StorageError), ArrayFile(path) as file:
                numbers = {int(key) for key in file.names() if key.isascii() and key.isdigit()}
                self._doubt(path.name, {number for number in numbers if number >= count})

    def _doubt(self, file: str, trials: set[int]) -> None:
        if trials:
            text = f"holds the trials {sorted(trials)!r:.80}, of which the journal knows nothing"
            self._found.doubt(file, f"{text}: {_OLDER}")


def published_so_far(task: Path, described: Manifest, found: Gathering) -> None:
    """Check what ``publish()`` had put into plain files of a task whose journal is gone."""
    found.acknowledged = described.trials
    PublishedSet(task, described, found).check()
    found.lose("missing", (), "the journal, with what was not published yet", layout.JOURNAL, None,
               "the manifest says 'recording', so there was one")  # fmt: skip
