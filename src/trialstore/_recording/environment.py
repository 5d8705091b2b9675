"""Where a recording ran: what a reader asks years later."""

from __future__ import annotations

import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from trialstore._ondisk.mounts import file_system_of, is_network

_PACKAGES: Final = ("trialstore", "numpy", "pandas", "h5py", "anyio", "axopy")
_HASH_LENGTHS: Final = (40, 64)


def describe(folder: Path) -> dict[str, Any]:
    """Return host, platform, versions, and the git commit of the experiment's folder."""
    kind = file_system_of(folder)
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "script": script.name,
        "git_commit": git_commit(script.parent),
        "pid": os.getpid(),
        "file_system": {"type": kind, "network": is_network(kind)},
    }


def clocks() -> dict[str, Any]:
    """Return now on every clock: as text, and in ns since 1970 and since the computer started."""
    unix_ns = time.time_ns()
    utc = datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return {"utc": utc, "unix_ns": unix_ns, "monotonic_ns": time.monotonic_ns()}


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out around `folder`, or None.

    Read from git's own files (gitrepository-layout(5)): starting a program in the middle of an
    experiment may take a second, and git may not be installed.
    """
    try:
        start = folder.resolve()
        for parent in (start, *start.parents):
            if (parent / ".git").exists():
                return _head(parent / ".git")
    except OSError:
        return None
    return None


def _head(git: Path) -> str | None:
    if git.is_file():  # a worktree or submodule: "gitdir: PATH"
        git = git.parent / git.read_text("utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text("utf-8").strip()
    if not head.startswith("ref:"):
        return _commit(head)
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    shared = git / common.read_text("utf-8").strip() if common.is_file() else git
    for place in (git, shared):
        if (place / name).is_file():
            return _commit((place / name).read_text("utf-8").strip())
    packed = shared / "packed-refs"
    if packed.is_file():
        for line in packed.read_text("utf-8").splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return _commit(commit)
    return None


def _commit(text: str) -> str | None:
    is_hash = len(text) in _HASH_LENGTHS and all(c in "0123456789abcdef" for c in text)
    return text if is_hash else None
