"""Names and paths: which names are safe everywhere, and where each of them lies.

One rule for every name, whether a caller gave it, a folder listed it or an archive holds it: it is
one path component on Linux, macOS and Windows alike. The files of a task:

```
task/
  trials.csv  timing.csv  NAME.hdf5  NAME.pkl  manifest.json  interrupted/
  journal/    000001.segment  000001.witness  lock  publish.lock  reserve  base/
```

Every file of a given name has an extension of its own, so no name can take the place of one of
ours. Entries that begin with a dot are being built and are never listed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from typing import TYPE_CHECKING, Final

from trialstore._errors import InvalidName

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TRIALS: Final = "trials.csv"
TIMING: Final = "timing.csv"
MANIFEST: Final = "manifest.json"
JOURNAL: Final = "journal"
#: Inside the journal: what was published before a recorded task was resumed.
BASE: Final = "base"
INTERRUPTED: Final = "interrupted"
LOCK: Final = "lock"
PUBLISH_LOCK: Final = "publish.lock"
WITNESS: Final = "witness"
#: Inside the journal: room for a clean end on a full disk.
RESERVE: Final = "reserve"
#: Inside the journal: what the publisher answers to the recorder's last request.
ANSWER: Final = "answer.json"

ARRAY_SUFFIX: Final = ".hdf5"
PICKLE_SUFFIX: Final = ".pkl"
SEGMENT_SUFFIX: Final = ".segment"
_BUILDING_SUFFIX: Final = ".building"

#: With the longest thing we put around it (a hidden name being built) still below the 255 bytes of
#: ext4, APFS and NTFS.
MAX_NAME_BYTES: Final = 128

#: Of ext4, APFS (in UTF-8) and NTFS (in UTF-16, which is never longer).
MAX_COMPONENT_BYTES: Final = 255

#: No spelling of a legal name has more characters, and normalising takes quadratic time on hostile
#: input.
_MAX_CHARACTERS: Final = 3 * MAX_COMPONENT_BYTES

_FORBIDDEN: Final = frozenset('/\\:*?"<>|')

#: Joiners are control characters to Unicode and letters to those who write Persian or Hindi.
_JOINERS: Final = frozenset("\u200c\u200d")

#: Letters by category that show nothing (Unicode's Default_Ignorable_Code_Point).
_BLANKS: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")

#: https://learn.microsoft.com/windows/win32/fileio/naming-a-file; reserved with any extension too.
_DEVICES: Final = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)


def check_name(name: object, what: str) -> str:
    """Return `name` in NFC if it is safe as one path component everywhere.

    Parameters
    ----------
    name : object
        The name, from wherever it came.
    what : str
        What it names, for the message: ``"subject"``, ``"task"``, ``"array"`` or ``"pickle"``.

    Raises
    ------
    InvalidName
        If it is not; the message says which rule it breaks.
    """
    if not isinstance(name, str):
        raise InvalidName(f"{what} name must be a str, not {type(name).__qualname__}")
    normal = unicodedata.normalize("NFC", name[:_MAX_CHARACTERS])
    if (reason := _refusal(normal)) is not None:
        raise InvalidName(f"{what} name {name!r:.160} {reason}; choose another")
    return normal


def is_valid_name(name: object) -> bool:
    """Tell whether `check_name` accepts `name`."""
    try:
        check_name(name, "task")
    except InvalidName:
        return False
    return True


def refusal_of_component(name: str) -> str | None:
    """Say why a name on disk is not one path component everywhere, or None if it is.

    The rule of `check_name`, but for the length: files of ours have something around their name.
    """
    normal = unicodedata.normalize("NFC", name[:_MAX_CHARACTERS])
    return _refusal(normal, MAX_COMPONENT_BYTES)


def _refusal(name: str, max_bytes: int = MAX_NAME_BYTES) -> str | None:
    """Say which rule an NFC name breaks, or None."""
    if not name:
        return "is empty"
    for character in name:
        if (reason := _refusal_of_character(character)) is not None:
            return reason
    for end, side in ((name[0], "begins"), (name[-1], "ends")):
        if end == "." or end.isspace() or end in _JOINERS:
            return f"{side} with a dot, a space or a joiner"
    # Windows takes what is left of the first dot, without spaces, for the device.
    if name.partition(".")[0].rstrip().upper() in _DEVICES:
        return "is a device on Windows"
    if len(name.encode()) > max_bytes:
        return f"is longer than {max_bytes} bytes of UTF-8"
    return None


def _refusal_of_character(character: str) -> str | None:
    if character in _FORBIDDEN:
        return f"holds {character!r}, which no file name may on Windows"
    if character in _JOINERS:
        return None
    category = unicodedata.category(character)
    # C: control, format (bidirectional too), surrogate, private (Samba's stand-ins for ':' and its
    # like) and unassigned (APFS refuses them); Zl and Zp: line and paragraph separators.
    if category[0] == "C" or category in ("Zl", "Zp") or character in _BLANKS:
        return f"holds the control or invisible character {character!a}"
    return None


def check_not_casefold_equal(name: str, existing: Iterable[str], what: str) -> None:
    """Refuse a name that some file systems would take for another one that exists.

    An equal name is no business of this function.

    Raises
    ------
    InvalidName
        If a different name in `existing` differs from `name` in case or normal form only.
    """
    name = unicodedata.normalize("NFC", name)
    wanted = folded(name)
    for other in existing:
        if folded(other) == wanted and unicodedata.normalize("NFC", other) != name:
            raise InvalidName(
                f"{what} name {name!r} differs from {other!r} in case only, and macOS and Windows"
                " would mix them up; choose another"
            )


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that some file systems would take for one, or None."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(folded(name), name)
        if other != name:
            return other, name
    return None


def folded(name: str) -> str:
    """Return what names share that some file systems would take for one.

    The canonical caseless form (Unicode 3.13, D145), without joiners, which HFS+ ignores.
    """
    plain = "".join(character for character in name if character not in _JOINERS)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", plain).casefold())


def array_path(task: Path, name: str) -> Path:
    """Path of the published array `name`."""
    return task / (name + ARRAY_SUFFIX)


def pickle_path(task: Path, name: str) -> Path:
    """Path of the pickle `name`."""
    return task / (name + PICKLE_SUFFIX)


def array_names_in(task: Path) -> list[str]:
    """Names of the published arrays of a task, sorted; links and illegal names are left out.

    Raises
    ------
    OSError
        If the folder cannot be listed.
    """
    return _names_in(task, ARRAY_SUFFIX)


def pickle_names_in(task: Path) -> list[str]:
    """Names of the pickles of a task, as `array_names_in`.

    Raises
    ------
    OSError
        If the folder cannot be listed.
    """
    return _names_in(task, PICKLE_SUFFIX)


def _names_in(task: Path, suffix: str) -> list[str]:
    with os.scandir(task) as entries:
        names = [
            entry.name.removesuffix(suffix)
            for entry in entries
            if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False)
        ]
    return sorted(name for name in names if is_valid_name(name))


def published_files(task: Path) -> list[Path]:
    """Paths of a task's published tables, manifest and arrays, as far as they are there."""
    tables = [task / name for name in (TRIALS, TIMING, MANIFEST)]
    return [path for path in tables if path.exists()] + [
        array_path(task, name) for name in array_names_in(task)
    ]


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder at a path; a link to one is none."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def check_no_links(root: Path, path: Path) -> None:
    """Refuse a path below `root` that leads over a link: what we write might go anywhere.

    The root itself is where the user wants it to be, and may be a link.

    Raises
    ------
    OSError
        ``ELOOP``, naming the link.
    """
    for part in (*reversed(path.relative_to(root).parents), path.relative_to(root)):
        if part.parts and (root / part).is_symlink():
            raise OSError(errno.ELOOP, "is a link, which is not followed", str(root / part))


def list_folders(path: Path) -> list[str]:
    """Names of the folders in `path` as on disk, sorted; links and hidden ones are left out.

    Raises
    ------
    OSError
        If the folder cannot be listed.
    """
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        )


def spelled(parent: Path, name: str) -> Path:
    """Path of a folder whose name is in NFC here, and may be in another normal form on disk.

    macOS used to write names in NFD, and copies of such folders keep that.

    Raises
    ------
    OSError
        If `parent` cannot be listed.
    """
    path = parent / name
    if name.isascii() or path.is_dir() or not parent.is_dir():
        return path
    for found in list_folders(parent):
        if unicodedata.normalize("NFC", found) == name:
            return parent / found
    return path


def trash_path(root: Path, subject: str, task: str, stamp: str) -> Path:
    """Where an overwritten task goes: beside the root, because AxoPy lists every folder inside."""
    return root.parent / f"{root.name}.trash" / subject / f"{task}.{stamp}"


def run_name(task: str, n: int) -> str:
    """Name of the `n`-th run of a task: ``reach_run-02``.

    Raises
    ------
    InvalidName
        If that is too long to be a name.
    """
    return check_name(f"{task}_run-{n:02d}", "task")


def segment_name(number: int) -> str:
    """File name of the journal segment `number`: ``000001.segment``."""
    return f"{number:06d}{SEGMENT_SUFFIX}"


def segment_number(name: str) -> int | None:
    """Number of a journal segment, or None if `name` is not what `segment_name` gives."""
    match = re.fullmatch(r"([0-9]{6,18})\.segment", name)
    if match is None or segment_name(int(match[1])) != name:
        return None
    return int(match[1])


def witness_path(segment: Path) -> Path:
    """Path of the witness of a segment: ``000001.witness`` beside it."""
    return segment.with_suffix(f".{WITNESS}")


def is_of_journal(name: str) -> bool:
    """Tell whether a file is called as a segment or its witness."""
    return segment_number(name.replace(f".{WITNESS}", SEGMENT_SUFFIX)) is not None


def building_name(name: str, token: str) -> str:
    """Hidden name of a file being built beside its place: ``.emg.hdf5.TOKEN.building``."""
    return f".{name}.{token}{_BUILDING_SUFFIX}"


def is_building(name: str) -> bool:
    """Tell whether `name` is one that `building_name` gives."""
    return name.startswith(".") and name.endswith(_BUILDING_SUFFIX)
