"""One ZIP file of everything below a root, also while it is being recorded."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from trialstore._errors import InvalidName, StorageError
from trialstore._ondisk import disk, layout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    StrPath = str | os.PathLike[str]

#: Large enough that the loop beside us hardly notices the turns in between.
_BLOCK_BYTES: Final = 1 << 20

#: Readers of 2001 know no larger files; those that may grow past it are marked in time.
_ZIP64_BYTES: Final = 1 << 30

#: What ZIP can tell, a day in from either end so that every time zone agrees.
_EARLIEST: Final = 315_619_200  # 1980-01-02
_LATEST: Final = 4_354_732_800  # 2107-12-30

#: Ours lie five deep. Windows would unpack hardly more, and Python calls itself for each.
_DEEPEST: Final = 100

_FOLDER: Final = 0x10  # as MS-DOS has it

#: ``Icon\r`` is how macOS keeps a folder's picture; Windows could not unpack it.
_NOT_DATA: Final = frozenset((layout.LOCK, layout.PUBLISH_LOCK, layout.ANSWER, "Icon\r"))


def storage_to_zip(path: StrPath, outfile: StrPath | None = None) -> str:
    """Archive everything below a root into one ZIP file.

    Each task in the archive is as readable as it was at some moment while the archive was made,
    also if it is being recorded, published or resumed meanwhile. The archive appears whole or not
    at all.

    Parameters
    ----------
    path : path-like
        The root. Names in the archive are relative to its parent: they begin with the root's name.
    outfile : path-like, optional
        The archive; one that exists is replaced. By default the root's name and ``.zip``, beside
        the root.

    Returns
    -------
    str
        `outfile`, or the name that was chosen.

    Raises
    ------
    StorageError
        If the root is no folder, or something cannot be read or written, or a file below the root
        has a name that could not be unpacked everywhere and in its place (one with a backslash), or
        that differs from another one in case only; the message names it.

    Notes
    -----
    Files are stored as they are: at its fastest, deflate makes 0.96 of random floats and 0.79 of
    16-bit samples, at 40 MB/s, of processor time that the experiment may need. Hidden files, locks
    and links are left out.

    Examples
    --------
    >>> storage_to_zip("data")  # doctest: +SKIP
    'data.zip'
    """
    root = Path(path)
    if root.name in ("", ".."):
        root = root.resolve()
    if not root.name or not root.is_dir():
        raise StorageError(f"{os.fspath(path)!r} is no folder that can be archived")
    chosen = str(root.with_name(f"{root.name}.zip")) if outfile is None else os.fspath(outfile)
    try:
        _write(root, Path(chosen))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{os.fspath(path)!r} cannot be archived as {chosen!r}: {error}"
        ) from error
    return chosen


def _write(root: Path, outfile: Path) -> None:
    """Write the archive beside its place, and put it there when it is whole and durable."""
    port = disk.current()
    building = outfile.with_name(layout.building_name(outfile.name, secrets.token_hex(4)))
    former = port.identity_at(outfile)
    fd = port.create(building)
    try:
        with os.fdopen(fd, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                _Archiver(archive, former).add_folder(root, root.name)
            file.flush()
            port.sync(file.fileno())
        port.replace(building, outfile)
    except BaseException:
        with contextlib.suppress(OSError):
            port.remove(building)
        raise


class _Archiver(NamedTuple):
    """Where files go, and the one that is never among them: the archive that is replaced."""

    archive: zipfile.ZipFile
    former: disk.Identity | None

    def add_folder(self, folder: Path, name: str) -> None:
        """Add a folder with everything below it; one that has gone away meanwhile is left out.

        The order is the reverse of the publisher's, which renames the arrays, then the manifest,
        and then takes the journal away. So a journal that is cut off by it comes with a manifest
        that needs no journal, and that manifest with all its arrays.

        Raises
        ------
        InvalidName
            For what could not be unpacked everywhere.
        """
        if name.count("/") > _DEEPEST:
            raise InvalidName(f"{name!r:.200}... lies deeper than {_DEEPEST} folders")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            before = len(self.archive.filelist)
            folders = layout.list_folders(folder)
            _check_names(folder, folders)
            for inner in folders:
                self.add_folder(folder / inner, f"{name}/{inner}")
            self._add_file(folder / layout.MANIFEST, f"{name}/{layout.MANIFEST}")
            files = _files_in(folder)
            _check_names(folder, [*folders, *files])
            for file in files:
                self._add_file(folder / file, f"{name}/{file}")
            late = [inner for inner in layout.list_folders(folder) if inner not in folders]
            _check_names(folder, [*folders, *files, *late])
            for inner in late:  # tasks that were begun or resumed meanwhile
                self.add_folder(folder / inner, f"{name}/{inner}")
            if len(self.archive.filelist) == before:
                self.archive.writestr(_described(f"{name}/", folder.stat()), b"")

    def _add_file(self, path: Path, name: str) -> None:
        """Add a file as long as it is now; one that has gone away meanwhile is left out."""
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return
            fd = disk.open_reading(path)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) == self.former:
                return
            large = status.st_size > _ZIP64_BYTES
            with self.archive.open(_described(name, status), "w", force_zip64=large) as entry:
                _copy(file, entry, status.st_size)


def _check_names(folder: Path, names: Sequence[str]) -> None:
    """Refuse what would become another file, or none, where the archive is unpacked."""
    for name in names:
        if (reason := layout.refusal_of_component(name)) is not None:
            raise InvalidName(f"{name!r:.300} in {str(folder)!r} {reason}; rename it")
    if (twins := layout.twins(names)) is not None:
        raise InvalidName(
            f"{twins[0]!r} and {twins[1]!r} in {str(folder)!r} differ in case only, and macOS and "
            "Windows would unpack one over the other; rename one"
        )


def _files_in(folder: Path) -> list[str]:
    """Names of the regular files that are data, but for the manifest, in the order to be read."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.is_file(follow_symlinks=False)
            and not entry.name.startswith(".")
            and entry.name not in _NOT_DATA
            and entry.name != layout.MANIFEST
        ]
    # A witness tells how much of its segment there must be, so it has to be the older of the two.
    return sorted(names, key=lambda name: (Path(name).suffix != f".{layout.WITNESS}", name))


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while size > 0 and (block := source.read(min(size, _BLOCK_BYTES))):
        target.write(block)
        size -= len(block)


def _described(name: str, status: os.stat_result) -> zipfile.ZipInfo:
    seconds = min(max(status.st_mtime, _EARLIEST), _LATEST)
    info = zipfile.ZipInfo(name, time.localtime(seconds)[:6])
    info.external_attr = (status.st_mode & 0xFFFF) << 16 | (_FOLDER if info.is_dir() else 0)
    return info
