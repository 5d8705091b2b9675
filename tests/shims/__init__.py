"""Shims in C that stand between any program and libc: a sick disk, a clock that jumps.

```
with Faults() as faults:
    rule = faults.arm(Call.SYNC, below=root, first=3, error=errno.EIO)
    subprocess.run([...], env={**os.environ, **faults.environment})
    print(rule.hit, faults.synced_again)
```

For a disk that is only slow, for a whole tree of processes and without a control file (benchmarks):

```
subprocess.run([...], env={**os.environ, **slow_disk(0.020, below=root)})
```

Everything here raises `CannotRun` where there is no C compiler or no LD_PRELOAD.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.campaign.frame import CannotRun

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_SOURCES: Final = Path(__file__).parent


class Call(enum.IntFlag):
    """What a rule is about; the bits of faults.c."""

    WRITE = 1
    SYNC = 2
    SYNC_FOLDER = 4
    CREATE = 8
    RENAME = 16
    MKDIR = 32


class Action(enum.IntEnum):
    """What a rule does; the numbers of faults.c."""

    FAIL = 1
    SHORTEN = 2
    DELAY = 3
    HANG = 4


class _Rule(ctypes.Structure):
    _fields_ = (  # type: ignore[mutable-override] # as ctypes has it
        ("is_on", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("pid", ctypes.c_int32),
        ("parts", ctypes.c_uint32),
        ("first", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("every", ctypes.c_uint64),
        ("delay_us", ctypes.c_uint64),
        ("seen", ctypes.c_uint64),
        ("hit", ctypes.c_uint64),
        ("below", ctypes.c_char * 512),
        ("holding", ctypes.c_char * 64),
    )


class _Control(ctypes.Structure):
    _fields_ = (  # type: ignore[mutable-override] # as ctypes has it
        ("attached", ctypes.c_uint64),
        ("synced_again", ctypes.c_uint64),
        ("remembered", ctypes.c_uint64),
        ("failed", ctypes.c_int32 * 2 * 256),
        ("rules", _Rule * 8),
    )


class Rule:
    """One armed rule, as `Faults.arm` gives it."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    @property
    def seen(self) -> int:
        """Calls that it was about so far."""
        return int(self._shared.seen)

    @property
    def hit(self) -> int:
        """Calls that it did something to so far."""
        return int(self._shared.hit)

    def stop(self) -> None:
        """Switch it off: the disk is well again, and what hangs goes on."""
        self._shared.is_on = 0


class Faults:
    """A sick disk below other programs; rules can be switched while they run.

    Attributes
    ----------
    environment : dict
        To be added to the environment of the programs; their children inherit it.

    Raises
    ------
    CannotRun
        If the shim cannot be built here.
    """

    def __init__(self) -> None:
        library = built("faults")
        fd, name = tempfile.mkstemp(prefix="trialstore-faults-")
        self._file = Path(name)
        try:
            os.ftruncate(fd, ctypes.sizeof(_Control))
            self._control = _Control.from_buffer(mmap.mmap(fd, ctypes.sizeof(_Control)))
        finally:
            os.close(fd)
        self._armed = 0
        self.environment = {
            **_preload(library),
            "TRIALSTORE_SHIM_CONTROL": str(self._file),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let everything go on that hangs."""
        for rule in self._control.rules:
            rule.is_on = 0
        self._file.unlink()

    def arm(
        self,
        calls: Call,
        below: Path,
        *,
        action: Action = Action.FAIL,
        error: int = errno.EIO,
        first: int = 1,
        count: int = 1,
        every: int = 1,
        pid: int = 0,
        holding: str = "",
        parts: int = 2,
        seconds: float = 0.0,
    ) -> Rule:
        """Switch a rule on.

        Parameters
        ----------
        calls : Call
            Which calls; several can be joined by ``|``.
        below : pathlib.Path
            Only for paths below this folder.
        action : Action, optional
            ``FAIL`` with `error`; ``SHORTEN`` a write to ``1/parts`` of its bytes (``parts=0``: to
            one byte); ``DELAY`` by `seconds`; ``HANG`` until `Rule.stop`.
        first, count : int, optional
            The first call that is hit, counted from 1, and how many are; ``count=0``: all from
            there on.
        every : int, optional
            Of these, hit every n-th.
        pid : int, optional
            Only this process; if negative, every process but this one.
        holding : str, optional
            Only paths that hold this text, at most 63 bytes.
        """
        rule = self._control.rules[self._armed]
        self._armed += 1
        rule.calls, rule.action, rule.error = calls, action, error
        rule.first, rule.count, rule.every, rule.pid = first, count, every, pid
        rule.parts, rule.delay_us = parts, round(seconds * 1e6)
        rule.below, rule.holding = os.fsencode(below.resolve()), os.fsencode(holding)
        rule.seen = rule.hit = 0
        rule.is_on = 1
        return Rule(rule)

    def clear(self) -> None:
        """Switch every rule off and begin anew."""
        for rule in self._control.rules:
            rule.is_on = 0
        self._armed = 0
        self._control.synced_again = 0

    @property
    def synced_again(self) -> int:
        """How often a descriptor whose write or fsync had failed was asked for an fsync again."""
        return int(self._control.synced_again)

    def require_attached(self) -> None:
        """Raise CannotRun unless some program has loaded the shim."""
        if not self._control.attached:
            raise CannotRun("programs here take no notice of LD_PRELOAD")


class JumpingClock:
    """A wall clock for other programs, set from outside at any moment; theirs go on together.

    Attributes
    ----------
    environment : dict
        To be added to the environment of the programs.
    control : pathlib.Path
        What `set_clock` writes to, also in the programs themselves.
    """

    def __init__(self) -> None:
        library = built("clock")
        fd, name = tempfile.mkstemp(prefix="trialstore-clock-")
        os.write(fd, bytes(16))
        os.close(fd)
        self.control = Path(name)
        self.environment = {
            **_preload(library),
            "TRIALSTORE_CLOCK_CONTROL": name,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.control.unlink()


def set_clock(control: Path, *, shift_ns: int = 0, standing_ns: int = 0) -> None:
    """Let a `JumpingClock` jump by `shift_ns` from the true time, or stand still at a time."""
    words = shift_ns.to_bytes(8, sys.byteorder, signed=True)
    words += standing_ns.to_bytes(8, sys.byteorder, signed=True)
    with control.open("r+b") as file:
        file.write(words)


def slow_disk(seconds: float, below: Path) -> dict[str, str]:
    """Return an environment in which each write and fsync below a folder takes so much longer.

    Raises
    ------
    CannotRun
        If the shim cannot be built here.
    """
    return {
        **_preload(built("faults")),
        "TRIALSTORE_SHIM_DELAY_MS": str(round(seconds * 1000)),
        "TRIALSTORE_SHIM_BELOW": str(below.resolve()),
    }


def _preload(library: Path) -> dict[str, str]:
    others = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": f"{library}:{others}" if others else str(library)}


def built(name: str) -> Path:
    """Build a shim, once for each version of its source, and return the library.

    Raises
    ------
    CannotRun
        If it cannot be built here.
    """
    if not sys.platform.startswith("linux"):
        raise CannotRun("LD_PRELOAD shims are written for Linux")
    source = _SOURCES / f"{name}.c"
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trialstore-shims"
    library = cache / f"{name}-{version}.so"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise CannotRun("no C compiler")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            building = Path(folder, library.name)
            options = ["-shared", "-fPIC", "-O2", "-o", str(building)]
            command = [compiler, *options, str(source), "-ldl"]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise CannotRun(f"the shim {name!r} cannot be built: {ran.stderr.strip()[-300:]}")
            building.replace(library)
    return library
