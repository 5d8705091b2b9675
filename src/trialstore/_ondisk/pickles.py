"""Pickles: writing any, reading those that hold plain data without running anything else.

A pickle is a program. `loads` runs it on a machine that knows only what containers, NumPy and
pandas objects are made of; all else raises `UntrustedPickle`. A list of allowed classes alone is
not enough, because the opcodes can call what is on the list with anything, and can change finished
objects, classes and functions. Therefore:

* names are compared whole, so that nothing is reached through a dot;
* what may be called, what may be made with ``__new__`` and what may only be named are three lists;
* items are put into plain containers only, and state only into objects that the pickle has made;
* nothing is made before its state is there, for pandas' own objects crash when they are looked at
  half made;
* reconstructors that would take a hostile argument (a dtype whose fields lie outside its items, an
  index with codes beyond its levels) are replaced by ones that check.

This keeps a pickle from running code. It is no proof that pandas cannot be made to raise, or to
need much memory, by tables that nobody ever wrote.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import numpy as np

from trialstore._errors import DamagedData, InvalidTrial, StorageError
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.pickle_classes import (
    Unfinished,
    Use,
    check_array_state,
    check_finished,
    dtype_with_state,
    look_up,
    name_of,
    needs_state,
    untrusted,
    zone,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: The newest that every supported Python reads; the default of a newer Python may not be.
PROTOCOL: Final = 5
#: Behind the end of a pickle of ours, where every unpickler stops, stand this and a CRC-32: until a
#: task is published nothing else tells a flipped bit from what was stored.
_SEAL: Final = b"TRSP"
_CRC: Final = struct.Struct("<I")
_SEAL_SIZE: Final = len(_SEAL) + _CRC.size


def dumps(obj: object) -> bytes:
    """Pickle `obj`.

    Raises
    ------
    InvalidTrial
        If it cannot be pickled; the message says why.
    """
    try:
        return pickle.dumps(obj, PROTOCOL)
    except Exception as error:
        raise InvalidTrial(
            f"a {type(obj).__qualname__} cannot be pickled: {error!r:.200}"
        ) from error


def seal(data: bytes) -> bytes:
    """Add a checksum behind a pickle; ``pickle.load`` of any program reads it as before.

    Guarantee: `loads` raises DamagedData if any one bit of the pickle has changed since.
    """
    return data + _SEAL + _CRC.pack(crc32(data))


def unsealed(data: bytes, path: Path) -> bytes:
    """Return the pickle that was sealed; one of another program has no seal.

    Raises
    ------
    DamagedData
        If it does not fit its checksum.
    """
    end = max(0, len(data) - _SEAL_SIZE)
    if not data.startswith(_SEAL, end):
        return data
    if data[end + len(_SEAL) :] != _CRC.pack(crc32(data[:end])):
        raise DamagedData(f"{str(path)!r} does not fit its checksum", path)
    return data[:end]


def loads(data: bytes, *, trusted: bool, path: Path) -> object:
    """Load a pickle; unless it is trusted, nothing but plain data comes to life.

    Parameters
    ----------
    data : bytes
        The pickle.
    trusted : bool
        Whether the pickle may run any code that whoever wrote it wants to run.
    path : pathlib.Path
        Where it was read, for messages.

    Returns
    -------
    object
        Numbers, text, containers of the standard library, dates, NumPy arrays and scalars, pandas
        objects; with `trusted`, anything.

    Raises
    ------
    UntrustedPickle
        If the pickle is not trusted and needs anything else; the message names it.
    DamagedData
        If it does not fit its checksum, is cut short, is no pickle, or comes from a pandas too new
        for this one.
    StorageError
        If it needs a class that is not installed.
    """
    stream = io.BytesIO(unsealed(data, path))
    unpickler = pickle.Unpickler(stream) if trusted else _PlainUnpickler(stream)
    try:
        obj: object = unpickler.load()
    except StorageError as error:
        raise type(error)(f"{str(path)!r} {error}") from error.__cause__
    except Exception as error:
        if trusted and isinstance(error, (ImportError, AttributeError)):
            raise StorageError(
                f"{str(path)!r} needs something that is not installed here: {error!r:.200}"
            ) from error
        raise DamagedData(
            f"{str(path)!r} is no whole pickle, or one of a newer pandas: {error!r:.200}", path
        ) from error
    if stream.read(1):
        raise DamagedData(f"{str(path)!r} goes on behind the end of the pickle", path)
    return obj


_OPCODES: Final[dict[int, Callable[[Any], None]]] = pickle._Unpickler.dispatch  # noqa: SLF001 - the one in Python


class _Memo(dict[int, Any]):
    """What the pickle has put aside; what has no state yet may be put aside, not used."""

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(value, Unfinished):
            value.key = key
        super().__setitem__(key, value)

    def __getitem__(self, key: int) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, Unfinished):
            raise untrusted("uses an object before it has its state")
        return found


class _PlainUnpickler(pickle._Unpickler):  # noqa: SLF001 - has no public name
    """Python's own unpickler with a lock on every opcode that names, calls or changes objects.

    The one in Python, because the one in C asks only about names.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_OPCODES)
    stack: list[Any]
    metastack: list[list[Any]]
    memo: _Memo
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._uses = {id(zone): Use.CALL}  # named by nobody: it comes from a ``getattr``
        self.memo = _Memo()
        self._unfinished = 0

    def load(self) -> Any:
        loaded = super().load()
        if self._unfinished:
            raise untrusted("leaves objects without their state")
        return loaded

    def find_class(self, module: str, name: str) -> Any:
        found, use = look_up(module, name)
        # Everything found belongs to a module, so it lives on and its id stays its own.
        self._uses[id(found)] = use
        return found

    def _check(self, used: object, use: Use) -> None:
        if use not in self._uses.get(id(used), Use(0)):
            raise untrusted(f"makes, calls or changes {name_of(used)}")

    def _reduce(self) -> None:
        function, arguments = self.stack[-2:]
        self._check(function, Use.CALL)
        if not isinstance(arguments, tuple) or any(isinstance(arg, range) for arg in arguments):
            # A range of a trillion is a few bytes here and a full memory in whatever is made of it.
            raise untrusted(f"calls {name_of(function)} with a range")
        _OPCODES[pickle.REDUCE[0]](self)
        self._unfinished += isinstance(self.stack[-1], Unfinished)

    def _make(self) -> None:
        kind, arguments = self.stack[-2:]
        self._check(kind, Use.MAKE)
        if type(arguments) is not tuple or arguments:
            raise untrusted(f"makes {name_of(kind)} of arguments")
        if not needs_state(kind):
            _OPCODES[pickle.NEWOBJ[0]](self)
            return
        self.stack[-2:] = [Unfinished(lambda: kind.__new__(kind))]
        self._unfinished += 1

    def _build(self) -> None:
        blank, state = self.stack[-2:]
        target = blank.make() if isinstance(blank, Unfinished) else blank
        if isinstance(target, np.dtype) and target is not blank:
            self.stack[-2:] = [dtype_with_state(target, state)]
        else:
            if isinstance(target, np.ndarray):
                check_array_state(target, state)
            else:
                self._check(type(target), Use.MAKE)
            self.stack[-2] = target
            _OPCODES[pickle.BUILD[0]](self)
            check_finished(target)
        if isinstance(blank, Unfinished):
            self._unfinished -= 1
            if blank.key is not None:
                self.memo[blank.key] = self.stack[-1]

    def _set_item(self) -> None:
        self._check_container(self.stack[-3], dict)
        _OPCODES[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        self._check_container(self.metastack[-1][-1], dict)
        _OPCODES[pickle.SETITEMS[0]](self)

    def _append(self) -> None:
        self._check_container(self.stack[-2], (list, deque))
        _OPCODES[pickle.APPEND[0]](self)

    def _extend(self) -> None:
        self._check_container(self.metastack[-1][-1], (list, deque))
        _OPCODES[pickle.APPENDS[0]](self)

    def _add_items(self) -> None:
        self._check_container(self.metastack[-1][-1], set)
        _OPCODES[pickle.ADDITEMS[0]](self)

    def _check_container(self, target: object, kinds: type | tuple[type, ...]) -> None:
        if not isinstance(target, kinds):
            raise untrusted(f"puts items into {name_of(target)}")

    def _bytes(self) -> None:
        """Read a bytearray; Python's own would first allocate whatever length stands there."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _refuse(self) -> NoReturn:
        raise untrusted("makes objects in an old, foreign or private way")

    dispatch.update(
        {
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _make,
            pickle.BUILD[0]: _build,
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _extend,
            pickle.ADDITEMS[0]: _add_items,
            pickle.BYTEARRAY8[0]: _bytes,
        }
    )
    for _opcode in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.DUP, pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_opcode[0]] = _refuse
