"""How a table that was saved by another program differs from the one that was published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trialstore._ondisk.checksum import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def how_it_differs(
    data: bytes, said: dict[str, int], columns: Sequence[Any] | None, rows: int
) -> str:
    """Say in words what was done to a table; an innocent change is proved to be one.

    Parameters
    ----------
    data : bytes
        The file as it is now.
    said : dict
        ``size`` and ``crc32`` of the file as it was published.
    columns : sequence or None
        Columns as the manifest has them: name and kinds of each. None if it does not tell.
    rows : int
        How many rows there must be.
    """
    if not data:
        return "it is empty"
    if undone := _undone(data, said):
        return f"{' and '.join(undone)}; apart from that it is as it was published"
    if not any(data):
        return "it holds nothing but zero bytes"
    found = [what for what, _, is_there in _HABITS if is_there(data)]
    names = data.removeprefix(_BYTE_ORDER_MARK).split(b"\n", 1)[0].rstrip(b"\r")
    expected = [str(column[0]) for column in columns or ()]
    if expected and len(expected) > 1 and names.count(b",") == 0:
        for separator, word in ((b";", "semicolons"), (b"\t", "tabs")):
            if names.count(separator) == len(expected) - 1:
                found.append(f"its fields are separated by {word}")
    elif expected and not any('"' in name or "," in name for name in expected):
        there = [name.strip('"') for name in names.decode("utf-8", "replace").split(",")]
        if there != expected:
            found.append(f"its columns are {there!r:.120}")
    lines = data.count(b"\n") + (not data.endswith(b"\n")) - 1
    if b'"' not in data and lines != rows:
        found.append(f"it has {lines} rows instead of {rows}")
    return " and ".join(found) or (
        "cells were edited or damaged"
        if len(data) != said["size"]
        else "bytes were changed, and none were added"
    )


def _undone(data: bytes, said: dict[str, int]) -> list[str]:
    """Undo what editors do by themselves, as long as that leads to the published bytes."""
    habits = [habit for habit in _HABITS if habit[2](data)]
    done: list[str] = []
    for what, undo, _ in habits:
        data = undo(data)
        done.append(what)
        if (len(data), crc32(data)) == (said["size"], said["crc32"]):
            return done
    return []


#: What editors do by themselves: in words, how to undo it, how to see it.
_HABITS: Final[tuple[tuple[str, Callable[[bytes], bytes], Callable[[bytes], bool]], ...]] = (
    (
        "a byte order mark was put in front",
        lambda data: data.removeprefix(_BYTE_ORDER_MARK),
        lambda data: data.startswith(_BYTE_ORDER_MARK),
    ),
    (
        "the line ends were changed to CR LF",
        lambda data: data.replace(b"\r\n", b"\n"),
        lambda data: b"\r\n" in data,
    ),
    (
        "the last line end was taken away",
        lambda data: data + b"\n",
        lambda data: not data.endswith(b"\n"),
    ),
)
