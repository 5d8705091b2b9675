"""``trialstore demo``: the main job, on a real recording, from the command line."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from tests.conftest import wait_until
from trialstore import StorageError, StorageReader, TaskReader
from trialstore._cli import demo, ecg
from trialstore._cli.app import app
from trialstore._cli.comparison import differences
from trialstore._cli.playback import ARRAY, Plan, Playback
from trialstore._cli.report import Lateness

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RECORDING = ecg.load()
SAMPLES = Path(ecg.__file__).with_name(ecg.NAME)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "trialstore", "demo", *options]


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`, as a user would, at twenty times the speed."""
    return subprocess.run(
        command("--seconds", "6", "--trial-seconds", "2.5", "--speed", "20", *options),
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def recorded(root: Path, seconds: float = 2.0, trial_seconds: float = 0.5) -> Playback:
    """Record a little in this process and return what was played."""
    takes = ecg.cut(RECORDING, seconds, trial_seconds)
    playback = Playback(Plan(root, "p0", takes, RECORDING.rate, speed=50.0))
    demo.record(playback, "asyncio", Console(file=io.StringIO()))
    return playback


def examined(playback: Playback, pictures: Path) -> tuple[int, str]:
    """Read a recording back, as the demo does; return the exit code and what was shown."""
    console = Console(file=io.StringIO(), width=200)
    code = demo.examine(playback, console, pictures)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def reader_of(playback: Playback) -> TaskReader:
    assert playback.folder is not None
    return TaskReader(playback.folder)


# -- the main job ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_recording_is_on_disk_bit_by_bit(tmp_path: Path, backend: str) -> None:
    """What the demo leaves behind equals its source for csv and h5py, which know no trialstore."""
    done = run_demo(tmp_path, "--backend", backend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 rows and 2160 samples: bit by bit what was played" in done.stdout
    task = tmp_path / "trialstore-demo" / "p0" / "ecg"
    with np.load(SAMPLES, allow_pickle=False) as arrays:
        source = arrays["adc"]
    with (task / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with h5py.File(task / "ecg.hdf5") as file:
        for number, (start, end) in enumerate([(0, 900), (900, 1800), (1800, 2160)]):
            samples = file[str(number)][:]
            assert samples.dtype == np.uint16
            np.testing.assert_array_equal(samples, source[np.newaxis, start:end])
            assert (rows[number]["trial"], rows[number]["start"]) == (str(number), str(start))
            assert float(rows[number]["peak_mV"]) == (source[start:end].max() - 1024.0) / 200.0


@pytest.mark.slow
def test_everything_is_shown(tmp_path: Path) -> None:
    """A first-time user sees the four levels, the trials, lateness, the files and the picture."""
    done = run_demo(tmp_path, "--root", "here", "--subject", "Zoë [bold]")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("accepted", "written", "durable", "published", "queue", "beats", "manifest.json"):
        assert word in done.stdout
    assert re.search(r"trials +3 +3 +3 +3\b", done.stdout)
    assert re.search(
        r"late by [\d.]+ ms \(median\), [\d.]+ ms \(99 %\), [\d.]+ ms \(max\)", done.stdout
    )
    assert done.stderr == ""
    picture = tmp_path / "here" / "Zoë [bold]-ecg.png"
    assert f"Plot: {picture.relative_to(tmp_path)}" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_running_twice_keeps_both(tmp_path: Path) -> None:
    """A second run with the same root is recorded beside the first."""
    assert [run_demo(tmp_path, "--root", "here").returncode for _ in range(2)] == [0, 0]
    storage = StorageReader(tmp_path / "here")
    storage.subject_id = "p0"
    assert storage.task_ids == ["ecg", "ecg_run-02"]
    assert [storage.require_task(task).status for task in storage.task_ids] == ["complete"] * 2


@pytest.mark.slow
def test_no_keep_leaves_only_the_picture(tmp_path: Path) -> None:
    """With --no-keep the temporary folder is gone after the comparison."""
    done = run_demo(tmp_path, "--no-keep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit by bit what was played" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["p0-ecg.png"]


def test_the_manifest_says_where_the_recording_comes_from(tmp_path: Path) -> None:
    """Rate, channel, source and licence stand with the data."""
    reader = reader_of(recorded(tmp_path))
    assert reader.metadata["doi"] == "10.13026/C2F305"
    assert reader.metadata["licence"] == "ODC-BY 1.0"
    info = reader.info(ARRAY)
    assert (info.rate, info.channels, info.dims) == (360.0, ("MLII",), ("channel", "time"))


# -- the comparison -------------------------------------------------------------------------------


def flipped(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    adc = takes[2].adc.copy()
    adc[17] ^= 1
    return [*takes[:2], takes[2]._replace(adc=adc), *takes[3:]]


def with_other_beats(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    return [takes[0]._replace(attrs={**takes[0].attrs, "beats": 99}), *takes[1:]]


def with_float_start(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    return [takes[0]._replace(attrs={**takes[0].attrs, "start": 0.0}), *takes[1:]]


def with_other_column(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    return [take._replace(attrs={**take.attrs, "extra": 1}) for take in takes]


def one_more(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    return [*takes, takes[0]]


def shorter(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    return [takes[0]._replace(adc=takes[0].adc[:-1]), *takes[1:]]


def of_other_dtype(takes: Sequence[ecg.Take]) -> list[ecg.Take]:
    adc: Any = takes[0].adc.astype(np.int16)
    return [takes[0]._replace(adc=adc), *takes[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flipped, "trial 2: 1 of 180 samples differ"),
        (with_other_beats, "trial 0: beats is"),
        (with_float_start, "trial 0: start is 0, played was 0.0"),
        (with_other_column, "columns"),
        (one_more, "4 rows where 5 trials were played"),
        (shorter, "trial 0: uint16 of shape (1, 180), played was uint16 of shape (1, 179)"),
        (of_other_dtype, "trial 0: uint16 of shape (1, 180), played was int16"),
    ],
)
def test_one_difference_is_found(
    tmp_path: Path, change: Callable[[Sequence[ecg.Take]], list[ecg.Take]], said: str
) -> None:
    """One bit, value, type, column or row that is not what was played is named."""
    playback = recorded(tmp_path)
    reader = reader_of(playback)
    assert differences(reader, ARRAY, playback.plan.takes) == []
    first, *_ = differences(reader, ARRAY, change(playback.plan.takes))
    assert said in first


def test_a_sample_that_differs_ends_with_one(tmp_path: Path) -> None:
    """The exit code is 1 as soon as one bit of one sample is not what was played."""
    playback = recorded(tmp_path)
    assert examined(playback, tmp_path)[0] == 0
    changed = Plan(tmp_path, "p0", flipped(playback.plan.takes), RECORDING.rate)
    code, shown = examined(Playback(changed, playback.folder), tmp_path)
    assert code == 1
    assert "NOT what was played" in shown
    assert "trial 2: 1 of 180 samples differ" in shown


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Change the first place where `old` stands in a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_a_damaged_array_ends_with_one(tmp_path: Path) -> None:
    """A bit that flips in the published HDF5 file between recording and reading is found."""
    playback = recorded(tmp_path)
    assert playback.folder is not None
    samples = playback.plan.takes[3].adc.astype("<u2").tobytes()
    damage(playback.folder / "ecg.hdf5", samples, bytes([samples[0] ^ 1]) + samples[1:])
    code, shown = examined(playback, tmp_path)
    assert code == 1
    assert "DamagedData" in shown or "lost" in shown
    assert str(playback.folder) in shown
    assert "bit by bit what was played" not in shown


def test_a_damaged_row_ends_with_one(tmp_path: Path) -> None:
    """A digit that changes in trials.csv between recording and reading is found."""
    playback = recorded(tmp_path)
    assert playback.folder is not None
    damage(playback.folder / "trials.csv", b"\n1,180,", b"\n1,181,")
    assert examined(playback, tmp_path)[0] == 1


# -- interruption, bad options, failures ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_keeps_what_was_recorded(tmp_path: Path, backend: str) -> None:
    """After Ctrl-C the exit code is 130, the trials so far are whole, and their folder is named."""
    options = ("--root", "here", "--trial-seconds", "0.5", "--speed", "5", "--seconds", "300")
    process = subprocess.Popen(
        command(*options, "--backend", backend),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    storage = StorageReader(tmp_path / "here")
    storage.subject_id = "p0"

    def has_trials() -> bool:
        try:
            return len(storage.require_task("ecg").trials) >= 2
        except StorageError:
            return False

    assert wait_until(has_trials, 60.0)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    reader = storage.require_task("ecg")
    count = len(reader.trials)
    assert "Interrupted. What was recorded is kept in 'here/p0/ecg'." in shown
    assert f"It holds {count} trials, status interrupted." in shown
    takes = ecg.cut(RECORDING, 300, 0.5)[:count]
    assert differences(reader, ARRAY, takes) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--subject", "a/b"], "'a/b'"),
        (["--subject", ""], "''"),
        (["--speed", "0"], "must be a positive number, not 0.0"),
        (["--speed", "nan"], "must be a positive number, not nan"),
        (["--seconds", "301"], "the recording is 300 s long, not 301"),
        (["--trial-seconds", "-1"], "must be a positive number, not -1.0"),
        (["--backend", "curio"], "curio"),
        (["--root", "file"], "'file'"),
        (["--root", "x", "--no-keep"], "leave one of the two out"),
    ],
)
def test_bad_options_give_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    """An option that makes no sense is named, with the reason, before anything is recorded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 2
    (message,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert said in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="makes a symbolic link")
def test_a_root_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """A disk that refuses gives the message of the StorageError and exit code 1, no traceback."""
    (tmp_path / "root").symlink_to(tmp_path / "nowhere" / "at all")
    done = run_demo(tmp_path, "--root", "root")
    assert done.returncode == 1
    assert "StorageError: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_without_the_extra_the_message_says_how_to_install_it() -> None:
    """Without typer, rich or matplotlib the command is one clear line and exit code 1."""
    code = "import sys; sys.modules['rich'] = None; import trialstore._cli as c; c.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "trialstore: the command needs rich: pip install 'trialstore[cli]'\n"


# -- the recording that is shipped ----------------------------------------------------------------


def test_the_shipped_recording_is_the_one_that_is_described() -> None:
    """Five minutes at 360 Hz, unsigned 16-bit, read-only, with its licence beside it."""
    assert (RECORDING.adc.shape, RECORDING.rate) == ((108_000,), 360.0)
    assert RECORDING.adc.dtype == np.uint16
    assert not RECORDING.adc.flags.writeable
    note = SAMPLES.with_name("README.md").read_text(encoding="utf-8")
    for words in ("ODC-BY 1.0", "10.13026/C2F305", "Moody", "PhysioNet", "(adc - 1024) / 200"):
        assert words in note


@given(
    seconds=st.floats(0.001, 300.0),
    trial_seconds=st.floats(0.05, 400.0),
)
def test_trials_cover_the_recording_without_gap_or_overlap(
    seconds: float, trial_seconds: float
) -> None:
    """Joined, the trials are the first part of the recording, and their rows say where they lie."""
    takes = ecg.cut(RECORDING, seconds, trial_seconds)
    joined = np.concatenate([take.adc for take in takes])
    assert abs(len(joined) - seconds * RECORDING.rate) <= 1
    np.testing.assert_array_equal(joined, RECORDING.adc[: len(joined)])
    ends = np.cumsum([take.attrs["samples"] for take in takes])
    assert [take.attrs["start"] for take in takes] == [0, *ends[:-1]]
    assert [take.attrs["trial"] for take in takes] == list(range(len(takes)))


def test_beats_are_counted() -> None:
    """The first twenty seconds hold the 39 beats that a person counts in the plot."""
    assert ecg.beats(RECORDING.adc[: 20 * 360], RECORDING.rate) == 39
    assert ecg.beats(RECORDING.adc[:3], RECORDING.rate) == 0
    assert ecg.beats(np.full(360, 1024, np.uint16), RECORDING.rate) == 0


def test_lateness_is_given_in_milliseconds() -> None:
    """Median, 99th percentile and maximum of what the loop noted in seconds."""
    late = Lateness.of([0.001] * 99 + [0.101])
    assert (late.median, late.worst) == pytest.approx((1.0, 101.0))
    assert 1.0 <= late.p99 <= 101.0
    assert Lateness.of([]) == (0.0, 0.0, 0.0)
