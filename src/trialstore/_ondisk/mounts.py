"""What kind of file system a folder lies on: some promise less than a local disk does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: proc(5), "/proc/pid/mountinfo".
_MOUNTS: Final = Path("/proc/self/mountinfo")

#: Types on which locks may be unknown to other computers, and fdatasync may end in a server.
#: Names as Linux mounts them; FUSE types carry their program behind the dot.
_NETWORK: Final = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs"),
        *("fuse.davfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    )
)


def file_system_of(path: Path) -> str | None:
    """Return the type of the file system `path` lies on, or None where the system does not say.

    Linux only; elsewhere network disks are not noticed, except ``//server/share`` on Windows.
    """
    if os.name == "nt":  # pragma: no cover - Windows only
        return "smbfs" if path.absolute().drive.startswith("\\\\") else None
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    return _type_at(lines, os.path.realpath(path))


def is_network(kind: str | None) -> bool:
    """Whether a file system of this type is served by another computer."""
    return kind in _NETWORK


def _type_at(lines: list[str], path: str) -> str | None:
    """Find the mount point that is the longest prefix of `path`; later lines hide earlier ones."""
    best, found = -1, None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        parts, kinds = fields.split(" "), rest.split(" ")
        if len(parts) < 5 or not kinds[0]:  # noqa: PLR2004 - the fifth is the mount point
            continue
        point = _unescaped(parts[4])
        is_above = point == "/" or path == point or path.startswith(f"{point}/")
        if is_above and len(point) >= best:
            best, found = len(point), kinds[0]
    return found


def _unescaped(text: str) -> str:
    r"""Undo the kernel's octal escapes of space, tab, newline and backslash (``\040``)."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text
