"""A block device that remembers everything that was written to it, in order.

``mount(2)`` of a FUSE file system that consists of one file, ``image``, served by a process of its
own; a loop device on that file carries the file system under test. Each write and each flush that
reaches the device is appended to a log. Whoever tells what was acknowledged appends lines to the
same log, so that one order holds for all: what a line in front of a cut says was true before it.

A power cut is then a place in the log: what had been flushed by then is there, and of the rest any
part, as in a drive with a cache. No copy of a live image, which would be torn in time, is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.campaign.frame import CannotRun
from tests.campaign.lanes import Child

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    Buffer = bytes | bytearray | memoryview | mmap.mmap

_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_IN: Final = struct.Struct("<IIII")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHIIH22x")
_ATTR: Final = struct.Struct("<QI4x" + "QQQQQQIIIIIIIIII")
_OPEN_OUT: Final = struct.Struct("<QII")
_IO_IN: Final = struct.Struct("<QQIIQII")
_WRITE_OUT: Final = struct.Struct("<II")
# Operations of the FUSE protocol (linux/fuse.h).
_INIT, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _FSYNC = 26, 3, 4, 14, 15, 16, 20
_RELEASE, _FLUSH, _DESTROY = 18, 25, 38
#: FORGET, INTERRUPT and BATCH_FORGET want no answer.
_SILENT: Final = frozenset((2, 36, 42))
_MAX_WRITE: Final = 1 << 17
_DIRECT_IO: Final = 1
_SECTOR: Final = 512
#: Beside a mount point: the process that mounted it, and that has to unmount it.
OWNER: Final = "owner"


class _Server:
    """Answers the kernel until the file system is unmounted."""

    def __init__(self, fd: int, image: mmap.mmap, log: int) -> None:
        self._fd = fd
        self._image = image
        self._log = log

    def run(self) -> None:
        """Serve."""
        while True:
            try:
                request = memoryview(os.read(self._fd, _MAX_WRITE + 4096))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            _, operation, unique, *_ = _IN.unpack_from(request)
            if operation not in _SILENT:
                self._reply(unique, self._answer(operation, request[_IN.size :]))
            if operation == _DESTROY:
                return

    def _reply(self, unique: int, answer: Buffer | None) -> None:
        if answer is None:
            os.write(self._fd, _OUT.pack(_OUT.size, -errno.ENOSYS, unique))
        else:
            os.writev(self._fd, [_OUT.pack(_OUT.size + len(answer), 0, unique), answer])

    def _answer(self, operation: int, body: memoryview) -> Buffer | None:
        if operation == _INIT:
            major, minor, ahead, _ = _INIT_IN.unpack_from(body)
            told = (major, min(minor, 31), ahead, 0, 16, 12, _MAX_WRITE, 1, 0, 0, 0, 0, 0)
            return _INIT_OUT.pack(*told)
        if operation in (_GETATTR, _SETATTR):
            size, now, mode = len(self._image), int(time.time()), stat.S_IFREG | 0o600
            times = (now, now, now, 0, 0, 0)
            return _ATTR.pack(3600, 0, 1, size, size // 512, *times, mode, 1, 0, 0, 0, 4096, 0)
        if operation == _OPEN:
            return _OPEN_OUT.pack(1, _DIRECT_IO, 0)
        if operation == _READ:
            _, offset, size, *_ = _IO_IN.unpack_from(body)
            return self._image[offset : offset + size]
        if operation == _WRITE:
            _, offset, size, *_ = _IO_IN.unpack_from(body)
            data = body[_IO_IN.size : _IO_IN.size + size]
            os.writev(self._log, [f"w {offset} {size}\n".encode(), data, b"\n"])
            self._image[offset : offset + size] = bytes(data)
            return _WRITE_OUT.pack(size, 0)
        if operation == _FSYNC:  # everything that was answered before is safe
            os.write(self._log, b"f\n")
        if operation in (_FSYNC, _RELEASE, _FLUSH, _DESTROY):
            return b""
        return None


def _mount(source: str, target: Path, kind: str, options: str) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    result = library.mount(source.encode(), os.fsencode(target), kind.encode(), 0, options.encode())
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _unmount(target: Path) -> None:
    subprocess.run(["umount", str(target)], capture_output=True, check=False, timeout=60)
    if os.path.ismount(target):
        subprocess.run(["umount", "-l", str(target)], capture_output=True, check=False, timeout=60)


def sweep() -> None:
    """Unmount what an earlier campaign left behind that was killed."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for folder in reversed([Path(mount) for mount in mounts if "/trialstore-campaign-" in mount]):
        owner = folder.parent / OWNER
        with contextlib.suppress(OSError, ValueError):
            if not Path(f"/proc/{int(owner.read_text())}").exists():
                _unmount(folder)


def require() -> None:
    """Make sure that a device can be logged here.

    Raises
    ------
    CannotRun
        Without root, loop devices, FUSE or mkfs.ext4.
    """
    if os.geteuid() != 0:
        raise CannotRun("needs root, for mount(2)")
    for path in ("/dev/loop-control", "/dev/fuse"):
        if not Path(path).exists():
            raise CannotRun(f"there is no {path}")
    try:
        subprocess.run(["mkfs.ext4", "-V"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotRun(f"mkfs.ext4: {error}") from error


def make_ext4(image: Path, size: int) -> None:
    """Make an empty ext4 in a sparse file, nothing of it left for later.

    Parameters
    ----------
    image : pathlib.Path
        The file, which is made.
    size : int
        In bytes.
    """
    with image.open("wb") as file:
        file.truncate(size)
    lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", lazy, str(image)],
        check=True,
        capture_output=True,
        timeout=60,
    )


@contextlib.contextmanager
def mounted(image: Path, folder: Path, options: str = "") -> Iterator[Path]:
    """Mount an image on a folder, which is made; unmounted whatever happens.

    Raises
    ------
    CannotRun
        If there is no loop device for it.
    OSError
        If the kernel refuses the file system.
    """
    folder.mkdir(exist_ok=True)
    said = subprocess.run(
        ["mount", "-t", "ext4", "-o", ",".join(filter(None, ("loop", options))), image, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if said.returncode != 0:
        if "loop device" in said.stderr:
            raise CannotRun(said.stderr.strip())
        raise OSError(errno.EIO, said.stderr.strip(), str(image))
    try:
        yield folder
    finally:
        _unmount(folder)


@contextlib.contextmanager
def logged_device(base: Path, log: Path, space: Path) -> Iterator[Path]:
    """Serve a copy of the image `base`, logging writes and flushes; give the file to mount.

    Parameters
    ----------
    base : pathlib.Path
        A file system; it is left as it is.
    log : pathlib.Path
        Is made; others may append lines to it.
    space : pathlib.Path
        For the mount point.

    Raises
    ------
    CannotRun
        If FUSE cannot be mounted.
    """
    point = space / "device"
    point.touch()
    fuse = os.open("/dev/fuse", os.O_RDWR)
    with base.open("rb") as file:
        image = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
    writing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0,max_read={_MAX_WRITE}"
        try:
            _mount("trialstore-campaign", point, "fuse", options)
        except OSError as error:
            raise CannotRun(f"FUSE: {error}") from error
        errors = space / "server"
        errors.mkdir(exist_ok=True)
        with Child(_Server(fuse, image, writing).run, errors) as server:
            os.close(fuse)
            fuse = -1
            try:
                yield point
            finally:
                _unmount(point)
                server.wait(10)
    finally:
        if fuse >= 0:
            os.close(fuse)
            _unmount(point)
        os.close(writing)
        image.close()


# --- cuts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """One write to the device, not yet flushed by itself."""

    offset: int
    data: bytes


class Flush:
    """Everything written before is safe."""


Event = Write | Flush | str


def events(log: Path) -> list[Event]:
    """Return writes, flushes and lines of a log, in order."""
    found: list[Event] = []
    data = log.read_bytes()
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line, position = data[position:end], end + 1
        if line.startswith(b"w "):
            offset, size = map(int, line[2:].split())
            found.append(Write(offset, data[position : position + size]))
            position += size + 1
        elif line == b"f":
            found.append(Flush())
        else:
            found.append(line.decode())
    return found


def write_image(target: Path, base: Path, log: list[Event], at: int, dice: random.Random) -> None:
    """Make the image that the device holds when the power fails at event `at`.

    What was flushed is there. Of the writes since the last flush, by chance: all, none, or any of
    them and perhaps one in part, by sectors, as a drive with a cache leaves it.
    """
    flushed = max((n for n in range(at) if isinstance(log[n], Flush)), default=0)
    writes = [event for event in log[:flushed] if isinstance(event, Write)]
    loose = [event for event in log[flushed:at] if isinstance(event, Write)]
    match dice.choice(("all", "none", "some", "some")):
        case "none":
            loose = []
        case "some":
            loose = [write for write in loose if dice.random() < 0.5]
            if loose:
                torn = dice.randrange(len(loose))
                loose[torn] = _torn(loose[torn], dice)
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.ftruncate(fd, base.stat().st_size)
        for write in [*_written(base), *writes, *loose]:
            os.pwrite(fd, write.data, write.offset)
    finally:
        os.close(fd)


def _written(image: Path) -> Iterator[Write]:
    """Yield the parts of a sparse file that are not holes."""
    fd = os.open(image, os.O_RDONLY)
    try:
        end = 0
        with contextlib.suppress(OSError):  # ENXIO: nothing but a hole is left
            while True:
                start = os.lseek(fd, end, os.SEEK_DATA)
                end = os.lseek(fd, start, os.SEEK_HOLE)
                yield Write(start, os.pread(fd, end - start, start))
    finally:
        os.close(fd)


def _torn(write: Write, dice: random.Random) -> Write:
    keep = dice.randrange(len(write.data) // _SECTOR + 1) * _SECTOR
    return Write(write.offset, write.data[:keep])
