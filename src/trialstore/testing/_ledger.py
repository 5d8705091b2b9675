"""The log of a `PowerCutDisk`, and which file every path and descriptor means at this moment.

Files are known by device and inode, so that they are the same ones under any name. Folders are
known by their path from the watched folder on.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from trialstore import StorageError
from trialstore._ondisk.disk import Identity
from trialstore.testing._doubt import File
from trialstore.testing._moments import Cut, apply
from trialstore.testing._operations import ROOT, Edit, Logged, Operation, Renamed, Write


class Ledger:
    """Writes down what is done below a folder; called under the disk's lock.

    Parameters
    ----------
    folder : pathlib.Path
        The watched folder. What is in it now is taken for safe.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[Logged] = []
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._nodes: dict[Identity, int] = {}
        self._contents: dict[int, bytearray] = {}
        self._written_past: set[int] = set()
        self._numbers = itertools.count(ROOT + 1)
        self._load(self.folder, ROOT)
        self.start = Cut(
            0,
            "the beginning",
            {number: dict(names) for number, names in self._folders.items()},
            {number: File(bytes(content)) for number, content in self._contents.items()},
        )

    def note(self, operation: Operation, what: str, name: str) -> None:
        """Write one operation down."""
        self.log.append(Logged(operation, f"{what} {name!r}"))

    def note_write(self, number: int, offset: int, data: bytes, name: str) -> None:
        """Bytes were written."""
        if data:
            content = self._contents[number]
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
            self.note(Write(number, offset, data), "write", name)

    def note_names(self, edits: tuple[Edit, ...], what: str) -> None:
        """Names have changed, in one step that is safe with the last one's folder."""
        forgotten = {self._folders[folder].get(name) for folder, name, _ in edits}
        apply(self._folders, edits)
        self.note(Renamed(edits[-1].folder, edits), what, edits[-1].name)
        # The system gives the number of a file that has no name any more to the next new one.
        forgotten -= {node for names in self._folders.values() for node in names.values()}
        self._nodes = {key: node for key, node in self._nodes.items() if node not in forgotten}

    def note_removed(self, place: tuple[int, str], identity: Identity | None, what: str) -> None:
        """A name is gone; one that was never heard of, of a file made past us, is forgotten."""
        folder, name = place
        if name in self._folders[folder]:
            self.note_names((Edit(folder, name, None),), what)
        elif identity is not None:
            self._nodes.pop(identity, None)

    def note_folder(self, place: tuple[int, str], what: str) -> int:
        """A folder was made; return its number."""
        number = next(self._numbers)
        self._folders[number] = {}
        edit = Edit(*place, number)
        apply(self._folders, (edit,))
        self.note(Renamed(place[0], (edit,), number), what, place[1])
        return number

    def note_file(self, identity: Identity | None) -> int:
        """A file became known, empty; return its number."""
        number = next(self._numbers)
        if identity is not None:
            self._nodes[identity] = number
        self._contents[number] = bytearray()
        return number

    def _load(self, folder: Path, number: int) -> None:
        """Take what is there now for safe; links and devices are not looked at."""
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                continue
            if path.is_dir():
                node = next(self._numbers)
                self._folders[node] = {}
                self._load(path, node)
            else:
                identity = identity_at(path)
                known = None if identity is None else self._nodes.get(identity)
                node = self.note_file(identity) if known is None else known
                self._contents[node][:] = path.read_bytes()
            self._folders[number][path.name] = node

    # --- which file is meant ----------------------------------------------------------------------

    def place(self, path: Path) -> tuple[int, str]:
        """Number of the folder and the name of a path below the watched folder."""
        return self.folder_number(path.parent), path.name

    def folder_number(self, path: Path) -> int:
        """Number of a folder; one that was made past us becomes known, its name in doubt."""
        try:
            parts = Path(os.path.normpath(path.absolute())).relative_to(self.folder).parts
        except ValueError:
            raise StorageError(
                f"{str(path)!r} is outside of {str(self.folder)!r}, whose power is to be cut: "
                "watch a folder that holds the root, its trash and the fallback root"
            ) from None
        number = ROOT
        for part in parts:
            known = self._folders[number].get(part)
            if known not in self._folders:
                known = self.note_folder((number, part), "unseen folder")
            number = known
        return number

    def file(self, fd: int) -> int:
        """Number of an open file; one that was made past us becomes known, without a name."""
        status = os.fstat(fd)
        identity = Identity(status.st_dev, status.st_ino)
        number = self._nodes.get(identity)
        if number is None:
            number = self.note_file(identity)
            self._written_past.add(number)
        return number

    def node_at(self, path: Path) -> int:
        """Number of what stands at a path; bytes that were written past us are now in doubt."""
        identity = identity_at(path)
        if path.is_dir() and not path.is_symlink():
            return self.folder_number(path)
        number = None if identity is None else self._nodes.get(identity)
        if number is None:
            number = self.note_file(identity)
        content = path.read_bytes()
        known = self._contents[number]
        if len(content) < len(known):  # cut short past us: nothing of it is known to be safe
            number = self.note_file(identity)
            known = self._contents[number]
        if content != bytes(known):
            pairs = enumerate(zip(content, known, strict=False))
            first = next((at for at, (new, old) in pairs if new != old), len(known))
            self.note_write(number, first, content[first:], path.name)
        return number

    def content_past_us(self, fd: int, number: int) -> bytes | None:
        """The whole file, if more (or less) is in it than went through this disk."""
        known = self._contents[number]
        if number not in self._written_past and os.fstat(fd).st_size == len(known):
            return None
        self._written_past.add(number)
        known[:] = self._read(fd, number)
        return bytes(known)

    def _read(self, fd: int, number: int) -> bytes:
        """Read a file that is open, perhaps for writing only."""
        path = self._path_of(number, ROOT, self.folder)
        if path is not None:
            return path.read_bytes()
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            with open(fd, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.lseek(fd, position, os.SEEK_SET)

    def _path_of(self, number: int, folder: int, here: Path) -> Path | None:
        """A path at which a file is known to stand, or None."""
        for name, node in self._folders[folder].items():
            if node == number:
                return here / name
            if node in self._folders:
                found = self._path_of(number, node, here / name)
                if found is not None:
                    return found
        return None


def identity_at(path: Path) -> Identity | None:
    """Which file stands at a path, or None."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino)
