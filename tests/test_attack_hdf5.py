"""Hostile HDF5 files: as an array of a stranger's task, of a task of ours, and read directly.

They are read by a process with a limit of memory. What they would reach outside lies behind a named
pipe, and opening a pipe waits for ever: a process that ends has opened none.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import pytest

from trialstore._ondisk import chunks, manifest
from trialstore._ondisk.manifest import ArrayRecord, StoredArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")

GIB = 2**30
OUTSIDE = "outside"  # a pipe beside the file
SECRET = "secret.txt"
SECRET_TEXT = b"root:x:0:0:not for everybody" * 20


def low_level(
    file: h5py.File, kind: Any, shape: tuple[int, ...] = (2,), plist: Any = None, name: bytes = b"0"
) -> Any:
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, name, kind, space, plist)


def chunked(*chunk: int) -> Any:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(chunk)
    return plist


# --- what leads outside ---------------------------------------------------------------------------


def soft_link(file: h5py.File, folder: Path) -> None:
    file["good"] = np.ones(2)
    file["0"] = h5py.SoftLink("/good")


def dangling_link(file: h5py.File, folder: Path) -> None:
    file["0"] = h5py.SoftLink("/nowhere")


def link_to_itself(file: h5py.File, folder: Path) -> None:
    file["0"] = h5py.SoftLink("/0")


def external_link(file: h5py.File, folder: Path) -> None:
    file["0"] = h5py.ExternalLink(str(folder / OUTSIDE), "/data")


def external_link_to_itself(file: h5py.File, folder: Path) -> None:
    file["good"] = np.ones(2)
    file["0"] = h5py.ExternalLink(os.path.basename(file.filename), "/good")  # noqa: PTH119


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (16,), "u1", external=[(str(folder / SECRET), 0, 16)])


def external_storage_of_a_device(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (16,), "u1", external=[("/dev/zero", 0, 16)])


def external_storage_of_a_pipe(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (16,), "u1", external=[(str(folder / OUTSIDE), 0, 16)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / OUTSIDE), "data", (3,))
    file.create_virtual_dataset("0", layout)


def virtual_of_itself(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(".", "0", (3,))
    file.create_virtual_dataset("0", layout)


# --- what would load code -------------------------------------------------------------------------


def unknown_filter(file: h5py.File, folder: Path) -> None:
    plist = chunked(2)
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    low_level(file, h5py.h5t.IEEE_F64LE, plist=plist).write_direct_chunk((0,), bytes(16))


def filter_of_nobody(file: h5py.File, folder: Path) -> None:
    plist = chunked(2)
    plist.set_filter(65535, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    low_level(file, h5py.h5t.IEEE_F64LE, plist=plist).write_direct_chunk((0,), bytes(16))


# --- what would fill the memory -------------------------------------------------------------------


def declared_16_gib(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (2 * GIB,), "f8", chunks=(2**10,), fillvalue=7.0)


def declared_16_gib_contiguous(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (2 * GIB,), "f8")


def declared_2_to_the_62(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (2**31, 2**28), "f8", chunks=(1, 1))


def one_chunk_of_16_gib(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (2 * GIB,), "f8", chunks=(2**10,), compression="gzip")
    file["0"][:1024] = 1


def large_fill_value(file: h5py.File, folder: Path) -> None:
    dtype = np.dtype(("S", 60_000))
    file.create_dataset(
        "0", (10**6,), dtype, chunks=(100,), fillvalue=np.array(b"x" * 60_000, dtype)
    )


def deflated_zeros(file: h5py.File, folder: Path) -> None:
    """One chunk of 3 GiB, deflated from zeros by hand: a bomb of a thousand to one, twice over."""
    plist = chunked(2**31)
    plist.set_deflate(9)
    once = zlib.compressobj(9)
    parts = [once.compress(bytes(2**24)) for _ in range(4)]
    data = b"".join([*parts, once.flush()])
    dataset = low_level(file, h5py.h5t.STD_U8LE, (2**31,), plist)
    dataset.write_direct_chunk((0,), zlib.compress(data, 9))


def filter_twice(file: h5py.File, folder: Path) -> None:
    plist = chunked(2)
    plist.set_deflate(9)
    plist.set_deflate(9)
    low_level(file, h5py.h5t.IEEE_F64LE, plist=plist)


def chunk_larger_than_its_dataset(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (1,), "f8", maxshape=(None,), chunks=(2**28,), compression="gzip")
    file["0"].id.write_direct_chunk((0,), b"deflated, they say")


def huge_type(file: h5py.File, folder: Path) -> None:
    kind = h5py.h5t.array_create(h5py.h5t.IEEE_F64LE, (2**20, 2**8))
    low_level(file, kind, (4,), chunked(1))


def huge_opaque(file: h5py.File, folder: Path) -> None:
    low_level(file, h5py.h5t.create(h5py.h5t.OPAQUE, 2**31), (4,), chunked(1))


def huge_string(file: h5py.File, folder: Path) -> None:
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(2**31)
    low_level(file, kind, (4,), chunked(1))


def enum_of_many(file: h5py.File, folder: Path) -> None:
    kind = h5py.h5t.enum_create(h5py.h5t.STD_I32LE)
    for number in range(2000):
        kind.enum_insert(b"n%d" % number, number)
    low_level(file, kind, (2 * GIB,), chunked(1024))


# --- what is no array -----------------------------------------------------------------------------


def text(file: h5py.File, folder: Path) -> None:
    file["0"] = "\x1b[2Jtext"


def texts(file: h5py.File, folder: Path) -> None:
    file["0"] = np.array(["a", "b"], dtype=h5py.string_dtype())


def ragged(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (2,), h5py.vlen_dtype("f8"))


def text_in_a_field(file: h5py.File, folder: Path) -> None:
    file.create_dataset("0", (2,), np.dtype([("a", "f8"), ("b", h5py.string_dtype())]))


def references(file: h5py.File, folder: Path) -> None:
    file["good"] = [1]
    file["0"] = np.array([file["good"].ref], dtype=h5py.ref_dtype)


def region_references(file: h5py.File, folder: Path) -> None:
    file["good"] = np.arange(9)
    file["0"] = np.array([file["good"].regionref[:3]], dtype=h5py.regionref_dtype)


def pointers(file: h5py.File, folder: Path) -> None:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
    kind.set_tag(b"NUMPY:|O")
    low_level(file, kind)


def opaque_of_a_hostile_tag(file: h5py.File, folder: Path) -> None:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
    kind.set_tag(b"NUMPY:(1000000,1000000)f8")
    low_level(file, kind)


def opaque_of_another_size(file: h5py.File, folder: Path) -> None:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
    kind.set_tag(b"NUMPY:M8[ns],f8,f8")
    low_level(file, kind)


def null(file: h5py.File, folder: Path) -> None:
    file["0"] = h5py.Empty("f8")


def group(file: h5py.File, folder: Path) -> None:
    file.create_group("0")


def group_in_a_circle(file: h5py.File, folder: Path) -> None:
    made = file.create_group("0")
    made["0"] = made
    made["up"] = file["/"]


def root_again(file: h5py.File, folder: Path) -> None:
    file["0"] = file["/"]


def committed_type(file: h5py.File, folder: Path) -> None:
    file["0"] = np.dtype("f8")


REFUSED: dict[Any, str] = {
    soft_link: "link to another place",
    dangling_link: "link to another place",
    link_to_itself: "link to another place",
    external_link: "link to another place",
    external_link_to_itself: "link to another place",
    external_storage: "other files",
    external_storage_of_a_device: "other files",
    external_storage_of_a_pipe: "other files",
    virtual: "other files",
    virtual_of_itself: "other files",
    unknown_filter: "filters that are not HDF5's own",
    filter_of_nobody: "filters that are not HDF5's own",
    declared_16_gib: "declares 17179869184 bytes of data but stores 0",
    declared_16_gib_contiguous: "declares 17179869184 bytes of data but stores 0",
    declared_2_to_the_62: "declares 4611686018427387904 bytes",
    one_chunk_of_16_gib: "declares 17179869184 bytes",
    large_fill_value: "declares 60000000000 bytes",
    deflated_zeros: "declares 2147483648 bytes",
    filter_twice: "applies a filter twice",
    chunk_larger_than_its_dataset: "declares 2147483648 bytes",
    huge_type: "NumPy does not have|declares 8589934592 bytes",
    huge_opaque: "bytes of data but stores 0|NumPy does not have|cannot read",
    huge_string: "bytes of data but stores 0|NumPy does not have|cannot read",
    enum_of_many: "declares 8589934592 bytes",
    text: "text of any length",
    texts: "text of any length",
    ragged: "text of any length",
    text_in_a_field: "text of any length",
    references: "references",
    region_references: "references",
    pointers: "Python objects",
    opaque_of_a_hostile_tag: "",
    opaque_of_another_size: "",
    null: "no array",
    group: "cannot be opened",
    group_in_a_circle: "cannot be opened",
    root_again: "cannot be opened",
    committed_type: "cannot be opened",
}

#: A stranger's task has no trial where the root group has no such dataset.
NO_DATASET = {
    *(soft_link, dangling_link, link_to_itself, external_link, external_link_to_itself, group),
    *(group_in_a_circle, root_again, committed_type),
}

#: Reads one folder after the other; answers each with a line of JSON.
CHILD = """
import json, resource, sys
import h5py, numpy, pandas
from trialstore import StorageError, TaskReader, read_hdf5
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
way, *folders = sys.argv[1:]
for folder in folders:
    path = f"{folder}/emg.hdf5"
    if way == "direct":
        questions = [lambda name=name: read_hdf5(path, name) for name in ("0", "0/0", "timing/0")]
    else:
        reader = TaskReader(folder)
        questions = [
            lambda: reader.array("emg"), lambda: reader.array("emg", trial=0, verify=False),
            lambda: reader.array("emg", trial=0, window=(0, 1), verify=False),
            lambda: list(reader.iterarray("emg")), lambda: reader.info("emg"),
            lambda: list(reader.follow()),
        ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = []
    for question in questions:
        try:
            answers.append(["read", repr(question())])
        except StorageError as error:
            answers.append([type(error).__name__, str(error)])
        except BaseException as error:
            answers.append(["STRANGE", repr(error)])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([answers, grown]), flush=True)
"""


class Answers(NamedTuple):
    """What came of every question to one file: error or 'read', and message; KiB of memory."""

    folder: Path
    answers: list[tuple[str, str]]
    grown: int


def ask(way: str, folders: Sequence[Path]) -> list[Answers]:
    """Read all folders in one process that has little memory."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, way, *map(str, folders)],
        capture_output=True,
        timeout=100,
        check=False,
        env={**os.environ, "HDF5_PLUGIN_PATH": str(folders[0])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [Answers(*both) for both in zip(folders, *zip(*answers, strict=True), strict=True)]


def planted(folder: Path, make: Callable[[h5py.File, Path], None], way: str) -> Path:
    """A task with one trial and a hostile file in the place of its array."""
    folder.mkdir(parents=True)
    os.mkfifo(folder.parent / OUTSIDE)
    (folder.parent / SECRET).write_bytes(SECRET_TEXT)
    with h5py.File(folder / "emg.hdf5", "w") as file:
        make(file, folder.parent)
    (folder / "trials.csv").write_bytes(b"n\n1\n")
    if way == "ours":
        (folder / "timing.csv").write_bytes(b"trial,unix_ns,monotonic_ns,first_unix_ns\n0,1,1,1\n")
        stored = StoredArray(0, chunks.dtype_to_json(np.dtype("f8")), (2,), 0, 2, (0,))
        described = manifest.Manifest(
            "complete",
            "p0",
            "t",
            trials=1,
            columns=[["n", [["int", 1]]]],
            arrays={"emg": ArrayRecord({}, 1, {0: stored})},
        )
        for name in ("trials.csv", "timing.csv"):
            data = (folder / name).read_bytes()
            described.files[name] = {"size": len(data), "crc32": zlib.crc32(data)}
        (folder / "manifest.json").write_bytes(described.encode())
    return folder


@pytest.fixture(scope="module", params=["foreign", "ours", "direct"])
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Answers]:
    """Every hostile file, read in one of three ways."""
    root, way = tmp_path_factory.mktemp("hostile"), request.param
    makers = [*REFUSED, *(() if way == "direct" else STRANGE)]
    folders = [planted(root / make.__name__ / "task", make, way) for make in makers]
    return dict(zip(makers, ask(way, folders), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_hostile_dataset_is_refused(answers: dict[Any, Answers], make: Any) -> None:
    """Nothing outside is read, nothing large is allocated, and file and dataset are named."""
    folder, found, grown = answers[make]
    assert grown < 150_000, f"{grown} KiB"
    refusals = [message for kind, message in found if kind in {"FormatError", "DamagedData"}]
    for message in refusals[:1]:
        assert repr(str(folder / "emg.hdf5")) in message
        assert "'0'" in message
        assert any(reason in message for reason in REFUSED[make].split("|")), message
    if REFUSED[make]:
        assert found[0][0] in {"FormatError", "DamagedData"} or make in NO_DATASET
    for kind, message in found:
        assert kind != "STRANGE", message
        assert "root:x" not in message
        assert "114, 111, 111, 116" not in message  # the secret's first bytes
        if kind != "read":
            assert message.isprintable()
            assert len(message) < 1000


# --- the file itself ------------------------------------------------------------------------------


def names_from_elsewhere(file: h5py.File, folder: Path) -> None:
    for name in (
        b"..",
        b"..\\x",
        b"\x1b[2J",
        b"a b",
        b"\xff",
        b"1\n",
        "\u202e0".encode(),
        b"00",
        b"-1",
    ):
        low_level(file, h5py.h5t.IEEE_F64LE, name=name)


def numbers_beyond(file: h5py.File, folder: Path) -> None:
    for name in (b"9" * 5000, b"18446744073709551616", "\u0661".encode(), b"1e3", b"+1"):
        low_level(file, h5py.h5t.IEEE_F64LE, name=name)


def attributes_like_bombs(file: h5py.File, folder: Path) -> None:
    file["0"] = np.ones((1, 2))
    file.attrs["unit"] = "\x1b[2J" * 1000
    file.attrs.create("rate", np.zeros(8000))
    file.attrs.create("channels", ["x" * 60_000] * 100, dtype=h5py.string_dtype())
    file["0"].attrs["x"] = h5py.Empty("f8")


def many_datasets(file: h5py.File, folder: Path) -> None:
    for number in range(3000):
        low_level(file, h5py.h5t.IEEE_F64LE, name=b"%d" % number)


def thirty_two_axes(file: h5py.File, folder: Path) -> None:
    low_level(file, h5py.h5t.IEEE_F64LE, (1,) * 32)


def axes_of_no_length(file: h5py.File, folder: Path) -> None:
    low_level(file, h5py.h5t.IEEE_F64LE, (2**62, 0, 2**62), chunked(1, 1, 1))


def one_dataset_many_names(file: h5py.File, folder: Path) -> None:
    file["0"] = np.ones((1, 2))
    for number in range(1, 500):
        file[str(number)] = file["0"]


STRANGE = [
    *(names_from_elsewhere, numbers_beyond, attributes_like_bombs, many_datasets),
    *(thirty_two_axes, axes_of_no_length, one_dataset_many_names),
]
_OURS = frozenset(
    ("read", "FormatError", "DamagedData", "InvalidTrial", "InvalidName", "StorageError")
)


@pytest.mark.slow
@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_a_strange_file_gives_arrays_or_our_errors(answers: dict[Any, Answers], make: Any) -> None:
    """Odd names, attributes, shapes and numbers of datasets need no memory and break nothing."""
    if make not in answers:
        return  # read directly, a dataset is asked for by its name
    assert answers[make].grown < 150_000
    for kind, message in answers[make].answers:
        assert kind in _OURS, message
        if kind != "read":
            assert message.isprintable(), message
            assert len(message) < 2000


@pytest.mark.slow
def test_sizes_in_the_file_are_claims(tmp_path: Path) -> None:
    """Every eight bytes of a small file become a huge number in turn; memory stays small."""
    path = tmp_path / "emg.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("0", data=np.arange(64.0), chunks=(16,), compression="gzip")
        file["1"] = np.arange(8.0)
    whole = path.read_bytes()
    child = (
        "import sys, resource; from trialstore import read_hdf5, StorageError; import numpy\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "whole, path = open(sys.argv[1], 'rb').read(), sys.argv[2]\n"
        "for at in range(0, len(whole) - 8, 4):\n"
        "  for value in (b'\\xff' * 7 + b'\\x7f', (1 << 34).to_bytes(8, 'little')):\n"
        "    if not any(whole[at:at + 8]): continue\n"
        "    open(path, 'wb').write(whole[:at] + value + whole[at + 8:])\n"
        "    for name in '01':\n"
        "      try: read_hdf5(path, name)\n"
        "      except StorageError as error: assert str(error).isprintable()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(path), str(tmp_path / "forged.hdf5")],
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert path.read_bytes() == whole
    assert struct.unpack("<Q", whole[:8])[0] == 0x0A1A0A0D46444889  # it was an HDF5 file
