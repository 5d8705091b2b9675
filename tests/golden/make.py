"""Writes the golden journals: the real writer, with sessions and clocks that stand still.

``python -m tests.golden.make`` writes them beside this file; a test holds the files against it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.journals import Recording
from trialstore import Loss
from trialstore._ondisk import journal, witness
from trialstore._ondisk.chunks import dtype_to_json
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.entries import LossNote, SyncMark

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trialstore._ondisk.disk import Buffer

HERE: Final = Path(__file__).parent
MEMORY: Final = "memory.json"
SESSIONS: Final = tuple(f"{n}0112233445566778899aabbccddeeff" for n in range(4))


class Timeless(Disk):
    """Writes witnesses that do not tell when and where; may fail one sync, as a bad sector does."""

    def __init__(self, failing_sync: int = 0) -> None:
        self._syncs_left = failing_sync

    def write_at(self, fd: int, data: Buffer, offset: int) -> None:
        said = witness.latest(data)
        assert said is not None
        still = replace(said, boot=bytes(range(16)), monotonic_ns=said.count * 10**9)
        super().write_at(fd, still.encode(), offset)

    def sync(self, fd: int) -> None:
        self._syncs_left -= 1
        if self._syncs_left == 0:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


def clean(folder: Path) -> list[Recording]:
    """Rows and arrays of several dtypes; one session, which was closed."""
    recording = Recording(folder, session=SESSIONS[0], disk=Timeless())
    noise = np.random.default_rng(1)
    for index in range(8):
        if index % 2:
            recording.append("emg", noise.standard_normal((2, 4)), noise.standard_normal((2, 3)))
        if index == 3:
            recording.append("emg", noise.standard_normal((2, 2)))
            recording.append("key", np.arange(5, dtype="u1"))
        if index == 5:
            recording.append("spike", np.array([True, False, True]))
            recording.append("force", np.array([1 + 2j, 3j], dtype="<c8"), stack_axis=0)
        if index == 6:
            point = np.dtype([("x", "<f4"), ("n", ">i2")])
            recording.append("point", np.array([(0.5, 7), (1.5, -7)], point))
        recording.trial(n=index, code=f"{index:03d}", ratio=index / 7, hit=index % 3 == 0)
        if index % 3 != 1:
            recording.commit()
    recording.end()
    recording.commit()
    recording.close()
    return [recording]


def failover(folder: Path) -> list[Recording]:
    """A failed sync and what was repeated after it, refused trials, and a second session."""
    first = Recording(folder, session=SESSIONS[1], disk=Timeless(failing_sync=5))
    for index in range(5):
        first.append("emg", np.arange(6.0).reshape(2, 3) + index)
        if index == 2:
            first.append("emg", np.ones((2, 1)))
        first.trial(n=index, by="first")
        if index == 3:
            first.add(LossNote((Loss((), "2 trials", "refused", evidence="the queue was full"),)))
        first.commit()
    first.close()
    assert len(first.journal.poisoned) == 1
    second = Recording(
        folder, session=SESSIONS[2], disk=Timeless(), after=first.journal.durable_seq, trials=5
    )
    for index in range(5, 8):
        second.append("emg", np.arange(4.0).reshape(2, 2) - index)
        second.trial(n=index, by="second")
        second.commit()
    second.end("interrupted")
    second.commit()
    second.close()
    return [first, second]


def killed(folder: Path) -> list[Recording]:
    """A streamed trial of many frames, one that was still open, and a batch that was torn."""
    recording = Recording(folder, session=SESSIONS[3], disk=Timeless())
    for index in range(4):
        for piece in range(6 if index == 1 else 1):
            recording.append("emg", np.full((2, 2), 10.0 * index + piece, "<f4"))
            if index == 1:
                recording.commit()
        recording.trial(n=index)
        recording.commit()
    for piece in range(4):
        recording.append("emg", np.full((2, 3), -1.0 - piece))
    recording.add(SyncMark())
    recording.commit()
    segment, beside = folder / "000001.segment", folder / "000001.witness"
    durable, said = segment.stat().st_size, beside.read_bytes()
    acknowledged = set(recording.acknowledged)
    recording.append("emg", np.full((2, 40), 7.0))
    recording.trial(n=4)
    recording.commit()
    recording.close()
    recording.acknowledged = acknowledged
    beside.write_bytes(said)
    os.truncate(segment, durable + 11 * journal.FRAME_SIZE)
    return [recording]


JOURNALS: Final[dict[str, Callable[[Path], list[Recording]]]] = {
    "clean": clean,
    "failover": failover,
    "killed": killed,
}


def described(array: NDArray[Any]) -> dict[str, Any]:
    """Return an array as JSON."""
    return {
        "dtype": dtype_to_json(array.dtype),
        "shape": array.shape,
        "hex": np.ascontiguousarray(array).tobytes().hex(),
    }


def memory_of(recordings: list[Recording]) -> dict[str, Any]:
    """Return what the recorders of one journal were told."""
    rows = {n: row for one in recordings for n, row in one.rows.items()}
    arrays: dict[int, dict[str, Any]] = {n: {} for n in rows}
    for one in recordings:
        for (n, name), array in one.arrays.items():
            arrays.setdefault(n, {})[name] = described(array)
    acknowledged = sorted(n for one in recordings for n in one.acknowledged)
    return {"acknowledged": acknowledged, "rows": rows, "arrays": arrays}


def make(root: Path) -> None:
    """Write every golden journal below `root`."""
    for name, build in JOURNALS.items():
        folder = root / name
        if folder.exists():
            shutil.rmtree(folder)
        memory = memory_of(build(folder))
        (folder / MEMORY).write_text(json.dumps(memory, indent=1) + "\n")


if __name__ == "__main__":
    make(HERE)
