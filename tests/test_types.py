"""Types on the whole road: what was handed over is what the journal and the files give back.

Every value here is recorded, read live from the journal, read from the published files, and read
once more after the task was resumed; it has to be the same, of the same type, at every stage.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import open_lab
from trialstore import ArrayInfo, InvalidTrial, StorageReader, TaskReader, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tests.helpers import Lab, SyncTask

BERLIN = ZoneInfo("Europe/Berlin")
NAN = float("nan")


# --- recording, and looking at every stage ------------------------------------------------------


@dataclass
class Step:
    """One trial to record: chunks to stream, then what is written."""

    trial: Any = field(default_factory=dict)
    appends: Sequence[tuple[str, Any]] = ()


class Seen(NamedTuple):
    """Everything a reader tells of a task."""

    frame: pd.DataFrame
    #: Of each trial, by name: columns come in the order of the table, attributes in the trial's.
    attrs: list[dict[str, Any]]
    arrays: dict[str, list[NDArray[Any] | None]]
    windows: dict[str, list[NDArray[Any]]]
    described: dict[str, Any]
    times: list[Any]


def see(reader: TaskReader) -> Seen:
    """Ask a reader for everything."""
    frame = reader.trials
    followed = list(itertools.islice(reader.follow(), len(frame)))
    names = reader.array_names
    arrays = {name: list(reader.iterarray(name)) for name in names}
    return Seen(
        frame,
        [dict(sorted(trial.attrs.items())) for trial in followed],
        arrays,
        {
            name: [
                reader.array(name, n, (2, 6)) for n, array in enumerate(found) if array is not None
            ]
            for name, found in arrays.items()
        },
        {name: reader.info(name) for name in names},
        [reader.timing.columns.tolist(), reader.timing.dtypes.tolist(), reader.timing.to_numpy()],
    )


def record(task: SyncTask, step: Step) -> None:
    """Record one trial."""
    for name, chunk in step.appends:
        task.append(name, chunk)
    task.write(step.trial)


def stages_of(
    lab: Lab, steps: Sequence[Step], arrays: Mapping[str, ArrayInfo] | None = None
) -> dict[str, Seen]:
    """Record the steps, and look while recording, when published, and when taken up again."""
    task = lab.create(arrays=arrays)
    for step in steps:
        record(task, step)
    task.flush()
    kept = TaskReader(task.root)
    stages = {"live": see(kept)}
    assert kept.status == "recording"
    task.close()
    assert kept.status == "complete"
    stages["published"] = see(TaskReader(task.root))
    stages["published, same reader"] = see(kept)
    task.resume()
    assert kept.status == "recording"
    stages["resumed"] = see(kept)
    task.close()
    assert (kept.status, kept.losses) == ("complete", ())
    stages["published again"] = see(kept)
    return stages


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Storage that is open for all tests of this module."""
    with open_lab(tmp_path_factory.mktemp("types") / "data") as lab:
        yield lab


def exactly(a: Any, b: Any) -> bool:
    """Equal and of the same type; NaN equals NaN, and missing is not NaN."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(exactly(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(exactly, a, b))
    if isinstance(a, complex | np.complexfloating):
        return exactly(a.real, b.real) and exactly(a.imag, b.imag)
    if isinstance(a, datetime):
        return a == b and str(a.tzinfo) == str(b.tzinfo) and a.fold == b.fold
    return bool(a == b or (a != a and b != b))


def same_array(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    """Equal in dtype, byte order, shape and every bit of every value."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.names is not None:
        return all(same_array(a[name], b[name]) for name in a.dtype.names)
    if a.dtype.char in "gG":  # ten bytes of value, six of anything
        return bool(np.array_equal(a, b, equal_nan=True))
    return a.tobytes() == b.tobytes()


def assert_same(seen: Mapping[str, Seen]) -> None:
    """Every stage shows what the first one does."""
    (first, one), *others = seen.items()
    for name, other in others:
        where = f"{name!r} differs from {first!r}"
        assert list(other.frame.columns) == list(one.frame.columns), where
        assert other.frame.dtypes.tolist() == one.frame.dtypes.tolist(), where
        assert other.frame.index.equals(one.frame.index), where
        for column in one.frame.columns:
            found, expected = other.frame[column].tolist(), one.frame[column].tolist()
            assert exactly(found, expected), f"{where} in {column!r}"
        assert exactly(other.attrs, one.attrs), where
        assert list(other.arrays) == list(one.arrays), where
        for array in one.arrays:
            assert all(map(same_array, other.arrays[array], one.arrays[array])), f"{where}: {array}"
            assert all(map(same_array, other.windows[array], one.windows[array])), (
                f"{where}: {array}"
            )
        assert other.described == one.described, where
        assert other.times[:2] == one.times[:2], where
        assert str(other.times[2]) == str(one.times[2]), where


# --- attributes ---------------------------------------------------------------------------------

STRINGS = [
    *("007", "None", "", "nan", "NA", "NaN", "True", "1e3", "=1+1", " ", "a,b", 'a "b" c', '"'),
    *("two\nlines", "two\r\nlines", "\r", "\t", "naïve 中文 🙂", "\u200f\u202e", "\ufeff", "\0"),
    *("@1", "-", "#N/A"),
]

COLUMNS: dict[str, tuple[list[Any], Any]] = {
    "strings": (STRINGS, object),
    "strings with gaps": (["", None, "a", ..., "None"], object),
    "floats": ([0.1, -0.0, 1e308, 5e-324, NAN, float("inf"), -float("inf")], "float64"),
    "floats with gaps": ([0.1, None, NAN, ..., 1.0], "Float64"),
    "bools": ([True, False], "bool"),
    "bools with gaps": ([True, None, False, ...], "boolean"),
    "integers": ([0, -1, 2**53 + 1, -(2**63), 2**63 - 1], "int64"),
    "integers with gaps": ([2**53 + 1, None, -1, ...], "Int64"),
    "integers beyond 2**63": ([2**63, 2**64 - 1], "uint64"),
    "integers beyond 2**63 with gaps": ([2**63, None, 2**64 - 1], "UInt64"),
    "integers beyond 2**64": ([2**64, -(2**200), 10**700], object),
    "integers and floats": ([1, 0.5], "float64"),
    "integers too large to be floats": ([2**53 + 1, 0.5], object),
    "bools and integers": ([True, 1, 0, False], object),
    "numbers and strings": ([1, "1", 1.0], object),
    "NumPy integers": ([np.int8(-1), np.int8(7)], "int8"),
    "NumPy integers with gaps": ([np.uint16(1), None, np.uint16(65535)], "UInt16"),
    "NumPy integers of two kinds": ([np.int8(1), np.int16(1)], object),
    "NumPy floats": ([np.float32(0.1), np.float32(NAN)], "float32"),
    "half floats": ([np.float16(0.1)], "float16"),
    "long doubles": ([np.longdouble(1) / 3], np.longdouble),
    "long doubles with gaps": ([np.longdouble(1) / 3, None], object),
    "complex": ([1 + 2j, complex(NAN, -0.0)], "complex128"),
    "complex of single precision": ([np.complex64(1 + 2j)], "complex64"),
    "bytes": ([b"", b"\0\xff"], object),
    "dates": ([date(2024, 2, 29)], object),
    "times": ([time(1, 2, 3, 4), time(0, tzinfo=UTC)], object),
    "datetimes": ([datetime(2024, 1, 2, 3, 4, 5, 6)], "datetime64[us]"),  # noqa: DTZ001
    "datetimes of a zone": (
        [datetime(2024, 1, 2, tzinfo=BERLIN), None, datetime(2024, 7, 2, tzinfo=BERLIN)],
        pd.DatetimeTZDtype("us", BERLIN),
    ),
    "datetimes of two zones": (
        [datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=BERLIN)],
        object,
    ),
    "datetimes of an offset": (
        [datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30)))],
        pd.DatetimeTZDtype("us", timezone(timedelta(hours=5, minutes=30))),
    ),
    "Timestamps": ([pd.Timestamp("2024-01-02T03:04:05.000000006")], "datetime64[ns]"),
    "Timestamps of a zone": (
        [pd.Timestamp("2024-01-02", tz="Asia/Tokyo"), None],
        None,
    ),
    "datetime64": ([np.datetime64("2024-01-02T03", "ms"), None], "datetime64[ms]"),
    "timedeltas": ([timedelta(days=-1, microseconds=1), None], "timedelta64[us]"),
    "timedelta64": ([np.timedelta64(5, "ns")], "timedelta64[ns]"),
    "lists": ([[1, [2.5, None]], []], object),
    "tuples and dicts": ([(1, "a"), {"a": (1,), "b": None}], object),
    "missing from the start": ([..., None, 5], "Int64"),
    "missing always": ([None, ..., None], object),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_attributes_keep_value_and_type(lab: Lab, name: str) -> None:
    """A value comes back equal and of its own type, at every stage; ``...`` was never given."""
    values, dtype = COLUMNS[name]
    rows = [{"n": n} if value is ... else {"n": n, "x": value} for n, value in enumerate(values)]
    stages = stages_of(lab, [Step(row) for row in rows])
    assert_same(stages)
    given = [{key: value for key, value in row.items() if value is not None} for row in rows]
    seen = stages["published"]
    assert exactly(seen.attrs, given)
    if dtype is not None:
        assert seen.frame["x"].dtype == dtype
    for value, found in zip(values, seen.frame["x"], strict=True):
        if value is None or value is ...:
            assert found is None or found is pd.NA or found is pd.NaT
        else:
            assert found is not pd.NA
            assert found == value or (found != found and value != value)


@pytest.mark.parametrize("value", STRINGS)
def test_any_string_may_stand_alone_in_a_table(lab: Lab, value: str) -> None:
    """One column and one row, the smallest table there is, keeps every string."""
    task = lab.create()
    record(task, Step({"text": value}))
    task.flush()
    live = TaskReader(task.root).trials["text"].tolist()
    task.close()
    assert live == TaskReader(task.root).trials["text"].tolist() == [value]


def test_columns_come_in_order_of_first_appearance(lab: Lab) -> None:
    """New columns in mid-task come last, those without a value count as seen, none is lost."""
    rows: list[dict[str, Any]] = [
        {"b": 1, "x": None},
        {"a": 2},
        {},
        {"c": 3, "a": 4},
        {"x": 5, "d": None},
    ]
    stages = stages_of(lab, [Step(row) for row in rows])
    assert_same(stages)
    frame = stages["published"].frame
    assert list(frame.columns) == ["b", "x", "a", "c", "d"]
    assert frame["a"].tolist() == [pd.NA, 2, pd.NA, 4, pd.NA]
    assert frame["d"].tolist() == [None] * 5


def test_columns_of_a_resumed_task_keep_their_order(lab: Lab) -> None:
    """A column that had only missing values before the task was resumed stays where it was."""
    task = lab.create()
    record(task, Step({"x": None, "b": 1}))
    task.close()
    task.resume()
    record(task, Step({"c": 2**60 + 1, "x": "late"}))
    task.flush()
    reader = TaskReader(task.root)
    live = see(reader)
    task.close()
    assert_same({"live": live, "published": see(reader)})
    assert list(live.frame.columns) == ["x", "b", "c"]
    assert live.frame["x"].tolist() == [None, "late"]
    assert live.frame["c"].tolist() == [pd.NA, 2**60 + 1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_trials_without_attributes_are_trials(lab: Lab, count: int) -> None:
    """A task with no columns has its rows, and one without trials has none."""
    stages = stages_of(lab, [Step(appends=[("emg", [1.0])]) for _ in range(count)])
    assert_same(stages)
    seen = stages["published"]
    assert seen.frame.shape == (count, 0)
    assert list(seen.frame.index) == list(range(count))
    assert seen.attrs == [{}] * count
    assert len(seen.arrays.get("emg", [])) == count


def test_names_of_columns_are_kept(lab: Lab) -> None:
    """Commas, quotes, spaces and other scripts may stand in a column's name."""
    row = {"a,b": 1, 'say "x"': 2, " ": 3, "größe": 4, "0": 5, "a.1": 6, "a": 7, "Unnamed: 0": 8}
    stages = stages_of(lab, [Step(row)])
    assert_same(stages)
    assert stages["published"].attrs == [row]
    assert list(stages["published"].frame.columns) == list(row)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "object"),
        (np.zeros(3), "array"),
        ({1: 2}, "str keys"),
        ("\ud800", "Unicode"),
    ],
    ids=["object", "array", "dict", "surrogate"],
)
def test_what_is_no_data_is_refused_by_name(lab: Lab, value: Any, why: str) -> None:
    """An attribute that a table cannot hold is named, and the trial is not taken."""
    task = lab.create()
    with pytest.raises(InvalidTrial, match=f"'bad'.*{why}"):
        task.write({"good": 1, "bad": value})
    record(task, Step({"good": 2}))
    task.close()
    assert TaskReader(task.root).trials.to_dict("list") == {"good": [2]}


# --- arrays -------------------------------------------------------------------------------------

DTYPES = [
    *("?", "i1", "<i2", ">i2", "<i4", ">i4", "<i8", ">i8", "u1", "<u2", ">u2", "<u4", "<u8", ">u8"),
    *("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "<c8", ">c8", "<c16", ">c16", "G", "S1", "S5"),
    *("<M8[us]", ">M8[D]", "<M8[ns]", "m8[ns]", ">m8[25s]", "V7"),
    np.dtype([("flag", "?"), ("value", "<f8"), ("inner", [("a", "<i2"), ("b", ">u4", (2,))])]),
    np.dtype([("flag", "?"), ("value", "<f8"), ("name", "S3")], align=True),
]
STACKS = (np.vstack, np.hstack, np.dstack)


def joined(chunks: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join along the last axis, in the dtype that the chunks have: NumPy would swap bytes."""
    return np.concatenate(chunks, axis=-1, dtype=chunks[0].dtype)


def filled(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> NDArray[Any]:
    """Return an array of random values, NaN and infinity among the floats."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng([seed, *shape])
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for name in dtype.names:
            base, inner = dtype[name].base, dtype[name].shape
            array[name] = filled((*shape, *inner), base, seed + 1)
        return array
    if dtype.char in "gG":
        return np.asarray(rng.standard_normal(shape)).astype(dtype) / 3
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = rng.integers(256, size=size, dtype=np.uint8)
    return np.ndarray(shape, dtype, raw.tobytes()).copy()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).replace(" ", ""))
def test_every_dtype_is_kept(lab: Lab, dtype: Any) -> None:
    """Byte order, width, fields and padding come back, streamed or in a trial, alone or joined."""
    chunks = [filled((2, length), dtype, seed=length) for length in (3, 0, 5)]
    trial = Trial({})
    trial.add_array("whole", data=chunks[0])
    trial.add_array("scalar", data=chunks[0][0, 0, ...])
    steps = [
        Step(trial, appends=[("alone", chunks[2])]),
        Step(appends=[("joined", chunk) for chunk in chunks]),
    ]
    stages = stages_of(lab, steps)
    assert_same(stages)
    arrays = stages["published"].arrays
    assert same_array(arrays["whole"][0], chunks[0])
    assert same_array(arrays["scalar"][0], chunks[0][0, 0, ...])
    assert same_array(arrays["alone"][0], chunks[2])
    assert same_array(arrays["joined"][1], joined(chunks))
    assert same_array(stages["live"].windows["joined"][0], joined(chunks)[:, 2:6].copy())
    described = stages["published"].described["alone"]
    assert described.dtype == np.dtype(dtype)
    assert described.shapes == {0: (2, 5)}


@pytest.mark.parametrize("stack_axis", [0, 1, 2])
@pytest.mark.parametrize(
    "shape",
    [(), (1,), (4,), (0,), (2, 3), (2, 0), (0, 3), (2, 3, 4), (2, 0, 4), (2, 1, 3, 2)],
    ids=str,
)
def test_every_shape_is_stacked_as_numpy_does(
    lab: Lab, shape: tuple[int, ...], stack_axis: int
) -> None:
    """A chunk alone keeps its shape, several become what vstack, hstack or dstack makes of them."""
    chunks = [filled(shape, "f4", seed) for seed in range(3)]
    trial = Trial({})
    array = trial.add_array("stacked", stack_axis=stack_axis)
    for chunk in chunks:
        array.stack(chunk)
    steps = [
        Step(trial, appends=[("streamed", chunks[0])]),
        Step(appends=[("streamed", chunk) for chunk in chunks]),
    ]
    stages = stages_of(lab, steps, {"streamed": ArrayInfo(stack_axis=stack_axis)})
    assert_same(stages)
    arrays = stages["published"].arrays
    expected = STACKS[stack_axis](chunks)
    assert same_array(arrays["streamed"][0], chunks[0])
    assert same_array(arrays["streamed"][1], expected)
    assert same_array(arrays["stacked"][0], expected)
    assert arrays["stacked"][1] is None


def test_ragged_arrays_keep_their_lengths(lab: Lab) -> None:
    """Every trial has the length it had; only a trial without the array is None."""
    lengths = [5, 0, None, 1, 300_000]
    steps = [
        Step(appends=[] if length is None else [("emg", filled((2, length), "f8", length))])
        for length in lengths
    ]
    stages = stages_of(lab, steps)
    assert_same(stages)
    for length, array in zip(lengths, stages["published"].arrays["emg"], strict=True):
        expected = None if length is None else filled((2, length), "f8", length)
        assert same_array(array, expected)


def test_stacked_trials_leave_out_those_without_the_array(lab: Lab) -> None:
    """``array(name)`` is vstack of the trials that have it."""
    task = lab.create(arrays={"cursor": ArrayInfo(stack_axis=0)})
    for number in range(4):
        chunks = [("cursor", [[number, 1]])] * number
        record(task, Step({"n": number}, appends=chunks))
    task.flush()
    reader = TaskReader(task.root)
    live = reader.array("cursor")
    task.close()
    expected = np.vstack([[number, 1] for number in range(4) for _ in range(number)])
    assert same_array(live, expected)
    assert same_array(reader.array("cursor"), expected)


def test_trials_may_be_stacked_along_different_axes(lab: Lab) -> None:
    """Which axis counts samples is known for each trial, however long it is."""
    steps = []
    for stack_axis, shape in ((0, (2000, 20)), (1, (20, 2000)), (2, (4, 5, 2000))):
        trial = Trial({})
        array = trial.add_array("emg", stack_axis=stack_axis)
        for seed in range(3):
            array.stack(filled(shape, "f8", seed))
        steps.append((stack_axis, shape, Step(trial)))
    task = lab.create()
    for _, _, step in steps:
        record(task, step)
    task.flush()
    reader = TaskReader(task.root)
    for closes in (False, True):
        if closes:
            task.close()
        for number, (stack_axis, shape, _) in enumerate(steps):
            expected = STACKS[stack_axis]([filled(shape, "f8", seed) for seed in range(3)])
            part = (slice(None),) * stack_axis + (slice(100, 5000),)
            assert same_array(reader.array("emg", number), expected)
            assert same_array(reader.array("emg", number, (100, 5000)), np.copy(expected[part]))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (np.array(["a", "bc"]), "unicode"),
        (np.array([1, None], object), "Python objects"),
        ([[1, 2], [3]], "numbers"),
        (np.array([(1, "a")], [("n", "i4"), ("s", "U1")]), "unicode"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "masked"),
        (np.zeros(3, [("when", "M8[s]")]), "date"),
        (np.zeros(3, "V0"), "zero bytes"),
        (np.zeros(3, ">G"), "byte order"),
    ],
    ids=["U", "O", "list", "structured U", "masked", "structured date", "V0", "big-endian G"],
)
def test_what_hdf5_cannot_hold_is_refused_by_name(lab: Lab, bad: Any, why: str) -> None:
    """Streamed or in a trial, it is refused at the call, named, and what was there stays."""
    task = lab.create()
    with pytest.raises(InvalidTrial, match=rf"'bad'.*{why}"):
        task.append("bad", bad)
    good = Trial({"n": 0})
    good.add_array("good", data=[1.0])
    good.arrays["bad"] = bad
    with pytest.raises(InvalidTrial, match=rf"'bad'.*{why}"):
        task.write(good)
    assert good.arrays["good"].data is not None
    del good.arrays["bad"]
    record(task, Step(good))
    task.close()
    reader = TaskReader(task.root)
    assert reader.array_names == ["good"]
    assert reader.array("good", 0).tolist() == [1.0]


def test_a_chunk_of_another_type_is_refused(lab: Lab) -> None:
    """Chunks of one array are of one dtype and fit one another; the refused one leaves no trace."""
    task = lab.create(arrays={"declared": ArrayInfo(dtype="f4", dims=("channel", "time"))})
    task.append("emg", np.zeros((2, 3)))
    for bad in (np.zeros((2, 3), "f4"), np.zeros((3, 3)), np.zeros(3), np.zeros((2, 3, 1))):
        with pytest.raises(InvalidTrial, match="'emg'"):
            task.append("emg", bad)
    for bad in (np.zeros((2, 3)), np.zeros(3, "f4")):
        with pytest.raises(InvalidTrial, match="'declared'"):
            task.append("declared", bad)
    task.append("emg", np.ones((2, 1)))
    task.write({})
    task.close()
    assert TaskReader(task.root).array("emg", 0).shape == (2, 4)


def test_what_was_declared_is_told(lab: Lab) -> None:
    """``info`` has rate, unit, channels and dims, at every stage, and the names come in order."""
    arrays = {
        "pos": ArrayInfo(rate=100, unit="mm", stack_axis=0),
        "emg": ArrayInfo(rate=2000.0, unit="mV", channels=["FCR", "ECR"], dims=("channel", "time")),
        "never": ArrayInfo(),
    }
    steps = [
        Step(appends=[("extra", [1])]),
        Step(appends=[("emg", np.zeros((2, 5))), ("pos", [[1.0, 2.0]])]),
        Step(appends=[("emg", np.zeros((2, 5), "f4"))]),
    ]
    stages = stages_of(lab, steps, arrays)
    assert_same(stages)
    described = stages["published"].described
    assert list(described) == ["extra", "pos", "emg"]
    emg = described["emg"]
    assert (emg.rate, emg.unit, emg.channels, emg.dims) == (
        2000.0, "mV", ("FCR", "ECR"), ("channel", "time"),
    )  # fmt: skip
    assert emg.dtype is None
    assert described["pos"].stack_axis == 0
    assert described["extra"].dtype == np.int64


# --- any sequence -------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(STRINGS),
    st.datetimes(timezones=st.sampled_from([None, UTC])),
    st.integers(0, 255).map(np.uint8),
)
ATTRS = st.dictionaries(st.sampled_from(["a", "b", "c d", "ü"]), VALUES, max_size=3)
#: Array name and number of samples of each chunk, streamed in this order.
APPENDS = st.lists(st.tuples(st.sampled_from(["emg", "eeg"]), st.integers(0, 40)), max_size=6)
#: Chunks stacked in the trial's own array.
STACKED = st.lists(st.integers(1, 20), max_size=3)
ACTIONS = st.sampled_from(["go on", "look", "publish", "resume"])
STEPS = st.lists(st.tuples(ATTRS, APPENDS, STACKED, ACTIONS), max_size=8)


class Model:
    """What a perfect recorder would have: rows, and arrays joined by NumPy."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, list[NDArray[Any] | None]] = {}

    def add(self, attrs: dict[str, Any], chunks: Mapping[str, list[NDArray[Any]]]) -> None:
        for name, pieces in chunks.items():
            column = self.arrays.setdefault(name, [None] * len(self.rows))
            column.append(pieces[0] if len(pieces) == 1 else joined(pieces))
        self.rows.append(attrs)
        for column in self.arrays.values():
            column.extend([None] * (len(self.rows) - len(column)))

    def check(self, reader: TaskReader) -> None:
        frame = reader.trials
        assert len(frame) == len(self.rows)
        assert list(frame.columns) == list(dict.fromkeys(itertools.chain(*self.rows)))
        followed = list(itertools.islice(reader.follow(), len(frame)))
        given = [{k: v for k, v in sorted(row.items()) if v is not None} for row in self.rows]
        assert exactly([dict(sorted(trial.attrs.items())) for trial in followed], given)
        assert set(reader.array_names) == set(self.arrays)
        for name, expected in self.arrays.items():
            assert all(map(same_array, reader.iterarray(name), expected))
        for number, trial in enumerate(followed):
            for name, array in trial.arrays.items():
                assert same_array(array.data, self.arrays[name][number])
        assert reader.losses == ()


@pytest.mark.slow
def test_any_sequence_reads_back_at_every_stage(lab: Lab) -> None:
    """Whatever is streamed, written, published and resumed: readers show exactly the model."""
    seeds = itertools.count()

    def chunk(name: str, length: int) -> NDArray[Any]:
        shape = (3, length) if name == "emg" else (length,)
        return filled(shape, {"emg": "<f8", "eeg": ">i2", "cursor": "f4"}[name], next(seeds))

    @settings(max_examples=40, deadline=None)
    @given(STEPS)
    def check(steps: list[tuple[dict[str, Any], list[tuple[str, int]], list[int], str]]) -> None:
        model = Model()
        with lab.create() as task:
            reader = TaskReader(task.root)
            for attrs, appends, stacked, action in steps:
                chunks: dict[str, list[NDArray[Any]]] = {}
                for name, length in appends:
                    chunks.setdefault(name, []).append(chunk(name, length))
                    task.append(name, chunks[name][-1])
                trial = Trial(dict(attrs))
                for length in stacked:
                    chunks.setdefault("cursor", []).append(chunk("cursor", length))
                    array = trial.arrays.get("cursor") or trial.add_array("cursor")
                    array.stack(chunks["cursor"][-1])
                task.write(trial)
                model.add(attrs, chunks)
                if action == "publish":
                    task.publish()
                elif action == "resume":
                    task.close()
                    model.check(TaskReader(reader.root))
                    task.resume()
                if action != "go on":
                    task.flush()
                    model.check(reader)
            task.flush()
            model.check(reader)
        model.check(reader)
        model.check(TaskReader(reader.root))

    check()


def test_the_storage_lists_every_task_of_this_module(lab: Lab) -> None:
    """The catalogue over all these tasks is one table, and no task is left out."""
    with lab.create() as task:
        storage = StorageReader(task.root.parent.parent)
        storage.subject_id = "p0"
        catalogue = storage.catalogue()
        rows = sum(len(storage.require_task(task).trials) for task in storage.task_ids)
    assert len(catalogue) == rows > 0
