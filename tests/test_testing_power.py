"""A power cut at every moment: whatever was acknowledged is there, in every state of the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import pytest

from tests.power import Life, check, recording, two_lives
from trialstore import Storage, StorageError, TaskReader
from trialstore._ondisk import manifest
from trialstore._ondisk.disk import copy_file
from trialstore._publishing.service import publish_once
from trialstore.testing import PowerCutDisk, use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trialstore.testing import Kind, State, States

#: States that are looked at in one test. With 1000 and more, every call of a kind is made to fail.
LIMIT: Final = int(os.environ.get("TRIALSTORE_CRASH_STATES", "100"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Failovers and publication in a thread are what these tests are about."""
    caplog.set_level(logging.CRITICAL, "trialstore")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder to be watched."""
    folder = tmp_path / "world"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(world: Path) -> PowerCutDisk:
    """A disk that watches it: made before the loop runs, because it reads the folder."""
    return PowerCutDisk(world)


def look_at_all(
    disk: PowerCutDisk, states: States, tmp_path: Path, look: Callable[[State, Path], None]
) -> None:
    """Materialise each state and look at it."""
    after = tmp_path / "after"
    for state in states:
        disk.materialise(state, after)
        look(state, after)
        shutil.rmtree(after)


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost(tmp_path: Path, disk: PowerCutDisk) -> None:
    """Whenever the power is cut: what was acknowledged is there, and nothing that never was.

    At every step of recording, failing over, publishing, resuming and overwriting; and what stands
    under a published name is whole.
    """
    with use(disk):
        lives = await two_lives(disk.folder / "data", disk)
    states = disk.states(limit=LIMIT)
    assert states.total > 10**6
    assert len(states) == LIMIT

    def look() -> None:
        look_at_all(disk, states, tmp_path, lambda state, after: check(state, after, lives))

    await anyio.to_thread.run_sync(look)


@pytest.mark.slow
def test_publishing_what_a_power_cut_left(tmp_path: Path, world: Path) -> None:
    """A task that was cut off is published whole, and publishing it takes nothing away."""
    with use(PowerCutDisk(world)) as disk:
        lives = anyio.run(two_lives, world / "data", disk)
    published = 0

    def look(state: State, after: Path) -> None:
        nonlocal published
        task = after / "data/p0/reach"
        if not (task / "journal").is_dir() or not is_recording(task):
            return
        publish_once(task, {})
        published += 1
        check(state, after, lives)
        assert TaskReader(task).status in {"complete", "interrupted"}
        assert not list(task.glob(".*"))

    look_at_all(disk, disk.states(limit=LIMIT), tmp_path, look)
    assert published > LIMIT // 4


def is_recording(task: Path) -> bool:
    """Whether a task's manifest says that it is not published."""
    described = manifest.read(task)
    return described is not None and described.status == "recording"


@pytest.mark.slow
@pytest.mark.leaves_files  # of the moment at which the power was cut
async def test_going_on_after_a_power_cut(tmp_path: Path, disk: PowerCutDisk) -> None:
    """A task that was cut off is resumed: the new trial comes after all that were acknowledged."""
    with use(disk):
        lives = await two_lives(disk.folder / "data", disk)
    states = disk.states(limit=LIMIT // 20, first=min(lives[0].durable.values()), seed=3)

    async def resumed(after: Path) -> int | None:
        async with Storage(after / "data") as storage:
            storage.subject_id = "p0"
            async with storage.resume_task("reach") as task:
                return (await task.write({"n": 77})).index

    def read(after: Path, index: int | None) -> None:
        assert index is not None
        reader = TaskReader(after / "data/p0/reach")
        assert reader.trials["n"].tolist() == [*range(index), 77]
        assert reader.losses == ()

    for number, state in enumerate(states):
        after = tmp_path / f"after{number}"
        await anyio.to_thread.run_sync(disk.materialise, state, after)
        is_there = await anyio.to_thread.run_sync((after / "data/p0/reach/manifest.json").exists)
        if is_there:
            index = await resumed(after)
            await anyio.to_thread.run_sync(read, after, index)


async def stubborn(root: Path, life: Life) -> None:
    """Record three sessions; what the disk refuses is tried once more."""
    while len(life.rows) < 6:
        done = len(life.rows)
        with contextlib.suppress(StorageError):
            async with recording(root, life, "resume" if done else "create") as task:
                await life.trial(task, 10)
                await life.trial(task)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "sync_folder", "write", "create", "rename", "add_folder"])
def test_a_failure_and_then_a_power_cut(tmp_path: Path, kind: Kind) -> None:
    """Whichever call fails once, and whenever the power is cut after that, nothing is lost."""
    calls = _stubborn_life(tmp_path / "world").disk.calls[kind]
    for nth in range(1, calls + 1, max(1, calls * 16 // LIMIT)):
        life = _stubborn_life(tmp_path / f"world{nth}", kind, nth)
        # Batches that happen to hold more make fewer calls.
        assert life.disk.failures == 1 or life.disk.calls[kind] < nth
        assert len(life.durable) == 6, "the disk failed once, and somebody gave up"
        for state in life.disk.states(limit=LIMIT // 10, seed=nth):
            after = life.disk.materialise(state, tmp_path / "after")
            check(state, after, [life])
            shutil.rmtree(after)


def _stubborn_life(world: Path, kind: Kind | None = None, nth: int = 1) -> Life:
    """Record in a new world, one call failing."""
    world.mkdir()
    life = Life(PowerCutDisk(world), 1)
    if kind is not None:
        life.disk.fail(kind, nth)
    with use(life.disk):
        anyio.run(stubborn, world / "data", life)
    return life


class NoFolderSync(PowerCutDisk):
    """A recorder that forgot to sync folders (the bug that ALICE found most often)."""

    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


class NoSync(PowerCutDisk):
    """A recorder that forgot to sync files."""

    def sync(self, fd: int) -> None:
        """Do nothing."""


class NoSyncOfPublishedFiles(PowerCutDisk):
    """A publisher that renames files into place before their bytes are safe."""

    def sync(self, fd: int) -> None:
        """Sync the journal only."""
        if self._name(fd).endswith(".segment"):
            super().sync(fd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NoFolderSync, NoSync, NoSyncOfPublishedFiles])
def test_the_check_can_fail(tmp_path: Path, world: Path, kind: type[PowerCutDisk]) -> None:
    """Without folder syncs, without file syncs, without those of the publisher: each is noticed."""
    with use(kind(world)) as disk:
        lives = anyio.run(two_lives, world / "data", disk)
    after, failures = tmp_path / "after", 0
    for state in disk.states(limit=LIMIT):
        disk.materialise(state, after)
        try:
            check(state, after, lives)
        except (AssertionError, StorageError, OSError, ValueError):
            failures += 1
        shutil.rmtree(after)
    assert failures > LIMIT // 100


# --- the disk itself ------------------------------------------------------------------------------


def left(disk: PowerCutDisk, tmp_path: Path, position: int | None = None) -> set[str]:
    """Every content that ``file`` may have after the last operation; None if it is not there."""
    found = set()
    at = disk.position if position is None else position
    for state in disk.states(limit=None, first=at, last=at):
        after = disk.materialise(state, tmp_path / "after")
        path = after / "file"
        found.add(path.read_bytes().decode("latin-1") if path.exists() else "nothing")
        shutil.rmtree(after)
    return found


@pytest.fixture
def open_file(world: Path) -> Iterator[tuple[PowerCutDisk, int]]:
    """A file that was just created, and is not safe yet in any way."""
    disk = PowerCutDisk(world)
    fd = disk.create(world / "file")
    yield disk, fd
    disk.close(fd)


def test_a_name_is_in_doubt_until_its_folder_is_synced(
    tmp_path: Path, world: Path, open_file: tuple[PowerCutDisk, int]
) -> None:
    """A synced file whose folder was not synced may be gone; an unsynced one may be empty."""
    disk, fd = open_file
    assert left(disk, tmp_path) == {"nothing", ""}
    disk.write(fd, [b"ab"])
    disk.sync(fd)
    assert left(disk, tmp_path) == {"nothing", "ab"}
    disk.sync_folder(world)
    assert left(disk, tmp_path) == {"ab"}


def test_bytes_are_in_doubt_until_the_file_is_synced(
    tmp_path: Path, world: Path, open_file: tuple[PowerCutDisk, int]
) -> None:
    """Unsynced bytes may be kept, dropped, zero, garbage, torn, reordered; synced ones stay."""
    disk, fd = open_file
    disk.write(fd, [b"a" * 512])
    disk.sync(fd)
    disk.sync_folder(world)
    disk.write(fd, [b"b" * 600])
    disk.write(fd, [b"c" * 4000])
    a, b, c = "a" * 512, "b" * 600, "c" * 4000
    found = left(disk, tmp_path)
    assert all(content.startswith(a) for content in found)
    assert {a, a + b, a + b + c, a + "\0" * 4600} <= found  # dropped, stale, kept, zeroed
    assert (a + b + c)[:1024] in found  # torn at a sector
    assert a + "\0" * 3584 + (a + b + c)[4096:] in found  # the second page was written first
    assert any(len(content) == 5112 and not set(content) <= set("abc\0") for content in found)
    disk.sync(fd)
    assert left(disk, tmp_path) == {a + b + c}


def test_what_a_failed_sync_covered_stays_in_doubt(
    tmp_path: Path, world: Path, open_file: tuple[PowerCutDisk, int]
) -> None:
    """As on Linux: the next sync says that all is well, and the bytes may be gone all the same."""
    disk, fd = open_file
    disk.sync_folder(world)
    disk.write(fd, [b"ab"])
    disk.fail("sync")
    with pytest.raises(OSError, match="file"):
        disk.sync(fd)
    disk.write(fd, [b"cd"])
    disk.sync(fd)
    found = left(disk, tmp_path)
    assert {"abcd", "\0\0cd"} <= found
    assert all(content.endswith("cd") for content in found)


def test_a_rename_is_one_step(tmp_path: Path, world: Path) -> None:
    """Until the folder is synced the old file or the new one is there, never none, never a mix."""
    (world / "file").write_bytes(b"old")
    disk = PowerCutDisk(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PowerCutDisk, "sync_folder", lambda *_: None)
        disk.write_file(world / "file", b"new")
    assert left(disk, tmp_path) == {"old", "new"}
    disk.sync_folder(world)
    assert left(disk, tmp_path) == {"new"}
    assert left(disk, tmp_path, 0) == {"old"}


def test_a_file_written_past_the_disk(tmp_path: Path, world: Path) -> None:
    """What was in it when it was synced is safe; what came later is in doubt."""
    disk, hidden = PowerCutDisk(world), world / ".hidden"
    hidden.write_bytes(b"ab")
    fd = os.open(hidden, os.O_RDWR)
    disk.sync(fd)
    hidden.write_bytes(b"abcd")
    disk.rename(hidden, world / "file")
    disk.sync_folder(world)
    found = left(disk, tmp_path)
    assert {"ab", "abcd", "ab\0\0"} <= found
    assert all(content.startswith("ab") for content in found)
    disk.sync(fd)
    disk.close(fd)
    assert left(disk, tmp_path) == {"abcd"}


def test_a_file_that_is_never_synced(tmp_path: Path, world: Path) -> None:
    """A copy that is renamed into place without a sync may be empty (reliability.md, row 8)."""
    disk = PowerCutDisk(world)
    (world / "origin").write_bytes(b"ab")
    copy_file(disk, world / "origin", world / "copy")
    disk.replace(world / "copy", world / "file")
    assert {"", "ab", "\0\0"} <= left(disk, tmp_path)


def test_links_and_removals(tmp_path: Path, world: Path) -> None:
    """A link keeps the bytes when the first name is removed or replaced."""
    (world / "origin").write_bytes(b"ab")
    disk = PowerCutDisk(world)
    disk.link(world / "origin", world / "file")
    disk.sync_folder(world)
    disk.write_file(world / "origin", b"new")
    assert left(disk, tmp_path) == {"ab"}
    disk.remove(world / "file")
    assert left(disk, tmp_path) == {"ab", "nothing"}
    disk.sync_folder(world)
    assert left(disk, tmp_path) == {"nothing"}


def test_samples_are_the_same_for_a_seed(tmp_path: Path, world: Path) -> None:
    """The same seed gives the same states; `total` tells how many there would have been."""
    disk = PowerCutDisk(world)
    fds = [disk.create(world / name) for name in "abc"]
    for fd in fds:
        disk.write(fd, [bytes(5000)])
    states = disk.states(limit=100)
    assert (len(states), len(list(states))) == (100, 100)
    assert states.total > 1000
    assert repr(states) == f"<100 of {states.total} crash states>"
    assert list(map(str, states)) == list(map(str, disk.states(limit=100)))
    assert list(map(str, states)) != list(map(str, disk.states(limit=100, seed=1)))
    everything = disk.states(limit=None, last=2)
    assert len({str(state) for state in everything}) == everything.total == len(everything)
    assert len(disk.states(limit=2)) == 2
    for fd in fds:
        disk.close(fd)


def test_states_are_told_and_go_to_new_folders_only(tmp_path: Path, world: Path) -> None:
    """A state says what was cut and what became of it; a folder with something in it is refused."""
    disk = PowerCutDisk(world)
    disk.write_file(world / "note", b"ab")
    assert len(disk.log) == disk.position == len(disk.cuts()) - 1
    assert disk.log[-1] == "sync_folder 'world'"
    *_, state = disk.states(limit=None, last=disk.position - 1)
    assert "power cut after operation 4 (rename 'note')" in str(state)
    assert "'note' lost" in str(state)
    with pytest.raises(StorageError, match="not empty"):
        disk.materialise(state, world)


def test_only_below_the_watched_folder(tmp_path: Path, world: Path) -> None:
    """What could not be cut is refused, not left out in silence."""
    with pytest.raises(StorageError, match="no folder"):
        PowerCutDisk(tmp_path / "missing")
    with pytest.raises(StorageError, match="outside of"):
        PowerCutDisk(world).write_file(tmp_path / "elsewhere", b"ab")
