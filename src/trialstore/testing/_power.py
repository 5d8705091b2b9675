"""A disk that remembers everything, so that its power can be cut at every moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trialstore import StorageError
from trialstore.testing._crash import States
from trialstore.testing._failing import FailingDisk
from trialstore.testing._ledger import Ledger, identity_at
from trialstore.testing._moments import cuts
from trialstore.testing._operations import Edit, FolderSynced, Synced, SyncFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trialstore._ondisk.disk import Buffer
    from trialstore.testing._crash import State
    from trialstore.testing._watched import Kind, Where

T = TypeVar("T")


class PowerCutDisk(FailingDisk):
    """The real disk, and a log of which every crash state can be made.

    Guarantee: whatever a file system that keeps the rules below may hold after a power cut between
    two operations, `states` enumerates (or samples by seed).

    Rules: a file's bytes are safe after a sync of the file, its name after a sync of its folder;
    before that each may be there or not, in part and in any order. After a *failed* sync the bytes
    that it should have made safe stay in doubt for ever.

    It is a `FailingDisk` as well, so that failures and power cuts can be combined.

    Parameters
    ----------
    folder : path-like
        An existing folder; everything that is recorded must lie below it, the trash beside the
        root and a fallback root too. What is in it now is taken for safe.

    Raises
    ------
    StorageError
        If there is no such folder; or later, if something is to be written outside of it.

    Notes
    -----
    A child process would not be seen, so tasks are published in this process, at their end, and
    `TaskWriter.publish` is refused (see `Disk.reaches_children`).

    HDF5 writes without asking anybody. A file that was written past the disk is read when it is
    synced: what is in it then is safe, and what comes later is in doubt, to be read when the file
    is renamed or linked. Between the two the file is not seen, and neither are locks.

    All bytes are kept in memory: record megabytes, not hours.

    Examples
    --------
    >>> import tempfile, anyio
    >>> from pathlib import Path
    >>> from trialstore import Storage, StorageReader
    >>> async def experiment(root):
    ...     async with Storage(root) as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             for target in range(3):
    ...                 receipt = await task.write({"target": target})
    ...                 await receipt.durable()
    ...                 acknowledged.append(disk.position)
    >>> acknowledged = []
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with use(PowerCutDisk(folder)) as disk:
    ...         anyio.run(experiment, Path(folder) / "data")
    ...     for state in disk.states(limit=50):
    ...         with tempfile.TemporaryDirectory() as after:
    ...             _ = disk.materialise(state, after)
    ...             safe = sum(position <= state.position for position in acknowledged)
    ...             if safe:
    ...                 reader = StorageReader(Path(after) / "data")
    ...                 reader.subject_id = "p0"
    ...                 trials = reader.require_task("reach").trials
    ...                 assert trials["target"].tolist()[:safe] == list(range(safe)), str(state)
    """

    reaches_children = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder: Path = Path(os.fspath(folder)).absolute()
        if not self.folder.is_dir():
            raise StorageError(f"{str(folder)!r} is no folder: make it before it is watched")
        self._logging = threading.RLock()
        self._ledger = Ledger(self.folder)

    # --- the log ----------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """How many operations have been done.

        Read after ``await receipt.durable()``, it tells which states must hold the trial: those
        whose `State.position` is not below it.
        """
        return len(self._ledger.log)

    @property
    def log(self) -> tuple[str, ...]:
        """What was done, one text for each operation."""
        return tuple(logged.label for logged in self._ledger.log)

    def cuts(self) -> range:
        """Return every position at which the power can be cut: 0 to `position`."""
        return range(len(self._ledger.log) + 1)

    def states(
        self,
        *,
        limit: int | None = 2000,
        seed: int = 0,
        first: int = 0,
        last: int | None = None,
    ) -> States:
        """Enumerate what a power cut may leave.

        Parameters
        ----------
        limit : int or None, optional
            If there are more, a sample of about that size is taken; None: all.
        seed : int, optional
            The same log, limit and seed give the same sample.
        first, last : int, optional
            Only cuts at these positions, both included.

        Returns
        -------
        States
            To be iterated over; its `total` says how many there are.
        """
        with self._logging:
            log = list(self._ledger.log)
        last = len(log) if last is None else last
        moments = [cut for cut in cuts(self._ledger.start, log) if first <= cut.position <= last]
        return States(moments, limit, seed)

    def materialise(self, state: State, folder: str | os.PathLike[str]) -> Path:
        """Write a state into a new (or empty) folder and return that folder.

        What was at ``disk.folder / "data"`` is at ``folder / "data"``: read it with
        `StorageReader`, go on with `Storage.resume_task`.

        Raises
        ------
        StorageError
            If there is something in the folder.
        OSError
            If it cannot be written.
        """
        path = Path(os.fspath(folder))
        state.write_to(path)
        return path

    # --- what is done to the disk -----------------------------------------------------------------

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """As `Disk.write`; logs the bytes that were written, of a failed write as well."""
        with self._logging:
            offset = os.lseek(fd, 0, os.SEEK_CUR)
            try:
                super().write(fd, pieces)
            finally:
                count = os.lseek(fd, 0, os.SEEK_CUR) - offset
                written = b"".join(pieces)[:count]
                self._ledger.note_write(self._ledger.file(fd), offset, written, self._name(fd))

    def write_at(self, fd: int, data: Buffer, offset: int) -> None:
        """As `Disk.write_at`; logs the bytes, of a failed write as well: they are in doubt."""
        with self._logging:
            try:
                super().write_at(fd, data, offset)
            finally:
                self._ledger.note_write(self._ledger.file(fd), offset, bytes(data), self._name(fd))

    def sync(self, fd: int) -> None:
        """As `Disk.sync`; logs whether it succeeded."""
        with self._logging:
            number = self._ledger.file(fd)
            try:
                super().sync(fd)
            except OSError:
                self._ledger.note(SyncFailed(number), "failed sync", self._name(fd))
                raise

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        def logged() -> T:
            # Under one lock, so that the log has the order in which things took effect.
            with self._logging:
                return self._logged(kind, perform, where)

        return super()._around(kind, logged, *where, partly=partly)

    def _logged(self, kind: Kind, perform: Callable[[], T], where: Sequence[Where]) -> T:
        """Do one call and log what it has changed; a call that fails has changed nothing."""
        match kind, where:
            case (("rename" | "link"), (Path() as source, Path() as target)):
                node = self._ledger.node_at(source)
                old, new = self._ledger.place(source), self._ledger.place(target)
                result = perform()
                gone = () if kind == "link" else (Edit(*old, None),)
                self._ledger.note_names((*gone, Edit(*new, node)), kind)
            case "add_folder", (Path() as path,):
                place = self._ledger.place(path)
                result = perform()
                if result:
                    self._ledger.note_folder(place, kind)
            case "create", (Path() as path,):
                place = self._ledger.place(path)
                result = perform()
                node = self._ledger.note_file(identity_at(path))
                self._ledger.note_names((Edit(*place, node),), kind)
            case (("remove" | "remove_folder"), (Path() as path,)):
                place, identity = self._ledger.place(path), identity_at(path)
                result = perform()
                self._ledger.note_removed(place, identity, kind)
            case "sync_folder", (Path() as path,):
                number = self._ledger.folder_number(path)
                result = perform()
                self._ledger.note(FolderSynced(number), kind, path.name)
            case "sync", (int() as fd,):
                number = self._ledger.file(fd)
                result = perform()
                content = self._ledger.content_past_us(fd, number)
                self._ledger.note(Synced(number, content), kind, self._name(fd))
            case _:
                result = perform()
        return result
