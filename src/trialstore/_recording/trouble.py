"""What is wrong right now, and who is told."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("trialstore")

Kind = Literal["hung", "held", "publisher", "space"]
#: What `current` tells when several things are wrong: the worst first.
_ORDER: Final[tuple[Kind, ...]] = ("hung", "held", "publisher", "space")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong, as the `on_trouble` hook is told.

    Parameters
    ----------
    what : str
        For a person: what failed, where, and what happens now.
    since : int
        Unix time in nanoseconds when it began.
    queue_bytes, queue_limit : int
        How full the queue is, and how full it may become.
    free_bytes : int or None
        Free space on the data's disk, if the system says.
    """

    what: str
    since: int
    queue_bytes: int
    queue_limit: int
    free_bytes: int | None


class Troubles:
    """Keeps what is wrong, by kind; warns and calls the user's hook when something begins.

    Guarantee: each trouble is told when it begins, and not again while it lasts.

    Parameters
    ----------
    hook : callable or None
        The user's `on_trouble`.
    gauges : callable
        Gives bytes in the queue, its limit, and free bytes on the disk (or None).
    """

    def __init__(
        self,
        hook: Callable[[Trouble], object] | None,
        gauges: Callable[[], tuple[int, int, int | None]],
    ) -> None:
        self._hook = hook
        self._gauges = gauges
        self._present: dict[Kind, str] = {}

    @property
    def current(self) -> str | None:
        """The worst of what is wrong, or None."""
        return next((self._present[kind] for kind in _ORDER if kind in self._present), None)

    def begin(self, kind: Kind, what: str) -> None:
        """Note that something is wrong; told if it was not so before."""
        is_new = kind not in self._present
        self._present[kind] = what
        if is_new:
            self.tell(what)

    def end(self, *kinds: Kind) -> None:
        """Note that something is well again."""
        for kind in kinds:
            self._present.pop(kind, None)

    def tell(self, what: str) -> None:
        """Warn, once, and call the hook."""
        logger.warning("%s", what)
        if self._hook is None:
            return
        try:
            self._hook(Trouble(what, time.time_ns(), *self._gauges()))
        except Exception as error:  # noqa: BLE001 - a broken hook must not end the writer
            # Without a traceback: writing one out reads source files, and this is the loop.
            logger.error("the on_trouble hook failed: %r", error)  # noqa: TRY400
