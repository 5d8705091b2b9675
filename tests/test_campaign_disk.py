"""The rows of sick disks, each with a small effort."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.campaign import (
    clockfaults,
    diskfaults,
    fullfaults,
    limitfaults,
    rofaults,
    slowfaults,
    strayfaults,
)
from tests.campaign.frame import CannotRun, Effort, Outcome
from tests.shims import Action, Call, Faults, JumpingClock, set_clock, slow_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.leaves_files]

EFFORT = Effort()
PROGRAM = """
import os, sys
folder = sys.argv[1]
answers = []
for number in range(4):
    fd = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT)
    try:
        answers.append(os.writev(fd, [b"hello ", b"world"]))
        os.fsync(fd)
    except OSError as error:
        answers.append(error.errno)
    os.close(fd)
print(answers)
"""


def clean(attempt: Callable[[Outcome], object]) -> Outcome:
    """Run a part of a row, which must break no promise."""
    outcome = Outcome("tries")
    try:
        attempt(outcome)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert outcome.is_clean, outcome.problems
    return outcome


def run(program: str, *arguments: str, environment: dict[str, str]) -> str:
    """Run a program under a shim and return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


@pytest.fixture
def faults() -> Faults:
    try:
        return Faults()
    except CannotRun as reason:
        pytest.skip(str(reason))


def test_the_shim_fails_the_call_it_is_told(tmp_path: Path, faults: Faults) -> None:
    """Exactly the n-th write below the folder fails; the shim tells what it saw and did."""
    with faults:
        rule = faults.arm(Call.WRITE, tmp_path, first=2, count=1)
        assert run(PROGRAM, str(tmp_path), environment=faults.environment) == "[11, 5, 11, 11]"
        assert (rule.seen, rule.hit, faults.synced_again) == (4, 1, 0)


def test_the_shim_cuts_writes_short(tmp_path: Path, faults: Faults) -> None:
    """A write takes a part of its bytes, over the pieces of writev."""
    with faults:
        faults.arm(Call.WRITE, tmp_path, action=Action.SHORTEN, parts=0, count=1)
        faults.arm(Call.WRITE, tmp_path, action=Action.SHORTEN, parts=2, first=2, count=1)
        assert run(PROGRAM, str(tmp_path), environment=faults.environment) == "[1, 6, 11, 11]"
    assert [len((tmp_path / str(n)).read_bytes()) for n in range(4)] == [1, 6, 11, 11]


def test_the_shim_spares_other_folders(tmp_path: Path, faults: Faults) -> None:
    """Only what lies below the folder is sick: not its neighbour of a longer name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    with faults:
        rule = faults.arm(Call.WRITE | Call.SYNC | Call.CREATE, tmp_path / "data", count=0)
        environment = faults.environment
        assert run(PROGRAM, str(tmp_path / "data2"), environment=environment) == "[11, 11, 11, 11]"
        assert rule.seen == 0


def test_the_shim_notices_a_second_fsync(tmp_path: Path, faults: Faults) -> None:
    """A descriptor that is asked for an fsync after one has failed is counted."""
    program = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1] + '/file', os.O_WRONLY | os.O_CREAT)\n"
        "try:\n    os.fsync(fd)\nexcept OSError as error:\n    print(error.errno)\n"
        "os.fsync(fd)\n"
    )
    with faults:
        faults.arm(Call.SYNC, tmp_path)
        assert run(program, str(tmp_path), environment=faults.environment) == "5"
        assert faults.synced_again == 1


def test_a_slow_disk_needs_no_control_file(tmp_path: Path) -> None:
    """`slow_disk` delays each write and fsync below a folder, in whatever program it is set for."""
    try:
        environment = slow_disk(0.05, tmp_path)
    except CannotRun as reason:
        pytest.skip(str(reason))
    program = (
        "import os, sys, time\n"
        "fd = os.open(sys.argv[1] + '/file', os.O_WRONLY | os.O_CREAT)\n"
        "began = time.monotonic()\nos.write(fd, b'x')\nos.fsync(fd)\n"
        "print(time.monotonic() - began >= 0.1)\n"
    )
    assert run(program, str(tmp_path), environment=environment) == "True"


def test_the_clock_jumps() -> None:
    """Only the wall clock is shifted, and it can stand still."""
    program = "import time; print(time.time_ns(), time.monotonic_ns() < 10**18)"
    try:
        clock = JumpingClock()
    except CannotRun as reason:
        pytest.skip(str(reason))
    with clock:
        set_clock(clock.control, standing_ns=1_500_000_000)
        assert run(program, environment=clock.environment) == "1500000000 True"
        set_clock(clock.control, shift_ns=-(10**9) * 86400 * 3650)
        told = int(run(program, environment=clock.environment).split()[0])
        assert told < 10**9 * 86400 * 365 * 47


def test_a_strict_disk_notices_a_second_sync(tmp_path: Path) -> None:
    """The disk of rows 15 and 16 counts what it is there to count."""
    disk = diskfaults.StrictDisk(tmp_path)
    disk.fail("sync")
    fd = disk.create(tmp_path / "file")
    with pytest.raises(OSError, match="Input/output"):
        disk.sync(fd)
    disk.sync(fd)
    disk.close(fd)
    assert disk.synced_again == 1


@pytest.mark.parametrize("kind", ["write", "sync", "create", "sync_folder"])
@pytest.mark.parametrize("length", ["once", "until told"])
@pytest.mark.parametrize("fallback", [False, True])
def test_the_nth_call_fails(
    tmp_path: Path, kind: str, length: diskfaults.Length, fallback: bool
) -> None:
    """Rows 15 and 16: nothing is lost, wherever it goes on."""

    def attempt(outcome: Outcome) -> None:
        for nth in (1, 5, 6):
            folder = tmp_path / str(nth)
            folder.mkdir()
            diskfaults._try_port(folder, kind, "before", nth, length, fallback, outcome)  # type: ignore[arg-type]

    clean(attempt)


@pytest.mark.parametrize("of_publisher", [False, True])
def test_the_nth_call_fails_below_libc(
    tmp_path: Path, faults: Faults, *, of_publisher: bool
) -> None:
    """Rows 15 and 16 on a real recorder and a real publisher."""
    with faults:
        outcome = clean(
            lambda outcome: diskfaults._shim_run(
                tmp_path, faults, Call.WRITE, 9, 1, outcome, of_publisher=of_publisher
            )
        )
    assert outcome.tried == 1


def test_row_18() -> None:
    """A disk that is full in the middle of a trial."""
    for policy in ("wait", "raise", "drop"):
        clean(partial(fullfaults._try_full_port, EFFORT, 6001, policy, False))
    clean(partial(fullfaults._try_reserve, EFFORT, 700))


def test_row_18_tmpfs() -> None:
    """A real file system that is full."""
    clean(partial(fullfaults._try_full_tmpfs, EFFORT, 80, "wait", False))


def test_row_19() -> None:
    """No room for the published copy."""
    clean(partial(fullfaults._try_unpublishable, EFFORT, 0.3, False))


def test_row_20() -> None:
    """Limits of this user."""
    clean(partial(limitfaults._try_size, EFFORT, 9000))
    clean(partial(limitfaults._try_descriptors, EFFORT, 3))
    clean(partial(limitfaults._try_failover, EFFORT, 0))


def test_row_21() -> None:
    """No inodes at the start."""
    clean(partial(limitfaults._try_inodes, EFFORT, 6))


@pytest.mark.parametrize("row", [diskfaults.run_short, diskfaults.run_signals])
def test_rows_22_and_23(row: Callable[[Effort], Outcome]) -> None:
    """Short writes, EINTR and signals are not felt."""
    clean(lambda outcome: outcome.add(row(EFFORT)))


@pytest.mark.parametrize("fallback", [False, True])
def test_row_24(*, fallback: bool) -> None:
    """A file system that becomes read-only."""
    clean(partial(rofaults._try_shim, EFFORT, 6, fallback))


def test_row_24_ext4() -> None:
    """An ext4 that the kernel makes read-only."""
    clean(partial(rofaults._try_ext4, EFFORT, 6, True))


def test_row_25() -> None:
    """A slow disk."""
    clean(partial(slowfaults._try_slow, EFFORT, 0.2, "raise"))


def test_row_26() -> None:
    """A disk that stops answering."""
    clean(partial(slowfaults._try_hung, EFFORT, Call.SYNC, 6, False))


@pytest.mark.parametrize("is_reused", [False, True])
@pytest.mark.parametrize("victim", ["segment", "all"])
def test_row_30(tmp_path: Path, victim: str, *, is_reused: bool) -> None:
    """Descriptors that stray code closes."""
    clean(partial(strayfaults._try_descriptors, tmp_path, victim, is_reused, 5, 0))


@pytest.mark.parametrize("name", list(strayfaults._ACCIDENTS))
def test_row_31(tmp_path: Path, name: str) -> None:
    """Accidents of the journal."""
    accident, is_whole = strayfaults._ACCIDENTS[name]
    clean(partial(strayfaults._try_accident, tmp_path, name, accident, is_whole, 6))


def test_row_36() -> None:
    """The clock jumps."""
    clean(lambda outcome: outcome.add(clockfaults.run(EFFORT)))
