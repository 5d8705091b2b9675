"""Which folders are tasks, and what in a task's folder is not its own."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from trialstore._errors import StorageError
from trialstore._ondisk import layout
from trialstore._upkeep.report import Remark

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

TRASH_SUFFIX: Final = ".trash"

#: Begins the name that recover gives to a manifest which cannot be believed.
DAMAGED_MANIFEST: Final = f"{layout.MANIFEST}.damaged-"
#: What desktops put into folders by themselves, besides names that begin with a dot.
_LITTER: Final = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_MARKS: Final = (layout.MANIFEST, layout.TRIALS, layout.TIMING)
_DATA: Final = (layout.ARRAY_SUFFIX, layout.PICKLE_SUFFIX)


class Discovery(NamedTuple):
    """What lies below a folder.

    Attributes
    ----------
    tasks : list of pathlib.Path
        Folders of tasks, sorted.
    remarks : list of Remark
        Folders that are none; their path is relative to the folder that was searched.
    """

    tasks: list[Path]
    remarks: list[Remark]


def find_tasks(path: Path) -> Discovery:
    """Find every task at or below `path`, at any depth; links are not followed.

    The trash beside a root is searched only if `path` leads into it.

    Raises
    ------
    StorageError
        If `path` is not a folder, or something below it may not be listed.
    """
    if not path.is_dir():
        raise StorageError(f"{str(path)!r} is not a folder")
    found = Discovery([], [])
    try:
        _search(path, path, found)
    except OSError as error:
        raise StorageError(f"{str(error.filename or path)!r} cannot be listed: {error}") from error
    return found


def _search(folder: Path, top: Path, found: Discovery) -> None:
    before = len(found.tasks)
    is_one = is_task(folder)
    inner = layout.list_folders(folder)
    for name in inner:
        if is_one and name in (layout.JOURNAL, layout.INTERRUPTED):
            continue
        if name.endswith(TRASH_SUFFIX) and name.removesuffix(TRASH_SUFFIX) in inner:
            continue
        _search(folder / name, top, found)
    # Arrays alone make a task only where no other explanation is left: people put files anywhere.
    if not is_one and len(found.tasks) == before:
        is_one = any(name.endswith(_DATA) for name in _names_of_files(folder))
    if is_one:
        found.tasks.insert(before, folder)
    elif len(found.tasks) == before and not inner and folder != top:
        found.remarks.append(Remark(str(folder.relative_to(top)), "holds no task"))


def is_task(folder: Path) -> bool:
    """Whether a folder has what only tasks have: a table, a manifest or a journal."""
    return any(_is_file(folder / name) for name in _MARKS) or is_journal(folder / layout.JOURNAL)


def is_journal(folder: Path) -> bool:
    """Whether a folder is a journal, or what is left of one; a task may have that name, too."""
    if not layout.is_folder(folder):
        return False
    names = [entry.name for entry in os.scandir(folder)]
    own = {layout.LOCK, layout.BASE}
    return bool(own.intersection(names)) or any(layout.is_of_journal(name) for name in names)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _names_of_files(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                yield entry.name


def strangers(folder: Path, known: Container[str]) -> Iterator[Remark]:
    """Name what a person or a program has put into a task's folder, and what of ours was left over.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder.
    known : container of str
        Names that belong to the task.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = entry.name
        if name in known or name.lower() in _LITTER:
            continue
        if layout.is_building(name):
            yield Remark(name, "was being built when a publisher was stopped; recover removes it")
        elif name.startswith("."):
            continue
        elif name.startswith(DAMAGED_MANIFEST):
            yield Remark(name, "is the damaged manifest, kept aside by recover, as it was")
        elif entry.is_symlink():
            yield Remark(name, "is a link, which trialstore does not follow")
        else:
            yield Remark(name, "was not recorded by trialstore; it is left alone")


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed, what has gone away counts 0."""
    total = 0
    stack = [folder]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(folder.__class__(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total
