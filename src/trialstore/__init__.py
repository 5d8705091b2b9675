"""Record experiments: the loop never waits for the disk, nothing accepted is lost in silence.

The road of a trial, and where to look:

```
 experiment loop       one background task      one child process    any script
 task.write(trial) ─┐
 task.append(...)  ─┴▶ bounded queue ─▶ journal ──────▶ trials.csv, NAME.hdf5 ─▶ DataFrame, ndarray
   ACCEPTED               WRITTEN ─▶ DURABLE ─────────▶ PUBLISHED

 design.py              what an experiment fills: Design, Block, Trial, Array, ArrayInfo
 _storage.py            the async facade: Storage, TaskWriter, TrialWriter
 _recording/            queue, writer task, worker thread, handle on the child
 _ondisk/               bytes and files: journal, manifest, tables, names, the door to the disk
 _publishing/           the child: journal in, verified plain files out; the only writer of HDF5
 _reading/              StorageReader, TaskReader: ordinary synchronous calls, on any task
 upkeep.py, _upkeep/    check, recover, prune: for data that is on disk already
 _errors.py             every exception, drawn as a tree
```

Importing this package loads none of them; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trialstore._errors import (
        DamagedData,
        FormatError,
        InvalidName,
        InvalidTrial,
        PublishFailed,
        QueueFull,
        StorageError,
        TaskExists,
        TaskLocked,
        TaskNotFound,
        UntrustedPickle,
        WriteFailed,
    )
    from trialstore._ondisk.archive import storage_to_zip
    from trialstore._ondisk.losses import Loss
    from trialstore._publishing.hdf5 import write_hdf5
    from trialstore._reading.hdf5 import read_hdf5
    from trialstore._reading.storage import StorageReader
    from trialstore._reading.task import TaskReader
    from trialstore._recording.progress import Level
    from trialstore._recording.receipt import Receipt
    from trialstore._recording.statistics import Statistics
    from trialstore._storage import Storage, TaskWriter, TrialWriter
    from trialstore.design import Array, ArrayInfo, Block, Design, Trial

__all__ = [
    "Array",
    "ArrayInfo",
    "Block",
    "DamagedData",
    "Design",
    "FormatError",
    "InvalidName",
    "InvalidTrial",
    "Level",
    "Loss",
    "PublishFailed",
    "QueueFull",
    "Receipt",
    "Statistics",
    "Storage",
    "StorageError",
    "StorageReader",
    "TaskExists",
    "TaskLocked",
    "TaskNotFound",
    "TaskReader",
    "TaskWriter",
    "Trial",
    "TrialWriter",
    "UntrustedPickle",
    "WriteFailed",
    "read_hdf5",
    "storage_to_zip",
    "write_hdf5",
]

_HOMES = {
    "_errors": (
        *(
            "DamagedData",
            "FormatError",
            "InvalidName",
            "InvalidTrial",
            "PublishFailed",
            "QueueFull",
        ),
        *("StorageError", "TaskExists", "TaskLocked", "TaskNotFound", "UntrustedPickle"),
        "WriteFailed",
    ),
    "_ondisk.archive": ("storage_to_zip",),
    "_ondisk.losses": ("Loss",),
    "_publishing.hdf5": ("write_hdf5",),
    "_reading.hdf5": ("read_hdf5",),
    "_reading.storage": ("StorageReader",),
    "_reading.task": ("TaskReader",),
    "_recording.progress": ("Level",),
    "_recording.receipt": ("Receipt",),
    "_recording.statistics": ("Statistics",),
    "_storage": ("Storage", "TaskWriter", "TrialWriter"),
    "design": ("Array", "ArrayInfo", "Block", "Design", "Trial"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
