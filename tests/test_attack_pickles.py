"""Pickles that want to run code, crash the interpreter or fill the memory, in a reader's way.

Every attack is loaded by a process of its own, which counts what Python's audit events tell (a
program started, a file opened for writing, a connection made) and has a limit of memory.
"""

from __future__ import annotations

import base64
import copyreg
import functools
import json
import operator
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tests.helpers import open_lab, reader_of
from trialstore import DamagedData, TaskReader, UntrustedPickle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Loads pickles given as lines of base 64; answers with a line of JSON for each.
CHILD = """
import base64, json, os, resource, sys
import numpy, pandas, pathlib
from trialstore._errors import StorageError
from trialstore._ondisk import pickles
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
FORBIDDEN = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "webbrowser.", "winreg.",
             "code.__new__", "function.__new__", "sys.settrace", "pty.", "builtins.input", "glob.")
events = []
def audit(event, args):
    if event.startswith(FORBIDDEN) and event not in ("os.listdir", "os.scandir", "os.fwalk"):
        events.append(event)
    if event == "open" and args[1] not in ("r", "rb", None):
        events.append(event)
sys.addaudithook(audit)
for line in sys.stdin:
    del events[:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        obj = pickles.loads(base64.b64decode(line), trusted=False, path=pathlib.Path("ica.pkl"))
        answer = ["loaded", type(obj).__name__]
    except StorageError as error:
        answer = [type(error).__name__, str(error)]
    except BaseException as error:
        answer = ["STRANGE", repr(error)[:500]]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([*answer, list(events), grown]), flush=True)
"""


def load_all(attacks: Sequence[bytes], folder: Path) -> list[tuple[str, str, list[str], int]]:
    """What became of each pickle: error or 'loaded', message, audit events, kilobytes."""
    lines = b"".join(base64.b64encode(attack) + b"\n" for attack in attacks)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=lines,
        capture_output=True,
        cwd=folder,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(answers) == len(attacks)
    return answers


class Reduced:
    """Pickled as a call of any function, with any state."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, _: Any) -> Any:
        return self.reduced


def call(function: Any, *arguments: Any) -> Reduced:
    return Reduced(function, arguments)


def op(*parts: bytes, protocol: int = 4) -> bytes:
    return bytes([0x80, protocol]) + b"".join(parts) + b"."


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def in_array(obj: Any) -> Any:
    array = np.empty(1, object)
    array[0] = obj
    return array


#: Everything that could start something: each creates the file CANARY, in its own way.
CANARY = "canary"
CALLS: dict[str, Any] = {
    "os.system": call(os.system, f"touch {CANARY}"),
    "os.mkdir": call(os.mkdir, CANARY),
    "subprocess": call(subprocess.Popen, ["touch", CANARY]),
    "subprocess.call": call(subprocess.check_output, ["touch", CANARY]),
    "eval": call(eval, f"open('{CANARY}', 'w')"),
    "exec": call(exec, f"open('{CANARY}', 'w')"),
    "open": call(open, CANARY, "w"),
    "import": call(__import__, "antigravity"),
    "partial": call(functools.partial(os.mkdir, CANARY)),
    "partial, made by the pickle": Reduced(
        functools.partial, (os.mkdir,), (os.mkdir, (CANARY,), {}, {})
    ),
    "reduce": call(functools.reduce, operator.add, [1], 2),
    "methodcaller": call(operator.methodcaller("mkdir"), pathlib.Path(CANARY)),
    "attrgetter": call(operator.attrgetter("parent.mkdir"), pathlib.Path(CANARY)),
    "map": call(map, os.mkdir, [CANARY]),
    "getattr": call(getattr, pathlib.Path(CANARY), "mkdir"),
    "setattr": call(setattr, pd.DataFrame, "sum", 1),
    "type": call(type, "X", (), {"__del__": os.mkdir}),
    "reconstructor": call(copyreg._reconstructor, subprocess.Popen, object, None),  # type: ignore[attr-defined]
    "add extension": call(copyreg.add_extension, "os", "system", 1),
    "pickle in a pickle": call(pickle.loads, pickle.dumps(call(os.mkdir, CANARY))),
    "pandas.read_pickle": call(pd.read_pickle, CANARY),
    "pandas.eval": call(pd.eval, "@__import__('os').mkdir('canary')"),
    "pandas.read_csv": call(pd.read_csv, CANARY),
    "frame's method": call(pd.DataFrame.to_csv, pd.DataFrame(), CANARY),
    "numpy.save": call(np.save, CANARY, np.zeros(1)),
    "numpy.load": call(np.load, "x.npy", None, True),
    "numpy.fromfile": call(np.fromfile, "/etc/passwd"),
    "numpy.memmap": call(np.memmap, CANARY, "u1", "w+", 0, (1,)),
    "tofile": call(np.ndarray.tofile, np.zeros(1), CANARY),
    "vectorize": call(np.vectorize, os.mkdir),
    "frompyfunc": call(np.frompyfunc, os.mkdir, 1, 1),
    "class with state": Reduced(pd.DataFrame, (), {"sum": 1}),
    "items of a list subclass": Reduced(list, (), None, iter([call(os.mkdir, CANARY)])),
    "key that runs": {call(os.mkdir, CANARY).reduced: call(os.mkdir, CANARY)},
    "state of an array": Reduced(np.ndarray, (1,), call(os.mkdir, CANARY)),
    "in an object array": in_array(call(os.mkdir, CANARY)),
    "in fields": np.array([(1, call(os.mkdir, CANARY))], [("n", "i4"), ("o", "O")]),
    "in a frame": pd.DataFrame({"a": in_array(call(os.mkdir, CANARY))}),
    "in a series' index": pd.Series([1], index=pd.Index(in_array(call(os.mkdir, CANARY)))),
    "in attributes of a frame": pd.DataFrame({"a": [1]}),
    "in a dtype's metadata": np.dtype("f8", metadata={"x": 1}),
}
CALLS["in attributes of a frame"].attrs["x"] = call(os.mkdir, CANARY)

#: Names with dots, under the opcode that would follow them.
CHAINS = [
    *[("numpy", "os.system"), ("numpy", "lib.npyio.os.system"), ("numpy", "ndarray.tofile")],
    *[
        ("numpy", "testing.measure"),
        ("pandas", "io.common.os.system"),
        ("pandas", "DataFrame.eval"),
    ],
    *[("pandas", "DataFrame.__init__.__globals__"), ("collections", "abc.sys.modules")],
    *[("builtins", "dict.get"), ("builtins", "object.__subclasses__"), ("datetime", "sys.exit")],
    *[
        ("zoneinfo", "ZoneInfo.from_file"),
        ("pandas.core.frame", "sys.modules"),
        ("uuid", "os.fork"),
    ],
    *[("numpy._core.multiarray", "_reconstruct.__globals__"), ("decimal", "Decimal.from_float")],
    *[("numpy", "float64.fromhex"), ("pandas._libs.tslibs.offsets", "Day.__reduce__")],
]


def test_the_attacks_work() -> None:
    """The list above is worth something: Python's own unpickler does run these."""
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(call(os.stat, "nowhere at all")))
    assert pickle.loads(pickle.dumps(call(eval, "6 * 7"))) == 42


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    """No attack starts, imports, writes or reads anything; each is told, and the class is named."""
    attacks = [pickle.dumps(attack, protocol) for attack in CALLS.values()]
    answers = load_all(attacks, tmp_path)
    for name, (kind, message, events, grown) in zip(CALLS, answers, strict=True):
        harmless = name == "in a dtype's metadata"
        assert kind == ("loaded" if harmless else "UntrustedPickle"), (name, kind, message)
        assert message.isprintable()
        assert not events, name
        assert grown < 50_000, name
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_name_is_followed_through_a_dot(tmp_path: Path) -> None:
    """STACK_GLOBAL and GLOBAL reach exact names only, and say which they did not."""
    attacks = []
    for module, name in CHAINS:
        attacks += [op(named(module, name), text("x"), b"\x85R")]
        attacks += [op(f"c{module}\n{name}\n".encode(), text("x"), b"\x85R")]
    for answer, (module, name) in zip(
        load_all(attacks, tmp_path), [chain for chain in CHAINS for _ in range(2)], strict=True
    ):
        assert answer[0] == "UntrustedPickle"
        assert f"'{module}.{name}'" in answer[1]
        assert not answer[2]


#: Half-made objects of pandas' own C code, which crash the interpreter when anything looks at them.
HALF_MADE = {
    f"{module}.{kind}": named(module, kind) + b")\x81"
    for module, kind in [
        *[("pandas.core.arrays.categorical", "Categorical"), ("pandas.core.frame", "DataFrame")],
        *[("pandas.core.arrays.datetimes", "DatetimeArray"), ("pandas.core.series", "Series")],
        *[("pandas.core.arrays.timedeltas", "TimedeltaArray")],
        *[("pandas.core.arrays.period", "PeriodArray")],
        *[("pandas.core.arrays.interval", "IntervalArray")],
        *[("pandas.core.internals.managers", "SingleBlockManager")],
        *[("pandas.core.arrays.string_", "StringArray")],
    ]
} | {
    "unpickled by Cython": named("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked")
    + named("pandas.core.arrays.datetimes", "DatetimeArray")
    + b"J\x00\x00\x00\x00N\x87R",
}
DTYPE = named("numpy", "dtype") + text("M8") + b"\x89\x88\x87R"
UNPICKLE_BLOCK = named("pandas._libs.internals", "_unpickle_block")
#: What could look at it: `{}` stands for the half-made object.
LOOKS = {
    "left as the result": b"{}",
    "left in a list": b"]{}a",
    "as a key": b"}{}K\x01s",
    "in a set": b"\x8f({}\x90",
    "as the state of a dtype": DTYPE + b"{}b",
    "as the state of itself": b"{}q\x00h\x00b",
    "twice": b"{}2\x86",
    "as an argument": named("builtins", "set") + b"{}\x85R",
    "as all arguments": named("builtins", "set") + b"{}R",
    "as a block": UNPICKLE_BLOCK + b"({}K\x00K\x01tR",
    "as the blocks of a frame": named("pandas.core.internals.managers", "BlockManager")
    + b"{}]\x86R",
    "as the index of a frame": named("pandas.core.indexes.base", "_new_Index")
    + named("pandas", "Index")
    + b"}"
    + text("data")
    + b"{}s\x86R",
    "as the state of a frame": named("pandas", "DataFrame") + b")\x81}" + text("_mgr") + b"{}sb",
    "after it was remembered": b"{}q\x07N0]h\x07a",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HALF_MADE)
def test_nothing_looks_at_a_half_made_object(tmp_path: Path, kind: str) -> None:
    """An object that never gets its state is refused; the interpreter does not crash over it."""
    attacks = [op(look.replace(b"{}", HALF_MADE[kind])) for look in LOOKS.values()]
    for look, (error, message, events, _) in zip(LOOKS, load_all(attacks, tmp_path), strict=True):
        assert error in {"UntrustedPickle", "DamagedData", "StorageError"}, (look, error, message)
        assert message.isprintable()
        assert not events


def nested(depth: int) -> bytes:
    return op(b"]" * depth + b"a" * (depth - 1))


def laughs(levels: int, width: int) -> bytes:
    """Lists of lists, each the same one many times: small to load, a bomb to copy or to print."""
    made = b"]q\x00" + b"K\x01a"
    for level in range(levels):
        key = bytes([level])
        made += b"](" + (b"h" + key) * width + b"eq" + bytes([level + 1])
    return op(made)


BOMBS = {
    "bytes of 2**60": op(b"\x8e" + struct.pack("<Q", 2**60) + b"abc"),
    "text of 2**60": op(b"\x8d" + struct.pack("<Q", 2**60) + b"abc"),
    "bytearray of 2**60": op(b"\x96" + struct.pack("<Q", 2**60) + b"abc"),
    "bytes of 2**31": op(b"B" + struct.pack("<I", 2**31) + b"abc"),
    "text of 2**32 - 1": op(b"X" + struct.pack("<I", 2**32 - 1) + b"abc"),
    "old text of 2**31 - 1": op(b"T" + struct.pack("<i", 2**31 - 1) + b"abc"),
    "old text of a negative length": op(b"T" + struct.pack("<i", -1) + b"abc"),
    "number of 2**31 - 1 bytes": op(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc"),
    "number of a negative length": op(b"\x8b" + struct.pack("<i", -1) + b"abc"),
    "number of a million digits": op(b"L" + b"9" * 10**6 + b"L\n"),
    "frame of 2**63": op(b"\x95" + struct.pack("<Q", 2**63) + b"N"),
    "remembered as 2**32 - 1": op(b"Nr" + struct.pack("<I", 2**32 - 1)),
    "remembered as a number of a million digits": op(b"Np" + b"9" * 10**6 + b"\n"),
    "lists in 100 000 lists": nested(100_000),
    "marks": op(b"(" * 300_000),
    "a range": op(
        named("builtins", "list") + named("builtins", "range") + b"J\xff\xff\xff\x7f\x85R\x85R"
    ),
    "a deque of a range": op(
        named("collections", "deque") + named("builtins", "range") + b"J\xff\xff\xff\x7f\x85R\x85R"
    ),
    "a fraction of 10**(10**9)": op(
        named("fractions", "Fraction") + text("1e1000000000") + b"\x85R"
    ),
    "a decimal, which is small": op(named("decimal", "Decimal") + text("1e999999") + b"\x85R"),
    "array of 2**60": pickle.dumps(
        Reduced(
            np.zeros(0).__reduce__()[0],
            (np.ndarray, (0,), b"b"),
            (1, (2**60,), np.dtype("f8"), False, b"x"),
        )
    ),
    "array of negative size": pickle.dumps(
        Reduced(
            np.zeros(0).__reduce__()[0],
            (np.ndarray, (0,), b"b"),
            (1, (-1,), np.dtype("f8"), False, b""),
        )
    ),
    "items of 2**31 - 1 bytes": pickle.dumps(
        Reduced(np.dtype, ("V8", False, True), (3, "|", None, None, None, 2**31 - 1, 1, 0))
    ),
    "axes by the thousand": pickle.dumps(
        Reduced(
            np.dtype,
            ("V8", False, True),
            (3, "|", (np.dtype("f8"), (10**6, 10**6)), None, None, 8, 1, 0),
        )
    ),
    "index of a range of 2**62": pickle.dumps(pd.RangeIndex(2**62)),
}
#: These come to life: they are what they say, and no larger.
SMALL = {"index of a range of 2**62", "a decimal, which is small"} | {
    "remembered as 2**32 - 1",
    "lists in 100 000 lists",
    "items of 2**31 - 1 bytes",  # a dtype is made by its name, and is no larger than that
}


@pytest.mark.slow
def test_no_pickle_is_larger_in_memory_than_its_bytes_account_for(tmp_path: Path) -> None:
    """Declared lengths, ranges, towers and repetitions need no memory; none of them hangs."""
    bombs = {**BOMBS, "a billion laughs": laughs(30, 20)}
    for name, (kind, message, events, grown) in zip(
        bombs, load_all(list(bombs.values()), tmp_path), strict=True
    ):
        allowed = {"UntrustedPickle", "DamagedData"} | (
            {"loaded"} if name in SMALL or "laughs" in name else set()
        )
        assert kind in allowed, (name, kind, message[:300])
        assert len(message) < 1000
        assert not events, name
        assert grown < 150_000, (name, grown)


@pytest.mark.slow
def test_every_opcode_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    """Each opcode Python knows, and each byte that is none, after stacks of every kind."""
    frame = named("pandas", "DataFrame")
    stacks = [
        *(b"", b"N", b"NN", b"(", b"(NN", b"]", b"}", b")", b"](NN", b"}(NN", b"\x8f(N", b"NNN"),
        *(frame, frame + b")", frame + b")\x81", frame + b")\x81N", frame + b")\x81}"),
        *(
            named("numpy", "ndarray") + b"K\x09\x85",
            DTYPE,
            DTYPE + b"N",
            text("os") + text("system"),
        ),
    ]
    arguments = [
        b"",
        b"\n",
        b"1\n",
        b"os\nsystem\n",
        bytes(9),
        b"\x01\x00\x00\x00" * 3,
        b"\xff" * 12,
    ]
    attacks = [
        op(stack + bytes([code]) + argument)
        for code in range(256)
        for stack in stacks
        for argument in arguments
    ]
    assert {ord(info.code) for info in pickletools.opcodes} <= set(range(256))
    for attack, (kind, message, events, grown) in zip(
        attacks, load_all(attacks, tmp_path), strict=True
    ):
        assert kind in {"loaded", "UntrustedPickle", "DamagedData", "StorageError"}, (
            attack,
            message,
        )
        assert kind == "loaded" or message.isprintable(), attack
        assert not events, (attack, events)
        assert grown < 50_000, attack


# --- through the public interface -----------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A published task with one pickle."""
    with open_lab(tmp_path / "data") as lab, lab.create("reach") as writer:
        writer.write({"n": 1})
        writer.pickle({"a": 1}, "ica")
    return tmp_path / "data" / "p0" / "reach"


@pytest.mark.parametrize("name", ["os.system", "in a frame", "getattr", "pickle in a pickle"])
def test_a_pickle_put_in_the_place_of_ours_is_not_even_looked_at(task: Path, name: str) -> None:
    """A published pickle has a checksum; trusting does not help one that was exchanged."""
    (task / "ica.pkl").write_bytes(pickle.dumps(CALLS[name]))
    for trusted in (False, True):
        with pytest.raises(DamagedData, match="changed or damaged after publication"):
            TaskReader(task).pickle("ica", trusted=trusted)
    for name in ("manifest.json", "timing.csv"):  # as a stranger's task has none
        (task / name).unlink()
    with pytest.raises(UntrustedPickle, match="trusted=True"):
        reader_of(task.parents[1]).pickle("ica")
    assert not (task / CANARY).exists()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_beside_a_strangers_data_is_told(tmp_path: Path, name: str) -> None:
    """In a task without our manifest a pickle is as harmless as in one with it."""
    task = tmp_path / "p0" / "reach"
    task.mkdir(parents=True)
    (task / "trials.csv").write_bytes(b"n\n1\n")
    (task / "ica.pkl").write_bytes(BOMBS[name])
    if name in SMALL:
        TaskReader(task).pickle("ica")
        return
    with pytest.raises((UntrustedPickle, DamagedData)) as caught:
        TaskReader(task).pickle("ica")
    assert str(caught.value).isprintable()
    assert str(task / "ica.pkl") in str(caught.value)
