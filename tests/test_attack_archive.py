"""Archives: what we make is safe to unpack anywhere, whatever lies in the data folder.

trialstore unpacks no archives, so there is no bomb to defuse; what it owes is that its own archives
are none, and lead nowhere.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trialstore
from tests.helpers import open_lab
from trialstore import StorageError, storage_to_zip
from trialstore._ondisk import layout


def infos(archive: str) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(archive) as found:
        assert found.testzip() is None
        return found.infolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A recorded task and a note beside it."""
    with open_lab(tmp_path / "lab" / "data") as lab, lab.create("reach") as task:
        task.write({"n": 1})
    (tmp_path / "lab" / "data" / "notes.txt").write_bytes(b"0" * 10**6)
    return tmp_path / "lab" / "data"


def test_nothing_in_the_package_unpacks_archives() -> None:
    """If that changes, this file needs the attacks on readers: links, bombs, twins, lies."""
    sources = Path(trialstore.__file__).parent.rglob("*.py")
    users = [path.name for path in sources if "zipfile" in path.read_text("utf-8")]
    assert users == ["archive.py"]
    text = (Path(trialstore.__file__).parent / "_ondisk" / "archive.py").read_text("utf-8")
    assert "extract" not in text
    assert text.count("ZipFile(") == 1
    assert 'ZipFile(file, "w"' in text


def test_entries_are_plain_stored_and_one_of_a_name(root: Path) -> None:
    """No entry is a link, encrypted, packed, or larger than its bytes; no name stands twice."""
    found = infos(storage_to_zip(root))
    names = [info.filename for info in found]
    assert len(set(map(layout.folded, names))) == len(names)
    for info in found:
        kind = info.external_attr >> 16
        assert stat.S_ISREG(kind) or stat.S_ISDIR(kind)
        assert info.compress_type == zipfile.ZIP_STORED
        assert info.compress_size == info.file_size
        assert not info.flag_bits & 0x1  # encrypted
        assert info.filename.split("/")[0] == "data"
        assert not {"", ".", ".."} & set(info.filename.rstrip("/").split("/"))


def test_unpacking_writes_below_the_root_only(root: Path, tmp_path: Path) -> None:
    """What comes out is what went in, in one folder."""
    archive = storage_to_zip(root)
    target = tmp_path / "unpacked"
    with zipfile.ZipFile(archive) as found:
        found.extractall(target)
    assert [path.name for path in target.iterdir()] == ["data"]
    for path in root.rglob("*"):
        twin = target / "data" / path.relative_to(root)
        assert twin.is_dir() if path.is_dir() else twin.read_bytes() == path.read_bytes()


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
) | st.sampled_from(
    ["..\\x", "C:\\x", "CON", "a ", "a.", "x\u202ey", "A", "a", "\u00e9", "e\u0301"]
)


@settings(suppress_health_check=list(HealthCheck), max_examples=60)
@given(st.lists(NAMES, max_size=4, unique=True))
def test_any_names_are_refused_or_safe(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """Whatever files are called, each is in the archive under its name, or there is no archive."""
    root = tmp_path_factory.mktemp("any") / "data"
    root.mkdir()
    visible = []
    for name in names:
        try:
            (root / name).write_bytes(b"x")
        except OSError:
            continue
        visible += [] if name.startswith(".") or name == "Icon\r" else [name]
    archive, refusal = "", ""
    try:
        archive = storage_to_zip(root)
    except StorageError as error:
        refusal = str(error)
    if refusal:
        assert refusal.isprintable()
        assert not (root.parent / "data.zip").exists()
        return
    found = {info.filename for info in infos(archive)}
    assert found == {f"data/{name}" for name in visible} or (found == {"data/"} and not visible)
    assert all(layout.refusal_of_component(name) is None for name in visible)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_a_link_in_the_archive_s_place_is_replaced(root: Path, tmp_path: Path, kind: str) -> None:
    """The archive takes the place of a link; what the link leads to is left alone."""
    target = tmp_path / "target"
    match kind:
        case "file":
            target.write_bytes(b"do not touch")
        case "folder":
            target.mkdir()
        case "pipe":
            os.mkfifo(target)
        case _:
            pass
    (root.parent / "data.zip").symlink_to(target)
    archive = Path(storage_to_zip(root))
    assert not archive.is_symlink()
    assert infos(str(archive))
    if kind == "file":
        assert target.read_bytes() == b"do not touch"
    if kind == "folder":
        assert not list(target.iterdir())
    if kind == "nothing":
        assert not target.exists()


def test_a_pipe_or_folder_in_the_archive_s_place(root: Path, tmp_path: Path) -> None:
    """A pipe is replaced, not waited for; a folder is not, and the message says why."""
    os.mkfifo(root.parent / "data.zip")
    assert infos(storage_to_zip(root))
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="cannot be archived"):
        storage_to_zip(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


#: Archives a folder while a thread turns one of its files, over and over, into a link and back.
RACE = """
import os, pathlib, sys, threading, zipfile
from trialstore import StorageError, storage_to_zip
root, secret, rounds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
end = threading.Event()
def turn():
    while not end.is_set():
        for make in (lambda p: p.symlink_to(secret), lambda p: p.write_bytes(b"mine")):
            make(root / "new")
            os.replace(root / "new", root / "turning")
thread = threading.Thread(target=turn)
thread.start()
found = set()
try:
    for _ in range(rounds):
        try:
            with zipfile.ZipFile(storage_to_zip(root)) as archive:
                for name in archive.namelist():
                    found.add((name, archive.read(name)))
        except StorageError:
            pass
finally:
    end.set()
    thread.join()
assert not any(b"secret" in content for _, content in found), found
print(len(found))
"""


@pytest.mark.slow
def test_a_file_that_becomes_a_link_at_the_last_moment_is_not_followed(tmp_path: Path) -> None:
    """Between the look at a file and its opening it may be exchanged: opening follows no link."""
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"a secret")
    (root / "turning").write_bytes(b"mine")
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(root), str(tmp_path / "secret"), "300"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


def test_a_root_in_a_circle_ends(tmp_path: Path) -> None:
    """Links that lead back up are not walked."""
    root = tmp_path / "data"
    (root / "p0").mkdir(parents=True)
    (root / "p0" / "up").symlink_to(root)
    (root / "p0" / "notes.txt").write_bytes(b"x")
    assert [info.filename for info in infos(storage_to_zip(root))] == ["data/p0/notes.txt"]


@pytest.mark.parametrize("levels", [90, 150])
def test_a_tower_of_folders_is_archived_or_told(tmp_path: Path, levels: int) -> None:
    """As deep as anybody needs, folders are archived; deeper ones do not exhaust the stack."""
    root = tmp_path / "data"
    root.joinpath(*"d" * levels).mkdir(parents=True)
    if levels < 100:
        assert infos(storage_to_zip(root))[0].filename == "data/" + "d/" * levels
        return
    with pytest.raises(StorageError, match="deeper than 100 folders") as caught:
        storage_to_zip(root)
    assert len(str(caught.value)) < 1000
