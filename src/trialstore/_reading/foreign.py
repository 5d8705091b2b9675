"""A task that another program wrote, such as AxoPy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import DamagedData, FormatError
from trialstore._ondisk import chunks, layout
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.values import encode_attrs
from trialstore._reading.frame import columns_from_rows, frame_from_foreign_csv, rows_of
from trialstore._reading.hdf5 import ArrayFile
from trialstore._reading.source import ArraySummary, Times, Window, attrs_of, summary
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._reading.frame import Cells


#: Names of datasets that are trials; longer numbers are not read by Python without limit.
_TRIAL: Final = re.compile("0|[1-9][0-9]{0,17}")


class ForeignSource:
    """Reads a task without our manifest, such as AxoPy's, with nothing to check against."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def status(self) -> str:
        return "foreign"

    @property
    def metadata(self) -> dict[str, Any]:
        return {}

    def file_record(self, name: str) -> dict[str, int] | None:
        del name
        return None

    def columns(self) -> Cells:
        frame = self.frame()
        return [_cells(str(name), frame.iloc[:, at]) for at, name in enumerate(frame.columns)]

    def attrs(self, trials: Sequence[int]) -> list[dict[str, Any]]:
        rows = rows_of(self.columns(), len(self.trial_numbers()))
        return [attrs_of(rows[trial]) for trial in trials]

    def frame(self) -> pd.DataFrame:
        path = self._folder / layout.TRIALS
        try:
            data = read_file(path)
        except FileNotFoundError as error:
            raise FormatError(
                f"task folder {str(self._folder)!r} has no {layout.TRIALS}"
            ) from error
        except OSError as error:
            raise DamagedData(f"{str(path)!r} cannot be read: {error}", path) from error
        return frame_from_foreign_csv(data, str(path))

    def times(self) -> list[Times]:
        return []

    def trial_numbers(self) -> list[int]:
        return list(range(len(self.frame())))

    def array_names(self) -> list[str]:
        return layout.array_names_in(self._folder)

    def info(self, name: str) -> ArraySummary:
        with self._open(name) as file:
            keys = {key for key in file.names() if _TRIAL.fullmatch(key)}
            trials = sorted(int(key) for key in keys)
            shapes = {trial: file.shape(str(trial)) for trial in trials}
            dtypes = [file.dtype(str(trial)) for trial in trials]
        return summary(ArrayInfo(), dtypes, shapes, 1)

    def has(self, name: str, trial: int) -> bool:
        with self._open(name) as file:
            return str(trial) in file.names()

    def require_whole(self, name: str, trial: int) -> None:
        """Nothing tells of what was lost."""

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        del verify  # there is nothing to check against
        with self._open(name) as file:
            key = str(trial)
            selection = None
            shape = file.shape(key)
            if window is not None and shape:
                axis = chunks.samples_axis(len(shape), 1)
                selection = chunks.along(axis, window[0], max(0, window[1] - window[0]))
            return file.read(key, selection=selection)

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        del verify
        with self._open(name) as file:
            found = set(file.names())
            for trial in self.trial_numbers():
                yield file.read(str(trial)) if str(trial) in found else None

    def some(self, name: str, trials: Sequence[int]) -> Iterator[NDArray[Any]]:
        with self._open(name) as file:
            for trial in trials:
                yield file.read(str(trial))

    def losses(self) -> list[Loss]:
        return []

    def _open(self, name: str) -> ArrayFile:
        return ArrayFile(layout.array_path(self._folder, name))


def _cells(name: str, series: pd.Series[Any]) -> tuple[str, list[tuple[str, int]], list[str]]:
    """Encode a column that pandas has made; NaN among texts is how it says that there is none."""
    if not len(series):
        return name, [], []
    missing = series.isna().tolist() if series.dtype.kind not in "fc" else [False] * len(series)
    values = [None if none else value for value, none in zip(series, missing, strict=True)]
    rows = [[("", *encode_attrs({"value": value})[0][1:])] for value in values]
    ((_, runs, texts),) = columns_from_rows(rows)
    return name, runs, list(texts)
