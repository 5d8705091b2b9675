"""One ZIP file of everything below a root."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trialstore import _errors
from trialstore._ondisk import disk
from trialstore._ondisk.archive import storage_to_zip

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = {
    "p0/reach/trials.csv": b"block,trial\n0,0\n",
    "p0/reach/emg.hdf5": bytes(range(256)) * 9000,
    "p0/reach/calibration.pkl": b"\x80\x05N.",
    "p0/reach/manifest.json": b'{"status": "recording"}',
    "p0/reach/journal/000001.segment": b"frames",
    "p0/reach/journal/000001.witness": b"witness",
    "p0/reach/journal/base/trials.csv": b"block\n",
    "p0/r\u00e9sum\u00e9 \u4e2d/emg.hdf5": b"",
    "notes.txt": b"a note of the experimenter's",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with two subjects, one of them empty."""
    root = tmp_path / "lab" / "data"
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "p1").mkdir()
    return root


def contents(outfile: str | Path) -> dict[str, bytes]:
    """What is in an archive that passes ZIP's own test; no name twice."""
    with zipfile.ZipFile(outfile) as archive:
        assert archive.testzip() is None
        assert len(set(archive.namelist())) == len(archive.namelist())
        return {name: archive.read(name) for name in archive.namelist()}


def names_in(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


EXPECTED = {f"data/{name}": content for name, content in FILES.items()} | {"data/p1/": b""}


def test_everything_is_there_relative_to_the_root_s_parent(root: Path) -> None:
    """Every file of the data is in the archive, journals and empty folders too, byte for byte."""
    outfile = storage_to_zip(str(root))
    assert outfile == f"{root}.zip"
    assert contents(outfile) == EXPECTED


@pytest.mark.parametrize("spelling", ["data", "data/", "./data", "data/.", "../lab/data//"])
def test_any_spelling_of_the_root_gives_the_same_archive(
    root: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """A trailing slash or a dot changes neither the names inside nor the place of the archive."""
    monkeypatch.chdir(root.parent)
    outfile = storage_to_zip(spelling)
    assert Path(outfile).samefile(root.parent / "data.zip")
    assert contents(outfile) == EXPECTED
    if spelling in ("data", "data/"):
        assert outfile == "data.zip"


@pytest.mark.parametrize(("spelling", "inside"), [(".", ""), ("..", "p1"), ("p0/..", "")])
def test_a_root_without_a_name_is_archived_under_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch, spelling: str, inside: str
) -> None:
    """``.`` is archived beside itself, under the folder's real name."""
    monkeypatch.chdir(root / inside)
    assert storage_to_zip(spelling) == f"{root}.zip"
    assert contents(root.parent / "data.zip") == EXPECTED


class PathLike:
    """A path of another library, such as ``py.path.local``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_the_name_of_the_archive_is_returned_as_given(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any path-like is taken for either name; what comes back is a str equal to what was given."""
    monkeypatch.chdir(tmp_path)
    assert storage_to_zip(PathLike(root), "./out.zip") == "./out.zip"
    assert storage_to_zip(root, PathLike(tmp_path / "other.zip")) == str(tmp_path / "other.zip")
    assert contents("out.zip") == contents("other.zip") == EXPECTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab", "other.zip", "out.zip"]


def test_an_archive_inside_the_root_never_holds_itself(root: Path) -> None:
    """Neither the archive being written nor the one it replaces is part of the archive."""
    outfile = root / "p0" / "all.zip"
    for _ in range(3):
        storage_to_zip(root, outfile)
        assert contents(outfile) == EXPECTED


@pytest.mark.leaves_files
def test_hidden_files_locks_and_links_are_left_out(root: Path, tmp_path: Path) -> None:
    """What is being built, no data or elsewhere is not archived, and nothing hangs."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("x")
    task = root / "p0" / "reach"
    for name in (".emg.hdf5.1.building", "journal/lock", "journal/publish.lock", ".hidden/x"):
        (task / name).parent.mkdir(exist_ok=True)
        (task / name).write_bytes(b"not data")
    (root / "p1" / "linked").symlink_to(secret)
    (root / "p1" / "key").symlink_to(secret / "key")
    (root / "p1" / "manifest.json").symlink_to(secret / "key")
    (root / "p1" / "dangling").symlink_to(secret / "nothing")
    os.mkfifo(root / "p1" / "fifo")
    assert contents(storage_to_zip(root)) == EXPECTED


def test_files_of_any_age_can_be_archived(root: Path) -> None:
    """ZIP knows the years 1980 to 2107; other files get the nearest it can tell."""
    for name, seconds in (("notes.txt", 0), ("p0/reach/emg.hdf5", 10**10), ("p0", -(10**9))):
        os.utime(root / name, (seconds, seconds))
    os.utime(root / "p1", (0, 0))
    outfile = storage_to_zip(root)
    assert contents(outfile) == EXPECTED
    with zipfile.ZipFile(outfile) as archive:
        assert archive.getinfo("data/notes.txt").date_time[0] == 1980
        assert archive.getinfo("data/p0/reach/emg.hdf5").date_time[0] == 2107
        assert archive.getinfo("data/p0/reach/trials.csv").date_time[0] > 2020
        assert archive.getinfo("data/p1/").date_time[0] == 1980


def test_an_extracted_archive_is_the_root_again(root: Path, tmp_path: Path) -> None:
    """Names, contents and permissions survive, with Python's own tools."""
    (root / "notes.txt").chmod(0o640)
    shutil.unpack_archive(storage_to_zip(root), tmp_path / "copy")
    copy = tmp_path / "copy" / "data"
    names = {path.relative_to(root) for path in root.rglob("*")}
    assert {path.relative_to(copy) for path in copy.rglob("*")} == names
    for name in names:
        if (root / name).is_file():
            assert (copy / name).read_bytes() == (root / name).read_bytes()
    with zipfile.ZipFile(f"{root}.zip") as archive:
        mode = archive.getinfo("data/notes.txt").external_attr >> 16
        assert mode == stat.S_IFREG | 0o640
        assert archive.getinfo("data/p1/").is_dir()


@pytest.mark.slow
def test_a_huge_file_is_archived(root: Path) -> None:
    """A file that may grow beyond what ZIP of old could hold is written in the newer form."""
    huge = root / "p1" / "huge.hdf5"
    with huge.open("wb") as file:
        file.truncate((1 << 30) + 1)
    outfile = storage_to_zip(huge.parent)
    with zipfile.ZipFile(outfile) as archive:
        info = archive.getinfo("p1/huge.hdf5")
        assert info.file_size == (1 << 30) + 1
        assert info.extract_version >= 45
    Path(outfile).unlink()


@pytest.mark.parametrize("name", ["nothing", "data/notes.txt", "/", "da\0ta"])
def test_only_a_folder_can_be_archived(root: Path, name: str) -> None:
    """A root that is missing, a file, nameless or nonsense is refused; nothing is left."""
    with pytest.raises(_errors.StorageError, match="no folder that can be archived"):
        storage_to_zip(root.parent / name)
    assert names_in(root.parent) == ["data"]


@pytest.mark.parametrize("outfile", ["nowhere/out.zip", "data", "", "a\0b", "data/notes.txt/x.zip"])
def test_an_archive_that_cannot_be_written_leaves_nothing_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, outfile: str
) -> None:
    """The refusal is ours, names both, and no unfinished file stays."""
    monkeypatch.chdir(root.parent)
    with pytest.raises(_errors.StorageError, match=r"'data' cannot be archived as"):
        storage_to_zip("data", outfile)
    assert names_in(root.parent) == ["data"]
    assert not list(root.rglob(".*"))


class FullDisk(disk.Disk):
    """A disk that has no room left when the archive is to be made durable."""

    def sync(self, fd: int) -> None:
        raise OSError(28, "No space left on device")


def test_a_failed_archive_leaves_the_former_one(root: Path) -> None:
    """An archive appears whole or not at all, in place of an older one too."""
    outfile = Path(storage_to_zip(root))
    before = outfile.read_bytes()
    (root / "notes.txt").write_bytes(b"changed")
    with disk.use(FullDisk()), pytest.raises(_errors.StorageError, match="No space left"):
        storage_to_zip(root)
    assert outfile.read_bytes() == before
    assert names_in(root.parent) == ["data", "data.zip"]


def test_a_name_that_no_archive_can_hold_is_not_lost_in_silence(root: Path) -> None:
    """A file whose name is no text stops the archive instead of missing from it."""
    try:
        (root / "p1" / os.fsdecode(b"\xff")).touch()
    except OSError:
        pytest.skip("this file system knows no such names")
    with pytest.raises(_errors.StorageError, match="udcff"):
        storage_to_zip(root)
    assert names_in(root.parent) == ["data"]


# --- while a task is being published or resumed --------------------------------------------------

_interrupt: list[Any] = []


def _on_event(event: str, _: Any) -> None:
    if _interrupt and event in ("open", "os.scandir"):
        countdown, act = _interrupt
        _interrupt[0] = countdown - 1
        if countdown == 0:
            _interrupt.clear()
            act()


sys.addaudithook(_on_event)


def archive_while(act: Callable[[], None], root: Path, moment: int) -> bool:
    """Archive `root`, and act just before the archiver's `moment`-th look at the disk."""
    _interrupt[:] = [moment, act]
    storage_to_zip(root)
    has_acted = not _interrupt
    _interrupt.clear()
    return has_acted


def put(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.x.building")
    beside.write_bytes(content)
    beside.rename(path)


def begin(task: Path) -> None:
    """A task as it is while it is recorded."""
    (task / "journal").mkdir(parents=True)
    for number in (1, 2):
        (task / "journal" / f"00000{number}.segment").write_bytes(b"segment %d" % number)
    put(task / "manifest.json", b'{"status": "recording"}')


def publish(task: Path) -> None:
    """What the publisher does at the end, in its order."""
    put(task / "trials.csv", b"all trials")
    put(task / "emg.hdf5", b"all samples")
    put(task / "manifest.json", b'{"status": "complete"}')
    (task / "journal").rename(task / ".journal.x.building")
    shutil.rmtree(task / ".journal.x.building")


def resume(task: Path) -> None:
    """What the recorder does when it goes on with a task, in its order."""
    (task / "journal" / "base").mkdir(parents=True)
    put(task / "journal" / "base" / "trials.csv", b"all trials")
    put(task / "journal" / "base" / "manifest.json", b'{"status": "complete"}')
    put(task / "manifest.json", b'{"status": "recording"}')
    put(task / "trials.csv", b"more trials")


def is_readable(task: dict[str, bytes]) -> bool:
    """Whether a reader finds every trial: in the published files, or else in the journal."""
    if json.loads(task["manifest.json"])["status"] == "complete":
        return task.get("emg.hdf5") == b"all samples" and "trials.csv" in task
    if "journal/base/trials.csv" in task:
        return task["journal/base/trials.csv"] == b"all trials" and "emg.hdf5" in task
    return all(task.get(f"journal/00000{n}.segment") == b"segment %d" % n for n in (1, 2))


@pytest.mark.parametrize("change", ["publish", "resume"])
def test_a_task_that_changes_meanwhile_is_whole_in_the_archive(tmp_path: Path, change: str) -> None:
    """At whichever moment a task is published or resumed, the archive holds all of its trials."""
    moments = 0
    for moment in range(1000):
        root = tmp_path / str(moment)
        task = root / "p0" / "reach"
        begin(task)
        if change == "resume":
            publish(task)
        act = partial(resume if change == "resume" else publish, task)
        if not archive_while(act, root, moment):
            break
        prefix = f"{moment}/p0/reach/"
        held = contents(f"{root}.zip")
        assert is_readable({name.removeprefix(prefix): held[name] for name in held}), moment
        moments += 1
    assert moments > 10


def test_a_witness_is_never_newer_than_its_segment(tmp_path: Path) -> None:
    """The witness is read first, so it never asks for frames that the archive does not hold."""
    for moment in range(1000):
        root = tmp_path / str(moment)
        journal = root / "p0" / "reach" / "journal"
        journal.mkdir(parents=True)
        segment, witness = journal / "000001.segment", journal / "000001.witness"
        segment.write_bytes(b"1")
        witness.write_bytes(b"1")

        def record(segment: Path = segment, witness: Path = witness) -> None:
            segment.write_bytes(b"12")
            witness.write_bytes(b"2")

        if not archive_while(record, root, moment):
            break
        held = contents(f"{root}.zip")
        prefix = f"{moment}/p0/reach/journal/000001"
        assert len(held[f"{prefix}.segment"]) >= int(held[f"{prefix}.witness"])
