"""The public interface: names, signatures, exceptions and what their docstrings promise."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import trialstore
from trialstore import (
    Array,
    ArrayInfo,
    Block,
    DamagedData,
    Design,
    Level,
    Loss,
    Receipt,
    Statistics,
    Storage,
    StorageError,
    StorageReader,
    TaskReader,
    TaskWriter,
    Trial,
    TrialWriter,
    WriteFailed,
    _errors,
    read_hdf5,
    storage_to_zip,
    write_hdf5,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = [
    *("Storage", "StorageReader", "TaskWriter", "TaskReader", "TrialWriter", "Receipt", "Level"),
    *("Statistics", "Loss", "Design", "Block", "Trial", "Array", "ArrayInfo"),
    *("read_hdf5", "write_hdf5", "storage_to_zip"),
    *("StorageError", "InvalidName", "InvalidTrial", "TaskExists", "TaskNotFound", "TaskLocked"),
    *("QueueFull", "WriteFailed", "PublishFailed", "DamagedData", "UntrustedPickle", "FormatError"),
]

STORAGE = (
    "(root='data', allow_overwrite=False, *, queue_bytes=268435456, on_full='wait', "
    "fallback_root=None, keep_journal=False, close_timeout=30.0, on_trouble=None)"
)

CONTRACT: dict[str, tuple[Callable[..., Any], str]] = {
    "Storage": (Storage, STORAGE),
    "create_task": (Storage.create_task, "(task_id, *, metadata=None, arrays=None, repeat=False)"),
    "resume_task": (Storage.resume_task, "(task_id)"),
    "Storage.flush": (Storage.flush, "async ()"),
    "Storage.statistics": (Storage.statistics, "()"),
    "Storage.to_zip": (Storage.to_zip, "async (outfile=None)"),
    "write": (TaskWriter.write, "async (trial)"),
    "write_nowait": (TaskWriter.write_nowait, "(trial)"),
    "append": (TaskWriter.append, "async (name, chunk)"),
    "append_nowait": (TaskWriter.append_nowait, "(name, chunk)"),
    "TaskWriter.pickle": (TaskWriter.pickle, "async (obj, name)"),
    "TaskWriter.flush": (TaskWriter.flush, "async ()"),
    "publish": (TaskWriter.publish, "async ()"),
    "aclose": (TaskWriter.aclose, "async ()"),
    "TaskWriter.statistics": (TaskWriter.statistics, "()"),
    "TrialWriter.write": (TrialWriter.write, "async (data)"),
    "written": (Receipt.written, "async ()"),
    "durable": (Receipt.durable, "async ()"),
    "StorageReader": (StorageReader, "(root='data')"),
    "require_task": (StorageReader.require_task, "(task_id)"),
    "catalogue": (StorageReader.catalogue, "()"),
    "StorageReader.to_zip": (StorageReader.to_zip, "(outfile=None)"),
    "TaskReader": (TaskReader, "(root)"),
    "array": (TaskReader.array, "(name, trial=None, window=None, *, verify=True)"),
    "iterarray": (TaskReader.iterarray, "(name, *, verify=True)"),
    "TaskReader.pickle": (TaskReader.pickle, "(name, *, trusted=False)"),
    "info": (TaskReader.info, "(name)"),
    "follow": (TaskReader.follow, "()"),
    "Design.add_block": (Design.add_block, "()"),
    "Block": (Block, "(index, *args)"),
    "Block.add_trial": (Block.add_trial, "(attrs=None)"),
    "Block.shuffle": (Block.shuffle, "(reset_index=True, seed=None)"),
    "Trial": (Trial, "(attrs)"),
    "Trial.add_array": (Trial.add_array, "(name, *, data=None, stack_axis=1)"),
    "Array": (Array, "(data=None, stack_axis=1)"),
    "Array.stack": (Array.stack, "(data)"),
    "Array.clear": (Array.clear, "()"),
    "ArrayInfo": (
        ArrayInfo,
        "(rate=None, unit=None, channels=None, dims=None, stack_axis=1, dtype=None)",
    ),
    "read_hdf5": (read_hdf5, "(filepath, dataset='data')"),
    "write_hdf5": (write_hdf5, "(filepath, data, dataset='data')"),
    "storage_to_zip": (storage_to_zip, "(path, outfile=None)"),
}

PROPERTIES: dict[type, list[str]] = {
    Storage: ["subject_id", "subject_ids", "task_ids"],
    StorageReader: ["subject_id", "subject_ids", "task_ids"],
    TaskWriter: ["root", "task_id"],
    TrialWriter: ["data"],
    Receipt: ["index", "level"],
    TaskReader: ["array_names", "losses", "metadata", "status", "timing", "trials"],
    Array: ["data", "stack_axis"],
}


# --- names --------------------------------------------------------------------------------------


def test_the_public_names_are_those_of_the_contract() -> None:
    """``__all__`` is the list, and each name is there."""
    assert sorted(trialstore.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(trialstore))
    for name in NAMES:
        assert getattr(trialstore, name).__name__ == name
    with pytest.raises(AttributeError, match=r"'trialstore'.*'Sotrage'"):
        _ = trialstore.Sotrage


def test_importing_every_name_loads_neither_pandas_nor_h5py() -> None:
    """What is not used costs no time: the heavy libraries come with the first read."""
    script = """if True:
        import sys
        import trialstore
        assert not {"numpy", "anyio", "pandas", "h5py", "asyncio"} & sys.modules.keys()
        from trialstore import *
        assert not {"pandas", "h5py", "matplotlib"} & sys.modules.keys()
        assert Storage and write_hdf5 and DamagedData
        """
    subprocess.run([sys.executable, "-c", script], check=True)


# --- signatures ---------------------------------------------------------------------------------


def signature_of(function: Callable[..., Any]) -> str:
    """Parameters and defaults, without `self` and without types."""
    signature = inspect.signature(function)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    text = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return f"async {text}" if inspect.iscoroutinefunction(function) else text


@pytest.mark.parametrize("name", CONTRACT)
def test_signatures_are_those_of_the_contract(name: str) -> None:
    """Parameters, their order, their defaults, and which calls are awaited."""
    function, expected = CONTRACT[name]
    assert signature_of(function) == expected


def test_a_nowait_never_is_a_coroutine() -> None:
    """A name that ends in ``_nowait`` belongs to a call that is not awaited."""
    methods = [name for name in dir(TaskWriter) if name.endswith("_nowait")]
    assert methods
    for name in methods:
        assert not inspect.iscoroutinefunction(getattr(TaskWriter, name))
        assert inspect.iscoroutinefunction(getattr(TaskWriter, name.removesuffix("_nowait")))


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class has of its own or from another class of ours."""
    for name in dir(kind):
        member = inspect.getattr_static(kind, name)
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        ours = str(getattr(function, "__module__", "")).startswith("trialstore")
        if not name.startswith("_") and inspect.isfunction(function) and ours:
            yield name, member


@pytest.mark.parametrize("kind", PROPERTIES, ids=lambda kind: str(kind.__name__))
def test_properties_are_those_of_the_contract(kind: type) -> None:
    """What is read without a call; all else that is public is a method of the contract."""
    found = dict(members(kind))
    properties = [name for name, member in found.items() if isinstance(member, property)]
    assert sorted(properties) == PROPERTIES[kind]
    known = {function.__name__ for function, _ in CONTRACT.values()}
    assert found.keys() - set(properties) <= known | {"pieces", "discard"}


def test_a_storage_is_a_reader() -> None:
    """Whatever reads a StorageReader reads the Storage that is just recording."""
    assert issubclass(Storage, StorageReader)


def test_levels_are_ordered() -> None:
    """A trial is accepted, then written, then durable, then published."""
    assert list(Level) == [Level.ACCEPTED, Level.WRITTEN, Level.DURABLE, Level.PUBLISHED]
    assert sorted(Level) == list(Level)


@pytest.mark.parametrize("kind", [Statistics, Loss, ArrayInfo])
def test_records_are_frozen(kind: Any) -> None:
    """What is handed out as a record cannot be changed, and says what is in it."""
    arguments = {Loss: ((3,), "1 trial", "missing")}.get(kind, ())
    record = kind(*arguments)
    assert dataclasses.is_dataclass(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, None)
    assert repr(record).startswith(f"{kind.__name__}(")
    assert record == kind(*arguments)
    assert hash(record) == hash(kind(*arguments))


# --- exceptions ---------------------------------------------------------------------------------


def test_the_tree_of_exceptions_is_drawn_as_it_is() -> None:
    """The drawing at the head of the module has every class, and what else each of them is."""
    drawn = {}
    for line in (_errors.__doc__ or "").splitlines():
        if (match := re.match(r"(?:[├└]── )?(\w+) {2,}\S", line)) is not None:
            also = re.search(r"\(also ([\w, ]+)\)", line)
            drawn[match[1]] = set(also[1].split(", ")) if also else set()
    actual = {
        name: {base.__name__ for base in kind.__bases__} - {"StorageError", "Exception"}
        for name, kind in vars(_errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert drawn == actual
    assert all(issubclass(getattr(_errors, name), StorageError) for name in drawn)
    assert drawn.keys() == {name for name in NAMES if hasattr(_errors, name)}


def test_every_exception_of_ours_is_of_the_family() -> None:
    """One ``except StorageError`` is enough."""
    kinds = [getattr(trialstore, name) for name in NAMES]
    exceptions = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseException)]
    assert len(exceptions) == 12
    assert all(issubclass(kind, StorageError) for kind in exceptions)
    assert StorageError.__bases__ == (Exception,)


def test_exceptions_say_which_trials_they_concern(tmp_path: Any) -> None:
    """``trials`` and ``path`` are there for programs, whether or not they were given."""
    assert (DamagedData("x").path, DamagedData("x").trials) == (None, ())
    assert DamagedData("x", tmp_path, [1, 2]).trials == (1, 2)
    assert WriteFailed("x", range(2)).trials == (0, 1)
    assert str(WriteFailed("told", [1])) == "told"


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(_errors, name)])
def test_exceptions_can_be_sent_to_another_process(name: str) -> None:
    """An analysis in a pool of processes brings the message and the trials back."""
    kind = getattr(trialstore, name)
    arguments: dict[str, list[Any]] = {"DamagedData": [None, (3,)], "WriteFailed": [(3,)]}
    error = kind("told", *arguments.get(name, []))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, "told")
    assert getattr(again, "trials", None) == getattr(error, "trials", None)


# --- docstrings ---------------------------------------------------------------------------------

SECTIONS = ["Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "Examples"]


def public_things() -> dict[str, Any]:
    """Every public class, function, method and property by its dotted name."""
    things: dict[str, Any] = {}
    for name in NAMES:
        thing = getattr(trialstore, name)
        things[name] = thing
        if isinstance(thing, type):
            things |= {f"{name}.{member}": found for member, found in members(thing)}
    return things


THINGS = public_things()


def sections_of(thing: Any) -> dict[str, str]:
    """Text of each underlined section of a docstring."""
    doc = inspect.getdoc(thing) or ""
    parts = re.split(r"^(\w+)\n-+\n", doc, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", THINGS)
def test_docstrings_have_numpys_sections(name: str) -> None:
    """One sentence first, then sections in NumPy's order, each underlined as long as it is."""
    doc = inspect.getdoc(THINGS[name]) or ""
    assert re.match(r"\S[^\n]+[.:]", doc), "no first sentence"
    for title, line in re.findall(r"^(\w+)\n(-+)$", doc, flags=re.MULTILINE):
        assert title in SECTIONS
        assert len(title) == len(line)
    order = [SECTIONS.index(title) for title in sections_of(THINGS[name])]
    assert order == sorted(order)


def parameters_of(thing: Any) -> list[str]:
    function = thing.fset if isinstance(thing, property) else getattr(thing, "__func__", thing)
    if function is None or (isinstance(thing, type) and issubclass(thing, Exception)):
        return []
    if isinstance(thing, type) and thing in {Level, Receipt, TaskWriter, TrialWriter}:
        return []  # nobody makes one but we
    return [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]


@pytest.mark.parametrize("name", THINGS)
def test_parameters_are_documented(name: str) -> None:
    """Two parameters or more are told one by one, and none is told that does not exist."""
    thing = THINGS[name]
    text = sections_of(thing).get("Parameters", "")
    told = [
        word.strip("*, ")
        for line in re.findall(r"^(\*?\w[\w, *]*?)(?: : .*)?$", text, flags=re.MULTILINE)
        for word in line.split(",")
    ]
    parameters = parameters_of(thing)
    if told:
        assert told == parameters
    elif len(parameters) > 1:
        doc = inspect.getdoc(thing) or ""
        is_like_another = re.search(r"otherwise as `\w+`", doc) is not None
        assert is_like_another or all(f"`{parameter}`" in doc for parameter in parameters)


@pytest.mark.parametrize("name", THINGS)
def test_raised_exceptions_are_ours_and_told(name: str) -> None:
    """What a docstring says is raised is of the family, and what waits for a disk names it."""
    text = sections_of(THINGS[name]).get("Raises", "")
    lines = re.findall(r"^(\w[\w, ]*)$", text, flags=re.MULTILINE)
    raised = [word for line in lines for word in line.split(", ")]
    assert all(issubclass(getattr(trialstore, word), StorageError) for word in raised)
    if inspect.iscoroutinefunction(THINGS[name]):
        assert raised


@pytest.mark.parametrize(
    "kind", [Storage, StorageReader, TaskWriter, TaskReader, Receipt, ArrayInfo]
)
def test_classes_have_a_guarantee_or_an_example(kind: type) -> None:
    """The classes that one meets first show how they are used."""
    assert "Examples" in sections_of(kind)


@pytest.mark.parametrize("kind", [Storage, StorageReader, TaskWriter, TaskReader, Receipt])
def test_what_is_promised_stands_in_one_sentence(kind: type) -> None:
    """A guarantee that can be tested, with no "should"."""
    guarantee = re.search(
        r"^Guarantee: (.+?)(?=\n\n|\Z)", inspect.getdoc(kind) or "", re.MULTILINE | re.DOTALL
    )
    assert guarantee is not None
    assert guarantee[1].count(".") <= 2
    assert "should" not in guarantee[1]
