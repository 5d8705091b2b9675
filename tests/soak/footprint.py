"""What a process takes up: memory, open files, threads, children."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

#: The allocator keeps what it once had, and a queue may be fuller at one look than at another.
_MEMORY_SLACK = 24 * 2**20


class Footprint(NamedTuple):
    """One look at a process.

    Parameters
    ----------
    memory : int
        Resident bytes.
    files, threads, children : int
        Open descriptors, threads, and child processes that are no zombies.
    zombies : int
        Children that nobody has waited for.
    """

    memory: int
    files: int
    threads: int
    children: int
    zombies: int

    def growth_over(self, before: Footprint) -> list[str]:
        """Say what has grown; a child that has just been killed may be missing."""
        grown = [
            f"{name}: {then} before, {now} now"
            for name, then, now in zip(self._fields[1:], before[1:], self[1:], strict=True)
            if now > then
        ]
        if self.memory > before.memory + _MEMORY_SLACK:
            grown.append(f"memory: {before.memory >> 20} MiB before, {self.memory >> 20} MiB now")
        return grown


def look() -> Footprint:
    """Look at this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    states = [fields[0] for fields in _children()]
    return Footprint(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208 - the listing's own
        len(os.listdir("/proc/self/task")),  # noqa: PTH208
        sum(state != "Z" for state in states),
        sum(state == "Z" for state in states),
    )


def _children() -> list[list[str]]:
    """State and parent of every child of this process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(fields)
    return found
