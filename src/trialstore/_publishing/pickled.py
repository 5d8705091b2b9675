"""A task's pickles: the recorder has put them in their place, the manifest vouches for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from trialstore._errors import DamagedData
from trialstore._ondisk import layout
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.pickles import unsealed

if TYPE_CHECKING:
    from pathlib import Path


def vouch(folder: Path) -> tuple[dict[str, dict[str, int]], list[Loss]]:
    """Return what the manifest says of each whole pickle in a task's folder, and the others.

    Guarantee: one that was damaged before it could be published is named, not vouched for.
    """
    files: dict[str, dict[str, int]] = {}
    losses = []
    for path in sorted(folder.glob(f"*{layout.PICKLE_SUFFIX}")):
        with contextlib.suppress(OSError):  # a link or a device: not ours to vouch for
            data = read_file(path)
            try:
                unsealed(data, path)
            except DamagedData as error:
                what = f"pickle {path.stem!r}"
                losses.append(Loss((), what, "damaged", path.name, (0, len(data)), str(error)))
            else:
                files[path.name] = {"size": len(data), "crc32": crc32(data)}
    return files, losses
