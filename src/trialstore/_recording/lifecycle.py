"""The life of a Storage and of a TaskWriter: all of it is in this table.

Whether a call is allowed is a lookup, so "may I write after a failure?" has one answer in one
place. A failing disk is not a state: recording goes on in memory and the failure is told (see
`writer`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from trialstore._errors import StorageError


class State(StrEnum):
    """Where in its life an object is."""

    NEW = "not entered yet"
    OPENING = "being opened"
    OPEN = "open"
    CLOSING = "being closed"
    CLOSED = "closed"
    FORKED = "left behind in the parent process by fork"


_OPEN: Final = State.OPEN  # a look into an enumeration takes as long as all else of the question

_NEXT: Final[dict[State, frozenset[State]]] = {
    State.NEW: frozenset((State.OPENING, State.FORKED)),
    State.OPENING: frozenset((State.OPEN, State.CLOSED, State.FORKED)),
    State.OPEN: frozenset((State.CLOSING, State.FORKED)),
    State.CLOSING: frozenset((State.CLOSED, State.FORKED)),
    State.CLOSED: frozenset((State.FORKED,)),
    State.FORKED: frozenset((State.FORKED,)),
}

_ADVICE: Final[dict[State, str]] = {
    State.NEW: "use it inside 'async with'",
    State.OPENING: "wait for it, or use 'async with'",
    State.CLOSING: "nothing can be written any more",
    State.CLOSED: "nothing can be written any more; resume_task goes on with a task",
    State.FORKED: "record in the process that opened it",
}


class Lifecycle:
    """The state of one object.

    Parameters
    ----------
    what : str
        How messages call the object, for example ``"task 'reach'"``.
    """

    def __init__(self, what: str, state: State = State.NEW) -> None:
        self.what = what
        self.state: State = state

    @property
    def is_open(self) -> bool:
        """Whether the state is OPEN."""
        return self.state is _OPEN

    def advance(self, to: State) -> None:
        """Go to a later state.

        Raises
        ------
        StorageError
            If the table does not allow it, for example when something is entered twice.
        """
        if to not in _NEXT[self.state]:
            raise StorageError(f"{self.what} is {self.state.value} and cannot become {to.value}")
        self.state = to

    def require_open(self) -> None:
        """Raise StorageError with advice unless the state is OPEN."""
        if self.state is not _OPEN:
            raise StorageError(f"{self.what} is {self.state.value}: {_ADVICE[self.state]}")
