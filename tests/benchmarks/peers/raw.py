"""The limit: a bare thread that writes and syncs the same bytes, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from tests.benchmarks.content import CHANNELS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials

_PAUSE: Final = 0.010
_PIECES: Final = 1000  # Linux takes 1024 in one call
_MOST_PENDING: Final = 256 * 2**20
_END: Final = 60.0


class Raw:
    """One file of chunks and rows as they came; only the memory knows which is which."""

    PATTERN: ClassVar[str] = (
        "every 10 ms all that has come in one os.writev and one fdatasync, in a bare thread; no "
        "checksum, no format, no failure handled: the limit of what can be had"
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._length = 1
        self._open_bytes = 0
        self._trials: list[tuple[int, int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._fd = -1

    async def open(self) -> None:
        await asyncio.to_thread(self._begin)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._thread.start()

    def append_nowait(self, chunk: NDArray[Any]) -> None:
        data = chunk.tobytes()
        self._pending_bytes += len(data)
        self._open_bytes += len(data)
        self._length = chunk.shape[1]
        self._pending.append(data)

    async def append(self, chunk: NDArray[Any]) -> None:
        while self._pending_bytes > _MOST_PENDING:  # noqa: ASYNC110 - a thread makes the room
            await asyncio.sleep(0.001)
        self.append_nowait(chunk)

    async def write(self, attrs: dict[str, Any]) -> None:
        row = json.dumps(attrs).encode()
        self._trials.append((self._length, self._open_bytes, len(row)))
        self._open_bytes = 0
        self._pending.append(row)

    def _work(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._stop.wait(_PAUSE)
            pieces, self._pending = self._pending, []
            for first in range(0, len(pieces), _PIECES):
                some = pieces[first : first + _PIECES]
                if os.writev(self._fd, some) != sum(map(len, some)):
                    raise OSError("a short write, which this does not handle")
            if pieces:
                os.fdatasync(self._fd)
                self._pending_bytes = sum(map(len, self._pending))

    async def aclose(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._thread.join(_END)
        os.close(self._fd)
        (self.folder / "index.json").write_text(json.dumps(self._trials))

    @staticmethod
    def read(folder: Path) -> Trials:
        data = (folder / "raw").read_bytes()
        at = 0
        for length, nbytes, row in json.loads((folder / "index.json").read_text()):
            chunks = np.frombuffer(data, np.float64, nbytes // 8, at)
            attrs = json.loads(data[at + nbytes : at + nbytes + row])
            yield attrs, np.hstack([*chunks.reshape(-1, CHANNELS, length)]) if nbytes else None
            at += nbytes + row
