"""Hostile names, wherever a name can come from: given by a caller, found on disk, in an archive."""

from __future__ import annotations

import os
import shutil
import unicodedata
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio.to_thread
import numpy as np
import pytest

from tests.helpers import open_lab, open_task, reader_of
from trialstore import (
    ArrayInfo,
    InvalidName,
    Storage,
    StorageError,
    StorageReader,
    TaskExists,
    TaskNotFound,
    storage_to_zip,
)
from trialstore._ondisk import layout, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.helpers import Lab

REASONS: dict[str, list[Any]] = {
    "leads to another folder": [
        *("/", "a/b", "/etc/passwd", "a/", "../a", "../../etc/cron.d/x", "..", ".", "a/../../b"),
        *("./a", "a/..", "~/../x/y"),
    ],
    "is a path on Windows": [
        *("\\", "a\\b", "..\\a", "\\\\host\\share", "\\\\?\\C:\\x", "\\\\.\\COM1", "C:\\x", "C:x"),
        *("C:", "a:stream", "a::$DATA", "a:Zone.Identifier"),
    ],
    "may not be written on Windows": ["a*", "what?", 'say"so"', "a<b", "a>b", "a|b", "*", "<>"],
    "is nothing": ["", " ", "\t", "\u3000", "...", "\u200d", "\u3164", "\ufeff"],
    "is hidden, or is lost at its end on Windows": [
        *(".hidden", ".git", "..a", "end.", "a..", "end ", " a", " .", "a\u00a0", "a\u2003", "a. "),
        *("a\u200d", "\u200ca"),
    ],
    "moves the cursor or ends the line": [
        *("\x1b[2J", "\x1b]0;title\x07", "a\nb", "a\rb", "a\x08b", "a\x7fb", "a\x9bb", "a\x00b"),
        *("\x00", "a\x0bb", "a\x0cb", "a\x85b", "a\u2028b", "a\u2029b", "\x1b]8;;http://x\x1b\\a"),
    ],
    "turns the direction of what follows": [
        *(f"a{character}gpj.exe" for character in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"),
        *("a\u202cb", "a\u2069b", "a\u200eb", "a\u200fb", "a\u061cb"),
    ],
    "cannot be seen": [
        *(f"a{character}b" for character in "\u200b\u2060\u2061\u2064\ufeff\u00ad\u180e\u034f"),
        *("a\u115fb", "a\uffa0b", "a\u17b4b", "a\ufff9b", "a\U000e0041b", "a\U000e0001b"),
    ],
    "is no text": ["a\ud800", "\udcff", "a\udc80b", "\udbff", "a\ufffe", "a\uffff", "\U0010ffff"],
    "is nobody's character, or somebody's own": ["\ue000", "a\uf03ab", "\u0378", "\U000f0000"],
    "is a device on Windows": [
        *("CON", "con", "Con", "con.txt", "CON.tar.gz", "PRN", "prn.x", "AUX", "aUx.hdf5", "NUL"),
        *("nul", "NUL .txt", "nul  .x", "COM1", "com9.csv", "LPT1", "lpt9.x", "COM0", "LPT0"),
        *("COM\u00b9", "com\u00b2.x", "LPT\u00b3", "CONIN$", "conout$", "CONOUT$.x"),
    ],
    "is too long": [
        *("a" * 129, "\u00e9" * 65, "\u4e2d" * 43, "\U0001f600" * 33, "a" * 100_000),
        *("e\u0301" * 65, "\ufb2c" * 30, "\u1e9b\u0323" * 100_000),
    ],
    "is not a str": [None, 7, 1.5, True, b"name", ["a"], ("a",), {"a": 1}, object()],
}
HOSTILE = [(name, reason) for reason, names in REASONS.items() for name in names]
HOSTILE_TEXTS: list[str] = [name for name, _ in HOSTILE if isinstance(name, str)]

HARMLESS = [
    # names that look like ours: every file of a name has an extension, so none takes our place
    *("journal", "base", "lock", "interrupted", "timing", "trials", "manifest", "trials.csv"),
    *(
        "manifest.json",
        "timing.csv",
        "emg.hdf5",
        "ica.pkl",
        "000001.segment",
        "name_run-02",
        "x.csv",
    ),
    *("journal.trash", "emg.building", "answer.json", "publish.lock", "p0", "data"),
    # spaces, marks and what shells, spreadsheets and formats love
    *("a b", "a.b", "-rf", "--", "~", "$HOME", "`id`", "$(id)", "%00", "%2e%2e", "100%", "a'b"),
    *("(1)", "[x]", "{}", "#1", "a&b", "a;b", "=1+1", "@SUM(A1)", "+1", "nan", "None", "1e5", "!"),
    # almost devices
    *("COM10", "COM", "CONSOLE", "x.CON", "LPT", "AUXILIARY", "nul_", "COM\u2074"),
    # any script
    *("\u00e9", "M\u00fcller", "\u4e2d\u6587", "\u65e5\u672c\u8a9e", "\u0928\u092e\u0938\u094d"),
    *(
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u03a3\u03c2",
    ),
    *(
        "\u043f\u0440\u0438\u0432\u0435\u0442",
        "\ud55c\uad6d\uc5b4",
        "\u0e44\u0e17\u0e22",
        "na\u00efve",
    ),
    # emoji, and characters that only look like separators: no system takes them for one
    *("\U0001f600", "\u2764\ufe0f", "a\uff0fb", "a\u2215b", "a\u29f5b", "a\uff1ab", "\uff0e\uff0e"),
    *("\u2024\u2024", "a\u2044b"),
    # letters that change when their case does
    *("\u00df", "\u0130", "\u0131", "\u212a", "\u017f", "\ufb00", "\u0345a", "\u01c5"),
    *("a" * 128, "\u00e9" * 64, "e\u0301" * 64),
]


def shown(names: Sequence[str]) -> list[str]:
    """Names as those of tests."""
    return [f"{number}: {name!a:.30}" for number, name in enumerate(names)]


class Seen(NamedTuple):
    """What is on disk: every entry, and what regular files hold."""

    entries: dict[str, int]


def tree(*folders: Path) -> Seen:
    """Everything below some folders, hidden files and their bytes too."""
    return Seen(
        {
            f"{path!s}": zlib.crc32(path.read_bytes()) if path.is_file() else -1
            for folder in folders
            for path in sorted(folder.rglob("*"))
        }
    )


def is_ours(error: StorageError) -> bool:
    """Whether a message is fit for a terminal and not longer than a person reads."""
    return str(error).isprintable() and len(str(error)) < 1000


def test_there_are_enough_of_them() -> None:
    """At least a hundred different hostile names, and no harmless one among them."""
    assert len({repr(name) for name, _ in HOSTILE}) >= 100
    assert not set(HOSTILE_TEXTS) & set(HARMLESS)


# --- given by the caller --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Storage that stays open."""
    with open_lab(tmp_path_factory.mktemp("lab") / "data") as lab:
        yield lab


async def test_every_hostile_name_is_refused_everywhere_and_nothing_is_made(tmp_path: Path) -> None:
    """Subject, task, array and pickle: InvalidName, fit to print, and the disk is as it was."""
    root = tmp_path / "data"
    async with open_task(root, "other") as task, Storage(root) as storage:
        await task.write({"n": 1})
        await task.pickle({}, "known")
        await task.flush()
        await task.publish()
        before = await anyio.to_thread.run_sync(tree, tmp_path)
        for name, reason in HOSTILE:
            given: Any = name

            storage.subject_id = "p0"
            calls: dict[str, Callable[[], object]] = {
                "subject": partial(setattr, storage, "subject_id", given),
                "create": partial(storage.create_task, given),
                "repeat": partial(storage.create_task, given, repeat=True),
                "resume": partial(storage.resume_task, given),
                "require": partial(storage.require_task, given),
                "append": partial(task.append_nowait, given, np.zeros(3)),
                "write": partial(task.write_nowait, WithArray(given)),
            }
            if not isinstance(given, (list, dict)):
                declared = {given: ArrayInfo()}
                calls["declare"] = partial(storage.create_task, "new", arrays=declared)
            for what, call in calls.items():
                with pytest.raises(StorageError) as caught:
                    call()
                assert isinstance(caught.value, InvalidName), (what, reason, name)
                assert is_ours(caught.value), (what, reason, name)
            with pytest.raises(InvalidName) as refused:
                await task.pickle({}, given)
            assert is_ours(refused.value)
        assert await anyio.to_thread.run_sync(tree, tmp_path) == before


class WithArray:
    """A trial with one array of any name."""

    def __init__(self, name: Any) -> None:
        self.attrs = {"n": 2}
        self.arrays = Named(name)


class Named(dict[Any, Any]):
    """A dict of one array, whose name need not be hashable."""

    def __init__(self, name: Any) -> None:
        super().__init__()
        self.name = name

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter([self.name])

    def keys(self) -> Any:
        return [self.name]

    def values(self) -> Any:
        return [np.zeros(3)]

    def items(self) -> Any:
        return [(self.name, np.zeros(3))]

    def __getitem__(self, name: Any) -> Any:
        return np.zeros(3)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS, ids=shown(HARMLESS))
def test_a_harmless_name_comes_back(lab: Lab, name: str) -> None:
    """Task, array and pickle of any reasonable name are recorded, listed, read and archived."""
    normal = unicodedata.normalize("NFC", name)
    task_name = normal if len(normal.encode()) < 128 else normal[:-1]
    shutil.rmtree(lab_root(lab) / "p0", ignore_errors=True)
    with lab.create(task_name, arrays={name: ArrayInfo()}) as task:
        task.append(name, np.arange(3.0))
        task.write({"n": 1})
        task.pickle([name], name)
    storage = StorageReader(lab_root(lab))
    storage.subject_id = "p0"
    assert task_name in storage.task_ids
    reader = storage.require_task(task_name)
    assert reader.array_names == [normal]
    assert reader.array(name.strip() and normal, trial=0).tolist() == [0, 1, 2]
    assert reader.pickle(name) == [name]
    archive = storage_to_zip(lab_root(lab))
    with zipfile.ZipFile(archive) as found:
        assert f"data/p0/{task_name}/{normal}.hdf5" in found.namelist()


def lab_root(lab: Lab) -> Path:
    return lab._storage.root


@pytest.mark.parametrize("name", HARMLESS, ids=shown(HARMLESS))
async def test_a_harmless_subject_is_listed(tmp_path: Path, name: str) -> None:
    """A subject of any reasonable name is one folder, by its name in NFC."""
    normal = unicodedata.normalize("NFC", name)
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = name
        await anyio.to_thread.run_sync(make_subject, tmp_path / "data" / normal)
        assert await anyio.to_thread.run_sync(lambda: storage.subject_ids) == [normal]
        assert storage.subject_id == normal


def make_subject(folder: Path) -> None:
    (folder / "reach").mkdir(parents=True)


# --- two names that become one --------------------------------------------------------------------

#: Pairs that HFS+, APFS or NTFS take for one name, though not all of them on every version.
TWINS = [
    *[
        ("reach", "REACH"),
        ("stra\u00dfe", "STRASSE"),
        ("stra\u00dfe", "stra\u1e9ee"),
        ("\u212a", "k"),
    ],
    *[
        ("\u0130x", "i\u0307x"),
        ("\ufb00", "FF"),
        ("\u017fet", "set"),
        ("\u03c3a\u03c2", "\u03a3A\u03a3"),
    ],
    *[
        ("\u1fb3", "\u0391\u0399"),
        ("\u01c4", "\u01c6"),
        ("re\u200cach", "reach"),
        ("\u00c9", "e\u0301"),
    ],
]
#: Not letters of one another, whatever they look like: two names.
DIFFERENT = [("\u0131x", "ix"), ("a\uff0fb", "a\u2215b"), ("\u0430", "a"), ("o", "0"), ("l", "I")]


@pytest.mark.parametrize(("name", "twin"), TWINS)
async def test_a_twin_is_refused_wherever_it_would_meet_the_other(
    tmp_path: Path, name: str, twin: str
) -> None:
    """What some systems would mix up is refused: subjects, tasks, arrays, pickles; both named."""
    root = tmp_path / "data"
    async with open_task(root, name, name) as task:
        await task.append(name, np.zeros(3))
        await task.pickle(1, name)
        with pytest.raises(InvalidName, match="case"):
            await task.append(twin, np.zeros(3))
        with pytest.raises(InvalidName, match="case"):
            await task.pickle(2, twin)
        await task.write({"n": 1})
        before = await anyio.to_thread.run_sync(folders_below, root)
    async with Storage(root, allow_overwrite=True) as storage:
        storage.subject_id = twin
        with pytest.raises(InvalidName, match="case"):
            await storage.create_task("other")
        storage.subject_id = name
        with pytest.raises(InvalidName, match="case"):
            await storage.create_task(twin)
        with pytest.raises(InvalidName, match="case"):
            _ = storage.create_task("other", arrays={name: ArrayInfo(), twin: ArrayInfo()})
    assert await anyio.to_thread.run_sync(folders_below, root) == before
    assert reader_of(root, name, name).pickle(name) == 1


def folders_below(root: Path) -> list[str]:
    return sorted(str(path) for path in root.glob("*/*"))


async def test_one_name_twice_among_declarations_is_refused(tmp_path: Path) -> None:
    """Two spellings of one array cannot be declared: one declaration would be lost."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        with pytest.raises(InvalidName, match="same name"):
            _ = storage.create_task(
                "t", arrays={"\u00e9": ArrayInfo(), "e\u0301": ArrayInfo(rate=1.0)}
            )


@pytest.mark.parametrize(("name", "other"), DIFFERENT)
async def test_names_that_only_look_alike_are_two(tmp_path: Path, name: str, other: str) -> None:
    """What no system mixes up stays allowed."""
    async with open_task(tmp_path / "data") as task:
        for one in (name, other):
            await task.append(one, np.zeros(3))
            await task.pickle(one, one)
        await task.write({"n": 1})
    reader = reader_of(tmp_path / "data")
    assert [reader.pickle(one) for one in (name, other)] == [name, other]


async def test_a_folder_in_the_other_normal_form_is_the_same_subject_and_task(
    tmp_path: Path,
) -> None:
    """Data that came from a Mac is gone on with where it lies, not beside it."""
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    root = tmp_path / "data"
    async with open_task(root, composed, composed) as task:
        await task.write({"n": 1})

    def as_on_a_mac() -> None:
        (root / composed / composed).rename(root / composed / decomposed)
        (root / composed).rename(root / decomposed)

    await anyio.to_thread.run_sync(as_on_a_mac)
    async with Storage(root) as storage:
        storage.subject_id = composed
        with pytest.raises(TaskExists):
            await storage.create_task(decomposed)
        async with storage.resume_task(composed) as task:
            await task.write({"n": 2})
    assert len(reader_of(root, composed, composed).trials) == 2
    assert await anyio.to_thread.run_sync(folders_below, root) == [
        f"{root / decomposed / decomposed}"
    ]


# --- found on disk and in archives ----------------------------------------------------------------


def fits_on_disk(name: str) -> bool:
    """Whether a folder on Linux can be called so (PEP 383: undecodable bytes are U+DC80 on)."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name.strip("./") == name and not {"/", "\0"} & set(name) and 0 < len(encoded) < 250


ON_DISK = [name for name in HOSTILE_TEXTS if fits_on_disk(name)]


@pytest.mark.parametrize("name", ON_DISK, ids=shown(ON_DISK))
def test_a_hostile_name_on_disk_is_told_and_not_listed(tmp_path: Path, name: str) -> None:
    """A folder that somebody else has made is left out with a warning that is safe to print."""
    root = tmp_path / "data"
    (root / "good" / "task").mkdir(parents=True)
    (root / "good" / name).mkdir()
    (root / name).mkdir()
    storage = StorageReader(root)
    with pytest.warns(UserWarning, match="left out") as warned:
        assert storage.subject_ids == ["good"]
    storage.subject_id = "good"
    with pytest.warns(UserWarning, match="left out") as warned_again:
        assert storage.task_ids == ["task"]
    for warning in (*warned, *warned_again):
        assert str(warning.message).isprintable()
    with pytest.raises(InvalidName):
        storage.require_task(name)


#: Up to what file systems hold: our own files have names longer than those we take.
IN_ARCHIVES = [
    name
    for name in ON_DISK
    if len(unicodedata.normalize("NFC", name).encode("utf-8", "replace")) <= 128
]


@pytest.mark.parametrize("name", IN_ARCHIVES, ids=shown(IN_ARCHIVES))
def test_a_hostile_name_stops_the_archive(tmp_path: Path, name: str) -> None:
    """What could not be unpacked, or not in its place, is refused; no archive is left."""
    root = tmp_path / "data"
    (root / "good").mkdir(parents=True)
    (root / "good" / name).write_bytes(b"")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="rename it") as caught:
        storage_to_zip(root)
    assert is_ours(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("name", "twin"), TWINS)
def test_twins_stop_the_archive(tmp_path: Path, name: str, twin: str) -> None:
    """Where it is unpacked, one file would replace the other: both are named instead."""
    root = tmp_path / "data"
    root.mkdir()
    (root / name).write_bytes(b"1")
    (root / twin).mkdir()
    with pytest.raises(StorageError, match="differ in case only") as caught:
        storage_to_zip(root)
    assert repr(name) in str(caught.value)
    assert repr(twin) in str(caught.value)


@pytest.mark.parametrize("name", HOSTILE_TEXTS, ids=shown(HOSTILE_TEXTS))
def test_a_manifest_with_a_hostile_array_is_refused(name: str) -> None:
    """Names in a manifest become file names, so they are under the same rule."""
    described = manifest.Manifest("complete", "p0", "t", arrays={name: manifest.ArrayRecord({}, 1)})
    with pytest.raises(StorageError) as caught:
        manifest.decode(described.encode(), Path(layout.MANIFEST))
    assert is_ours(caught.value)


async def test_the_task_s_name_in_a_manifest_leads_nowhere(tmp_path: Path) -> None:
    """Where segments go when a disk fails is told by the folder's name, not by the file in it."""
    root = tmp_path / "data"
    async with open_task(root) as task:
        await task.write({"n": 1})

    def forge() -> None:
        found = manifest.read(root / "p0" / "reach")
        assert found is not None
        found.task = "../../../outside"
        (root / "p0" / "reach" / layout.MANIFEST).write_bytes(found.encode())

    await anyio.to_thread.run_sync(forge)
    async with Storage(root, fallback_root=tmp_path / "fallback", keep_journal=True) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            await task.write({"n": 2})
    segment = next((root / "p0" / "reach" / "journal").glob("*.segment")).read_bytes()
    expected = f"{tmp_path / 'fallback' / 'p0' / 'reach' / 'journal'}-"
    assert f'"fallback":"{expected}'.encode() in segment


def test_names_in_a_file_are_asked_for_and_never_followed(tmp_path: Path) -> None:
    """A task without our manifest lists only arrays whose names are legal."""
    task = tmp_path / "data" / "p0" / "t"
    task.mkdir(parents=True)
    (task / "trials.csv").write_bytes(b"n\n1\n")
    for name in ON_DISK:
        (task / f"{name}.hdf5").write_bytes(b"")
    assert reader_of(tmp_path / "data", "t").array_names == []
    with pytest.raises(TaskNotFound):
        reader_of(tmp_path / "data", "other")
