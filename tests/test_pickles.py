"""Pickles: what plain data looks like, and what must never come to life."""

from __future__ import annotations

import collections
import copyreg
import datetime
import decimal
import fractions
import os
import pickle
import struct
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialstore import _errors
from trialstore._ondisk import pickles

PATH = Path("p0") / "reach" / "ica.pkl"


def load(data: bytes, *, trusted: bool = False) -> Any:
    return pickles.loads(data, trusted=trusted, path=PATH)


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, through pandas' own comparisons where there are such."""
    assert type(a) is type(b)
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif isinstance(a, pd.Series):
        pd.testing.assert_series_equal(a, b)
    elif isinstance(a, pd.Index):
        pd.testing.assert_index_equal(a, b, exact=True)
    elif isinstance(a, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.shape == b.shape
        # NumPy itself brings foreign byte order home when it reads the older protocols.
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        np.testing.assert_array_equal(a, b)
    elif a is pd.NaT or a is pd.NA:
        assert a is b
    else:
        assert a == b
    return True


DAYS = pd.date_range("2020-03-28", periods=3)

PLAIN: dict[str, Any] = {
    "nested": {"a": [1, 2.5, None, True, "x", b"y", 1 << 100], (1, 2): ({3}, frozenset([4]))},
    "complex": 1 + 2j,
    "range": range(1, 9, 2),
    "slice": slice(1, None, 3),
    "bytearray": bytearray(b"abc"),
    "ordered": collections.OrderedDict(b=1, a=2),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("banana"),
    "deque": collections.deque([1, 2], maxlen=3),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=7),
    "date": datetime.date(2020, 1, 2),
    "time": datetime.time(1, 2, 3, 4),
    "timedelta": datetime.timedelta(days=1, microseconds=5),
    "utc": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "zone": datetime.datetime(2020, 7, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "array": np.arange(24.0).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(10)[::3],
    "big endian": np.arange(3, dtype=">i4"),
    "zero dimensions": np.array(1.5),
    "no elements": np.zeros((0, 3), "f4"),
    "objects": np.array([1, "a", None, [2]], object),
    "objects in fields": np.array([(1, "a")], [("n", "i4"), ("o", "O")]),
    "structured": np.ones(2, [("a", "f4"), ("b", [("c", ">i8")])]),
    "aligned": np.ones(2, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "subarrays": np.ones(2, [("a", "f4", (2, 3))]),
    "unicode": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "dates": np.array(["2020", "NaT"], "M8[3ms]"),
    "records": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "float64": np.float64(1.5),
    "bool": np.True_,
    "str_": np.str_("x"),
    "datetime64": np.datetime64("2020-01-02", "ns"),
    "void": np.ones(1, [("a", "f4")])[0],
    "object void": np.array([(1, "a")], [("n", "i4"), ("o", "O")])[0],
    "dtype": np.dtype([("a", ">f4"), ("b", "S3")]),
    "titles": np.dtype({"names": ["a"], "formats": ["f4"], "titles": ["A"]}),
    "type": np.float64,
    "frame": pd.DataFrame(
        {
            "i": [1, 2, 3],
            "f": [1.5, None, 3],
            "s": ["x", "y", None],
            "o": [1, "a", None],
            "c": pd.Categorical(["u", "v", None], ["v", "u"], ordered=True),
            "t": DAYS,
            "tz": DAYS.tz_localize("Europe/Berlin"),
            "utc": DAYS.tz_localize("UTC"),
            "td": pd.to_timedelta([1, 2, 3], unit="s"),
            "I": pd.array([1, None, 3], "Int64"),
            "B": pd.array([True, None, False], "boolean"),
            "F": pd.array([1.0, None, 2.0], "Float32"),
            "S": pd.array(["a", None, "c"], "string"),
            "p": pd.period_range("2020", periods=3, freq="M"),
            "v": pd.interval_range(0, 3),
            "sp": pd.arrays.SparseArray([0, 0, 1]),
        }
    ),
    "empty frame": pd.DataFrame(),
    "multiindex": pd.DataFrame(
        np.arange(8.0).reshape(2, 4),
        columns=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", None]),
        index=pd.Index(["p", "q"], name="rows"),
    ),
    "series": pd.Series([1, 2], name="n", index=DAYS[:2]),
    "categorical": pd.Categorical(["a", "b", "a"]),
    "categorical index": pd.CategoricalIndex(["a", "b"]),
    "range index": pd.RangeIndex(3, name="n"),
    "string index": pd.Index(["a", "b"]),
    "datetime index": DAYS.tz_localize("Europe/Berlin"),
    "timedelta index": pd.to_timedelta([1, 2], unit="h"),
    "period index": pd.period_range("2020", periods=3, freq="D"),
    "interval index": pd.interval_range(0, 3),
    "timestamp": pd.Timestamp("2020-01-02 03:04", tz="Europe/Berlin"),
    "timedelta_": pd.Timedelta("1h"),
    "period": pd.Period("2020-01", "M"),
    "interval": pd.Interval(0, 1, closed="left"),
    "NaT": pd.NaT,
    "NA": pd.NA,
    "offset": pd.offsets.MonthEnd(2),
    "pandas dtypes": [
        *(pd.Int64Dtype(), pd.CategoricalDtype(["a"]), pd.StringDtype(), pd.PeriodDtype("D")),
        *(pd.DatetimeTZDtype("ns", "UTC"), pd.IntervalDtype("int64"), pd.BooleanDtype()),
    ],
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_data_comes_back_whoever_wrote_it(name: str, protocol: int) -> None:
    """Containers, dates, NumPy and pandas objects need no trust, in any protocol of Python 3."""
    assert same(PLAIN[name], load(pickle.dumps(PLAIN[name], protocol)))


@pytest.mark.parametrize("name", PLAIN)
def test_our_own_pickles_come_back(name: str) -> None:
    """What `dumps` writes, `loads` reads, trusted or not, and any Python reads without us."""
    data = pickles.dumps(PLAIN[name])
    assert same(PLAIN[name], load(data))
    assert same(PLAIN[name], load(data, trusted=True))
    assert same(PLAIN[name], pickle.loads(data))


def test_what_is_shared_stays_shared() -> None:
    """Two references to one object are one object again, cycles included."""
    inner = [np.arange(2)]
    cycle: list[Any] = [inner, inner]
    cycle.append(cycle)
    loaded = load(pickles.dumps(cycle))
    assert loaded[0] is loaded[1]
    assert loaded[2] is loaded
    dtype = np.dtype([("a", "M8[ns]")])
    first, second = load(pickles.dumps([np.zeros(1, dtype), np.zeros(2, dtype)]))
    assert first.dtype == second.dtype == dtype


def test_a_loaded_array_may_be_written_to() -> None:
    """An array that could be written to when it was pickled can be again."""
    array = load(pickles.dumps(np.zeros(3)))
    array += 1
    assert array.tolist() == [1, 1, 1]


# --- what must not come to life ----------------------------------------------------------------


class Own:
    """A class of the experiment's own."""


class Evil:
    """Runs a function of anybody's choice when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_the_lab_s_own_class_needs_trust() -> None:
    """The refusal names class and file and says how to load it all the same."""
    data = pickles.dumps([Own()])
    with pytest.raises(_errors.UntrustedPickle, match=r"ica\.pkl.*\.Own'.*trusted=True"):
        load(data)
    assert type(load(data, trusted=True)[0]) is Own


def op(*parts: bytes) -> bytes:
    """Assemble a pickle by hand."""
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """STACK_GLOBAL: the name comes from the stack, where a scan for GLOBAL does not see it."""
    return text(module) + text(name) + b"\x93"


def value(obj: Any) -> bytes:
    """The opcodes that put `obj` on the stack."""
    return pickle.dumps(obj, 4)[2:-1].partition(b"\x95")[2][8:] or pickle.dumps(obj, 4)[2:-1]


FORBIDDEN = [
    *[("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen")],
    *[("builtins", name) for name in ("eval", "exec", "open", "__import__", "compile", "type")],
    *[("builtins", name) for name in ("setattr", "vars", "map", "memoryview", "super", "input")],
    *[("__builtin__", "eval"), ("builtins", "object.__subclasses__"), ("builtins", "print")],
    *[("pandas", "read_pickle"), ("pandas", "eval"), ("pandas", "io.common.os.system")],
    *[("pandas", "DataFrame.query"), ("pandas", "DataFrame.to_pickle"), ("pandas", "read_csv")],
    *[("pandas.core.frame", "sys.modules"), ("pandas.core.computation.eval", "eval")],
    *[("numpy", "load"), ("numpy", "save"), ("numpy", "fromfile"), ("numpy", "memmap")],
    *[("numpy", "ctypeslib"), ("numpy", "f2py"), ("numpy.f2py", "compile"), ("numpy", "os")],
    *[("numpy.testing", "rundocs"), ("numpy.testing._private.utils", "runstring")],
    *[("numpy", "testing.measure"), ("numpy", "lib.npyio.os.system"), ("numpy", "vectorize")],
    *[("numpy.core.multiarray", "fromfile"), ("numpy", "random"), ("numpy.random", "Generator")],
    *[("numpy.random._pickle", "__generator_ctor"), ("numpy", "frompyfunc")],
    *[("copyreg", "_reconstructor"), ("copyreg", "add_extension"), ("functools", "partial")],
    *[("operator", "attrgetter"), ("operator", "methodcaller"), ("importlib", "import_module")],
    *[("pickle", "loads"), ("_pickle", "loads"), ("marshal", "loads"), ("types", "FunctionType")],
    *[("types", "CodeType"), ("ctypes", "CDLL"), ("codecs", "open"), ("_codecs", "encode")],
    *[("collections", "namedtuple"), ("collections", "abc.sys.modules"), ("datetime", "sys")],
    *[("zoneinfo", "ZoneInfo.from_file"), ("zoneinfo", "reset_tzpath"), ("uuid", "os.system")],
    *[("decimal", "setcontext"), ("pytz", "open_resource"), ("pytz", "os"), ("webbrowser", "open")],
    *[("trialstore.design", "Trial"), ("trialstore._ondisk.pickle_classes", "_find"), ("", "")],
]


@pytest.mark.parametrize(("module", "name"), FORBIDDEN)
@pytest.mark.parametrize("spelling", ["STACK_GLOBAL", "GLOBAL", "INST"])
def test_a_forbidden_name_is_refused_by_its_name(module: str, name: str, spelling: str) -> None:
    """Whatever the opcode and however harmless the module, only exact names are found."""
    line = f"{module}\n{name}\n".encode()
    if spelling == "INST":
        with pytest.raises(_errors.UntrustedPickle):
            load(op(b"(", b"i" + line))
        return
    data = op(named(module, name) if spelling == "STACK_GLOBAL" else b"c" + line)
    with pytest.raises(_errors.UntrustedPickle, match=rf"'{module}\.{name}'"):
        load(data)


def test_nothing_is_imported_by_a_refused_pickle() -> None:
    """A refusal comes before the import, whose code would run."""
    with pytest.raises(_errors.UntrustedPickle):
        load(op(named("antigravity", "fly")))
    assert "antigravity" not in __import__("sys").modules


def test_a_hostile_name_cannot_reach_the_terminal() -> None:
    """Names from the pickle are shown by their repr, and not at any length."""
    with pytest.raises(_errors.UntrustedPickle) as caught:
        load(op(named("\x1b[2J\u202e", "x" * 10_000)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapped", ["bare", "list", "object array", "frame"])
def test_code_does_not_run(tmp_path: Path, protocol: int, wrapped: str) -> None:
    """A pickle that creates a file when it is loaded does not create it, wherever it hides."""
    proof = tmp_path / "proof"
    evil: Any = Evil(os.mkdir, str(proof))
    box = np.empty(1, object)
    box[0] = evil
    data = pickle.dumps(
        {"bare": evil, "list": [evil], "object array": box, "frame": pd.DataFrame({"a": box})}[
            wrapped
        ],
        protocol,
    )
    with pytest.raises(_errors.UntrustedPickle):
        load(data)
    assert not proof.exists()
    load(data, trusted=True)
    assert proof.exists()


def test_extension_codes_are_refused_even_when_python_knows_them() -> None:
    """`copyreg`'s codes would fetch a class from a cache without asking for its name."""
    copyreg.add_extension(__name__, "Own", 240)
    try:
        data = pickle.dumps(Own, 2)
        assert b"\x82\xf0" in data
        assert pickle.loads(data) is Own
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            with pytest.raises(_errors.UntrustedPickle):
                load(op(code))
    finally:
        copyreg.remove_extension(__name__, "Own", 240)
        copyreg.clear_extension_cache()


FRAME = named("pandas", "DataFrame")
RECONSTRUCT = named("numpy._core.multiarray", "_reconstruct")
NDARRAY = named("numpy", "ndarray")
DTYPE = named("numpy", "dtype")
BLANK = RECONSTRUCT + NDARRAY + value((0,)) + b"C\x01b" + b"\x87R"
"""An array to be filled, on the stack."""


def dtype(spec: str, *state: bytes) -> bytes:
    """A dtype on the stack, with the state whose opcodes are given."""
    made = DTYPE + value((spec, False, True)) + b"R"
    return made + b"(" + b"".join(state) + b"t" + b"b" if state else made


HOSTILE = {
    "call a class that is only made": FRAME + b")R",
    "make a class that is only called": named("collections", "deque") + b")\x81",
    "make a class that is only named": named("pandas", "MultiIndex") + b")\x81",
    "make an array over any memory": NDARRAY + value((10**9,)) + b"\x85\x81",
    "call with keywords": FRAME + b")}\x92",
    "old style object": b"(" + FRAME + b"o",
    "call something that was made": FRAME + b")\x81)R",
    "call text": text("eval") + b")R",
    "change a class by its state": FRAME + b"N" + value({"sum": 1}) + b"\x86b",
    "change a class by a dictionary": FRAME + value({"sum": 1}) + b"b",
    "change a function": named("pandas._libs.internals", "_unpickle_block") + value({1: 1}) + b"b",
    "change our own function": DTYPE + value({"__defaults__": ()}) + b"b",
    "state for a list": b"]" + value({"append": 1}) + b"b",
    "items of an array": value([1]) + b"0" + BLANK + value(0) + value(1) + b"s",
    "items of a frame": FRAME + b")\x81" + value("a") + value([1]) + b"s",
    "items of a frame, many": FRAME + b")\x81(" + value("a") + value([1]) + b"u",
    "append to a series": named("pandas", "Series") + b")\x81" + value(1) + b"a",
    "append to a series, many": named("pandas", "Series") + b")\x81(" + value(1) + b"e",
    "add to a class": FRAME + b"(" + value(1) + b"\x90",
    "any attribute": named("builtins", "getattr") + FRAME + text("query") + b"\x86R",
    "any attribute of a zone": named("builtins", "getattr")
    + named("zoneinfo", "ZoneInfo")
    + text("from_file")
    + b"\x86R",
    "persistent id": text("a") + b"Q",
    "persistent id as text": b"Pa\n",
    "out of band buffer": b"\x97",
    "read-only buffer": b"C\x01a\x98",
    "a set of a trillion": named("builtins", "set")
    + named("builtins", "range")
    + value((10**12,))
    + b"R\x85R",
    "arguments of a trillion": named("builtins", "set")
    + named("builtins", "range")
    + value((10**12,))
    + b"RR",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_opcodes_cannot_misuse_what_is_allowed(attack: str) -> None:
    """Being on the list does not allow to call, make, change or fill something in any other way."""
    with pytest.raises(_errors.UntrustedPickle):
        load(op(HOSTILE[attack]))
    assert not hasattr(pd.DataFrame.sum, "bit_length")


NONE = b"N"
FIELDS = b"}" + text("a") + dtype("O8") + value(100_000) + b"\x86s"

MALFORMED = {
    "field outside its item": dtype(
        "V8", value(3), text("|"), NONE, value(("a",)), FIELDS, value(8), value(1), value(0)
    ),
    "overlapping objects": dtype(
        *("V8", value(3), text("|"), NONE, value(("a", "b"))),
        b"}(" + text("a") + dtype("O8") + value(0) + b"\x86" + text("b") + dtype("i8") + value(0)
        + b"\x86u",
        *(value(8), value(1), value(0)),
    ),
    "array of no dtype": dtype(
        *("V8", value(3), text("|"), text("O") + value((1,)) + b"\x86"),
        *(NONE, NONE, value(8), value(1), value(0)),
    ),
    "dtype of an unknown kind": dtype("nonsense"),
    "dtype by a class": DTYPE + named("builtins", "list") + b"\x85R",
    "objects from bytes": named("numpy._core.numeric", "_frombuffer")
    + b"(" + value(b"A" * 8) + dtype("O8") + value((1,)) + text("C") + b"tR",
    "a scalar object from bytes": named("numpy._core.multiarray", "scalar")
    + dtype("O8") + value(b"A" * 8) + b"\x86R",
    "a scalar of another dtype": named("numpy._core.multiarray", "scalar")
    + dtype("O8") + dtype("i8") + b"\x86R",
    "an array of another kind": RECONSTRUCT + FRAME + value((0,)) + b"C\x01b\x87R",
    "an array that begins large": RECONSTRUCT + NDARRAY + value((10**12,)) + b"C\x01b\x87R",
    "an array larger than its bytes": BLANK
    + b"(" + value(1) + value((10**12,)) + dtype("f8") + b"\x89" + value(b"") + b"tb",
    "an array larger than its objects": BLANK
    + b"(" + value(1) + value((10**12,)) + dtype("O8") + b"\x89]tb",
    "numbers from objects": BLANK
    + b"(" + value(1) + value((1,)) + dtype("f8") + b"\x89" + value([1]) + b"tb",
    "an array filled twice": BLANK
    + 2 * (b"(" + value(1) + value((1,)) + dtype("u1") + b"\x89" + value(b"a") + b"tb"),
    "a bytearray of a trillion": named("builtins", "bytearray") + value((10**12,)) + b"R",
    "a bytearray longer than the file": b"\x96" + struct.pack("<Q", 10**12) + b"abc",
    "bytes longer than the file": b"\x8e" + struct.pack("<Q", 10**15) + b"abc",
    "an enormous memo": b"Nr\xff\xff\xff\xff0" + b"j\x00\x00\x00\x00",
    "an enormous fraction": named("fractions", "Fraction") + value(("1e999999999",)) + b"R",
    "a zone outside its folder": named("builtins", "getattr")
    + named("zoneinfo", "ZoneInfo") + text("_unpickle") + b"\x86R"
    + value(("../../etc/passwd", True)) + b"R",
    "no index": named("pandas.core.indexes.base", "_new_Index") + NDARRAY + b"}\x86R",
    "codes beyond their levels": b"",
    "codes beyond their categories": b"",
}  # fmt: skip


def hostile_codes(attack: str) -> bytes:
    """A pickle of pandas' own in which a code points outside; pandas would look it up."""
    if attack == "codes beyond their levels":
        index = pd.MultiIndex(
            levels=[["a", "b"], [1, 2]], codes=[[0, 1], [0, 99]], verify_integrity=False
        )
        return pickle.dumps(index, 5)
    codes = pd.Categorical(["a", "b", "a"])
    codes._ndarray[1] = 99
    return pickle.dumps(codes, 5)


@pytest.mark.parametrize("attack", MALFORMED)
def test_a_malformed_array_is_damaged_data(attack: str) -> None:
    """Reconstructors of NumPy and pandas are not given what would let them leave their memory."""
    data = op(MALFORMED[attack]) if MALFORMED[attack] else hostile_codes(attack)
    with pytest.raises((_errors.DamagedData, _errors.UntrustedPickle)):
        load(data)


def test_a_dtype_in_use_cannot_be_changed() -> None:
    """State for a dtype makes another dtype, once, and before anything has used it."""
    state = b"(" + value(3) + text(">") + b"NNN" + value(-1) + value(-1) + value(0) + b"tb"
    made = DTYPE + value(("f8", False, False)) + b"R"
    assert load(op(made + state)) == np.dtype(">f8")
    assert np.dtype("f8").isnative
    used = made + b"q\x63" + BLANK + b"(" + value(1) + value((1,)) + b"h\x63\x89" + value(b"A" * 8)
    with pytest.raises(_errors.UntrustedPickle, match="before it has its state"):
        load(op(used + b"tb" + b"h\x63" + state + b"\x86"))
    with pytest.raises(_errors.UntrustedPickle, match="changes"):
        load(op(made + state + state))


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [False, True])
def test_a_pickle_cut_at_any_byte_is_damaged_data(*, trusted: bool) -> None:
    """Every proper prefix of a pickle raises DamagedData naming the file; none loads."""
    data = pickles.dumps({"a": [1, 2.5, "x"], "b": np.arange(3), "c": pd.Series([1, 2])})
    for length in range(len(data)):
        with pytest.raises(_errors.DamagedData, match=r"ica\.pkl") as caught:
            load(data[:length], trusted=trusted)
        assert caught.value.path == PATH


@pytest.mark.parametrize("trusted", [False, True])
def test_bytes_behind_the_end_are_damage(*, trusted: bool) -> None:
    """A pickle with something behind it is not the file that was written."""
    with pytest.raises(_errors.DamagedData, match="behind the end"):
        load(pickles.dumps(1) + b"\x00", trusted=trusted)


def test_every_flipped_bit_of_a_sealed_pickle_is_noticed() -> None:
    """A number with another value is a whole pickle, too; other programs never see the seal."""
    data = pickles.seal(pickles.dumps({"serial": 5, "gain": np.arange(3)}))
    assert pickle.loads(data)["serial"] == 5
    loaded = load(data)
    assert isinstance(loaded, dict)
    assert loaded["serial"] == 5
    for at in range(len(data)):
        for bit in range(8):
            hurt = bytearray(data)
            hurt[at] ^= 1 << bit
            with pytest.raises(_errors.DamagedData):
                load(bytes(hurt))


SEEDS = [pickles.dumps(PLAIN[name]) for name in ("nested", "structured", "zone", "multiindex")]


@given(st.sampled_from(SEEDS), st.data())
def test_no_damage_brings_out_another_error(seed: bytes, data: st.DataObject) -> None:
    """Flipped bytes load as something, or raise our own errors, and nothing else."""
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(seed) - 1))] = data.draw(st.integers(0, 255))
    try:
        load(bytes(damaged))
    except (_errors.DamagedData, _errors.UntrustedPickle, _errors.StorageError):
        return


@given(st.binary(max_size=60))
def test_garbage_is_refused(garbage: bytes) -> None:
    """Random bytes never raise anything but our own errors."""
    try:
        load(garbage)
    except _errors.StorageError:
        return


def test_a_class_that_is_gone_is_named() -> None:
    """A trusted pickle of a class that is not installed says which."""
    with pytest.raises(_errors.StorageError, match=r"ica\.pkl.*not installed here.*nowhere"):
        load(op(named("nowhere", "Thing")), trusted=True)
    with pytest.raises(
        _errors.StorageError, match=r"ica\.pkl.*needs pandas\.SingleBlockManager, which"
    ):
        load(op(named("pandas", "SingleBlockManager")))


def test_a_string_column_cannot_point_outside_its_memory() -> None:
    """Where pandas keeps text by pyarrow, offsets are checked before anything follows them."""
    import pyarrow as pa

    offsets = struct.pack("<3i", 0, 1_000_000, 2)
    state: Any = (
        pa.string(),
        2,
        0,
        0,
        [None, pa.py_buffer(offsets), pa.py_buffer(b"ab")],
        [],
        None,
    )
    with pytest.raises(_errors.DamagedData):
        load(pickles.dumps(Evil(pa.lib._restore_array, state)))


@pytest.mark.parametrize("obj", [lambda: 1, (x for x in "a")])
def test_what_cannot_be_pickled_is_refused_by_its_type(obj: Any) -> None:
    """`dumps` raises InvalidTrial, a TypeError too, naming the type."""
    with pytest.raises(_errors.InvalidTrial, match=r"a (function|generator) cannot be pickled"):
        pickles.dumps(obj)
