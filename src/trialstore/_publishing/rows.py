"""The rows and times of a task's trials, on their way to ``trials.csv`` and ``timing.csv``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trialstore._errors import PublishFailed
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.table import Table, check_columns, parse_timing, render_timing

if TYPE_CHECKING:
    from pathlib import Path

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.manifest import Manifest
    from trialstore._ondisk.samples import JournalTrial


@dataclass(slots=True)
class Rows:
    """The rows and times of all trials so far; row numbers name the datasets."""

    table: Table = field(default_factory=Table)
    timing: list[tuple[int, int, int, int | None]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    @classmethod
    def of_base(cls, folder: Path, base: Manifest) -> Rows:
        """Begin with what was published before the task was resumed, kept in `folder`.

        Checked: what was damaged since must not be published again with a fresh checksum.

        Raises
        ------
        StorageError
            If a table is not as the manifest says.
        """
        columns = check_columns(base.columns, base.trials)
        trials = manifest.read_described(folder, base, layout.TRIALS)
        timing = manifest.read_described(folder, base, layout.TIMING)
        table = Table.from_csv(trials, columns, base.trials)
        return cls(table, list(parse_timing(timing)), list(base.lost))

    def __len__(self) -> int:
        """Return the number of trials, lost ones included."""
        return len(self.table)

    def add(self, trial: JournalTrial) -> None:
        """Add a trial, and empty lines for those before it that are lost."""
        if trial.index < len(self.table):
            # A segment came back from a disk that had not been there: its lines are taken.
            raise PublishFailed(f"trial {trial.index} was lost and has come back: begin again")
        while len(self.table) < trial.index:
            self.skip()
        commit = trial.commit
        self.table.add(commit.row)
        times = (commit.unix_ns, commit.monotonic_ns, commit.first_unix_ns)
        self.timing.append((trial.index, *times))

    def skip(self) -> None:
        """Keep an empty line for a trial whose row is lost."""
        self.lost.append(len(self.table))
        self.table.add([])

    def put_in_place(self, disk: Disk, folder: Path, token: str) -> dict[str, dict[str, int]]:
        """Write both tables to `folder`; return what the manifest says of the files.

        Guarantee: each stands in its place only after it was synced and read back the same.

        Raises
        ------
        PublishFailed
            If one reads back differently; the old one stays.
        OSError
            If it cannot be written.
        """
        written = (
            (layout.TRIALS, self.table.render()),
            (layout.TIMING, render_timing(self.timing)),
        )
        return {name: _write_checked(disk, folder, name, data, token) for name, data in written}


def _write_checked(disk: Disk, folder: Path, name: str, data: bytes, token: str) -> dict[str, int]:
    """Write a file beside, sync it, read it back, rename it into place."""
    hidden = folder / layout.building_name(name, token)
    disk.remove(hidden)
    fd = disk.create(hidden)
    try:
        disk.write(fd, [data])
        disk.sync(fd)
    finally:
        disk.close(fd)
    if read_file(hidden) != data:
        raise PublishFailed(f"{str(hidden)!r} reads back differently")
    disk.replace(hidden, folder / name)
    return {"size": len(data), "crc32": crc32(data)}
