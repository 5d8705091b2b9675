"""From frames to trials: what a journal holds, followed while it grows.

One `Replay` serves the live reader, the publisher and recovery, so that the three cannot disagree
about what was recorded. It reads only, and it never loads samples until they are asked for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeGuard

from trialstore._errors import DamagedData, FormatError
from trialstore._ondisk import entries, layout
from trialstore._ondisk.coverage import Coverage, Part, coverage
from trialstore._ondisk.decoding import decode
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.places import ROW, Places
from trialstore._ondisk.samples import ChunkRef, JournalTrial, read_chunks, run_at
from trialstore._ondisk.segment_file import Damage
from trialstore._ondisk.segment_folders import SegmentFolders

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trialstore._ondisk.entries import CleanEnd, Opening, TrialCommit
    from trialstore._ondisk.segment_file import SegmentFile, Whole
    from trialstore._ondisk.witness import Witness

    Shape = tuple[int, ...]

_INFINITY: Final = 2**64

#: The smallest trial frame: a header of 56 bytes and a description of 88.
_TRIAL_FRAME: Final = 144
#: So many missing trials are believed without a byte that speaks for them: a day at one a second.
_BELIEVED: Final = 100_000


@dataclass(slots=True)
class _Session:
    """What one recording session left; frames above `limit` came after another had taken over."""

    limit: int = _INFINITY
    opening: Opening | None = None
    end: CleanEnd | None = None
    losses: list[Loss] = field(default_factory=list)
    pending: dict[int, dict[str, list[ChunkRef]]] = field(default_factory=dict)

    def has_room_for(self, trial: int, seq: int) -> bool:
        """Whether frame `seq` can speak of this trial: each trial before it has had a frame."""
        return self.opening is None or trial < self.opening.trials + seq


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
        self._folders = SegmentFolders(folders)
        self._base = base
        self._sessions: dict[bytes, _Session] = {}
        self._last_session = b""
        self.trials: dict[int, JournalTrial] = {}
        self._refused: list[Damage] = []
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
        self._folders.close()

    # --- following --------------------------------------------------------------------------------

    def stands(self) -> bool:
        """Whether every segment is still where it was found.

        A journal that was published and taken away may have been followed by a new one, whose
        segments have the same names.
        """
        return all(file.stands() for file in self._folders)

    @property
    def scanned(self) -> int:
        """Bytes of journal that have been looked at."""
        return sum(file.scanned for file in self._folders)

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
        self._folders.look()
        new: list[JournalTrial] = []
        polled: set[SegmentFile] = set()
        while rest := [file for file in self._folders if file not in polled]:
            folders = len(self._folders)
            for file in rest:
                polled.add(file)
                self._follow(file, new)
                if len(self._folders) > folders:
                    # The first opening told of a second folder: its segments come in between, and
                    # what was written before them may have come since.
                    self._folders.look()
                    polled.clear()
                    break
        self.synced_to = max(self.synced_to, *(said.seq for said in self._statements()), 0)
        new = [trial for trial in new if self.trials.get(trial.index) is trial]
        return sorted(new, key=lambda trial: trial.index)

    def _follow(self, file: SegmentFile, new: list[JournalTrial]) -> None:
        try:
            for whole in file.poll():
                self._take(file, whole, new)
        except FormatError as error:
            raise FormatError(f"{str(file.path)!r}: {error}") from error

    def _take(self, file: SegmentFile, whole: Whole, new: list[JournalTrial]) -> None:
        frame, session = whole.frame, file.session
        self.synced_to = max(self.synced_to, frame.synced_to)
        if frame.seq > self.last_seq:
            self.last_seq, self.last_crc = frame.seq, frame.crc
        if session not in self._sessions:
            self._sessions[session] = _Session()
            self._last_session = session
        state = self._sessions[session]
        try:
            record = decode(frame.type, whole.meta)
        except FormatError as error:
            self._refuse(file, whole, str(error))
            return
        if frame.seq > state.limit:
            if isinstance(record, entries.TrialCommit):
                self._supersede(record.trial)
            return
        match record:
            case entries.Opening() if record.after < frame.seq:
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
                elif not state.has_room_for(record.trial, frame.seq):
                    self._refuse(file, whole, f"there cannot be a trial {record.trial} yet")
                else:
                    self._commit(state, record, frame.seq, session, new)
            case entries.LossNote(losses):
                state.losses += losses
            case entries.CleanEnd() if state.has_room_for(record.trials - 1, frame.seq):
                state.end = record
                self.synced_to = max(self.synced_to, frame.seq)
            case entries.Opening() | entries.ChunkRun() | entries.CleanEnd():
                self._refuse(file, whole, "a description claims more than there can be")

    def _refuse(self, file: SegmentFile, whole: Whole, reason: str) -> None:
        frame = whole.frame
        span = (frame.offset, frame.end)
        self._refused.append(Damage(file.path.name, frame.seq, frame.seq, span, reason))

    def _open(self, file: SegmentFile, state: _Session, opening: Opening) -> None:
        self.synced_to = max(self.synced_to, opening.after)
        state.end = None
        for earlier in itertools.takewhile(lambda other: other is not file, self._folders):
            # What follows there was not durable: it is repeated here, or nobody was told of it.
            name = earlier.path.name
            self._void_after[name] = min(self._void_after.get(name, _INFINITY), opening.after)
        if state.opening is not None:
            return
        state.opening = opening
        fallback = opening.description.get("fallback")
        if _may_hold_segments(fallback):
            self._folders.add(Path(fallback))
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
        self._superseded.append(Loss((index,), ROW, "superseded", evidence=evidence))

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
        return [file.path for file in self._folders]

    @property
    def torn(self) -> list[tuple[Path, int, int]]:
        """Bytes at the end of segments that were never acknowledged: path, first byte, end.

        Guarantee: every byte of every segment is in its header, in a frame whose header and
        description are whole, in `damages`, or here, and nowhere twice.
        """
        cut = self._coverage().cut
        tails = ((f.path, *f.tail) for (n, _), f in self._folders.files.items() if n not in cut)
        return [(path, start, end) for path, start, end in tails if start < end]

    @property
    def damages(self) -> list[Damage]:
        """What is not whole, or not there; before a segment's last frame acknowledged or not."""
        found = self._coverage()
        return self._refused + found.damages + found.absences

    @property
    def room(self) -> int:
        """How many missing trials are believed one by one; reading costs no more than its bytes.

        A file of a few bytes can claim any number of trials. As many as the journal's bytes could
        be, and some more, are named singly and get lines in the published table.
        """
        return _BELIEVED + sum(file.size_seen for file in self._folders) // _TRIAL_FRAME

    def uncommitted(self) -> dict[tuple[bytes, int], dict[str, list[ChunkRef]]]:
        """Chunks whose trial has no row here, by session and trial number.

        That of a number from `count` on was never committed: it was cut off before anybody was
        told of it. One below `count` has lost its row, which `losses` names.
        """
        return {
            (session, trial): {name: list(refs) for name, refs in arrays.items()}
            for session, state in self._sessions.items()
            for trial, arrays in state.pending.items()
        }

    def _coverage(self) -> Coverage:
        parts = [
            Part(number, file, None, self._limit(file.session))
            for (number, _), file in self._folders.files.items()
        ]
        for (number, _), said in self._folders.lost.items():
            # A witness may have been copied, and a segment written again under another name.
            mates = (file for file in self._folders if file.session == said.session)
            if not any(said.seq in file.seen for file in mates):
                parts.append(Part(number, None, said, self._limit(said.session)))
        return coverage(sorted(parts, key=lambda part: part.number))

    def _limit(self, session: bytes) -> int:
        state = self._sessions.get(session)
        return _INFINITY if state is None else state.limit

    def _promised(self) -> int:
        """How many trials must exist by what ends, openings and witnesses say."""
        counts = [opening.trials for opening in self.openings]
        counts += [state.end.trials for state in self._sessions.values() if state.end is not None]
        counts += [said.trials for said in self._statements()]
        return max(counts, default=0)

    def _statements(self) -> Iterator[Witness]:
        """What the witnesses say, unless they speak of frames behind a takeover."""
        said = [*(file.statement for file in self._folders), *self._folders.lost.values()]
        for one in said:
            if one is not None and one.seq <= self._limit(one.session):
                yield one

    # --- what is missing --------------------------------------------------------------------------

    def losses(self, *, check_samples: bool = False) -> list[Loss]:
        """Everything durable that cannot be read, and everything that was refused.

        Trials come one by one as far as there is `room`, others as one loss for each hole in the
        numbers; damage that no committed trial suffers from is named at the end, because a note of
        a loss or a chunk of the open trial may have stood there.

        Parameters
        ----------
        check_samples : bool, optional
            Read every sample and check it; without it only rows and the presence of chunks are
            checked.
        """
        found = [loss for state in self._sessions.values() for loss in state.losses]
        # The recorder itself could not write these, or found them torn, and left a note.
        found, noted = _without_repetitions(found)
        found += self._superseded
        found += [_claim(file) for file in self._folders if file.claims_too_much]
        places = Places(self._acknowledged_damages(), self._absence, self.room)
        expected, seq = self._base, 0
        trials = sorted(self.trials.values(), key=lambda trial: trial.index)
        for trial in trials:
            lost = places.lost(expected, trial.index, seq, trial.seq)
            found += (loss for loss in lost if not _is_noted(loss, noted))
            for name, whole in trial.whole_arrays().items():
                if not whole:
                    gone = places.loss((trial.index,), f"array {name!r}", seq, trial.seq)
                    found += () if _is_noted(gone, noted) else (gone,)
                elif check_samples and (loss := self._sample_loss(trial, name)) is not None:
                    found.append(loss)
            expected, seq = trial.index + 1, trial.seq
        lost = places.lost(expected, self.count, seq, _INFINITY)
        found += (loss for loss in lost if not _is_noted(loss, noted))
        found += self._uncommitted_losses() if check_samples else ()
        return found + places.unexplained()

    def _uncommitted_losses(self) -> Iterator[Loss]:
        """Name samples that were durable and are damaged, of chunks without a row."""
        for (_, trial), arrays in self.uncommitted().items():
            for name, refs in arrays.items():
                try:
                    told = [ref for ref in refs if run_at(ref)[1].frame.seq <= self.synced_to]
                    for _ in read_chunks(told, trial, name):
                        pass
                except DamagedData as error:
                    file = "" if error.path is None else error.path.name
                    what = f"chunks of {name!r} of the open trial"
                    yield Loss((trial,), what, "damaged", file, None, str(error))

    def _acknowledged_damages(self) -> list[Damage]:
        found, void = self._coverage(), self._void_after
        durable = [d for d in found.damages if d.first_seq <= min(d.last_seq, self.synced_to)]
        # Frames that no recorder of ours can have written are told of in any case.
        inside = self._refused + durable
        return [d for d in inside if d.first_seq <= void.get(d.file, _INFINITY)] + found.absences

    def _absence(self, trial: int, before: int) -> Loss:
        """What is said of a trial, or those from it on, missing without a trace before a frame."""
        name = self.segments[-1].name if self._folders.files else ""
        evidence = f"durable up to frame {self.synced_to}"
        if trial >= self._promised() and self.synced_to < before < _INFINITY:
            # Every frame up to the mark is there: theirs were above it, and nobody was told.
            evidence += f", not to frame {before}, which was on the disk before it"
            return Loss((), "", "torn", name, None, evidence)
        return Loss((), "", "missing", name, None, evidence)

    def _sample_loss(self, trial: JournalTrial, name: str) -> Loss | None:
        try:
            for _ in trial.chunks(name):
                pass
        except DamagedData as error:
            file = "" if error.path is None else error.path.name
            return Loss((trial.index,), f"array {name!r}", "damaged", file, None, str(error))
        return None


def _without_repetitions(losses: Sequence[Loss]) -> tuple[list[Loss], set[tuple[int, str]]]:
    """Leave out what one session noted after another; return what of which trial was noted."""
    torn = dict.fromkeys(loss for loss in losses if loss.kind == "torn")
    others = [loss for loss in losses if loss.kind != "torn"]
    noted = {(trial, loss.what) for loss in torn for trial in loss.trials}
    noted |= {(trial, ROW) for loss in others if loss.kind == "missing" for trial in loss.trials}
    return [*others, *torn], noted


def _is_noted(loss: Loss, noted: set[tuple[int, str]]) -> bool:
    """Whether a note tells of this part of a trial: what is lost of it later is another loss."""
    return any((trial, loss.what) in noted for trial in loss.trials)


def _claim(file: SegmentFile) -> Loss:
    evidence = "the witness claims more trials or frames than there can be; it is not believed"
    name = layout.witness_path(file.path).name
    return Loss((), "what the witness should tell", "damaged", name, None, evidence)


def _may_hold_segments(folder: object) -> TypeGuard[str]:
    """Whether a folder that a journal names is one that a recorder would have made for segments."""
    if not isinstance(folder, str) or "\0" in folder:
        return False
    return Path(folder).is_absolute() and Path(folder).name.startswith(layout.JOURNAL)
