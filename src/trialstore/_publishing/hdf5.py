"""Writing HDF5: the only place that does, and never in the process that records.

The files are as plain as HDF5 gets: default ``libver``, contiguous datasets, no filters, no times
of day inside. So every reader there is understands them, and the bytes of an array can be read back
from their `offset` without HDF5.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from trialstore._errors import InvalidName, InvalidTrial, PublishFailed, StorageError
from trialstore._ondisk.chunks import refusal_of_dtype
from trialstore._publishing.slabs import checked, gathered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    from trialstore._publishing.slabs import Piece

#: An HDF5 attribute of this age of the format has at most 64 KiB, a text in a list takes 16 bytes.
MAX_TEXTS: Final = 4000

_HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)


class ArrayFileWriter:
    """An HDF5 file opened for writing: datasets of the root group, or one group below it.

    What `write` has returned for can be read after `close` by any HDF5 reader, equal in shape,
    dtype and value. Nothing is synced to the disk here; that is the caller's part.

    Parameters
    ----------
    filepath : path-like
        The file.
    mode : {"x", "r+", "a"}, optional
        New file (the default; an existing one is refused), existing file, or whichever it is.

    Raises
    ------
    PublishFailed
        The file cannot be opened; ``__cause__`` is the OSError.

    Examples
    --------
    >>> with ArrayFileWriter("emg.hdf5") as file:  # doctest: +SKIP
    ...     file.write("0", (64, 2000), np.dtype("float32"), [(None, samples)])
    ...     file.set_attributes({"rate": 2000.0, "unit": "mV"})
    """

    def __init__(
        self, filepath: str | os.PathLike[str], *, mode: Literal["x", "r+", "a"] = "x"
    ) -> None:
        import h5py

        self.path: Final = os.fspath(filepath)
        with self._translated("open"):
            self._file = h5py.File(self.path, mode)
        self._root = self._file.id
        self._types: dict[np.dtype[Any], Any] = {}
        self._storage = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._storage.set_obj_track_times(False)  # equal data make equal files

    def __enter__(self) -> Self:
        """Return the open file."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def write(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        pieces: Iterable[Piece],
    ) -> int | None:
        """Create a dataset and fill it piece by piece, never holding more than a piece or a block.

        Pieces are used before the next is asked for, so they may share one buffer. After an error
        the dataset may be there in part: throw the file away.

        Parameters
        ----------
        name : str
            New name below the root group; groups that are missing on the way are made.
        shape : tuple of int
            Final shape.
        dtype : numpy.dtype
            Final dtype, kept with byte order and padding.
        pieces : iterable of (selection, numpy.ndarray)
            Where each piece goes, one slice of step 1 per axis (None: it is the whole), and the
            piece, of exactly that shape and of `dtype`. Together they fill the dataset.

        Returns
        -------
        int or None
            As of `offset`.

        Raises
        ------
        InvalidTrial
            HDF5 cannot hold arrays of `dtype`.
        InvalidName
            `name` is not a path of names.
        StorageError
            The file has something of this name.
        PublishFailed
            The pieces do not fit or do not fill the dataset, or HDF5 cannot write.
        """
        import h5py

        kind = self._type_of(dtype, name)
        what = f"dataset {name!r} of {self.path!r}"
        with self._translated("write", name):
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            dataset = self._create(name, kind, space)
            written = 0
            for start, slab in gathered(checked(pieces, shape, dtype, what), shape):
                memory = chosen = h5py.h5s.ALL
                if slab.shape != shape:
                    memory, chosen = h5py.h5s.create_simple(slab.shape), space
                    chosen.select_hyperslab(start, slab.shape)
                dataset.write(memory, chosen, np.ascontiguousarray(slab), kind)
                written += slab.size
            offset: int | None = dataset.get_offset()
        if written != math.prod(shape):
            raise PublishFailed(f"{what}: pieces of {written} items do not fill the shape {shape}")
        return offset

    def write_group(self, group: str, name: str, array: NDArray[Any]) -> None:
        """Write one array into a group, ``"timing/0"`` for group ``"timing"`` and name ``"0"``.

        Raises
        ------
        InvalidTrial, InvalidName, StorageError, PublishFailed
            As for `write`.
        """
        self.write(f"{group}/{name}", array.shape, array.dtype, [(None, array)])

    def set_attributes(self, attributes: Mapping[str, float | str | Sequence[str] | None]) -> None:
        """Set attributes of the root group, replacing those of the same name.

        Numbers become float64, texts UTF-8 of variable length, sequences arrays of such texts;
        None is left out. What HDF5 texts cannot hold (NUL, lone surrogates) is written as an
        escape; more than `MAX_TEXTS` texts, too many for an attribute, become one text of JSON.

        Raises
        ------
        PublishFailed
            HDF5 cannot write them.
        """
        import h5py

        with self._translated("write the attributes of"):
            for name, value in attributes.items():
                if isinstance(value, str):
                    self._file.attrs[name] = _text(value)
                elif isinstance(value, (float, int)):
                    self._file.attrs[name] = float(value)
                elif value is not None and len(value) > MAX_TEXTS:
                    self._file.attrs[name] = json.dumps(list(value))
                elif value is not None:
                    texts = np.array([_text(text) for text in value], dtype=object)
                    self._file.attrs.create(name, texts, dtype=h5py.string_dtype())

    def has(self, name: str) -> bool:
        """Whether something of this name is there.

        Raises
        ------
        PublishFailed
            HDF5 cannot read its own file.
        """
        with self._translated("look into"):
            return name in self._file

    def offset(self, name: str) -> int | None:
        """Byte in the file at which the data of a dataset begin, or None if it takes none.

        From there its bytes follow one another in C order; they are in the file after `flush`.

        Raises
        ------
        PublishFailed
            There is no such dataset.
        """
        return self.offsets([name])[0]

    def offsets(self, names: Iterable[str]) -> list[int | None]:
        """Return `offset` of each of many datasets.

        Raises
        ------
        PublishFailed
            There is no such dataset.
        """
        import h5py

        found: list[int | None] = []
        open_dataset, root = h5py.h5d.open, self._root
        for name in names:
            try:
                found.append(open_dataset(root, _encoded(name)).get_offset())
            except _HDF5_ERRORS as error:
                what = f"dataset {name!r} of {self.path!r}"
                raise PublishFailed(f"cannot find {what}: {error}") from error
        return found

    def flush(self) -> None:
        """Hand everything to the operating system (this does not sync the disk).

        Raises
        ------
        PublishFailed
            HDF5 cannot write.
        """
        with self._translated("write"):
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file; closing twice is harmless.

        Raises
        ------
        PublishFailed
            HDF5 cannot write what was still in memory.
        """
        with self._translated("close"):
            self._file.close()

    def _type_of(self, dtype: np.dtype[Any], name: str) -> Any:
        """HDF5's type for `dtype`, made once per file."""
        kind = self._types.get(dtype)
        if kind is None:
            what = f"array {name!r} of {self.path!r}"
            kind = self._types[dtype] = _hdf5_type(dtype, what)
        return kind

    def _create(self, name: str, kind: Any, space: Any) -> Any:
        import h5py

        links = _link_properties(name)
        try:
            return h5py.h5d.create(self._root, _encoded(name), kind, space, self._storage, links)
        except _HDF5_ERRORS as error:
            if name in self._file:
                raise StorageError(f"{self.path!r} has a {name!r} already") from error
            raise

    @contextmanager
    def _translated(self, verb: str, name: str | None = None) -> Iterator[None]:
        """Let only our own errors out."""
        try:
            yield
        except StorageError:
            raise
        except _HDF5_ERRORS as error:
            what = "" if name is None else f"dataset {name!r} of "
            raise PublishFailed(f"cannot {verb} {what}{self.path!r}: {error}") from error


def write_hdf5(filepath: str | os.PathLike[str], data: ArrayLike, dataset: str = "data") -> None:
    """Add one dataset to an HDF5 file, which is made if it is not there.

    As AxoPy's function of this name. Do not call it inside a recording: HDF5 waits for the disk,
    and a disk error may end the process.

    Parameters
    ----------
    filepath : path-like
        The file.
    data : array_like
        What `numpy.asarray` makes of it is kept, with shape and dtype.
    dataset : str, optional
        New name below the root group; groups that are missing on the way are made.

    Raises
    ------
    InvalidTrial
        HDF5 cannot hold `data` (Python objects, unicode, ragged lists); the file is left as it was.
    InvalidName
        `dataset` is not a path of names.
    StorageError
        The file has something of this name; it is left as it was.
    PublishFailed
        The file cannot be opened or written; ``__cause__`` is the OSError.

    Examples
    --------
    >>> write_hdf5("thresholds.hdf5", [0.25, 0.5])  # doctest: +SKIP
    """
    what = f"dataset {dataset!r} for {os.fspath(filepath)!r}"
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise InvalidTrial(f"{what} is not an array: {error}") from error
    _hdf5_type(array.dtype, what)
    _encoded(dataset)
    with ArrayFileWriter(filepath, mode="a") as file:
        file.write(dataset, array.shape, array.dtype, [(None, array)])


def _hdf5_type(dtype: np.dtype[Any], what: str) -> Any:
    """HDF5's type for `dtype`; booleans, complex numbers and dates as h5py keeps them.

    Raises
    ------
    InvalidTrial
        There is none that would give `dtype` back.
    """
    import h5py

    reason = refusal_of_dtype(dtype)
    if reason is not None:
        raise InvalidTrial(f"{what} {reason}")
    kept = h5py.opaque_dtype(dtype) if dtype.kind in "mM" else dtype
    try:
        kind = h5py.h5t.py_create(kept, logical=True)
        read_as = kind.dtype
    except _HDF5_ERRORS as error:
        raise InvalidTrial(f"{what}: HDF5 cannot hold the dtype {dtype}: {error}") from error
    if (
        read_as != dtype
    ):  # h5py 3.16 takes big-endian complex256 for little-endian, and drops titles
        raise InvalidTrial(f"{what}: HDF5 would turn the dtype {dtype} into {read_as}")
    return kind


def _link_properties(name: str) -> Any | None:
    """How to link a dataset: UTF-8 only where needed, it changes the format of the whole group."""
    import h5py

    if "/" not in name and name.isascii():
        return None
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    if not name.isascii():
        links.set_char_encoding(h5py.h5t.CSET_UTF8)
    return links


def _encoded(name: str) -> bytes:
    """Return `name` as HDF5 wants it; refuse what HDF5 would not take for a name."""
    parts = name.strip("/").split("/")
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise InvalidName(f"not a name for a dataset: {name!r}")
    try:
        return "/".join(parts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidName(f"not a name for a dataset: {name!r}") from error


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
