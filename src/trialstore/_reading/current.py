"""Which source holds the truth about a task now: any moment may publish or resume it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final, TypeVar

from trialstore._errors import DamagedData, StorageError
from trialstore._ondisk import layout, manifest
from trialstore._reading.foreign import ForeignSource
from trialstore._reading.live import JournalSource
from trialstore._reading.published import PublishedSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trialstore._reading.source import Source

_Answer = TypeVar("_Answer")

#: A task may be published, or resumed, between two looks at it; not over and over.
_LOOKS: Final = 10
_ORPHAN: Final = (
    "{!r} is gone: the task is read as another program's, with types that pandas guesses and "
    "without checksums; bring it back if you can"
)


class CurrentSource:
    """Keeps the source of one task, and changes it when the task does.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: tuple[int, int, int] | None = None
        self._source: Source | None = None

    def get(self) -> Source:
        """Return the source, and have it look what has come since.

        Raises
        ------
        FormatError
            If manifest or journal are not ours, or of a newer version.
        DamagedData
            If manifest or journal are damaged, or the journal is gone.
        StorageError
            If the task changes faster than one can look at it.
        """
        for _ in range(_LOOKS):
            stamp = self._look()
            if stamp != self._stamp or self._source is None:
                self._forget()
                self._stamp = stamp
            try:
                source = self._up_to_date()
            except FileNotFoundError:
                # The journal has just been published and taken away: the manifest says so now.
                self._forget()
                continue
            # Published and being resumed since the first look, a task has a journal that is empty.
            if self._look() == stamp:
                return source
        if not layout.is_folder(self._folder / layout.JOURNAL):
            raise DamagedData(
                f"the journal of {str(self._folder)!r} is gone, and its manifest does not say that "
                "it was published: bring the folder 'journal' back, or move 'manifest.json' away "
                "to read what lies there as it is",
                self._folder / layout.JOURNAL,
            )
        raise StorageError(f"task {str(self._folder)!r} keeps changing: try again")

    def ask(self, question: Callable[[Source], _Answer]) -> _Answer:
        """Return the answer of a source that was still the current one when it had answered.

        A table that is replaced while it is read does not fit the manifest of before.

        Raises
        ------
        DamagedData
            As `get`, and whatever the source raises.
        StorageError
            As `get`.
        """
        for _ in range(_LOOKS):
            source = self.get()
            try:
                return question(source)
            except DamagedData:
                if self._look() == self._stamp:
                    raise
        raise StorageError(f"task {str(self._folder)!r} keeps changing: try again")

    def _up_to_date(self) -> Source:
        if self._source is None:
            self._source = self._choose()
        elif isinstance(self._source, JournalSource):
            self._source.poll()
        return self._source

    def _choose(self) -> Source:
        described = manifest.read(self._folder)
        if described is not None and described.status != "recording":
            return PublishedSource(self._folder, described)
        if described is None and not layout.is_folder(self._folder / layout.JOURNAL):
            if (self._folder / layout.TIMING).exists():  # nobody else writes one
                warnings.warn(_ORPHAN.format(str(self._folder / layout.MANIFEST)), stacklevel=2)
            return ForeignSource(self._folder)
        if not layout.is_folder(self._folder / layout.JOURNAL):
            raise FileNotFoundError(layout.JOURNAL)  # not over a link either
        return JournalSource(self._folder)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = (self._folder / layout.MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _forget(self) -> None:
        if isinstance(self._source, JournalSource):
            self._source.close()
        self._source = None
