"""What an experiment fills: a `Design` of `Block`s of `Trial`s with attributes and `Array`s.

The containers are AxoPy's (``axopy.design``) in names and behaviour. They know no disk and no event
loop; `trialstore.TaskWriter.write` takes a `Trial` as it is.
"""

from __future__ import annotations

import pprint
import random
from typing import TYPE_CHECKING, Any

from trialstore._arrayinfo import ArrayInfo
from trialstore._arrays import Array, Piece
from trialstore._errors import InvalidTrial

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike

__all__ = ["Array", "ArrayInfo", "Block", "Design", "Trial"]

# Pickles, which outlive private modules, name these classes by this one.
for _public in (Array, ArrayInfo, Piece):
    _public.__module__ = __name__


class Design(list["Block"]):
    """A list of blocks.

    Examples
    --------
    >>> design = Design()
    >>> block = design.add_block()
    >>> for target in (1, 2, 3):
    ...     trial = block.add_trial(attrs={"target": target})
    >>> block.shuffle(seed=7)
    >>> [trial.attrs["trial"] for trial in block]
    [0, 1, 2]
    """

    def add_block(self) -> Block:
        """Append an empty block, whose index is its place in the design, and return it."""
        block = Block(len(self))
        self.append(block)
        return block


class Block(list["Trial"]):
    """A list of trials that belong together; made by `Design.add_block`.

    Parameters
    ----------
    index : int
        Place of the block in its design; every trial carries it as the attribute ``block``.
    *args : iterable of Trial, optional
        Trials to begin with.
    """

    #: AxoPy's attribute; it hides the method of `list`, here as there.
    index: int  # type: ignore[assignment]

    def __init__(self, index: int, *args: Iterable[Trial]) -> None:
        super().__init__(*args)
        self.index = index

    def add_trial(self, attrs: Mapping[str, Any] | None = None) -> Trial:
        """Append a trial, numbered by the attributes ``block`` and ``trial``, and return it.

        Parameters
        ----------
        attrs : mapping, optional
            Attributes of the trial. They are copied: AxoPy wrote the numbers into the caller's own
            dictionary, so that one used twice gave two trials the same number.

        Raises
        ------
        InvalidTrial
            If `attrs` is not a mapping.
        """
        try:
            numbered = dict(attrs or {})
        except (TypeError, ValueError) as error:
            raise InvalidTrial(
                f"attrs must be a mapping of names to values, not {type(attrs).__qualname__}"
            ) from error
        numbered.update(block=self.index, trial=len(self))
        trial = Trial(numbered)
        self.append(trial)
        return trial

    def shuffle(
        self,
        reset_index: bool = True,  # noqa: FBT001, FBT002 - AxoPy's signature
        seed: float | str | bytes | None = None,
    ) -> None:
        """Put the trials in random order.

        Parameters
        ----------
        reset_index : bool, default True
            Number the attribute ``trial`` anew, in the new order.
        seed : int, float, str or bytes, optional
            Gives the same order every time and leaves the generator of `random` alone. Without it
            the order comes from that generator, as in AxoPy.
        """
        shuffle = random.shuffle if seed is None else random.Random(seed).shuffle
        shuffle(self)
        if reset_index:
            for number, trial in enumerate(self):
                trial.attrs["trial"] = number


class Trial:
    """Attributes and arrays of one trial; made by `Block.add_trial`.

    Parameters
    ----------
    attrs : dict
        Attributes by name; kept, not copied.

    Attributes
    ----------
    attrs : dict
        Scalars, strings and the like; one row of the trials table.
    arrays : dict of Array
        Arrays by name.

    Examples
    --------
    >>> trial = Trial({"target": 3})
    >>> emg = trial.add_array("emg")
    >>> emg.stack([[1.0, 2.0], [3.0, 4.0]])
    >>> trial.arrays["emg"].data.shape
    (2, 2)
    """

    def __init__(self, attrs: dict[str, Any]) -> None:
        self.attrs = attrs
        self.arrays: dict[str, Array] = {}

    def add_array(self, name: str, *, data: ArrayLike | None = None, stack_axis: int = 1) -> Array:
        """Add an array, in place of one of the same name, and return it.

        Parameters
        ----------
        name : str
            Name of the array.
        data, stack_axis
            As for `Array`.

        Raises
        ------
        InvalidTrial
            If `Array` refuses `data` or `stack_axis`.
        """
        array = Array(data, stack_axis)
        self.arrays[name] = array
        return array

    def __str__(self) -> str:
        return pprint.pformat(self.attrs)
