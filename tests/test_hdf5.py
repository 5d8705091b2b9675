"""HDF5 in and out: what we write anybody reads, and what anybody wrote cannot hurt us."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trialstore._errors import (
    DamagedData,
    FormatError,
    InvalidName,
    InvalidTrial,
    PublishFailed,
    StorageError,
)
from trialstore._publishing.hdf5 import MAX_TEXTS, ArrayFileWriter, write_hdf5
from trialstore._publishing.slabs import GATHER_BYTES
from trialstore._reading.hdf5 import MAX_UNACCOUNTED, ArrayFile, read_hdf5

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Piece = tuple[tuple[slice, ...] | None, Array]

PACKED = np.dtype([("flag", "?"), ("value", "<f8"), ("inner", [("a", "<i2"), ("b", ">u4", (2,))])])
PADDED = np.dtype([("flag", "?"), ("value", "<f8")], align=True)
DTYPES = [
    *("?", "i1", "<i2", ">i4", "i8", "u1", ">u2", "u4", "u8"),
    *("<f2", ">f2", "<f4", ">f8", "g", ">g", "<c8", ">c16", "<c32", "S5", "V7"),
    *("<M8[us]", ">M8[D]", "m8[ns]", "m8[25s]", "M8"),
    PACKED,
    PADDED,
    np.dtype([("b", "?", (2,)), ("c", "<c8"), ("s", "S3"), ("v", "V3"), ("g", "g")]),
]

SCALARS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.byte_string_dtypes(max_len=5),
)
STRUCTURED = hnp.nested_dtypes(SCALARS, max_leaves=4)


def filled(shape: tuple[int, ...], dtype: np.dtype[Any] | str, seed: int = 0) -> Array:
    """Return an array of random bytes, the padding of structured items included."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    top = 2 if dtype.kind == "b" else 256
    raw = np.random.default_rng(seed).integers(top, size=size, dtype=np.uint8)
    return np.ndarray(shape, dtype, raw.tobytes())


def same(a: Array, b: Array) -> bool:
    """Compare bit by bit: NaN, negative zero and padding count."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def as_axopy_reads(path: Path, dataset: str) -> Array:
    """Read as AxoPy 0.2.3 does."""
    with h5py.File(path, "r") as file:
        array: Array = file.get(f"/{dataset}")[:]
        return array


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's file goes."""
    return tmp_path / "emg.hdf5"


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 1, 3), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_by_bit(
    path: Path, dtype: np.dtype[Any] | str, shape: tuple[int, ...]
) -> None:
    """What is written is read equal in shape, dtype and bytes, by us and by AxoPy's own reader."""
    array = filled(shape, dtype)
    write_hdf5(path, array, "0")
    assert same(read_hdf5(path, "0"), array)
    assert same(as_axopy_reads(path, "0"), array)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scalar_comes_back_as_a_0d_array(path: Path, dtype: np.dtype[Any] | str) -> None:
    """A 0-dimensional array stays one."""
    array = filled((), dtype)
    write_hdf5(path, array)
    assert same(read_hdf5(path), array)


@given(st.one_of(SCALARS, STRUCTURED), hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
def test_a_dtype_is_kept_exactly_or_refused(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """No dtype is quietly turned into another one."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "a.hdf5")
        array = filled(shape, dtype)
        try:
            write_hdf5(file, array)
        except InvalidTrial:
            assert not file.exists()
        else:
            assert same(read_hdf5(file), array)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.array([{}]), "Python objects"),
        (["left", "right"], "fixed-length unicode"),
        ([[1, 2], [3]], "not an array"),
        (np.zeros(2, [("t", "M8[s]")]), "date inside"),
        (np.zeros(2, ">c32"), "foreign byte order"),
        (np.zeros(2, [("r", "f8"), ("i", "f8")]), "complex number"),
        (np.zeros(2, [(("title", "a"), "f8")]), "field titles"),
        (np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 1]}), "overlap"),
        (np.zeros(2, [("\ud800", "f8")]), "cannot hold"),
    ],
)
def test_what_hdf5_cannot_hold_is_refused_by_name(path: Path, data: Any, reason: str) -> None:
    """InvalidTrial names the dataset and the reason, and no file appears."""
    with pytest.raises(InvalidTrial, match=f"'angles'.*{reason}"):
        write_hdf5(path, data, "angles")
    assert not path.exists()


def test_an_existing_dataset_is_never_replaced(path: Path) -> None:
    """A second dataset joins the first; one of the same name is refused and changes nothing."""
    write_hdf5(path, [1, 2], "a")
    write_hdf5(path, [3, 4], "b/c")
    with pytest.raises(StorageError, match="has a 'a' already"):
        write_hdf5(path, [5, 6], "a")
    assert read_hdf5(path, "a").tolist() == [1, 2]
    assert read_hdf5(path, "/b/c").tolist() == [3, 4]


def test_a_new_file_is_never_an_old_one(path: Path) -> None:
    """Mode "x" refuses an existing file and leaves it alone."""
    path.write_bytes(b"something else")
    with pytest.raises(PublishFailed, match=r"emg\.hdf5"):
        ArrayFileWriter(path)
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize("name", ["", "/", ".", "..", "a//b", "a/../b", "a\0b", "\udc80"])
def test_names_that_hdf5_would_not_take_for_names(path: Path, name: str) -> None:
    """A dataset's name is a path of names; anything else is refused and no file appears."""
    with pytest.raises(InvalidName, match="not a name"):
        write_hdf5(path, [1], name)
    assert not path.exists()


def test_a_name_of_any_script(path: Path) -> None:
    """Letters of any script are fine, and plain h5py finds them."""
    write_hdf5(path, [1, 2], "måling 零")
    assert read_hdf5(path, "måling 零").tolist() == [1, 2]
    assert as_axopy_reads(path, "måling 零").tolist() == [1, 2]
    with ArrayFile(path) as file:
        assert file.names() == ["måling 零"]
    with h5py.File(path) as plain:
        assert plain.id.links.get_info("måling 零".encode()).cset == h5py.h5t.CSET_UTF8


def cut(array: Array, axis: int, ends: list[int]) -> Iterator[Piece]:
    """Cut an array along one axis and hand every piece over in the same, then spoilt, buffer."""
    edges = [0, *sorted(ends), array.shape[axis]]
    for start, end in itertools.pairwise(edges):
        selection = (*(slice(None),) * axis, slice(start, end))
        selection += (slice(None),) * (array.ndim - len(selection))
        piece = array[selection].copy()
        yield selection, piece
        piece.view(np.uint8)[...] = 0xAA


@given(st.data())
def test_pieces_make_the_whole_however_they_are_cut(data: st.DataObject) -> None:
    """Any cuts, along any axis, of any array give the array; no piece is needed after its turn."""
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=12))
    axis = data.draw(st.integers(0, len(shape) - 1))
    ends = data.draw(st.lists(st.integers(0, shape[axis]), max_size=6))
    array = filled(shape, data.draw(st.sampled_from(["<i2", "c8", "S3"])))
    with TemporaryDirectory() as folder:
        file = Path(folder, "a.hdf5")
        with ArrayFileWriter(file) as writer:
            writer.write("0", shape, array.dtype, cut(array, axis, ends))
        assert same(read_hdf5(file, "0"), array)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("step", [7, 900, 30_000])
def test_pieces_of_more_than_a_block(path: Path, axis: int, step: int) -> None:
    """Small pieces pass through several blocks, large ones through none; the array is the same."""
    shape = (60_000, 20) if axis == 0 else (20, 60_000)
    array = filled(shape, "<f8")
    assert array.nbytes > 2 * GATHER_BYTES
    ends = [*range(step, 40_000, step), 40_001]
    with ArrayFileWriter(path) as writer:
        writer.write("0", shape, array.dtype, cut(array, axis, ends))
    assert same(read_hdf5(path, "0"), array)


HALVES = (slice(0, 3), slice(3, 6))
WHOLE = slice(None)
CORNERS = [(row, column) for row in HALVES for column in HALVES]


@pytest.mark.parametrize(
    "places",
    [
        CORNERS,
        CORNERS[::-1],
        [(WHOLE, column) for column in HALVES[::-1]],
        [(row, WHOLE) for row in HALVES[::-1]],
        [(WHOLE, HALVES[0]), *CORNERS[1::2]],
        [(HALVES[0], WHOLE), *CORNERS[2:]],
        [(WHOLE, slice(start, start + 1)) for start in (0, 2, 1, 3, 5, 4)],
    ],
)
def test_pieces_in_any_order(path: Path, places: list[tuple[slice, slice]]) -> None:
    """Pieces need not follow one another, nor be cut along one axis only."""
    array = filled((6, 6), PADDED)
    with ArrayFileWriter(path) as writer:
        writer.write("0", (6, 6), PADDED, [(place, array[place]) for place in places])
    assert same(read_hdf5(path, "0"), array)


PART = (slice(0, 2),)


@pytest.mark.parametrize(
    "pieces",
    [
        [(None, np.zeros(3))],
        [(None, np.zeros(4, "f4"))],
        [(None, np.zeros(4, "i8"))],
        [(None, np.zeros((4, 1)))],
        [((slice(2, 5),), np.zeros(3))],
        [((slice(0, 4, 2),), np.zeros(2)), ((slice(1, 4, 2),), np.zeros(2))],
        [((slice(0, 2), slice(None)), np.zeros((2, 1)))],
        [(PART, np.zeros(2))],
        [(PART, np.zeros(2)), (PART, np.zeros(2)), (PART, np.zeros(2))],
        [],
    ],
)
def test_pieces_that_do_not_make_the_array(path: Path, pieces: list[Piece]) -> None:
    """A piece of the wrong dtype, shape or place, or one too few or too many, is an error."""
    with ArrayFileWriter(path) as writer, pytest.raises(PublishFailed, match=r"'7'.*emg\.hdf5"):
        writer.write("7", (4,), np.dtype("f8"), pieces)


@pytest.mark.parametrize("dtype", ["<f8", PADDED, "?", "M8[us]"], ids=str)
def test_the_bytes_lie_at_the_offset(path: Path, dtype: np.dtype[Any] | str) -> None:
    """After `flush` the array's bytes, padding too, can be read with nothing but its offset."""
    arrays = [filled((3, 5), dtype, seed) for seed in range(4)]
    with ArrayFileWriter(path) as writer:
        told = [
            writer.write(str(number), array.shape, array.dtype, [(None, array)])
            for number, array in enumerate(arrays)
        ]
        assert writer.write("none", (0, 3), np.dtype("f4"), []) is None
        writer.flush()
        raw = path.read_bytes()
        for number, array in enumerate(arrays):
            offset = writer.offset(str(number))
            assert offset is not None
            assert offset == told[number]
            assert raw[offset : offset + array.nbytes] == array.tobytes()
        assert writer.offset("none") is None
        with pytest.raises(PublishFailed, match="'9'"):
            writer.offset("9")


def test_equal_data_make_equal_files(tmp_path: Path) -> None:
    """Nothing of the time or place of writing gets into a file."""
    for name in ("a", "b"):
        with ArrayFileWriter(tmp_path / name) as writer:
            writer.write("0", (2, 3), np.dtype("f4"), [(None, np.ones((2, 3), "f4"))])
            writer.write_group("timing", "0", np.arange(2))
            writer.set_attributes({"unit": "mV"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with h5py.File(tmp_path / "a") as file:
        assert h5py.h5g.get_objinfo(file.id, b"0").mtime == 0


def test_a_group_beside_the_trials(path: Path) -> None:
    """Arrival times lie in a group of their own and are not taken for trials."""
    with ArrayFileWriter(path) as writer:
        for number in range(12):
            writer.write(str(number), (1,), np.dtype("i8"), [(None, np.array([number]))])
            writer.write_group("timing", str(number), np.arange(number))
    with ArrayFile(path) as file:
        assert sorted(file.names(), key=int) == [str(number) for number in range(12)]
        assert file.read("timing/11").tolist() == list(range(11))
        assert file.shape("timing/3") == (3,)
        assert file.dtype("timing/3") == np.dtype("i8")


def test_a_file_can_be_gone_on_with(path: Path) -> None:
    """Mode "r+" adds to a file, and what was there stays."""
    write_hdf5(path, [1, 2], "0")
    with ArrayFileWriter(path, mode="r+") as writer:
        assert writer.has("0")
        assert not writer.has("1")
        assert not writer.has("timing/1")
        writer.write("1", (1,), np.dtype("i8"), [(None, np.array([3]))])
    assert read_hdf5(path, "0").tolist() == [1, 2]
    assert read_hdf5(path, "1").tolist() == [3]


def test_attributes_are_plain_for_any_reader(path: Path) -> None:
    """Rate, unit, channels and dims are what h5py users expect: a number and texts."""
    with ArrayFileWriter(path) as writer:
        writer.set_attributes(
            {
                "rate": 2000,
                "unit": "µV",
                "channels": ["FCR", "Überstreckung"],
                "dims": ("channel", "time"),
                "note": None,
                "empty": [],
            }
        )
    with h5py.File(path) as file:
        assert set(file.attrs) == {"rate", "unit", "channels", "dims", "empty"}
        assert file.attrs["rate"] == 2000.0
        assert file.attrs["rate"].dtype == np.float64
        assert file.attrs["unit"] == "µV"
        assert list(file.attrs["channels"]) == ["FCR", "Überstreckung"]
        assert list(file.attrs["dims"]) == ["channel", "time"]


def test_attributes_that_hdf5_cannot_hold_do_not_stop_publication(path: Path) -> None:
    """NUL, lone surrogates and thousands of channels are kept in another form."""
    with ArrayFileWriter(path) as writer:
        writer.set_attributes({"unit": "a\0b\ud800", "channels": ["c"] * MAX_TEXTS})
        writer.set_attributes({"many": ["c"] * (MAX_TEXTS + 1)})
    with h5py.File(path) as file:
        assert file.attrs["unit"] == r"a\x00b\ud800"
        assert len(file.attrs["channels"]) == MAX_TEXTS
        assert file.attrs["many"].count('"c"') == MAX_TEXTS + 1


# Reading parts ----------------------------------------------------------------------------------

SLICES = st.builds(
    slice,
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(1, 3),
)


@given(hnp.array_shapes(min_dims=0, max_dims=3, max_side=6), st.lists(SLICES, max_size=3))
def test_a_selection_is_what_numpy_would_give(shape: tuple[int, ...], chosen: list[slice]) -> None:
    """A part of a dataset is read as NumPy's slices define it."""
    selection = tuple(chosen[: len(shape)])
    array = filled(shape, "<i4")
    with TemporaryDirectory() as folder:
        file = Path(folder, "a.hdf5")
        write_hdf5(file, array)
        with ArrayFile(file) as reader:
            part = reader.read("data", selection=selection)
    assert same(part, np.asarray(array[selection]))


@pytest.mark.parametrize("selection", [(slice(None),) * 3, (slice(None, None, -1),)])
def test_a_selection_that_does_not_fit(path: Path, selection: tuple[slice, ...]) -> None:
    """Too many axes and backward steps are refused."""
    write_hdf5(path, np.zeros((2, 3)))
    with ArrayFile(path) as file, pytest.raises(StorageError, match="selection"):
        file.read("data", selection=selection)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "lzf", "shuffle": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"scaleoffset": 0},
        {"chunks": (7, 3)},
        {"maxshape": (None, None)},
    ],
    ids=str,
)
def test_hdf5_own_filters_are_read(path: Path, options: dict[str, Any]) -> None:
    """Files of others may be chunked and compressed by what every HDF5 has."""
    array = np.arange(600).reshape(20, 30)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=array, **options)
    assert same(read_hdf5(path), array)


def test_zeros_that_compress_well_are_read(path: Path) -> None:
    """The limit on size does not hit what deflate can really do."""
    array = np.zeros((2048, 2048))
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=array, compression="gzip", chunks=(512, 2048))
    assert path.stat().st_size < array.nbytes / 500
    assert same(read_hdf5(path), array)


def test_a_type_of_another_order_is_converted(path: Path) -> None:
    """What NumPy has under other bits comes back by value, as complex numbers stored i before r."""
    stored = h5py.h5t.create(h5py.h5t.COMPOUND, 16)
    stored.insert(b"r", 8, h5py.h5t.IEEE_F64LE)
    stored.insert(b"i", 0, h5py.h5t.IEEE_F64LE)
    with h5py.File(path, "w") as file:
        dataset = h5py.h5d.create(file.id, b"data", stored, h5py.h5s.create_simple((2,)))
        raw = np.array([(1.0, 2.0), (3.0, 4.0)])
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, stored)
        expected = file["data"][:]
    assert np.array_equal(read_hdf5(path), expected)


def test_dtypes_carry_no_notes_of_h5py(path: Path) -> None:
    """What is read can be saved by NumPy without its warning about metadata."""
    with h5py.File(path, "w") as file:
        file.create_dataset("0", data=np.zeros(2, "i4"), dtype=h5py.enum_dtype({"A": 0}, "i4"))
        file.create_dataset("1", (2,), dtype=h5py.string_dtype("utf-8", 3))
        file.create_dataset("2", (2,), dtype=np.dtype([("s", "S3"), ("n", [("t", "S2", (2,))])]))
    with ArrayFile(path) as file:
        for name in file.names():
            np.save(path.with_suffix(".npy"), file.read(name))


def test_an_array_type_becomes_axes(path: Path) -> None:
    """A dataset of small arrays is read with their axes behind its own, as h5py does."""
    kind = h5py.h5t.array_create(h5py.h5t.IEEE_F32LE, (3,))
    array = np.arange(12, dtype="f4").reshape(4, 3)
    with h5py.File(path, "w") as file:
        dataset = h5py.h5d.create(file.id, b"data", kind, h5py.h5s.create_simple((4,)))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array, kind)
    assert same(read_hdf5(path), array)


# What is refused --------------------------------------------------------------------------------


def declared(file: h5py.File, shape: tuple[int, ...], **options: Any) -> None:
    """Make dataset "data" with a shape and no data."""
    file.create_dataset("data", shape, "f8", **options)


def with_soft_link(file: h5py.File) -> None:
    file["good"] = [1]
    file["data"] = h5py.SoftLink("/good")


def with_external_link(file: h5py.File) -> None:
    file["data"] = h5py.ExternalLink("other.hdf5", "/data")


def with_external_storage(file: h5py.File) -> None:
    declared(file, (2,), external=[("secret.txt", 0, 16)])


def with_virtual_layout(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "data", (3,))
    file.create_virtual_dataset("data", layout)


def with_unknown_filter(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2,))
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((2,))
    dataset = h5py.h5d.create(file.id, b"data", h5py.h5t.IEEE_F64LE, space, plist)
    dataset.write_direct_chunk((0,), bytes(16))


def with_a_filter_twice(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2,))
    plist.set_deflate(9)
    plist.set_deflate(9)
    space = h5py.h5s.create_simple((2,))
    h5py.h5d.create(file.id, b"data", h5py.h5t.IEEE_F64LE, space, plist)


def with_16_gib_declared(file: h5py.File) -> None:
    declared(file, (2**31,))


def with_16_gib_in_chunks(file: h5py.File) -> None:
    declared(file, (2**31,), chunks=(2**10,), compression="gzip")
    file["data"][:10] = 1


def with_a_chunk_of_2_gib(file: h5py.File) -> None:
    declared(file, (1,), maxshape=(None,), chunks=(2**28,), compression="gzip")
    file["data"].id.write_direct_chunk((0,), b"deflated, they say")


def with_null_dataspace(file: h5py.File) -> None:
    file["data"] = h5py.Empty("f8")


def with_text(file: h5py.File) -> None:
    file["data"] = "text"


def with_references(file: h5py.File) -> None:
    file["good"] = [1]
    file["data"] = np.array([file["good"].ref], dtype=h5py.ref_dtype)


def with_pointers(file: h5py.File) -> None:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
    kind.set_tag(b"NUMPY:|O")
    h5py.h5d.create(file.id, b"data", kind, h5py.h5s.create_simple((2,)))


def with_huge_integers(file: h5py.File) -> None:
    kind = h5py.h5t.STD_I64LE.copy()
    kind.set_size(16)
    h5py.h5d.create(file.id, b"data", kind, h5py.h5s.create_simple((2,)))


def with_a_group(file: h5py.File) -> None:
    file.create_group("data")


def with_a_type(file: h5py.File) -> None:
    file["data"] = np.dtype("f8")


def with_nothing(file: h5py.File) -> None:
    file["other"] = [1]


REFUSED = {
    with_soft_link: "link to another place",
    with_external_link: "link to another place",
    with_external_storage: "other files",
    with_virtual_layout: "other files",
    with_unknown_filter: "filter",
    with_a_filter_twice: "twice",
    with_16_gib_declared: "declares 17179869184 bytes of data but stores 0",
    with_16_gib_in_chunks: "declares 17179869184 bytes",
    with_a_chunk_of_2_gib: "declares 2147483648 bytes",
    with_null_dataspace: "no array",
    with_text: "text of any length",
    with_references: "references",
    with_pointers: "Python objects",
    with_huge_integers: "NumPy does not have",
    with_a_group: "cannot be opened",
    with_a_type: "cannot be opened",
    with_nothing: "does not exist",
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.items())
def test_a_file_that_asks_for_more_than_itself_is_refused(
    path: Path, make: Callable[[h5py.File], None], reason: str
) -> None:
    """What needs another file, foreign code, or memory beyond its stored bytes is a FormatError."""
    (path.parent / "secret.txt").write_bytes(b"not for everybody")
    write_hdf5(path.parent / "other.hdf5", np.ones(3))
    with h5py.File(path, "w") as file:
        make(file)
    told = rf"'data' of .*emg\.hdf5.*{reason}"
    with pytest.raises(FormatError, match=told):
        read_hdf5(path)
    with ArrayFile(path) as opened:
        opened.expect_many()
        with pytest.raises(FormatError, match=told):
            opened.read("data")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_known_is_read_as_it_was_written(path: Path, dtype: Any) -> None:
    """Plain numbers are read without being asked for; anything else is left to `read`."""
    written = filled((3, 4), dtype)
    with ArrayFileWriter(path) as file:
        file.write("0", written.shape, written.dtype, [(None, written)])
    with ArrayFile(path) as opened:
        assert opened.read_known("0", written.shape, written.dtype) is None, "links unknown"
        opened.expect_many()
        found = opened.read_known("0", written.shape, written.dtype)
        if np.dtype(dtype).kind in "biufc":
            assert found is not None
            assert same(found, written)
        else:
            assert found is None
        assert opened.read_known("1", written.shape, written.dtype) is None


def test_what_is_not_as_it_was_is_left_to_read(path: Path) -> None:
    """Another shape or size, pieces, filters, other files, links: nothing of it is read."""
    data = np.arange(12.0).reshape(3, 4)
    other = path.parent / "other.hdf5"
    write_hdf5(other, data)
    with h5py.File(path, "w") as file:
        file["whole"] = data
        file["reshaped"] = data.reshape(4, 3)
        file["narrow"] = data.astype("f4")
        file["text"] = np.full((3, 4), b"12345678")
        file["empty"] = h5py.Empty("f8")
        file.create_dataset("never written", (3, 4), "f8")
        file.create_dataset("packed", data=data, compression="gzip")
        file.create_dataset("outside", (3, 4), "f8", external=[(str(other), 0, 96)])
        file["group/0"] = data
        file["soft"] = h5py.SoftLink("/whole")
        file["external"] = h5py.ExternalLink("other.hdf5", "/data")
        names = [*file, "group/0"]
    with ArrayFile(path) as opened:
        opened.expect_many()
        found = {name: opened.read_known(name, (3, 4), np.dtype("f8")) for name in names}
    assert {name for name, array in found.items() if array is not None} == {"whole"}
    assert same(found["whole"], data)  # type: ignore[arg-type] # not None


@pytest.mark.parametrize("name", ["door/data", "a/door/data", "good/data/x", "", ".", "..", "a\0b"])
def test_every_link_on_the_way_must_be_hard(path: Path, name: str) -> None:
    """No name leads out of the file, or to something that is no dataset."""
    write_hdf5(path.parent / "other.hdf5", np.ones(3))
    with h5py.File(path, "w") as file:
        file["good/data"] = [1]
        file["door"] = h5py.ExternalLink("other.hdf5", "/")
        file["a/door"] = h5py.SoftLink("/good")
    with pytest.raises(StorageError, match="dataset"):
        read_hdf5(path, name)


def test_names_lists_only_what_is_really_there(path: Path) -> None:
    """Links, groups and types are not datasets of the file."""
    with h5py.File(path, "w") as file:
        file["0"] = [1]
        file["group/1"] = [1]
        file["soft"] = h5py.SoftLink("/0")
        file["gone"] = h5py.SoftLink("/nowhere")
        file["external"] = h5py.ExternalLink("other.hdf5", "/data")
        file["type"] = np.dtype("f8")
    with ArrayFile(path) as file:
        assert file.names() == ["0"]


def test_a_size_beyond_the_file_is_refused(path: Path) -> None:
    """A contiguous dataset cannot be larger than the file it lies in."""
    write_hdf5(path, np.zeros(123457, "u1"))
    raw = path.read_bytes()
    size = struct.pack("<Q", 123457)
    assert size in raw
    path.write_bytes(raw.replace(size, struct.pack("<Q", 2**34)))
    with pytest.raises(StorageError, match=r"'data' of .*emg\.hdf5"):
        read_hdf5(path)


def test_a_chunk_larger_than_the_file_is_refused(path: Path) -> None:
    """Stored sizes are claims too: those of chunks cannot add up to more than the file."""
    with h5py.File(path, "w") as file:
        declared(file, (2**24,), chunks=(2**24,), compression="gzip")
        file["data"].id.write_direct_chunk((0,), bytes(12345))
    raw = path.read_bytes()
    key = struct.pack("<II", 12345, 0)  # size and filter mask in the index of chunks
    assert raw.count(key) == 1
    path.write_bytes(raw.replace(key, struct.pack("<II", 2**31 - 1, 0)))
    with pytest.raises(FormatError, match="claims 2147483647 bytes"):
        read_hdf5(path)


# Files that cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.hdf5", "nul\0.hdf5", "."])
def test_a_path_that_is_no_file(tmp_path: Path, name: str) -> None:
    """A missing file, an impossible name and a folder are our error, which names the path."""
    (tmp_path / "emg").mkdir()
    with pytest.raises(StorageError, match="emg") as caught:
        read_hdf5(tmp_path / "emg" / name)
    assert not isinstance(caught.value, DamagedData)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_not_waited_for(path: Path) -> None:
    """Reading something that is not a regular file ends at once."""
    os.mkfifo(path)
    with pytest.raises(StorageError, match="not a regular file"):
        read_hdf5(path)


def test_a_cut_file_is_damaged_data(path: Path) -> None:
    """Cut anywhere, a file raises DamagedData with its path; it never gives other values."""
    write_hdf5(path, np.arange(100))
    raw = path.read_bytes()
    for length in range(0, len(raw), 31):
        path.write_bytes(raw[:length])
        with pytest.raises(DamagedData, match=r"emg\.hdf5") as caught:
            read_hdf5(path)
        assert caught.value.path == path


def test_a_bad_checksum_is_damaged_data(path: Path) -> None:
    """HDF5's own checksum, where a file has one, is heard."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.arange(100), chunks=(100,), fletcher32=True)
        offset = file["data"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedData, match=r"'data' of .*emg\.hdf5"):
        read_hdf5(path)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_only_our_errors_come_out_of_a_spoilt_file(spoilt: list[tuple[int, int]]) -> None:
    """Whatever bytes a file has, reading it gives an array or an error of ours."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "a.hdf5")
        write_hdf5(file, np.arange(6.0))
        write_hdf5(file, np.zeros(2, PADDED), "timing/0")
        raw = bytearray(file.read_bytes())
        for position, value in spoilt:
            raw[position % len(raw)] = value
        file.write_bytes(raw)
        with contextlib.suppress(StorageError), ArrayFile(file) as reader:
            for name in (*reader.names(), "data", "timing/0"):
                assert reader.read(name).nbytes < 2 * MAX_UNACCOUNTED


def test_reading_never_disturbs_a_writer(path: Path) -> None:
    """A file that a writer holds open, and locked, can be read, and the writer goes on."""
    with ArrayFileWriter(path) as writer:
        writer.write("0", (2,), np.dtype("i8"), [(None, np.array([1, 2]))])
        writer.flush()
        script = "import sys, trialstore._reading.hdf5 as h; print(h.read_hdf5(sys.argv[1], '0'))"
        read = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            capture_output=True,
            check=True,
            text=True,
        )
        assert read.stdout == "[1 2]\n"
        writer.write("1", (1,), np.dtype("i8"), [(None, np.array([3]))])
    assert read_hdf5(path, "1").tolist() == [3]


def test_h5py_is_loaded_when_first_needed() -> None:
    """Importing the modules that know HDF5 does not cost its start-up time."""
    script = (
        "import sys, trialstore._reading.hdf5, trialstore._publishing.hdf5\n"
        "assert 'h5py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
