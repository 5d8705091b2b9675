"""``trialstore recover``: what was cut off is published, however often that is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.helpers import open_lab, reader_of
from tests.journals import Recording
from tests.upkeeping import cut_off, published, samples, snapshot
from trialstore import upkeep
from trialstore._cli.app import app
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.lock import acquire
from trialstore._upkeep import recovering

if TYPE_CHECKING:
    from trialstore.upkeep import Report

REPOSITORY = Path(__file__).parent.parent


def killed_over_and_over(command: str, template: Path, work: Path, step: int = 1) -> dict[str, Any]:
    """Kill `command` at every call to the disk, twice, and run it again; see `tests.killing`."""
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", command, str(template), str(work), str(step)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_content(root: Path, trials: int, name: str = "reach") -> None:
    """Compare with what `cut_off` wrote."""
    reader = reader_of(root, name)
    assert reader.trials["n"].tolist() == list(range(trials))
    assert reader.trials["code"].tolist() == ["007"] * trials
    for number, array in enumerate(reader.iterarray("emg")):
        assert array is not None
        assert array.tolist() == samples(number).tolist()


def test_a_task_that_was_cut_off_is_published(tmp_path: Path) -> None:
    """Every trial is in plain files, open chunks are in `interrupted`, the journal is gone."""
    root = tmp_path / "data"
    cut_off(root)
    report = upkeep.recover(root)
    (task,) = report.tasks
    assert (task.status, task.is_published, report.exit_code) == ("interrupted", True, 0)
    assert (task.acknowledged, task.recovered, task.unacknowledged) == (4, 4, 1)
    assert {path.name for path in task.path.iterdir()} == {
        *("trials.csv", "timing.csv", "manifest.json", "emg.hdf5", "key.hdf5", "interrupted"),
    }
    check_content(root, 4)


def test_twice_is_once(tmp_path: Path) -> None:
    """A second run finds nothing to do, changes no byte and gives the same report."""
    root = tmp_path / "data"
    cut_off(root)
    cut_off(root, "b", trials=0, loose=False)
    published(root, "c", keep_journal=True)
    first = upkeep.recover(root)
    before = snapshot(root)
    assert upkeep.plan_recovery(root).steps == ()
    assert upkeep.recover(root) == first
    assert snapshot(root) == before


def test_a_dry_run_plans_and_changes_nothing(tmp_path: Path) -> None:
    """The plan names the task, what it will give and what never counted."""
    root = tmp_path / "data"
    cut_off(root)
    before = snapshot(root)
    (step,) = upkeep.plan_recovery(root).steps
    assert (step.action, step.recovered) == ("publish", 4)
    assert [(f.kind, f.trials) for f in step.findings] == [("torn", (4,))]
    result = CliRunner().invoke(app, ["recover", str(root), "--dry-run"])
    assert result.exit_code == 0
    assert "will be published" in result.output
    result = CliRunner().invoke(app, ["recover", str(root), "--dry-run", "--json"])
    assert json.loads(result.output) == upkeep.plan_recovery(root).to_json()
    assert snapshot(root) == before


def test_a_living_recorders_task_is_left_alone(tmp_path: Path) -> None:
    """Neither a recorder's task nor one that is just being published is touched."""
    root = tmp_path / "data"
    with open_lab(root) as lab, lab.create("reach") as task:
        task.write({"n": 0})
        task.flush()
        (step,) = upkeep.plan_recovery(root / "p0/reach").steps
        assert (step.action, "recorder" in step.reason) == ("leave", True)
        assert upkeep.recover(root / "p0/reach").tasks[0].status == "recording"
        task.write({"n": 1})
    assert reader_of(root).trials["n"].tolist() == [0, 1]
    recording = cut_off(root, "held")
    before = snapshot(root)
    lock = acquire(recording.folder / layout.LOCK, "publisher")
    try:
        assert upkeep.recover(root / "p0/held").tasks[0].recovered == 4
        assert snapshot(root) == before
    finally:
        lock.release()


def test_a_task_taken_up_after_the_plan_is_left_alone(tmp_path: Path) -> None:
    """Between plan and act a recorder may have come: it wins, and the report says so."""
    recording = cut_off(tmp_path / "data")
    plan = upkeep.plan_recovery(tmp_path / "data")
    lock = acquire(recording.folder / layout.LOCK, "recorder")
    before = snapshot(tmp_path)
    try:
        failures = recovering.apply(plan)
    finally:
        lock.release()
    assert "taken up" in failures[recording.folder.parent]
    assert snapshot(tmp_path) == before


# --- damage ---------------------------------------------------------------------------------------


def damaged(root: Path) -> tuple[Path, bytes]:
    """A cut off task whose trial 1 is damaged; return its segment and the bytes."""
    recording = cut_off(root, loose=False)
    segment = recording.folder / "000001.segment"
    data = bytearray(segment.read_bytes())
    data[data.index(samples(1)[:, :10].tobytes()) + 3] ^= 4
    segment.write_bytes(data)
    return segment, bytes(data)


def test_damaged_bytes_are_kept_unchanged(tmp_path: Path) -> None:
    """The rest is published; the journal stays as it is, and no damaged byte gets a checksum."""
    root = tmp_path / "data"
    segment, data = damaged(root)
    report = upkeep.recover(root)
    (task,) = report.tasks
    assert report.exit_code == 3
    assert [(f.kind, f.trials) for f in task.losses] == [("damaged", (1,))]
    assert segment.read_bytes() == data
    assert {path.name for path in segment.parent.iterdir()} == {
        *("000001.segment", "000001.witness", "lock", "publish.lock"),
    }
    described = manifest.read(task.path)
    assert described is not None
    assert sorted(described.arrays["emg"].trials) == [0, 2, 3]
    assert upkeep.recover(root) == report


@pytest.mark.parametrize("damage", ["edited", "cut", "empty"])
def test_a_damaged_manifest_is_kept_aside(tmp_path: Path, damage: str) -> None:
    """The journal tells what the manifest did; its damaged bytes stay under another name."""
    root = tmp_path / "data"
    cut_off(root)
    path = root / "p0/reach/manifest.json"
    whole = manifest.Manifest("recording", "p0", "reach").encode()
    data = {"edited": whole.replace(b"p0", b"p1"), "cut": whole[:99], "empty": b""}[damage]
    path.write_bytes(data)
    report = upkeep.recover(root)
    assert report.exit_code == 0
    (aside,) = path.parent.glob("manifest.json.damaged-*")
    assert aside.read_bytes() == data
    assert [remark.file for remark in report.tasks[0].remarks] == [aside.name]
    check_content(root, 4)


def test_a_newer_versions_task_is_left_alone(tmp_path: Path) -> None:
    """What this version does not understand it does not rewrite."""
    root = tmp_path / "data"
    cut_off(root)
    (root / "p0/reach/manifest.json").write_text('{"format": "trialstore", "version": 99}')
    before = snapshot(root)
    (step,) = upkeep.plan_recovery(root).steps
    assert (step.action, "99" in step.reason) == ("leave", True)
    assert upkeep.recover(root).exit_code == 1
    assert snapshot(root) == before


def test_a_journal_without_segments_is_not_published_as_empty(tmp_path: Path) -> None:
    """Whoever emptied it by hand may still bring the segments back."""
    recording = cut_off(tmp_path / "data")
    for path in recording.folder.glob("000001.*"):
        path.unlink()
    before = snapshot(tmp_path)
    report = upkeep.recover(tmp_path / "data")
    assert (report.exit_code, snapshot(tmp_path)) == (1, before)


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    """Where nothing can be published, the report says why; the journal reads as before."""
    root = tmp_path / "data"
    cut_off(root)
    obstacle = root / "p0/reach/emg.hdf5"
    obstacle.mkdir()
    (obstacle / "x").touch()
    report = upkeep.recover(root)
    assert report.exit_code == 1
    assert "could not be recovered" in report.tasks[0].doubts[-1].text
    assert reader_of(root).trials["n"].tolist() == [0, 1, 2, 3]
    shutil.rmtree(obstacle)
    assert upkeep.recover(root).exit_code == 0


# --- what lies around -----------------------------------------------------------------------------


def test_hidden_files_of_a_dead_publisher_are_removed(tmp_path: Path) -> None:
    """Only those, whether or not the task was published; a person's hidden files stay."""
    root = tmp_path / "data"
    for task in (published(root, "a"), cut_off(root, "b").folder.parent):
        (task / layout.building_name("emg.hdf5", "publisher-0123456789ab")).touch()
        (task / ".mine").touch()
    steps = {step.task.name: step.action for step in upkeep.plan_recovery(root).steps}
    assert steps == {"a": "clear", "b": "publish"}
    upkeep.recover(root)
    hidden = [path.relative_to(root).as_posix() for path in root.rglob(".*")]
    assert sorted(hidden) == ["p0/a/.mine", "p0/b/.mine"]
    for name in hidden:
        (root / name).unlink()


def with_fallback(root: Path, other: Path, *, folder: str = "journal-0123456789ab") -> Recording:
    """A task whose second segment lies on another disk."""
    home = root / "p0/reach"
    home.mkdir(parents=True)
    fallback = other / "p0/reach" / folder
    fallback.parent.mkdir(parents=True)

    class Failing(Disk):
        fails = False

        def sync(self, fd: int) -> None:
            if self.fails and Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(root):
                raise OSError(5, "Input/output error")
            super().sync(fd)

    disk = Failing()
    recording = Recording(home / layout.JOURNAL, disk=disk, fallback=fallback)
    for number in range(4):
        disk.fails = number > 1
        recording.append("emg", samples(number))
        recording.trial(n=number, code="007")
        recording.commit()
    recording.close()
    (home / layout.JOURNAL / layout.LOCK).touch()
    assert list(fallback.glob("*.segment"))
    return recording


def test_segments_on_another_disk_are_found(tmp_path: Path) -> None:
    """`fallback` names the other disk where the journal does not; its segments go with the rest."""
    root, other = tmp_path / "data", tmp_path / "other"
    with_fallback(root, other)
    assert upkeep.check(root).tasks[0].acknowledged == 2
    assert upkeep.check(root, fallback=other).tasks[0].recovered == 4
    report = upkeep.recover(root, fallback=other)
    assert (report.tasks[0].recovered, report.exit_code) == (4, 0)
    check_content(root, 4)
    assert not list(other.rglob("*.segment"))
    assert not (root / "p0/reach/journal").exists()


def test_segments_of_another_session_are_neither_read_nor_removed(tmp_path: Path) -> None:
    """What an overwritten task of this name has left on the other disk is not part of this one."""
    root, other = tmp_path / "data", tmp_path / "other"
    with_fallback(root, other)
    old = other / "p0/reach/journal-ba9876543210"
    cut_off(tmp_path / "old", trials=7).folder.rename(old)
    before = snapshot(old)
    report = upkeep.recover(root, fallback=other)
    assert (report.tasks[0].recovered, report.exit_code) == (4, 0)
    assert [path.name for path in (other / "p0/reach").iterdir()] == [old.name]
    assert snapshot(old) == before


def test_a_journal_can_be_kept(tmp_path: Path) -> None:
    """``--keep-journal`` publishes and leaves every segment as it is."""
    recording = cut_off(tmp_path / "data")
    before = (recording.folder / "000001.segment").read_bytes()
    result = CliRunner().invoke(app, ["recover", str(tmp_path / "data"), "--keep-journal"])
    assert result.exit_code == 0
    assert (recording.folder / "000001.segment").read_bytes() == before
    check_content(tmp_path / "data", 4)


def test_a_journal_that_somebody_keeps_is_not_touched(tmp_path: Path) -> None:
    """`recover` takes away only what it has published itself."""
    task = published(tmp_path / "data", keep_journal=True)
    before = snapshot(task)
    upkeep.recover(tmp_path)
    assert snapshot(task) == before


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.leaves_files
@pytest.mark.parametrize("kind", ["whole", "damaged", "resumed"])
def test_killed_anywhere_and_run_again_it_ends_as_one_run(tmp_path: Path, kind: str) -> None:
    """At each call to the disk, two deep: the same files, byte for byte, and the same report."""
    template = tmp_path / "template"
    if kind == "damaged":
        damaged(template / "data")
    elif kind == "whole":
        cut_off(template / "data", trials=2)
        leftover = layout.building_name("emg.hdf5", "publisher-0123456789ab")
        (template / "data/p0/reach" / leftover).touch()
    else:
        resumed(template / "data")
    found = killed_over_and_over("recover", template, tmp_path / "work", step=1)
    assert found["differences"] == {}
    assert found["kills"] > found["moments"] > 50


def resumed(root: Path) -> None:
    """A published task that was resumed, given two more trials, and cut off."""
    task = published(root, trials=2, loose=True)
    journal = task / layout.JOURNAL
    (journal / layout.BASE).mkdir(parents=True)
    for path in layout.published_files(task):
        os.link(path, journal / layout.BASE / path.name)
    described = manifest.read(task)
    assert described is not None
    described.status = "recording"
    (task / "manifest.json").unlink()
    (task / "manifest.json").write_bytes(described.encode())
    recording = Recording(journal, trials=2)
    for number in (2, 3):
        recording.append("emg", samples(number))
        recording.trial(n=number, code="007")
        recording.commit()
    recording.close()
    (journal / layout.LOCK).touch()


def test_a_resumed_task_is_published_on_its_base(tmp_path: Path) -> None:
    """What had been published before is part of it, and of the report."""
    root = tmp_path / "data"
    resumed(root)
    report = upkeep.check(root).tasks[0]
    assert (report.acknowledged, report.recovered, report.exit_code) == (4, 4, 0)
    assert "journal/base/trials.csv" in {part.file for part in report.whole}
    report = upkeep.recover(root).tasks[0]
    assert (report.recovered, report.exit_code) == (4, 0)
    check_content(root, 4)


def test_damage_in_the_base_is_found_before_and_after(tmp_path: Path) -> None:
    """An array file that was set aside and damaged: the trial is named, and never passed on."""
    root = tmp_path / "data"
    resumed(root)
    path = root / "p0/reach/journal/base/emg.hdf5"
    data = bytearray(path.read_bytes())
    data[data.index(samples(1).tobytes())] ^= 1
    path.write_bytes(data)
    before: Report = upkeep.check(root)
    assert [f.trials for f in before.tasks[0].losses] == [(1,)]
    after = upkeep.recover(root)
    assert [f.trials for f in after.tasks[0].losses] == [(1,)]
    assert np.array_equal(reader_of(root).array("emg", trial=2), samples(2))
