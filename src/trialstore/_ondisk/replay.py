"""From frames to trials: what a journal holds, followed while it grows.

One `Replay` serves the live reader, the publisher and recovery, so that the three cannot disagree
about what was recorded. It reads only, and it never loads samples until they are asked for.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from trialstore._errors import DamagedData, FormatError
from trialstore._ondisk import entries, layout
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.places import Places
from trialstore._ondisk.samples import ChunkRef, JournalTrial
from trialstore._ondisk.segment_file import Damage, SegmentFile, Whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trialstore._ondisk.entries import CleanEnd, Opening, TrialCommit
    from trialstore._ondisk.witness import Witness

    Shape = tuple[int, ...]

_INFINITY: Final = 2**64


@dataclass(slots=True)
class _Session:
    """What one recording session left; frames above `limit` came after another had taken over."""

    limit: int = _INFINITY
    opening: Opening | None = None
    end: CleanEnd | None = None
    losses: list[Loss] = field(default_factory=list)
    pending: dict[int, dict[str, list[ChunkRef]]] = field(default_factory=dict)


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
            (session, trial): {name: list(refs) for name, refs in arrays.items()}
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
        places = Places(self._acknowledged_damages(), self._absence())
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
            for _ in trial.chunks(name):
                pass
        except DamagedData as error:
            file = "" if error.path is None else error.path.name
            return Loss((trial.index,), f"array {name!r}", "damaged", file, None, str(error))
        return None


def _span(file: SegmentFile) -> tuple[int, int]:
    return file.torn.offset, file.torn.end
