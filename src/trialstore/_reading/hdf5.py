"""Reading HDF5 files, whoever wrote them: fast where they are ours, safe where they are not.

A file can name other files (external storage, virtual datasets, external links), ask for code to be
loaded (unknown filters) and declare any size it likes. So a dataset is looked at before it is read,
and nothing is allocated that the bytes in the file do not account for.
"""

from __future__ import annotations

import math
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import DamagedData, FormatError, StorageError, printable
from trialstore._ondisk.chunks import nbytes
from trialstore._reading.selection import hyperslab, without_metadata

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

#: Filters every HDF5 library has: deflate, shuffle, fletcher32, szip, nbit, scaleoffset and h5py's
#: LZF. Any other number makes HDF5 search its plugin folders for code to load.
KNOWN_FILTERS: Final = frozenset({1, 2, 3, 4, 5, 6, 32000})

#: Deflate cannot shrink anything by more than 1032:1 (zlib's technical notes), LZF by about 88:1.
MAX_RATIO: Final = 1100

#: A dataset may be this much larger than its stored bytes account for: parts never written are real
#: in small files, and this much memory is not an attack.
MAX_UNACCOUNTED: Final = 2**20

#: Kinds of NumPy dtypes that HDF5 has as they are: truth values, integers, floats, complex numbers.
_NUMBERS: Final = "biufc"
_HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)


class ArrayFile:
    """An HDF5 file opened for reading, without locks, so that no writer is ever disturbed.

    Nothing outside the file is opened, and no array is allocated that is more than `MAX_RATIO`
    times as large as its bytes in the file (and a megabyte), whatever the file says.

    Parameters
    ----------
    filepath : path-like
        The file.
    follow_links : bool, optional
        Take a symbolic link for the file it leads to, because the caller has named it.

    Raises
    ------
    StorageError
        There is no such file, or it may not be opened; ``__cause__`` is the OSError.
    DamagedData
        It is not HDF5, or cut short, or damaged where HDF5 looks first.

    Examples
    --------
    >>> with ArrayFile("data/p0/reach/emg.hdf5") as file:  # doctest: +SKIP
    ...     file.names(), file.read("0", selection=(slice(None), slice(0, 500)))
    """

    def __init__(self, filepath: str | os.PathLike[str], *, follow_links: bool = False) -> None:
        self.path: Final = Path(filepath)
        try:
            status = self.path.stat() if follow_links else self.path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{str(self.path)!r} is not a regular file")
            with self.path.open("rb"):
                pass  # permission, which HDF5 would report as a damaged file
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot open {str(self.path)!r}: {error}") from error
        self._bytes_in_file = status.st_size
        with self._translated():
            self._file = _opened(self.path)
            self._root = self._file.id
            self._links = self._root.links
        #: (type in the file, its NumPy dtype, type in memory) of the dataset read last.
        self._last_type: tuple[Any, np.dtype[Any], Any] | None = None
        #: What `read_known` was asked for last, and its type in memory.
        self._known_type: tuple[np.dtype[Any], Any] | None = None
        self._known: frozenset[bytes] = frozenset()

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

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def names(self) -> list[str]:
        """Names of the datasets that really are in the root group (hard links), in HDF5's order.

        Raises
        ------
        DamagedData
            The list cannot be read.
        """
        import h5py

        with self._translated():
            return [
                name.decode("utf-8", "surrogateescape")
                for name in self._hard_links()
                if h5py.h5o.get_info(self._root, name).type == h5py.h5o.TYPE_DATASET
            ]

    def expect_many(self) -> None:
        """Look at all links at once, as many datasets will be read; one by one takes longer.

        Raises
        ------
        DamagedData
            The list cannot be read; datasets can be, all the same.
        """
        with self._translated():
            self._known = frozenset(self._hard_links())

    def _hard_links(self) -> list[bytes]:
        import h5py

        found: list[bytes] = []

        def keep(name: bytes, info: Any) -> None:
            if info.type == h5py.h5l.TYPE_HARD:
                found.append(name)

        self._links.iterate(keep, info=True)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one dataset, as declared.

        Raises
        ------
        FormatError
            There is no such dataset, or it is not one to be read; the message says why.
        DamagedData
            HDF5 cannot make sense of it.
        """
        with self._translated(name):
            return self._shape(self._dataset(name)[0], name)

    def dtype(self, name: str) -> np.dtype[Any]:
        """NumPy dtype of one dataset, byte order and padding as stored.

        Raises
        ------
        FormatError
            As for `shape`, or NumPy has no such type.
        DamagedData
            HDF5 cannot make sense of it.
        """
        with self._translated(name):
            return self._types(self._dataset(name)[0], name)[0]

    def offset(self, name: str) -> int | None:
        """Byte in the file at which a dataset's data begin, or None if they lie in pieces.

        Raises
        ------
        FormatError, DamagedData
            As for `shape`.
        """
        with self._translated(name):
            offset: int | None = self._dataset(name)[0].get_offset()
            return offset

    def read(self, name: str, *, selection: tuple[slice, ...] | None = None) -> NDArray[Any]:
        """Read one dataset, or a part of it, into a new array.

        Parameters
        ----------
        name : str
            Name below the root group; ``"timing/0"`` reaches into a group.
        selection : tuple of slice, optional
            One slice for each of the first axes, with positive steps, as NumPy reads them; only
            this part is read and allocated.

        Returns
        -------
        numpy.ndarray
            In C order; 0-dimensional for a scalar dataset.

        Raises
        ------
        FormatError
            There is no such dataset; it would need another file, a filter that is not HDF5's own,
            or more memory than its stored bytes account for; or NumPy has no such type.
        DamagedData
            HDF5 cannot read it.
        StorageError
            The selection does not fit the dataset.
        """
        import h5py

        with self._translated(name):
            dataset, storage = self._dataset(name)
            shape = self._shape(dataset, name)
            dtype, memory_type = self._types(dataset, name)
            self._check_size(dataset, storage, name, nbytes(shape, dtype))
            if not selection:
                array = np.empty(shape, dtype)
                memory, chosen = h5py.h5s.ALL, h5py.h5s.ALL
            else:
                start, count, step = hyperslab(selection, shape, name)
                array = np.empty(count, dtype)
                memory, chosen = h5py.h5s.create_simple(count), dataset.get_space()
                if array.size:
                    chosen.select_hyperslab(start, count, step)
            if array.size:
                dataset.read(memory, chosen, array, memory_type)
            return array

    def read_known(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> NDArray[Any] | None:
        """Read a dataset of which it is known what was written; for many small ones.

        For callers who compare the samples with a checksum: a dataset that was put in its place,
        and has this shape and as many bytes, may be converted to this dtype.

        Parameters
        ----------
        name : str
            In the root group.
        shape : tuple of int
            Of the whole dataset.
        dtype : numpy.dtype
            Of its items.

        Returns
        -------
        numpy.ndarray or None
            None if only `read` can tell: links were not looked at (`expect_many`), items are no
            plain numbers, or the dataset is not as it was, or not to be read at all.
        """
        import h5py

        path = name.encode()
        if path not in self._known or dtype.kind not in _NUMBERS:
            return None
        if self._known_type is None or self._known_type[0] != dtype:
            self._known_type = (dtype, h5py.h5t.py_create(dtype))
        try:
            dataset = h5py.h5d.open(self._root, path)
            # Such a dataset has no filter, and no other file: HDF5 knows no offset of those. To ask
            # for its type as well takes a tenth of the time of a small one.
            size = nbytes(shape, dtype)
            fits = dataset.shape == shape and dataset.get_storage_size() == size
            # HDF5 2.0 opens nothing larger than its file (tried); older ones may.
            if not fits or dataset.get_offset() is None or size > self._bytes_in_file:
                return None
            array = np.empty(shape, dtype)
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array, self._known_type[1])
        except _HDF5_ERRORS:
            return None
        return array

    def _dataset(self, name: str) -> tuple[Any, Any | None]:
        """Open a dataset that lies in this file alone.

        Returns
        -------
        dataset : h5py.h5d.DatasetID
        storage : h5py.h5p.PropDCID or None
            How it is stored, unless its bytes lie side by side in this file.
        """
        import h5py

        path = name.strip("/").encode("utf-8", "surrogateescape")
        parts = path.split(b"/")
        for depth in range(1, len(parts) + 1):
            self._check_link(b"/".join(parts[:depth]), name)
        try:
            dataset = h5py.h5d.open(self._root, path)
        except KeyError as error:
            raise self._refused(name, f"cannot be opened: {_text(error)}") from error
        # A dataset of one place in this file has no filter, and no other file: HDF5 knows no offset
        # of those. Asking how it is stored takes a fifth of the time of a small one.
        if dataset.get_offset() is not None:
            return dataset, None
        storage = dataset.get_create_plist()
        layout = storage.get_layout()
        if layout == h5py.h5d.VIRTUAL or storage.get_external_count():
            raise self._refused(name, "is kept in other files, which are not opened")
        if layout == h5py.h5d.CHUNKED:
            numbers = [storage.get_filter(index)[0] for index in range(storage.get_nfilters())]
            if not KNOWN_FILTERS.issuperset(numbers):
                raise self._refused(name, f"needs filters that are not HDF5's own: {numbers}")
            if len(set(numbers)) < len(numbers):
                raise self._refused(name, f"applies a filter twice: {numbers}")
        return dataset, storage

    def _check_link(self, path: bytes, name: str) -> None:
        if path in self._known:
            return
        import h5py

        try:
            link = self._links.get_info(path)
        except (KeyError, RuntimeError, ValueError) as error:
            raise self._refused(name, "does not exist") from error
        if link.type != h5py.h5l.TYPE_HARD:
            raise self._refused(name, "is a link to another place, which is not followed")

    def _shape(self, dataset: Any, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] | None = dataset.shape
        if shape is None:
            raise self._refused(name, "holds no array (its dataspace is null)")
        return shape

    def _types(self, dataset: Any, name: str) -> tuple[np.dtype[Any], Any]:
        """Types for NumPy and for HDF5's copy; trials share one, so the last answer is kept."""
        import h5py

        stored = dataset.get_type()
        if self._last_type is None or not stored.equal(self._last_type[0]):
            try:
                described = stored.dtype
            except (TypeError, ValueError, KeyError, RuntimeError) as error:
                reason = f"is of a type that NumPy does not have: {_text(error)}"
                raise self._refused(name, reason) from error
            # Also guards memory: an opaque type may be tagged as a NumPy object, that is a pointer.
            if described.hasobject:
                raise self._refused(name, "holds text of any length, references or Python objects")
            memory_type = h5py.h5t.py_create(described)
            self._last_type = (stored, without_metadata(described), memory_type)
        return self._last_type[1:]

    def _check_size(self, dataset: Any, storage: Any | None, name: str, declared: int) -> None:
        """Refuse a dataset that is larger than its bytes in the file can make it."""
        import h5py

        stored = dataset.get_storage_size()
        ratio = 1
        if storage is not None and storage.get_layout() == h5py.h5d.CHUNKED:
            ratio = MAX_RATIO if storage.get_nfilters() else 1
            # HDF5 holds a whole chunk in memory, and a chunk may be larger than its dataset.
            chunk = math.prod(storage.get_chunk()) * dataset.get_type().get_size()
            declared = max(declared, chunk if stored else 0)
        if stored > self._bytes_in_file:
            reason = f"claims {stored} bytes of a file of {self._bytes_in_file}"
            raise self._refused(name, reason)
        if declared > stored * ratio + MAX_UNACCOUNTED:
            reason = f"declares {declared} bytes of data but stores {stored}"
            raise self._refused(name, reason)

    def _refused(self, name: str, reason: str) -> FormatError:
        return FormatError(f"dataset {name!r} of {str(self.path)!r} {reason}")

    @contextmanager
    def _translated(self, name: str | None = None) -> Iterator[None]:
        """Let only our own errors out."""
        try:
            yield
        except StorageError:
            raise
        except _HDF5_ERRORS as error:
            what = "" if name is None else f"dataset {name!r} of "
            message = f"cannot read {what}{str(self.path)!r}: {_text(error)}"
            raise DamagedData(message, self.path) from error


def read_hdf5(filepath: str | os.PathLike[str], dataset: str = "data") -> NDArray[Any]:
    """Read one dataset of an HDF5 file, whoever wrote it.

    As AxoPy's function of this name, and safe: no other file is opened, and no more memory is taken
    than the bytes in the file account for.

    Parameters
    ----------
    filepath : path-like
        The file.
    dataset : str, optional
        Name below the root group; ``"timing/0"`` reaches into a group.

    Returns
    -------
    numpy.ndarray
        Shape and dtype as in the file; 0-dimensional for a scalar dataset.

    Raises
    ------
    StorageError
        There is no such file, or it may not be opened; ``__cause__`` is the OSError.
    FormatError
        There is no such dataset, or it is not one to be read (see `ArrayFile.read`).
    DamagedData
        The file is not HDF5, or cut short, or damaged.

    Examples
    --------
    >>> read_hdf5("data/p0/reach/emg.hdf5", dataset="0")  # doctest: +SKIP
    """
    with ArrayFile(filepath, follow_links=True) as file:
        return file.read(dataset)


def _opened(path: Path) -> Any:
    """Open without a lock where HDF5 can (1.12.1 or 1.10.7 on), so that no writer is refused."""
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except ValueError:
        return h5py.File(path, "r")


def _text(error: Exception) -> str:
    """What HDF5 says, which quotes names from the file as they are."""
    return printable(str(error.args[0])) if error.args else repr(error)
