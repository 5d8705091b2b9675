"""Journals for tests: written by the real writer, remembered in memory, compared byte for byte."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trialstore import DamagedData
from trialstore._ondisk import chunks, journal
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.entries import (
    ChunkRun,
    ChunkStamp,
    CleanEnd,
    Opening,
    Record,
    TrialCommit,
    encode,
    layout_of,
)
from trialstore._ondisk.journal import Frame
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.segments import JournalWriter
from trialstore._ondisk.values import encode_attrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from trialstore import Loss
    from trialstore._ondisk.entries import Entry
    from trialstore._ondisk.samples import JournalTrial

    Row = tuple[tuple[str, str, str], ...]


class Recording:
    """One session's recorder, and a perfect memory of what it was told.

    Chunks belong to the next trial. Nothing is on disk before `commit`, everything is after it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disk: Disk | None = None,
        fallback: Path | None = None,
        session: str | None = None,
        after: int = 0,
        trials: int = 0,
        hold: Callable[[], bool] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.fallbacks = [] if fallback is None else [fallback]
        opening = Opening(session or uuid.uuid4().hex, after, trials, {})
        self.session = bytes.fromhex(opening.session)
        self.journal = JournalWriter(disk or Disk(), folder, opening, fallback=fallback, hold=hold)
        self.journal.start()
        self.rows: dict[int, Row] = {}
        self.arrays: dict[tuple[int, str], NDArray[Any]] = {}
        self.acknowledged: set[int] = set()
        self._next = trials
        self._open: dict[str, list[NDArray[Any]]] = {}
        self._entries: list[Entry] = []

    def append(self, name: str, *pieces: NDArray[Any], stack_axis: int = 1) -> None:
        """Add one frame of chunks to the open trial."""
        first = len(self._open.setdefault(name, []))
        layout, _ = layout_of(pieces[0].shape, pieces[0].dtype, stack_axis)
        lengths = [layout_of(piece.shape, piece.dtype, stack_axis)[1] for piece in pieces]
        stamps = tuple(ChunkStamp(n, 10 + i, 20 + i) for i, n in enumerate(lengths))
        run = ChunkRun(name, self._next, first, layout, stamps)
        self._entries.append(encode(run, [piece.tobytes() for piece in pieces]))
        self._open[name] += pieces
        self.arrays[self._next, name] = chunks.join(self._open[name], stack_axis)

    def trial(self, **attrs: object) -> int:
        """Add the row that commits the open trial; return its number."""
        index, row = self._next, tuple(encode_attrs(attrs))
        counts = {
            name: (len(pieces), sum(piece.nbytes for piece in pieces))
            for name, pieces in self._open.items()
        }
        self.add(TrialCommit(index, row, counts, 100 + index, 200 + index, 10 if counts else None))
        self.rows[index] = row
        self._open = {}
        self._next += 1
        return index

    def end(self, status: str = "complete") -> None:
        """Add the clean end."""
        self.add(CleanEnd(self._next, status, None, 1000, 2000, {}))

    def add(self, record: Record | Entry) -> None:
        """Add any record, or a frame that is none of ours."""
        self._entries.append(record if isinstance(record, tuple) else encode(record))

    def commit(self) -> None:
        """Make everything so far durable, or raise OSError."""
        self.journal.commit(self._entries, self._next)
        self._entries = []
        self.acknowledged = set(self.rows)

    def salvage(self) -> None:
        """Make everything so far durable on the other disk, or raise OSError."""
        self.journal.salvage(self._entries)
        self._entries = []
        self.acknowledged = set(self.rows)

    def close(self) -> None:
        """Let go of the segment, as a kill would."""
        self.journal.close()


def frames_of(path: Path) -> list[Frame]:
    """Return every frame of a whole segment."""
    data = path.read_bytes()
    session = journal.parse_header(data)
    assert session is not None
    read = lambda offset, length: data[offset : offset + length]  # noqa: E731
    events = journal.scan(read, len(data), journal.salt_of(session))
    return [event for event in events if isinstance(event, Frame)]


def torn_batch(folder: Path) -> Recording:
    """Leave two durable trials, and of a batch of three the row of the last one alone.

    As a power cut may: a later page of the batch has reached the disk before the earlier ones.
    """
    recording = Recording(folder)
    for number in range(2):
        recording.trial(n=number)
    recording.commit()
    path = folder / "000001.segment"
    start = path.stat().st_size
    for number in range(2, 5):
        recording.append("emg", np.full((1, 8), float(number)))
        recording.trial(n=number)
    recording.commit()
    recording.close()
    last = frames_of(path)[-1].offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(last - start))
    (folder / "000001.witness").write_bytes(bytes(1024))  # it was never synced
    return recording


def six_trials(folder: Path) -> Recording:
    """Record six small trials, one commit each: rows, one array, two arrays in three frames."""
    recording = Recording(folder, session="00112233445566778899aabbccddeeff")
    for index in range(6):
        if index in {1, 4}:
            recording.append("emg", np.arange(6.0).reshape(2, 3) + index, np.ones((2, 1)))
        if index == 4:
            recording.append("emg", np.zeros((2, 2)))
            recording.append("key", np.array([index], "u1"))
        recording.trial(target=index, code="007")
        recording.commit()
    return recording


def read_array(replay: Replay, trial: JournalTrial, name: str) -> NDArray[Any]:
    """Read and join one array of a trial; raises DamagedData."""
    _, _, stack_axis = trial.layout_of(name)
    return chunks.join([chunk.data for chunk in trial.chunks(name)], stack_axis)


class Found(NamedTuple):
    """What a journal was found to lack."""

    missing: set[int]
    hurt: set[int]
    losses: list[Loss]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing and nothing is named."""
        return not (self.missing or self.hurt or self.losses)


def check(*recordings: Recording) -> Found:
    """Hold a journal against what was recorded; return which trials are missing or hurt.

    I1, I2: every trial that is given out has the row that was recorded, and every array of it the
    samples. I3: every acknowledged trial that is not given out whole is named by `losses`.
    """
    folders = [recordings[0].folder, *recordings[0].fallbacks]
    rows: dict[int, Row] = {}
    arrays: dict[tuple[int, str], NDArray[Any]] = {}
    acknowledged: set[int] = set()
    for recording in recordings:
        rows |= recording.rows
        arrays |= recording.arrays
        acknowledged |= recording.acknowledged
    with Replay(folders) as replay:
        replay.poll()
        losses = replay.losses(check_samples=True)
        found = set(replay.trials)
        hurt = set()
        for index, trial in replay.trials.items():
            assert trial.commit.row == rows[index]
            expected = {name for number, name in arrays if number == index}
            assert set(trial.commit.arrays) == expected
            if not all(_is_whole(replay, trial, name, arrays[index, name]) for name in expected):
                hurt.add(index)
    missing = acknowledged - found
    named = {index for loss in losses for index in loss.trials}
    assert missing | (hurt & acknowledged) <= named, f"in silence: {missing | hurt} {losses}"
    assert named <= missing | hurt | (set(rows) - acknowledged), f"whole, but named: {losses}"
    return Found(missing, hurt, losses)


def _is_whole(replay: Replay, trial: JournalTrial, name: str, recorded: NDArray[Any]) -> bool:
    """Whether an array comes back; wrong data, or a refusal that does not name it, is a failure."""
    try:
        found = read_array(replay, trial, name)
    except DamagedData as error:
        refusal = error
    else:
        assert (found.shape, found.dtype) == (recorded.shape, recorded.dtype)
        assert found.tobytes() == recorded.tobytes()
        return True
    assert refusal.trials == (trial.index,)
    assert repr(name) in str(refusal)
    return False
