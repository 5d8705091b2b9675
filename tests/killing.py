"""Runs an upkeep command over and over in children that die at the n-th call to the disk.

``python -m tests.killing recover|prune TEMPLATE WORK [STEP]`` copies TEMPLATE to WORK, kills a run
in the copy at call n (calls count before and after they are made), kills the run after that as well
at another call, and lets a last one end. It prints, as JSON, how many calls an undisturbed run
makes, and what each n left behind: equal to the undisturbed run, or what differs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.upkeeping import snapshot
from trialstore import upkeep
from trialstore._ondisk.disk import Disk, use

if TYPE_CHECKING:
    from collections.abc import Callable

#: Every call that changes something.
_CALLS = (
    *("make_folder", "create", "write", "write_at", "sync", "sync_folder", "replace", "link"),
    *("remove", "remove_folder"),
)


class DyingDisk(Disk):
    """Kills its process at the n-th of the moments before and after a call; 0 means never."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.moments = 0

    def moment(self) -> None:
        """Die, if it is time."""
        self.moments += 1
        if self.moments == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def _dying(name: str) -> Callable[..., Any]:
    method = getattr(Disk, name)

    def call(self: DyingDisk, *args: Any) -> Any:
        self.moment()
        result = method(self, *args)
        self.moment()
        return result

    return call


for _name in _CALLS:
    setattr(DyingDisk, _name, _dying(_name))


def work(command: str, root: Path) -> None:
    """Do what is killed."""
    if command == "recover":
        upkeep.recover(root / "data")
    else:
        upkeep.prune(upkeep.plan_pruning(root / "data"))


def run(command: str, root: Path, last: int) -> tuple[bool, int]:
    """Run in a child; return whether it was killed, and how many moments it lived through."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with use(DyingDisk(last)) as disk:
                work(command, root)
                os.write(writing, str(disk.moments).encode())  # type: ignore[attr-defined]
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    told = os.read(reading, 20)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True, 0
    assert status == 0, f"{command} failed in {root}"
    return False, int(told)


def state(root: Path) -> tuple[dict[str, str], Any]:
    """What is on disk, and what a check says of it."""
    return snapshot(root), upkeep.check(root / "data").to_json()


def main() -> None:
    """Run as the module's docstring says."""
    command, template, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    step = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    root = folder / "run"  # always the same: what is told of damage has the path in it
    shutil.copytree(template, root, symlinks=True)
    killed, moments = run(command, root, 0)
    assert not killed
    expected = state(root)
    shutil.rmtree(root)
    differences = {}
    kills = 0
    for last in range(1, moments + 1, step):
        shutil.copytree(template, root, symlinks=True)
        killed, _ = run(command, root, last)
        assert killed
        again, _ = run(command, root, 1 + last * 7 % moments)
        kills += 1 + again
        assert not run(command, root, 0)[0]
        found = state(root)
        if found != expected:
            differences[last] = [
                f"{name}: {found[0].get(name)} != {expected[0].get(name)}"
                for name in sorted(found[0].keys() | expected[0].keys())
                if found[0].get(name) != expected[0].get(name)
            ] or ["reports differ"]
        shutil.rmtree(root)
    print(json.dumps({"moments": moments, "kills": kills, "differences": differences}))  # noqa: T201


if __name__ == "__main__":
    main()
