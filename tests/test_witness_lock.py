"""The witness's two slots, and the lock that only one living process holds."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialstore import TaskLocked
from trialstore._ondisk import witness
from trialstore._ondisk.lock import Holder, Lock, acquire, holder
from trialstore._ondisk.numbers import MOST
from trialstore._ondisk.witness import SLOT_SIZE, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SESSION, BOOT = bytes(range(16)), bytes(range(16, 32))
FIRST = Witness(1, SESSION, BOOT, seq=2, offset=500, trials=1, chain=7, monotonic_ns=99)
SECOND = replace(FIRST, count=2, seq=5, offset=900, trials=3)

uint64 = st.integers(0, 2**64 - 1)
number = st.integers(0, MOST)
statements = st.builds(
    Witness,
    count=uint64,
    session=st.binary(min_size=16, max_size=16),
    boot=st.binary(min_size=16, max_size=16),
    seq=number,
    offset=st.integers(0, 2**63 - 1),
    trials=number,
    chain=st.integers(0, 2**32 - 1),
    monotonic_ns=uint64,
)


def file_with(*written: Witness) -> bytes:
    """Return a witness file after these statements, as the recorder writes them."""
    data = bytearray(2 * SLOT_SIZE)
    for statement in written:
        data[statement.position : statement.position + SLOT_SIZE] = statement.encode()
    return bytes(data)


# --- the witness ------------------------------------------------------------------------------


@given(statements)
def test_a_statement_comes_back_as_it_was_made(statement: Witness) -> None:
    """Any statement is one sector and is read back equal."""
    assert len(statement.encode()) == SLOT_SIZE
    data = file_with(statement)
    assert witness.newest(data, statement.session) == statement
    assert witness.owner(data) == statement.session


@given(st.integers(1, 40))
def test_the_newest_statement_counts(last: int) -> None:
    """However many were written, in turn into two slots, the last one is found."""
    made = [replace(FIRST, count=count, seq=count) for count in range(1, last + 1)]
    assert witness.newest(file_with(*made), SESSION) == made[-1]


def test_the_slot_is_the_parity_of_the_count() -> None:
    """A statement never overwrites the one before it."""
    assert [replace(FIRST, count=count).position for count in range(4)] == [0, 512, 0, 512]


def test_every_torn_slot_leaves_the_statement_before() -> None:
    """Cut anywhere while the newer slot is written, the older statement stands."""
    before, after = file_with(FIRST), file_with(FIRST, SECOND)
    for written in range(SLOT_SIZE):
        torn = after[:written] + before[written:]
        found = witness.newest(torn, SESSION)
        assert found == (SECOND if torn == after else FIRST)


def test_every_flipped_bit_leaves_one_of_the_two_statements() -> None:
    """No bit can make up a statement; at most one of the two is lost."""
    data = file_with(FIRST, SECOND)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert witness.newest(flipped, SESSION) in {FIRST, SECOND}
        assert witness.owner(flipped) == SESSION


@given(st.binary(max_size=2 * SLOT_SIZE + 10))
def test_other_bytes_say_nothing(data: bytes) -> None:
    """A file that is no witness, or cut short, or empty, is no evidence and no error."""
    assert witness.newest(data, SESSION) is None
    assert witness.owner(data) is None


def test_what_is_said_of_another_session_is_not_believed() -> None:
    """A witness that does not belong to the segment beside it tells nothing about it."""
    assert witness.newest(file_with(FIRST, SECOND), bytes(16)) is None


# --- the lock ---------------------------------------------------------------------------------

#: Takes a lock, says so, and holds it until its input ends.
HOLDER = """
import sys
from pathlib import Path
from trialstore._ondisk.lock import acquire
taken = acquire(Path(sys.argv[1]), sys.argv[2])
print("taken", flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that holds the lock."""

    def __init__(self, path: Path, role: str = "recorder") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"taken\n"

    def end(self, number: int = signal.SIGKILL) -> None:
        """End the process as a crash does."""
        self.process.send_signal(number)
        self.process.communicate()


def is_held(taken: Lock) -> bool:
    """Ask again each time; a type checker would believe the first answer."""
    return taken.held


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the lock of a task is."""
    (tmp_path / "reach" / "journal").mkdir(parents=True)
    return tmp_path / "reach" / "journal" / "lock"


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    """Hold the lock in another process."""
    process = Other(path)
    yield process
    process.end()


def test_a_lock_is_held_until_it_is_released(path: Path) -> None:
    """Taken, held, released, taken again; the file stays."""
    first = acquire(path, "recorder")
    assert is_held(first)
    with pytest.raises(TaskLocked):
        acquire(path, "publisher", patience=0.0)
    first.release()
    assert not is_held(first)
    first.release()
    assert path.exists()
    second = acquire(path, "publisher")
    assert is_held(second)
    second.release()


def test_another_recorder_is_named(path: Path, other: Other) -> None:
    """The message tells on which host, which process, since when, so that a person can go there."""
    with pytest.raises(TaskLocked) as caught:
        acquire(path, "recorder", patience=0.0)
    message = str(caught.value)
    assert repr(str(path.parent.parent)) in message
    assert repr(platform.node()) in message
    assert f"process {other.process.pid}" in message
    since = json.loads(path.read_bytes())["since"]
    assert f"since {since}" in message
    assert since.endswith("+00:00")


def test_a_holder_that_is_killed_has_let_go(path: Path, other: Other) -> None:
    """The kernel takes the lock back, whatever the file still says."""
    assert holder(path) == Holder(
        platform.node(), other.process.pid, json.loads(path.read_bytes())["since"], "recorder"
    )
    other.end()
    assert holder(path) is None
    acquire(path, "recorder", patience=0.0).release()


def test_asking_who_holds_it_disturbs_nobody(path: Path, other: Other) -> None:
    """A reader's question changes no byte and takes nothing, however often it is asked."""
    before = path.read_bytes(), path.stat().st_mtime_ns
    for _ in range(200):
        found = holder(path)
        assert found is not None
        assert found.pid == other.process.pid
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    other.end()
    for _ in range(200):
        assert holder(path) is None
    acquire(path, "recorder", patience=0.0).release()


def test_nobody_holds_a_lock_that_is_not_there(path: Path) -> None:
    """Asking creates no file."""
    assert holder(path) is None
    assert not path.exists()


def test_a_lock_file_that_was_replaced_is_not_held_any_more(path: Path) -> None:
    """Whoever locks a file by this name after that has the task; the first one can notice."""
    first = acquire(path, "recorder")
    path.rename(path.with_name("moved"))
    assert not is_held(first)
    second = acquire(path, "recorder", patience=0.0)
    assert is_held(second)
    assert not is_held(first)
    first.release()
    assert is_held(second)
    second.release()


_at_the_next_flock: list[Callable[[], object]] = []


def _audit(event: str, args: tuple[object, ...]) -> None:
    if event == "fcntl.flock" and _at_the_next_flock:
        _at_the_next_flock.pop()()


def test_a_file_that_is_moved_while_it_is_being_locked_is_not_taken(path: Path) -> None:
    """Between opening and locking, the journal may be taken away: lock what stands there."""
    sys.addaudithook(_audit)  # it stays for good, and does nothing from then on
    _at_the_next_flock.append(lambda: path.rename(path.with_name("moved")))
    taken = acquire(path, "recorder")
    assert path.with_name("moved").exists()
    assert is_held(taken)
    with pytest.raises(TaskLocked):
        acquire(path, "recorder", patience=0.0)
    taken.release()


def test_closing_the_file_elsewhere_keeps_the_lock(path: Path) -> None:
    """A flock is not lost when code of ours reads the file, as a POSIX lock would be."""
    first = acquire(path, "recorder")
    path.read_bytes()
    with pytest.raises(TaskLocked):
        acquire(path, "recorder", patience=0.0)
    first.release()


def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    """A child that has forgotten it leaves the lock to the parent alone."""
    first = acquire(path, "recorder")
    first.forget_after_fork()
    assert is_held(first), "in the process that took it, it stays"
    is_over, tell = os.pipe()
    ready, say_ready = os.pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # idle threads
        pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        os.close(tell)
        first.forget_after_fork()
        os.write(say_ready, b"held" if first.held else b"free")
        os.read(is_over, 1)
        os._exit(0)
    assert os.read(ready, 4) == b"free"
    assert is_held(first)
    first.release()
    acquire(path, "recorder", patience=0.0).release()  # while the child still lives
    for fd in (tell, is_over, ready, say_ready):
        os.close(fd)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"host": 1}', b"\xff", b"9" * 10_000])
def test_a_lock_whose_text_says_nothing_is_still_a_lock(path: Path, text: bytes) -> None:
    """The text is for the message; the kernel's lock decides."""
    first = acquire(path, "recorder")
    path.write_bytes(text)
    with pytest.raises(TaskLocked, match="another process"):
        acquire(path, "recorder", patience=0.0)
    found = holder(path)
    assert found is not None
    assert found.pid == 0
    first.release()


def test_a_text_cannot_write_to_the_terminal(path: Path) -> None:
    """Control characters in a foreign lock file do not reach a message."""
    first = acquire(path, "recorder")
    text = {"host": "\x1b[2J", "pid": 1, "since": "now", "role": "recorder"}
    for hostile in (text, {**text, "since": "\x1b[2J"}, {**text, "role": "\x1b[2J"}):
        path.write_text(json.dumps(hostile))
        with pytest.raises(TaskLocked) as caught:
            acquire(path, "recorder", patience=0.0)
        assert str(caught.value).isprintable()
    first.release()


def test_a_link_is_no_lock(path: Path, tmp_path: Path) -> None:
    """A symbolic link in the lock's place is refused, and its target left alone."""
    (tmp_path / "foreign").write_bytes(b"theirs")
    path.symlink_to(tmp_path / "foreign")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        acquire(path, "recorder")
    assert holder(path) is None
    assert (tmp_path / "foreign").read_bytes() == b"theirs"


def test_a_pipe_is_no_lock(path: Path) -> None:
    """What is no regular file is refused at once, without waiting for anybody."""
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        acquire(path, "recorder")


def test_the_text_is_as_long_as_it_is(path: Path) -> None:
    """A shorter text leaves nothing of a longer one behind."""
    path.write_bytes(b"x" * 5000)
    first = acquire(path, "publisher")
    assert json.loads(path.read_bytes())["role"] == "publisher"
    first.release()
    assert holder(path) is None
