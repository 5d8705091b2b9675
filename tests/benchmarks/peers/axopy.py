"""AxoPy's own storage, loaded by file: everything happens on the loop, when a trial is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tests import axopy_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials


class AxoPy:
    """A task of AxoPy's Storage."""

    PATTERN: ClassVar[str] = (
        "axopy/storage.py and axopy/design.py, called on the loop, as AxoPy's tasks do"
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def open(self) -> None:
        storage = axopy_source.storage.Storage(str(self._folder))
        storage.subject_id = "p0"
        self._task = storage.create_task("reach")
        self._trial: Any = None

    def append_nowait(self, chunk: NDArray[Any]) -> None:
        trial = self._open_trial()
        if "emg" not in trial.arrays:
            trial.add_array("emg", stack_axis=1)
        trial.arrays["emg"].stack(chunk.copy())  # AxoPy keeps the first one as it is

    async def append(self, chunk: NDArray[Any]) -> None:
        self.append_nowait(chunk)

    async def write(self, attrs: dict[str, Any]) -> None:
        trial = self._open_trial()
        trial.attrs.update(attrs)
        self._task.write(trial)
        self._trial = None

    async def aclose(self) -> None:
        """Do nothing: AxoPy opens and closes its files at every trial."""

    def _open_trial(self) -> Any:
        if self._trial is None:
            self._trial = axopy_source.design.Trial(attrs={})
        return self._trial

    @staticmethod
    def read(folder: Path) -> Trials:
        storage = axopy_source.storage.Storage(str(folder))
        storage.subject_id = "p0"
        reader = storage.require_task("reach")
        arrays = reader.iterarray("emg") if (folder / "p0/reach/emg.hdf5").exists() else None
        for _, row in reader.trials.iterrows():
            yield dict(row), None if arrays is None else next(arrays)
