"""Taking things away: out of sight in one step, then piece by piece; follows no links."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

from trialstore._ondisk import disk, journal, layout
from trialstore._ondisk.disk import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def leftovers(task: Path) -> list[Path]:
    """Hidden files in a task's folder that somebody of ours was building when he was stopped.

    Raises
    ------
    OSError
        If a folder cannot be listed.
    """
    return list(building_in(task)) + list(building_in(task / layout.INTERRUPTED))


def building_in(folder: Path) -> Iterator[Path]:
    """Hidden files of ours in one folder.

    Raises
    ------
    OSError
        If it cannot be listed.
    """
    if layout.is_folder(folder):
        yield from sorted(path for path in folder.iterdir() if layout.is_building(path.name))


def hide(path: Path) -> Path:
    """Move an entry out of sight in one step, durably; return where it is now.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    # A token and no more of the name than fits: the whole may be as long as a name can be.
    hidden = path.with_name(layout.building_name("pruned", uuid.uuid4().hex[:12]))
    disk.current().replace(path, hidden)
    return hidden


def delete(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it.

    Raises
    ------
    OSError
        If the disk refuses; what is gone already is fine.
    """
    with contextlib.suppress(FileNotFoundError):
        if not layout.is_folder(path):
            disk.current().remove(path)
            return
        for entry in list(path.iterdir()):
            delete(entry)
        disk.current().remove_folder(path)


def segments_of(folder: Path) -> dict[Path, str]:
    """Session of each segment of a folder, hexadecimal; ``""`` where the header is damaged.

    Raises
    ------
    OSError
        If the folder cannot be listed, or a header not be read.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if layout.segment_number(path.name) is not None:
            session = journal.parse_header(read_file(path, journal.HEADER_SIZE))
            found[path] = "" if session is None else session.hex()
    return found


def is_fallback(folder: Path) -> bool:
    """Whether a folder is called as those of a ``fallback_root``: ``journal-`` and a session."""
    return folder.name.startswith(f"{layout.JOURNAL}-") and layout.is_folder(folder)


def is_part_of(folder: Path, home: Path) -> bool:
    """Whether a folder on another disk holds nothing but further segments of a journal.

    A journal may come from a stranger and name any folder: what is deleted there must be its own.

    Raises
    ------
    OSError
        If a folder cannot be listed, or a header not be read.
    """
    if not is_fallback(folder):
        return False
    if not all(layout.is_of_journal(entry.name) for entry in folder.iterdir()):
        return False
    return set(segments_of(folder).values()) <= set(segments_of(home).values()) - {""}
