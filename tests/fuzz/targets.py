"""One function per reader: any bytes in, nothing but `StorageError` and its family out.

A target takes one string of bytes, so that both Hypothesis and Atheris can drive it. Readers of
several files take them joined (`join`). What is guarded by a checksum would never be reached by
random bytes, so some targets also seal what they are given (`SEALED` first): the attacker can
compute a CRC as well.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trialstore import StorageError, TaskReader
from trialstore._ondisk import journal, layout, lock, manifest, pickles, recovery, table
from trialstore._ondisk.archive import storage_to_zip
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.replay import Replay
from trialstore._reading import frame
from trialstore._reading.hdf5 import ArrayFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Target = Callable[[bytes], None]

#: First byte of input whose checksums the target computes itself.
SEALED: Final = b"\x01"
RAW: Final = b"\x00"

_LENGTH: Final = struct.Struct("<I")
_SESSION: Final = bytes(range(16))
#: Samples read at one place: reading is bounded by the file, and no input needs to be slow.
_TRIALS_READ: Final = 20
_SMALL_FILE: Final = 1 << 20
#: From this byte on, a frame claims to be durable up to a number that no frame has.
_HUGE: Final = 250


def join(*parts: bytes) -> bytes:
    """Join the bytes of several files to one input; `split` undoes it."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def split(data: bytes, count: int) -> list[bytes]:
    """Cut any bytes into `count` parts."""
    parts = []
    for _ in range(count):
        length = _LENGTH.unpack(data[:4].ljust(4, b"\0"))[0]
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return parts


def memory_folder() -> str | None:
    """Where files cost no disk, on systems that have such a place."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None


@functools.cache
def _scratch() -> Path:
    """A folder of this process; in memory, unless somebody has said where."""
    folder = tempfile.mkdtemp(prefix="trialstore-fuzz-", dir=tempfile.tempdir or memory_folder())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _fresh(name: str) -> Path:
    """An empty folder."""
    folder = _scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# --- the journal ------------------------------------------------------------------------------


def frames_of(described: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Cut any bytes into frames: two bytes for type and `synced_to`, a description, samples."""
    frames = []
    while len(described) > 1:
        head, rest = described[:2], described[2:]
        meta, body = split(rest, 2)
        frames.append((head, meta, body))
        described = rest[8 + len(meta) + len(body) :]
    return frames


def sealed_segment(described: bytes) -> bytes:
    """Make a segment of what `frames_of` takes, with every checksum right."""
    pieces: list[Any] = [journal.encode_header(_SESSION)]
    previous = 0
    for seq, (head, meta, body) in enumerate(frames_of(described), 1):
        kind, synced = head
        framed, previous = journal.encode_frame(
            journal.FrameType(kind % len(journal.FrameType) + 1),
            meta,
            [body],
            seq=seq,
            synced_to=max(0, seq - synced % 3) if synced < _HUGE else 2**63 + synced,
            previous=previous,
            salt=journal.salt_of(_SESSION),
        )
        pieces += framed
    return b"".join(pieces)


def journal_target(data: bytes) -> None:
    """A segment and its witness, followed, recovered and read to the last sample."""
    task = _fresh("journal")
    folder = task / layout.JOURNAL
    folder.mkdir()
    segment, witness = split(data[1:], 2)
    if data[:1] == SEALED:
        segment = sealed_segment(segment)
    path = folder / layout.segment_name(1)
    path.write_bytes(segment)
    layout.witness_path(path).write_bytes(witness)
    with contextlib.suppress(StorageError), Replay([folder]) as replay:
        replay.poll()
        replay.losses(check_samples=True)
        for trial in list(replay.trials.values())[:_TRIALS_READ]:
            for name in trial.commit.arrays:
                with contextlib.suppress(StorageError):
                    trial.layout_of(name)
                    list(trial.chunks(name))
                    trial.window(name, 0, 3)
    with contextlib.suppress(StorageError):
        recovery.apply(Disk(), recovery.plan(task))


# --- manifest and tables ----------------------------------------------------------------------


def manifest_target(data: bytes) -> None:
    """A manifest; sealed, its members are any JSON."""
    if data[:1] == SEALED:
        body = data[1:].rstrip(b" \n}")
        data = RAW + body + b',\n  "checksum": "crc32:%08x"\n}\n' % zlib.crc32(body)
    with contextlib.suppress(StorageError):
        found = manifest.decode(data[1:], Path("manifest.json"))
        again = found.encode()
        assert manifest.decode(again, Path("manifest.json")).encode() == again
        table.check_columns(found.columns, found.trials)


def table_target(data: bytes) -> None:
    """``trials.csv`` with its kinds, ``timing.csv``, and the same bytes as a foreign table."""
    csv, timing, kinds = split(data, 3)
    with contextlib.suppress(StorageError):
        table.parse_timing(timing)
    with contextlib.suppress(StorageError):
        names, rows = table.parse_csv(csv)
        assert all(len(row) == len(names) for row in rows)
    with contextlib.suppress(StorageError):
        frame.frame_from_foreign_csv(csv, "trials.csv")
    with contextlib.suppress(StorageError):
        described = _json(kinds)
        count = sum(n for _, n in described[0][1]) if _is_described(described) else 0
        columns = table.check_columns(described, count)
        taken = table.Table.from_csv(csv, columns, count)
        assert table.parse_csv(taken.render()) == table.parse_csv(csv)
        frame.frame_from_csv(csv, columns, count)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_described(described: Any) -> bool:
    match described:
        case [[_, [*runs]], *_]:
            return all(type(run) is list and len(run) == 2 and type(run[1]) is int for run in runs)
    return False


# --- whole tasks --------------------------------------------------------------------------------

#: Files of a task, in the order in which `task_target` takes their bytes.
TASK_FILES: Final = (
    layout.MANIFEST,
    layout.TRIALS,
    layout.TIMING,
    "emg.hdf5",
    "ica.pkl",
    f"{layout.JOURNAL}/{layout.segment_name(1)}",
)


def task_target(data: bytes) -> None:
    """All files of a task, those that are empty left out, through the public reader."""
    folder = _fresh("task")
    parts = split(data[1:], len(TASK_FILES))
    if data[:1] == SEALED:
        parts = _sealed_task(parts)
    for name, part in zip(TASK_FILES, parts, strict=True):
        if part:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(part)
    reader = TaskReader(folder)
    for question in _QUESTIONS:
        with contextlib.suppress(StorageError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a manifest that is gone is told
            question(reader)


def _sealed_task(parts: Sequence[bytes]) -> list[bytes]:
    """Make the checksums in the manifest right, and the journal of frames."""
    described, *others, segment = parts
    values = _json(described)
    if isinstance(values, dict) and isinstance(values.get("files"), dict):
        for name, part in zip(TASK_FILES[1:], others, strict=False):
            values["files"][name] = {"size": len(part), "crc32": zlib.crc32(part)}
        values.pop("checksum", None)
        body = json.dumps(values).encode().rstrip(b"}")
        described = body + b',\n  "checksum": "crc32:%08x"\n}\n' % zlib.crc32(body)
    return [described, *others, sealed_segment(segment) if segment else b""]


def _read_arrays(reader: TaskReader) -> None:
    for name in reader.array_names[:3]:
        with contextlib.suppress(StorageError):
            reader.info(name)
        with contextlib.suppress(StorageError):
            reader.array(name)
        with contextlib.suppress(StorageError):
            reader.array(name, trial=0, window=(1, 3), verify=False)


_QUESTIONS: Final[tuple[Callable[[TaskReader], object], ...]] = (
    lambda reader: reader.status,
    lambda reader: reader.trials,
    lambda reader: reader.timing,
    lambda reader: (reader.metadata, reader.losses),
    _read_arrays,
    lambda reader: reader.pickle("ica"),
)


# --- the others ---------------------------------------------------------------------------------


def archive_target(data: bytes) -> None:
    """Files of any names, archived: what is in the archive is safe to unpack anywhere."""
    root = _fresh("archive") / "data"
    root.mkdir()
    names = data.split(b"\n")[:20]
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            path = os.path.join(os.fsencode(root), name.lstrip(b"/"))  # noqa: PTH118 - bytes
            if os.path.normpath(path).startswith(os.fsencode(root)):
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                with open(path, "xb") as file:  # noqa: PTH123
                    file.write(name)
    with contextlib.suppress(StorageError):
        outfile = storage_to_zip(root, _scratch() / "archive.zip")
        with zipfile.ZipFile(outfile) as archive:
            assert archive.testzip() is None
            for entry in archive.namelist():
                parts = entry.rstrip("/").split("/")
                assert parts[0] == "data"
                assert all(layout.refusal_of_component(part) is None for part in parts), entry
            assert layout.twins(archive.namelist()) is None


def pickle_target(data: bytes) -> None:
    """A pickle of a stranger's."""
    with contextlib.suppress(StorageError):
        pickles.loads(data, trusted=False, path=Path("ica.pkl"))


def lock_target(data: bytes) -> None:
    """A lock file that somebody else has written, asked for, taken and refused."""
    path = _fresh("lock") / "journal" / layout.LOCK
    path.parent.mkdir()
    path.write_bytes(data)
    assert lock.holder(path) is None
    with contextlib.suppress(StorageError):
        lock.acquire(path, "recorder", patience=0.0).release()
    held = lock.acquire(path, "recorder", patience=0.0)
    try:
        path.write_bytes(data)
        found = lock.holder(path)
        assert found is not None
        assert str(found).isprintable()
    finally:
        held.release()


def hdf5_target(data: bytes) -> None:
    """A stranger's HDF5 file: every dataset of the root and one in a group, whole and in part."""
    path = _scratch() / "emg.hdf5"
    path.write_bytes(data)
    with contextlib.suppress(StorageError), ArrayFile(path) as file:
        for name in [*file.names()[:5], "timing/0"]:
            with contextlib.suppress(StorageError):
                shape = file.shape(name)
                file.dtype(name)
                file.read(name, selection=(slice(0, 2),) if shape else None)
            with contextlib.suppress(StorageError):
                array = file.read(name)
                assert array.nbytes <= max(1100 * len(data), 2 * _SMALL_FILE)


TARGETS: Final[dict[str, Target]] = {
    "journal": journal_target,
    "manifest": manifest_target,
    "table": table_target,
    "task": task_target,
    "archive": archive_target,
    "pickle": pickle_target,
    "lock": lock_target,
    "hdf5": hdf5_target,
}
