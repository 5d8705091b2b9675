"""What the tests of check, recover and prune share: tasks made quickly, and folders compared."""

from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING

import numpy as np

from tests.journals import Recording
from trialstore._ondisk import layout
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from pathlib import Path

#: Their text tells who locked them when.
LOCKS = frozenset((layout.LOCK, layout.PUBLISH_LOCK))


def samples(number: int, *, length: int = 30) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """What trial `number` holds of array ``emg``."""
    return np.arange(2.0 * length).reshape(2, length) + 1000 * number


def cut_off(
    root: Path, name: str = "reach", trials: int = 4, *, length: int = 30, loose: bool = True
) -> Recording:
    """Leave a task of subject ``p0`` as a kill does: a journal, and chunks of an open trial."""
    folder = root / "p0" / name
    folder.mkdir(parents=True)
    recording = Recording(folder / layout.JOURNAL)
    for number in range(trials):
        recording.append("emg", samples(number, length=length)[:, :10])
        recording.append("emg", samples(number, length=length)[:, 10:])
        if number % 2:
            recording.append("key", np.array([number], "u1"))
        recording.trial(n=number, code="007", note='a,"b"')
        recording.commit()
    if loose:
        recording.append("emg", np.zeros((2, 5)))
        recording.commit()
    recording.close()
    (folder / layout.JOURNAL / layout.LOCK).touch()
    return recording


def published(
    root: Path,
    name: str = "reach",
    trials: int = 4,
    *,
    length: int = 30,
    keep_journal: bool = False,
    loose: bool = False,
    row_shift: int = 0,
    sample_shift: int = 0,
) -> Path:
    """Make a published task and return its folder; `loose` makes it an interrupted one."""
    folder = root / "p0" / name
    folder.mkdir(parents=True)
    recording = Recording(folder / layout.JOURNAL)
    for number in range(trials):
        recording.append("emg", samples(number + sample_shift, length=length))
        if number % 2:
            recording.append("key", np.array([number], "u1"))
        recording.trial(n=number + row_shift, code="007", note='a,"b"')
    if loose:
        recording.append("emg", np.zeros((2, 5)))
    else:
        recording.end()
    recording.commit()
    recording.close()
    (folder / "calibration.pkl").write_bytes(pickle.dumps({"gain": 2.0}))
    publish_once(folder, {"keep_journal": keep_journal})
    return folder


def snapshot(root: Path) -> dict[str, str]:
    """Digest of every file below a folder, and every folder; locks are there or not."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.name in LOCKS:
            found[name] = "lock"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
