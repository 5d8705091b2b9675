"""What is looked at after a fault, beside the model: published paths, digests, leftovers."""

from __future__ import annotations

import csv
import hashlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from tests.campaign.content import SUBJECT, TASK, joined
from trialstore import TaskReader
from trialstore._ondisk import layout, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def folder_of(root: Path, task: str = TASK) -> Path:
    """Return the folder of the model's task."""
    return root / SUBJECT / task


def overwritten(root: Path, task: str = TASK) -> list[Path]:
    """Return the folders of this name in the trash, oldest first: whole tasks only."""
    found = (root.parent / f"{root.name}.trash").glob(f"*/{task}.*")
    return sorted(
        path for path in found if path.is_dir() and f".{layout.JOURNAL}." not in path.name
    )


def published_breaches(folder: Path, epoch_of: Callable[[int], int]) -> Iterator[str]:
    """Tell what stands at a published path and is not whole (I6), by foreign tools alone."""
    described = manifest.read(folder)  # raises if it is not whole
    table = folder / layout.TRIALS
    if table.exists():
        text = table.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines(keepends=True)))
        numbers = [row["n"] for row in rows]
        # A task that was cut off before its first trial has a table without columns: no line.
        is_whole = text.endswith("\n") or (text == "" and _may_be_empty(described))
        if not is_whole or numbers != [str(trial) for trial in range(len(rows))]:
            yield f"trials.csv is {text!r:.200}"
    for name in ("emg", "key"):
        path = layout.array_path(folder, name)
        if path.exists():
            yield from _array_breaches(path, name, epoch_of)


def _may_be_empty(described: manifest.Manifest | None) -> bool:
    return described is None or described.status == "recording" or described.trials == 0


def _array_breaches(path: Path, name: str, epoch_of: Callable[[int], int]) -> Iterator[str]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            for trial in (int(key) for key in file if key != "timing"):
                if not np.array_equal(file[str(trial)][()], joined(trial, epoch_of(trial))[name]):
                    yield f"{path.name}: dataset {trial} differs"
    except (OSError, KeyError) as error:
        yield f"{path.name} cannot be read: {error}"


def digest(folder: Path) -> dict[str, Any]:
    """Return everything that recovery must give, whichever way it came about."""
    reader = TaskReader(folder)
    arrays = {
        name: [_digest(array) for array in reader.iterarray(name)] for name in reader.array_names
    }
    return {
        "trials": reader.trials.to_json(orient="split"),
        "arrays": arrays,
        "times": reader.timing.to_json(orient="split"),
        "losses": sorted((loss.kind, loss.trials) for loss in reader.losses),
        "pickles": {p.name: _digest_bytes(p.read_bytes()) for p in folder.glob("*.pkl")},
        "interrupted": dict(_interrupted(folder / layout.INTERRUPTED)),
    }


def _interrupted(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path, "r", locking=False) as file:
            for key in file:
                if key != "timing":
                    yield f"{path.name}/{key}", _digest(file[key][()])


def _digest(array: np.ndarray[Any, Any] | None) -> str:
    return "" if array is None else f"{array.dtype}{array.shape}{_digest_bytes(array.tobytes())}"


def _digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def segments_below(*places: Path) -> dict[str, bytes]:
    """Return the bytes of every segment of a journal, wherever it was moved, by its name."""
    return {path.name: path.read_bytes() for place in places for path in place.rglob("*.segment")}


def leftovers(folder: Path) -> list[str]:
    """Return what must not be in the folder of a published task: journals, hidden files."""
    return sorted(
        path.name for path in folder.iterdir() if path.name == layout.JOURNAL or path.name[0] == "."
    )
