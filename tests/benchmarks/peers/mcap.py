"""MCAP's own Python writer: one message per trial and one per array, in a thread."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from tests.benchmarks.content import CHANNELS
from tests.benchmarks.peers.threaded import Threaded

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials


class Mcap(Threaded):
    """One file with two channels."""

    PATTERN: ClassVar[str] = (
        "mcap.writer.Writer without compression, one message per array and one per trial; "
        "asyncio.Queue and asyncio.to_thread; never synced, as the writer never syncs"
    )

    def start(self) -> None:
        self._file = (self.folder / "trials.mcap").open("wb")
        self._writer = Writer(self._file, compression=CompressionType.NONE)
        self._writer.start()
        schema = self._writer.register_schema("trial", "jsonschema", b'{"type": "object"}')
        self._rows = self._writer.register_channel("trials", "json", schema)
        self._arrays = self._writer.register_channel("emg", "application/octet-stream", 0)

    def save(self, trial: int, attrs: dict[str, Any], array: NDArray[Any] | None) -> None:
        now = time.time_ns()
        if array is not None:
            self._writer.add_message(self._arrays, now, array.tobytes(), now, trial)
        self._writer.add_message(self._rows, now, json.dumps(attrs).encode(), now, trial)
        self._file.flush()

    def finish(self) -> None:
        self._writer.finish()
        self._file.close()

    @staticmethod
    def read(folder: Path) -> Trials:
        array: NDArray[Any] | None = None
        with (folder / "trials.mcap").open("rb") as file:
            reader = make_reader(file, validate_crcs=True)
            for _, channel, message in reader.iter_messages(log_time_order=False):
                if channel.topic == "emg":
                    array = np.frombuffer(message.data).reshape(CHANNELS, -1)
                else:
                    yield json.loads(message.data), array
                    array = None
