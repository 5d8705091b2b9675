"""Pickles: writing any, reading those that hold plain data without running anything else.

A pickle is a program. `loads` runs it on a machine that knows only what containers, NumPy and
pandas objects are made of; all else raises `UntrustedPickle`. A list of allowed classes alone is
not enough, because the opcodes can call what is on the list with anything, and can change finished
objects, classes and functions. Therefore:

* names are compared whole, so that nothing is reached through a dot;
* what may be called, what may be made with ``__new__`` and what may only be named are three lists;
* items are put into plain containers only, and state only into objects that the pickle has made;
* reconstructors that would take a hostile argument (a dtype whose fields lie outside its items, an
  index with codes beyond its levels) are replaced by ones that check.

This keeps a pickle from running code. It is no proof that pandas cannot be made to raise, or to
need much memory, by tables that nobody ever wrote.
"""

from __future__ import annotations

import importlib
import io
import math
import pickle
import struct
import zoneinfo
from collections import deque
from enum import Flag, auto
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import numpy as np

from trialstore._errors import DamagedData, InvalidTrial, StorageError, UntrustedPickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

#: The newest that every supported Python reads; the default of a newer Python may not be.
PROTOCOL: Final = 5


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
        If it is cut short, is no pickle, or comes from a pandas too new for this one.
    StorageError
        If it needs a class that is not installed.
    """
    stream = io.BytesIO(data)
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


# --- reconstructors that check ---------------------------------------------------------------

#: NumPy's own, wherever this version keeps them.
_NUMPY_RECONSTRUCT: Final[Any] = np.zeros(0).__reduce__()[0]
_NUMPY_SCALAR: Final[Any] = np.float64().__reduce__()[0]

_ALIGNED_STRUCT: Final = 0x80  # numpy/ndarraytypes.h, NPY_ALIGNED_STRUCT


def _dtype(
    spec: str | type[np.record], _align: object = None, _copy: object = None
) -> np.dtype[Any]:
    """Make a dtype that is nobody else's; what it lacks comes with its state."""
    if spec is not np.record and not isinstance(spec, str):
        raise TypeError("not the name of a dtype")
    dtype: np.dtype[Any] = np.dtype(spec)
    if dtype.kind not in "?biufcmMSUVO":
        raise TypeError("not a dtype of plain data")
    return dtype


def _dtype_with_state(blank: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    """Make the dtype that ``blank.__setstate__(state)`` would be, by constructors that check."""
    # __setstate__ believes offsets, sizes and flags, and changes dtypes that arrays already use.
    _, order, base, names, fields, itemsize, _, flags, *metadata = state
    if base is not None:
        item, shape = base
        if not isinstance(item, np.dtype):
            raise TypeError("not the item of an array dtype")
        return np.dtype((item, tuple(int(size) for size in shape)))
    if names is not None:
        described = {
            "names": list(names),
            "formats": [fields[name][0] for name in names],
            "offsets": [fields[name][1] for name in names],
            "titles": [next(iter(fields[name][2:]), None) for name in names],
            "itemsize": itemsize,
        }
        aligned = bool(flags & _ALIGNED_STRUCT)
        dtype: np.dtype[Any] = np.dtype(described, align=aligned)  # type: ignore[call-overload]
        return np.dtype((np.record, dtype)) if blank.type is np.record else dtype
    if blank.kind in "mM":
        unit, number, *_ = metadata[0][1]
        unit = unit.decode() if isinstance(unit, bytes) else unit
        if unit != "generic":
            blank = np.dtype(f"{blank.kind}8[{number:d}{unit}]")
    return blank.newbyteorder(order) if order in "<>" else blank


def _reconstruct(kind: type, shape: tuple[int, ...], _: object) -> NDArray[Any]:
    if kind not in (np.ndarray, np.recarray) or shape != (0,):
        raise TypeError("not the beginning of a NumPy array")
    array: NDArray[Any] = _NUMPY_RECONSTRUCT(kind, (0,), b"b")
    return array


def _check_array_state(array: NDArray[Any], state: tuple[Any, ...]) -> None:
    """Refuse what would free memory in use, or allocate more than the pickle holds."""
    _, shape, dtype, _, content = state
    count = math.prod(shape)
    expected = count if isinstance(content, list) else count * dtype.itemsize
    if array.size or len(content) != expected:
        raise ValueError("not the state of a new NumPy array")


def _from_buffer(
    buffer: object,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    order: Any,
    axes: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    if not isinstance(buffer, (bytes, bytearray)) or dtype.hasobject:
        raise TypeError("not the bytes of a NumPy array")
    array = np.frombuffer(buffer, dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(dtype: np.dtype[Any], content: Any) -> Any:
    if isinstance(content, bytes) and not dtype.hasobject:
        return _NUMPY_SCALAR(dtype, content)
    if not isinstance(content, np.ndarray) or content.dtype != dtype or content.size != 1:
        raise TypeError("not a NumPy scalar")
    return content.reshape(())[()]


def _bytearray(content: bytes = b"") -> bytearray:
    if not isinstance(content, bytes):
        raise TypeError("a bytearray of a given length is no data")
    return bytearray(content)


def _fraction(numerator: int, denominator: int) -> Fraction:
    """From text, ``"1e999999999"`` would take days."""
    return Fraction(numerator, denominator)


def _getattr(owner: object, name: str) -> Callable[..., Any]:
    """The one attribute that plain data needs: how a ``ZoneInfo`` is made."""
    if owner is not zoneinfo.ZoneInfo or name != "_unpickle":
        raise _untrusted(f"looks up an attribute of {_name_of(owner)}")
    return _zone


def _zone(key: str, _: object = None) -> zoneinfo.ZoneInfo:
    return zoneinfo.ZoneInfo(key)


def _not_a_time(_: object = None) -> Any:
    return _find("pandas", "NaT")


def _new_index(kind: type, arguments: dict[str, Any]) -> Any:
    if not issubclass(kind, _find("pandas", "Index")):
        raise TypeError("not a pandas index")
    index = _find("pandas.core.indexes.base", "_new_Index")(kind, arguments)
    if hasattr(index, "codes") and hasattr(index, "levels"):
        _check_codes(zip(index.codes, index.levels, strict=True))
    return index


def _check_codes(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Refuse codes that point outside what they stand for; pandas looks them up unchecked."""
    for codes, values in pairs:
        if len(codes) and not -1 <= min(codes) <= max(codes) < len(values):
            raise ValueError("codes outside their categories")


def _arrow_buffer(content: bytes | bytearray) -> Any:
    return _find("pyarrow", "py_buffer")(bytes(content))


def _arrow_array(state: tuple[Any, ...]) -> Any:
    """Make an array of a pandas string column, checked by pyarrow to the last offset."""
    kind, length, _, offset, buffers, children, dictionary = state
    if children or dictionary is not None:
        raise TypeError("not a plain Arrow array")
    array = _find("pyarrow", "Array").from_buffers(kind, length, buffers, -1, offset)
    array.validate(full=True)
    return array


# --- what is allowed -------------------------------------------------------------------------


class _Use(Flag):
    """What a pickle may do with something it names."""

    NAME = auto()  # hand it to others: the factory of a defaultdict, the class of an index
    CALL = auto()
    MAKE = auto()  # make an empty one with ``__new__``, and give it its state


_TABLE: Final = (
    (_Use.NAME, "builtins", "bool bytes dict float int list str tuple"),
    (_Use.CALL, "builtins", "complex frozenset range set slice"),
    (_Use.CALL, "collections", "Counter OrderedDict defaultdict deque"),
    (_Use.CALL, "datetime", "date datetime time timedelta timezone"),
    (_Use.CALL, "decimal", "Decimal"),
    (_Use.MAKE, "uuid", "UUID"),
    (_Use.NAME, "zoneinfo", "ZoneInfo"),
    (_Use.CALL, "pytz", "_UTC _p"),
    (_Use.NAME, "numpy", "ndarray record recarray bool bool_ str_ bytes_ datetime64 timedelta64"),
    (_Use.NAME, "numpy", "int8 int16 int32 int64 uint8 uint16 uint32 uint64"),
    (_Use.NAME, "numpy", "float16 float32 float64 complex64 complex128"),
    (_Use.CALL, "pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),
    (_Use.CALL, "pandas._libs.internals", "_unpickle_block"),
    (_Use.CALL, "pandas._libs.interval", "Interval __pyx_unpickle_IntervalMixin"),
    (_Use.NAME, "pandas._libs.missing", "NA"),
    (_Use.CALL, "pandas._libs.sparse", "BlockIndex IntIndex"),
    (_Use.CALL, "pandas._libs.tslibs.offsets", "Day Hour Minute Second Milli Micro Nano Week"),
    (_Use.CALL, "pandas._libs.tslibs.offsets", "BusinessDay MonthBegin MonthEnd QuarterBegin"),
    (_Use.CALL, "pandas._libs.tslibs.offsets", "QuarterEnd YearBegin YearEnd"),
    (_Use.CALL, "pandas._libs.tslibs.period", "Period"),
    (_Use.CALL, "pandas._libs.tslibs.timedeltas", "_timedelta_unpickle"),
    (_Use.CALL, "pandas._libs.tslibs.timestamps", "_unpickle_timestamp"),
    (_Use.MAKE, "pandas.core.arrays.boolean", "BooleanArray BooleanDtype"),
    (_Use.MAKE, "pandas.core.arrays.categorical", "Categorical"),
    (_Use.MAKE, "pandas.core.arrays.datetimes", "DatetimeArray"),
    (_Use.MAKE, "pandas.core.arrays.floating", "FloatingArray Float32Dtype Float64Dtype"),
    (_Use.MAKE, "pandas.core.arrays.integer", "IntegerArray Int8Dtype Int16Dtype Int32Dtype"),
    (_Use.MAKE, "pandas.core.arrays.integer", "Int64Dtype UInt8Dtype UInt16Dtype UInt32Dtype"),
    (_Use.MAKE, "pandas.core.arrays.integer", "UInt64Dtype"),
    (_Use.MAKE, "pandas.core.arrays.interval", "IntervalArray"),
    (_Use.MAKE, "pandas.core.arrays.period", "PeriodArray"),
    (_Use.MAKE, "pandas.core.arrays.sparse.array", "SparseArray"),
    (_Use.MAKE, "pandas.core.arrays.string_", "StringArray"),
    (_Use.MAKE | _Use.CALL, "pandas.core.arrays.string_", "StringDtype"),
    (_Use.MAKE, "pandas.core.arrays.string_arrow", "ArrowStringArray"),
    (_Use.MAKE, "pandas.core.arrays.timedeltas", "TimedeltaArray"),
    (_Use.CALL, "pandas.core.dtypes.dtypes", "PeriodDtype"),
    (_Use.MAKE, "pandas.core.dtypes.dtypes", "CategoricalDtype DatetimeTZDtype IntervalDtype"),
    (_Use.MAKE, "pandas.core.dtypes.dtypes", "SparseDtype"),
    (_Use.MAKE, "pandas.core.frame", "DataFrame"),
    (_Use.NAME, "pandas.core.indexes.base", "Index"),
    (_Use.NAME, "pandas.core.indexes.category", "CategoricalIndex"),
    (_Use.NAME, "pandas.core.indexes.datetimes", "DatetimeIndex"),
    (_Use.CALL, "pandas.core.indexes.datetimes", "_new_DatetimeIndex"),
    (_Use.NAME, "pandas.core.indexes.interval", "IntervalIndex"),
    (_Use.CALL, "pandas.core.indexes.interval", "_new_IntervalIndex"),
    (_Use.NAME, "pandas.core.indexes.multi", "MultiIndex"),
    (_Use.NAME, "pandas.core.indexes.period", "PeriodIndex"),
    (_Use.NAME, "pandas.core.indexes.range", "RangeIndex"),
    (_Use.NAME, "pandas.core.indexes.timedeltas", "TimedeltaIndex"),
    (_Use.CALL, "pandas.core.indexes.timedeltas", "_new_TimedeltaIndex"),
    (_Use.CALL, "pandas.core.internals.managers", "BlockManager"),
    (_Use.MAKE, "pandas.core.internals.managers", "SingleBlockManager"),
    (_Use.MAKE, "pandas.core.series", "Series"),
    (_Use.CALL, "pyarrow.lib", "type_for_alias"),
)


def _allowed() -> Iterator[tuple[tuple[str, str], _Use]]:
    for use, module, names in _TABLE:
        for name in names.split():
            yield (module, name), use
            if module.startswith("pandas.") and not name.startswith("_"):
                # pandas 3 pickles what is public by its public name.
                yield ("pandas.arrays" if name.endswith("Array") else "pandas", name), use


_ALLOWED: Final = dict(_allowed())

#: NumPy 1 has ``core`` where NumPy 2 has ``_core``.
_REPLACED: Final[dict[tuple[str, str], Any]] = {
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "getattr"): _getattr,
    ("fractions", "Fraction"): _fraction,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("pandas._libs.tslibs.nattype", "__nat_unpickle"): _not_a_time,
    ("pandas._libs.tslibs.nattype", "_nat_unpickle"): _not_a_time,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pyarrow.lib", "_restore_array"): _arrow_array,
    ("pyarrow.lib", "py_buffer"): _arrow_buffer,
}

#: The same objects whichever version is installed.
_RENAMED: Final = {
    ("numpy.rec", "recarray"): ("numpy", "recarray"),
    ("numpy.core.records", "recarray"): ("numpy", "recarray"),
}


def _find(module: str, name: str) -> Any:
    """Import something; pandas is loaded only by a pickle that needs it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise StorageError(f"needs {module}.{name}, which is not installed here") from error


def _name_of(used: object) -> str:
    """Name something by its class or function: its own repr may be hostile, or fail half made."""
    kind = used if isinstance(used, (type, FunctionType, BuiltinFunctionType)) else type(used)
    return repr(f"{kind.__module__}.{kind.__qualname__}")


def _untrusted(what: str) -> UntrustedPickle:
    return UntrustedPickle(
        f"{what}, which is not plain data; trusted=True loads it if you know who wrote it"
    )


# --- the machine -----------------------------------------------------------------------------

_OPCODES: Final[dict[int, Callable[[Any], None]]] = pickle._Unpickler.dispatch  # noqa: SLF001


class _PlainUnpickler(pickle._Unpickler):  # noqa: SLF001
    """Python's own unpickler with a lock on every opcode that names, calls or changes objects.

    The one in Python, because the one in C asks only about names.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_OPCODES)
    stack: list[Any]
    metastack: list[list[Any]]
    memo: dict[int, Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._uses = {id(function): _Use.CALL for function in (*_REPLACED.values(), _zone)}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REPLACED:
            return _REPLACED[module, name]
        module, name = _RENAMED.get((module, name), (module, name))
        use = _ALLOWED.get((module, name))
        if use is None:
            raise _untrusted(f"needs {f'{module}.{name}'!r:.160}")
        found = _find(module, name)
        # Everything found belongs to a module, so it lives on and its id stays its own.
        self._uses[id(found)] = use
        return found

    def _check(self, used: object, use: _Use) -> None:
        if use not in self._uses.get(id(used), _Use(0)):
            raise _untrusted(f"makes, calls or changes {_name_of(used)}")

    def _reduce(self) -> None:
        function, arguments = self.stack[-2:]
        self._check(function, _Use.CALL)
        if not isinstance(arguments, tuple) or any(isinstance(arg, range) for arg in arguments):
            # A range of a trillion is a few bytes here and a full memory in whatever is made of it.
            raise _untrusted(f"calls {_name_of(function)} with a range")
        _OPCODES[pickle.REDUCE[0]](self)

    def _make(self) -> None:
        self._check(self.stack[-2], _Use.MAKE)
        _OPCODES[pickle.NEWOBJ[0]](self)

    def _build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, np.dtype):
            self.stack.pop()
            self._replace_last(target, _dtype_with_state(target, state))
            return
        if isinstance(target, np.ndarray):
            _check_array_state(target, state)
        else:
            self._check(type(target), _Use.MAKE)
        _OPCODES[pickle.BUILD[0]](self)
        if type(target).__name__ == "Categorical":
            _check_codes([(target.codes, target.categories)])

    def _replace_last(self, old: object, new: object) -> None:
        """Put a finished dtype where the blank one was; others that use the blank keep it."""
        self.stack[-1] = new
        for key in reversed(self.memo):
            if self.memo[key] is old:
                self.memo[key] = new
                return

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
            raise _untrusted(f"puts items into {_name_of(target)}")

    def _bytes(self) -> None:
        """Read a bytearray; Python's own would first allocate whatever length stands there."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _refuse(self) -> NoReturn:
        raise _untrusted("makes objects in an old, foreign or private way")

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
        *(pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_opcode[0]] = _refuse
