"""What people do to a data folder: each gives a message that names the file and what is whole.

Reading, checking and resuming are tried after each. What was not touched reads as ever.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import anyio
import h5py
import numpy as np
import pandas as pd
import pytest

from tests.helpers import open_lab, reader_of
from tests.journals import Recording
from tests.upkeeping import cut_off, published, samples, snapshot
from trialstore import (
    DamagedData,
    FormatError,
    InvalidTrial,
    Storage,
    StorageError,
    StorageReader,
    storage_to_zip,
    upkeep,
)
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.entries import TrialCommit
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trialstore.upkeep import TaskReport


def checked(root: Path, name: str = "reach", subject: str = "p0") -> TaskReport:
    """Check one task."""
    (report,) = upkeep.check(root / subject / name).tasks
    return report


def resume(root: Path, name: str = "reach", subject: str = "p0") -> None:
    """Take a task up, add trial 4 and close it."""

    async def add() -> None:
        async with Storage(root) as storage:
            storage.subject_id = subject
            async with storage.resume_task(name) as task:
                await task.append("emg", samples(4))
                receipt = await task.write({"n": 4, "code": "007"})
                assert receipt.index == 4

    anyio.run(add)


def is_whole(root: Path, trials: int, name: str = "reach", subject: str = "p0") -> bool:
    """Whether every trial reads as it was recorded, and the check agrees."""
    reader = reader_of(root, name, subject)
    assert reader.trials["n"].tolist() == list(range(trials))
    assert reader.trials["code"].tolist() == ["007"] * trials
    for number, array in enumerate(reader.iterarray("emg")):
        assert array is not None
        assert array.tolist() == samples(number).tolist()
    report = checked(root, name, subject)
    return report.exit_code == 0 and report.recovered == trials


# --- renaming, moving, merging --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("what", ["task", "subject", "root"])
def test_renaming_while_nothing_runs(tmp_path: Path, what: str) -> None:
    """It reads, resumes and publishes under its new name, and the manifest then has that name."""
    root = tmp_path / "data"
    published(root)
    names = {"root": "data", "subject": "p0", "task": "reach"} | {what: "renamed"}
    if what == "task":
        (root / "p0/reach").rename(root / "p0/renamed")
    elif what == "subject":
        (root / "p0").rename(root / "renamed")
    else:
        root.rename(tmp_path / "renamed")
    root, place = tmp_path / names["root"], (names["task"], names["subject"])
    assert is_whole(root, 4, *place)
    remarks = [remark.text for remark in checked(root, *place).remarks]
    assert (what == "root") == (remarks == [])
    assert all("task 'reach' of subject 'p0'" in remark for remark in remarks)
    resume(root, *place)
    assert is_whole(root, 5, *place)
    described = manifest.read(root / names["subject"] / names["task"])
    assert described is not None
    assert (described.subject, described.task) == (names["subject"], names["task"])
    assert checked(root, *place).remarks == ()


@pytest.mark.slow
def test_renaming_what_was_cut_off(tmp_path: Path) -> None:
    """A journal follows its folder: read, recovered or resumed, it is that of the new name."""
    root = tmp_path / "data"
    cut_off(root)
    (root / "p0/reach").rename(root / "p0/a")
    shutil.copytree(root / "p0/a", root / "p0/b")
    assert is_whole(root, 4, "a")
    upkeep.recover(root / "p0/a")
    resume(root, "b")
    assert is_whole(root, 4, "a")
    assert is_whole(root, 5, "b")


def test_two_tasks_merged(tmp_path: Path) -> None:
    """One folder dropped onto another: whichever manifest won, what is not its own is named."""
    root = tmp_path / "data"
    published(root, "a", trials=4)
    other = published(root, "b", trials=3, length=20)
    for path in other.iterdir():
        if path.name != "emg.hdf5":  # "skip" was answered
            path.replace(root / "p0/a" / path.name)
    report = checked(root, "a")
    assert {finding.file for finding in report.losses} == {"emg.hdf5"}
    assert [finding.trials for finding in report.losses] == [(0,), (1,), (2,)]
    assert any("'3'" in remark.text for remark in report.remarks)
    assert {part.file for part in report.whole} >= {"trials.csv", "key.hdf5"}
    reader = reader_of(root, "a")
    assert len(reader.trials) == 3
    with pytest.raises(DamagedData, match=r"emg\.hdf5.*trial 0"):
        reader.array("emg", trial=0)
    assert reader.array("key", trial=1).tolist() == [1]


def test_a_file_of_another_task_among_ones_own(tmp_path: Path) -> None:
    """Arrays and pickles that this task never had are told, and disturb nobody."""
    root = tmp_path / "data"
    published(root)
    other = published(root, "other")
    (other / "key.hdf5").rename(root / "p0/reach/eeg.hdf5")
    (other / "calibration.pkl").rename(root / "p0/reach/second.pkl")
    assert is_whole(root, 4)
    assert reader_of(root).array_names == ["emg", "key"]
    assert [remark.file for remark in checked(root).remarks] == ["eeg.hdf5", "second.pkl"]


# --- deleting -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trials.csv", "timing.csv", "emg.hdf5", "calibration.pkl"])
def test_deleting_a_published_file(tmp_path: Path, name: str) -> None:
    """Reading it says that the file is gone; all else reads; resuming refuses, or needs it not."""
    root = tmp_path / "data"
    task = published(root)
    (task / name).rename(tmp_path / name)
    reader = reader_of(root)
    asks: dict[str, Callable[[], Any]] = {
        "trials.csv": lambda: reader.trials,
        "timing.csv": lambda: reader.timing,
        "emg.hdf5": lambda: reader.array("emg", trial=1),
        "calibration.pkl": lambda: reader.pickle("calibration"),
    }
    with pytest.raises(DamagedData, match=name):
        asks.pop(name)()
    for ask in asks.values():
        ask()
    (finding,) = checked(root).losses
    assert (finding.kind, finding.file) == ("missing", name)
    if name == "calibration.pkl":
        resume(root)
        return
    before = snapshot(task)
    with pytest.raises(StorageError, match=name):
        resume(root)
    after = {file: digest for file, digest in snapshot(task).items() if "journal" not in file}
    assert after == before
    (tmp_path / name).rename(task / name)
    resume(root)
    assert is_whole(root, 5)


def test_deleting_the_manifest(tmp_path: Path) -> None:
    """Tables and arrays read as they lie there, with a warning; resuming refuses and says why."""
    root = tmp_path / "data"
    (published(root) / "manifest.json").unlink()
    reader = reader_of(root)
    with pytest.warns(UserWarning, match=r"manifest\.json.*gone"):
        assert reader.status == "foreign"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert reader.trials["n"].tolist() == [0, 1, 2, 3]
        assert reader.array("emg", trial=3).tolist() == samples(3).tolist()
    report = checked(root)
    assert report.exit_code == 1
    assert "manifest.json" in {doubt.file for doubt in report.doubts}
    assert {part.file for part in report.whole} == {"trials.csv", "emg.hdf5", "key.hdf5"}
    with pytest.raises(FormatError, match=r"manifest\.json"):
        resume(root)


def test_deleting_the_journal_of_a_task_that_was_cut_off(tmp_path: Path) -> None:
    """The manifest says that there was one: reader and check name it."""
    root = tmp_path / "data"
    recording = cut_off(root)
    described = manifest.Manifest("recording", "p0", "reach")
    (root / "p0/reach/manifest.json").write_bytes(described.encode())
    shutil.rmtree(recording.folder)
    with pytest.raises(DamagedData, match="journal"):
        _ = reader_of(root).trials
    (finding,) = checked(root).losses
    assert (finding.kind, finding.file) == ("missing", "journal")


def test_deleting_a_task_or_a_subject(tmp_path: Path) -> None:
    """What is not there is not listed, and the others are as they were."""
    root = tmp_path / "data"
    published(root, "a")
    shutil.rmtree(published(root, "b"))
    storage = StorageReader(root)
    storage.subject_id = "p0"
    assert storage.task_ids == ["a"]
    assert upkeep.check(root).exit_code == 0
    shutil.rmtree(root / "p0")
    assert storage.subject_ids == storage.task_ids == []


# --- editing --------------------------------------------------------------------------------------


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def semicolons(data: bytes) -> bytes:
    return data.replace(b",", b";").replace(b"\n", b"\r\n")


def spreadsheet(data: bytes) -> bytes:
    """What a spreadsheet writes that took codes for numbers."""
    return b"\xef\xbb\xbf" + data.replace(b"007", b"7").replace(b"\n", b"\r\n")


EDITS = [
    pytest.param(crlf, "CR LF; apart from that it is as it was published", id="crlf"),
    pytest.param(lambda d: b"\xef\xbb\xbf" + d, "byte order mark.*; apart from that", id="bom"),
    pytest.param(lambda d: d[:-1], "last line end.*; apart from that", id="end"),
    pytest.param(lambda d: b"\xef\xbb\xbf" + crlf(d)[:-2], "mark.*CR LF.*end", id="all"),
    pytest.param(semicolons, "CR LF.*semicolons", id="semicolons"),
    pytest.param(spreadsheet, "byte order mark.*CR LF", id="spreadsheet"),
    pytest.param(lambda d: d.replace(b"007", b"7"), "cells were edited", id="cells"),
    pytest.param(lambda d: d.replace(b"n,", b"m,"), r"columns are \['m'", id="column"),
    pytest.param(lambda d: d.replace(b'"', b"'"), "bytes were changed", id="bytes"),
    pytest.param(lambda d: d[: d.index(b"\n") + 1], "0 rows instead of 4", id="rows"),
    pytest.param(lambda _: b"", "empty", id="empty"),
    pytest.param(lambda d: bytes(len(d)), "zero bytes", id="zeros"),
]


@pytest.mark.parametrize(("edit", "said"), EDITS)
def test_editing_the_table(tmp_path: Path, edit: Callable[[bytes], bytes], said: str) -> None:
    """Reading refuses and names it, arrays read, the check says what was done, resuming refuses."""
    root = tmp_path / "data"
    path = published(root) / "trials.csv"
    path.write_bytes(edit(path.read_bytes()))
    reader = reader_of(root)
    with pytest.raises(DamagedData, match=r"trials\.csv.*edited.*spreadsheet"):
        _ = reader.trials
    assert reader.array("emg", trial=2).tolist() == samples(2).tolist()
    assert len(reader.timing) == 4
    (finding,) = checked(root).losses
    assert (finding.file, finding.trials) == ("trials.csv", (0, 1, 2, 3))
    assert pd.Series([finding.evidence]).str.contains(said, regex=True).all(), finding.evidence
    with pytest.raises(StorageError, match=r"trials\.csv"):
        resume(root)


def test_editing_the_manifest(tmp_path: Path) -> None:
    """A corrected name: nothing is read through it, and the check shows that the data is whole."""
    root = tmp_path / "data"
    path = published(root) / "manifest.json"
    path.write_text(path.read_text().replace("reach", "Reach"))
    with pytest.raises(DamagedData, match=r"manifest\.json.*edited"):
        _ = reader_of(root).trials
    with pytest.raises(DamagedData, match=r"manifest\.json.*edited"):
        resume(root)
    report = checked(root)
    assert [finding.file for finding in report.losses] == ["manifest.json"]
    files = {"trials.csv", "timing.csv", "calibration.pkl", "emg.hdf5", "key.hdf5"}
    assert {part.file for part in report.whole} == files


def test_editing_an_array(tmp_path: Path) -> None:
    """A trial "corrected" in an HDF5 viewer is refused; the others, and ``verify=False``, read."""
    root = tmp_path / "data"
    with h5py.File(published(root) / "emg.hdf5", "r+") as file:
        file["2"][0, 0] = 5.0
    reader = reader_of(root)
    with pytest.raises(DamagedData, match=r"emg\.hdf5.*trial 2"):
        reader.array("emg", trial=2)
    assert reader.array("emg", trial=2, verify=False)[0, 0] == 5.0
    assert reader.array("emg", trial=1).tolist() == samples(1).tolist()
    (finding,) = checked(root).losses
    assert (finding.file, finding.trials) == ("emg.hdf5", (2,))


# --- copying half ---------------------------------------------------------------------------------


def test_a_journal_copied_without_its_witness(tmp_path: Path) -> None:
    """The segment alone is enough for everything that is in it."""
    root = tmp_path / "data"
    recording = cut_off(root)
    (recording.folder / "000001.witness").unlink()
    (recording.folder / "lock").unlink()
    assert is_whole(root, 4)
    upkeep.recover(root)
    assert is_whole(root, 4)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
def test_half_of_a_journal(tmp_path: Path, part: float) -> None:
    """What came over is read; the trials that did not are named, before and after recovery."""
    root = tmp_path / "data"
    recording = cut_off(root, trials=8)
    segment = recording.folder / "000001.segment"
    os.truncate(segment, int(segment.stat().st_size * part))
    report = checked(root)
    count = report.recovered
    assert 0 < count < 8
    named = {trial for finding in report.losses for trial in finding.trials}
    assert named == set(range(count, 8))
    reader = reader_of(root)
    assert reader.trials["n"].tolist() == list(range(count))
    with pytest.raises(DamagedData, match=f"trial {count}"):
        reader.array("emg", trial=count)
    after = upkeep.recover(root).tasks[0]
    assert {trial for finding in after.losses for trial in finding.trials} == named
    assert reader_of(root).trials["n"].tolist() == list(range(count))


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_half_of_a_published_array(tmp_path: Path, size: int) -> None:
    """An interrupted copy: trials of that array are named, rows and other arrays read."""
    root = tmp_path / "data"
    task = published(root, length=300)
    os.truncate(task / "emg.hdf5", size)
    reader = reader_of(root)
    assert reader.trials["n"].tolist() == [0, 1, 2, 3]
    assert reader.array("key", trial=1).tolist() == [1]
    with pytest.raises(DamagedData, match=r"emg\.hdf5"):
        reader.array("emg", trial=3)
    named = {trial for finding in checked(root).losses for trial in finding.trials}
    assert named == {0, 1, 2, 3}


def test_a_copy_of_some_files(tmp_path: Path) -> None:
    """Only table and manifest were sent to a colleague: rows read, arrays are said to be gone."""
    root = tmp_path / "data"
    task = published(root)
    copy = tmp_path / "mail/p0/reach"
    copy.mkdir(parents=True)
    for name in ("trials.csv", "manifest.json"):
        shutil.copy(task / name, copy)
    reader = reader_of(tmp_path / "mail")
    assert len(reader.trials) == 4
    with pytest.raises(DamagedData, match=r"emg\.hdf5"):
        reader.array("emg", trial=0)
    files = {finding.file for finding in checked(tmp_path / "mail").losses}
    assert files == {"timing.csv", "emg.hdf5", "key.hdf5", "calibration.pkl"}


# --- unpacking ------------------------------------------------------------------------------------


def test_an_equal_archive_unpacked_over_a_task(tmp_path: Path) -> None:
    """Nothing changes."""
    root = tmp_path / "data"
    published(root)
    with zipfile.ZipFile(storage_to_zip(root, tmp_path / "a.zip")) as archive:
        archive.extractall(tmp_path)
    assert is_whole(root, 4)


def test_an_older_archive_unpacked_over_a_task(tmp_path: Path) -> None:
    """Made while it was recorded: what the old journal does not know is named, and not replaced."""
    root = tmp_path / "data"
    recording = cut_off(root, trials=2, loose=False)
    described = manifest.Manifest("recording", "p0", "reach")
    (root / "p0/reach/manifest.json").write_bytes(described.encode())
    old = storage_to_zip(root, tmp_path / "old.zip")
    shutil.rmtree(recording.folder.parent)
    task = published(root, trials=4)
    with zipfile.ZipFile(old) as archive:
        archive.extractall(tmp_path)
    report = checked(root)
    assert report.exit_code == 1
    assert {doubt.file for doubt in report.doubts} >= {"emg.hdf5", "timing.csv"}
    assert any("[2, 3]" in doubt.text for doubt in report.doubts)
    before = snapshot(task)
    (step,) = upkeep.plan_recovery(root).steps
    assert step.action == "leave"
    assert upkeep.recover(root).exit_code == 1
    assert snapshot(task) == before
    shutil.rmtree(task / "journal")
    (task / "manifest.json").unlink()
    with h5py.File(task / "emg.hdf5") as file:
        assert file["3"][:].tolist() == samples(3).tolist()


def test_an_archive_unpacked_one_folder_too_deep(tmp_path: Path) -> None:
    """A task inside a task: both are found, and the outer one reads as before."""
    root = tmp_path / "data"
    task = published(root)
    with zipfile.ZipFile(storage_to_zip(root, tmp_path / "a.zip")) as archive:
        archive.extractall(task)
    assert len(upkeep.check(root).tasks) == 2
    outer, inner = upkeep.check(root).tasks
    assert (outer.path, inner.path) == (task, task / "data/p0/reach")
    assert [remark.file for remark in outer.remarks] == ["data"]
    assert reader_of(root).trials["n"].tolist() == [0, 1, 2, 3]


# --- opening in other programs --------------------------------------------------------------------

HOLD = """
import sys, h5py
file = h5py.File(sys.argv[1], "r+")
print("open", flush=True)
sys.stdin.read()
file.close()
"""


@pytest.mark.slow
def test_a_file_that_another_program_has_open_for_writing(tmp_path: Path) -> None:
    """HDF5's lock of another process does not keep us from reading and checking."""
    root = tmp_path / "data"
    path = published(root) / "emg.hdf5"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r+")
        assert is_whole(root, 4)
    finally:
        other.communicate()
    assert is_whole(root, 4)


@pytest.mark.slow
def test_a_task_that_is_recorded_while_its_files_are_open(tmp_path: Path) -> None:
    """A table and an array held open by a viewer are replaced under it; it keeps what it had."""
    root = tmp_path / "data"
    task = published(root)
    with (task / "trials.csv").open() as table, h5py.File(task / "emg.hdf5", locking=False) as file:
        resume(root)
        assert len(table.readlines()) == 5
        assert "4" not in file
    assert is_whole(root, 5)


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 2**31 + 5, 2**34 - 1, -86400])
def test_times_of_files_mean_nothing(tmp_path: Path, when: int) -> None:
    """Whatever a copy or a wrong clock has made of them."""
    root = tmp_path / "data"
    published(root)
    cut_off(root, "cut")
    for path in (root, *root.rglob("*")):
        os.utime(path, (when, when))
    assert is_whole(root, 4)
    assert is_whole(root, 4, "cut")
    storage_to_zip(root, tmp_path / "a.zip")
    upkeep.recover(root)
    assert is_whole(root, 4, "cut")


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """Trials keep their order, however their times run: backwards, to 1970, far ahead."""
    task = tmp_path / "data/p0/reach"
    task.mkdir(parents=True)
    recording = Recording(task / layout.JOURNAL)
    times = [2**62, 10**18, 1, 0, 10**18 + 1]
    for number, time in enumerate(times):
        row = (("n", "int", str(number)), ("code", "str", "007"))
        recording.add(TrialCommit(number, row, {}, time, 10**9 - number, None))
    recording.commit()
    recording.close()
    assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1, 2, 3, 4]
    publish_once(task, {})
    reader = reader_of(tmp_path / "data")
    assert reader.trials["n"].tolist() == [0, 1, 2, 3, 4]
    assert reader.timing["unix_ns"].tolist() == times
    assert checked(tmp_path / "data").exit_code == 0


# --- what lies around -----------------------------------------------------------------------------

LITTER = [
    *(".DS_Store", "._emg.hdf5", "Thumbs.db", "desktop.ini", "Icon\r", ".~lock.trials.csv#"),
    *("~$trials.csv", "manifest (conflicted copy).json", "manifest.json.bak", "trials (1).csv"),
    *("emg (conflicted copy 2026-01-02).hdf5", "emg.sync-conflict-20260102.hdf5", "notes.txt"),
    *("calibration - Copy.pkl", "journal.zip"),
]


def strew(folder: Path) -> None:
    """Put everything that desktops, editors and sync clients leave into a folder."""
    for name in LITTER:
        (folder / name).write_bytes(b"litter")


@pytest.mark.leaves_files
def test_litter_disturbs_nobody(tmp_path: Path) -> None:
    """In the root, the subject, the task and the journal: lists, reads, check and recovery."""
    root = tmp_path / "data"
    task = published(root)
    journal = cut_off(root, "cut").folder
    for folder in (root, root / "p0", task, journal.parent, journal):
        strew(folder)
    (journal / "000001 (conflicted copy).segment").write_bytes(b"litter")
    storage = StorageReader(root)
    storage.subject_id = "p0"
    assert (storage.subject_ids, storage.task_ids) == (["p0"], ["cut", "reach"])
    assert len(storage.catalogue()) == 8
    reader = storage.require_task("reach")
    assert reader.array_names == ["emg", "key"]
    assert (reader.status, reader.losses) == ("complete", ())
    assert is_whole(root, 4)
    assert is_whole(root, 4, "cut")
    told = {remark.file for remark in checked(root).remarks}
    quiet = {name for name in LITTER if name.startswith(".")}
    assert told == set(LITTER) - quiet - {"Thumbs.db", "desktop.ini", "Icon\r"}
    assert upkeep.recover(root).exit_code == 0
    assert is_whole(root, 4, "cut")
    assert (task / "notes.txt").read_bytes() == b"litter"


@pytest.mark.slow
@pytest.mark.leaves_files
def test_litter_during_a_recording(tmp_path: Path) -> None:
    """What a sync client drops in while it runs is left alone, and resuming passes over it."""
    root = tmp_path / "data"
    with open_lab(root) as lab:
        with lab.create("reach") as task:
            strew(root / "p0/reach")
            for number in range(4):
                task.append("emg", samples(number))
                task.write({"n": number, "code": "007"})
        assert is_whole(root, 4)
        with pytest.raises(InvalidTrial):
            reader_of(root).array("emg", trial=9)
    resume(root)
    assert is_whole(root, 5)
    assert all((root / "p0/reach" / name).read_bytes() == b"litter" for name in LITTER)


def test_what_was_read_is_never_mixed(tmp_path: Path) -> None:
    """A reader that was open while its task was exchanged by hand tells of one or the other."""
    root = tmp_path / "data"
    task = published(root)
    other = published(root, "other", trials=2, length=20)
    reader = reader_of(root)
    assert len(reader.trials) == 4
    task.rename(tmp_path / "aside")
    other.rename(task)
    assert len(reader.trials) == 2
    assert np.array_equal(reader.array("emg", trial=1), samples(1, length=20))
    assert io.StringIO(reader.trials.to_csv()).readline().startswith(",n,")
