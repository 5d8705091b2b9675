"""What a caller holds in hands after a write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trialstore._errors import QueueFull
from trialstore._recording.progress import Level

if TYPE_CHECKING:
    from trialstore._recording.progress import Progress


class Receipt:
    """What became of one trial.

    Guarantee: `level` never says more than what is true at that moment, and never falls.

    Examples
    --------
    >>> receipt = await task.write({"target": 4})  # doctest: +SKIP
    >>> await receipt.durable()  # doctest: +SKIP
    """

    __slots__ = ("_index", "_progress")

    def __init__(self, progress: Progress | None, index: int | None) -> None:
        self._progress = progress
        self._index = index

    def __repr__(self) -> str:
        if self._index is None:
            return "<Receipt: refused, the queue was full>"
        level = self.level
        return f"<Receipt trial {self._index}: {level.name.lower() if level else 'refused'}>"

    @property
    def index(self) -> int | None:
        """Number of the trial within its task; None if ``on_full="drop"`` refused it."""
        return self._index

    @property
    def level(self) -> Level | None:
        """How far the trial has come by now; None if it was refused."""
        if self._progress is None or self._index is None:
            return None
        return self._progress.level_of(self._index)

    async def written(self) -> None:
        """Wait until the kernel has every byte of the trial.

        Raises
        ------
        WriteFailed
            If the trial could not be written before the task had to be closed.
        QueueFull
            If the trial was refused.
        """
        await self._wait(Level.WRITTEN)

    async def durable(self) -> None:
        """Wait until the trial survives a power cut.

        Raises
        ------
        WriteFailed
            If the trial could not be made durable before the task had to be closed.
        QueueFull
            If the trial was refused.
        """
        await self._wait(Level.DURABLE)

    async def _wait(self, level: Level) -> None:
        if self._progress is None or self._index is None:
            raise QueueFull("the trial was refused because the queue was full (on_full='drop')")
        await self._progress.wait_for_trial(self._index, level)
