"""``trialstore check``: whatever was acknowledged and is not there is named, and nothing else."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.helpers import open_lab
from tests.journals import Recording, six_trials, torn_batch
from tests.upkeeping import cut_off, published, samples, snapshot
from trialstore import DamagedData, Storage, StorageError, TaskReader, upkeep
from trialstore._cli.app import app
from trialstore._cli.terminal import escaped, ranges
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.journal import FRAME_MAGIC
from trialstore._publishing.service import publish_once
from trialstore._recording.claims import Place
from trialstore._recording.opening import resume
from trialstore.testing import FailingDisk

if TYPE_CHECKING:
    from trialstore.upkeep import Finding, TaskReport


def checked(task: Path) -> TaskReport:
    """Check one task."""
    (report,) = upkeep.check(task).tasks
    return report


def only(findings: tuple[Finding, ...]) -> Finding:
    (finding,) = findings
    return finding


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit of a file; a second time undoes it."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


# --- published files ------------------------------------------------------------------------------


def test_a_whole_task_is_said_to_be_whole(tmp_path: Path) -> None:
    """Every published file is read and told, nothing is found, the exit code is 0."""
    task = published(tmp_path / "data")
    report = checked(task)
    assert (report.status, report.is_published, report.exit_code) == ("complete", True, 0)
    assert (report.acknowledged, report.recovered, report.damaged) == (4, 4, 0)
    assert not (report.findings)
    assert not (report.doubts)
    assert not (report.remarks)
    assert {part.file: part.trials for part in report.whole} == {
        "trials.csv": 4,
        "timing.csv": 4,
        "calibration.pkl": None,
        "emg.hdf5": 4,
        "key.hdf5": 2,
    }


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    """Names, bytes and times of everything are as they were, whatever state a task is in."""
    root = tmp_path / "data"
    published(root, "whole")
    published(root, "kept", keep_journal=True)
    cut_off(root, "cut")
    (published(root, "edited") / "trials.csv").write_text("n\n")

    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}

    before = snapshot(root), times()
    upkeep.check(root)
    upkeep.plan_recovery(root)
    upkeep.plan_pruning(root)
    assert (snapshot(root), times()) == before


@pytest.mark.parametrize("name", ["trials.csv", "timing.csv", "calibration.pkl", "manifest.json"])
def test_every_byte_of_a_table_a_pickle_and_the_manifest_is_checked(
    tmp_path: Path, name: str
) -> None:
    """Wherever one bit is flipped, the check names the file; put back, all is well again."""
    task = published(tmp_path / "data", trials=2)
    size = (task / name).stat().st_size
    step = 7 if name == "manifest.json" else 1
    for at in range(0, size, step):
        flip(task / name, at, at % 8)
        report = checked(task)
        told = [finding.file for finding in report.losses] + [d.file for d in report.doubts]
        assert name in told, f"bit {at % 8} of byte {at} in silence"
        assert report.exit_code != 0
        flip(task / name, at, at % 8)
    assert checked(task).exit_code == 0


def test_every_sample_is_checked_and_damage_has_its_place(tmp_path: Path) -> None:
    """One flipped bit in any sample: that trial, and bytes of the file which hold that bit."""
    task = published(tmp_path / "data")
    path = task / "emg.hdf5"
    with h5py.File(path) as file:
        places = {int(name): file[name].id.get_offset() for name in file if name != "timing"}
    for trial, offset in places.items():
        for at in range(offset, offset + 2 * 30 * 8, 37):
            flip(path, at)
            report = checked(task)
            finding = only(report.losses)
            assert (finding.kind, finding.trials, finding.file) == ("damaged", (trial,), path.name)
            assert finding.byte_range is not None
            assert finding.byte_range[0] <= at < finding.byte_range[1]
            assert (report.recovered, report.damaged, report.exit_code) == (3, 1, 3)
            flip(path, at)


def test_of_a_long_array_the_damaged_block_is_named(tmp_path: Path) -> None:
    """A trial of many blocks: the evidence names the samples, the range holds the damaged byte."""
    folder = tmp_path / "data/p0/reach"
    folder.mkdir(parents=True)
    recording = Recording(folder / layout.JOURNAL)
    recording.append("emg", np.arange(200_000.0))
    recording.trial(n=0)
    recording.end()
    recording.commit()
    recording.close()
    publish_once(folder, {})
    with h5py.File(folder / "emg.hdf5") as file:
        at = file["0"].id.get_offset() + 8 * 100_000
    flip(folder / "emg.hdf5", at)
    finding = only(checked(folder).losses)
    assert finding.byte_range is not None
    first, end = finding.byte_range
    assert first <= at < end
    assert end - first == 256 * 1024
    assert "1 of 7 blocks" in finding.evidence
    assert "samples 98304 to 131071" in finding.evidence


@pytest.mark.parametrize(
    ("name", "trials"),
    [
        ("trials.csv", (0, 1, 2, 3)),
        ("timing.csv", (0, 1, 2, 3)),
        ("emg.hdf5", (0, 1, 2, 3)),
        ("key.hdf5", (1, 3)),
        ("calibration.pkl", ()),
    ],
)
def test_a_deleted_file_is_missed(tmp_path: Path, name: str, trials: tuple[int, ...]) -> None:
    """File and trials are named, and so is every other file, which is still whole."""
    task = published(tmp_path / "data")
    (task / name).unlink()
    report = checked(task)
    finding = only(report.losses)
    assert (finding.kind, finding.file, finding.trials) == ("missing", name, trials)
    files = {"trials.csv", "timing.csv", "emg.hdf5", "key.hdf5", "calibration.pkl"}
    assert {part.file for part in report.whole} == files - {name}
    assert report.exit_code == 3


@pytest.mark.parametrize("stand_in", ["folder", "link", "text", "empty"])
def test_something_else_in_a_files_place_is_no_file(tmp_path: Path, stand_in: str) -> None:
    """A folder, a link, a text or nothing where an array was: all its trials are named."""
    task = published(tmp_path / "data")
    path = task / "emg.hdf5"
    path.rename(tmp_path / "elsewhere.hdf5")
    if stand_in == "folder":
        path.mkdir()
    elif stand_in == "link":
        path.symlink_to(tmp_path / "elsewhere.hdf5")
    else:
        path.write_text("" if stand_in == "empty" else "emg")
    finding = only(checked(task).losses)
    assert (finding.file, finding.trials) == ("emg.hdf5", (0, 1, 2, 3))


def test_rows_without_arrays_and_arrays_without_rows(tmp_path: Path) -> None:
    """A deleted dataset is missing; one that was put there later is told, and no loss."""
    task = published(tmp_path / "data")
    with h5py.File(task / "emg.hdf5", "r+") as file:
        del file["2"]
        file["7"] = np.zeros(3)
        del file["timing/1"]
    report = checked(task)
    assert [(f.kind, f.trials) for f in report.losses] == [("missing", (1,)), ("missing", (2,))]
    assert "arrival times" in report.losses[0].what
    assert [(r.file, "'7'" in r.text) for r in report.remarks] == [("emg.hdf5", True)]


@pytest.mark.parametrize("shape", [(2, 31), (30,), ()])
def test_a_dataset_that_was_replaced_is_damaged(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Another shape, or the same shape with other samples, is not what was recorded."""
    task = published(tmp_path / "data")
    with h5py.File(task / "emg.hdf5", "r+") as file:
        del file["2"]
        file["2"] = np.zeros(shape)
    finding = only(checked(task).losses)
    assert (finding.kind, finding.trials) == ("damaged", (2,))


def test_equal_samples_stored_another_way_are_whole(tmp_path: Path) -> None:
    """A file that h5repack, say, has compressed and chunked holds what was recorded."""
    task = published(tmp_path / "data")
    with h5py.File(task / "emg.hdf5", "r+") as file:
        del file["2"]
        file.create_dataset("2", data=samples(2), chunks=(2, 10), compression="gzip")
    assert checked(task).exit_code == 0
    with h5py.File(task / "emg.hdf5", "r+") as file:
        file["2"][0, 0] += 1
    finding = only(checked(task).losses)
    assert (finding.trials, finding.byte_range) == ((2,), None)


def test_a_manifest_that_was_edited_still_tells_what_fits(tmp_path: Path) -> None:
    """Its edit is named; that every table and array fits its checksums shows what is whole."""
    task = published(tmp_path / "data")
    path = task / "manifest.json"
    path.write_text(path.read_text().replace('"p0"', '"p1"'))
    report = checked(task)
    assert only(report.losses).file == "manifest.json"
    assert {part.file for part in report.whole} >= {"trials.csv", "emg.hdf5"}
    assert (report.status, report.exit_code) == ("unreadable", 3)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    (task / "key.hdf5").unlink()
    report = checked(task)
    assert {finding.file for finding in report.losses} == {"manifest.json", "key.hdf5"}
    assert "emg.hdf5" in {part.file for part in report.whole}


@pytest.mark.parametrize("text", ["", "{}", '{"format": "trialstore", "version": 99}', "[1"])
def test_a_manifest_that_says_nothing_leaves_doubt(tmp_path: Path, text: str) -> None:
    """Of a newer version, cut short, or another program's: one cannot tell, and that is said."""
    task = published(tmp_path / "data")
    (task / "manifest.json").write_text(text)
    report = checked(task)
    assert report.doubts[0].file == "manifest.json"
    assert (report.exit_code, report.losses) == (1, ())


# --- journals -------------------------------------------------------------------------------------


def test_what_a_kill_leaves_is_told_by_class(tmp_path: Path) -> None:
    """Acknowledged trials are whole; the trial that was open, and the torn frame, never counted."""
    root = tmp_path / "data"
    recording = cut_off(root)
    segment = recording.folder / "000001.segment"
    size = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(b"half a frame")
    report = checked(root / "p0/reach")
    assert (report.status, report.is_published, report.exit_code) == ("interrupted", False, 0)
    assert (report.acknowledged, report.recovered, report.damaged) == (4, 4, 0)
    assert report.unacknowledged == 1
    places = {(f.kind, f.trials, f.byte_range) for f in report.findings}
    assert places == {("torn", (), (size, size + 12)), ("torn", (4,), None)}
    assert {f.file for f in report.findings} == {"journal/000001.segment"}


@pytest.mark.slow
def test_a_journal_cut_anywhere_is_never_silent(tmp_path: Path) -> None:
    """However much of a journal is gone: each acknowledged trial is recovered or named."""
    folder = tmp_path / "data/p0/reach"
    folder.mkdir(parents=True)
    six_trials(folder / layout.JOURNAL).close()
    segment = folder / "journal/000001.segment"
    data = segment.read_bytes()
    for size in range(0, len(data), 11):
        segment.write_bytes(data[:size])
        report = checked(folder)
        named = {trial for finding in report.losses for trial in finding.trials}
        assert report.acknowledged == 6 or not named, size
        assert report.recovered + len(named) == 6, size
        assert report.exit_code == 3
    segment.write_bytes(data)
    assert checked(folder).exit_code == 0


@pytest.mark.slow
def test_a_flipped_bit_of_a_journal_is_never_silent(tmp_path: Path) -> None:
    """Samples or headers: a trial that is not whole is named, with a place in the segment."""
    folder = tmp_path / "data/p0/reach"
    folder.mkdir(parents=True)
    six_trials(folder / layout.JOURNAL).close()
    segment = folder / "journal/000001.segment"
    silent = []
    for at in range(0, segment.stat().st_size, 13):
        flip(segment, at, at % 8)
        report = checked(folder)
        if report.exit_code == 0 and at >= 64:
            silent.append(at)
        for finding in report.losses:
            assert finding.file == "journal/000001.segment"
            assert finding.evidence
        flip(segment, at, at % 8)
    # Padding, flags and the like carry nothing.
    whole = segment.read_bytes()
    assert all(whole[at] == 0 for at in silent)


def test_a_segment_that_was_deleted_is_missed(tmp_path: Path) -> None:
    """Its witness is still there: the trials are named as acknowledged and missing."""
    recording = cut_off(tmp_path / "data", loose=False)
    (recording.folder / "000001.segment").unlink()
    report = checked(tmp_path / "data/p0/reach")
    named = {trial for finding in report.losses for trial in finding.trials}
    assert named == {0, 1, 2, 3}
    assert {finding.kind for finding in report.losses} == {"missing"}
    assert (report.recovered, report.exit_code) == (0, 3)


def test_a_pickle_is_checked_before_it_is_published_and_never_vouched_for(tmp_path: Path) -> None:
    """A gain of 3 instead of 2 is a whole pickle: its own checksum tells, in every state."""
    task = tmp_path / "data/p0/reach"

    def look() -> None:
        finding = only(checked(task).losses)
        assert (finding.kind, finding.what) == ("damaged", "pickle 'calibration'")
        assert (finding.file, checked(task).exit_code) == ("calibration.pkl", 3)
        with pytest.raises(DamagedData, match="checksum"):
            TaskReader(task).pickle("calibration")

    with open_lab(task.parents[1]) as lab, lab.create("reach") as writer:
        writer.write({"n": 1})
        writer.pickle({"gain": 2}, "calibration")
        assert pickle.loads((task / "calibration.pkl").read_bytes()) == {"gain": 2}
        flip(task / "calibration.pkl", 21)
        look()
        for _ in range(2):
            writer.close()
            look()
            described = json.loads((task / layout.MANIFEST).read_bytes())
            assert "calibration.pkl" not in described["files"]
            assert [loss["file"] for loss in described["losses"]] == ["calibration.pkl"]
            writer.resume()
            look()
        writer.close()


def test_what_was_torn_stays_torn(tmp_path: Path) -> None:
    """Nobody was told that it was durable: so says each check, also after resuming and publishing.

    What is taken up counts as durable from then on: the recorder notes what never was, once.
    """
    task = tmp_path / "data/p0/reach"
    task.mkdir(parents=True)
    torn_batch(task / layout.JOURNAL)
    (task / layout.JOURNAL / layout.LOCK).touch()

    def look(acknowledged: int) -> None:
        report = checked(task)
        told = [(f.trials, f.what) for f in report.findings if f.kind == "torn"]
        assert told == [((2,), "1 trial"), ((3,), "1 trial"), ((4,), "array 'emg'")]
        assert (report.exit_code, report.losses, report.unacknowledged) == (0, (), 3)
        assert (report.acknowledged, report.recovered, report.damaged) == (acknowledged,) * 2 + (0,)
        assert [loss.trials for loss in TaskReader(task).losses] == [(2,), (3,), (4,)]

    async def go_on() -> None:
        async with Storage(task.parents[1]) as storage:
            storage.subject_id = "p0"
            async with storage.resume_task("reach") as writer:
                await writer.write({"n": 5})

    segment = task / layout.JOURNAL / "000001.segment"
    row = segment.read_bytes().rindex(FRAME_MAGIC)  # of trial 4, which is whole
    look(2)
    for _ in range(2):  # taken up, and cut off at once
        opened = resume(Place(Disk(), task.parents[1], "p0", None), "reach")
        opened.journal.close()
        opened.lock.release()
        look(2)
    flip(segment, row)  # taken up, and so durable: what the note does not speak of is a loss
    report = checked(task)
    assert [(f.kind, f.trials) for f in report.losses] == [("damaged", (4,))]
    assert report.exit_code == 3
    flip(segment, row)
    for count in (3, 4):  # taken up and published
        anyio.run(go_on)
        look(count)


def test_a_note_of_what_is_torn_that_cannot_be_written_refuses_the_task(tmp_path: Path) -> None:
    """It comes with the opening, or the next look would take it for a loss; then it goes on."""
    task = tmp_path / "data/p0/reach"
    task.mkdir(parents=True)
    torn_batch(task / layout.JOURNAL)
    disk = FailingDisk()
    disk.fail("write", only="*.segment", nth=2)  # behind the header
    with pytest.raises(StorageError, match="cannot be opened for recording"):
        resume(Place(disk, task.parents[1], "p0", None), "reach")
    opened = resume(Place(disk, task.parents[1], "p0", None), "reach")
    opened.journal.close()
    opened.lock.release()
    assert [(loss.trials, loss.kind) for loss in TaskReader(task).losses] == [
        ((2,), "torn"),
        ((3,), "torn"),
        ((4,), "torn"),
    ]


def test_a_journal_without_any_segment_leaves_doubt(tmp_path: Path) -> None:
    """Stopped before it could begin, or emptied by hand: nobody can tell."""
    recording = cut_off(tmp_path / "data")
    for path in recording.folder.glob("000001.*"):
        path.unlink()
    report = checked(tmp_path / "data/p0/reach")
    assert (report.exit_code, report.losses) == (1, ())
    assert "no segment" in report.doubts[0].text


def test_a_running_recording_is_left_in_peace(tmp_path: Path) -> None:
    """It is said to be recording, its durable trials are checked, and it goes on."""
    root = tmp_path / "data"
    with open_lab(root) as lab, lab.create("reach") as task:
        for number in range(5):
            task.append("emg", samples(number))
            task.write({"n": number})
        task.append("emg", samples(5))
        task.flush()
        before = set(snapshot(root / "p0/reach/journal"))
        report = checked(root / "p0/reach")
        assert (report.status, report.exit_code) == ("recording", 0)
        assert (report.acknowledged, report.recovered) == (5, 5)
        assert report.findings == ()
        assert any("in use by the recorder" in remark.text for remark in report.remarks)
        assert upkeep.recover(root / "p0/reach").tasks[0].status == "recording"
        assert set(snapshot(root / "p0/reach/journal")) == before
        task.write({"n": 5})
    assert checked(root / "p0/reach").acknowledged == 6


def test_what_was_known_to_be_lost_stays_known(tmp_path: Path) -> None:
    """A damaged journal is published with its losses; every later check names them again."""
    root = tmp_path / "data"
    recording = cut_off(root, loose=False)
    segment = recording.folder / "000001.segment"
    at = segment.read_bytes().index(samples(2)[:, :10].tobytes())
    flip(segment, at)
    before = checked(root / "p0/reach")
    finding = only(before.losses)
    assert (finding.kind, finding.trials) == ("damaged", (2,))
    assert finding.byte_range is not None
    assert finding.byte_range[0] <= at < finding.byte_range[1]
    after = upkeep.recover(root).tasks[0]
    assert [(f.kind, f.trials) for f in after.losses] == [("damaged", (2,))]
    assert (after.recovered, after.damaged) == (before.recovered, before.damaged) == (3, 1)


# --- other programs' tasks ------------------------------------------------------------------------


def foreign(root: Path) -> Path:
    """A task as AxoPy leaves one."""
    task = root / "p0/old"
    task.mkdir(parents=True)
    pd.DataFrame({"block": [0] * 3, "trial": range(3)}).to_csv(task / "trials.csv", index=False)
    with h5py.File(task / "emg.hdf5", "w") as file:
        for trial in range(3):
            file[str(trial)] = samples(trial)
    return task


def test_a_foreign_task_is_compared_with_itself(tmp_path: Path) -> None:
    """Rows against datasets: equal is well, either without the other leaves doubt."""
    task = foreign(tmp_path / "data")
    report = checked(task)
    assert (report.status, report.exit_code, report.acknowledged) == ("foreign", 0, 3)
    assert "no checksums" in report.remarks[0].text
    with h5py.File(task / "emg.hdf5", "r+") as file:
        file.move("1", "9")
    report = checked(task)
    assert report.exit_code == 1
    texts = [doubt.text for doubt in report.doubts]
    assert any("no dataset for the trials [1]" in text for text in texts)
    assert any("datasets [9], for which there is no row" in text for text in texts)


def test_a_foreign_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Cut short: nothing in it can be read, and the rows are still there."""
    task = foreign(tmp_path / "data")
    os.truncate(task / "emg.hdf5", 3000)
    report = checked(task)
    assert only(report.losses).file == "emg.hdf5"
    assert [part.file for part in report.whole] == ["trials.csv"]


# --- folders --------------------------------------------------------------------------------------


def test_any_depth_is_searched(tmp_path: Path) -> None:
    """A task, a subject, a root and a folder of roots; the trash beside a root is not searched."""
    published(tmp_path / "lab/one")
    published(tmp_path / "lab/one", "journal")  # a legal name of a task
    cut_off(tmp_path / "lab/two")
    published(tmp_path / "lab/one.trash", "reach.20260101T000000-0123abcd")
    counts = {"lab": 3, "lab/one": 2, "lab/one/p0": 2, "lab/one/p0/reach": 1, "lab/one.trash": 1}
    for place, count in counts.items():
        assert len(upkeep.check(tmp_path / place).tasks) == count, place


def test_nothing_to_check_is_not_success(tmp_path: Path) -> None:
    """An empty folder gives exit code 1, what is no folder an error that names it."""
    (tmp_path / "data/p0").mkdir(parents=True)
    report = upkeep.check(tmp_path / "data")
    assert (report.tasks, report.exit_code) == ((), 1)
    assert [remark.file for remark in report.remarks] == ["p0"]
    with pytest.raises(StorageError, match="nowhere"):
        upkeep.check(tmp_path / "nowhere")


def test_the_worst_task_decides(tmp_path: Path) -> None:
    """Doubt outweighs whole, and a loss outweighs doubt."""
    root = tmp_path / "data"
    published(root, "a")
    assert upkeep.check(root).exit_code == 0
    (published(root, "b") / "manifest.json").unlink()
    assert upkeep.check(root).exit_code == 1
    (published(root, "c") / "key.hdf5").unlink()
    assert upkeep.check(root).exit_code == 3


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    """Each task is announced, and the count only grows up to what there is."""
    root = tmp_path / "data"
    published(root, "a", length=5000)
    cut_off(root, "b", length=5000)
    told: list[upkeep.Progress] = []
    upkeep.check(root, progress=told.append)
    assert [(p.number, p.tasks) for p in told if p.done == 0] == [(1, 2), (2, 2)]
    for number in (1, 2):
        done = [p.done for p in told if p.number == number]
        total = told[-1].total
        assert done == sorted(done)
        assert total / 2 < done[-1] <= max(p.total for p in told if p.number == number)


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    """Run the command; return its exit code and all that it shows."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_the_command_tells_and_its_exit_code_says_it(tmp_path: Path) -> None:
    """0, 3 and 1; every finding is shown with trial, class, file, bytes and what is whole."""
    root = tmp_path / "data"
    task = published(root)
    code, shown = run("check", root)
    assert code == 0
    assert "4 trials, all whole" in shown
    flip(task / "trials.csv", 3)
    code, shown = run("check", task)
    assert code == 3
    for text in ("damaged", "trials 0-3", "'trials.csv'", "bytes 0 to", "still whole", "emg.hdf5"):
        assert text in shown
    assert run("check", tmp_path / "data/p0")[0] == 3
    (task / "manifest.json").unlink()
    assert run("check", task)[0] == 1
    assert run("check", tmp_path / "nowhere")[0] == 2
    shutil.rmtree(task)
    code, shown = run("check", root)
    assert (code, "No task" in shown) == (1, True)


def test_json_is_for_programs(tmp_path: Path) -> None:
    """One JSON document with the same content, the classes spelled out, and nothing beside it."""
    task = published(tmp_path / "data")
    (task / "key.hdf5").unlink()
    code, shown = run("check", task, "--json")
    told = json.loads(shown)
    assert code == told["exit_code"] == told["tasks"][0]["exit_code"] == 3
    (finding,) = told["tasks"][0]["findings"]
    assert finding["class"] == "acknowledged and missing"
    assert finding["trials"] == [1, 3]
    assert told["tasks"][0]["trials"]["recovered"] == 2
    assert told == upkeep.check(task).to_json()


def test_no_name_steers_the_terminal(tmp_path: Path) -> None:
    """Escapes in names of files, tasks and in manifests are shown as escapes."""
    task = published(tmp_path / "da\x1b]0;x\x07ta", "rea\x1b[2Jch")
    (task / "note\x1b[31m\u202e.txt").touch()
    described = manifest.read(task)
    assert described is not None
    described.subject = "p\x1b[5m"
    (task / "manifest.json").write_bytes(described.encode())
    for command in (["check"], ["check", "--json"], ["recover"], ["prune", "--dry-run"]):
        _, shown = run(*command, tmp_path)
        assert shown
        assert all(character.isprintable() or character == "\n" for character in shown)


@given(st.text())
def test_what_is_escaped_can_be_printed(text: str) -> None:
    """Whatever the text, nothing in it steers or hides; plain text stays as it is."""
    shown = escaped(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


@given(st.sets(st.integers(0, 40), min_size=1))
def test_numbers_are_shown_as_ranges(numbers: set[int]) -> None:
    """What is shown names exactly the numbers, unless it says that there are more."""
    word, _, shown = ranges(sorted(numbers)).partition(" ")
    assert (word == "trial") == (len(numbers) == 1)
    if shown.endswith("..."):
        return
    found = set()
    for span in shown.split(", "):
        first, _, last = span.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers


def test_a_library_call_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is found, it is returned and not printed."""
    root = tmp_path / "data"
    cut_off(root)
    (published(root, "b") / "emg.hdf5").unlink()
    upkeep.check(root)
    upkeep.recover(root)
    upkeep.prune(upkeep.plan_pruning(root))
    assert capsys.readouterr() == ("", "")


# --- the page -------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs/how-to/check-and-recover.md"


@pytest.mark.slow
def test_what_the_page_shows_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command line, and the Python example, on data that is whole, kept and cut off."""
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "data", "kept", keep_journal=True)
    cut_off(tmp_path / "data")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.startswith("trialstore ")]
    assert len(lines) == 8
    for line in lines:
        words = line.partition("  #")[0].partition(">")[0].split()
        result = CliRunner().invoke(app, words[1:], input="n\n")
        assert result.exit_code == (1 if words[1:] == ["prune", "data"] else 0), result.output
    published(tmp_path / "data", "again", keep_journal=True)
    exec(compile(example, str(PAGE), "exec"), {})
    assert "every bit is there" in capsys.readouterr().out
    assert not (tmp_path / "data/p0/again/journal").exists()


def test_the_page_names_every_class_and_exit_code() -> None:
    """The table of classes is that of the code."""
    text = PAGE.read_text(encoding="utf-8")
    for kind, words in upkeep.CLASSES.items():
        code = 3 if kind not in {"torn", "refused"} else 0
        assert re.search(rf"^\| `{kind}` \| .* \| {code} \|$", text, flags=re.MULTILINE), kind
        assert words.split(":")[0] in text or kind in {"refused", "superseded"}
    assert (upkeep.WHOLE, upkeep.UNKNOWN, upkeep.LOSSES) == (0, 1, 3)


def test_every_public_name_is_there_and_documented() -> None:
    """`trialstore.upkeep` has what it lists; functions tell parameters, and what they raise."""
    for name in upkeep.__all__:
        thing = getattr(upkeep, name)
        if callable(thing):
            assert inspect.getdoc(thing)
    for function in (upkeep.check, upkeep.plan_recovery, upkeep.recover, upkeep.plan_pruning):
        assert "Raises\n------\nStorageError" in (inspect.getdoc(function) or "")
