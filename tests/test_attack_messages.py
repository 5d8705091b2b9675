"""Text that steers a terminal, in every place where a stranger can put it.

Data comes back as it was recorded, whatever it is. But no message, warning or output of a command
hands it on to a terminal: escapes, line ends and what turns the direction of writing are shown.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import h5py
import numpy as np
import pytest
from rich.console import Console

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import SEALED, TASK_FILES, frames_of, join, sealed_segment, split
from tests.helpers import open_lab, open_task, reader_of
from trialstore import (
    Design,
    InvalidTrial,
    Storage,
    StorageError,
    StorageReader,
    TaskReader,
    read_hdf5,
)
from trialstore._cli import report
from trialstore._errors import printable
from trialstore._ondisk import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Clears the screen, sets a title, rings, turns the direction, ends the line, opens a link.
EVIL = "\x1b[2J\x1b]0;owned\x07\u202egpj\n\r\u2028\x9b31m\x1b]8;;http://x\x1b\\[bold]\x7f"
#: As much of it as the name of a file may hold on Linux.
EVIL_NAME = EVIL.replace("/", ":").replace("\\", "")


def is_safe(text: str, *, lines: bool = False) -> bool:
    """Whether a terminal shows `text` as it is; a report may have lines."""
    return (text.replace("\n", "") if lines else text).isprintable()


def told(action: Callable[..., object], *arguments: Any, **options: Any) -> str | None:
    """What an action is refused with, and what it warns of, joined; None if neither."""
    words: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            action(*arguments, **options)
        except StorageError as error:
            words.append(str(error))
    words += [str(warning.message) for warning in caught]
    return "\n".join(words) if words else None


def test_the_attack_is_one() -> None:
    """The text above is not safe, and what it becomes is."""
    assert not is_safe(EVIL, lines=True)
    assert is_safe(printable(EVIL))
    assert "\x1b" not in str(StorageError(EVIL))
    assert printable("plain \u4e2d\u6587 text") == "plain \u4e2d\u6587 text"


# --- what the experiment hands over ---------------------------------------------------------------


async def test_what_is_recorded_comes_back_and_what_is_refused_is_shown(tmp_path: Path) -> None:
    """Values and metadata are data; names are refused, in a message that is safe."""
    root = tmp_path / "data"
    async with open_task(root, metadata={EVIL: [EVIL]}) as task:
        await task.write({"said": EVIL, "list": [EVIL, {EVIL: 1}]})
        await task.pickle({EVIL: EVIL}, "ica")
        for attrs in ({EVIL: 1}, {"x": object()}, {"x": np.array([EVIL])}, {"x": {EVIL: {1}}}):
            with pytest.raises(InvalidTrial) as caught:
                await task.write(attrs)
            assert is_safe(str(caught.value))
        for chunk in ([EVIL], np.array([EVIL]), object(), [[1], [1, 2]], {EVIL: 1}):
            refusal = told(task.append_nowait, "emg", chunk)
            assert refusal is not None
            assert is_safe(refusal)
    reader = reader_of(root)
    assert reader.metadata == {EVIL: [EVIL]}
    assert reader.trials["said"].tolist() == [EVIL]
    assert reader.pickle("ica") == {EVIL: EVIL}
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        for metadata in ({"x": object()}, {"x": {EVIL: float("nan")}}, {"x": {1, 2}}):
            refusal = told(storage.create_task, "t", metadata=metadata)
            assert refusal is not None
            assert is_safe(refusal)


async def test_the_experiments_own_traceback_is_kept_and_not_printed(tmp_path: Path) -> None:
    """An exception with such a message leaves as itself; what we keep of it is data."""

    class OwnError(Exception):
        pass

    with pytest.raises(OwnError) as caught:
        async with open_task(tmp_path / "data") as task:
            await task.write({"n": 1})
            raise OwnError(EVIL)
    assert caught.value.args == (EVIL,)
    assert reader_of(tmp_path / "data").status == "interrupted"


def test_designs_and_names_are_shown_by_their_repr() -> None:
    """Objects of ours in a message, a log or a notebook show what they hold."""
    trial = Design().add_block().add_trial(attrs={"x": EVIL})
    for shown in (repr(trial), repr(StorageReader(EVIL)), repr(Storage(EVIL))):
        assert "\x1b" not in shown
        assert "\u202e" not in shown


# --- what a stranger's task holds -----------------------------------------------------------------


def questions(task: Path) -> Iterator[Callable[[], object]]:
    """Everything that can be asked of a task."""
    reader = TaskReader(task)
    yield lambda: repr(reader)
    for name in ("status", "trials", "timing", "array_names", "metadata", "losses"):
        yield partial(getattr, reader, name)
    for array in ("emg", EVIL):
        yield partial(reader.info, array)
        yield partial(reader.array, array)
        for trial in (0, 1, 2, 99):
            yield partial(reader.array, array, trial=trial)
    yield lambda: list(reader.follow())
    yield lambda: reader.pickle("ica")
    yield lambda: repr(reader.losses)
    storage = StorageReader(task.parents[1])
    storage.subject_id = task.parent.name
    yield storage.catalogue


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every leaf and of every key of a JSON value."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def with_evil(value: Any, path: tuple[Any, ...], evil: Any, *, as_key: bool) -> Any:
    """Copy a JSON value with the node at a path, or its key, replaced."""
    if not path:
        return evil
    copied = dict(value) if isinstance(value, dict) else list(value)
    key, *rest = path
    if as_key and not rest and isinstance(copied, dict):
        copied[EVIL] = copied.pop(key)
    else:
        copied[key] = with_evil(value[key], tuple(rest), evil, as_key=as_key)
    return copied


def sealed_manifest(values: dict[str, Any]) -> bytes:
    values = {key: value for key, value in values.items() if key != "checksum"}
    body = json.dumps(values).encode().rstrip(b"}")
    return body + b',\n  "checksum": "crc32:%08x"\n}\n' % zlib.crc32(body)


def task_parts() -> list[bytes]:
    return split(next(s for s in seeds("task") if s[:1] == SEALED)[1:], len(TASK_FILES))


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        if data:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


LOSS = {
    "trials": [1],
    "what": f"array 'emg' {EVIL}",
    "kind": "damaged",
    "file": EVIL,
    "byte_range": None,
    "evidence": EVIL,
}


@pytest.mark.slow
def test_no_text_of_a_manifest_reaches_a_message(tmp_path: Path) -> None:
    """Each leaf and each key of a manifest in turn is hostile, and the checksum right."""
    files = dict(zip(TASK_FILES, task_parts(), strict=True))
    values = json.loads(files[layout.MANIFEST])
    values["losses"] = [LOSS]
    del values["arrays"]["emg"]["trials"][1]
    task = lay(tmp_path / "p0" / "t", files)
    attacks = [(path, as_key) for path in leaves(values) for as_key in (False, True)]
    for path, as_key in [((), None), *attacks]:
        for evil in (EVIL, [EVIL]):
            changed = values if as_key is None else with_evil(values, path, evil, as_key=as_key)
            if isinstance(changed, dict):
                (task / layout.MANIFEST).write_bytes(sealed_manifest(changed))
                for question in questions(task):
                    words = told(question)
                    assert words is None or is_safe(words, lines=True), (path, words)
            if as_key or as_key is None:
                break


@pytest.mark.slow
def test_no_text_of_a_journal_reaches_a_message(tmp_path: Path) -> None:
    """Each leaf and each key of each frame in turn is hostile, and the checksums right."""
    described = split(next(s for s in seeds("journal") if s[:1] == SEALED)[1:], 2)[0]
    frames = frames_of(described)
    loss = (b"\x03\x00", json.dumps({"losses": [LOSS]}).encode(), b"")
    frames.insert(len(frames) - 1, loss)
    kinds: set[int] = set()
    for at, (head, meta, body) in enumerate(frames):
        if head[0] in kinds:
            continue  # one of each type is enough
        kinds.add(head[0])
        values = json.loads(meta)
        for path in leaves(values):
            for as_key in (False, True):
                changed = with_evil(values, path, EVIL, as_key=as_key)
                hostile = [
                    *frames[:at],
                    (head, json.dumps(changed).encode(), body),
                    *frames[at + 1 :],
                ]
                segment = sealed_segment(b"".join(h + join(m, b) for h, m, b in hostile))
                task = lay(tmp_path / "p0" / "t", {f"journal/{layout.segment_name(1)}": segment})
                for question in questions(task):
                    words = told(question)
                    assert words is None or is_safe(words, lines=True), (at, path, words)


FOREIGN: dict[str, dict[str, bytes]] = {
    "header": {"trials.csv": f"{EVIL},b\n1,2\n".encode()},
    "cells": {"trials.csv": f'a,b\n"{EVIL}",{EVIL}\n1,2,3,4\n'.encode()},
    "too many fields": {"trials.csv": f"a\n1\n{EVIL},{EVIL},{EVIL}\n".encode()},
    "no table": {"trials.csv": b"\n"},
    "no text": {"trials.csv": b"\xff\xfe\x1b[2J"},
    "no end": {"trials.csv": b'a\n"\x1b[2J'},
    "numbers": {"trials.csv": f"a\n1e999999999\n{'9' * 5000}\n{EVIL}\n".encode()},
    "manifest": {"trials.csv": b"a\n1\n", "manifest.json": EVIL.encode()},
    "manifest of another": {
        "trials.csv": b"a\n1\n",
        "manifest.json": json.dumps({EVIL: 1}).encode(),
    },
    "newer manifest": {
        "manifest.json": b'{"format": "trialstore", "version": %d}' % 10**30,
    },
    "array": {"trials.csv": b"a\n1\n", "emg.hdf5": EVIL.encode()},
    "pickle": {"trials.csv": b"a\n1\n", "ica.pkl": b"c\x1b[2J\n\x1b[2J\n."},
    "pickle of text": {"trials.csv": b"a\n1\n", "ica.pkl": EVIL.encode()},
    "lock": {
        "journal/lock": json.dumps(
            {"host": EVIL, "pid": 1, "since": EVIL, "role": "recorder"}
        ).encode()
    },
    "answer": {"journal/answer.json": json.dumps({"request": 1, "error": EVIL}).encode()},
    "segment": {"journal/000001.segment": EVIL.encode() * 50},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_text_of_a_strangers_file_reaches_a_message(tmp_path: Path, what: str) -> None:
    """Tables, headers, locks, answers and files that are none: what is wrong is told safely."""
    task = lay(tmp_path / "p0" / "t", FOREIGN[what])
    for question in questions(task):
        words = told(question)
        assert words is None or is_safe(words, lines=True), words


def test_no_name_in_an_hdf5_file_reaches_a_message(tmp_path: Path) -> None:
    """HDF5 quotes names of datasets, links and types in what it says of them."""
    path = tmp_path / "x.hdf5"
    name = EVIL.replace("/", "")
    with h5py.File(path, "w") as file:
        file[name] = h5py.SoftLink(f"/{name}x")
        file.create_group("group").attrs[name] = EVIL
        file["text"] = EVIL
        file.attrs["unit"] = EVIL
        file.create_dataset("enum", (2,), h5py.enum_dtype({name: 1, "b": 2}), chunks=(1,))
        file.create_dataset("fields", (10**9,), np.dtype([(name, "f8")]), chunks=(1,))
    for asked in (name, f"{name}/x", "group", f"group/{name}", "text", "fields", EVIL, "enum"):
        words = told(read_hdf5, path, asked)
        assert words is None or is_safe(words), words
    for wrong in (tmp_path / EVIL_NAME, tmp_path / "\x1b[2J" / "x"):
        words = told(read_hdf5, wrong)
        assert words is not None
        assert is_safe(words)


async def test_an_answer_that_was_planted_is_shown_safely(tmp_path: Path) -> None:
    """What the publisher answers comes through a file, which may be somebody else's."""
    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 1})
        await task.flush()

        def plant() -> None:
            text = json.dumps({"request": 1, "error": EVIL})
            (task.root / "journal" / "answer.json").write_text(text)

        await anyio.to_thread.run_sync(plant)
        words = ""
        try:
            await task.publish()
        except StorageError as error:
            words = str(error)
        assert is_safe(words, lines=True)


# --- what commands print --------------------------------------------------------------------------


@pytest.fixture
def hostile_root(tmp_path: Path) -> Path:
    """A root with everything above in it, and folders and files of hostile names."""
    root = tmp_path / "data"
    for number, files in enumerate(FOREIGN.values()):
        lay(root / "p0" / f"t{number}", files)
    parts = dict(zip(TASK_FILES, task_parts(), strict=True))
    values = json.loads(parts[layout.MANIFEST])
    values["losses"], values["traceback"], values["metadata"] = [LOSS], EVIL, {EVIL: EVIL}
    parts[layout.MANIFEST] = sealed_manifest(values)
    lay(root / "p0" / EVIL_NAME, parts)
    lay(root / EVIL_NAME / "t[/x]", parts)
    for name in (EVIL_NAME, f"{EVIL_NAME}.hdf5", f"{EVIL_NAME}.pkl", f".{EVIL_NAME}.building"):
        (root / "p0" / EVIL_NAME / name).write_bytes(b"")
    trash = tmp_path / "data.trash" / EVIL_NAME
    lay(trash / f"{EVIL_NAME}.20240501T000000-00000000", parts)
    return root


@pytest.mark.slow
@pytest.mark.leaves_files
@pytest.mark.parametrize(
    "command",
    [["check"], ["check", "--json"], ["recover", "--dry-run"], ["prune", "--dry-run"], ["recover"]],
    ids=" ".join,
)
@pytest.mark.parametrize("target", ["root", "task"])
def test_no_command_prints_what_steers_a_terminal(
    hostile_root: Path, command: list[str], target: str
) -> None:
    """Both streams hold printable characters and ends of lines, and no traceback."""
    path = hostile_root if target == "root" else hostile_root / "p0" / EVIL_NAME
    done = subprocess.run(
        [sys.executable, "-m", "trialstore", *command, str(path)],
        capture_output=True,
        timeout=60,
        check=False,
        env={key: value for key, value in os.environ.items() if "COLOR" not in key},
    )
    for stream in (done.stdout, done.stderr):
        text = stream.decode()
        assert is_safe(text, lines=True), text
        assert "Traceback" not in text, text
    assert done.stdout


def test_the_demos_report_shows_files_and_cells_as_text(tmp_path: Path) -> None:
    """Neither a name beside the data nor a cell is obeyed, by the terminal or as markup."""
    with open_lab(tmp_path / "data") as lab, lab.create("reach") as task:
        task.write({"note": f"[link=http://x]{EVIL}[/nonsense]", "n": 1})
    (task.root / EVIL_NAME).write_bytes(b"")
    (task.root / "[red]").mkdir()
    (task.root / "out").symlink_to("/")
    out = io.StringIO()
    console = Console(file=out, width=400)
    console.print(report.trials_table(TaskReader(task.root).trials))
    plan: Any = type("Plan", (), {"root": tmp_path / EVIL_NAME, "takes": [], "samples": 0})
    console.print(report.files(plan, task.root))
    console.print(report.verdict(plan, [EVIL]))
    shown = out.getvalue()
    assert is_safe(shown, lines=True)
    assert "[link=http://x]" in shown
    assert "[red]" in shown


# --- spreadsheets ---------------------------------------------------------------------------------

FORMULAS = [
    '=HYPERLINK("http://x","y")',
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "=cmd|' /C calc'!A0",
]


def test_trials_csv_stays_exactly_as_recorded(tmp_path: Path) -> None:
    """A cell that a spreadsheet would run stays what it is: the file is data, not a document."""
    with open_lab(tmp_path / "data") as lab, lab.create("reach") as task:
        for formula in FORMULAS:
            task.write({"=A1": formula})
    text = (task.root / "trials.csv").read_bytes().decode()
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert rows == [["=A1"], *([formula] for formula in FORMULAS)]
    assert "\n=1+1\n" in text
    assert TaskReader(task.root).trials["=A1"].tolist() == FORMULAS
