"""`trialstore drill`: what it says of figures, and one short run as a lab would do it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from matplotlib.image import imread

from tests.conftest import wait_until
from trialstore._cli.drill import disk, loop, recording, victim
from trialstore._cli.drill.load import Load, seconds_of
from trialstore._cli.drill.plot import draw
from trialstore._cli.drill.verdict import Crash, DiskFigures, Findings, Step, summary

if TYPE_CHECKING:
    from pathlib import Path

LOAD = Load(4, 1000.0, np.dtype("int16"), 0.01)


def step(factor: float = 1.0, **changes: Any) -> Step:
    """Return a run that held; `changes` say where not."""
    values: dict[str, Any] = {
        "factor": factor,
        "bytes_per_second": 8000.0 * factor,
        "seconds": 4.0,
        "chunks": 400,
        "behind": 0.0,
        "late": np.full(4000, 0.001, np.float32),
        "queue_limit": 2**28,
        "queue_peak": 1000,
        "queue_bytes": 100,
        "longest_to_durable": 0.014,
        "longest_hold": 0.0001,
        "cpu": 0.1,
        "loop": 0.05,
        "closing": 0.1,
    }
    return Step(**values | changes)


# --- pure -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("1ms", 1e-3), ("0.5 s", 0.5), ("20us", 2e-5), ("2min", 120.0)]
)
def test_durations_are_written_as_people_do(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "ms", "-1s", "0s", "1h30", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The message says how to write it."""
    with pytest.raises(ValueError, match="write 1ms"):
        seconds_of(text)


def test_a_load_at_a_higher_rate_comes_in_chunks_as_often() -> None:
    """Twice the rate is twice the samples in each chunk."""
    twice = LOAD.times(2)
    assert (LOAD.samples, twice.samples, LOAD.period, twice.period) == (10, 20, 0.01, 0.01)
    assert twice.bytes_per_second == 2 * LOAD.bytes_per_second == 16_000
    assert str(twice) == "4 channels at 2 kHz (int16)"


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", "u8", "f4", "f8"])
def test_chunks_are_the_same_in_every_process_and_differ_from_one_another(dtype: str) -> None:
    """What is read back can be compared without being kept."""
    load = Load(4, 1000.0, np.dtype(dtype), 0.01)
    first, again, second = load.chunk_of(0), load.chunk_of(0), load.chunk_of(1)
    assert (first.dtype, first.shape) == (np.dtype(dtype), (4, 10))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_a_computer_with_headroom() -> None:
    """The highest rate that held is the headroom, what gave way next is named."""
    late = np.full(4000, 0.001, np.float32)
    findings = Findings(LOAD, idle=late, steps=[step(), step(2.0), step(4.0, behind=0.5)])
    findings.crash = Crash(40, 41, ())
    assert (findings.holds, findings.headroom, findings.limit) == (True, 2.0, "disk")
    assert findings.is_good
    assert findings.sentences() == [
        (
            "This computer records 4 channels at 1 kHz (int16) with 2.0 × headroom "
            "(then the disk gives way)."
        ),
        "Worst loop delay 1.0 ms while recording, 1.0 ms idle.",
        "After a power cut you lose at most 14.0 ms.",
        (
            "A recorder killed in the middle lost none of 40 trials that it had been told to be "
            "durable."
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"queue_peak": 2**28}, "disk"),
        ({"queue_bytes": 20_000}, "disk"),
        ({"behind": 0.2}, "disk"),
        ({"behind": 0.2, "cpu": 0.99}, "CPU"),
        ({"loop": 0.95}, "loop"),
        ({"late": np.full(4000, 0.02, np.float32)}, "loop"),
        ({}, None),
    ],
)
def test_what_gives_way_is_named(changes: dict[str, Any], limit: str | None) -> None:
    """Disk, CPU and loop are told from one another."""
    findings = Findings(LOAD, steps=[step(**changes)])
    assert findings.limit == limit
    assert findings.is_good == (limit is None)
    if limit:
        assert (
            f"does NOT record 4 channels at 1 kHz (int16): the {limit} gives way"
            in (findings.sentences()[0])
        )


def test_a_loop_that_is_late_by_itself_is_not_blamed_on_the_recorder() -> None:
    """On a computer whose idle loop is late as often, recording changes nothing."""
    late = np.where(np.arange(4000) % 20 == 0, 0.02, 0.0).astype(np.float32)
    assert Findings(LOAD, idle=late, steps=[step(late=late)]).limit is None
    assert Findings(LOAD, steps=[step(late=late)]).limit == "loop"


def test_a_loss_in_the_crash_is_no_good_verdict() -> None:
    """Speed is nothing without the data."""
    findings = Findings(LOAD, steps=[step()], crash=Crash(40, 38, (38, 39)))
    assert not findings.is_good
    assert "LOST 2 of 40" in findings.sentences()[-1]


def test_every_part_may_be_missing(tmp_path: Path) -> None:
    """Ctrl-C may come at any time: what is known is told, drawn and written as JSON."""
    findings = Findings(LOAD)
    assert findings.sentences() == ["Nothing can be said yet about 4 channels at 1 kHz (int16)."]
    assert not findings.is_good
    for part in (
        {"idle": np.zeros(0, np.float32)},
        {"disk": DiskFigures(1e8, 1e-3, 2e-3, 3e-3, 4e-3, 10**9)},
        {"file_system": ("nfs4", True)},
        {"steps": [step()]},
    ):
        for name, value in part.items():
            setattr(findings, name, value)
        json.dumps(findings.to_json())
        draw(findings, tmp_path / "plot.png")
    assert findings.seconds_of_room == 10**9 / 16_000
    assert "remote (nfs4)" in findings.sentences()[-1]


def test_lateness_in_figures() -> None:
    """The share counts ticks more than 5 ms late."""
    found = summary(np.array([0.0, 0.001, 0.006, 0.004], np.float32))
    assert (found["ticks"], found["share_later_than_5_ms"]) == (4, 0.25)
    assert found["worst"] == pytest.approx(0.006)
    assert summary(np.zeros(0, np.float32)) == {"ticks": 0}


# --- real -------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_loop_that_was_held_is_late_for_every_tick_it_missed() -> None:
    """Holding the loop for 50 ms costs about fifty ticks, the first of them 50 ms."""
    import time

    probe = loop.Probe(10.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(probe.run)
        while len(probe.late) < 5:
            await anyio.lowlevel.checkpoint()
        end = time.perf_counter() + 0.05
        before = len(probe.late)
        while time.perf_counter() < end:
            pass
        while len(probe.late) == before:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    held = probe.late[before:]
    assert held.max() > 0.04
    assert (held > 0.02).sum() >= 20


@pytest.mark.slow
def test_the_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    """Figures are positive and in order, and no file remains."""
    heard: list[float] = []
    found = disk.measure(tmp_path, 0.2, heard.append)
    assert found.throughput > 0
    assert 0 < found.median <= found.p90 <= found.p99 <= found.worst
    assert found.free > 0
    assert heard
    assert not list(tmp_path.iterdir())


async def test_the_load_goes_through_the_recorder(tmp_path: Path) -> None:
    """Every chunk is recorded, as trials of a second, and the figures are the recorder's own."""
    found = await recording.record(tmp_path, "x1", LOAD, 1.0, 1.0, lambda _: None)
    assert found.chunks == 100
    assert found.longest_to_durable > 0
    assert len(found.late) > 0

    def look() -> None:
        kind, is_network = recording.file_system(tmp_path / recording.SUBJECT / "x1")
        assert kind is None or isinstance(kind, str)
        assert is_network is False

    await anyio.to_thread.run_sync(look)


@pytest.mark.slow
@pytest.mark.leaves_files
def test_a_recorder_is_killed_and_what_it_was_told_is_there(tmp_path: Path) -> None:
    """Acknowledged trials are compared sample by sample; a changed one would be missing."""
    found = victim.kill_one(tmp_path, LOAD, 5, 10.0)
    assert found.missing == ()
    assert 5 <= found.acknowledged <= found.found
    folder = tmp_path / recording.SUBJECT / "killed"
    assert wait_until(lambda: not (folder / "journal").exists())
    from trialstore import TaskReader

    other = Load(4, 1000.0, np.dtype("int16"), 0.02)
    assert victim.examine(TaskReader(folder), other, 3).missing == (0, 1, 2)


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command."""
    command = [sys.executable, "-m", "trialstore", "drill", str(root), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root.parent
    )


SMALL = ("--channels", "2", "--rate", "1000", "--chunk", "10ms", "--duration", "0.3s")


@pytest.mark.slow
def test_the_command_prints_a_verdict_and_leaves_nothing(tmp_path: Path) -> None:
    """JSON on standard output, a picture where it was asked for, and the root as it was."""
    with start(tmp_path / "new", *SMALL, "--json", "--plot", "late.png") as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode in {0, 1}, err
    found = json.loads(out)
    assert found["load"]["bytes_per_second"] == 4000
    assert found["steps"][0]["factor"] == 1.0
    assert found["crash"]["missing"] == []
    assert "2 channels at 1 kHz" in found["verdict"]
    assert imread(tmp_path / "late.png").ndim == 3
    assert [path.name for path in tmp_path.iterdir()] == ["late.png"]


@pytest.mark.slow
def test_ctrl_c_gives_what_is_known(tmp_path: Path) -> None:
    """Exit code 130, a partial verdict, and nothing left behind."""
    root = tmp_path / "data"
    root.mkdir()
    with start(root, *SMALL[:-1], "600s") as process:
        try:
            assert wait_until(lambda: any(root.glob(".trialstore-drill-*/drill/x1/journal")), 120)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Interrupted" in out
    assert "throughput" in out
    assert not list(root.iterdir())


@pytest.mark.parametrize(
    "options",
    [("--dtype", "object"), ("--dtype", "nonsense"), ("--chunk", "5"), ("--channels", "0")],
)
@pytest.mark.slow
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Exit code 2, and the option is named."""
    with start(tmp_path / "new", *options) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert options[0] in err
    assert not (tmp_path / "new").exists()
