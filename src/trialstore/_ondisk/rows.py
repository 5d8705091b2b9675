"""A trial's attributes as the text of its row, which is what waits in the queue.

The trials of a task look alike: the same names in the same order, values of the same types. All
that such rows have in common is written once, into a template that the values are put into.
"""

from __future__ import annotations

from json.encoder import encode_basestring as _quoted
from typing import Any, Final, NamedTuple

from trialstore._ondisk.clocks import Refusal
from trialstore._ondisk.entries import encode_row
from trialstore._ondisk.numerals import DECIMAL_BITS
from trialstore._ondisk.values import encode_attrs, fixed_encoder

#: Tasks of an experiment have a handful of kinds of rows; who names attributes after trials must
#: not fill the memory.
_MOST_TEMPLATES: Final = 256

#: How the text of a value of a usual type is made, by the type's identity: ``%r`` is what
#: `trialstore._ondisk.values` calls, without a call for each. A string is quoted before.
_FORMATS: Final = {
    id(type(None)): '"%.0s"',
    **dict.fromkeys(map(id, (bool, int, float)), '"%r"'),
    id(str): "%s",
}
#: A row this much longer than what its template writes may hold an integer that is not written in
#: decimal digits: 2048 bits have 617 of them.
_SURELY_DECIMAL: Final = 600


class _Template(NamedTuple):
    """A row without its values: what they are put into, and which of them are strings."""

    text: str
    strings: tuple[int, ...]
    surely_decimal: int


#: By the names, and the identities of the values' types: to find one runs no code of the user's, as
#: hashing a class with a metaclass would. The usual types are never freed, so that no other has
#: their identities; names have no NUL, or the number of types would be another.
_templates: dict[tuple[object, ...], _Template] = {}


def encode_attributes(attrs: dict[str, Any]) -> tuple[str, object]:
    """Encode a trial's attributes, and tell whether they are like others.

    Guarantee: the text is that of ``encode_row(encode_attrs(attrs))``, and so is every error.

    Parameters
    ----------
    attrs : dict
        Names and values; nobody else changes it meanwhile.

    Returns
    -------
    text : str
        The JSON that `trialstore._ondisk.entries.encode_trial` takes.
    likeness : object
        Rows with the very same one have the same names in the same order, and values of exactly the
        same types; None if nothing is known of that.

    Raises
    ------
    InvalidTrial
        A name is not a printable string, or a value is not data.

    Examples
    --------
    >>> encode_attributes({"target": 3, "hand": "left"})[0]
    '[["target","int","3"],["hand","str","left"]]'
    """
    try:
        key = ("\0".join(attrs), *map(id, map(type, attrs.values())))
    except TypeError:  # a name is no string
        return encode_row(encode_attrs(attrs)), None
    template = _templates.get(key)
    if template is None:
        row = encode_row(encode_attrs(attrs))
        return row, _learn(key, attrs)
    values = [*attrs.values()]
    try:
        for at in template.strings:
            values[at] = _quoted(_str_text(values[at]))
        row = template.text % (*values,)
    except (Refusal, ValueError):  # not Unicode; more digits than Python may be told to write
        return encode_row(encode_attrs(attrs)), None
    if len(row) > template.surely_decimal and any(map(_is_wide, attrs.values())):
        return encode_row(encode_attrs(attrs)), None
    return row, template


def _is_wide(value: object) -> bool:
    return type(value) is int and value.bit_length() >= DECIMAL_BITS


def _learn(key: tuple[object, ...], attrs: dict[str, Any]) -> _Template | None:
    """Keep the template of a row that could be encoded, if all in it is of usual types."""
    cells, strings = [], []
    written = 0
    for at, (name, value) in enumerate(attrs.items()):
        kind = type(value)
        if id(kind) not in _FORMATS:
            return None
        head = f"[{_quoted(name)},{_quoted(fixed_encoder(kind)[0])},"
        cells.append(f"{head.replace('%', '%%')}{_FORMATS[id(kind)]}]")
        written += len(head)
        if kind is str:
            strings.append(at)
    if len(_templates) >= _MOST_TEMPLATES:
        _templates.clear()
    text = f"[{','.join(cells)}]"
    template = _Template(text, tuple(strings), written + _SURELY_DECIMAL)
    _templates[key] = template
    return template


_str_text = fixed_encoder(str)[1]
