"""The writing end: whatever fails, what is acknowledged is on disk; no foreign file is touched."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.journals import Recording, check
from trialstore._ondisk import journal, layout, witness
from trialstore._ondisk.decoding import decode
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.entries import Opening, PoisonNote
from trialstore._ondisk.replay import Replay
from trialstore._ondisk.segment_file import SegmentFile
from trialstore._ondisk.segments import RESERVE_BYTES, JournalWriter, TakenOver

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Buffer, Identity
    from trialstore._ondisk.entries import Record

CALLS = ("create", "writev", "sync", "sync_folder", "identity", "identity_at")
FOREIGN = b"a stranger's own data, of some length" * 40
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.ESTALE)


class FailingDisk(Disk):
    """The real disk, of which the n-th call of one name fails, for a number of times.

    After an error of `sync` it holds its callers to the rule that a poisoned file is let go of.
    """

    def __init__(self, call: str, nth: int, *, times: int = 1, error: int = errno.EIO) -> None:
        self.call = call
        self.failing = range(nth, nth + times)
        self.error = error
        self.count = 0
        self.failures = 0
        self.poisoned: set[int] = set()

    def _step(self, call: str) -> None:
        if call != self.call:
            return
        self.count += 1
        if self.count in self.failing:
            self.failures += 1
            raise OSError(self.error, os.strerror(self.error))

    def create(self, path: Path) -> int:
        self._step("create")
        fd = super().create(path)
        self.poisoned.discard(fd)  # a new file that was given an old number
        return fd

    def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
        assert fd not in self.poisoned, "written to after an error"
        try:
            self._step("writev")
        except OSError:
            self.poisoned.add(fd)
            raise
        return super().writev(fd, pieces)

    def sync(self, fd: int) -> None:
        assert fd not in self.poisoned, "synced again after an error: Linux would answer success"
        try:
            self._step("sync")
        except OSError:
            self.poisoned.add(fd)
            raise
        super().sync(fd)

    def sync_folder(self, path: Path) -> None:
        self._step("sync_folder")
        super().sync_folder(path)

    def identity(self, fd: int) -> Identity:
        self._step("identity")
        return super().identity(fd)

    def identity_at(self, path: Path) -> Identity | None:
        self._step("identity_at")
        return super().identity_at(path)


class ShortWrites(Disk):
    """Takes a few bytes a call, as a disk does that is nearly full or interrupted by signals."""

    def __init__(self, most: int, capacity: int | None = None) -> None:
        self.most = most
        self.left = capacity

    def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
        data = b"".join(pieces)[: self.most]
        if self.left is not None:
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.left]
            self.left -= len(data)
        return os.write(fd, data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a journal to be."""
    return tmp_path / "journal"


def record(recording: Recording, trials: int = 4) -> None:
    """Record trials with an array each; a commit that fails is tried again."""
    for index in range(trials):
        recording.append("emg", np.full((2, 3), index), np.zeros((2, 1), int))
        recording.trial(target=index)
        for attempt in range(5):
            try:
                recording.commit()
            except OSError:
                assert attempt < 4
            else:
                break


def records_of(path: Path) -> list[Record]:
    """Return what the frames of a segment say."""
    file = SegmentFile(path)
    found = [decode(whole.frame.type, whole.meta) for whole in file.poll()]
    file.close()
    return [record for record in found if record is not None]


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder, but for the reserve."""
    return sorted(path.name for path in folder.iterdir() if path.name != layout.RESERVE)


# --- without faults ---------------------------------------------------------------------------


def test_a_segment_begins_with_its_header_twice_and_its_opening(folder: Path) -> None:
    """A reader that knows nothing else learns session and numbering from the first bytes."""
    recording = Recording(folder, after=7, trials=3)
    recording.close()
    data = (folder / "000001.segment").read_bytes()
    assert data[:64] == journal.encode_header(recording.session)
    (opening,) = records_of(folder / "000001.segment")
    assert isinstance(opening, Opening)
    assert (opening.session, opening.after, opening.trials) == (recording.session.hex(), 7, 3)


def test_what_was_committed_is_in_the_file_and_in_the_witness(folder: Path) -> None:
    """After each commit the witness tells sequence number, size and number of trials."""
    recording = Recording(folder)
    for index in range(3):
        recording.trial(target=index)
        recording.commit()
        said = witness.newest((folder / "000001.witness").read_bytes(), recording.session)
        assert said is not None
        assert (said.seq, said.trials) == (recording.journal.durable_seq, index + 1)
        assert said.offset == (folder / "000001.segment").stat().st_size
    recording.close()


def test_an_existing_file_is_never_opened_for_writing(folder: Path) -> None:
    """Whatever has the next number already is stepped over, witnesses without a segment too."""
    folder.mkdir()
    for name in ("000001.segment", "000004.witness"):
        (folder / name).write_bytes(b"somebody's")
    recording = Recording(folder)
    record(recording, 1)
    recording.close()
    assert recording.journal.path is None
    assert "000005.segment" in names_in(folder)
    assert (folder / "000001.segment").read_bytes() == b"somebody's"
    assert (folder / "000004.witness").read_bytes() == b"somebody's"


def test_a_file_that_appears_in_the_last_moment_is_not_taken(folder: Path) -> None:
    """Between looking for a free number and creating the file, a rival may have created it."""

    class Rival(Disk):
        was_there = False

        def create(self, path: Path) -> int:
            if not self.was_there:
                self.was_there = True
                path.write_bytes(b"a rival's")
            return super().create(path)

    recording = Recording(folder, disk=Rival())
    record(recording, 1)
    recording.close()
    assert (folder / "000001.segment").read_bytes() == b"a rival's"
    assert check(recording).is_whole


def test_a_link_in_the_place_of_a_segment_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """Nobody can have the recorder write into a file elsewhere."""
    folder.mkdir()
    (tmp_path / "foreign").write_bytes(b"")
    (folder / "000001.segment").symlink_to(tmp_path / "foreign")
    recording = Recording(folder)
    record(recording, 1)
    recording.close()
    assert (tmp_path / "foreign").read_bytes() == b""


def test_each_session_has_a_segment_of_its_own(folder: Path) -> None:
    """A segment is never reopened: what an earlier session wrote stays as it is, byte for byte."""
    first = Recording(folder)
    record(first, 2)
    first.close()
    before = (folder / "000001.segment").read_bytes()
    second = Recording(folder, after=first.journal.durable_seq, trials=2)
    second.trial(target=2)
    second.commit()
    second.close()
    assert (folder / "000001.segment").read_bytes() == before
    assert check(first, second).is_whole


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_the_nth_call_fails_once(folder: Path, call: str, error: int) -> None:
    """Whichever call fails, with whatever error, recording goes on elsewhere; nothing is lost."""
    failures = 0
    for nth in range(1, 60):
        place = folder.with_name(f"{call}-{nth}")
        disk = FailingDisk(call, nth, error=error)
        try:
            recording = Recording(place, disk=disk)
        except OSError:
            assert names_in(place) == [], "a segment that never was durable has left something"
            failures += 1
            continue
        record(recording)
        recording.close()
        assert check(recording).is_whole
        if not disk.failures:
            break
        failures += 1
        assert len(recording.journal.poisoned) <= 1
    else:
        pytest.fail("every call failed; the test does not reach the end of a recording")
    assert failures >= 1


@pytest.mark.parametrize("call", ["writev", "sync", "sync_folder", "create"])
@pytest.mark.parametrize("nth", [2, 3, 5])
def test_a_fault_that_lasts_for_a_while(folder: Path, call: str, nth: int) -> None:
    """A disk that fails four times in a row leaves no trace but the segments it spoiled."""
    disk = FailingDisk(call, nth, times=4)
    try:
        recording = Recording(folder, disk=disk)
    except OSError:
        assert names_in(folder) == []
        return
    record(recording)
    recording.close()
    assert check(recording).is_whole
    for path in folder.glob("*.segment"):
        assert isinstance(records_of(path)[0], Opening)
        assert layout.witness_path(path).exists()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_fault_that_never_ends_is_raised_and_loses_nothing_before_it(
    folder: Path, error: int
) -> None:
    """Commits raise the disk's own error from then on; what was acknowledged is whole."""
    disk = FailingDisk("sync", 4, times=10**9, error=error)
    recording = Recording(folder, disk=disk)
    recording.trial(target=0)
    recording.commit()
    recording.trial(target=1)
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(error)):
            recording.commit()
        assert recording.journal.path is None
    assert names_in(folder) == ["000001.segment", "000001.witness"]
    recording.close()
    assert recording.acknowledged == {0}
    missing, hurt, losses = check(recording)
    assert (missing, hurt, losses) == (set(), set(), [])


def test_a_new_segment_tells_why_the_one_before_was_given_up(folder: Path) -> None:
    """The reason stays with the data, once."""
    recording = Recording(folder, disk=FailingDisk("sync", 3))
    record(recording, 2)
    recording.close()
    opening, note, *rest = records_of(folder / "000002.segment")
    assert isinstance(opening, Opening)
    assert isinstance(note, PoisonNote)
    assert note.segment == "000001.segment"
    assert os.strerror(errno.EIO) in note.error
    assert not any(isinstance(record, PoisonNote) for record in rest)
    assert opening.after == 1, "frames of the failed commit are repeated, those before are not"


@pytest.mark.parametrize("most", [1, 3, 56, 1000])
def test_short_writes_are_gone_on_with(folder: Path, most: int) -> None:
    """Every byte is written, however few the system takes at a time."""
    recording = Recording(folder, disk=ShortWrites(most))
    record(recording)
    recording.close()
    assert names_in(folder) == ["000001.segment", "000001.witness"]
    assert check(recording).is_whole


@pytest.mark.slow
def test_a_disk_that_fills_at_any_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the space ends, what is acknowledged is whole, and the rest is once it is back."""
    monkeypatch.undo()  # no event loop runs here; its guards on system calls would only take time
    whole = Recording(folder)
    record(whole, 2)
    whole.close()
    size = sum(path.stat().st_size for path in folder.iterdir())
    for capacity in range(0, size, 5):
        place = folder.with_name(f"full-{capacity}")
        disk = ShortWrites(100, capacity)
        try:
            recording = Recording(place, disk=disk)
        except OSError:
            assert names_in(place) == []
            continue
        recording.trial(target=0)
        try:
            recording.commit()
        except OSError:
            check(recording)
            disk.left = None
            recording.commit()
        recording.close()
        assert check(recording).is_whole


def test_the_fallback_folder_takes_over(folder: Path, tmp_path: Path) -> None:
    """When the first disk refuses new files too, segments go on in the other folder."""

    class OneBadDisk(Disk):
        is_bad = False

        def create(self, path: Path) -> int:
            if self.is_bad and path.parent == folder:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return super().create(path)

        def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
            if self.is_bad and os.fstat(fd).st_ino == (folder / "000001.segment").stat().st_ino:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().writev(fd, pieces)

    disk = OneBadDisk()
    fallback = tmp_path / "other" / "p0" / "reach" / "journal"
    recording = Recording(folder, disk=disk, fallback=fallback)
    record(recording, 2)
    disk.is_bad = True
    for _ in range(2):
        recording.trial(target="fallback")
        recording.commit()
    assert recording.journal.path == fallback / "000002.segment"
    recording.close()
    assert check(recording).is_whole
    with Replay([folder]) as alone:
        alone.poll()
        assert sorted(alone.trials) == [0, 1]


# --- whose file is it -------------------------------------------------------------------------


def steal(fd: int, path: Path) -> int:
    """Do as stray code may: take a number that is not ours for a file of our own."""
    own = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(own, fd)
    os.close(own)
    os.write(fd, FOREIGN)
    return fd


@pytest.mark.parametrize("which", ["_fd", "_witness_fd"])
def test_a_stolen_descriptor_harms_no_foreign_file(
    folder: Path, tmp_path: Path, which: str
) -> None:
    """The next commit notices, leaves foreign file and descriptor alone, and goes on elsewhere."""
    recording = Recording(folder)
    record(recording, 2)
    segment = recording.journal._segment
    assert segment is not None
    stolen = steal(getattr(segment, which), tmp_path / "foreign")
    recording.trial(target="after the theft")
    recording.commit()
    recording.close()
    os.write(stolen, b"!")  # still open, still theirs
    os.close(stolen)
    assert (
        tmp_path / "foreign"
    ).read_bytes() == b"a stranger's own data, of some length" * 40 + b"!"
    assert (folder / "000002.segment").exists()
    assert check(recording).is_whole


def test_a_closed_descriptor_is_noticed(folder: Path, tmp_path: Path) -> None:
    """Stray code that closes our file costs a segment and no trial; no other gets the number."""
    recording = Recording(folder)
    record(recording, 1)
    segment = recording.journal._segment
    assert segment is not None
    os.close(segment._fd)
    foreign = [os.open(tmp_path / "foreign", os.O_RDWR | os.O_CREAT) for _ in range(50)]
    assert segment._fd not in foreign
    recording.trial(target="after")
    recording.commit()
    recording.close()
    assert check(recording).is_whole
    assert (tmp_path / "foreign").read_bytes() == b""
    for fd in foreign:
        os.close(fd)


@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced"])
def test_a_journal_taken_away_under_the_recorder_is_written_again(folder: Path, how: str) -> None:
    """What only the recorder can still read is copied to a new file; nothing is lost."""
    recording = Recording(folder)
    record(recording, 1)
    path = folder / "000001.segment"
    if how == "deleted":
        path.unlink()
    elif how == "renamed":
        path.rename(folder / "copy of 000001.segment")
    else:
        (folder / "other").write_bytes(path.read_bytes())
        (folder / "other").replace(path)
    recording.trial(target="after")
    recording.commit()
    recording.close()
    assert check(recording).is_whole
    assert (folder / "000003.segment").exists()


def test_a_deleted_folder_is_made_again(folder: Path) -> None:
    """`rm -r` under the recorder costs nothing that the recorder has open."""
    recording = Recording(folder)
    record(recording, 3)
    shutil.rmtree(folder)
    recording.trial(target="after")
    recording.commit()
    recording.close()
    assert check(recording).is_whole


def test_a_reserve_is_kept_while_recording_and_given_back(folder: Path) -> None:
    """Room for the end of a recording is taken from the disk at its beginning."""
    recording = Recording(folder)
    assert (folder / layout.RESERVE).stat().st_blocks * 512 >= RESERVE_BYTES
    recording.close()
    assert not (folder / layout.RESERVE).exists()


def test_a_task_that_another_took_over_is_not_written_any_more(folder: Path) -> None:
    """Who lost the lock and finds another's segment gets an error instead of a receipt."""
    recording = Recording(folder, hold=lambda: True)
    record(recording, 1)
    Recording(folder, after=1, trials=1).close()
    recording.trial(target="late")
    with pytest.raises(TakenOver):
        recording.commit()
    recording.close()


def test_salvage_goes_to_the_other_disk_alone(folder: Path, tmp_path: Path) -> None:
    """While the first disk hangs, nothing is asked of it."""

    class Hanging(Disk):
        hangs = False

        def create(self, path: Path) -> int:
            assert not self.hangs or folder not in path.parents
            return super().create(path)

    disk = Hanging()
    recording = Recording(folder, disk=disk, fallback=tmp_path / "other")
    record(recording, 2)
    disk.hangs = True
    recording.trial(target="late")
    recording.salvage()
    disk.hangs = False
    recording.close()
    assert check(recording).is_whole


def test_a_task_folder_moved_away_is_waited_for(folder: Path) -> None:
    """Commits raise until the folder is back, and then everything is there."""
    recording = Recording(folder)
    record(recording, 1)
    away = folder.with_name("away")
    folder.rename(away)
    recording.trial(target=1)
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - ESTALE first, then ENOENT
            recording.commit()
    away.rename(folder)
    recording.commit()
    recording.close()
    assert check(recording).is_whole


def test_closing_twice_does_nothing(folder: Path) -> None:
    """The second close touches no descriptor that may be somebody else's by then."""
    recording = Recording(folder)
    recording.close()
    fd = os.open(folder / "theirs", os.O_WRONLY | os.O_CREAT)
    recording.close()
    os.write(fd, b"whole")
    os.close(fd)


def test_a_forked_child_writes_nothing(folder: Path) -> None:
    """In a child the journal is closed; the parent goes on."""
    recording = Recording(folder)
    record(recording, 1)
    before = (folder / "000001.segment").read_bytes()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # idle threads
        pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        recording.journal.forget_after_fork()
        recording.close()
        os._exit(0 if recording.journal.path is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    recording.journal.forget_after_fork()  # in the parent it does nothing
    assert (folder / "000001.segment").read_bytes() == before
    recording.trial(target=1)
    recording.commit()
    recording.close()
    assert check(recording).is_whole


def test_a_journal_that_was_not_started_begins_with_its_first_commit(folder: Path) -> None:
    """A disk that was full at the start does not end the recording."""
    folder.mkdir()
    writer = JournalWriter(Disk(), folder, Opening("00" * 16, 0, 0, {}))
    assert writer.path is None
    writer.commit([], 0)
    writer.close()
    assert [type(record) for record in records_of(folder / "000001.segment")] == [Opening]
