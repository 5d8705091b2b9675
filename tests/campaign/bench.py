"""A journal on a bench: damaged at one place, read, held against the memory, put right again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from trialstore import DamagedData, StorageError
from trialstore._ondisk import chunks, journal, layout, witness
from trialstore._ondisk.chunks import dtype_from_json
from trialstore._ondisk.decoding import decode
from trialstore._ondisk.entries import ChunkRun, TrialCommit
from trialstore._ondisk.journal import Frame
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.samples import read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tests.campaign.frame import Outcome
    from trialstore._ondisk.samples import JournalTrial

    Row = tuple[tuple[str, str, str], ...]
    Arrays = dict[int, dict[str, NDArray[Any]]]

GOLDEN: Final = Path(__file__).parent.parent / "golden"
MEMORY: Final = "memory.json"
NAMES: Final = ("clean", "failover", "killed")


class Span(NamedTuple):
    """Bytes of one file."""

    file: str
    start: int
    end: int

    def touches(self, other: Span) -> bool:
        """Whether two spans share a byte."""
        return self.file == other.file and self.start < other.end and other.start < self.end


@dataclass
class Journal:
    """A journal as it was written, and the perfect memory of its recorders.

    Parameters
    ----------
    name : str
        For the report.
    files : dict
        Content of each file.
    rows, arrays : dict
        What each trial must hold, by number; arrays also of a trial that was never committed.
    acknowledged : set of int
        Trials that were durable.
    """

    name: str
    files: dict[str, bytes]
    rows: dict[int, Row]
    arrays: Arrays
    acknowledged: set[int]
    #: For each trial its frames; of each the places where it stands.
    frames: dict[int, dict[object, list[Span]]] = field(default_factory=dict)
    #: For each segment, which bytes belong to frames that were acknowledged, and which of them say
    #: what is said nowhere else (padding says nothing, a frame may stand twice).
    durable: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    telling: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        begins: dict[bytes, int] = {}
        for name in reversed(self.segments):
            data = self.files[name]
            session, found = journal.parse_header(data), frames_of(data)
            assert session is not None
            said = witness.newest(self.files[witness_of(name)], session)
            durable = min(0 if said is None else said.seq, begins.get(session, 2**64) - 1)
            begins[session] = found[0].seq
            self.durable[name], self.telling[name] = np.zeros((2, len(data)), np.bool_)
            for frame in found:
                self._note(name, frame)
                if frame.seq <= durable:
                    self.durable[name][frame.offset : frame.end] = True
                    end = frame.meta_offset + frame.meta_length
                    self.telling[name][frame.offset : end] = True
                    end = frame.body_offset + frame.body_length
                    self.telling[name][frame.body_offset : end] = True
        for places in (places for frames in self.frames.values() for places in frames.values()):
            for name, start, end in places if len(places) > 1 else ():
                self.telling[name][start:end] = False

    def _note(self, name: str, frame: Frame) -> None:
        meta = self.files[name][frame.meta_offset :][: frame.meta_length]
        record = decode(frame.type, meta)
        match record:
            case ChunkRun():
                key: object = (record.array, record.first)
            case TrialCommit():
                key = "row"
            case _:
                return
        places = self.frames.setdefault(record.trial, {}).setdefault(key, [])
        places.append(Span(name, frame.offset, frame.end))

    @property
    def segments(self) -> list[str]:
        """Names of the segments, oldest first."""
        return sorted(name for name in self.files if name.endswith(layout.SEGMENT_SUFFIX))

    def harmed(self, touched: Sequence[Span]) -> set[int]:
        """Trials that a fault may cost: it touches every copy of one of their frames."""
        return {
            trial
            for trial, frames in self.frames.items()
            if any(
                all(any(span.touches(fault) for fault in touched) for span in places)
                for places in frames.values()
            )
        }


def golden(name: str) -> Journal:
    """Read one of the golden journals."""
    files = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
    return remembered(name, files, json.loads(files.pop(MEMORY)))


def remembered(name: str, files: dict[str, bytes], memory: Mapping[str, Any]) -> Journal:
    """Put the files and the memory of a journal together."""
    rows = {int(n): tuple((c, k, t) for c, k, t in row) for n, row in memory["rows"].items()}
    arrays = {
        int(n): {array: _array_of(said) for array, said in found.items()}
        for n, found in memory["arrays"].items()
    }
    return Journal(name, files, rows, arrays, set(memory["acknowledged"]))


def _array_of(said: Mapping[str, Any]) -> NDArray[Any]:
    data = np.frombuffer(bytes.fromhex(said["hex"]), dtype_from_json(said["dtype"]))
    return data.reshape(said["shape"])


def frames_of(data: bytes) -> list[Frame]:
    """Return every frame of a whole segment."""
    session = journal.parse_header(data)
    assert session is not None
    events = journal.scan(lambda at, n: data[at : at + n], len(data), journal.salt_of(session))
    return [event for event in events if isinstance(event, Frame)]


def witness_of(segment: str) -> str:
    """Name of the witness of a segment."""
    return segment.replace(layout.SEGMENT_SUFFIX, f".{layout.WITNESS}")


class Bench:
    """A folder with a journal in it, which is damaged and mended over and over.

    Parameters
    ----------
    folder : pathlib.Path
        Made here; in memory, if there is a choice.
    known : Journal
        What is laid on the bench.
    outcome : Outcome
        Where what is found is counted.
    """

    def __init__(self, folder: Path, known: Journal, outcome: Outcome) -> None:
        folder.mkdir()
        self.folder = folder
        self.known = known
        self.outcome = outcome
        self.now = dict(known.files)
        for name, data in known.files.items():
            (folder / name).write_bytes(data)

    def put(self, name: str, data: bytes | None) -> None:
        """Give a file another content; None takes it away."""
        if data is None:
            del self.now[name]
            (self.folder / name).unlink()
            return
        self.now[name] = data
        # In place: a file of memory is cheaper to write than to create.
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def mend(self) -> None:
        """Put every file back as it was."""
        for name in self.now.keys() - self.known.files.keys():
            self.put(name, None)
        for name, data in self.known.files.items():
            if self.now.get(name) is not data:
                self.put(name, data)

    def try_files(
        self,
        changed: Mapping[str, bytes | None],
        where: str,
        touched: Iterable[Span] | None = None,
        *,
        most: int | None = None,
        is_moved: bool = False,
    ) -> None:
        """Put files in place, read, judge, mend.

        Parameters
        ----------
        changed : dict
            New content of the files that the fault hits.
        where : str
            What is needed to repeat this try.
        touched : iterable of Span, optional
            Bytes that the fault spoils; where it is not given, those that differ.
        most : int, optional
            How many trials this fault may cost.
        is_moved : bool
            What is not at its place may be whole at another.
        """
        for name, data in changed.items():
            self.put(name, data)
        if touched is None:
            touched = [s for n, d in changed.items() for s in self._differing(n, d)]
        self._judge(where, list(touched), most, is_moved=is_moved)
        self.mend()

    def _differing(self, name: str, data: bytes | None) -> list[Span]:
        """The bytes of a file that are not what they were, as one span from first to last."""
        old, new = self.known.files.get(name, b""), data or b""
        common = min(len(old), len(new))
        differ = np.frombuffer(old, "u1", common) != np.frombuffer(new, "u1", common)
        places = np.flatnonzero(differ)
        if len(new) < len(old):
            return [Span(name, int(places[0]) if len(places) else common, len(old))]
        return [Span(name, int(places[0]), int(places[-1]) + 1)] if len(places) else []

    def _judge(self, where: str, touched: list[Span], most: int | None, *, is_moved: bool) -> None:
        known, outcome = self.known, self.outcome
        outcome.tried += 1
        outcome.acknowledged += len(known.acknowledged)
        where = f"{known.name}: {where}"
        try:
            with Replay([self.folder]) as replay:
                replay.poll()
                losses = replay.losses(check_samples=True)
                hurt = {n for n, trial in replay.trials.items() if not self._holds(trial, where)}
                self._look_at_uncommitted(replay, where)
                found = set(replay.trials)
        except StorageError as error:
            outcome.breach("broken", f"{where}: nothing can be read: {error}")
            return
        missing = known.acknowledged - found
        lost, named = missing | hurt, {n for loss in losses for n in loss.trials}
        for trial in sorted(lost & known.acknowledged):
            if trial in named:
                outcome.named += 1
            else:
                outcome.breach("silent", f"{where}: trial {trial} is lost and not named")
        if rest := (lost & known.acknowledged) - known.harmed(touched):
            outcome.breach("broken", f"{where}: trials {rest} were not harmed, and are lost")
        if rest := (named & known.acknowledged) - lost:
            outcome.breach("broken", f"{where}: trials {rest} are whole, and named as lost")
        if most is not None and len(lost) > most:
            outcome.breach("broken", f"{where}: {lost} are lost, more than {most}")
        is_told = any(loss.kind != "refused" for loss in losses)
        changed = [] if is_moved else [span for span in touched if span.start < span.end]
        if not is_told and self._hits(known.telling, changed):
            outcome.breach(
                "silent", f"{where}: acknowledged bytes are damaged, and nothing is told"
            )
        if is_told and not (lost or self._hits(known.durable, touched)):
            outcome.breach("broken", f"{where}: nothing was lost, and {losses} are told")
        if self.now != {path.name: path.read_bytes() for path in self.folder.iterdir()}:
            outcome.breach("broken", f"{where}: reading changed what was read")

    def _hits(self, masks: Mapping[str, NDArray[np.bool_]], touched: Iterable[Span]) -> bool:
        """Whether a byte that a mask tells of is not what it was."""
        for name, start, end in touched:
            mask = masks.get(name)
            if mask is None:
                continue
            if start == end and mask[start - 1 : start + 1].all():  # something was put in between
                return True
            old, new = self.known.files[name][start:end], self.now.get(name, b"")[start:end]
            changed = np.ones(len(old), np.bool_)
            if len(old) == len(new):
                changed = np.frombuffer(old, "u1") != np.frombuffer(new, "u1")
            if np.any(changed & mask[start:end]):
                return True
        return False

    def _holds(self, trial: JournalTrial, where: str) -> bool:
        """Whether all of a trial came back; what is not what was recorded is counted as wrong."""
        arrays = self.known.arrays.get(trial.index, {})
        if trial.commit.row != self.known.rows.get(trial.index):
            self.outcome.breach("wrong", f"{where}: row {trial.index} is {trial.commit.row}")
        if set(trial.commit.arrays) != set(arrays):
            self.outcome.breach("wrong", f"{where}: trial {trial.index} has other arrays")
        is_whole = True
        for name in trial.commit.arrays:
            try:
                _, _, stack_axis = trial.layout_of(name)
                found = chunks.join([chunk.data for chunk in trial.chunks(name)], stack_axis)
            except DamagedData as error:
                is_whole = False
                if error.trials != (trial.index,):
                    self.outcome.breach("broken", f"{where}: {error} does not name the trial")
                continue
            self._compare(found, arrays.get(name), f"{where}: {name!r} of trial {trial.index}")
        return is_whole

    def _compare(self, found: NDArray[Any], known: NDArray[Any] | None, where: str) -> None:
        fits = known is not None and (found.dtype, found.shape) == (known.dtype, known.shape)
        if known is None or not fits or found.tobytes() != known.tobytes():
            self.outcome.breach("wrong", f"{where} is not what was recorded")

    def _look_at_uncommitted(self, replay: Replay, where: str) -> None:
        """Chunks without a row are those that were recorded, or raise."""
        for (_, number), arrays in replay.uncommitted().items():
            for name, refs in arrays.items():
                known = self.known.arrays.get(number, {}).get(name)
                try:
                    found = [chunk.data for chunk in read_chunks(refs, number, name)]
                except DamagedData:
                    continue
                if known is None or not all(_is_part(chunk, known) for chunk in found):
                    self.outcome.breach("wrong", f"{where}: a chunk of open trial {number}")


def _is_part(chunk: NDArray[Any], whole: NDArray[Any]) -> bool:
    """Whether a chunk stands somewhere along the last axis of what it was stacked to."""
    width = chunk.shape[-1]
    parts = (whole[..., at : at + width] for at in range(whole.shape[-1] - width + 1))
    return chunk.dtype == whole.dtype and any(chunk.tobytes() == part.tobytes() for part in parts)
