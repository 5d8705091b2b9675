"""Building an array's published file in portions, each synced and read back by a thread."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from tests.journals import Recording
from trialstore import PublishFailed
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.manifest import ArrayRecord
from trialstore._ondisk.replay import Replay
from trialstore._publishing.arrays import ArrayBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_TRIALS = 7
#: Two trials of 1 200 bytes make a portion: three of them, and one trial that is left.
_PORTION = 2000


def samples(trial: int) -> NDArray[np.int16]:
    """Return what trial number `trial` recorded."""
    return np.arange(trial, trial + 600, dtype=np.int16).reshape(6, 100)


class WatchedDisk(Disk):
    """Knows which threads have synced files, and does something to the n-th of them."""

    def __init__(self, nth: int = 0) -> None:
        self.threads: list[threading.Thread] = []
        self.nth = nth

    def sync(self, fd: int) -> None:
        self.threads.append(threading.current_thread())
        super().sync(fd)
        if len(self.threads) == self.nth:
            self.suffer(fd)

    def suffer(self, fd: int) -> None:
        """Nothing, on a good disk."""


class FailingDisk(WatchedDisk):
    def suffer(self, fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class LyingDisk(WatchedDisk):
    """Says that it has everything, and has something else."""

    def suffer(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        content = os.pread(fd, size, 0)
        # Samples of the portion that is being synced; HDF5's own bytes are not what is tested.
        wanted = samples(2 * (self.nth - 1)).tobytes()
        os.pwrite(fd, b"?", content.index(wanted) + 11)


@contextmanager
def built_by(disk: Disk, folder: Path) -> Iterator[tuple[ArrayBuilder, Replay]]:
    """Give a builder, and the journal of all trials."""
    recording = Recording(folder / "journal")
    for trial in range(_TRIALS):
        recording.append("emg", samples(trial))
        recording.trial(n=trial)
    recording.commit()
    recording.close()
    builder = ArrayBuilder(disk, folder, "emg", ArrayRecord({}, 1), "publisher-x", portion=_PORTION)
    with Replay([folder / "journal"]) as replay:
        replay.poll()
        try:
            yield builder, replay
        finally:
            builder.discard()
    assert not builder.hidden.exists()


def test_portions_are_synced_beside_and_all_are_checked(tmp_path: Path) -> None:
    """Three of four portions by another thread than the one that builds; everything is there."""
    disk = WatchedDisk()
    with built_by(disk, tmp_path) as (builder, replay):
        for trial in replay.trials.values():
            builder.add(trial)
        assert builder.finish()
        builder.publish()
    here = threading.current_thread()
    # At the end: the rest of the samples, and what HDF5 writes when the file is closed.
    assert [thread is here for thread in disk.threads] == [False, False, False, True, True]
    assert sorted(builder.record.trials) == list(range(_TRIALS))
    with h5py.File(tmp_path / "emg.hdf5") as file:
        for number in range(_TRIALS):
            np.testing.assert_array_equal(file[str(number)][()], samples(number))
    assert not any(thread.is_alive() for thread in disk.threads if thread is not here)


@pytest.mark.parametrize(
    ("kind", "nth"),
    [*((FailingDisk, nth) for nth in range(1, 6)), *((LyingDisk, nth) for nth in range(1, 5))],
)
def test_a_portion_that_fails_is_not_published(
    tmp_path: Path, kind: type[WatchedDisk], nth: int
) -> None:
    """Whichever portion it is, and whichever thread has synced it."""
    with built_by(kind(nth), tmp_path) as (builder, replay):
        with pytest.raises(PublishFailed, match=r"Input/output|reads back differently"):
            for trial in replay.trials.values():
                builder.add(trial)
            builder.finish()
        assert len(list((tmp_path / "journal").glob("*.segment"))) == 1
    assert not (tmp_path / "emg.hdf5").exists()
