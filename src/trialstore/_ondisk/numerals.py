"""Numbers as texts, Python's and NumPy's: the fewest digits that give the same value back.

The methods of the base class are called and never those of a subclass, so that encoding runs no
code of the user's. The parsers take what the renderers write, with no more freedom than Python's
own ``int()`` and ``float()`` have in ASCII.
"""

from __future__ import annotations

import re
import warnings
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Integers below this many bits have at most 617 decimal digits. Python can be told to refuse
#: conversion from 640 on (``sys.set_int_max_str_digits``); hexadecimal digits are never refused.
DECIMAL_BITS: Final = 2048
_DECIMAL_DIGITS: Final = 640

#: ``int()`` and ``float()`` also take spaces, underscores and digits of other scripts.
_NUMBERS: Final = re.compile(r"[-+.0-9a-z]*")
#: Between these, ``repr()`` of a float writes no exponent, and neither do we.
_POSITIONAL: Final = (1e-4, 1e16)
_PART: Final = r"(?:\d[.\d]*(?:e[-+]?\d+)?|inf|nan)"
_COMPLEX: Final = re.compile(rf"\((-?{_PART})([-+]{_PART})j\)")


def plain_numbers(texts: Sequence[str]) -> bool:
    """Say whether `texts` hold only characters that numbers are written with."""
    return _NUMBERS.fullmatch("".join(texts)) is not None


def same(value: Any, render: Callable[[Any], str], text: str) -> Any:
    """Return `value` if it would be written as `text`: the parsers of Python and NumPy take more.

    Raises
    ------
    ValueError
        It would be written otherwise.
    """
    if render(value) != text:
        raise ValueError(text)
    return value


def _checked(text: str) -> str:
    if not text or not plain_numbers((text,)):
        raise ValueError(text)
    return text


# --- Python -----------------------------------------------------------------------------------


def int_text(value: int) -> str:
    """Decimal digits, or hexadecimal ones where decimal ones could be refused."""
    if int.bit_length(value) < DECIMAL_BITS:
        return int.__repr__(value)
    return int.__format__(value, "#x")


def parse_int(text: str) -> int:
    """Undo `int_text`.

    Raises
    ------
    ValueError
        `text` is not an integer.
    """
    if "x" in _checked(text):
        return int(text, 16)
    if len(text) > _DECIMAL_DIGITS:  # the conversion takes quadratic time
        raise ValueError("too long")
    return int(text)


def parse_bool(text: str) -> bool:
    """Undo ``str(bool)``; KeyError for anything else."""
    return {"True": True, "False": False}[text]


def parse_float(text: str) -> float:
    """Undo ``repr(float)``; ValueError for anything that is not a number."""
    return float(_checked(text))


def parse_complex(text: str) -> complex:
    """Undo ``repr(complex)``; ValueError for anything else."""
    value: complex = same(complex(text), complex.__repr__, text)
    return value


# --- NumPy ------------------------------------------------------------------------------------


def item_text(value: Any) -> str:
    """Decimal digits of a NumPy integer."""
    return int.__repr__(np.generic.item(value))


def np_float_text(value: Any) -> str:
    """Digits of a NumPy float; unlike with ``str()``, no print option can change them."""
    if value == 0 or _POSITIONAL[0] <= abs(float(value)) < _POSITIONAL[1]:
        return np.format_float_positional(value, unique=True, trim="0")
    return np.format_float_scientific(value, unique=True, trim="-")


def np_complex_text(value: Any) -> str:
    """Digits of a NumPy complex number, both parts always written."""
    real, imag = np_float_text(value.real), np_float_text(value.imag)
    return f"({real}{'' if imag.startswith('-') else '+'}{imag}j)"


def np_int(scalar: Any) -> Callable[[str], Any]:
    """Parser for a NumPy integer type; ValueError outside its range."""
    limits = np.iinfo(scalar)

    def parse(text: str) -> Any:
        if not limits.min <= (value := parse_int(text)) <= limits.max:
            raise ValueError(text)
        return scalar(value)

    return parse


def np_float(scalar: Any) -> Callable[[str], Any]:
    """Parser for a NumPy float type; ValueError or ArithmeticError outside its range."""
    limits = np.finfo(scalar)
    least, normal, largest = (
        Decimal(np.format_float_scientific(limit, unique=True))
        for limit in (np.nextafter(scalar(0), scalar(1)), limits.smallest_normal, limits.max)
    )

    def parse(text: str) -> Any:
        number = Decimal(_checked(text))
        size = number.copy_abs()
        if not number.is_finite() or number.is_zero() or normal <= size <= largest:
            return scalar(text)
        if not least <= size < normal:
            raise ValueError(text)
        with warnings.catch_warnings():  # what NumPy calls an overflow here, it reads right
            warnings.simplefilter("ignore", RuntimeWarning)
            return scalar(text)

    return parse


def np_complex(scalar: Any, parse_part: Callable[[str], Any]) -> Callable[[str], Any]:
    """Parser for a NumPy complex type whose two parts `parse_part` reads."""

    def parse(text: str) -> Any:
        if (parts := _COMPLEX.fullmatch(text)) is None:
            raise ValueError(text)
        value = np.empty((), scalar)
        value.real, value.imag = parse_part(parts[1]), parse_part(parts[2])
        return value[()]

    return parse
