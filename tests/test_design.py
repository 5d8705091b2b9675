"""The containers that an experiment fills."""

from __future__ import annotations

import copy
import json
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trialstore import _errors
from trialstore._ondisk import chunks
from trialstore.design import Array, ArrayInfo, Block, Design, Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

STACK: dict[int, Any] = {0: np.vstack, 1: np.hstack, 2: np.dstack}


def stacked(parts: list[NDArray[Any]], axis: int) -> NDArray[Any] | None:
    """What AxoPy makes of the chunks: one after the other."""
    whole: NDArray[Any] | None = None
    for part in parts:
        whole = part.copy() if whole is None else STACK[axis]([whole, part])
    return whole


def same(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    """Same dtype, shape and bytes."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def of_pieces(array: Array) -> NDArray[Any] | None:
    """What the recorder would store."""
    parts = [piece.data for piece in array.pieces()]
    return chunks.join(parts, array.stack_axis) if parts else None


# --- designs ---------------------------------------------------------------------------------


def test_blocks_and_trials_are_numbered_as_they_are_added() -> None:
    """A trial carries the numbers of its block and of itself, and a design is made of lists."""
    design = Design()
    for _ in range(2):
        block = design.add_block()
        for target in (7, 8):
            block.add_trial(attrs={"target": target})
    assert [block.index for block in design] == [0, 1]
    assert [trial.attrs for trial in design[1]] == [
        {"target": 7, "block": 1, "trial": 0},
        {"target": 8, "block": 1, "trial": 1},
    ]
    assert list(design[1][0].attrs) == ["target", "block", "trial"]
    assert isinstance(design, list)
    assert isinstance(design[0], list)


def test_attributes_given_twice_make_two_trials() -> None:
    """The caller's dictionary is copied, so two trials made of it keep two numbers."""
    attrs = {"target": 1}
    block = Block(3)
    trials = [block.add_trial(attrs), block.add_trial(attrs), block.add_trial()]
    assert attrs == {"target": 1}
    assert [trial.attrs["trial"] for trial in trials] == [0, 1, 2]
    assert trials[2].attrs == {"block": 3, "trial": 2}


def test_attributes_must_be_a_mapping() -> None:
    """Anything else is refused by our own error, which is a TypeError too."""
    with pytest.raises(_errors.InvalidTrial, match="mapping of names to values, not int"):
        Block(0).add_trial(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Block(0).add_trial(["ab", "c"])  # type: ignore[arg-type]


def test_a_block_can_begin_with_trials() -> None:
    """`Block(index, trials)` is AxoPy's constructor."""
    assert [trial.attrs for trial in Block(1, [Trial({"a": 1})])] == [{"a": 1}]


def shuffled(seed: Any, *, reset_index: bool = True) -> Block:
    block = Block(0)
    for target in range(20):
        block.add_trial({"target": target})
    block.shuffle(reset_index, seed)
    return block


def test_a_seed_gives_the_same_order_every_time_and_leaves_random_alone() -> None:
    """A seeded shuffle repeats itself and does not move the global generator."""
    state = random.getstate()
    orders = [[trial.attrs["target"] for trial in shuffled(seed)] for seed in (7, 7, 8, "a")]
    assert random.getstate() == state
    assert orders[0] == orders[1]
    assert orders[0] not in (orders[2], orders[3], sorted(orders[0]))
    assert sorted(orders[0]) == list(range(20))


def test_without_a_seed_the_order_comes_from_random_as_in_axopy() -> None:
    """`random.seed` decides the order of an unseeded shuffle."""
    state = random.getstate()
    try:
        random.seed(3)
        got = [trial.attrs["target"] for trial in shuffled(None)]
        random.seed(3)
        expected = list(range(20))
        random.shuffle(expected)
    finally:
        random.setstate(state)
    assert got == expected


def test_shuffling_numbers_the_trials_anew_unless_told_otherwise() -> None:
    """`reset_index` decides whether `trial` is the new place or the old one."""
    assert [trial.attrs["trial"] for trial in shuffled(1)] == list(range(20))
    kept = shuffled(1, reset_index=False)
    assert [trial.attrs["trial"] for trial in kept] == [trial.attrs["target"] for trial in kept]


def test_a_trial_shows_its_attributes() -> None:
    """`str(trial)` is its attributes; `add_array` passes its keywords on and returns the array."""
    trial = Trial({"a": 1, "b": "x"})
    assert str(trial) == "{'a': 1, 'b': 'x'}"
    array = trial.add_array("emg", data=np.arange(3), stack_axis=0)
    assert trial.arrays == {"emg": array}
    assert array.stack_axis == 0
    assert trial.add_array("emg") is trial.arrays["emg"] is not array


# --- arrays: equal to AxoPy's ----------------------------------------------------------------

DTYPES = st.sampled_from(["?", "i1", "u2", "<i4", ">i4", "i8", "u8", "f4", ">f8", "c16", "S3"])


@st.composite
def fitting_chunks(draw: st.DrawFn) -> tuple[int, list[NDArray[Any]]]:
    """A stack axis and chunks that NumPy stacks along it."""
    axis = draw(st.integers(0, 2))
    ndim = draw(st.integers(0, 3))
    sizes = draw(st.lists(st.integers(0, 3), min_size=ndim, max_size=ndim))
    grows = chunks.growing_axis(len(chunks.normalised(tuple(sizes), axis)), axis)
    parts = []
    for _ in range(draw(st.integers(0, 7))):
        shape = list(sizes)
        if grows < ndim and len(chunks.normalised(tuple(sizes), axis)) == ndim:
            shape[grows] = draw(st.integers(0, 4))
        part: NDArray[Any] = draw(hnp.arrays(draw(DTYPES), tuple(shape)))
        if ndim > 1 and draw(st.booleans()):
            part = np.asfortranarray(part)
        parts.append(part)
    return axis, parts


@given(fitting_chunks(), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_the_result_is_what_axopy_would_have_made(
    drawn: tuple[int, list[NDArray[Any]]], looks: set[int], takes: set[int]
) -> None:
    """For any chunks and any looks in between, `data` and the pieces are NumPy's accumulation."""
    axis, parts = drawn
    array = Array(stack_axis=axis)
    seen = []
    for number, part in enumerate(parts):
        try:
            expected = stacked(parts[: number + 1], axis)
        except TypeError:  # NumPy has no common dtype for some of those above
            return
        buffer = part.copy()
        array.stack(buffer)
        buffer[...] = np.ones((), part.dtype)
        if number in looks:
            seen.append((array.data, expected))
        if number in takes:
            seen.append((of_pieces(array), expected))
    for earlier, expected in seen:
        assert same(earlier, expected)


@given(fitting_chunks(), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_the_result_is_what_the_chunks_left_over_would_have_made(
    drawn: tuple[int, list[NDArray[Any]]], look: int, count: int, taken: int
) -> None:
    """Discarding the first pieces leaves an array of the other chunks."""
    axis, parts = drawn
    parts = [part.astype("f8") for part in parts if part.dtype.kind not in "cS"]
    array = Array(stack_axis=axis)
    for number, part in enumerate(parts):
        if number == taken:
            array.pieces()
        array.stack(part)
        if number == look:
            assert array.data is not None
    if taken >= len(parts):
        array.pieces()
    gone = min(count, taken, len(parts))
    array.discard(count)
    expected = stacked(parts[gone:], axis)
    assert len(array.pieces()) == len(parts) - gone
    assert same(of_pieces(array), expected)
    assert same(array.data, expected)
    array.stack(np.zeros_like(parts[0]) if parts else 1.0)
    assert len(array.pieces()) == len(parts) - gone + 1


def test_a_dtype_is_converted_chunk_by_chunk() -> None:
    """Converting goes through every dtype on the way, as it does when NumPy stacks one by one."""
    parts = [np.array([2**53 + 1]), np.array([0.5]), np.array([0.5], np.longdouble)]
    array = Array()
    for part in parts:
        array.stack(part)
    expected = stacked(parts, 1)
    assert array.data is not None
    assert expected is not None
    assert array.data.dtype == expected.dtype
    assert (array.data == expected).all()


def test_structured_and_dated_chunks_stack_like_any_other() -> None:
    """Structured dtypes, padded ones too, and dates of different units join as NumPy joins them."""
    padded = np.dtype([("t", "u1"), ("x", ">f8")], align=True)
    for parts in (
        [np.ones(2, padded), np.zeros(3, padded)],
        [np.array(["2020-01-01"], "M8[D]"), np.array(["2020-01-01T12"], "M8[h]")],
    ):
        array = Array()
        for part in parts:
            array.stack(part)
        expected = stacked(parts, 1)
        assert expected is not None
        assert array.data is not None
        assert array.data.dtype == expected.dtype
        assert (array.data == expected).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 1)])
def test_looking_after_every_chunk_gives_what_one_look_gives(
    axis: int, shape: tuple[int, ...]
) -> None:
    """Many small chunks, looked at after each: the memory grows many times and loses nothing."""
    array = Array(stack_axis=axis)
    parts = [np.full(shape, number) for number in range(100)]
    for number, part in enumerate(parts):
        array.stack(part)
        assert same(array.data, stacked(parts[: number + 1], axis))
    assert same(of_pieces(array), stacked(parts, axis))


def test_a_look_with_nothing_new_is_free() -> None:
    """`data` is the same object until something is stacked."""
    array = Array()
    for _ in range(3):
        array.stack([1.0, 2.0])
    assert array.data is array.data


def test_the_memory_grows_by_doubling() -> None:
    """A thousand looks at a growing array move it to new memory at most a dozen times."""
    array = Array()
    addresses = set()
    for _ in range(1000):
        array.stack([[1.0], [2.0]])
        assert array.data is not None
        addresses.add(array.data.__array_interface__["data"][0])
    assert len(addresses) <= 12


# --- arrays: whose memory is whose -----------------------------------------------------------


def test_given_data_is_not_copied_until_something_is_stacked() -> None:
    """`Array(data=x).data` is x; stacking leaves x alone and is left alone by it."""
    given_data = np.arange(3.0)
    array = Array(data=given_data)
    assert array.data is given_data
    array.stack([3.0])
    given_data[:] = -1
    assert array.data is not None
    assert array.data.tolist() == [0, 1, 2, 3]
    assert given_data.tolist() == [-1, -1, -1]


def test_data_can_be_set_cleared_and_anything_array_like() -> None:
    """Setting replaces everything, None clears, lists become arrays."""
    array = Array([[1, 2]])
    array.stack([[3]])
    array.data = [4, 5]
    assert same(array.data, np.array([4, 5]))
    assert len(array.pieces()) == 1
    array.data = None
    assert array.data is None
    assert array.pieces() == []
    array.stack(7)
    array.clear()
    assert array.data is None


def test_data_changed_in_place_is_what_is_recorded() -> None:
    """Like AxoPy's, the array that `data` returns may be written to."""
    array = Array()
    for number in range(3):
        array.stack([number, number])
    assert array.data is not None
    array.data *= 10
    array.stack([5])
    array.data[0] = -1
    assert [piece.data.tolist() for piece in array.pieces()] == [[-1, 0], [10, 10], [20, 20], [5]]


@pytest.mark.parametrize("looks", [(), (0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("given_first", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_are_out_of_everybodys_reach(
    looks: tuple[int, ...], axis: int, *, given_first: bool
) -> None:
    """Nothing that the caller can write to shares memory with a piece; each is C-contiguous."""
    start, buffer = np.zeros((3, 3)), np.zeros((3, 3))
    array = Array(data=start if given_first else None, stack_axis=axis)
    reachable = [start, buffer]
    pieces = []
    for number in range(3):
        array.stack(buffer)
        pieces += array.pieces()
        if number in looks:
            assert array.data is not None
            reachable.append(array.data)
            pieces += array.pieces()
    array.stack(buffer)
    assert array.data is not None
    reachable.append(array.data)
    for memory in reachable:
        memory[...] = 9
    assert all(piece.data.shape == (3, 3) for piece in pieces)
    assert all((piece.data == 0).all() for piece in pieces)
    assert all(piece.data.flags.c_contiguous for piece in pieces)
    assert not any(np.shares_memory(piece.data, memory) for piece in pieces for memory in reachable)


def test_copies_of_an_array_are_independent() -> None:
    """Copies, shallow or deep or by pickle, and the original go their own ways."""
    array = Array(stack_axis=0)
    for number in range(4):
        array.stack([number])
    assert array.data is not None
    array.stack([4])
    copies = [copy.copy(array), copy.deepcopy(array), pickle.loads(pickle.dumps(array))]
    array.stack([5])
    for other in copies:
        other.stack([6])
        other.data[0] = 100
    assert array.data is not None
    assert array.data.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    for other in copies:
        assert other.data.ravel().tolist() == [100, 1, 2, 3, 4, 6]
        assert other.stack_axis == 0


def test_each_piece_knows_when_it_arrived() -> None:
    """Arrival times are in order and survive a look at the data."""
    array = Array()
    for number in range(5):
        array.stack([number] * (number + 1))
    before = array.pieces()
    assert array.data is not None
    after = array.pieces()
    assert [piece[1:] for piece in after] == [piece[1:] for piece in before]
    times = [piece.monotonic_ns for piece in after]
    assert times == sorted(times)
    assert min(times) > 0
    assert all(piece.unix_ns > 1_600_000_000 * 10**9 for piece in after)


def test_mixed_dtypes_become_pieces_of_one() -> None:
    """All pieces have the dtype of the whole."""
    array = Array()
    for chunk in ([1, 2], [0.5], [3]):
        array.stack(chunk)
    assert [piece.data.tolist() for piece in array.pieces()] == [[1, 2], [0.5], [3]]
    assert {piece.data.dtype for piece in array.pieces()} == {np.dtype(float)}


def test_discard_leaves_what_came_after_the_pieces_were_taken() -> None:
    """A trial that is accepted while chunks still arrive loses none of them."""
    array = Array()
    array.stack([1])
    array.stack([2])
    taken = array.pieces()
    array.stack([3])
    array.discard(len(taken))
    array.discard(len(taken))
    assert array.data is not None
    assert array.data.tolist() == [3]
    array.pieces()
    array.discard(0)
    array.discard(-1)
    assert array.data.tolist() == [3]
    array.discard(99)
    assert array.data is None


def test_discard_spares_what_took_the_place_of_the_pieces() -> None:
    """Chunks that were stacked after a clear were never among the pieces, so they stay."""
    array = Array()
    array.stack([1])
    taken = array.pieces()
    array.clear()
    array.stack([2])
    array.discard(len(taken))
    assert array.data is not None
    assert array.data.tolist() == [2]


# --- arrays: what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "first", "chunk"),
    [
        (1, np.zeros((8, 10)), np.zeros((7, 10))),
        (1, np.zeros((8, 10)), np.zeros(8)),
        (1, np.zeros(8), np.zeros((8, 1))),
        (0, np.zeros((2, 3)), np.zeros((2, 4))),
        (0, np.zeros(3), np.zeros((2, 3, 1))),
        (2, np.zeros((2, 3)), np.zeros((3, 2))),
        (1, np.zeros(2), np.array(["2020"], "M8[s]")),
        (1, np.zeros(2, [("a", "f8")]), np.zeros(2, [("b", "f8")])),
    ],
)
@pytest.mark.parametrize("look", [False, True])
def test_a_chunk_that_does_not_fit_is_refused_at_once(
    axis: int, first: NDArray[Any], chunk: NDArray[Any], *, look: bool
) -> None:
    """The refusal comes from `stack` itself, is NumPy's own, and changes nothing."""
    array = Array(stack_axis=axis)
    array.stack(first)
    array.stack(first)
    expected = stacked([first, first], axis)
    if look:
        assert same(array.data, expected)
    with pytest.raises((TypeError, ValueError)):
        STACK[axis]([expected, chunk])
    with pytest.raises(_errors.InvalidTrial, match="a chunk "):
        array.stack(chunk)
    assert same(array.data, expected)
    assert len(array.pieces()) == 2
    array.stack(first)
    assert len(array.pieces()) == 3


class Unwilling:
    """Something that cannot become an array, as a tensor on a graphics card cannot."""

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
        raise RuntimeError("still on the device")


@pytest.mark.parametrize(
    "data",
    [object(), [None], [[1], [1, 2]], [{}], np.array([1, "a"], object), Unwilling(), [10**99]],
)
def test_objects_are_no_samples(data: Any) -> None:
    """What would become an array of Python objects is refused wherever it is given."""
    array = Array([1])
    with pytest.raises(_errors.InvalidTrial):
        array.stack(data)
    with pytest.raises(_errors.InvalidTrial):
        array.data = data
    with pytest.raises(_errors.InvalidTrial):
        Array(data)
    assert array.data is not None
    assert array.data.tolist() == [1]


@pytest.mark.parametrize("axis", [3, -1, 1.0, None, "1", True, np.zeros(2)])
def test_there_are_three_stack_axes(axis: Any) -> None:
    """Anything but 0, 1 and 2 is refused before anything is stacked."""
    with pytest.raises(_errors.InvalidTrial, match="stack_axis must be 0, 1 or 2"):
        Array(stack_axis=axis)


def test_the_stack_axis_can_change() -> None:
    """A new stack axis holds for later chunks, as in AxoPy."""
    array = Array(stack_axis=1)
    array.stack([1, 2])
    array.stack([3])
    array.stack_axis = 0
    array.stack([4, 5, 6])
    assert array.data is not None
    assert array.data.tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(_errors.InvalidTrial):
        array.stack_axis = 3


# --- array descriptions ----------------------------------------------------------------------


def test_a_description_is_normalised_and_cannot_be_changed() -> None:
    """Sequences become tuples, dtypes become dtypes, and two equal descriptions are equal."""
    info = ArrayInfo(2000, "mV", ["FCR", "ECR"], ("channel", "time"), np.int64(1), "<f4")  # type: ignore[arg-type]
    assert (info.rate, info.channels, info.dims) == (2000.0, ("FCR", "ECR"), ("channel", "time"))
    assert info.dtype == np.dtype("<f4")
    assert info == ArrayInfo(2000.0, "mV", ("FCR", "ECR"), ["channel", "time"], dtype=np.float32)
    assert hash(info) == hash(copy.copy(info))
    with pytest.raises(AttributeError):
        info.rate = 1.0  # type: ignore[misc]


WRONG: dict[str, list[Any]] = {
    "rate": [0, -1, float("nan"), float("inf"), 10**400, "1", True, [], 1j],
    "unit": [3, b"mV", "m\nV", "\ud800", "\x00"],
    "channels": ["FCR", b"FCR", {"FCR"}, {"FCR": 1}, 3, [1], ["a\x1b"]],
    "dims": ["time", ["time", "time"], [None], 2],
    "stack_axis": [3, "1", None, True],
    "dtype": ["nonsense", object, "U3", "O", [("a", "O")], "V0", 3],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field} {number}")
        for field, values in WRONG.items()
        for number, value in enumerate(values)
    ],
)
def test_a_wrong_description_is_refused_by_name(field: str, value: Any) -> None:
    """The refusal names the field, and the same value from JSON is a FormatError."""
    with pytest.raises(_errors.InvalidTrial, match=field):
        ArrayInfo(**{field: value})
    with pytest.raises(_errors.FormatError):
        ArrayInfo.from_json({field: value if value is not None else [None]})


@pytest.mark.parametrize(
    "info",
    [
        ArrayInfo(),
        ArrayInfo(0.5, "mV", [], (), 0, "S4"),
        ArrayInfo(
            2000, "mV", ["a", "a"], ["channel", "time"], 2, [("t", "<u8"), ("x", "f4", (2, 3))]
        ),
    ],
)
def test_a_description_survives_json(info: ArrayInfo) -> None:
    """What `to_json` gives is JSON, and `from_json` undoes it, whatever a newer version added."""
    described = json.loads(json.dumps(info.to_json()))
    assert ArrayInfo.from_json(described) == info
    assert ArrayInfo.from_json({**described, "colour": "red"}) == info


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    json_values
    | st.dictionaries(
        st.sampled_from(["rate", "unit", "channels", "dims", "stack_axis", "dtype"]), json_values
    )
)
def test_any_other_json_is_a_format_error(described: object) -> None:
    """Whatever stands in a damaged manifest, only our own error comes out."""
    try:
        info = ArrayInfo.from_json(described)
    except _errors.FormatError:
        return
    assert isinstance(described, dict)
    assert isinstance(info, ArrayInfo)


def test_a_chunk_that_is_not_as_declared_is_refused_with_the_reason() -> None:
    """dtype, dimensions and channels are compared, as far as they are declared."""
    info = ArrayInfo(channels=["a", "b"], dims=["channel", "time"], dtype="<f4")
    single = np.dtype("<f4")
    assert info.refusal(single, (2, 10)) is None
    assert info.refusal(np.dtype("<f8"), (2, 10)) == "has dtype float64 where float32 is declared"
    assert info.refusal(single, (20,)) == "has 1 dimensions where ('channel', 'time') are declared"
    assert info.refusal(single, (3, 10)) == "has 3 channels where ('a', 'b') are declared"
    assert ArrayInfo().refusal(single, (1, 2, 3)) is None
    assert ArrayInfo(channels=["a"]).refusal(single, (5,)) is None
    assert ArrayInfo(channels=["a"], dims=["time"]).refusal(single, (5,)) is None
