"""What a journal holds: never wrong data, and every acknowledged trial that is missing is named."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journals import Recording, check, frames_of, read_array, six_trials, torn_batch
from trialstore import DamagedData, FormatError, Loss, StorageError
from trialstore._ondisk import journal, witness
from trialstore._ondisk.decoding import decode
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.entries import (
    ChunkRun,
    ChunkStamp,
    CleanEnd,
    Entry,
    LossNote,
    SyncMark,
    TrialCommit,
    encode,
    layout_of,
)
from trialstore._ondisk.journal import FRAME_SIZE, HEADER_SIZE, Frame, FrameType
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.samples import read_chunks
from trialstore._ondisk.segment import Segment
from trialstore._ondisk.segments import JournalWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


SEGMENT, WITNESS = "000001.segment", "000001.witness"
SECTOR = 512


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a journal to be."""
    return tmp_path / "journal"


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the loops' guards off system calls: no loop runs here, and there are millions."""
    monkeypatch.undo()


def replayed(*folders: Path, base: int = 0) -> Replay:
    """Return a replay of everything there is, closed already: losses, rows and places stay."""
    with Replay(folders, base) as replay:
        replay.poll()
    return replay


def frame_of(path: Path, kind: FrameType, number: int = 0) -> Frame:
    """Return the `number`-th frame of a type."""
    return [frame for frame in frames_of(path) if frame.type == kind][number]


def damage(path: Path, offset: int, data: bytes | None = None) -> None:
    """Overwrite bytes in place; by default flip every bit of one."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]) if data is None else data)


class FailsToSync(Disk):
    """Writes everything, and fails the n-th sync of a file as a disk with a bad sector does."""

    def __init__(self, nth: int) -> None:
        self.remaining = nth

    def sync(self, fd: int) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(fd)


# --- whole journals ---------------------------------------------------------------------------


def test_everything_that_was_recorded_comes_back(folder: Path) -> None:
    """Rows, arrays, counts and the clean end are what the recorder was told."""
    recording = six_trials(folder)
    recording.end()
    recording.commit()
    recording.close()
    assert check(recording).is_whole
    replay = replayed(folder)
    assert replay.count == 6
    assert replay.end is not None
    assert (replay.end.status, replay.end.trials) == ("complete", 6)
    assert replay.losses() == []
    assert replay.torn == []
    assert replay.synced_to == replay.last_seq == frames_of(folder / SEGMENT)[-1].seq


def test_a_segment_that_was_begun_again_is_read(folder: Path) -> None:
    """A recorder that could not begin takes its file away; the next one gives its name again."""
    with pytest.raises(OSError, match="Input/output"):
        Recording(folder, disk=FailsToSync(1))
    Segment(Disk(), folder, 1, bytes(16), 0, 0).close()  # as a reader sees it before it is gone
    with Replay([folder]) as replay:
        assert replay.poll() == []
        for path in folder.iterdir():
            path.unlink()
        six_trials(folder).close()
        assert [trial.index for trial in replay.poll()] == [0, 1, 2, 3, 4, 5]
        assert replay.losses() == []


def test_a_journal_that_was_replaced_is_not_mixed_with_the_new_one(folder: Path) -> None:
    """What was read of the old one holds no longer: whoever reads begins again."""
    six_trials(folder).close()
    with Replay([folder]) as replay:
        assert len(replay.poll()) == 6
        for path in folder.iterdir():
            path.unlink()
        six_trials(folder).close()
        with pytest.raises(FileNotFoundError, match="replaced"):
            replay.poll()


def test_chunks_come_back_with_their_arrival_times(folder: Path) -> None:
    """Each chunk is told apart, with the times it was accepted at."""
    six_trials(folder).close()
    with Replay([folder]) as replay:
        replay.poll()
        found = list(replay.trials[4].chunks("emg"))
    assert [chunk.data.shape for chunk in found] == [(2, 3), (2, 1), (2, 2)]
    assert [tuple(chunk.stamp) for chunk in found] == [(3, 10, 20), (1, 11, 21), (2, 10, 20)]


@pytest.mark.parametrize("stack_axis", [0, 1, 2])
def test_any_window_is_a_slice_of_the_whole(folder: Path, stack_axis: int) -> None:
    """A part of an array that is read alone equals that part of the array read whole."""
    recording = Recording(folder)
    recording.append("x", np.arange(12.0).reshape(3, 4), np.ones((3, 4)), stack_axis=stack_axis)
    recording.append("x", np.zeros((3, 4)), stack_axis=stack_axis)
    index = recording.trial()
    recording.commit()
    recording.close()
    whole = np.moveaxis(recording.arrays[index, "x"], stack_axis, 0)
    with Replay([folder]) as replay:
        replay.poll()
        for start in range(len(whole) + 2):
            for stop in range(start, len(whole) + 2):
                part = replay.trials[index].window("x", start, stop)
                np.testing.assert_array_equal(np.moveaxis(part, stack_axis, 0), whole[start:stop])


def test_followed_while_it_grows_each_trial_is_given_out_once(folder: Path) -> None:
    """Each poll returns the trials that were committed since the last one."""
    recording = Recording(folder)
    with Replay([folder]) as replay:
        assert replay.poll() == []
        for index in range(4):
            recording.append("emg", np.ones((2, index)))
            recording.trial(target=index)
            recording.commit()
            assert [trial.index for trial in replay.poll()] == [index]
            assert replay.poll() == []
    recording.close()


def test_trial_numbers_go_on_from_what_was_published(folder: Path) -> None:
    """A journal on top of published trials counts them, and misses none of them."""
    recording = Recording(folder, trials=3)
    recording.trial(target=3)
    recording.commit()
    recording.close()
    replay = replayed(folder, base=3)
    assert (replay.count, list(replay.trials), replay.losses()) == (4, [3], [])


def test_refused_trials_are_told_with_the_data(folder: Path) -> None:
    """A note of what was refused comes back as it was written."""
    note = Loss((), "3 trial", "refused", evidence="the queue was full")
    recording = Recording(folder)
    recording.add(LossNote((note,)))
    recording.commit()
    recording.close()
    assert replayed(folder).losses() == [note]


def test_frames_from_the_future_are_skipped(folder: Path) -> None:
    """A frame of an unknown type is no damage, whatever is in it."""
    recording = Recording(folder)
    recording.add(Entry(200, b"\xff not even JSON", [b"samples"]))  # type: ignore[arg-type]
    recording.trial(target=1)
    recording.commit()
    recording.close()
    replay = replayed(folder)
    assert (list(replay.trials), replay.damages, replay.losses()) == ([0], [], [])


def test_chunks_of_a_trial_that_was_never_committed_are_kept_apart(folder: Path) -> None:
    """They are no trial and no loss, and they can be read."""
    recording = six_trials(folder)
    samples = np.arange(10.0).reshape(2, 5)
    recording.append("emg", samples)
    recording.add(SyncMark())
    recording.commit()
    recording.close()
    with Replay([folder]) as replay:
        replay.poll()
        ((session, trial), arrays), *rest = replay.uncommitted().items()
        assert (session, trial, list(arrays), rest) == (recording.session, 6, ["emg"], [])
        (chunk,) = read_chunks(arrays["emg"], 6, "emg")
        np.testing.assert_array_equal(chunk.data, samples)
        assert (replay.count, replay.losses()) == (6, [])


@pytest.mark.slow
def test_a_reader_beside_the_recorder_sees_no_loss(folder: Path) -> None:
    """However reading and writing interleave, a live reader finds a prefix and nothing missing."""
    recording = Recording(folder)
    stop = threading.Event()

    def record() -> None:
        for index in range(400):
            recording.append("emg", np.full((2, 3), index))
            recording.trial(target=index)
            recording.commit()
        stop.set()

    thread = threading.Thread(target=record)
    thread.start()
    with Replay([folder]) as replay:
        seen: list[int] = []
        while not stop.is_set() or len(seen) < 400:
            seen += [trial.index for trial in replay.poll()]
            assert replay.losses() == []
            assert replay.damages == []
        assert seen == list(range(400))
    thread.join()
    recording.close()


# --- cut --------------------------------------------------------------------------------------


def test_a_cut_between_two_frames_is_noticed_by_the_witness_alone(folder: Path) -> None:
    """Such a journal looks whole: without its witness the loss is silent, with it, named."""
    recording = six_trials(folder)
    recording.close()
    cut = frame_of(folder / SEGMENT, FrameType.TRIAL, 3).end
    os.truncate(folder / SEGMENT, cut)
    losses = replayed(folder).losses()
    assert [loss.trials for loss in losses] == [(4,), (5,)]
    assert {(loss.kind, loss.file) for loss in losses} == {("missing", SEGMENT)}
    size = frames_of_end(recording)
    assert {loss.byte_range for loss in losses} == {(cut, size)}
    (folder / WITNESS).unlink()
    assert replayed(folder).losses() == []


def frames_of_end(recording: Recording) -> int:
    """Return how many bytes were durable, as the witness says."""
    statement = witness.newest((recording.folder / WITNESS).read_bytes(), recording.session)
    assert statement is not None
    return statement.offset


def test_a_torn_tail_is_not_a_loss(folder: Path) -> None:
    """Bytes behind what was durable were never acknowledged: they are told, and not as a loss."""
    recording = six_trials(folder)
    recording.close()
    path = folder / SEGMENT
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(path.read_bytes()[HEADER_SIZE:][: FRAME_SIZE + 11])
    os.truncate(path, size + FRAME_SIZE - 4)
    replay = replayed(folder)
    assert replay.losses() == []
    assert replay.torn == [(path, size, size + FRAME_SIZE - 4)]
    assert check(recording).is_whole


@pytest.mark.slow
def test_cut_at_every_byte(folder: Path, unguarded: None) -> None:
    """Wherever the journal ends, no data is wrong and each acknowledged trial gone is named."""
    recording = six_trials(folder)
    recording.end()
    recording.commit()
    recording.close()
    path = folder / SEGMENT
    ends = [frame.end for frame in frames_of(path) if frame.type == FrameType.TRIAL]
    size = path.stat().st_size
    for cut in reversed(range(size)):
        os.truncate(path, cut)
        missing, hurt, losses = check(recording)
        assert missing == {index for index, end in enumerate(ends) if end > cut}
        assert hurt == set()
        assert losses, f"cut at byte {cut} of {size} in silence"
        assert all(loss.kind == "missing" and loss.byte_range for loss in losses)


# --- a later page on the disk before an earlier one --------------------------------------------


def test_what_nobody_was_told_of_is_torn_not_lost(folder: Path) -> None:
    """A later page of a batch may reach the disk alone: what was before it was only accepted."""
    torn_batch(folder)
    replay = replayed(folder)
    assert sorted(replay.trials) == [0, 1, 4]
    losses = replay.losses()
    assert [(loss.trials, loss.what) for loss in losses] == [
        ((2,), "1 trial"),
        ((3,), "1 trial"),
        ((4,), "array 'emg'"),
    ]
    assert {loss.kind for loss in losses} == {"torn"}
    assert {loss.evidence for loss in losses} == {
        "durable up to frame 3, not to frame 9, which was on the disk before it"
    }
    assert [Loss.from_json(json.loads(json.dumps(loss.to_json()))) for loss in losses] == losses


def test_what_was_promised_is_missing_not_torn(folder: Path) -> None:
    """A session that began behind these numbers knew of them; nothing else tells of them now."""
    first = Recording(folder)
    for number in range(2):
        first.trial(n=number)
    first.commit()
    first.close()
    later = Recording(folder, after=first.journal.durable_seq, trials=4)
    later.trial(n=4)
    later.commit()
    later.close()
    for path in folder.glob("*.witness"):
        path.unlink()
    replay = replayed(folder)
    assert replay.trials[4].seq > replay.synced_to
    assert [(loss.trials, loss.kind) for loss in replay.losses()] == [
        ((2,), "missing"),
        ((3,), "missing"),
    ]


# --- damaged ----------------------------------------------------------------------------------


def test_a_damaged_row_leaves_its_trial_out_and_names_it(folder: Path) -> None:
    """The others keep their numbers and their data."""
    recording = six_trials(folder)
    recording.close()
    frame = frame_of(folder / SEGMENT, FrameType.TRIAL, 2)
    damage(folder / SEGMENT, frame.meta_offset + 3)
    assert check(recording)[:2] == ({2}, set())
    (loss,) = replayed(folder).losses()
    assert (loss.trials, loss.kind, loss.file) == ((2,), "damaged", SEGMENT)
    assert loss.byte_range == (frame.offset, frame.end)
    assert "CRC" in loss.evidence


def test_a_damaged_header_loses_one_trial_and_names_it(folder: Path) -> None:
    """The frames behind it are found again; the number that is missing tells which trial it was."""
    recording = six_trials(folder)
    recording.close()
    frame = frame_of(folder / SEGMENT, FrameType.TRIAL, 2)
    damage(folder / SEGMENT, frame.offset + 9)
    assert check(recording)[:2] == ({2}, set())
    (loss,) = replayed(folder).losses()
    assert (loss.trials, loss.kind, loss.byte_range) == ((2,), "damaged", (frame.offset, frame.end))


@pytest.mark.parametrize("part", ["header", "description", "samples"])
def test_a_damaged_chunk_keeps_the_row_and_its_array_raises(folder: Path, part: str) -> None:
    """The row stays; the array raises, naming file and trial; other arrays are read."""
    recording = six_trials(folder)
    recording.close()
    path = folder / SEGMENT
    frame = frame_of(path, FrameType.CHUNKS, 0)
    places = {"header": 20, "description": FRAME_SIZE + 2}
    damage(path, frame.offset + places.get(part, frame.body_offset - frame.offset + 5))
    assert check(recording)[:2] == (set(), {1})
    with Replay([folder]) as replay:
        replay.poll()
        with pytest.raises(DamagedData, match="'emg' of trial 1") as caught:
            read_array(replay, replay.trials[1], "emg")
        assert caught.value.trials == (1,)
        assert caught.value.path in {None, path}
        (loss,) = replay.losses(check_samples=True)
    assert (loss.trials, loss.what, loss.kind, loss.file) == (
        (1,),
        "array 'emg'",
        "damaged",
        SEGMENT,
    )


def test_two_damages_are_named_each_at_its_place(folder: Path) -> None:
    """What is said of a loss is where that trial stood, not where the first damage is."""
    recording = six_trials(folder)
    recording.close()
    frames = [frame_of(folder / SEGMENT, FrameType.TRIAL, number) for number in (1, 4)]
    for frame in frames:
        damage(folder / SEGMENT, frame.meta_offset)
    losses = replayed(folder).losses()
    assert [loss.trials for loss in losses] == [(1,), (4,)]
    assert [loss.byte_range for loss in losses] == [(f.offset, f.end) for f in frames]


@pytest.mark.parametrize("kind", [FrameType.OPENING, FrameType.LOSSES, FrameType.CLEAN_END])
def test_damage_that_no_trial_suffers_from_is_named_too(folder: Path, kind: FrameType) -> None:
    """A note of refused trials may have stood there: damage is never passed over."""
    recording = Recording(folder)
    recording.add(LossNote((Loss((), "3 trial", "refused"),)))
    recording.trial(target=1)
    recording.end()
    recording.commit()
    recording.close()
    frame = frame_of(folder / SEGMENT, kind)
    damage(folder / SEGMENT, frame.offset)
    losses = [loss for loss in replayed(folder).losses() if loss.kind != "refused"]
    assert [(loss.trials, loss.kind) for loss in losses] == [((), "damaged")]
    assert losses[0].byte_range == (frame.offset, frame.end)
    assert check(recording)[:2] == (set(), set())


def test_a_session_whose_opening_is_damaged_has_still_ended(folder: Path) -> None:
    """How the newest session ended is known from its end, not from its beginning."""
    first = six_trials(folder)
    first.close()
    second = Recording(folder, after=first.journal.durable_seq, trials=6)
    second.trial(target=6)
    second.end()
    second.commit()
    second.close()
    path = folder / "000002.segment"
    damage(path, frame_of(path, FrameType.OPENING).meta_offset)
    replay = replayed(folder)
    assert replay.end is not None
    assert replay.end.trials == 7


def test_both_copies_of_the_header_damaged_the_witness_tells_the_session(folder: Path) -> None:
    """Three copies of a segment's identity in two files: two may go."""
    recording = six_trials(folder)
    recording.close()
    damage(folder / SEGMENT, 0, bytes(HEADER_SIZE))
    assert check(recording).is_whole


def test_a_segment_without_any_identity_is_named(folder: Path) -> None:
    """Nothing can be read then, and that is said: it is not an empty journal."""
    recording = six_trials(folder)
    recording.close()
    damage(folder / SEGMENT, 0, bytes(HEADER_SIZE))
    (folder / WITNESS).unlink()
    replay = replayed(folder)
    (loss,) = replay.losses()
    assert (loss.kind, loss.file) == ("damaged", SEGMENT)
    assert loss.byte_range == (0, (folder / SEGMENT).stat().st_size)


def test_a_segment_that_was_just_created_is_no_damage(folder: Path) -> None:
    """A recorder may die between creating a file and filling it; nothing was acknowledged then."""
    folder.mkdir()
    for size in (0, 10, HEADER_SIZE):
        (folder / SEGMENT).write_bytes(bytes(size))
        (folder / WITNESS).write_bytes(bytes(2 * witness.SLOT_SIZE))
        replay = replayed(folder)
        assert (replay.losses(), replay.count) == ([], 0)


def variants(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a single-bit flip of each byte of `data`: where it is, and what it becomes."""
    for offset, byte in enumerate(data):
        yield offset, bytes([byte ^ 1 << offset % 8])


@pytest.mark.slow
def test_a_bit_of_every_byte_flipped(folder: Path, unguarded: None) -> None:
    """Anywhere in segment or witness: no wrong data, at most one trial hurt, and that one named."""
    recording = six_trials(folder)
    recording.end()
    recording.commit()
    recording.close()
    for name in (SEGMENT, WITNESS):
        data = (folder / name).read_bytes()
        used = len(data) if name == SEGMENT else SECTOR + 100
        for offset, flipped in variants(data[:used]):
            damage(folder / name, offset, flipped)
            missing, hurt, _ = check(recording)
            assert len(missing | hurt) <= 1, f"byte {offset} of {name} became {flipped!r}"
            damage(folder / name, offset, data[offset : offset + 1])
    assert check(recording).is_whole


@pytest.mark.slow
@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\xf1TrF"])
def test_every_sector_overwritten(folder: Path, filler: bytes, unguarded: None) -> None:
    """512 bytes from any offset: no wrong data, every acknowledged trial that is gone is named."""
    recording = six_trials(folder)
    recording.end()
    recording.commit()
    recording.close()
    data = (folder / SEGMENT).read_bytes()
    for start in range(0, len(data) - 8, 3):  # the last 8 bytes may be padding
        sector = (filler * SECTOR)[: min(SECTOR, len(data) - start)]
        damage(folder / SEGMENT, start, sector)
        assert check(recording).losses, f"sector at byte {start} in silence"
        damage(folder / SEGMENT, start, data[start : start + SECTOR])


@pytest.mark.parametrize("start", range(HEADER_SIZE, HEADER_SIZE + 2048, 72))
def test_a_sector_removed_doubled_or_swapped(folder: Path, start: int) -> None:
    """A disk that mixes up sectors makes no wrong data either."""
    recording = six_trials(folder)
    recording.close()
    path = folder / SEGMENT
    data = path.read_bytes()
    end = start + SECTOR
    for mixed in (
        data[:start] + data[end:],
        data[:end] + data[start:],
        data[:start] + data[end : end + SECTOR] + data[start:end] + data[end + SECTOR :],
    ):
        path.write_bytes(mixed)
        check(recording)


# --- several segments and sessions ------------------------------------------------------------


def two_copies(folder: Path) -> Recording:
    """Record trials whose last batch stands twice, because the sync of its first copy failed."""
    recording = Recording(folder, disk=FailsToSync(4))  # header, opening, first batch, second
    recording.append("emg", np.arange(4.0).reshape(2, 2))
    recording.trial(target=0)
    recording.commit()
    recording.append("emg", np.ones((2, 2)), np.zeros((2, 1)))
    recording.trial(target=1)
    recording.commit()
    recording.close()
    assert recording.journal.poisoned
    return recording


def test_frames_repeated_after_a_failed_sync_count_once(folder: Path) -> None:
    """A trial in two segments is one trial, with each of its chunks once."""
    recording = two_copies(folder)
    numbers = [frame.seq for frame in frames_of(folder / SEGMENT)]
    again = [frame.seq for frame in frames_of(folder / "000002.segment")]
    assert set(numbers) & set(again), "the test is about repeated numbers"
    assert check(recording).is_whole
    assert replayed(folder).losses(check_samples=False) == []


@pytest.mark.parametrize("segment", [SEGMENT, "000002.segment"])
@pytest.mark.parametrize("kind", [FrameType.CHUNKS, FrameType.TRIAL])
def test_either_copy_of_a_repeated_frame_is_enough(
    folder: Path, segment: str, kind: FrameType
) -> None:
    """Damage to one copy costs no trial; to the first, never acknowledged, it is no news."""
    recording = two_copies(folder)
    frame = frame_of(folder / segment, kind, -1)
    damage(folder / segment, frame.meta_offset + 1)
    missing, hurt, losses = check(recording)
    assert (missing, hurt) == (set(), set())
    assert [loss.file for loss in losses] == [segment] * (segment != SEGMENT)


def test_segments_in_two_folders_are_read_in_the_order_of_their_making(tmp_path: Path) -> None:
    """Failing over to another disk and back leaves one sequence of trials, and its clean end."""
    first, second = tmp_path / "journal", tmp_path / "elsewhere"
    recording = Recording(first, fallback=second, disk=Disk())
    for index in range(6):
        recording.trial(target=index)
        recording.journal._segment.close()  # type: ignore[union-attr]  # the next commit fails over
        away = first.with_name("away")
        if index % 3:
            first.rename(away)  # the first folder cannot be written: on to the second
        recording.commit()
        if away.exists():
            away.rename(first)
    recording.end()
    recording.commit()
    recording.close()
    numbers = sorted(path.name for path in [*first.glob("*.segment"), *second.glob("*.segment")])
    assert len(numbers) == len(set(numbers))
    with Replay([first, second]) as replay:
        assert [trial.index for trial in replay.poll()] == list(range(6))
        assert replay.end is not None
        assert replay.losses() == []
    assert check(recording).is_whole


def zombie_and_heir(folder: Path) -> tuple[Recording, Callable[[], Recording]]:
    """Return a session believed dead after three trials, and a function that takes over."""
    zombie = Recording(folder)
    for index in range(3):
        zombie.append("emg", np.full((2, 2), index))
        zombie.trial(target=index, by="zombie")
        zombie.commit()

    def take_over() -> Recording:
        seq = replayed(folder).last_seq
        heir = Recording(folder, after=seq, trials=3)
        for index in range(3, 5):
            heir.append("emg", np.full((2, 2), -index))
            heir.trial(target=index, by="heir")
            heir.commit()
        return heir

    return zombie, take_over


def go_on(zombie: Recording) -> None:
    """Let a session write a trial that it has lost the right to."""
    zombie.append("emg", np.full((2, 2), 77))
    zombie.trial(target=77, by="zombie")
    zombie.commit()
    zombie.close()


def by_whom(replay: Replay) -> list[object]:
    """Return which session each trial was recorded by."""
    trials = sorted(replay.trials.values(), key=lambda trial: trial.index)
    return [text for trial in trials for name, _, text in trial.commit.row if name == "by"]


@pytest.mark.parametrize("is_live", [False, True])
def test_a_recorder_that_wakes_up_late_harms_nothing(folder: Path, is_live: bool) -> None:
    """Its trials are superseded: the session that took over has those numbers; that is named."""
    zombie, take_over = zombie_and_heir(folder)
    heir = take_over()
    with Replay([folder]) as replay:
        if is_live:
            replay.poll()
        go_on(zombie)
        replay.poll()
        assert by_whom(replay) == ["zombie"] * 3 + ["heir"] * 2
        (loss,) = replay.losses(check_samples=True)
        assert (loss.trials, loss.kind) == ((3,), "superseded")
        assert heir.session.hex() in loss.evidence
        np.testing.assert_array_equal(
            read_array(replay, replay.trials[3], "emg"), heir.arrays[3, "emg"]
        )
    heir.close()


def test_a_late_recorder_that_fails_over_does_not_take_the_task_back(folder: Path) -> None:
    """Its new segment has the highest number of all, and still is the older session's."""
    zombie, take_over = zombie_and_heir(folder)
    heir = take_over()
    heir.end()
    heir.commit()
    heir.close()
    (folder / SEGMENT).rename(folder / "moved")  # noticed at the next commit: a new segment
    go_on(zombie)
    (folder / "moved").rename(folder / SEGMENT)
    replay = replayed(folder)
    assert len(replay.segments) == 4  # the moved one is also there as a copy
    assert by_whom(replay) == ["zombie"] * 3 + ["heir"] * 2
    assert replay.end is not None
    assert {loss.kind for loss in replay.losses()} == {"superseded"}


def test_a_session_that_resumes_after_a_loss_keeps_it_named(folder: Path) -> None:
    """Numbers of trials that are gone are not given again, and their loss stays told."""
    recording = six_trials(folder)
    recording.close()
    cut = frame_of(folder / SEGMENT, FrameType.TRIAL, 2).end
    os.truncate(folder / SEGMENT, cut)
    before = replayed(folder)
    assert before.count == 6
    later = Recording(folder, after=before.last_seq, trials=before.count)
    later.trial(target=6)
    later.commit()
    later.close()
    losses = replayed(folder).losses()
    assert [loss.trials for loss in losses] == [(3,), (4,), (5,)]
    assert {(loss.file, loss.kind) for loss in losses} == {(SEGMENT, "missing")}


def test_a_segment_that_is_gone_is_named_by_what_follows(folder: Path) -> None:
    """The trials of a deleted file are missed by number."""
    first = six_trials(folder)
    first.close()
    second = Recording(folder, after=first.journal.durable_seq, trials=6)
    second.trial(target=6)
    second.commit()
    second.close()
    (folder / SEGMENT).unlink()
    assert check(first, second).missing == set(range(6))


# --- journals of strangers --------------------------------------------------------------------

#: One description of each type, as the recorder writes them.
DESCRIPTIONS: list[tuple[FrameType, dict[str, Any]]] = [
    (FrameType.OPENING, {"session": "00" * 16, "after": 0, "trials": 0, "description": {}}),
    (
        FrameType.CHUNKS,
        {
            "array": "emg",
            "trial": 0,
            "first": 0,
            "dtype": "<f8",
            "shape": [1, None],
            "stack_axis": 1,
            "chunks": [[1, 1, 2]],
        },
    ),
    (
        FrameType.TRIAL,
        {
            "trial": 0,
            "row": [["target", "int", "3"]],
            "arrays": {"emg": [1, 8]},
            "unix_ns": 3,
            "monotonic_ns": 4,
            "first_unix_ns": 1,
        },
    ),
    (FrameType.LOSSES, {"losses": [Loss((1,), "1 trial", "refused").to_json()]}),
    (FrameType.POISON, {"segment": "000001.segment", "error": "EIO"}),
    (FrameType.SYNC_MARK, {}),
    (
        FrameType.CLEAN_END,
        {
            "trials": 1,
            "status": "complete",
            "traceback": None,
            "unix_ns": 1,
            "monotonic_ns": 2,
            "statistics": {},
        },
    ),
]

NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 10**30, 1.5, float("inf"), True]
)
TEXTS = st.sampled_from(
    ["", "emg", "../../evil", "\ud800", "<f8", "|O", "<U4", "V0", "S999999999", "complete", "CON"]
)
JSON = st.recursive(
    st.none() | NUMBERS | TEXTS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)


@st.composite
def hostile_frames(draw: st.DrawFn) -> list[tuple[FrameType, bytes]]:
    """Draw descriptions of which some members, however deep, are something else."""
    frames = []
    for kind, description in DESCRIPTIONS:
        hostile = json.loads(json.dumps(description))
        for _ in range(draw(st.integers(0, 2))):
            place: Any = hostile
            while True:
                keys: Sequence[Any] = list(place) if isinstance(place, dict) else range(len(place))
                if not keys:
                    break
                key = draw(st.sampled_from(keys))
                if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                    place = place[key]
                    continue
                place[key] = draw(JSON)
                break
        frames.append((kind, json.dumps(hostile).encode()))
    return frames


def read_all(replay: Replay) -> None:
    """Ask a replay everything there is to ask."""
    replay.poll()
    for trial in replay.trials.values():
        for name in trial.commit.arrays:
            with contextlib.suppress(DamagedData):
                trial.window(name, 0, 1)
            with contextlib.suppress(DamagedData):
                read_array(replay, trial, name)
    for (_, number), arrays in replay.uncommitted().items():
        for name, refs in arrays.items():
            list(read_chunks(refs, number, name))
    assert len(replay.losses(check_samples=True)) < 200_000
    assert replay.count >= 0
    _ = replay.end, replay.openings, replay.torn


@pytest.mark.slow
@settings(max_examples=300)
@given(frames=hostile_frames(), twice=st.booleans())
def test_a_strangers_journal_raises_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[tuple[FrameType, bytes]],
    twice: bool,
) -> None:
    """Whatever a frame with right checksums says, reading ends, with data or an error of ours."""
    folder = tmp_path_factory.mktemp("hostile", numbered=True)
    session = bytes(16)
    data, previous = journal.encode_header(session), 0
    for seq, (kind, meta) in enumerate(frames * (1 + twice), 1):
        body = [bytes(8)] if kind == FrameType.CHUNKS else []
        pieces, previous = journal.encode_frame(
            *(kind, meta, body),
            seq=seq,
            synced_to=seq - 1,
            previous=previous,
            salt=journal.salt_of(session),
        )
        data += b"".join(pieces)
    (folder / SEGMENT).write_bytes(data)
    with Replay([folder]) as replay:
        try:
            read_all(replay)
        except StorageError:
            return
        refused = {damage.first_seq for damage in replay.damages}
        for seq, (kind, meta) in enumerate(frames * (1 + twice), 1):
            try:
                decode(kind, meta)
            except FormatError:
                assert seq in refused, "a description was passed over in silence"
    shutil.rmtree(folder)


@given(st.sampled_from([kind for kind, _ in DESCRIPTIONS]), st.binary(max_size=60))
def test_any_bytes_as_a_description_give_a_record_or_a_format_error(
    kind: FrameType, meta: bytes
) -> None:
    """Bytes that are not JSON of the right form are FormatError and nothing else."""
    try:
        decode(kind, meta)
    except FormatError:
        return


@pytest.mark.parametrize(
    ("kind", "description"), [(kind, d) for kind, d in DESCRIPTIONS if kind != FrameType.SYNC_MARK]
)
def test_every_member_of_a_description_is_needed(
    kind: FrameType, description: dict[str, Any]
) -> None:
    """A description from which a member is missing is refused; one with more members is not."""
    assert decode(kind, json.dumps({**description, "from the future": 1}).encode()) is not None
    for member in description:
        rest = {name: value for name, value in description.items() if name != member}
        with pytest.raises(FormatError):
            decode(kind, json.dumps(rest).encode())


@pytest.mark.parametrize(
    ("kind", "member", "value"),
    [
        (FrameType.CHUNKS, "array", "../../evil"),
        (FrameType.TRIAL, "arrays", {"../../evil": [1, 8]}),
        (FrameType.TRIAL, "row", [["target", "str", "\ud800"]]),
        (FrameType.TRIAL, "trial", 2**63),
        (FrameType.TRIAL, "unix_ns", -1),
        (FrameType.TRIAL, "trial", True),
        (FrameType.CHUNKS, "shape", [2**40, 2**40, 0]),
        (FrameType.CHUNKS, "shape", [None, None]),
        (FrameType.CHUNKS, "shape", [1] * 33),
        (FrameType.CHUNKS, "dtype", "|O"),
        (FrameType.CHUNKS, "stack_axis", 3),
        (FrameType.OPENING, "description", {"metadata": []}),
        (FrameType.OPENING, "trials", 2**63),
        (FrameType.CLEAN_END, "status", "recording"),
    ],
)
def test_a_member_that_would_do_harm_is_refused(kind: FrameType, member: str, value: Any) -> None:
    """Paths, half characters, numbers that NumPy has no room for: FormatError at the door."""
    hostile = dict(DESCRIPTIONS)[kind] | {member: value}
    with pytest.raises(FormatError):
        decode(kind, json.dumps(hostile).encode())


def test_a_traceback_that_is_not_unicode_does_not_stop_the_end() -> None:
    """A file name in a traceback may be any bytes; the end of the session is worth more."""
    entry = encode(CleanEnd(1, "interrupted", "File '\udcff.py'", 1, 2, {}))
    end = decode(entry.type, entry.meta)
    assert isinstance(end, CleanEnd)
    assert end.traceback == "File '?.py'"


def chunks_of(first: int, samples: NDArray[Any], *, claimed: int | None = None) -> Entry:
    """Frame one chunk; `claimed` is the length that the description tells of it."""
    form, length = layout_of(samples.shape, samples.dtype, 1)
    stamps = (ChunkStamp(length if claimed is None else claimed, 1, 2),)
    return encode(ChunkRun("x", 0, first, form, stamps), [samples.tobytes()])


@pytest.mark.parametrize(
    "frames",
    [
        [chunks_of(0, np.ones(2)), chunks_of(2, np.ones(2))],
        [chunks_of(0, np.ones(2)), chunks_of(1, np.ones(2, "f4"))],
        [chunks_of(0, np.ones((2, 2))), chunks_of(1, np.ones((3, 2)))],
        [chunks_of(0, np.ones(2)), chunks_of(1, np.ones(2), claimed=3)],
    ],
    ids=["hole", "other dtype", "other shape", "more than there is"],
)
def test_chunks_that_do_not_fit_one_another_are_no_array(folder: Path, frames: list[Entry]) -> None:
    """With every checksum right, chunks that contradict each other still make no array."""
    recording = Recording(folder)
    for frame in frames:
        recording.add(frame)
    recording.add(TrialCommit(0, (), {"x": (2, 32)}, 1, 2, 1))
    recording.commit()
    recording.close()
    with Replay([folder]) as replay:
        replay.poll()
        with pytest.raises(DamagedData, match="array 'x' of trial 0"):
            replay.trials[0].layout_of("x")
        with pytest.raises(DamagedData, match="array 'x' of trial 0"):
            replay.trials[0].window("x", 0, 1)


def test_a_trial_number_is_given_once(folder: Path) -> None:
    """A session that claims a number that is taken cannot change that trial, and it is told."""
    first = six_trials(folder)
    first.close()
    other = Recording(folder, after=first.journal.durable_seq, trials=4)
    other.append("emg", np.full((2, 4), 13.0))
    other.trial(target="mine")
    other.commit()
    other.close()
    with Replay([folder]) as replay:
        replay.poll()
        trial = replay.trials[4]
        assert trial.commit.row == first.rows[4]
        found = read_array(replay, trial, "emg")
        np.testing.assert_array_equal(found, first.arrays[4, "emg"])
        assert ["there before" in damage.evidence for damage in replay.damages] == [True]


@pytest.mark.slow
def test_a_claim_of_countless_trials_costs_neither_time_nor_memory(folder: Path) -> None:
    """Those that the journal's bytes could be are named one by one, the rest by one entry."""
    recording = Recording(folder, trials=10**15)
    recording.trial(target=1)
    recording.commit()
    recording.close()
    replay = replayed(folder)
    losses = replay.losses()
    assert (100_000 < replay.room < 101_000, len(losses)) == (True, replay.room + 1)
    assert (losses[-1].trials, losses[-1].what.split()[0]) == ((), f"{10**15 - replay.room}")


def test_a_journal_writer_is_what_writes_them(folder: Path) -> None:
    """These tests stand on the recorder's own writer, not on a second opinion of it."""
    recording = six_trials(folder)
    assert type(recording.journal) is JournalWriter
    recording.close()
