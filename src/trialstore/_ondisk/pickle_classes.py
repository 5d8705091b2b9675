"""What a pickle may name, call and make: a table, and reconstructors that check their arguments.

The machine that runs pickles, and why it needs all three, is in `pickles`.
"""

from __future__ import annotations

import importlib
import math
import zoneinfo
from enum import Flag, auto
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import StorageError, UntrustedPickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray


def name_of(used: object) -> str:
    """Name something by its class or function: its own repr may be hostile, or fail half made."""
    kind = used if isinstance(used, (type, FunctionType, BuiltinFunctionType)) else type(used)
    return repr(f"{kind.__module__}.{kind.__qualname__}")


def untrusted(what: str) -> UntrustedPickle:
    """Make the error for a pickle that does `what`."""
    return UntrustedPickle(
        f"{what}, which is not plain data; trusted=True loads it if you know who wrote it"
    )


# --- objects before they have their state ------------------------------------------------------


class Unfinished:
    """Stands for an object until its state comes.

    Those of pandas that are written in C read memory that is not theirs when anything looks at them
    before; this can be handed to whatever the pickle calls.
    """

    __slots__ = ("key", "make")

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.key: int | None = None  # where the pickle remembers it


def needs_state(kind: type) -> bool:
    """Tell whether a class that may be made needs its state before anything else."""
    return not kind.__name__.endswith("Dtype")  # a dtype of pandas may have none to be given


def _nd_array_backed(kind: type, checksum: int, state: None) -> Unfinished:
    return _without_state("pandas._libs.arrays", "NDArrayBacked", kind, checksum, state)


def _interval_mixin(kind: type, checksum: int, state: None) -> Unfinished:
    return _without_state("pandas._libs.interval", "IntervalMixin", kind, checksum, state)


def _without_state(module: str, name: str, kind: type, checksum: int, state: None) -> Unfinished:
    if state is not None:
        raise TypeError("not the beginning of a pandas array")
    make = _find(module, f"__pyx_unpickle_{name}")
    return Unfinished(lambda: make(kind, checksum, None))


# --- reconstructors that check ---------------------------------------------------------------

#: NumPy's own, wherever this version keeps them.
_NUMPY_RECONSTRUCT: Final[Any] = np.zeros(0).__reduce__()[0]
_NUMPY_SCALAR: Final[Any] = np.float64().__reduce__()[0]

_ALIGNED_STRUCT: Final = 0x80  # numpy/ndarraytypes.h, NPY_ALIGNED_STRUCT


def _dtype(spec: str | type[np.record], _align: object = None, _copy: object = None) -> Unfinished:
    """Begin a dtype; what it lacks comes with its state."""
    if spec is not np.record and not isinstance(spec, str):
        raise TypeError("not the name of a dtype")
    dtype: np.dtype[Any] = np.dtype(spec)
    if dtype.kind not in "?biufcmMSUVO":
        raise TypeError("not a dtype of plain data")
    return Unfinished(lambda: dtype)


def dtype_with_state(blank: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    """Make the dtype that ``blank.__setstate__(state)`` would be, by constructors that check."""
    # __setstate__ believes offsets, sizes and flags, and changes dtypes that arrays already use.
    if not isinstance(state, tuple):
        raise TypeError("not the state of a dtype")
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


def check_array_state(array: NDArray[Any], state: tuple[Any, ...]) -> None:
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
        raise untrusted(f"looks up an attribute of {name_of(owner)}")
    return zone


def zone(key: str, _: object = None) -> zoneinfo.ZoneInfo:
    """Make a time zone, as ``ZoneInfo._unpickle`` does."""
    return zoneinfo.ZoneInfo(key)


def _not_a_time(_: object = None) -> Any:
    return _find("pandas", "NaT")


def _new_index(kind: type, arguments: dict[str, Any]) -> Any:
    if not issubclass(kind, _find("pandas", "Index")):
        raise TypeError("not a pandas index")
    index = _find("pandas.core.indexes.base", "_new_Index")(kind, arguments)
    if hasattr(index, "codes") and hasattr(index, "levels"):
        check_codes(zip(index.codes, index.levels, strict=True))
    return index


def check_codes(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Refuse codes that point outside what they stand for; pandas looks them up unchecked."""
    for codes, values in pairs:
        if len(codes) and not -1 <= min(codes) <= max(codes) < len(values):
            raise ValueError("codes outside their categories")


def _block_manager(blocks: tuple[Any, ...], axes: list[Any]) -> Any:
    block, index = _find("pandas.core.internals.blocks", "Block"), _find("pandas", "Index")
    if not all(isinstance(b, block) for b in blocks) or not all(isinstance(a, index) for a in axes):
        raise TypeError("not the blocks and axes of a frame")
    return _find("pandas.core.internals.managers", "BlockManager")(tuple(blocks), list(axes))


def check_finished(target: Any) -> None:
    """Refuse what pandas would look up unchecked."""
    kind = type(target).__name__
    if kind == "Categorical":
        check_codes([(target.codes, target.categories)])
    elif kind == "SingleBlockManager":
        (block,), (axis,) = target.blocks, target.axes
        if block.shape != (len(axis),):
            raise ValueError("a series longer or shorter than its index")


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


class Use(Flag):
    """What a pickle may do with something it names."""

    NAME = auto()  # hand it to others: the factory of a defaultdict, the class of an index
    CALL = auto()
    MAKE = auto()  # make an empty one with ``__new__``, and give it its state


_TABLE: Final = (
    (Use.NAME, "builtins", "bool bytes dict float int list str tuple"),
    (Use.CALL, "builtins", "complex frozenset range set slice"),
    (Use.CALL, "collections", "Counter OrderedDict defaultdict deque"),
    (Use.CALL, "datetime", "date datetime time timedelta timezone"),
    (Use.CALL, "decimal", "Decimal"),
    (Use.MAKE, "uuid", "UUID"),
    (Use.NAME, "zoneinfo", "ZoneInfo"),
    (Use.CALL, "pytz", "_UTC _p"),
    (Use.NAME, "numpy", "ndarray record recarray bool bool_ str_ bytes_ datetime64 timedelta64"),
    (Use.NAME, "numpy", "int8 int16 int32 int64 uint8 uint16 uint32 uint64"),
    (Use.NAME, "numpy", "float16 float32 float64 complex64 complex128"),
    (Use.CALL, "pandas._libs.internals", "_unpickle_block"),
    (Use.CALL, "pandas._libs.interval", "Interval"),
    (Use.NAME, "pandas._libs.missing", "NA"),
    (Use.CALL, "pandas._libs.sparse", "BlockIndex IntIndex"),
    (Use.CALL, "pandas._libs.tslibs.offsets", "Day Hour Minute Second Milli Micro Nano Week"),
    (Use.CALL, "pandas._libs.tslibs.offsets", "BusinessDay MonthBegin MonthEnd QuarterBegin"),
    (Use.CALL, "pandas._libs.tslibs.offsets", "QuarterEnd YearBegin YearEnd"),
    (Use.CALL, "pandas._libs.tslibs.period", "Period"),
    (Use.CALL, "pandas._libs.tslibs.timedeltas", "_timedelta_unpickle"),
    (Use.CALL, "pandas._libs.tslibs.timestamps", "_unpickle_timestamp"),
    (Use.MAKE, "pandas.core.arrays.boolean", "BooleanArray BooleanDtype"),
    (Use.MAKE, "pandas.core.arrays.categorical", "Categorical"),
    (Use.MAKE, "pandas.core.arrays.datetimes", "DatetimeArray"),
    (Use.MAKE, "pandas.core.arrays.floating", "FloatingArray Float32Dtype Float64Dtype"),
    (Use.MAKE, "pandas.core.arrays.integer", "IntegerArray Int8Dtype Int16Dtype Int32Dtype"),
    (Use.MAKE, "pandas.core.arrays.integer", "Int64Dtype UInt8Dtype UInt16Dtype UInt32Dtype"),
    (Use.MAKE, "pandas.core.arrays.integer", "UInt64Dtype"),
    (Use.MAKE, "pandas.core.arrays.interval", "IntervalArray"),
    (Use.MAKE, "pandas.core.arrays.period", "PeriodArray"),
    (Use.MAKE, "pandas.core.arrays.sparse.array", "SparseArray"),
    (Use.MAKE, "pandas.core.arrays.string_", "StringArray"),
    (Use.MAKE | Use.CALL, "pandas.core.arrays.string_", "StringDtype"),
    (Use.MAKE, "pandas.core.arrays.string_arrow", "ArrowStringArray"),
    (Use.MAKE, "pandas.core.arrays.timedeltas", "TimedeltaArray"),
    (Use.CALL, "pandas.core.dtypes.dtypes", "PeriodDtype"),
    (Use.MAKE, "pandas.core.dtypes.dtypes", "CategoricalDtype DatetimeTZDtype IntervalDtype"),
    (Use.MAKE, "pandas.core.dtypes.dtypes", "SparseDtype"),
    (Use.MAKE, "pandas.core.frame", "DataFrame"),
    (Use.NAME, "pandas.core.indexes.base", "Index"),
    (Use.NAME, "pandas.core.indexes.category", "CategoricalIndex"),
    (Use.NAME, "pandas.core.indexes.datetimes", "DatetimeIndex"),
    (Use.CALL, "pandas.core.indexes.datetimes", "_new_DatetimeIndex"),
    (Use.NAME, "pandas.core.indexes.interval", "IntervalIndex"),
    (Use.CALL, "pandas.core.indexes.interval", "_new_IntervalIndex"),
    (Use.NAME, "pandas.core.indexes.multi", "MultiIndex"),
    (Use.NAME, "pandas.core.indexes.period", "PeriodIndex"),
    (Use.NAME, "pandas.core.indexes.range", "RangeIndex"),
    (Use.NAME, "pandas.core.indexes.timedeltas", "TimedeltaIndex"),
    (Use.CALL, "pandas.core.indexes.timedeltas", "_new_TimedeltaIndex"),
    (Use.MAKE, "pandas.core.internals.managers", "SingleBlockManager"),
    (Use.MAKE, "pandas.core.series", "Series"),
    (Use.CALL, "pyarrow.lib", "type_for_alias"),
)


def _allowed() -> Iterator[tuple[tuple[str, str], Use]]:
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
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): _nd_array_backed,
    ("pandas._libs.interval", "__pyx_unpickle_IntervalMixin"): _interval_mixin,
    ("pandas._libs.tslibs.nattype", "__nat_unpickle"): _not_a_time,
    ("pandas._libs.tslibs.nattype", "_nat_unpickle"): _not_a_time,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.internals.managers", "BlockManager"): _block_manager,
    ("pyarrow.lib", "_restore_array"): _arrow_array,
    ("pyarrow.lib", "py_buffer"): _arrow_buffer,
}

#: The same objects whichever version is installed.
_RENAMED: Final = {
    ("numpy.rec", "recarray"): ("numpy", "recarray"),
    ("numpy.core.records", "recarray"): ("numpy", "recarray"),
}


def look_up(module: str, name: str) -> tuple[Any, Use]:
    """Return what a pickle gets for a name and how it may use it, or raise UntrustedPickle."""
    if (module, name) in _REPLACED:
        return _REPLACED[module, name], Use.CALL
    module, name = _RENAMED.get((module, name), (module, name))
    use = _ALLOWED.get((module, name))
    if use is None:
        raise untrusted(f"needs {f'{module}.{name}'!r:.160}")
    return _find(module, name), use


def _find(module: str, name: str) -> Any:
    """Import something; pandas is loaded only by a pickle that needs it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise StorageError(f"needs {module}.{name}, which is not installed here") from error
