"""Readers under hostile bytes: only our own exceptions come out, and memory stays bounded.

A short round of what ``python -m tests.fuzz`` does at length, and every input that it ever found.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import SEALED, TARGETS, TASK_FILES, frames_of, join, split

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What all inputs of one test together may need beyond what the process had needed before.
_MEMORY = 512 * 2**20
_KILOBYTE = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, getrusage(2)

#: Examples per test: all of this module takes some twenty seconds.
_ROUNDS = {"task": 60, "archive": 60, "journal": 250, "hdf5": 250}
_few = settings(suppress_health_check=list(HealthCheck), max_examples=200)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE


@pytest.fixture(autouse=True)
def memory_is_bounded() -> Iterator[None]:
    """Fail a test whose inputs needed more memory than any of them has a reason for."""
    before = _peak()
    yield
    assert _peak() - before < _MEMORY


@st.composite
def mutations(draw: st.DrawFn, seed: bytes) -> bytes:
    """A seed with a few places overwritten, cut out, doubled, or moved from another place."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 40]))
        match draw(st.sampled_from(["flip", "set", "cut", "double", "move", "end"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "cut":
                del data[at : at + length]
            case "double":
                data[at:at] = data[at : at + length]
            case "move":
                other = draw(st.integers(0, len(data)))
                data[at : at + length] = data[other : other + length]
            case "end":
                del data[at:]
            case _:
                pass
    return bytes(data)


def test_every_target_has_seeds_that_are_whole() -> None:
    """Fuzzing begins from inputs of every reader, and none of them is a finding."""
    for name, target in TARGETS.items():
        assert seeds(name)
        for seed in seeds(name):
            target(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_only_our_errors_come_out_of_a_mutated_sample(name: str) -> None:
    """Whatever becomes of a whole sample, its reader raises nothing but our own exceptions."""

    @settings(_few, max_examples=_ROUNDS.get(name, 200))
    @given(st.sampled_from(seeds(name)).flatmap(mutations))
    def attack(data: bytes) -> None:
        TARGETS[name](data)

    attack()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_only_our_errors_come_out_of_any_bytes(name: str) -> None:
    """Bytes that never were a sample are refused by our own exceptions, or mean something."""

    @settings(_few, max_examples=_ROUNDS.get(name, 200) // 4)
    @given(st.binary(max_size=200))
    def attack(data: bytes) -> None:
        TARGETS[name](data)

    attack()


#: JSON that frames and manifests are made of, with the numbers that hurt.
_NUMBERS = st.sampled_from([0, 1, -1, 3, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**40])
_TEXTS = st.sampled_from(
    ["", "emg", "t", "<f8", "|O", "\x1b[2J", "../x", "complete", "a\0b", "int"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.floats() | _TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_TEXTS | st.just("trials"), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one node, at any depth, replaced or taken away."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 9)) == 0:
            return {name: kept for name, kept in value.items() if name != key}
        return {**value, key: draw(edited(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(edited(value[at])), *value[at + 1 :]]
    return draw(_JSON)


def _sealed(name: str) -> list[bytes]:
    return [seed[1:] for seed in seeds(name) if seed.startswith(SEALED)]


@pytest.mark.slow
@_few
@given(st.data())
def test_a_manifest_that_fits_its_checksum_is_still_not_believed(data: st.DataObject) -> None:
    """Any JSON under a right checksum, alone and in its task, raises nothing but our exceptions."""
    described, *others = split(_sealed("task")[0], len(TASK_FILES))
    values = json.loads(described)
    values.pop("checksum")
    changed = json.dumps(data.draw(edited(values))).encode()
    TARGETS["manifest"](SEALED + changed)
    TARGETS["task"](SEALED + join(changed, *others))


@pytest.mark.slow
@_few
@given(st.data())
def test_frames_that_fit_their_checksums_are_still_not_believed(data: st.DataObject) -> None:
    """Any JSON in whole frames, in any order, raises nothing but our exceptions."""
    frames = frames_of(split(_sealed("journal")[0], 2)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frames) - 1))
        head, meta, body = frames[at]
        meta = json.dumps(data.draw(edited(json.loads(meta)))).encode()
        frames[at] = head, meta, body[: data.draw(st.sampled_from([0, 7, 10**6]))]
    order = data.draw(st.permutations(range(len(frames)))) if data.draw(st.booleans()) else ()
    chosen = [frames[at] for at in order] or frames
    described = b"".join(head + join(meta, body) for head, meta, body in chosen)
    TARGETS["journal"](SEALED + join(described, b""))
    TARGETS["task"](SEALED + join(*[b""] * (len(TASK_FILES) - 1), described))


#: Inputs that were findings once: target, and the input in base 64.
FOUND = [
    ("lock", "W1tb" * 1365),  # lists in lists: RecursionError
    (
        "pickle",  # a half-made pandas object as the state of a dtype: a crash of the interpreter
        (
            "gARYBQAAAG51bXB5WAUAAABkdHlwZZNYAgAAAE04iYiHUlgeAAAAcGFuZGFzLmNvcmUuYXJyYXlz"
            "LmNhdGVnb3JpY2FsWAsAAABDYXRlZ29yaWNhbJMpgWIu"
        ),
    ),
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once_is_not_found_again(name: str, data: str) -> None:
    """Every input that once ended a fuzzing run is now refused as it should be."""
    TARGETS[name](base64.b64decode(data))
