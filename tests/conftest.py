"""What every test runs under: three event loops, and guards that look from outside.

Two guards are on in every test: nothing that trialstore does on an event loop touches the disk or
HDF5, and nothing (process, thread, open file, hidden file) is left behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import hypothesis
import pytest

from trialstore._publishing.modesty import be_modest
from trialstore._recording import publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# A slow computer is no bug: nothing is timed here. Each change is held against the same examples,
# so that it fails for what it has changed; new ones are looked for by the profile below.
hypothesis.settings.register_profile("untimed", deadline=None, derandomize=True)
# ``--hypothesis-profile=campaign``: for hours, not for every change.
hypothesis.settings.register_profile("campaign", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile("untimed")

# Publishers have the lowest priority, and tests wait for them: beside tests of a higher one, on a
# machine with few cores, they would hardly have their turn (the suite took twice as long).
be_modest()

#: Where the package is, not its name: a clone's own folder is mostly called the same.
PACKAGE = f"{Path(publisher.__file__).parents[1]}{os.sep}"
READING = f"{PACKAGE}_reading{os.sep}"

#: Audit events (sys.addaudithook) of calls that may wait for a disk.
DISK_EVENTS = frozenset(
    (
        *("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"),
        *("os.truncate", "os.link", "os.symlink", "shutil.copyfile", "subprocess.Popen"),
    )
)
#: Calls without an audit event.
DISK_CALLS = ("fsync", "fdatasync", "write", "writev", "pwrite", "pread", "ftruncate", "statvfs")

_violations: list[str] = []
_is_watching = False


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio+uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run every async test on each event loop."""
    return request.param


def _is_on_loop() -> bool:
    try:
        anyio.get_current_task()
    except Exception:  # noqa: BLE001 - any answer but a task means: not on a loop
        return False
    return True


def _culprit() -> str | None:
    """The trialstore line that is to blame, or None: imports and synchronous readers may."""
    frame: FrameType | None = sys._getframe(2)
    blamed = None
    while frame is not None:
        name = frame.f_code.co_filename
        if "importlib" in name or name.startswith(READING):
            return None
        if blamed is None and name.startswith(PACKAGE):
            blamed = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return blamed


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _is_watching and event in DISK_EVENTS and (culprit := _culprit()) and _is_on_loop():
        _violations.append(f"{event}{args!r:.120} by {culprit}")


sys.addaudithook(_audit)


def _watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_watching and (culprit := _culprit()) and _is_on_loop():
            _violations.append(f"os.{name} by {culprit}")
        return function(*args, **kwargs)

    return call


@pytest.fixture(autouse=True)
def nothing_on_the_loop_touches_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which trialstore used the disk from an event loop's thread."""
    global _is_watching
    for name in DISK_CALLS:
        if hasattr(os, name):
            monkeypatch.setattr(os, name, _watched(name, getattr(os, name)))
    _violations.clear()
    _is_watching = True
    yield
    _is_watching = False
    assert not _violations, "on the event loop:\n" + "\n".join(_violations[:10])


def children() -> set[int]:
    """Numbers of this process's children, zombies included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(entry.parent.name))
    return found


def open_files_below(folder: Path) -> list[str]:
    """Files below `folder` that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith(f"{folder}{os.sep}"):
            found.append(target)
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Look again and again until `condition` holds; return whether it did in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which a process, a thread, an open file or a hidden file of ours remains.

    ``@pytest.mark.leaves_files`` is for tests that kill on purpose: hidden files may remain then.
    """
    uses_folder = "tmp_path" in request.fixturenames
    folder = Path(request.getfixturevalue("tmp_path")) if uses_folder else None
    before = children()
    threads = set(threading.enumerate())
    yield

    def strangers() -> list[str]:
        publisher.reap()
        new = [t.name for t in set(threading.enumerate()) - threads if "AnyIO worker" not in t.name]
        return [f"thread {name}" for name in new if not name.startswith("Trio thread")] + [
            f"process {pid}" for pid in children() - before
        ]

    assert wait_until(lambda: not strangers()), f"left behind: {strangers()}"
    if folder is not None:
        assert not open_files_below(folder)
        if request.node.get_closest_marker("leaves_files") is None:
            hidden = [str(path) for path in folder.rglob(".*")]
            assert not hidden, f"hidden files left behind: {hidden}"
