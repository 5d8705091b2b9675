"""Disks for tests: each does what it says to a real Storage, and a test with it has an end."""

from __future__ import annotations

import doctest
import errno
import importlib
import logging
import pkgutil
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from tests.helpers import open_lab, reader_of
from trialstore import Level, Storage, StorageError, WriteFailed, testing
from trialstore._ondisk import disk as port
from trialstore.testing import FailingDisk, FullDisk, HungDisk, SlowDisk, WatchedDisk, use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trialstore.testing import Kind

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parent.parent / "docs/how-to/test-your-experiment.md"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Failures and warnings of them are what these tests are about."""
    caplog.set_level(logging.CRITICAL, "trialstore")


def trials_in(root: Path) -> list[int]:
    """What the only column of the task holds."""
    reader = reader_of(root)
    assert reader.losses == ()
    numbers: list[int] = reader.trials["n"].tolist()
    return numbers


# --- slow -----------------------------------------------------------------------------------------


async def test_a_slow_disk_holds_nobody_up_but_the_disk(tmp_path: Path) -> None:
    """Writes are accepted at once; `release` ends a delay that would have taken an hour."""
    disk = SlowDisk()
    with use(disk):
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.sync_seconds = disk.write_seconds = 3600.0
                receipts = [await task.write({"n": n}) for n in range(20)]
                assert {receipt.level for receipt in receipts} == {Level.ACCEPTED}
                disk.release()
                await receipts[-1].durable()
    assert await anyio.to_thread.run_sync(trials_in, tmp_path / "data") == list(range(20))


@pytest.mark.parametrize("attribute", ["write_seconds", "sync_seconds"])
def test_a_slow_disk_waits(tmp_path: Path, attribute: str) -> None:
    """A call waits until its time has come: here, until it is released by another thread."""
    disk = SlowDisk()
    setattr(disk, attribute, 3600.0)
    thread = threading.Thread(target=disk.write_file, args=(tmp_path / "note", b"ab"))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    disk.release()
    thread.join(10)
    assert (tmp_path / "note").read_bytes() == b"ab"


# --- hung -----------------------------------------------------------------------------------------


async def test_a_hung_disk_hangs_until_it_is_released(tmp_path: Path) -> None:
    """`hung` tells when it hangs; nothing has happened then; after `release` everything has."""
    disk = HungDisk("write")
    with use(disk):
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                for n in range(3):
                    disk.hang()
                    receipt = await task.write({"n": n})
                    assert await anyio.to_thread.run_sync(disk.hung.wait, 30)
                    assert receipt.level is Level.ACCEPTED
                    disk.release()
                    await receipt.durable()
    assert await anyio.to_thread.run_sync(trials_in, tmp_path / "data") == [0, 1, 2]


@pytest.mark.slow  # the writer's last patience with a disk that does not answer
async def test_leaving_the_block_releases_a_hung_disk(tmp_path: Path) -> None:
    """The experiment ends by its own deadline, and the thread that hung ends with the block."""
    disk = HungDisk()
    with use(disk), pytest.raises(WriteFailed):
        async with Storage(tmp_path / "data", close_timeout=0.2) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.hang()
                await task.write({"n": 0})
    assert disk.hung.is_set()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_the_nth_call_hangs(tmp_path: Path, nth: int) -> None:
    """Calls before the n-th of the kind pass, that one hangs."""
    disk = HungDisk("create", nth)

    def create() -> None:
        for number in range(3):
            disk.close(disk.create(tmp_path / f"file{number}"))

    thread = threading.Thread(target=create)
    thread.start()
    assert disk.hung.wait(10)
    assert len(list(tmp_path.iterdir())) == nth - 1
    disk.release()
    thread.join(10)
    assert len(list(tmp_path.iterdir())) == 3


# --- full -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_that_gets_space_again(tmp_path: Path, code: int) -> None:
    """What does not fit waits in memory and is written when there is room, each byte of it."""
    disk = FullDisk(10_000_000, code=code)
    with use(disk):
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
                await task.flush()
                disk.fill()
                assert disk.free == 0
                await task.append("emg", np.ones((2, 1000)))
                receipt = await task.write({"n": 1})
                with anyio.fail_after(30):
                    while storage.statistics().trouble is None:  # noqa: ASYNC110 - a figure
                        await anyio.sleep(0.005)
                assert receipt.level is Level.ACCEPTED
                disk.add_space(10_000_000)
                await receipt.durable()
    assert await anyio.to_thread.run_sync(trials_in, tmp_path / "data") == [0, 1]


@pytest.mark.parametrize("free", [0, 1, 5, 9])
def test_a_write_that_does_not_fit_is_cut_short(tmp_path: Path, free: int) -> None:
    """The bytes that fit are there when the error comes, and the disk is then full."""
    disk = FullDisk(1)
    fd = disk.create(tmp_path / "file")
    disk.add_space(free - 1)
    with pytest.raises(OSError, match="No space left") as caught:
        disk.write(fd, [b"abc", b"", b"defghij"])
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "file").read_bytes() == b"abcdefghij"[:free]
    assert disk.free == disk.free_bytes(tmp_path) == 0
    disk.add_space(10)
    disk.write(fd, [b"abcdefghij"])
    disk.write_at(fd, b"xyz", 0)
    assert disk.free == 0
    with pytest.raises(OSError, match="No space left"):
        disk.write_at(fd, b"xyz", free + 8)
    disk.close(fd)


def test_nothing_can_be_made_on_a_full_disk(tmp_path: Path) -> None:
    """Files and folders are refused; what is removed or replaced makes room again."""
    disk = FullDisk(10)
    disk.write_file(tmp_path / "file", b"0123456789")
    for make in (disk.create, disk.make_folder):
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path / "more")
    disk.add_space(10)
    disk.write_file(tmp_path / "file", b"01234")
    assert disk.free == 15
    disk.link(tmp_path / "file", tmp_path / "other")
    disk.remove(tmp_path / "file")
    assert disk.free == 15  # it has another name
    disk.remove(tmp_path / "other")
    disk.remove(tmp_path / "other")
    assert disk.free == 20
    with pytest.raises(OSError, match="No space left"):
        disk.allocate(tmp_path / "reserve", 21)
    disk.allocate(tmp_path / "reserve", 20)
    assert disk.free == 0


def test_the_figures_of_a_full_disk_are_true_at_any_time(tmp_path: Path) -> None:
    """From two threads: never more bytes than there was room for, and none that is not counted."""
    disk = FullDisk(10_000)

    def fill(fd: int) -> None:
        with pytest.raises(OSError, match="No space left"):
            while True:
                disk.write(fd, [b"abc", b"defg"])
        disk.close(fd)

    fds = [disk.create(tmp_path / name) for name in "ab"]
    threads = [threading.Thread(target=fill, args=(fd,)) for fd in fds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 10_000
    assert disk.free == 0


# --- failing --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["write", "sync", "sync_folder", "create", "identity"])
@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
def test_every_call_of_a_session_may_fail_once(tmp_path: Path, kind: Kind, moment: Any) -> None:
    """Whichever call of a running task fails, before, half way or after its work: nothing is lost.

    Rows 15 and 16 of the list of faults: the number of calls is learned from a run without any. A
    later run may make fewer, when its batches happen to hold more.
    """

    def session(disk: FailingDisk, root: Path, nth: int | None) -> int:
        with use(disk), open_lab(root) as lab, lab.create("reach") as task:
            if nth is not None:
                disk.fail(kind, nth, moment=moment)
            began = disk.calls[kind]
            for n in range(3):
                task.append("emg", np.full((2, 300), n))
                task.write({"n": n})
                task.flush()
            return disk.calls[kind] - began

    calls = session(FailingDisk(), tmp_path / "model", None)
    for nth in range(1, calls + 1):
        disk = FailingDisk()
        made = session(disk, tmp_path / f"data{nth}", nth)
        assert disk.failures == 1 or made < nth
        assert trials_in(tmp_path / f"data{nth}") == [0, 1, 2]


async def test_short_writes_are_gone_on_with(tmp_path: Path) -> None:
    """With at most seven bytes taken by each call, every byte arrives."""
    with use(FailingDisk(short_writes=7)):
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.append("emg", np.arange(100.0).reshape(2, 50))
                await task.write({"n": 0})

    def look() -> None:
        assert trials_in(tmp_path / "data") == [0]
        array = reader_of(tmp_path / "data").array("emg", trial=0)
        assert array.tolist() == np.arange(100.0).reshape(2, 50).tolist()

    await anyio.to_thread.run_sync(look)


async def test_a_disk_that_forgets_what_a_failed_sync_covered(tmp_path: Path) -> None:
    """Nothing that is durable is among the pages that Linux drops after a failed fsync.

    (In a recorder that syncs the same file again, it would be: the next test.)
    """
    disk = FailingDisk(forgets=True)
    root = tmp_path / "data"
    with use(disk):
        async with Storage(root, keep_journal=True) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
                await task.flush()
                disk.fail("sync", only="*.segment")
                await task.write({"n": 1})
                await task.flush()

                def look() -> None:
                    (poisoned,) = disk.drop_caches(root)
                    assert poisoned.name == "000001.segment"
                    assert trials_in(root) == [0, 1]

                await anyio.to_thread.run_sync(look)


def test_after_a_failed_sync_the_next_one_lies(tmp_path: Path) -> None:
    """Read back, the bytes are right; the sync after it says ok; and they are not on the disk."""
    disk = FailingDisk(forgets=True)
    fd = disk.create(tmp_path / "file")
    disk.write(fd, [b"safe"])
    disk.sync(fd)
    disk.write(fd, [b"lost"])
    disk.fail("sync")
    with pytest.raises(OSError, match="Input/output"):
        disk.sync(fd)
    disk.write(fd, [b"safe"])
    disk.sync(fd)
    disk.close(fd)
    assert (tmp_path / "file").read_bytes() == b"safelostsafe"
    assert disk.drop_caches(tmp_path) == [tmp_path / "file"]
    assert (tmp_path / "file").read_bytes() == b"safe\0\0\0\0safe"
    assert disk.drop_caches(tmp_path) == []


def test_faults_count_what_they_are_told_to(tmp_path: Path) -> None:
    """From the n-th on, so many times, only these names, with this errno; `heal` ends it."""
    disk = FailingDisk("create", 2, times=2, code=errno.EMFILE, only="*.segment")

    def outcome(name: str) -> int | None:
        try:
            disk.close(disk.create(tmp_path / name))
        except OSError as error:
            return error.errno
        return None

    names = ["a", "1.segment", "b", "2.segment", "3.segment", "4.segment"]
    failed = [None, None, None, errno.EMFILE, errno.EMFILE, None]
    assert [outcome(name) for name in names] == failed
    assert disk.failures == 2
    fault = disk.fail("create", times=None)
    assert [outcome("c"), outcome("d")] == [errno.EIO, errno.EIO]
    assert (fault.seen, fault.hits) == (2, 2)
    disk.heal()
    assert outcome("e") is None
    assert disk.calls["create"] == 9


@pytest.mark.parametrize(
    ("moment", "content"), [("before", b""), ("halfway", b"ab"), ("after", b"abcd")]
)
def test_when_a_write_fails(tmp_path: Path, moment: Any, content: bytes) -> None:
    """Before: nothing is written. Halfway: half of it. After: all of it, and an error."""
    disk = FailingDisk("write", moment=moment)
    fd = disk.create(tmp_path / "file")
    with pytest.raises(OSError, match="Input/output"):
        disk.write(fd, [b"abc", b"d"])
    disk.close(fd)
    assert (tmp_path / "file").read_bytes() == content


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SlowDisk(write=-1), "negative"),
        (lambda: HungDisk("fsync"), "'fsync'; it has"),  # type: ignore[arg-type]
        (lambda: HungDisk("sync", 0), "counted from 1"),
        (lambda: FullDisk(-1), "less than nothing"),
        (lambda: FailingDisk("fsync"), "'fsync'; it has"),  # type: ignore[arg-type]
        (lambda: FailingDisk("sync", 0), "counted from 1"),
        (lambda: FailingDisk("sync", times=0), "counted from 1"),
        (lambda: FailingDisk(short_writes=0), "at least one byte"),
    ],
    ids=map(str, range(8)),
)
def test_what_makes_no_sense_is_refused(make: Any, words: str) -> None:
    """A disk that could never do what is asked of it would make a test that cannot fail."""
    with pytest.raises(StorageError, match=re.escape(words)):
        make()


def test_a_disk_is_used_inside_the_block_only() -> None:
    """Leaving the block brings the former disk back, after an exception as well."""
    before = port.current()
    with use(WatchedDisk()) as outer:
        with pytest.raises(ZeroDivisionError), use(SlowDisk(1.0)) as inner:
            assert port.current() is inner
            raise ZeroDivisionError
        assert port.current() is outer
    assert port.current() is before


def test_every_call_of_the_port_is_watched() -> None:
    """A method that is added to the port is either watched, or made of calls that are."""
    composed = {"make_folder", "make_folders", "replace", "write_file", "writev", "close"}
    methods = {name for name in vars(port.Disk) if not name.startswith("_")}
    watched = {name for name in vars(WatchedDisk) if not name.startswith("_")}
    assert methods - composed - {"reaches_children"} == watched - {"release"}


def modules() -> Iterator[Any]:
    """Every module of the package."""
    for found in pkgutil.iter_modules(testing.__path__):
        yield importlib.import_module(f"trialstore.testing.{found.name}")


@pytest.mark.slow
def test_the_examples_run() -> None:
    """Each disk has one example, and it does what it says."""
    tried = 0
    for module in modules():
        public = {name: getattr(testing, name) for name in testing.__all__}
        result = doctest.testmod(module, extraglobs=public)
        assert result.failed == 0
        tried += result.attempted
    assert tried > 20
    disks = [kind for kind in vars(testing).values() if isinstance(kind, type) and kind.__doc__]
    for kind in disks:
        if issubclass(kind, port.Disk):
            assert ">>> " in str(kind.__doc__), kind


@pytest.mark.slow
@pytest.mark.leaves_files  # of moments at which the power was cut
def test_the_page_about_testing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page is a file of tests that passes."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(code):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    tests = [name for name in names if name.startswith("test_")]
    assert len(tests) == 5
    for name in tests:
        folder = tmp_path / name
        folder.mkdir()
        names[name](folder)
