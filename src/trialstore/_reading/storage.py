"""What subjects and tasks there are. Reads only, at any time, without an event loop."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from trialstore._errors import InvalidName, StorageError, TaskNotFound
from trialstore._ondisk import layout
from trialstore._ondisk.archive import storage_to_zip
from trialstore._reading.catalogue import concatenated
from trialstore._reading.current import CurrentSource
from trialstore._reading.task import TaskReader

if TYPE_CHECKING:
    import pandas as pd

    StrPath = str | os.PathLike[str]


class StorageReader:
    """Finds what was recorded under a root.

    Guarantee: nothing is ever written, and no recorder is ever disturbed.

    Parameters
    ----------
    root : path, optional
        Folder of the data. It need not exist yet; then there is nothing in it.

    Raises
    ------
    StorageError
        When something is read and the root is not a folder.

    Examples
    --------
    >>> storage = StorageReader("data")
    >>> for storage.subject_id in storage.subject_ids:
    ...     for task in storage.task_ids:
    ...         print(storage.require_task(task).trials)
    """

    def __init__(self, root: StrPath = "data") -> None:
        self.root: Path = Path(os.fspath(root))
        self._subject_id: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    @property
    def subject_ids(self) -> list[str]:
        """Names of the subjects, in alphabetical order.

        Raises
        ------
        StorageError
            If the root is not a folder, or may not be listed.
        """
        return _folders(self.root)

    @property
    def subject_id(self) -> str | None:
        """The current subject.

        Raises
        ------
        InvalidName
            On setting, if the name cannot be a folder's name everywhere.
        """
        return self._subject_id

    @subject_id.setter
    def subject_id(self, value: str) -> None:
        self._subject_id = layout.check_name(value, "subject")

    @property
    def task_ids(self) -> list[str]:
        """Names of the current subject's tasks, in alphabetical order; none before its first.

        Raises
        ------
        StorageError
            If the subject's folder may not be listed.
        """
        if self._subject_id is None:
            return []
        folder = _spelled(self.root, self._subject_id)
        return [] if folder.is_symlink() else _folders(folder)

    def require_task(self, task_id: str) -> TaskReader:
        """Return a reader of one task of the current subject.

        Raises
        ------
        InvalidName
            If the name cannot be a task's.
        TaskNotFound
            If no subject is set, or it has not started the task.
        """
        name = layout.check_name(task_id, "task")
        if self._subject_id is None:
            raise TaskNotFound("no subject is set: give storage.subject_id a name first")
        folder = _spelled(_spelled(self.root, self._subject_id), name)
        try:
            layout.check_no_links(self.root, folder)
        except OSError as error:
            raise TaskNotFound(f"{name!r} cannot be read: {error}") from error
        if not folder.is_dir():
            raise TaskNotFound(
                f"subject {self._subject_id!r} has not started {name!r} yet: "
                "use create_task to create it"
            )
        return TaskReader(folder)

    def catalogue(self) -> pd.DataFrame:
        """Return one row per trial over all subjects and tasks.

        A task that cannot be read is left out with a warning that names the file.

        Returns
        -------
        pandas.DataFrame
            Indexed by ``(subject, task, number)``; columns are the attributes of all tasks, missing
            where a task has no such attribute, with the dtypes as recorded.
        """
        tables = {}
        for subject in self.subject_ids:
            for task in _folders(self.root / subject):
                current = CurrentSource(self.root / subject / task)
                try:
                    tables[subject, task] = current.ask(
                        lambda source: (source.columns(), source.trial_numbers())
                    )
                except StorageError as error:
                    warnings.warn(f"left out of the catalogue: {error}", stacklevel=2)
        return concatenated(tables)

    def to_zip(self, outfile: StrPath | None = None) -> str:
        """Archive the whole root; see `storage_to_zip`.

        Raises
        ------
        StorageError
            If the root is no folder or the archive cannot be written.
        """
        return storage_to_zip(self.root, outfile)


def _folders(path: Path) -> list[str]:
    """Names of the folders in `path`, sorted; none if it does not exist (yet).

    Every name can be given back to us; a folder of another name is left out with a warning.

    Raises
    ------
    StorageError
        If it is not a folder, or may not be listed.
    """
    try:
        found = layout.list_folders(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be listed: {error}") from error
    names = []
    for name in found:
        try:
            layout.check_name(name, "folder")
        except InvalidName as error:
            warnings.warn(f"left out of {str(path)!r}: {error}", stacklevel=3)
        else:
            names.append(name)
    return names


def _spelled(parent: Path, name: str) -> Path:
    try:
        return layout.spelled(parent, name)
    except OSError as error:
        raise StorageError(f"{str(parent)!r} cannot be listed: {error}") from error
