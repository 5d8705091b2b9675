"""From frames to trials: what a journal holds, followed while it grows.

One `Replay` serves the live reader, the publisher and recovery, so that the three cannot disagree
about what was recorded. It reads only, and it never loads samples until they are asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from trialstore._errors import DamagedData, FormatError
from trialstore._ondisk import chunks, entries, layout
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.segment_file import Damage, SegmentFile, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trialstore._ondisk.entries import ChunkRun, ChunkStamp, CleanEnd, Opening, TrialCommit
    from trialstore._ondisk.witness import Witness

    Shape = tuple[int, ...]

#: A file of a few bytes can claim any number of trials: so many that are missing are named one by
#: one.
_NAMED_SINGLY: Final = 100_000
_INFINITY: Final = 2**64


class ChunkRef(NamedTuple):
    """Where the chunks of one frame are; small, because an hour at 1 kHz has a million of them."""

    segment: SegmentFile
    offset: int
    first: int
    chunks: int
    nbytes: int


class Chunk(NamedTuple):
    """One chunk as it was handed over, and when."""

    data: NDArray[Any]
    stamp: ChunkStamp


@dataclass(slots=True)
class JournalTrial:
    """A committed trial: its row, and where its chunks are."""

    commit: TrialCommit
    seq: int
    session: bytes
    arrays: dict[str, list[ChunkRef]]

    @property
    def index(self) -> int:
        """Number of the trial within its task."""
        return self.commit.trial

    def whole_arrays(self) -> dict[str, bool]:
        """For each array, whether a frame for every chunk is there (samples not yet checked)."""
        return {
            name: _are_all(_unrepeated(self.arrays.get(name, ())), count)
            for name, (count, _) in self.commit.arrays.items()
        }


@dataclass(slots=True)
class _Session:
    """What one recording session left; frames above `limit` came after another had taken over."""

    limit: int = _INFINITY
    opening: Opening | None = None
    end: CleanEnd | None = None
    losses: list[Loss] = field(default_factory=list)
    pending: dict[int, dict[str, list[ChunkRef]]] = field(default_factory=dict)


class _Places:
    """Where what is missing should have been: damage between the neighbours, or plain absence."""

    def __init__(self, damages: Sequence[Damage], absence: Loss) -> None:
        self._damages = damages
        self._absence = absence
        self._explained: set[int] = set()

    def loss(self, trials: tuple[int, ...], what: str, after: int, before: int) -> Loss:
        """Name a loss whose frames had numbers between `after` and `before`."""
        touching = [
            number
            for number, damage in enumerate(self._damages)
            if damage.last_seq > after and damage.first_seq < before
        ]
        self._explained.update(touching)
        if not touching:
            return replace(self._absence, trials=trials, what=what)
        return _loss_by(self._damages[touching[0]], trials, what)

    def lost(self, first: int, end: int, after: int, before: int) -> Iterator[Loss]:
        """Name the trials ``[first, end)``, one by one as far as that makes sense."""
        for index in range(first, min(end, first + _NAMED_SINGLY)):
            yield self.loss((index,), "1 trial", after, before)
        if (rest := first + _NAMED_SINGLY) < end:
            yield self.loss((), f"{end - rest} trials from {rest} on", after, before)

    def unexplained(self) -> list[Loss]:
        """Name damage that no loss has pointed at."""
        rest = [d for number, d in enumerate(self._damages) if number not in self._explained]
        return [_loss_by(damage, (), "journal frames of no committed trial") for damage in rest]


def _loss_by(damage: Damage, trials: tuple[int, ...], what: str) -> Loss:
    return Loss(trials, what, damage.kind, damage.file, damage.byte_range, damage.evidence)


class Replay:
    """Follows the segments of one task's journal.

    Guarantee: a trial is given out only if its row fits its checksum, and an array of it only if
    every chunk does; whatever was durable and is not given out is named by `losses`.

    Parameters
    ----------
    folders : sequence of pathlib.Path
        The journal folder, and the fallback folder if there is one.
    base : int, optional
        Number of trials published before the oldest segment.
    """

    def __init__(self, folders: Sequence[Path], base: int = 0) -> None:
        self._folders = tuple(folders)
        self._base = base
        self._files: dict[tuple[int, int], SegmentFile] = {}
        self._sessions: dict[bytes, _Session] = {}
        self._last_session = b""
        self.trials: dict[int, JournalTrial] = {}
        self.damages: list[Damage] = []
        self._superseded: list[Loss] = []
        self._void_after: dict[str, int] = {}
        self.synced_to = 0
        self.last_seq = 0
        self.last_crc = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every file."""
        for file in self._files.values():
            file.close()

    # --- following --------------------------------------------------------------------------------

    def stands(self) -> bool:
        """Whether every segment is still where it was found.

        A journal that was published and taken away may have been followed by a new one, whose
        segments have the same names.
        """
        return all(file.stands() for file in self._files.values())

    @property
    def scanned(self) -> int:
        """Bytes of journal that have been looked at."""
        return sum(file.scanned for file in self._files.values())

    def poll(self) -> list[JournalTrial]:
        """Read what has been appended and return the trials that were committed by it, in order.

        Raises
        ------
        FileNotFoundError
            If the journal folder is gone (published, or moved).
        FormatError
            If a segment is of a newer version.
        DamagedData
            If the disk cannot read it.
        """
        self._find_segments()
        new: list[JournalTrial] = []
        polled: set[SegmentFile] = set()
        while rest := [file for file in self._files.values() if file not in polled]:
            folders = len(self._folders)
            for file in rest:
                polled.add(file)
                self._follow(file, new)
                if len(self._folders) > folders:
                    # The first opening told of a second folder: its segments come in between.
                    self._find_segments()
                    break
        return [trial for trial in new if self.trials.get(trial.index) is trial]

    def _follow(self, file: SegmentFile, new: list[JournalTrial]) -> None:
        try:
            for event in file.poll():
                if isinstance(event, Damage):
                    # What a segment has lost at its start, earlier ones may still have.
                    first = event.first_seq or self.last_seq + 1
                    self.damages.append(replace(event, first_seq=first))
                else:
                    self._take(file, event, new)
        except FormatError as error:
            raise FormatError(f"{str(file.path)!r}: {error}") from error
        statement = self._witness(file)
        if statement is not None:
            self.synced_to = max(self.synced_to, statement.seq)

    def _find_segments(self) -> None:
        found: dict[tuple[int, int], Path] = {}
        for position, folder in enumerate(self._folders):
            # A second folder may be on a disk that is not there today.
            with contextlib.suppress(OSError) if position else contextlib.nullcontext():
                for path in folder.iterdir():
                    if (number := layout.segment_number(path.name)) is not None:
                        found[number, position] = path
        fresh = sorted(found.keys() - self._files.keys())
        for key in fresh:
            with contextlib.suppress(FileNotFoundError):
                self._files[key] = SegmentFile(found[key])
        if fresh:
            self._files = dict(sorted(self._files.items()))

    def _take(self, file: SegmentFile, whole: Whole, new: list[JournalTrial]) -> None:
        frame, session = whole.frame, file.session
        self.synced_to = max(self.synced_to, frame.synced_to)
        self.last_seq, self.last_crc = max(self.last_seq, frame.seq), frame.crc
        if session not in self._sessions:
            self._sessions[session] = _Session()
            self._last_session = session
        state = self._sessions[session]
        try:
            record = entries.decode(frame.type, whole.meta)
        except FormatError as error:
            self._refuse(file, whole, str(error))
            return
        if frame.seq > state.limit:
            if isinstance(record, entries.TrialCommit):
                self._supersede(record.trial)
            return
        match record:
            case entries.Opening():
                self._open(file, state, record)
            case entries.ChunkRun() if record.nbytes <= frame.body_length:
                ref = ChunkRef(file, frame.offset, record.first, len(record.stamps), record.nbytes)
                trial = self.trials.get(record.trial)
                if trial is not None and trial.session == session:
                    trial.arrays.setdefault(record.array, []).append(ref)
                else:
                    arrays = state.pending.setdefault(record.trial, {})
                    arrays.setdefault(record.array, []).append(ref)
            case entries.TrialCommit():
                known = self.trials.get(record.trial)
                if record.trial < self._base or (known and known.session != session):
                    self._refuse(file, whole, f"trial {record.trial} was there before")
                else:
                    self._commit(state, record, frame.seq, session, new)
            case entries.LossNote(losses):
                state.losses += losses
            case entries.CleanEnd():
                state.end = record
                self.synced_to = max(self.synced_to, frame.seq)

    def _refuse(self, file: SegmentFile, whole: Whole, reason: str) -> None:
        frame = whole.frame
        span = (frame.offset, frame.end)
        self.damages.append(Damage(file.path.name, frame.seq, frame.seq, span, reason))

    def _open(self, file: SegmentFile, state: _Session, opening: Opening) -> None:
        self.synced_to = max(self.synced_to, opening.after)
        state.end = None
        for earlier in itertools.takewhile(lambda other: other is not file, self._files.values()):
            # What follows there was not durable: it is repeated here, or nobody was told of it.
            name = earlier.path.name
            self._void_after[name] = min(self._void_after.get(name, _INFINITY), opening.after)
        if state.opening is not None:
            return
        state.opening = opening
        fallback = opening.description.get("fallback")
        if isinstance(fallback, str) and Path(fallback) not in self._folders:
            self._folders += (Path(fallback),)
        # Whoever wrote to an older segment after this had lost the task without knowing it.
        for session, other in self._sessions.items():
            if session != file.session:
                other.limit = min(other.limit, opening.after)
        for trial in list(self.trials.values()):
            if trial.seq > self._sessions[trial.session].limit:
                del self.trials[trial.index]
                self._supersede(trial.index)

    def _supersede(self, index: int) -> None:
        evidence = f"session {self._last_session.hex()} had taken the task over"
        self._superseded.append(Loss((index,), "1 trial", "superseded", evidence=evidence))

    def _commit(
        self,
        state: _Session,
        commit: TrialCommit,
        seq: int,
        session: bytes,
        new: list[JournalTrial],
    ) -> None:
        arrays = state.pending.pop(commit.trial, {})
        known = self.trials.get(commit.trial)
        if known is not None:
            # Written again after a failed sync: the same trial, its chunks perhaps in two places.
            for name, refs in arrays.items():
                known.arrays.setdefault(name, []).extend(refs)
            return
        trial = JournalTrial(commit, seq, session, arrays)
        self.trials[commit.trial] = trial
        new.append(trial)

    # --- what is known by now ---------------------------------------------------------------------

    @property
    def count(self) -> int:
        """One more than the highest trial number, lost ones included."""
        last = max(self.trials, default=self._base - 1) + 1
        return max(last, self._base, self._promised())

    @property
    def end(self) -> CleanEnd | None:
        """The clean end of the newest session, or None if it was cut off or still goes on."""
        state = self._sessions.get(self._last_session)
        return None if state is None else state.end

    @property
    def openings(self) -> list[Opening]:
        """The opening of each session whose first frame is whole, oldest first."""
        return [state.opening for state in self._sessions.values() if state.opening is not None]

    @property
    def sessions(self) -> list[str]:
        """Uuid of every session that left a segment, hexadecimal, oldest first."""
        return [session.hex() for session in self._sessions]

    @property
    def segments(self) -> list[Path]:
        """The segments, oldest first."""
        return [file.path for file in self._files.values()]

    @property
    def torn(self) -> list[tuple[Path, int, int]]:
        """Bytes behind each segment's last whole frame: path, first byte, byte after the last."""
        files = self._files.values()
        return [(f.path, *_span(f)) for f in files if f.torn.end > f.torn.offset]

    def uncommitted(self) -> dict[tuple[bytes, int], dict[str, list[ChunkRef]]]:
        """Chunks whose trial was never committed, by session and trial number."""
        return {
            (session, trial): {name: _unrepeated(refs) for name, refs in arrays.items()}
            for session, state in self._sessions.items()
            for trial, arrays in state.pending.items()
        }

    def _promised(self) -> int:
        """How many trials must exist by what ends, openings and witnesses say."""
        counts = [opening.trials for opening in self.openings]
        counts += [state.end.trials for state in self._sessions.values() if state.end is not None]
        statements = (self._witness(file) for file in self._files.values())
        counts += [statement.trials for statement in statements if statement is not None]
        return max(counts, default=0)

    def _witness(self, file: SegmentFile) -> Witness | None:
        """What the witness says of a segment, unless it speaks of frames behind a takeover."""
        statement, state = file.statement, self._sessions.get(file.session)
        if statement is None or (state is not None and statement.seq > state.limit):
            return None
        return statement

    # --- what is missing --------------------------------------------------------------------------

    def losses(self, *, check_samples: bool = False) -> list[Loss]:
        """Everything durable that cannot be read, and everything that was refused.

        Trials come one by one (the first 100 000 of them); damage that no committed trial suffers
        from is named at the end, because a note of a loss or a chunk of the open trial may have
        stood there.

        Parameters
        ----------
        check_samples : bool, optional
            Read every sample and check it; without it only rows and the presence of chunks are
            checked.
        """
        found = [loss for state in self._sessions.values() for loss in state.losses]
        found += self._superseded
        places = _Places(self._acknowledged_damages(), self._absence())
        expected, seq = self._base, 0
        trials = sorted(self.trials.values(), key=lambda trial: trial.index)
        for trial in trials:
            found += places.lost(expected, trial.index, seq, trial.seq)
            for name, whole in trial.whole_arrays().items():
                if not whole:
                    found.append(places.loss((trial.index,), f"array {name!r}", seq, trial.seq))
                elif check_samples and (loss := self._sample_loss(trial, name)) is not None:
                    found.append(loss)
            expected, seq = trial.index + 1, trial.seq
        found += places.lost(expected, self.count, seq, _INFINITY)
        return found + places.unexplained()

    def _acknowledged_damages(self) -> list[Damage]:
        void = self._void_after
        found = [d for d in self.damages if d.first_seq <= void.get(d.file, _INFINITY)]
        found += [damage for file in self._files.values() if (damage := file.shortfall())]
        return [d for d in found if d.first_seq <= min(d.last_seq, self.synced_to)]

    def _absence(self) -> Loss:
        """What is said of trials that are missing without a trace."""
        name = self.segments[-1].name if self._files else ""
        return Loss((), "", "missing", name, None, f"durable up to frame {self.synced_to}")

    def _sample_loss(self, trial: JournalTrial, name: str) -> Loss | None:
        try:
            for _ in self.chunks(trial, name):
                pass
        except DamagedData as error:
            file = "" if error.path is None else error.path.name
            return Loss((trial.index,), f"array {name!r}", "damaged", file, None, str(error))
        return None

    # --- samples ----------------------------------------------------------------------------------

    def layout_of(
        self, trial: JournalTrial, name: str
    ) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape, dtype and stack axis of one array of a trial, from descriptions alone.

        Raises
        ------
        DamagedData
            If chunks are missing or their descriptions damaged.
        """
        shapes: list[Shape] = []
        kinds: set[tuple[np.dtype[Any], int]] = set()
        for run, _ in self._runs(trial, name):
            shapes += [run.layout.shape_of(stamp.length) for stamp in run.stamps]
            kinds.add((run.layout.dtype, run.layout.stack_axis))
        if not shapes:
            raise DamagedData(*_unreadable(trial, name, "chunks are missing from the journal"))
        dtype, stack_axis = kinds.pop()
        odd = any(chunks.refusal_of_chunk(shapes[0], shape, stack_axis) for shape in shapes[1:])
        if kinds or odd:
            raise DamagedData(*_unreadable(trial, name, "its chunks do not fit one another"))
        shape = chunks.joined_shape(shapes, stack_axis)
        if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
            raise DamagedData(*_unreadable(trial, name, f"nothing can have the shape {shape}"))
        return shape, dtype, stack_axis

    def chunks(self, trial: JournalTrial, name: str) -> Iterator[Chunk]:
        """Yield the chunks of one array of a trial, oldest first, each checked.

        Raises
        ------
        DamagedData
            Naming file and trial, if a chunk is missing or does not fit its checksum.
        """
        if not trial.whole_arrays().get(name, False):
            raise DamagedData(*_unreadable(trial, name, "chunks are missing from the journal"))
        yield from self._chunks(trial.arrays[name], trial.index, name)

    def window(self, trial: JournalTrial, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return samples ``[start, stop)`` of one array of a trial; other samples are not read.

        Raises
        ------
        DamagedData
            As `chunks`, for the chunks that the window touches.
        """
        shape, dtype, stack_axis = self.layout_of(trial, name)
        if not shape:  # a scalar has no samples to choose from
            return next(self.chunks(trial, name)).data
        axis = chunks.samples_axis(len(shape), stack_axis)
        start, stop = min(start, shape[axis]), min(stop, shape[axis])
        count = trial.commit.arrays[name][0]
        parts: list[NDArray[Any]] = []
        at = 0
        for run, ref in self._runs(trial, name):
            lengths = [
                chunks.length_in(run.layout.shape_of(stamp.length), count, stack_axis)
                for stamp in run.stamps
            ]
            if at < stop and at + sum(lengths) > start:
                for chunk, length in zip(
                    self._chunks([ref], trial.index, name), lengths, strict=True
                ):
                    first, last = max(start - at, 0), min(stop - at, length)
                    if first < last:
                        whole = chunks.as_part(chunk.data, count, stack_axis)
                        parts.append(whole[chunks.along(axis, first, last - first)])
                    at += length
            else:
                at += sum(lengths)
        if not parts:
            return np.empty((*shape[:axis], 0, *shape[axis + 1 :]), dtype)
        joined = np.concatenate([chunks.opaque(part) for part in parts], axis)
        return chunks.restored(joined, dtype)

    def loose_chunks(self, refs: Sequence[ChunkRef], trial: int, name: str) -> Iterator[Chunk]:
        """Yield chunks of a trial that was never committed; raises DamagedData as `chunks` does."""
        yield from self._chunks(refs, trial, name)

    def run_of(self, ref: ChunkRef) -> ChunkRun:
        """Describe the chunks of one frame; raises DamagedData if the description is damaged."""
        return _run_at(ref)[0]

    def _runs(self, trial: JournalTrial, name: str) -> Iterator[tuple[ChunkRun, ChunkRef]]:
        if not trial.whole_arrays().get(name, False):
            raise DamagedData(*_unreadable(trial, name, "chunks are missing from the journal"))
        for ref in _unrepeated(trial.arrays[name]):
            yield _run_at(ref)[0], ref

    def _chunks(self, refs: Sequence[ChunkRef], trial: int, name: str) -> Iterator[Chunk]:
        by_first: dict[int, list[ChunkRef]] = {}
        for ref in refs:
            by_first.setdefault(ref.first, []).append(ref)
        for first in sorted(by_first):
            run, body = _first_whole(by_first[first], trial, name)
            at = 0
            for stamp in run.stamps:
                shape = run.layout.shape_of(stamp.length)
                yield Chunk(np.ndarray(shape, run.layout.dtype, body, at), stamp)
                at += run.layout.nbytes_of(stamp.length)


def _span(file: SegmentFile) -> tuple[int, int]:
    return file.torn.offset, file.torn.end


def _unrepeated(refs: Sequence[ChunkRef]) -> list[ChunkRef]:
    """One reference for each run of chunks, in order: after a failed sync it may stand twice."""
    return [ref for _, ref in sorted({ref.first: ref for ref in refs}.items())]


def _are_all(refs: Sequence[ChunkRef], count: int) -> bool:
    """Whether chunks ``[0, count)`` are there, each once."""
    at = 0
    for ref in refs:
        if ref.first != at:
            return False
        at += ref.chunks
    return at == count


def _run_at(ref: ChunkRef) -> tuple[ChunkRun, Whole]:
    whole = ref.segment.frame_at(ref.offset)
    record = entries.decode(whole.frame.type, whole.meta)
    if not isinstance(record, entries.ChunkRun) or record.nbytes > whole.frame.body_length:
        raise DamagedData(f"{str(ref.segment.path)!r} changed under us", ref.segment.path)
    return record, whole


def _first_whole(refs: Sequence[ChunkRef], trial: int, name: str) -> tuple[ChunkRun, bytes]:
    failure: DamagedData | None = None
    for ref in refs:
        try:
            run, whole = _run_at(ref)
            return run, ref.segment.body_of(whole.frame)
        except DamagedData as error:
            failure = error
    message = f"array {name!r} of trial {trial}: {failure}"
    raise DamagedData(message, failure.path if failure else None, (trial,)) from failure


def _unreadable(
    trial: JournalTrial, name: str, reason: str
) -> tuple[str, Path | None, tuple[int, ...]]:
    path = next((ref.segment.path for refs in trial.arrays.values() for ref in refs), None)
    message = f"array {name!r} of trial {trial.index}: {reason}"
    return message, path, (trial.index,)
