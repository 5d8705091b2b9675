"""The disk between two operations: what is safe of it, and what is in doubt.

Pure functions over the log. The rules, each of them what POSIX leaves open and some file system
does (Pillai et al., "All file systems are not created equal", OSDI 2014):

* Bytes of a file are safe once a later sync of that file has succeeded; until then each of them may
  be there, be missing, be zero or be garbage, in units of sectors or pages, in any order.
* Bytes that a *failed* sync covered stay in doubt for ever, whatever a later sync says.
* A name (created, renamed, removed) is safe once its folder was synced; a rename is one step, safe
  with its target's folder. Until then each step may have happened or not, in any order.
* A sync of a file says nothing of its name, and a sync of a folder nothing of its files' bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trialstore.testing._doubt import File, Loose
from trialstore.testing._operations import FolderSynced, Renamed, Synced, SyncFailed, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from trialstore.testing._doubt import Fate
    from trialstore.testing._operations import Edit, Logged


@dataclass(frozen=True, slots=True)
class Cut:
    """The disk at one moment: what is safe, and what is in doubt."""

    position: int
    label: str
    folders: Mapping[int, Mapping[str, int]]
    files: Mapping[int, File]
    pending: tuple[Renamed, ...] = ()

    def after(self, logged: Logged) -> Cut:
        """Return the moment after one more operation."""
        files, folders, pending = dict(self.files), self.folders, self.pending
        match logged.operation:
            case Write() as write:
                file = files.get(write.file, File())
                files[write.file] = replace(file, loose=(*file.loose, Loose(write)))
            case Synced(number, content):
                files[number] = files.get(number, File()).synced(content)
            case SyncFailed(number):
                files[number] = files.get(number, File()).sync_failed()
            case Renamed() as step:
                pending = (*pending, step)
                if step.made is not None:
                    folders = {**folders, step.made: dict[str, int]()}
                for edit in step.edits:
                    if edit.node is not None and edit.node not in folders:
                        files.setdefault(edit.node, File())
            case FolderSynced(number):
                folders, pending = _settled(folders, pending, number)
        return Cut(self.position + 1, logged.label, folders, files, pending)

    def losses_of_names(self) -> list[frozenset[int]]:
        """Which of the pending steps may not have happened: none, all, one, all but one."""
        every = range(len(self.pending))
        found = [frozenset[int](), frozenset(every)]
        found += [frozenset([one]) for one in every]
        found += [frozenset(every) - {one} for one in every]
        return list(dict.fromkeys(found))

    def doubtful(self) -> list[tuple[int, list[Fate]]]:
        """Files that some name leads to and that may have come to more than one thing."""
        named = {node for names in self.folders.values() for node in names.values()}
        named |= {edit.node for step in self.pending for edit in step.edits if edit.node}
        fates = ((number, file.fates()) for number, file in self.files.items() if number in named)
        return [(number, choices) for number, choices in fates if len(choices) > 1]

    def names(self, lost: frozenset[int]) -> dict[int, dict[str, int]]:
        """Return every folder's names when the `lost` steps have not happened."""
        folders = {number: dict(names) for number, names in self.folders.items()}
        for number, step in enumerate(self.pending):
            if number not in lost:
                apply(folders, step.edits)
        return folders


def apply(folders: dict[int, dict[str, int]], edits: Iterable[Edit]) -> None:
    for folder, name, node in edits:
        if node is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = node


def _settled(
    folders: Mapping[int, Mapping[str, int]], pending: Sequence[Renamed], number: int
) -> tuple[dict[int, dict[str, int]], tuple[Renamed, ...]]:
    """Make a folder's steps safe; an older step that is still pending may not undo a safe one."""
    safe = {folder: dict(names) for folder, names in folders.items()}
    rest: list[Renamed] = []
    for step in pending:
        if step.folder != number:
            rest.append(step)
            continue
        apply(safe, step.edits)
        settled = {(edit.folder, edit.name) for edit in step.edits}
        rest = [
            old._replace(edits=tuple(e for e in old.edits if (e.folder, e.name) not in settled))
            for old in rest
        ]
    return safe, tuple(step for step in rest if step.edits)


def cuts(start: Cut, log: Iterable[Logged]) -> Iterator[Cut]:
    """Yield the moment before the first operation and the one after each."""
    yield start
    for logged in log:
        start = start.after(logged)
        yield start
