"""Which start of the computer this is: frames not yet durable survive a kill, not a restart."""

from __future__ import annotations

import functools
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Final

_LINUX: Final = Path("/proc/sys/kernel/random/boot_id")

#: Means "cannot tell": readers then treat it as another start, the careful assumption.
UNKNOWN: Final = bytes(16)


@functools.cache
def boot_id() -> bytes:
    """Return 16 bytes that are the same until the computer starts again, or `UNKNOWN`."""
    try:
        return uuid.UUID(_read().strip()).bytes
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN


def _read() -> str:
    if sys.platform == "darwin":  # pragma: no cover - macOS only
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
    return _LINUX.read_text("ascii")
