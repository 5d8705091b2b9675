"""Taking a task up again: read and decide first, act after.

`plan` looks and changes nothing, so that it can be printed and tested without a disk; `apply` does
what the plan says and may be killed at any point and run again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trialstore._errors import DamagedData
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.numbers import MOST
from trialstore._ondisk.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Plan:
    """What a task holds, and what must be done before a recorder may go on with it.

    Parameters
    ----------
    manifest : Manifest or None
        The task's manifest as it stands.
    published : bool
        Everything is in the published files; a journal folder beside them is a remainder.
    trials : int
        Number of the next trial.
    last_seq, last_crc : int
        Number and CRC of the last frame; the CRC is 0 if that frame is lost.
    segments : tuple of pathlib.Path
        To be synced: frames that survived a kill may not have reached the disk yet.
    torn : tuple of (pathlib.Path, int, int)
        Bytes behind the last whole frame; they were never acknowledged.
    losses : tuple of Loss
        What was acknowledged and cannot be read.
    """

    manifest: Manifest | None
    published: bool
    trials: int
    last_seq: int = 0
    last_crc: int = 0
    segments: tuple[Path, ...] = ()
    torn: tuple[tuple[Path, int, int], ...] = ()
    losses: tuple[Loss, ...] = ()


def base_manifest(task: Path) -> Manifest | None:
    """Return the manifest of what was published before the journal began, or None."""
    return manifest.read(task / layout.JOURNAL / layout.BASE)


def plan(task: Path, extra: Sequence[Path] = ()) -> Plan:
    """Read a task's folder and decide; changes nothing.

    Parameters
    ----------
    task : pathlib.Path
        The task's folder.
    extra : sequence of pathlib.Path, optional
        Further journal folders (a fallback).

    Raises
    ------
    FormatError
        If the manifest or a segment cannot be understood.
    DamagedData
        If the manifest is damaged, or the journal claims all numbers that there are.
    """
    described = manifest.read(task)
    journal = task / layout.JOURNAL
    if described is not None and described.status != "recording":
        return Plan(described, published=True, trials=described.trials)
    if not layout.is_folder(journal):
        return Plan(described, published=False, trials=0)
    base = base_manifest(task)
    with Replay((journal, *extra), 0 if base is None else base.trials) as replay:
        replay.poll()
        # Above everything that was durable, lost or not: no number of a frame is given twice.
        last_seq = max(replay.last_seq, replay.synced_to)
        if max(last_seq, replay.count) > MOST // 2:
            raise DamagedData(
                f"{str(journal)!r} claims {replay.count} trials in {last_seq} frames, and leaves "
                "no numbers for more: nothing can be recorded behind it; move the folder away",
                journal,
            )
        return Plan(
            described,
            published=False,
            trials=replay.count,
            last_seq=last_seq,
            last_crc=replay.last_crc if last_seq == replay.last_seq else 0,
            segments=tuple(replay.segments),
            torn=tuple(replay.torn),
            losses=tuple(replay.losses()),
        )


def apply(disk: Disk, steps: Plan) -> None:
    """Make what the plan found durable; the segments themselves are left as they are.

    Raises
    ------
    OSError
        If the disk refuses; nothing is changed then.
    """
    for path in steps.segments:
        # Not O_RDONLY: some systems sync only descriptors that may write. Nothing is written.
        fd = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            disk.sync(fd)
        finally:
            disk.close(fd)
    for folder in {path.parent for path in steps.segments}:
        disk.sync_folder(folder)
