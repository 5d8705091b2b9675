"""Reading one task with ordinary synchronous calls, whatever state it is in."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import DamagedData, InvalidName, InvalidTrial, TaskNotFound
from trialstore._ondisk import layout, pickles
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import read_file
from trialstore._reading.catalogue import frame_from_times
from trialstore._reading.current import CurrentSource
from trialstore.design import Array, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._reading.source import ArraySummary, Source

#: How often `follow` looks; a person sees no difference to at once, and the recorder none to never.
_FOLLOW_EVERY: Final = 0.05


class TaskReader:
    """Reads one task: published, being recorded, interrupted, or AxoPy's.

    Guarantee: what is returned was recorded; data that does not fit its checksum raises
    `DamagedData`. Reading writes nothing and never disturbs a recorder.

    Parameters
    ----------
    root : path
        Folder of the task, for example ``data/p0/reach``.

    Raises
    ------
    TaskNotFound
        If there is no such folder.

    Examples
    --------
    >>> reader = StorageReader("data").require_task("reach")  # doctest: +SKIP
    >>> reader.trials.groupby("target").hit.mean()  # doctest: +SKIP
    >>> reader.array("emg", trial=3, window=(0, 500)).shape  # doctest: +SKIP
    (2, 500)
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root: Path = Path(os.fspath(root))
        if not self.root.is_dir():
            raise TaskNotFound(f"{str(self.root)!r} is not the folder of a task")
        self._current = CurrentSource(self.root)

    def __repr__(self) -> str:
        return f"TaskReader({str(self.root)!r})"

    @property
    def status(self) -> str:
        """``recording``, ``complete``, ``interrupted``; ``foreign`` without a manifest of ours.

        Raises
        ------
        FormatError, DamagedData
            If the manifest or the journal cannot be understood.
        """
        return self._current.get().status

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, indexed by trial number, dtypes as recorded.

        Strings stay strings (``"007"``), bools with gaps are ``boolean``, integers with gaps
        ``Int64``. A row that is damaged is left out and named by `losses`.

        Raises
        ------
        FormatError, DamagedData
            If the table cannot be understood, or was changed after publication.
        """
        return self._current.ask(lambda source: source.frame())

    @property
    def timing(self) -> pd.DataFrame:
        """When each trial was accepted and its first chunk came.

        Returns
        -------
        pandas.DataFrame
            Indexed by trial number; ``unix_ns``, ``monotonic_ns`` (int64) and ``first_unix_ns``
            (Int64), in nanoseconds. Empty for a foreign task.

        Raises
        ------
        FormatError, DamagedData
            If the table cannot be understood, or was changed after publication.
        """
        return frame_from_times(self._current.ask(lambda source: source.times()))

    @property
    def array_names(self) -> list[str]:
        """Names of the arrays that some trial has, in order of first appearance."""
        return self._current.get().array_names()

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given to ``create_task(metadata=...)``."""
        return self._current.get().metadata

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Everything that was refused, damaged or is missing; empty when nothing is.

        On an interrupted task that is not published yet this reads and checks every sample.
        """
        return tuple(self._current.get().losses())

    def info(self, name: str) -> ArraySummary:
        """Describe one array: dtype, shapes, rate, unit, channels, dims.

        Raises
        ------
        InvalidName
            If no trial has such an array.
        """
        return self._having(name).info(name)

    def array(
        self,
        name: str,
        trial: int | None = None,
        window: tuple[int, int] | None = None,
        *,
        verify: bool = True,
    ) -> NDArray[Any]:
        """Return an array of all trials, of one trial, or a part of one; only that is read.

        Parameters
        ----------
        name : str
            Name of the array.
        trial : int, optional
            Number of the trial; without it, all trials' arrays as ``numpy.vstack`` joins them.
        window : (int, int), optional
            First sample and the one after the last, along the axis on which chunks were stacked.
        verify : bool, optional
            Check every byte that is read against its checksum.

        Raises
        ------
        InvalidName
            If no trial has such an array.
        InvalidTrial
            If there is no such trial or it has no such array, if `window` is no range, or (a
            ``ValueError``, naming them) if trials do not fit to be stacked.
        DamagedData
            If bytes do not fit their checksum; names file and trial.
        """
        source = self._having(name)
        if trial is None:
            if window is not None:
                raise InvalidTrial("a window needs a trial: array(name, trial=..., window=...)")
            return _stacked(name, source, verify=verify)
        self._require_trial(source, name, trial)
        return source.read(name, trial, _checked_window(window), verify=verify)

    def iterarray(self, name: str, *, verify: bool = True) -> Iterator[NDArray[Any] | None]:
        """Yield the array of each trial, None for a trial that has none.

        Parameters
        ----------
        name : str
            Name of the array.
        verify : bool, optional
            Check every byte against its checksum.

        Raises
        ------
        InvalidName
            If no trial has such an array.
        DamagedData
            When the damaged trial's turn comes.
        """
        return self._having(name).each(name, verify=verify)

    def pickle(self, name: str, *, trusted: bool = False) -> object:
        """Load an object stored with `TaskWriter.pickle`.

        Parameters
        ----------
        name : str
            Name without extension.
        trusted : bool, optional
            Load any class. Only for files you know: loading a pickle can run any program.

        Raises
        ------
        InvalidName
            If there is no such pickle.
        UntrustedPickle
            If it holds anything but plain containers, NumPy and pandas objects.
        DamagedData
            If it is cut short or does not fit its checksum.
        """
        path = layout.pickle_path(self.root, layout.check_name(name, "pickle"))
        said = self._current.get().file_record(path.name)
        try:
            data = read_file(path)
        except FileNotFoundError as error:
            if said is not None:
                raise DamagedData(f"{str(path)!r} was published and is gone", path) from error
            raise InvalidName(f"task {self.root.name!r} has no pickle {name!r}") from error
        except OSError as error:
            raise DamagedData(f"{str(path)!r} cannot be read: {error}", path) from error
        if said is not None and (said["size"] != len(data) or said["crc32"] != crc32(data)):
            raise DamagedData(f"{str(path)!r} was changed or damaged after publication", path)
        return pickles.loads(data, trusted=trusted, path=path)

    def follow(self) -> Iterator[Trial]:
        """Yield each trial as it becomes durable, from the first on; end when the task is closed.

        Blocks between trials; run it in a thread or process of its own. It also ends when the
        recorder is gone. A trial's arrays are loaded with it; missing attributes are left out.

        Raises
        ------
        DamagedData
            If an array of the trial does not fit its checksum.
        """
        seen = 0
        while True:
            is_over = self.status != "recording"
            source, numbers, attrs = self._current.ask(functools.partial(_news, seen))
            arrays = {
                name: source.some(name, [trial for trial in numbers if source.has(name, trial)])
                for name in source.array_names()
            }
            for number, values in zip(numbers, attrs, strict=True):
                yield _trial(source, arrays, number, values)
            seen += len(numbers)
            if is_over:
                return
            if not numbers:
                time.sleep(_FOLLOW_EVERY)

    def _having(self, name: str) -> Source:
        source = self._current.get()
        names = source.array_names()
        if name not in names:
            raise InvalidName(f"task {self.root.name!r} has no array {name!r}; it has {names}")
        return source

    def _require_trial(self, source: Source, name: str, trial: int) -> None:
        numbers = source.trial_numbers()
        if trial not in numbers:
            for loss in source.losses():
                if trial in loss.trials:
                    raise DamagedData(
                        f"trial {trial} of task {self.root.name!r} is lost: {loss.evidence}",
                        self.root / loss.file,
                        (trial,),
                    )
            raise InvalidTrial(
                f"task {self.root.name!r} has no trial {trial!r}: it has {len(numbers)}"
            )
        if not source.has(name, trial):
            source.require_whole(name, trial)
            raise InvalidTrial(f"trial {trial} of task {self.root.name!r} has no array {name!r}")


def _checked_window(window: tuple[int, int] | None) -> tuple[int, int] | None:
    if window is None:
        return None
    with contextlib.suppress(TypeError, ValueError):  # not two things, or not integers
        first, end = map(operator.index, window)
        if 0 <= first <= end:
            return first, end
    raise InvalidTrial(f"window must be (first, end) with 0 <= first <= end, not {window!r:.80}")


def _stacked(name: str, source: Source, *, verify: bool) -> NDArray[Any]:
    numbers = source.trial_numbers()
    found = [
        (number, array)
        for number, array in zip(numbers, source.each(name, verify=verify), strict=True)
        if array is not None
    ]
    if not found:
        raise InvalidTrial(f"no trial has array {name!r}")
    try:
        return np.vstack([array for _, array in found])
    except (ValueError, TypeError) as error:  # shapes, and dtypes without a common one
        first = np.atleast_2d(found[0][1])
        odd = [number for number, array in found if not _fits(first, np.atleast_2d(array))]
        raise InvalidTrial(
            f"array {name!r} cannot be stacked over trials: trials {odd} do not fit trial "
            f"{found[0][0]}; use iterarray, or array(name, trial=...)"
        ) from error


def _fits(first: NDArray[Any], array: NDArray[Any]) -> bool:
    try:
        np.promote_types(first.dtype, array.dtype)
    except TypeError:
        return False
    return array.shape[1:] == first.shape[1:]


def _news(seen: int, source: Source) -> tuple[Source, list[int], list[dict[str, Any]]]:
    numbers = source.trial_numbers()[seen:]
    return source, numbers, source.attrs(numbers) if numbers else []


def _trial(
    source: Source,
    arrays: Mapping[str, Iterator[NDArray[Any]]],
    number: int,
    attrs: dict[str, Any],
) -> Trial:
    trial = Trial(attrs)
    for name, found in arrays.items():
        if source.has(name, number):
            trial.arrays[name] = Array(next(found))
        else:
            source.require_whole(name, number)
    return trial
