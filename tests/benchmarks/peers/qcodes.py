"""QCoDeS' Measurement with ``write_in_background``: its own thread writes its SQLite database."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import qcodes.dataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials

_NUMBERS = ("block", "target", "reaction", "x", "y", "hit")


class Qcodes:
    """One run; each trial is one result."""

    PATTERN: ClassVar[str] = (
        "Measurement.run(write_in_background=True), add_result on the loop for each trial"
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chunks: list[NDArray[Any]] = []

    async def open(self) -> None:
        logging.getLogger("qcodes").setLevel(logging.ERROR)
        # QCoDeS greets on standard output, where our figures go.
        with contextlib.redirect_stdout(None):
            qcodes.dataset.initialise_or_create_database_at(self._folder / "trials.db")
            experiment = qcodes.dataset.load_or_create_experiment("reach", "p0")
            measurement = qcodes.dataset.Measurement(exp=experiment)
            measurement.register_custom_parameter("trial")
            for name in _NUMBERS:
                measurement.register_custom_parameter(name, setpoints=("trial",))
            measurement.register_custom_parameter("hand", paramtype="text", setpoints=("trial",))
            measurement.register_custom_parameter("emg", paramtype="array", setpoints=("trial",))
            self._context = measurement.run(write_in_background=True)
            self._saver = self._context.__enter__()

    def append_nowait(self, chunk: NDArray[Any]) -> None:
        self._chunks.append(chunk.copy())

    async def append(self, chunk: NDArray[Any]) -> None:
        self.append_nowait(chunk)

    async def write(self, attrs: dict[str, Any]) -> None:
        chunks, self._chunks = self._chunks, []
        results: list[tuple[str, Any]] = [
            # QCoDeS takes no bool for a number.
            (name, int(value) if type(value) is bool else value)
            for name, value in attrs.items()
        ]
        if chunks:
            results.append(("emg", np.hstack(chunks)))
        self._saver.add_result(*results)

    async def aclose(self) -> None:
        with contextlib.redirect_stdout(None):
            self._context.__exit__(None, None, None)

    @staticmethod
    def read(folder: Path) -> Trials:
        with contextlib.redirect_stdout(None):
            qcodes.dataset.initialise_or_create_database_at(folder / "trials.db")
            found = qcodes.dataset.load_by_id(1).get_parameter_data()
        names = (*_NUMBERS, "hand")
        arrays = found.get("emg", {}).get("emg", ())
        for trial, number in enumerate(found["block"]["trial"]):
            attrs = {name: found[name][name][trial] for name in names}
            yield {"trial": number, **attrs}, arrays[trial] if len(arrays) else None
