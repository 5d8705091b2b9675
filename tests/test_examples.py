"""The examples run as they stand, and what they record is what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trialstore import StorageReader, TaskReader

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.slow


def run(name: str, folder: Path) -> str:
    """Run one example in `folder`, as a user would; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def reader_of(folder: Path, task: str) -> TaskReader:
    storage = StorageReader(folder / "data")
    storage.subject_id = "p0"
    return storage.require_task(task)


def test_every_example_is_tested() -> None:
    """No example lies here that nothing runs."""
    source = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'run("{path.name}"' in source


def test_reaching_is_recorded_and_analysed(tmp_path: Path) -> None:
    """The reaching task runs twice beside itself, and the analysis reports both runs."""
    run("reaching.py", tmp_path)
    run("reaching.py", tmp_path)
    reader = reader_of(tmp_path, "reach_run-02")
    assert (reader.status, len(reader.trials)) == ("complete", 6)
    assert sorted(reader.trials["target"]) == ["ahead", "ahead", "left", "left", "right", "right"]
    assert all(array is not None and array.shape[0] == 2 for array in reader.iterarray("hand"))
    printed = run("analysis.py", tmp_path)
    assert "reach: complete, hand in cm at 100 Hz" in printed
    assert "reach_run-02: complete" in printed


def test_the_amplifier_is_streamed(tmp_path: Path) -> None:
    """Chunks from a driver's thread are trials of the task, and each one became durable."""
    printed = run("amplifier.py", tmp_path)
    reader = reader_of(tmp_path, "stream")
    assert reader.trials["cue"].tolist() == ["flex", "extend", "rest"]
    assert reader.losses == ()
    assert reader.info("emg").channels == ("FCR", "ECR", "BIC", "TRI")
    assert all(array is not None and array.shape[1] >= 40 for array in reader.iterarray("emg"))
    assert [f"trial {number} is durable" in printed for number in range(3)] == [True] * 3
