"""``trialstore prune``: deletes what is proved to be superfluous, after a yes, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import h5py
import pytest
from typer.testing import CliRunner

from tests.helpers import open_lab, reader_of
from tests.test_recover import check_content, damaged, killed_over_and_over
from tests.upkeeping import cut_off, published, samples, snapshot
from trialstore import upkeep
from trialstore._cli.app import app
from trialstore._ondisk import layout
from trialstore._ondisk.lock import acquire

if TYPE_CHECKING:
    from pathlib import Path

STAMP = "20260102T030405-0123abcd"


def trashed(root: Path, name: str = "reach") -> Path:
    """Put a task into the trash, as overwriting does, and return where it is."""
    task = published(root, name, loose=True)
    target = root.with_name(f"{root.name}.trash") / "p0" / f"{name}.{STAMP}"
    target.parent.mkdir(parents=True, exist_ok=True)
    return task.rename(target)


def offered(root: Path, *, damaged: bool = False) -> list[str]:
    """Names of what is offered."""
    return [
        candidate.path.name for candidate in upkeep.plan_pruning(root, damaged=damaged).candidates
    ]


# --- kept journals --------------------------------------------------------------------------------


def test_a_kept_journal_goes_after_everything_in_it_was_found(tmp_path: Path) -> None:
    """The proof counts what was compared; afterwards the task is whole and has no journal."""
    root = tmp_path / "data"
    task = published(root, keep_journal=True, loose=True)
    plan = upkeep.plan_pruning(root)
    (candidate,) = plan.candidates
    assert (candidate.path, candidate.kind) == (task / "journal", "journal")
    assert "4 trials with 6 arrays" in candidate.proof
    assert f"{4 * 2 * 30 * 8 + 2 + 2 * 5 * 8} bytes" in candidate.proof
    before = snapshot(task)
    report = upkeep.prune(plan)
    assert (report.deleted, report.kept) == (plan.candidates, ())
    after = {name: digest for name, digest in before.items() if not name.startswith("journal")}
    assert snapshot(task) == after
    assert upkeep.check(root).exit_code == 0
    check_content(root, 4)
    assert upkeep.plan_pruning(root).candidates == ()


@pytest.mark.parametrize("change", ["row", "sample", "dataset", "loose", "file", "manifest"])
def test_a_journal_that_holds_more_than_the_files_is_kept(tmp_path: Path, change: str) -> None:
    """Whatever is not as the journal has it: the journal is not offered, and the reason is told."""
    task = published(tmp_path / "data", keep_journal=True, loose=True)
    if change == "row":
        (task / "trials.csv").write_bytes((task / "trials.csv").read_bytes().replace(b"3", b"4"))
    elif change == "sample":
        data = (task / "emg.hdf5").read_bytes()
        at = data.index(samples(2).tobytes())
        (task / "emg.hdf5").write_bytes(data[:at] + b"\1" + data[at + 1 :])
    elif change == "dataset":
        with h5py.File(task / "key.hdf5", "r+") as file:
            del file["3"]
    elif change == "loose":
        shutil.rmtree(task / "interrupted")
    elif change == "file":
        (task / "journal/notes.txt").touch()
    else:
        (task / "manifest.json").unlink()
    plan = upkeep.plan_pruning(tmp_path / "data")
    assert plan.candidates == ()
    if change != "manifest":  # then it is a task that is not published
        (kept,) = plan.kept
        assert kept.path == task / "journal"
    for damage in (False, True):
        assert offered(tmp_path / "data", damaged=damage) == []


def test_a_published_set_that_forgot_a_trial_is_no_proof(tmp_path: Path) -> None:
    """Files that are whole by their own manifest but lack what the journal has: it is kept."""
    root = tmp_path / "data"
    task = published(root, "less", trials=3)
    more = published(root, "more", trials=4, keep_journal=True)
    (more / "journal").rename(task / "journal")
    (kept,) = upkeep.plan_pruning(root / "p0/less").kept
    assert "trial 3" in kept.reason
    shutil.rmtree(task)
    other = published(root, "less", length=31)
    shutil.copytree(published(root, "again", keep_journal=True) / "journal", other / "journal")
    (kept,) = upkeep.plan_pruning(root / "p0/less").kept
    assert "array 'emg' of trial 0 is not published" in kept.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"row_shift": 1}, "row of trial 0 is not the published one"),
        ({"sample_shift": 1}, "array 'emg' of trial 0 differs"),
    ],
)
def test_a_journal_is_compared_value_by_value(
    tmp_path: Path, change: dict[str, int], reason: str
) -> None:
    """A published set of the same shape, whole by its own manifest, with one other value."""
    root = tmp_path / "data"
    task = published(root)
    other = published(
        root,
        "other",
        keep_journal=True,
        row_shift=change.get("row_shift", 0),
        sample_shift=change.get("sample_shift", 0),
    )
    (other / "journal").rename(task / "journal")
    (kept,) = upkeep.plan_pruning(root / "p0/reach").kept
    assert reason in kept.reason


def test_damaged_journals_are_evidence(tmp_path: Path) -> None:
    """They are offered only on demand, and the proof says what would be gone for good."""
    root = tmp_path / "data"
    segment, data = damaged(root)
    upkeep.recover(root)
    plan = upkeep.plan_pruning(root)
    assert plan.candidates == ()
    assert "evidence" in plan.kept[0].reason
    upkeep.prune(plan)
    assert segment.read_bytes() == data
    (candidate,) = upkeep.plan_pruning(root, damaged=True).candidates
    assert "gone for good" in candidate.proof
    assert "3 trials" in candidate.proof or "4 trials" in candidate.proof


def test_an_unpublished_journal_is_never_offered(tmp_path: Path) -> None:
    """It is the only copy."""
    cut_off(tmp_path / "data")
    plan = upkeep.plan_pruning(tmp_path / "data", damaged=True)
    assert plan.candidates == ()


def test_what_is_in_use_is_kept(tmp_path: Path) -> None:
    """A journal that somebody holds is not offered; one that is taken meanwhile is not deleted."""
    root = tmp_path / "data"
    task = published(root, keep_journal=True)
    plan = upkeep.plan_pruning(root)
    lock = acquire(task / "journal" / layout.LOCK, "recorder")
    before = snapshot(root)
    try:
        assert upkeep.plan_pruning(root).candidates == ()
        (kept,) = upkeep.prune(plan).kept
        assert "in use" in kept.reason
    finally:
        lock.release()
    assert snapshot(root) == before


def test_what_has_changed_since_the_plan_is_kept(tmp_path: Path) -> None:
    """A journal that was replaced, or a task that was published anew, needs a new plan."""
    root = tmp_path / "data"
    task = published(root, keep_journal=True)
    plan = upkeep.plan_pruning(root)
    (task / "journal").rename(tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", task / "journal")
    assert "changed" in upkeep.prune(plan).kept[0].reason
    plan = upkeep.plan_pruning(root)
    (task / "manifest.json").touch()
    assert "changed" in upkeep.prune(plan).kept[0].reason
    assert (task / "journal/000001.segment").exists()


# --- the trash ------------------------------------------------------------------------------------


def test_the_trash_is_emptied_where_a_newer_task_stands(tmp_path: Path) -> None:
    """An overwritten task goes, and with the last one the trash itself; the data is untouched."""
    root = tmp_path / "data"
    trashed(root)
    published(root)
    before = snapshot(root)
    plan = upkeep.plan_pruning(root)
    (candidate,) = plan.candidates
    assert candidate.kind == "overwritten task"
    assert "2026-01-02" in candidate.proof
    assert "4 trials" in candidate.proof
    upkeep.prune(plan)
    assert not (tmp_path / "data.trash").exists()
    assert snapshot(root) == before


def test_an_overwritten_task_without_successor_is_kept(tmp_path: Path) -> None:
    """Overwriting that got no further has left the only copy in the trash."""
    root = tmp_path / "data"
    trashed(root)
    (root / "p0/reach").mkdir()
    plan = upkeep.plan_pruning(root, damaged=True)
    assert plan.candidates == ()
    assert "nowhere else" in plan.kept[0].reason


def test_damaged_trash_is_evidence(tmp_path: Path) -> None:
    """As a damaged journal: only on demand."""
    root = tmp_path / "data"
    entry = trashed(root)
    published(root)
    (entry / "key.hdf5").unlink()
    assert offered(root) == []
    assert offered(root, damaged=True) == [entry.name]


def test_what_somebody_else_put_into_the_trash_is_kept(tmp_path: Path) -> None:
    """Only names that trialstore gives are offered."""
    root = tmp_path / "data"
    published(root)
    trash = tmp_path / "data.trash/p0"
    (trash / "thesis").mkdir(parents=True)
    (trash / f"reach.{STAMP}").symlink_to(root / "p0/reach")
    (tmp_path / "data.trash/letter.txt").touch()
    plan = upkeep.plan_pruning(root, damaged=True)
    assert plan.candidates == ()
    assert {entry.path.name for entry in plan.kept} == {"thesis", f"reach.{STAMP}"}


def test_a_subject_or_a_task_has_its_part_of_the_trash(tmp_path: Path) -> None:
    """Pruning one task does not offer another's trash."""
    root = tmp_path / "data"
    for name in ("reach", "rest"):
        trashed(root, name)
        published(root, name)
    assert len(offered(root)) == len(offered(root / "p0")) == len(offered(tmp_path)) == 2
    assert offered(root / "p0/rest") == [f"rest.{STAMP}"]
    assert len(offered(tmp_path / "data.trash")) == 2


def test_a_journal_replaced_by_resuming_is_proved(tmp_path: Path) -> None:
    """Resuming a task whose journal was kept moves the journal to the trash; it is compared."""
    root = tmp_path / "data"
    with open_lab(root, keep_journal=True) as lab:
        with lab.create("reach") as task:
            task.append("emg", samples(0))
            task.write({"n": 0})
        task.resume()
        task.append("emg", samples(1))
        task.write({"n": 1})
        task.close()
    plan = upkeep.plan_pruning(root / "p0/reach")
    assert [candidate.kind for candidate in plan.candidates] == ["journal", "replaced journal"]
    assert all("compared with the published files" in entry.proof for entry in plan.candidates)
    upkeep.prune(plan)
    assert reader_of(root).trials["n"].tolist() == [0, 1]
    assert upkeep.check(root).exit_code == 0


def test_no_link_is_followed(tmp_path: Path) -> None:
    """A link in what is deleted is deleted; what it leads to stays."""
    root = tmp_path / "data"
    entry = trashed(root)
    published(root)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    (entry / "link").symlink_to(precious)
    (entry / "interrupted/file").symlink_to(precious / "thesis.tex")
    upkeep.prune(upkeep.plan_pruning(root))
    assert not entry.exists()
    assert (precious / "thesis.tex").exists()


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.leaves_files
def test_killed_anywhere_and_run_again_it_ends_as_one_run(tmp_path: Path) -> None:
    """At each call to the disk, two deep: everything that was offered is gone, and nothing else."""
    template = tmp_path / "template"
    root = template / "data"
    published(root, "kept", keep_journal=True)
    trashed(root)
    published(root)
    found = killed_over_and_over("prune", template, tmp_path / "work")
    assert found["differences"] == {}
    assert found["kills"] > found["moments"] > 20


@pytest.mark.leaves_files
def test_half_deleted_is_out_of_sight(tmp_path: Path) -> None:
    """What a stopped prune leaves is hidden from every listing, and the next one offers it."""
    root = tmp_path / "data"
    task = published(root, keep_journal=True)
    hidden = task / layout.building_name("pruned", "0123456789ab")
    (task / "journal").rename(hidden)
    (hidden / "000001.witness").unlink()
    assert upkeep.check(root).exit_code == 0
    (candidate,) = upkeep.plan_pruning(root).candidates
    assert (candidate.path, candidate.kind) == (hidden, "being deleted")
    upkeep.prune(upkeep.plan_pruning(root))
    assert not hidden.exists()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_asks(tmp_path: Path) -> None:
    """Entry, size and proof are shown; without a yes nothing is deleted, and the exit code is 1."""
    root = tmp_path / "data"
    published(root, keep_journal=True)
    before = snapshot(root)
    for answer in ("n\n", "\n", ""):
        result = CliRunner().invoke(app, ["prune", str(root)], input=answer)
        assert result.exit_code == 1
        assert "every bit is there" in result.output
        assert "Delete this entry" in result.output
        assert snapshot(root) == before
    result = CliRunner().invoke(app, ["prune", str(root)], input="y\n")
    assert (result.exit_code, "Deleted 1 entry" in result.output) == (0, True)
    assert not (root / "p0/reach/journal").exists()
    result = CliRunner().invoke(app, ["prune", str(root)])
    assert (result.exit_code, "nothing to delete" in result.output) == (0, True)


def test_scripts_say_yes(tmp_path: Path) -> None:
    """``--yes`` does not ask; ``--dry-run`` deletes nothing; JSON does not ask either."""
    root = tmp_path / "data"
    published(root, keep_journal=True)
    before = snapshot(root)
    run = CliRunner().invoke
    assert run(app, ["prune", str(root), "--json"]).exit_code == 2
    planned = run(app, ["prune", str(root), "--dry-run", "--json"])
    (candidate,) = json.loads(planned.output)["candidates"]
    assert candidate["path"] == str(root / "p0/reach/journal")
    assert snapshot(root) == before
    done = run(app, ["prune", str(root), "--yes", "--json"])
    assert (done.exit_code, len(json.loads(done.output)["deleted"])) == (0, 1)


def test_what_cannot_be_deleted_is_told(tmp_path: Path) -> None:
    """The exit code is 1, and the reason names the entry."""
    root = tmp_path / "data"
    task = published(root, keep_journal=True)
    plan = upkeep.plan_pruning(root)
    shutil.rmtree(task / "journal")
    os.mkdir(task / "journal")  # noqa: PTH102 - as a person would
    (kept,) = upkeep.prune(plan).kept
    assert kept.path == task / "journal"
    assert (task / "journal").is_dir()
