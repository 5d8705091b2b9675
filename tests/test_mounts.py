"""Network file systems are noticed: told once, and in the manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.helpers import open_task
from trialstore._ondisk import mounts

if TYPE_CHECKING:
    from pathlib import Path

LINES = [
    "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw",
    "30 22 0:40 / /srv/lab\\040data rw - nfs4 server:/lab rw",
    "31 22 0:41 / /srv rw - xfs /dev/vdb rw",
    "32 31 0:42 / /srv/lab rw - tmpfs none rw",
    "33 22 0:43 / /mnt rw - ext4 /dev/vdc rw",
    "34 33 0:44 / /mnt rw - cifs //server/share rw",
    "a torn line",
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/p0", "ext4"),
        ("/srv/lab data/p0", "nfs4"),
        ("/srv/lab/p0", "tmpfs"),
        ("/srv/laboratory", "xfs"),
        ("/mnt/data", "cifs"),
    ],
)
def test_the_nearest_and_newest_mount_counts(path: str, kind: str) -> None:
    """A path belongs to the longest mount point above it; of two on one point the later is seen."""
    assert mounts._type_at(LINES, path) == kind


def test_which_are_network_file_systems() -> None:
    """Those that a server answers for; what is not known is not blamed."""
    assert mounts.is_network("nfs4")
    assert mounts.is_network("fuse.sshfs")
    assert not mounts.is_network("ext4")
    assert not mounts.is_network(None)


def test_this_machine(tmp_path: Path) -> None:
    """The type of a real folder is found."""
    assert mounts.file_system_of(tmp_path) is not None


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["nfs4", "ext4"])
async def test_the_recorder_tells(
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning for a network disk, and the manifest says what the task was recorded on."""
    table = tmp_path / "mountinfo"
    table.write_text(f"22 1 253:0 / / rw - {kind} /dev/vda rw\n")
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 1})
    told = [record.message for record in caplog.records if "network" in record.message]
    assert len(told) == (kind == "nfs4")
    manifest = json.loads((tmp_path / "data/p0/reach/manifest.json").read_text())
    assert manifest["environment"]["file_system"] == {"type": kind, "network": kind == "nfs4"}
