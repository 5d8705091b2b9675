"""Every exception trialstore raises on purpose, drawn once.

```
StorageError          root of the family; also raised itself for misuse (a closed task, a bad root)
├── InvalidName       the caller: a name that cannot be a file name everywhere (also ValueError)
├── InvalidTrial      the caller: a trial or chunk that is not data (also TypeError, ValueError)
├── TaskExists        the caller: the task was recorded before (also ValueError)
├── TaskNotFound      the caller: nothing was recorded under that name (also ValueError)
├── TaskLocked        somebody else: another recorder has the task open
├── QueueFull         the rate: the bounded queue had no room, nothing was taken
├── WriteFailed       the disk: accepted trials could not be made durable
├── PublishFailed     the publisher: the journal is whole, plain files are not there yet
├── DamagedData       the disk, later: bytes that do not fit their checksum
├── UntrustedPickle   somebody else: a pickle that would run code
└── FormatError       somebody else: a file not ours, or newer than we are (also ValueError)
```

Each leaf that callers used to catch as a builtin (AxoPy raised ``ValueError``) still is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class StorageError(Exception):
    """Root of every exception that trialstore raises on purpose.

    Guarantee: no message steers a terminal, whatever a stranger's file had in it; control
    characters come out as escapes, all but the end of a line.
    """

    def __str__(self) -> str:
        """Return the message, fit for a terminal."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class InvalidName(StorageError, ValueError):
    """A subject, task, array or pickle name that is refused; the message says by which rule."""


class InvalidTrial(StorageError, TypeError, ValueError):
    """A trial or chunk that cannot be recorded; the trial is left as it was."""


class TaskExists(StorageError, ValueError):
    """The subject has already started a task of this name."""


class TaskNotFound(StorageError, ValueError):
    """The subject has no task of this name."""


class TaskLocked(StorageError):
    """Another recorder, or its publisher, has this task; the message says who and since when."""


class QueueFull(StorageError):
    """The bounded queue has no room; nothing of the refused trial or chunk was taken."""


class WriteFailed(StorageError):
    """Accepted trials did not become durable; the operating system's error is ``__cause__``.

    Attributes
    ----------
    trials : tuple of int
        Numbers of the trials concerned.
    """

    def __init__(self, message: str, trials: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.trials: tuple[int, ...] = tuple(trials)


class PublishFailed(StorageError):
    """The published files could not be made; the journal is untouched and the task is readable."""


class DamagedData(StorageError):
    """Bytes on disk do not fit the checksum they were recorded with.

    Attributes
    ----------
    path : pathlib.Path or None
        The damaged file.
    trials : tuple of int
        Numbers of the trials concerned.
    """

    def __init__(self, message: str, path: Path | None = None, trials: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.path = path
        self.trials: tuple[int, ...] = tuple(trials)


class UntrustedPickle(StorageError):
    """A pickle names a class outside the allowed list; ``trusted=True`` loads it all the same."""


class FormatError(StorageError, ValueError):
    """A file is not of trialstore's format, is cut short, or comes from a newer version."""


def printable(text: str) -> str:
    r"""Return a stranger's text as a message may hold it: a terminal obeys nothing in it.

    Control characters, line ends and what turns the direction of writing become escapes, as `repr`
    writes them.

    Examples
    --------
    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    """
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)
