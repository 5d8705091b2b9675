"""What a disk or a person can do to a journal: it costs what it touches, and that is named."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaign import damage
from tests.campaign.bench import GOLDEN, NAMES, Span, frames_of, golden
from tests.campaign.frame import Effort
from tests.golden import make
from tests.journals import Recording, check, six_trials
from trialstore import DamagedData, PublishFailed
from trialstore._ondisk import disk, journal, recovery, witness
from trialstore._ondisk import replay as replaying
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.entries import CleanEnd, Entry, Opening, TrialCommit, encode
from trialstore._ondisk.journal import (
    HEADER_SIZE,
    FrameType,
    encode_frame,
    encode_header,
    salt_of,
)
from trialstore._ondisk.lock import acquire
from trialstore._ondisk.numbers import MOST, Numbers
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.segment_file import SegmentFile
from trialstore._ondisk.segments import JournalWriter
from trialstore._ondisk.witness import Witness
from trialstore._publishing.task import TaskPublisher
from trialstore._reading.live import JournalSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.campaign.frame import Row
    from trialstore import Loss

FIRST, SECOND, THIRD = (f"00000{n}.segment" for n in (1, 2, 3))
WITNESS = "000001.witness"
SECTOR: Final = 512
UNREADABLE: Final = "the disk cannot read it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a journal to be."""
    return tmp_path / "journal"


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the loops' guards off system calls: no loop runs here, and there are millions."""
    monkeypatch.undo()


def replayed(folder: Path) -> Replay:
    """Return a replay of everything there is, closed already."""
    with Replay([folder]) as replay:
        replay.poll()
    return replay


def told(losses: Iterable[Loss]) -> list[tuple[tuple[int, ...], str, str]]:
    """Return trials, class and file of losses."""
    return [(loss.trials, loss.kind, loss.file) for loss in losses]


# --- golden journals --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_journals_are_what_the_recorder_writes(name: str, tmp_path: Path) -> None:
    """A change of the format shows: byte for byte, the files are written as they always were."""
    make.make(tmp_path)
    written = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    kept = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
    assert written == kept


@pytest.mark.slow
@pytest.mark.parametrize("row", damage.ROWS, ids=lambda row: f"row {row.number}")
def test_damage_of_every_sort_is_silent_about_nothing(row: Row, unguarded: None) -> None:
    """A sample of what the campaign does exhaustively: no promise is broken."""
    outcome = row.run(Effort())
    assert outcome.is_clean, outcome.problems


# --- every byte is accounted for --------------------------------------------------------------


def accounts(folder: Path, name: str) -> list[int]:
    """Count for each byte of a segment how often something accounts for it."""
    size = (folder / name).stat().st_size
    with Replay([folder]) as replay:
        replay.poll()
        spans = [(d.file, d.byte_range) for d in replay.damages]
        spans += [(path.name, (start, end)) for path, start, end in replay.torn]
    file = SegmentFile(folder / name)
    frames = [whole.frame for whole in file.poll()]
    is_whole = [journal.payload_is_whole(file.read, frame) for frame in frames]
    file.close()
    # A frame that is not whole may claim the beginning of the next one, or of a damaged one.
    begins = [frame.offset for frame in frames]
    begins += [span[0] for of, span in spans if of == name and span and span[0] < span[1]]
    for frame, whole in zip(frames, is_whole, strict=True):
        behind = (begin for begin in begins if begin > frame.offset and not whole)
        spans.append((name, (frame.offset, min(frame.end, *behind, size))))
    if (folder / name).read_bytes().startswith(encode_header(file.session)):
        spans.append((name, (0, HEADER_SIZE)))
    counts = np.zeros(size, int)
    for _, span in (span for span in spans if span[0] == name and span[1] is not None):
        assert span is not None
        counts[span[0] : span[1]] += 1
    return counts.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_every_byte_is_accounted_for_once(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Header, whole frame, damage that is named, torn end: each byte is one of these, once."""
    folder = tmp_path_factory.mktemp(name)
    known = golden(name)
    for file, whole in known.files.items():
        (folder / file).write_bytes(whole)
    file = data.draw(st.sampled_from(known.segments))
    content = bytearray(known.files[file])
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, max(len(content) - 1, 0)))
        end = start + data.draw(st.sampled_from([1, 8, 64, SECTOR, len(content)]))
        match data.draw(st.sampled_from(["noise", "zeros", "removed", "cut", "doubled"])):
            case "noise":
                content[start:end] = np.random.default_rng(start).bytes(len(content[start:end]))
            case "zeros":
                content[start:end] = bytes(len(content[start:end]))
            case "removed":
                del content[start:end]
            case "cut":
                del content[start:]
            case _:
                content[start:start] = content[start:end]
    (folder / file).write_bytes(content)
    if data.draw(st.booleans()):
        (folder / file).with_suffix(".witness").unlink()
    for segment in known.segments:
        counts = accounts(folder, segment)
        assert set(counts) <= {1}, (segment, [n for n, c in enumerate(counts) if c != 1][:9])
    shutil.rmtree(folder)


def test_chunks_of_a_trial_that_lost_its_row_are_told_from_those_of_an_open_one(
    folder: Path,
) -> None:
    """Below `count` the row is lost, and named; from `count` on nobody was told of the trial."""
    recording = six_trials(folder)
    recording.append("emg", np.ones((2, 2)))
    recording.commit()
    recording.close()
    row = [f for f in frames_of((folder / FIRST).read_bytes()) if f.type == FrameType.TRIAL][4]
    overwrite(folder / FIRST, row.meta_offset, b"\0")
    with Replay([folder]) as replay:
        replay.poll()
        left = {number: sorted(arrays) for (_, number), arrays in replay.uncommitted().items()}
        assert left == {4: ["emg", "key"], 6: ["emg"]}
        assert (replay.count, told(replay.losses())) == (6, [((4,), "damaged", FIRST)])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# --- sectors that cannot be read --------------------------------------------------------------


class BadSectors(Disk):
    """A disk some bytes of which cannot be read; like a kernel, it first gives what is in front."""

    def __init__(self, start: int, end: int, error: int = errno.EIO) -> None:
        self.start, self.end, self.error = start, end, error
        self.questions = 0
        self.nbytes = 0

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        self.questions += 1
        if self.start <= offset < self.end:
            raise OSError(self.error, os.strerror(self.error))
        if offset < self.start:
            length = min(length, self.start - offset)
        data = super().read_at(fd, length, offset)
        self.nbytes += len(data)
        return data


@pytest.mark.parametrize("name", NAMES)
def test_an_unreadable_sector_costs_the_frames_that_touch_it(name: str, tmp_path: Path) -> None:
    """All others are read; those that are lost are named, with the disk's own words."""
    known = golden(name)
    folder = tmp_path / name
    folder.mkdir()
    for file, data in known.files.items():
        (folder / file).write_bytes(data)
    assert len(known.segments) in {1, 3}
    with Replay([folder]) as whole:
        whole.poll()
    for start in range(0, max(len(known.files[file]) for file in known.segments), SECTOR):
        with disk.use(BadSectors(start, start + SECTOR)), Replay([folder]) as replay:
            replay.poll()
            losses = [loss for loss in replay.losses(check_samples=True) if loss.kind != "refused"]
            hurt = {n for n, trial in replay.trials.items() if not is_readable(trial)}
        touched = [Span(file, start, start + SECTOR) for file in known.segments]
        lost = (set(whole.trials) - set(replay.trials)) | hurt
        assert lost <= known.harmed(touched)
        assert lost & known.acknowledged <= {n for loss in losses for n in loss.trials}
        assert {loss.kind for loss in losses} <= {"damaged"}
        assert all(UNREADABLE in loss.evidence or "witness" in loss.evidence for loss in losses)


def is_readable(trial: object) -> bool:
    """Whether every array of a trial can be read."""
    try:
        for name in trial.commit.arrays:  # type: ignore[attr-defined]
            list(trial.chunks(name))  # type: ignore[attr-defined]
    except DamagedData:
        return False
    return True


def test_a_row_in_an_unreadable_sector_is_named_with_its_place(folder: Path) -> None:
    """Trial, class, file and evidence; everything before and behind is there."""
    recording = Recording(folder)
    for index in range(4):
        recording.trial(n=index, text="x" * 3 * SECTOR)
        recording.commit()
    recording.close()
    row = [f for f in frames_of((folder / FIRST).read_bytes()) if f.type == FrameType.TRIAL][2]
    sector = row.offset // SECTOR + 1
    with disk.use(BadSectors(sector * SECTOR, sector * SECTOR + 8)):
        assert check(recording).missing == {2}
        (loss,) = replayed(folder).losses()
    assert (loss.trials, loss.kind, loss.file) == ((2,), "damaged", FIRST)
    assert (loss.byte_range, loss.evidence) == ((row.offset, row.end), UNREADABLE)


def test_a_disk_of_which_nothing_can_be_read_is_not_asked_for_ever(folder: Path) -> None:
    """Every question may take seconds: after some thousands only large blocks are tried."""
    folder.mkdir()
    with (folder / FIRST).open("wb") as file:
        file.truncate(256 * 2**20)
    six_trials(folder.with_name("other")).close()
    shutil.copy(folder.with_name("other") / WITNESS, folder / WITNESS)
    sick = BadSectors(0, 2**62)
    with disk.use(sick):
        replay = replayed(folder)
    assert sick.questions < 20_000
    losses = replay.losses()
    assert {trial for loss in losses for trial in loss.trials} == set(range(6))
    assert {loss.evidence for loss in losses} == {UNREADABLE}


def test_a_disk_that_is_gone_raises(folder: Path) -> None:
    """ENODEV says nothing of single bytes: that the journal cannot be read is said at once."""
    six_trials(folder).close()
    gone = BadSectors(0, 2**62, errno.ENODEV)
    with disk.use(gone), pytest.raises(DamagedData, match="cannot be read"):
        replayed(folder)


# --- files that are gone ----------------------------------------------------------------------


def three_segments(folder: Path) -> Recording:
    """Record nine trials in three segments of one session."""
    recording = Recording(folder)
    for index in range(9):
        recording.append("emg", np.full((2, 2), index))
        recording.trial(n=index)
        recording.commit()
        if index % 3 == 2 and index < 8:
            recording.journal._segment.close()  # type: ignore[union-attr]  # the next fails over
    recording.close()
    return recording


def test_a_deleted_newest_segment_is_told_by_its_witness(folder: Path) -> None:
    """File, trials and their number: the witness knows what was durable."""
    recording = three_segments(folder)
    (folder / THIRD).unlink()
    replay = replayed(folder)
    assert (replay.count, sorted(replay.trials)) == (9, list(range(6)))
    losses = replay.losses()
    assert told(losses) == [((n,), "missing", THIRD) for n in (6, 7, 8)]
    assert all("first 9 trials" in loss.evidence for loss in losses)
    assert check(recording).missing == {6, 7, 8}


def test_a_journal_of_which_only_the_witness_is_left_is_not_empty(folder: Path) -> None:
    """Every trial is named."""
    recording = six_trials(folder)
    recording.close()
    (folder / FIRST).unlink()
    assert check(recording).missing == set(range(6))
    assert {loss.file for loss in replayed(folder).losses()} == {FIRST}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("with_witness", [True, False])
def test_a_deleted_segment_is_told_by_the_numbers_of_those_behind_it(
    folder: Path, number: int, with_witness: bool
) -> None:
    """The first or one in the middle, with or without its witness: file and trials are named."""
    recording = three_segments(folder)
    path = folder / f"00000{number}.segment"
    path.unlink()
    if with_witness:
        path.with_suffix(".witness").unlink()
    gone = {3 * number - 3, 3 * number - 2, 3 * number - 1}
    assert check(recording).missing == gone
    assert told(replayed(folder).losses()) == [((n,), "missing", path.name) for n in sorted(gone)]


def test_a_segment_of_notes_alone_is_missed_as_well(folder: Path) -> None:
    """No trial is missing, but a note of refused trials may have been in it."""
    first = six_trials(folder)
    first.close()
    after = first.journal.durable_seq
    second = Recording(folder, after=after, trials=6)
    second.close()
    third = Recording(folder, after=second.journal.durable_seq, trials=6)
    third.trial(n=6)
    third.commit()
    third.close()
    for name in (SECOND, "000002.witness"):
        (folder / name).unlink()
    (loss,) = replayed(folder).losses()
    assert (loss.trials, loss.kind, loss.file) == ((), "missing", SECOND)


def test_without_any_witness_a_whole_journal_is_whole(folder: Path) -> None:
    """Witnesses are evidence, not data."""
    recording = three_segments(folder)
    for path in folder.glob("*.witness"):
        path.unlink()
    assert check(recording).is_whole


def test_witnesses_of_others_say_nothing(folder: Path, tmp_path: Path) -> None:
    """Another session's, or one copied over another: neither a loss nor wrong data comes of it."""
    recording = three_segments(folder)
    six_trials(tmp_path / "other").close()
    witnesses = {path: path.read_bytes() for path in sorted(folder.glob("*.witness"))}
    for target in witnesses:
        for said in [*witnesses.values(), (tmp_path / "other" / WITNESS).read_bytes()]:
            target.write_bytes(said)
            assert check(recording).is_whole, target.name
        target.write_bytes(witnesses[target])


def test_a_cut_is_noticed_beside_the_witness_of_a_later_segment(folder: Path) -> None:
    """What follows tells how far a segment must go."""
    recording = three_segments(folder)
    rows = [f for f in frames_of((folder / SECOND).read_bytes()) if f.type == FrameType.TRIAL]
    os.truncate(folder / SECOND, rows[1].end)
    shutil.copy(folder / "000003.witness", folder / "000002.witness")
    assert check(recording).missing == {5}
    assert told(replayed(folder).losses()) == [((5,), "missing", SECOND)]


def test_a_witness_that_was_never_written_is_no_loss(folder: Path) -> None:
    """A segment that could not be filled is taken away first, its empty witness after it."""
    recording = six_trials(folder)
    recording.close()
    (folder / "000002.witness").write_bytes(bytes(2 * witness.SLOT_SIZE))
    assert check(recording).is_whole


def test_a_session_that_resumes_after_a_segment_is_gone_keeps_it_named(tmp_path: Path) -> None:
    """Neither trial numbers nor frame numbers are given twice, and the loss stays told."""
    task = tmp_path / "reach"
    task.mkdir()
    folder = task / "journal"
    three_segments(folder).close()
    before = (folder / THIRD).stat().st_size
    (folder / THIRD).unlink()
    steps = recovery.plan(task)
    assert (steps.trials, steps.last_crc, before > 0) == (9, 0, True)
    later = Recording(folder, after=steps.last_seq, trials=steps.trials)
    assert later.journal.path is not None
    assert later.journal.path.name == "000004.segment"
    later.trial(n=9)
    later.commit()
    later.close()
    replay = replayed(folder)
    assert sorted(replay.trials) == [*range(6), 9]
    assert told(replay.losses()) == [((n,), "missing", THIRD) for n in (6, 7, 8)]
    assert recovery.plan(task).last_seq == later.journal.durable_seq


def test_trials_that_survived_do_not_vanish_when_the_task_is_taken_up(tmp_path: Path) -> None:
    """A reader that saw them goes on seeing them, also before the new recorder has written."""
    task = tmp_path / "reach"
    task.mkdir()
    recording = six_trials(task / "journal")
    said = (task / "journal" / WITNESS).read_bytes()
    recording.trial(target=6)
    recording.commit()
    recording.close()
    (task / "journal" / WITNESS).write_bytes(said)  # killed before anybody was told of it
    source = JournalSource(task)
    assert source.trial_numbers() == list(range(7))
    lock = acquire(task / "journal" / "lock", "recorder")
    source.poll()
    assert (source.status, source.trial_numbers()) == ("recording", list(range(7)))
    lock.release()
    source.close()


# --- claims -----------------------------------------------------------------------------------

SESSION: Final = bytes(range(16))
STILL: Final = Witness(1, SESSION, bytes(16), 0, 0, 0, 0, 0)


def segment_of(entries: Sequence[Entry], seqs: Sequence[int] | None = None) -> bytes:
    """Return a segment whose checksums are right, whatever it says."""
    data, previous = encode_header(SESSION), 0
    for entry, seq in zip(entries, seqs or range(1, len(entries) + 1), strict=True):
        pieces, previous = encode_frame(
            *entry, seq=seq, synced_to=seq - 1, previous=previous, salt=salt_of(SESSION)
        )
        data += b"".join(pieces)
    return data


def commit_of(trial: int) -> Entry:
    """Return the frame of a row."""
    return encode(TrialCommit(trial, (("n", "int", "1"),), {}, 1, 2, None))


def opening_of(trials: int = 0) -> Entry:
    """Return the frame that begins a segment."""
    return encode(Opening(SESSION.hex(), 0, trials, {}))


def end_of(trials: int) -> Entry:
    """Return the frame that ends a session."""
    return encode(CleanEnd(trials, "complete", None, 1, 2, {}))


HUGE = [2**40, MOST - 1, MOST, 2**60, 2**62, 2**63 - 1]
CLAIMS = {
    **{f"row {n}": ([opening_of(), commit_of(0), commit_of(n)], STILL) for n in HUGE},
    **{f"opening {n}": ([opening_of(n), commit_of(0), commit_of(n)], STILL) for n in HUGE},
    **{f"end {n}": ([opening_of(), commit_of(0), end_of(n)], STILL) for n in HUGE},
    **{
        f"witness {n}": ([opening_of(), commit_of(0)], replace(STILL, trials=n, seq=2, offset=500))
        for n in [*HUGE, 2**63, 2**64 - 1]
    },
    "witness of frames": ([opening_of(), commit_of(0)], replace(STILL, seq=2**64 - 1)),
    "witness of bytes": ([opening_of()], replace(STILL, seq=2, offset=2**64 - 1)),
    "row far from the opening": ([opening_of(5), commit_of(5), commit_of(9)], STILL),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_without_measure_is_named_and_costs_nothing(claim: str, tmp_path: Path) -> None:
    """Readers and publisher do work for the bytes that are there, not for numbers in them."""
    entries, said = CLAIMS[claim]
    folder = tmp_path / "reach" / "journal"
    folder.mkdir(parents=True)
    (folder / FIRST).write_bytes(segment_of(entries))
    (folder / WITNESS).write_bytes(bytes(witness.SLOT_SIZE) + said.encode())
    replay = replayed(folder)
    losses = replay.losses(check_samples=True)
    assert losses
    assert len(losses) <= replay.room + 3
    assert 0 <= replay.count <= MOST
    began = time.process_time()
    refuses = pytest.raises(PublishFailed, match="claims") if replay.count > replay.room else None
    publisher = TaskPublisher(tmp_path / "reach")
    with refuses or contextlib.nullcontext():
        publisher.finish()
    publisher.close()
    assert time.process_time() - began < 30, "work in proportion to a claim never ends"


@pytest.mark.parametrize("number", [2**53 + 1, 2**62, 2**64 - 1])
def test_frame_numbers_without_measure_are_no_frames(folder: Path, number: int) -> None:
    """A frame that no recorder could have written would leave no numbers for those behind it."""
    folder.mkdir()
    entries = [opening_of(), commit_of(0), commit_of(1)]
    (folder / FIRST).write_bytes(segment_of(entries, [1, number, 2]))
    replay = replayed(folder)
    assert (sorted(replay.trials), replay.last_seq) == ([1], 2)
    assert [damage.byte_range is not None for damage in replay.damages] == [True]


def test_nothing_is_recorded_behind_a_journal_that_claims_all_numbers(tmp_path: Path) -> None:
    """A trial that no reader would believe must not be acknowledged."""
    folder = tmp_path / "reach" / "journal"
    folder.mkdir(parents=True)
    (folder / FIRST).write_bytes(segment_of([opening_of(MOST - 9), commit_of(MOST - 9)]))
    with pytest.raises(DamagedData, match="no numbers for more"):
        recovery.plan(tmp_path / "reach")


def test_no_trial_frame_is_smaller_than_the_rule_of_claims_says() -> None:
    """The room for missing trials is counted in the smallest frames that there can be."""
    smallest = encode(TrialCommit(0, (), {}, 0, 0, None))
    pieces, _ = encode_frame(*smallest, seq=1, synced_to=0, previous=0, salt=0)
    assert sum(map(len, pieces)) == replaying._TRIAL_FRAME


def test_missing_trials_are_named_one_by_one_as_far_as_bytes_speak_for_them(folder: Path) -> None:
    """Many holes cost no more than one: what a file can claim is bounded by its size."""
    folder.mkdir()
    rows = [commit_of(n * 10**6) for n in range(40)]
    (folder / FIRST).write_bytes(segment_of([opening_of(40 * 10**6), *rows]))
    replay = replayed(folder)
    losses = replay.losses()
    assert len(losses) <= replay.room + len(rows) + 1
    assert sum(len(loss.trials) for loss in losses) <= replay.room
    named = sum(int(loss.what.split()[0]) for loss in losses if "trials from" in loss.what)
    assert named + sum(len(loss.trials) for loss in losses) == replay.count - len(rows)


def test_frames_that_lie_about_their_length_are_not_read_over_and_over(folder: Path) -> None:
    """Each of many frames claims all the rest of the file: reading stays linear."""
    folder.mkdir()
    count = 4000
    data = bytearray(encode_header(SESSION))
    end = HEADER_SIZE + count * 56 + 8
    for seq in range(1, count + 1):
        claimed = end - 8 - len(data) - 56
        # A header whose samples are all that follows; their checksum does not fit.
        pieces, _ = encode_frame(
            *(FrameType.CHUNKS, b"", [bytes(claimed)]),
            seq=seq,
            synced_to=seq - 1,
            previous=0,
            salt=salt_of(SESSION),
        )
        data += bytes(pieces[0])[:56]
    (folder / FIRST).write_bytes(bytes(data) + b"no frame")
    counting = BadSectors(2**62, 2**62)
    with disk.use(counting):
        replay = replayed(folder)
    assert counting.nbytes < 10 * len(data)
    assert not replay.trials


def test_many_damages_cost_no_more_than_one(folder: Path) -> None:
    """Every second frame is damaged: the search behind each goes no further than to the next."""
    recording = Recording(folder)
    for index in range(400):
        recording.trial(n=index)
    recording.commit()
    recording.close()
    frames = frames_of((folder / FIRST).read_bytes())
    for frame in frames[1::2]:
        overwrite(folder / FIRST, frame.offset, b"\0")
    counting = BadSectors(2**62, 2**62)
    with disk.use(counting):
        assert check(recording).missing == set(range(0, 400, 2))
    assert counting.nbytes < 40 * (folder / FIRST).stat().st_size


def test_a_trial_that_had_no_frame_for_those_before_it_is_refused(folder: Path) -> None:
    """Trial 9 in the third frame of a session that began with trial 5: no recorder wrote that."""
    folder.mkdir()
    frames = [opening_of(5), commit_of(5), commit_of(9), end_of(2**40)]
    (folder / FIRST).write_bytes(segment_of(frames))
    replay = replayed(folder)
    assert (sorted(replay.trials), replay.end, replay.count) == ([5], None, 6)
    refused = [damage.evidence for damage in replay.damages]
    assert ["cannot be a trial 9" in refused[0], "more than" in refused[1]] == [True, True]


@given(st.lists(st.integers(1, 60), unique=True))
def test_numbers_are_a_set_with_holes(numbers: list[int]) -> None:
    """In whatever order they come, what was seen is seen, and the holes are the rest."""
    seen = Numbers()
    for number in numbers:
        seen.add(number)
    assert [n for n in range(70) if n in seen] == sorted(numbers)
    assert (seen.first, seen.last) == (min(numbers, default=0), max(numbers, default=0))
    holes = {n for first, last in seen.holes() for n in range(first, last + 1)}
    assert holes == set(range(seen.first, seen.last)) - set(numbers) - {0}


def test_a_journal_writer_is_what_writes_them(folder: Path) -> None:
    """These tests stand on the recorder's own writer, not on a second opinion of it."""
    recording = six_trials(folder)
    assert type(recording.journal) is JournalWriter
    recording.close()
