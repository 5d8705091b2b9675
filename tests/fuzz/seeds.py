"""Whole samples that fuzzing begins from: a small recording of every kind of thing, cut up."""

from __future__ import annotations

import collections
import datetime
import functools
import json
import pickle
import platform
import tempfile
from pathlib import Path
from typing import Any

import anyio
import h5py
import numpy as np
import pandas as pd

from tests.fuzz.targets import RAW, SEALED, TASK_FILES, join
from trialstore import ArrayInfo, Storage
from trialstore._ondisk import journal, layout
from trialstore._ondisk.journal import Frame


async def _record(root: Path) -> Path:
    async with Storage(root, keep_journal=True) as storage:
        storage.subject_id = "p0"
        info = ArrayInfo(rate=1000.0, unit="mV", channels=["a", "b"], dims=("channel", "time"))
        async with storage.create_task("t", metadata={"rig": "A"}, arrays={"emg": info}) as task:
            for number in range(3):
                await task.append("emg", np.arange(6.0).reshape(2, 3) + number)
                await task.append("emg", np.ones((2, 1)))
                attrs = {"n": number, "code": "007", "none": None, "at": datetime.date(2024, 5, 1)}
                await task.write({**attrs, "nested": [1, {"a": (2.5,)}], "say": 'a "b",\nc'})
            await task.pickle({"w": np.ones(2), "t": pd.DataFrame({"a": [1.5]})}, "ica")
            return task.root


@functools.cache
def _files() -> dict[str, bytes]:
    """The bytes of every file of a task, published and with its journal."""
    with tempfile.TemporaryDirectory() as folder:
        task = anyio.run(_record, Path(folder) / "data")
        paths = [path for path in task.rglob("*") if path.is_file()]
        return {str(path.relative_to(task)): path.read_bytes() for path in paths}


def _segment() -> bytes:
    return _files()[f"{layout.JOURNAL}/{layout.segment_name(1)}"]


def _frames() -> bytes:
    """The frames of the segment as `targets.sealed_segment` takes them."""
    data = _segment()

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    session = journal.parse_header(data)
    assert session is not None
    found = b""
    for frame in journal.scan(read, len(data), journal.salt_of(session)):
        if isinstance(frame, Frame):
            meta = read(frame.meta_offset, frame.meta_length)
            body = read(frame.body_offset, frame.body_length)
            found += bytes([frame.type - 1, 0]) + join(meta, body)
    return found


def _journals() -> list[bytes]:
    witness = _files()[f"{layout.JOURNAL}/{layout.segment_name(1)}".replace("segment", "witness")]
    segment = _segment()
    cut = segment[: len(segment) // 2]
    return [
        RAW + join(segment, witness),
        RAW + join(segment, b""),
        RAW + join(cut, witness),
        SEALED + join(_frames(), b""),
    ]


def _manifests() -> list[bytes]:
    data = _files()[layout.MANIFEST]
    body = data[: data.rindex(b",\n")]
    return [RAW + data, SEALED + body]


def _tables() -> list[bytes]:
    kinds = json.dumps(json.loads(_files()[layout.MANIFEST])["columns"]).encode()
    csv, timing = _files()[layout.TRIALS], _files()[layout.TIMING]
    return [join(csv, timing, kinds), join(b"a,b\n1,\n,x\n", timing, b'[["a",[["int",2]]]]')]


def _tasks() -> list[bytes]:
    files = _files()
    published = [files.get(name, b"") for name in TASK_FILES[:-1]]
    live = [b"", b"", b"", b"", files["ica.pkl"]]
    foreign = [b"", *published[1:]]
    return [
        RAW + join(*published, b""),
        SEALED + join(*published, b""),
        SEALED + join(*live, _frames()),
        RAW + join(*live, _segment()),
        RAW + join(*foreign, b""),
    ]


def _archives() -> list[bytes]:
    names = [
        "p0/t/trials.csv",
        "p0/t/é.hdf5",
        "a/b/c",
        "..\\x",
        "C:\\y",
        "CON",
        "x\u202ey",
        "A",
        "a ",
    ]
    return ["\n".join(names).encode(), b"p0/\xff\xfe", b"p0/A\np0/a"]


def _pickles() -> list[bytes]:
    objects: list[Any] = [
        {"a": [1, 2.5, None, True, "x", b"y", 1 << 100], (1, 2): ({3}, frozenset([4]))},
        [collections.OrderedDict(b=1), collections.deque([1], 3), collections.Counter("ab")],
        [datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), bytearray(b"abc"), 1 + 2j],
        [np.arange(3.0), np.zeros((2, 0), "f4"), np.array([1, "a"], object), np.float32(1)],
        np.ones(2, [("a", "f4"), ("b", [("c", ">i8")])]),
        pd.DataFrame({"a": [1, 2], "s": ["x", None], "t": pd.date_range("2020", periods=2)}),
        pd.Series(pd.Categorical(["a", "b"]), name="n"),
    ]
    return [pickle.dumps(obj, protocol) for obj in objects for protocol in (2, 4, 5)]


def _locks() -> list[bytes]:
    values = {"host": platform.node(), "pid": 7, "since": "2024-05-01T00:00:00", "role": "recorder"}
    return [json.dumps(values).encode(), b"", b"\x1b[2J", b"[" * 4096]


def _hdf5(**options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "emg.hdf5"
        with h5py.File(path, "w") as file:
            file.create_dataset("0", data=np.arange(24.0).reshape(2, 12), **options)
            file.create_dataset("1", data=np.ones(3, [("a", "f4"), ("b", "S3")]))
            file["timing/0"] = np.arange(6).reshape(2, 3)
            file["text"] = "text"
            file["soft"] = h5py.SoftLink("/0")
            file.attrs["unit"] = "mV"
        return path.read_bytes()


def _hdf5s() -> list[bytes]:
    chunked = {"chunks": (1, 5), "compression": "gzip", "shuffle": True, "fletcher32": True}
    return [_files()["emg.hdf5"], _hdf5(), _hdf5(**chunked), _hdf5(compression="lzf")]


_MAKERS = {
    "journal": _journals,
    "manifest": _manifests,
    "table": _tables,
    "task": _tasks,
    "archive": _archives,
    "pickle": _pickles,
    "lock": _locks,
    "hdf5": _hdf5s,
}


@functools.cache
def seeds(target: str) -> list[bytes]:
    """Return whole inputs of a target, by its name in `targets.TARGETS`."""
    return _MAKERS[target]()
