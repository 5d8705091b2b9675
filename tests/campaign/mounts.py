"""Small file systems to be filled, shrunk and made read-only; they need root and Linux."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.campaign.frame import CannotRun

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*command: str) -> None:
    """Run a command of the system.

    Raises
    ------
    CannotRun
        If it is not there or fails; with its own words.
    """
    if shutil.which(command[0]) is None:
        raise CannotRun(f"{command[0]!r} is not installed")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise CannotRun(f"{' '.join(command)}: {ran.stderr.strip()[:200]}")


def require_root() -> None:
    """Raise CannotRun unless file systems can be mounted here."""
    if not sys.platform.startswith("linux"):
        raise CannotRun("file systems are mounted on Linux only")
    if os.geteuid():
        raise CannotRun("mounting needs root")


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs with these options (``"size=1m,nr_inodes=20"``); gone afterwards."""
    require_root()
    folder.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield folder
    finally:
        # Lazily: a recorder that was killed may still be going.
        run("umount", "-l", str(folder))


def remount(folder: Path, options: str) -> None:
    """Change the options of a mounted file system."""
    run("mount", "-o", f"remount,{options}", str(folder))


@contextlib.contextmanager
def ext4(folder: Path, *, megabytes: int = 8, options: str = "errors=remount-ro") -> Iterator[Path]:
    """Mount a fresh ext4 from a loop image beside `folder`; gone afterwards."""
    require_root()
    folder.mkdir(parents=True)
    image = folder.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    run("mkfs.ext4", "-q", "-F", str(image))
    run("mount", "-o", f"loop,{options}", str(image), str(folder))
    try:
        yield folder
    finally:
        run("umount", "-l", str(folder))
        image.unlink()


def break_ext4(folder: Path) -> None:
    """Let the kernel find an error in a mounted ext4, upon which it makes it read-only."""
    source = _source_of(folder)
    switch = Path("/sys/fs/ext4", source.name, "trigger_fs_error")
    try:
        with switch.open("w") as file:
            file.write("1")
    except OSError as error:
        raise CannotRun(f"{switch} cannot be used: {error}") from error


def repair_ext4(folder: Path) -> None:
    """Take a broken ext4 down, check it, and mount it again, writable."""
    image = folder.with_suffix(".image")
    end = time.monotonic() + 20.0
    while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        # A publisher whose recorder is gone looks around for a few seconds.
        if time.monotonic() > end:
            raise CannotRun(f"{folder} stays busy")
        time.sleep(0.1)
    # 1: errors were corrected.
    if (
        subprocess.run(["e2fsck", "-fp", str(image)], capture_output=True, check=False).returncode
        > 1
    ):
        raise CannotRun(f"{image} cannot be repaired")
    run("mount", "-o", "loop", str(image), str(folder))


def _source_of(folder: Path) -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, *_ = line.split()
        if Path(place) == folder.resolve():
            return Path(source)
    raise CannotRun(f"{folder} is not mounted")
