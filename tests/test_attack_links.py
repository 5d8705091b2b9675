"""Links, pipes and second names planted in a data folder, pointing at what is nobody's business.

Whatever is planted, and whatever is done then, what lies outside keeps its entries and its bytes,
and nothing waits for the other end of a pipe.
"""

from __future__ import annotations

import gc
import os
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import pytest

from tests.conftest import wait_until
from tests.helpers import open_lab
from trialstore import Storage, StorageError, StorageReader, TaskReader, read_hdf5, storage_to_zip
from trialstore._ondisk import disk, layout, lock
from trialstore._publishing.task import TaskPublisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.helpers import Lab
    from trialstore import TaskWriter

pytestmark = [
    pytest.mark.leaves_files,  # what was planted may be hidden, and stays
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes"),
]

#: Goes on with a task, cuts the recorder off in the middle of a trial, and leaves no publisher.
CUT_OFF = """
import os, signal, sys
import anyio, numpy as np
from trialstore import Storage
from trialstore._recording import publisher
publisher.Publisher.tell = lambda *_: None
async def main():
    storage = Storage(sys.argv[1])
    await storage.__aenter__()
    storage.subject_id = "p0"
    task = await storage.resume_task("reach")
    await task.append("emg", np.arange(6.0).reshape(2, 3))
    await task.write({"n": 1})
    await task.append("emg", np.ones((2, 2)))
    await task.flush()
    os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""


class Outside(NamedTuple):
    """A folder that is nobody's business, and what was in it."""

    folder: Path
    state: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "canary.hdf5"

    def check(self) -> None:
        assert state_of(self.folder) == self.state


def state_of(folder: Path) -> dict[str, Any]:
    """Names, kinds, sizes, times and bytes of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    """Files and folders that are called as ours are, so that nothing fails for lack of them."""
    folder = tmp_path / "outside"
    for inner in (folder, folder / "journal", folder / "journal" / "base", folder / "base"):
        inner.mkdir()
        with h5py.File(inner / "emg.hdf5", "w") as file:
            file["0"] = np.zeros((2, 3))
        for name in ("trials.csv", "timing.csv", "manifest.json", "000001.segment", "lock"):
            (inner / name).write_bytes(b"do not touch")
        (inner / "000001.witness").write_bytes(b"do not touch")
    shutil.copy(folder / "emg.hdf5", folder / "canary.hdf5")
    return Outside(folder, state_of(folder))


def link_to_file(path: Path, outside: Outside) -> None:
    path.symlink_to(outside.file)


def link_to_folder(path: Path, outside: Outside) -> None:
    path.symlink_to(outside.folder)


def dangling_link(path: Path, outside: Outside) -> None:
    path.symlink_to(outside.folder / "not yet there")


def link_to_itself(path: Path, outside: Outside) -> None:
    path.symlink_to(path)


def pipe(path: Path, outside: Outside) -> None:
    os.mkfifo(path)


def second_name(path: Path, outside: Outside) -> None:
    os.link(outside.file, path)


def device(path: Path, outside: Outside) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: never ends
    except OSError:
        pytest.skip("may not make devices")


def folder(path: Path, outside: Outside) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"")


KINDS = [
    *(link_to_file, link_to_folder, dangling_link, link_to_itself),
    *(pipe, second_name, device, folder),
]

#: Within a task's folder; the base and what is in it belong to a task that was resumed.
PLACES = [
    *("manifest.json", "trials.csv", "timing.csv", "emg.hdf5", "ica.pkl", "interrupted", "journal"),
    *("interrupted/emg.hdf5", "journal/lock", "journal/publish.lock", "journal/answer.json"),
    *("journal/000001.segment", "journal/000001.witness", "journal/000002.segment"),
    *("journal/000002.witness", "journal/base", "journal/base/emg.hdf5"),
    *("journal/base/trials.csv", "journal/base/timing.csv", "journal/base/manifest.json"),
    f".manifest.json.{os.getpid()}.building",
    "journal/.answer.json.1.building",
]


def task_name(place: str) -> str:
    return place.strip(".").replace("/", " ")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One task as it is after publication, and the same after it was resumed and cut off."""
    root = tmp_path_factory.mktemp("templates")
    with open_lab(root / "data") as lab, lab.create("reach") as task:
        task.append("emg", np.arange(6.0).reshape(2, 3))
        task.write({"n": 0})
        task.pickle({"a": 1}, "ica")
    shutil.copytree(root / "data", root / "cut")
    subprocess.run([sys.executable, "-c", CUT_OFF, str(root / "cut")], check=False, timeout=60)
    assert (root / "cut" / "p0" / "reach" / "journal" / "base" / "emg.hdf5").is_file()
    published, cut = root / "data" / "p0" / "reach", root / "cut" / "p0" / "reach"
    assert TaskReader(published).status == "complete"
    assert TaskReader(cut).status == "interrupted"
    return {"published": published, "cut off": cut}


def plant(task: Path, place: str, kind: Callable[[Path, Outside], None], outside: Outside) -> None:
    """Put something in the place of an entry of a task's folder."""
    path = task / place
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    kind(path, outside)


def attempt(action: Callable[..., object], *arguments: Any) -> StorageError | None:
    """Do something; whatever is wrong is told by one of our own errors, fit to print."""
    try:
        action(*arguments)
    except StorageError as error:
        refusal = error
    else:
        return None
    assert str(refusal).isprintable(), refusal
    return refusal


def read_everything(task: Path) -> None:
    questions: tuple[Callable[[TaskReader], object], ...] = (
        lambda reader: reader.status,
        lambda reader: reader.trials,
        lambda reader: reader.timing,
        lambda reader: reader.losses,
        lambda reader: [reader.info(name) for name in reader.array_names],
        lambda reader: [reader.array(name, verify=False) for name in reader.array_names],
        lambda reader: reader.pickle("ica"),
    )
    for question in questions:
        attempt(lambda ask: ask(TaskReader(task)), question)


async def _record_on(writer: TaskWriter) -> None:
    try:
        await writer.append("emg", np.full((2, 3), 7.0))
        await writer.write({"n": 2})
        await writer.pickle({"a": 2}, "ica")
        await writer.append("emg", np.full((2, 1), 8.0))
    finally:
        await writer.aclose()


async def _resume(storage: Storage, name: str) -> None:
    await _record_on(await storage.resume_task(name))


async def _create(storage: Storage, name: str) -> None:
    await _record_on(await storage.create_task(name))


def open_quickly(root: Path) -> Any:
    return open_lab(root, allow_overwrite=True, close_timeout=5.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *((kind, "published") for kind in (link_to_file, link_to_folder, pipe, device, folder)),
        *((kind, "cut off") for kind in (link_to_file, link_to_folder, second_name)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_lies_outside_is_left_alone(
    tmp_path: Path, outside: Outside, templates: dict[str, Path], kind: Any, state: str
) -> None:
    """Reading, resuming, publishing and overwriting never follow what was planted, nor hang."""
    root = tmp_path / "data"
    for place in PLACES:
        task = root / "p0" / task_name(place)
        shutil.copytree(templates[state], task)
        plant(task, place, kind, outside)
    outside = Outside(outside.folder, state_of(outside.folder))  # a second name is counted there
    for place in PLACES:
        read_everything(root / "p0" / task_name(place))
    attempt(lambda: storage_to_zip(root))
    outside.check()
    with open_quickly(root) as lab:
        for act in (_resume, _create):
            for place in PLACES:
                attempt(lab._portal.call, act, lab._storage, task_name(place))
                outside.check()
    for place in PLACES:  # overwritten: whatever was there is in the trash, and all is well
        reader = TaskReader(root / "p0" / task_name(place))
        # Closing waits five seconds for the child, which goes on alone after that.
        assert wait_until(lambda: reader.status == "complete"), place  # noqa: B023 - called at once
        assert reader.trials["n"].tolist() == [2], place
        assert reader.array("emg", trial=0).tolist() == np.full((2, 3), 7.0).tolist(), place
    outside.check()
    gc.collect()  # what was refused may still hold files, in a circle with its traceback


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_planted_while_recording_is_not_followed(
    tmp_path: Path, outside: Outside, kind: Any
) -> None:
    """Publication replaces what stands in its way, or fails and says so; the data stays."""
    root = tmp_path / "data"
    places = [place for place in PLACES if not place.startswith(("journal/base", "journal/0"))]
    places = [place for place in places if place != "journal"] + ["journal/000002.segment"]
    with open_quickly(root) as lab:
        for place in places:
            task = lab.create(task_name(place))
            task.append("emg", np.arange(6.0).reshape(2, 3))
            task.write({"n": 0})
            task.flush()
            plant(task.root, place, kind, outside)
            before = Outside(outside.folder, state_of(outside.folder))
            failures = [attempt(task.publish)]
            attempt(task.append, "emg", np.ones((2, 3)))
            attempt(task.write, {"n": 1})
            failures.append(attempt(task.close))
            before.check()
            if failures[-1] is None and kind is not folder:
                assert TaskReader(task.root).trials["n"].tolist() == [0, 1], place
                assert TaskReader(task.root).array("emg").shape == (4, 3), place


# --- above a task ---------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path, outside: Outside) -> Iterator[Lab]:
    """A lab beside an outside that looks like a subject's folder."""
    with open_quickly(tmp_path / "data") as lab:
        yield lab


@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
@pytest.mark.parametrize("place", ["p1", "p0/linked"])
def test_a_linked_subject_or_task_is_refused(
    tmp_path: Path, linked: Lab, outside: Outside, target: str, place: str
) -> None:
    """It is not recorded into, not moved, not listed and not read; the message says: a link."""
    root = tmp_path / "data"
    to = {"folder": outside.folder, "file": outside.file, "nothing": tmp_path / "nothing"}[target]
    (root / place).symlink_to(to)
    storage = linked._storage
    subject, _, task = place.partition("/")
    linked._portal.call(setattr, storage, "subject_id", subject)
    for act in (_create, _resume):
        error = attempt(linked._portal.call, act, storage, task or "journal")
        assert error is not None
        if target == "folder" or act is _create:
            assert "is a link, which is not followed" in str(error)
    outside.check()
    assert (root / place).is_symlink()
    reader = StorageReader(root)
    assert subject == "p0" or subject not in reader.subject_ids
    reader.subject_id = subject
    assert task not in reader.task_ids
    error = attempt(lambda: reader.require_task(task or "journal"))
    assert error is not None
    assert "link" in str(error)


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    """Where the data lies is the user's own choice, who may have put it on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    with open_lab(tmp_path / "data") as lab, lab.create("reach") as task:
        task.write({"n": 1})
    assert TaskReader(tmp_path / "disk" / "p0" / "reach").status == "complete"


@pytest.mark.parametrize("place", ["data.trash", "data.trash/p0"])
def test_the_trash_is_no_way_out(tmp_path: Path, linked: Lab, outside: Outside, place: str) -> None:
    """An overwritten task, and a replaced pickle, are not moved over a link: it is told instead."""
    trash = tmp_path / place
    trash.parent.mkdir(exist_ok=True)
    task = linked.create("reach")
    task.write({"n": 1})
    task.pickle(1, "ica")
    trash.symlink_to(outside.folder)
    error = attempt(lambda: task.pickle(2, "ica"))
    assert error is not None
    assert "is a link" in str(error)
    task.close()
    error = attempt(lambda: linked.create("reach"))
    assert error is not None
    assert "is a link" in str(error)
    outside.check()
    reader = TaskReader(task.root)
    assert reader.trials["n"].tolist() == [1]
    assert reader.pickle("ica") == 1


def test_a_fallback_folder_is_no_way_out(tmp_path: Path, outside: Outside) -> None:
    """Where segments go when a disk fails, a link is refused before anything is recorded."""
    fallback = tmp_path / "fallback"
    fallback.mkdir()
    (fallback / "p0").symlink_to(outside.folder)
    error = attempt(lambda: _open_and_close(tmp_path / "data", fallback))
    assert error is not None
    assert "is a link, which is not followed" in str(error)
    outside.check()


def _open_and_close(root: Path, fallback: Path) -> None:
    with open_lab(root, fallback_root=fallback):
        pass


# --- single doors ---------------------------------------------------------------------------------


def test_a_lock_with_a_second_name_is_not_written_to(tmp_path: Path) -> None:
    """Signing would overwrite the file that the lock is linked with: a fresh one replaces it."""
    victim, path = tmp_path / "victim", tmp_path / "journal" / "lock"
    victim.write_bytes(b"do not touch")
    path.parent.mkdir()
    os.link(victim, path)
    held = lock.acquire(path, "recorder", patience=0.0)
    assert held.held
    assert victim.read_bytes() == b"do not touch"
    assert victim.stat().st_nlink == 1
    assert "recorder" in str(lock.holder(path))
    held.release()


@pytest.mark.parametrize("kind", [pipe, link_to_file, dangling_link, folder])
def test_asking_who_has_a_lock_never_waits(tmp_path: Path, outside: Outside, kind: Any) -> None:
    """A reader asks at every look; a pipe in the lock's place must not stop it."""
    (tmp_path / "journal").mkdir()
    kind(tmp_path / "journal" / "lock", outside)
    assert lock.holder(tmp_path / "journal" / "lock") is None
    with pytest.raises(OSError, match="lock"):
        lock.acquire(tmp_path / "journal" / "lock", "recorder")
    outside.check()


@pytest.mark.parametrize("kind", [pipe, link_to_file, device, folder])
def test_a_copy_neither_follows_nor_makes_a_link(
    tmp_path: Path, outside: Outside, kind: Any
) -> None:
    """What the publisher goes on from is a regular file, and so is what it makes of it."""
    kind(tmp_path / "planted", outside)
    with pytest.raises(OSError, match="planted"):
        disk.copy_file(disk.Disk(), tmp_path / "planted", tmp_path / "copy")
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(FileExistsError):
        disk.copy_file(disk.Disk(), tmp_path / "plain", tmp_path / "planted")
    assert not (tmp_path / "copy").exists()
    outside.check()


def test_only_segments_are_taken_out_of_a_fallback_folder(
    tmp_path: Path, outside: Outside, templates: dict[str, Path]
) -> None:
    """Cleaning up after publication removes files of the journal, and nothing over a link."""
    task, fallback = tmp_path / "data" / "p0" / "reach", tmp_path / "fallback"
    shutil.copytree(templates["cut off"], task)
    fallback.symlink_to(outside.folder)
    publisher = TaskPublisher(task, fallbacks=[fallback])
    try:
        publisher.finish()
    finally:
        publisher.close()
    outside.check()


def test_an_array_of_a_task_is_no_link(tmp_path: Path, outside: Outside) -> None:
    """A linked array of a task is not read; a path that the user names may be a link."""
    task = tmp_path / "data" / "p0" / "t"
    task.mkdir(parents=True)
    (task / "trials.csv").write_bytes(b"n\n1\n")
    (task / "emg.hdf5").symlink_to(outside.file)
    assert TaskReader(task).array_names == []
    assert read_hdf5(task / "emg.hdf5", "0").shape == (2, 3)


def test_links_are_looked_for_below_the_root_only(tmp_path: Path) -> None:
    """The way to the root may lead over links, as /tmp does on macOS; below it none is taken."""
    (tmp_path / "real" / "data" / "p0").mkdir(parents=True)
    (tmp_path / "way").symlink_to(tmp_path / "real")
    root = tmp_path / "way" / "data"
    layout.check_no_links(root, root / "p0" / "t")
    (root / "p1").symlink_to("p0")
    with pytest.raises(OSError, match="p1"):
        layout.check_no_links(root, root / "p1" / "t")
