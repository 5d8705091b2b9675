"""Samples of trials that were never committed: kept in ``interrupted/`` for a person to look at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from trialstore._errors import DamagedData
from trialstore._ondisk import chunks, layout
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.samples import read_chunks, run_at
from trialstore._publishing.hdf5 import ArrayFileWriter

if TYPE_CHECKING:
    from pathlib import Path

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.replay import Replay
    from trialstore._ondisk.samples import ChunkRef


def keep_uncommitted(disk: Disk, folder: Path, replay: Replay, token: str) -> list[Loss]:
    """Put chunks of uncommitted trials into ``interrupted/``, named by trial and session.

    Guarantee: each file stands in its place only when it is whole and synced; what an earlier
    session left there stays.

    Parameters
    ----------
    disk : Disk
        Through which it is written.
    folder : pathlib.Path
        The task's folder.
    replay : Replay
        Its journal, read to the end.
    token : str
        In the names of hidden files.

    Returns
    -------
    list of Loss
        Chunks that cannot be kept, because the journal is damaged there.

    Raises
    ------
    StorageError
        If ``interrupted`` is a link.
    OSError
        If it cannot be written.
    """
    by_array: dict[str, list[tuple[str, int, list[ChunkRef]]]] = {}
    for (session, trial), arrays in replay.uncommitted().items():
        for name, refs in arrays.items():
            by_array.setdefault(name, []).append((f"{trial}_{session.hex()[:8]}", trial, refs))
    losses: list[Loss] = []
    if not by_array:
        return losses
    kept = folder / layout.INTERRUPTED
    layout.check_no_links(folder, kept)
    disk.make_folder(kept)
    for name, loose in by_array.items():
        target = layout.array_path(kept, name)
        hidden = kept / layout.building_name(target.name, token)
        disk.remove(hidden)
        if target.exists():
            disk.write_file(hidden, read_file(target))
        with ArrayFileWriter(hidden, mode="a") as file:
            for key, trial, refs in loose:
                try:
                    _write_loose(file, key, trial, refs, name)
                except DamagedData as error:
                    path = "" if error.path is None else f"{layout.JOURNAL}/{error.path.name}"
                    what = f"chunks of {name!r} of the open trial"
                    losses.append(Loss((trial,), what, "damaged", path, None, str(error)))
        fd = os.open(hidden, os.O_RDWR)
        try:
            disk.sync(fd)
        finally:
            disk.close(fd)
        disk.replace(hidden, target)
    return losses


def _write_loose(
    file: ArrayFileWriter, key: str, trial: int, refs: list[ChunkRef], name: str
) -> None:
    if file.has(key):
        return
    found = list(read_chunks(refs, trial, name))
    stack_axis = run_at(refs[0])[0].layout.stack_axis
    whole = chunks.join([chunk.data for chunk in found], stack_axis)
    stamps = np.array([tuple(chunk.stamp) for chunk in found], np.int64)
    file.write(key, whole.shape, whole.dtype, [(None, whole)])
    file.write_group("timing", key, stamps)
