"""What was written to a task in this session, column by column, for ``task.trials.data``."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Columns:
    """The columns of all rows so far; packed until somebody looks at them.

    Guarantee: `data` holds every value as it was given, in lists of one length, with None where a
    row had none; adding a row fails only for want of memory.

    Examples
    --------
    >>> columns = Columns()
    >>> columns.add({"a": 1})
    >>> columns.add({"b": 0.5})
    >>> columns.data
    {'a': [1, None], 'b': [None, 0.5]}
    """

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}
        self._rows = 0
        self._is_looked_at = False
        # What the last row was like, and where each of its values went.
        self._likeness: object = None
        self._appends: list[Callable[[Any], None]] = []

    def add(self, attrs: dict[str, Any], likeness: object = None) -> None:
        """Add a row.

        Parameters
        ----------
        attrs : dict
            Names and values, of which none is changed any more.
        likeness : object, optional
            Rows with the same one have the same names in the same order and values of the same
            types (`trialstore._ondisk.rows.encode_attributes` tells).
        """
        if likeness is None or likeness is not self._likeness:
            given, attrs = [*attrs], {**dict.fromkeys(self._columns), **attrs}
            self._fit(attrs)
            self._likeness = likeness if given == [*self._columns] else None
        try:
            for append, value in zip(self._appends, attrs.values(), strict=True):
                append(value)
        except OverflowError:  # an integer of more than 64 bits
            for column in self._columns.values():
                del column[self._rows :]
            for name, column in self.data.items():
                column.append(attrs[name])
        self._rows += 1

    def _fit(self, attrs: dict[str, Any]) -> None:
        """Have a column for each value that can take it; `attrs` has all names there are."""
        for name, value in attrs.items():
            column, code = self._columns.get(name), _code_of(value)
            if column is None:
                is_list = code is None or self._rows > 0 or self._is_looked_at
                self._columns[name] = [None] * self._rows if is_list else array(code)
            elif type(column) is not list and column.typecode != code:
                self._columns[name] = column.tolist()
        self._appends = [column.append for column in self._columns.values()]

    @property
    def data(self) -> dict[str, list[Any]]:
        """The columns as lists, to which further rows are added; unpacked from now on."""
        if not self._is_looked_at:
            self._is_looked_at = True
            for name, column in self._columns.items():
                if type(column) is not list:
                    self._columns[name] = column.tolist()
            self._appends = [column.append for column in self._columns.values()]
        return self._columns


def _code_of(value: object) -> Any:
    """Type code of a column that gives the value back as it is, or None if only a list does.

    A list of floats takes 32 bytes for each, such a column 8. Types are compared by identity: of a
    class with a metaclass, anything else would run code of the user's.
    """
    kind = type(value)
    return "q" if kind is int else "d" if kind is float else None
