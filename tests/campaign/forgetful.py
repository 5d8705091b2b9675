"""Rows 7 and 8: the power cuts again, without the syncs that guard against them (must lose)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

from tests.campaign.content import SUBJECT, TASK, verify
from tests.campaign.frame import Effort, Outcome, Row
from tests.campaign.lanes import Lane, in_lanes
from tests.campaign.powercuts import OPTIONS, HonestDisk, cut_many, run_session
from tests.campaign.recorder import hand_over
from trialstore import Storage, StorageError
from trialstore._ondisk.disk import use
from trialstore.testing import PowerCutDisk


class NoFolderSync(HonestDisk):
    """Forgets to sync folders."""

    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


class NoFileSync(HonestDisk):
    """Forgets to sync files."""

    def sync(self, fd: int) -> None:
        """Do nothing."""


class NoPublishedSync(HonestDisk):
    """Forgets to sync files that are being built to be published; the journal is synced."""

    def sync(self, fd: int) -> None:
        """Do nothing for a hidden file."""
        if ".building" not in Path(f"/proc/self/fd/{fd}").readlink().name:
            super().sync(fd)


def cut_power_without_folder_sync(lane: Lane) -> Outcome:
    """As `cut_power`, with a recorder that does not sync folders.

    ext4 commits names in order, and with every fsync of a file: what is left to lose is a rename
    behind which nothing was synced yet, such as that of a pickle.
    """
    return cut_many(lane, run_session, NoFolderSync, OPTIONS, behind="Y")


def cut_power_without_file_sync(lane: Lane) -> Outcome:
    """As `cut_power`, with a recorder that does not sync files."""
    return cut_many(lane, run_session, NoFileSync, OPTIONS)


def cut_power_without_published_sync(lane: Lane) -> Outcome:
    """As `cut_power`, with a publisher that does not sync what it publishes."""
    return cut_many(lane, run_session, NoPublishedSync, OPTIONS[1:])


# --- the same in a simulated file system ----------------------------------------------------------


class _SimulatedNoFolderSync(PowerCutDisk):
    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


class _SimulatedNoFileSync(PowerCutDisk):
    def sync(self, fd: int) -> None:
        """Do nothing."""


def _simulate(lane: Lane, kind: type[PowerCutDisk]) -> Outcome:
    """Look at simulated power cuts of a short recording."""
    outcome = Outcome("simulated power cuts")
    acknowledged: list[tuple[int, int]] = []

    async def experiment(disk: PowerCutDisk, root: Path) -> None:
        async with Storage(root) as storage:
            storage.subject_id = SUBJECT
            async with storage.create_task(TASK) as task:
                for number in range(6):
                    await hand_over(task, number)
                    await task.flush()
                    acknowledged.append((disk.position, number + 1))

    with lane.effort.workspace(memory=True) as space:
        (space / "before").mkdir()
        disk = kind(space / "before")
        with use(disk):
            anyio.run(experiment, disk, space / "before" / "data")
        for number, state in enumerate(disk.states(limit=lane.count, seed=lane.seed)):
            root = disk.materialise(state, space / str(number)) / "data"
            safe = max((n for position, n in acknowledged if position <= state.position), default=0)
            outcome.tried += 1
            if not safe:
                continue
            try:
                verify(root, set(range(safe)), 6, outcome, f"{state}")
            except StorageError as error:
                outcome.breach("broken", f"{state}: {error!r}")
    return outcome


def simulate_without_folder_sync(lane: Lane) -> Outcome:
    """Simulated cuts of a recorder that does not sync folders."""
    return _simulate(lane, _SimulatedNoFolderSync)


def simulate_without_file_sync(lane: Lane) -> Outcome:
    """Simulated cuts of a recorder that does not sync files."""
    return _simulate(lane, _SimulatedNoFileSync)


Tries = Callable[[Lane], Outcome]


def _must_find(effort: Effort, mutants: dict[str, tuple[Tries, int]]) -> Outcome:
    """Run what must lose data; the breach is a check that finds nothing."""
    outcome = Outcome("power cuts")
    for name, (function, count) in mutants.items():
        lost = in_lanes(function, effort, count)
        found = lost.silent + lost.wrong + lost.broken + lost.named
        outcome.tried += lost.tried
        outcome.figures[f"losses found: {name}"] = found
        if not found:
            outcome.breach("broken", f"{name}: {lost.tried} power cuts, and nothing was noticed")
    return outcome


def _row_7(effort: Effort) -> Outcome:
    few, many = effort.of(10, 30), effort.of(100, 400)
    return _must_find(
        effort,
        {
            "ext4": (cut_power_without_folder_sync, few),
            "simulated": (simulate_without_folder_sync, many),
        },
    )


def _row_8(effort: Effort) -> Outcome:
    few, many = effort.of(10, 30), effort.of(100, 400)
    return _must_find(
        effort,
        {
            "ext4, no file synced": (cut_power_without_file_sync, few),
            "ext4, published files not synced": (cut_power_without_published_sync, few),
            "simulated": (simulate_without_file_sync, many),
        },
    )


ROWS: Final = (
    Row(
        7,
        "the same without the fsync of folders (a test of the test)",
        "the losses are noticed",
        _row_7,
    ),
    Row(
        8,
        "the same without the fsync of files (a test of the test)",
        "the losses are noticed",
        _row_8,
    ),
)
