"""The memory of chunks that wait: every copy is right, stays right, and is given back."""

from __future__ import annotations

import gc
import mmap
import resource
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from tests.test_queue import GatedDisk
from trialstore import QueueFull, Storage
from trialstore._ondisk.disk import use
from trialstore._recording.slabs import (
    KEPT_FREE,
    LARGEST_SHARED,
    MOST_FREE,
    SLAB_BYTES,
    Slabs,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SOURCE = np.arange(2 * 3 * 40, dtype="f8").reshape(2, 3, 40)
_ARRAYS: dict[str, NDArray[Any]] = {
    "plain": _SOURCE,
    "strided": _SOURCE[:, ::2, ::3],
    "transposed": _SOURCE.T,
    "reversed": _SOURCE[..., ::-1],
    "big-endian": _SOURCE.astype(">f8"),
    "complex": _SOURCE.astype("c16"),
    "half": _SOURCE.astype("f2"),
    "bool": _SOURCE > 7,
    "dates": np.arange(5).astype("M8[ns]"),
    "bytes": np.array([b"abc", b"de"]),
    "structured, padded": np.zeros(3, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "no item": np.zeros((4, 0, 2)),
    "no axis": np.array(1.5),
    "larger than a slab": np.arange(SLAB_BYTES // 8 + 3, dtype="i8"),
    "read only": np.frombuffer(bytes(range(16)), "u2"),
}


@pytest.mark.parametrize("name", _ARRAYS)
def test_any_array_is_copied_in_c_order(name: str) -> None:
    """What is in the memory are the array's own bytes, as `tobytes` gives them."""
    array, slabs = _ARRAYS[name], Slabs()
    slabs.copy(np.arange(3, dtype="u1"))  # so that nothing is aligned
    memory, start = slabs.copy(array)
    assert memory[start : start + array.nbytes] == array.tobytes()


@pytest.mark.parametrize("is_prepared", [False, True], ids=["alone", "beside a thread"])
def test_what_was_copied_is_never_written_again(is_prepared: bool) -> None:
    """A thousand copies of different length, over several slabs, are all there in the end."""
    slabs, dice = Slabs(), np.random.default_rng(1)
    kept = []
    for _ in range(1000):
        if is_prepared:
            slabs.prepare()
        array = dice.integers(0, 256, dice.integers(1, 120_000), dtype="u1")
        kept.append((array, *slabs.copy(array)))
        if len(kept) == 400:
            del kept[100:300]
            gc.collect()
    assert len({id(memory) for _, memory, _ in kept}) > 2
    for array, memory, start in kept:
        assert memory[start : start + len(array)] == array.tobytes()


def faults_of_a_slab(slabs: Slabs) -> int:
    """Fill a slab where the one before is full; return how many pages had to be found."""
    chunk = np.ones(LARGEST_SHARED, "u1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(SLAB_BYTES // LARGEST_SHARED):
        slabs.copy(chunk)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def fill(slabs: Slabs) -> memoryview:
    """Leave no room in a slab, the next one if the present one is full; return its memory."""
    memory, start = slabs.copy(np.ones(1, "u1"))
    end = start + 1
    while end < SLAB_BYTES:
        memory, start = slabs.copy(np.ones(min(LARGEST_SHARED, SLAB_BYTES - end), "u1"))
        end = start + min(LARGEST_SHARED, SLAB_BYTES - end)
    return memory


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="pages are found when first used")
def test_the_next_slab_is_ready_when_it_is_begun() -> None:
    """The loop does not wait for a slab's thousand pages where a thread has prepared it."""
    pages = SLAB_BYTES // mmap.PAGESIZE
    slabs = Slabs()
    assert faults_of_a_slab(slabs) > pages / 2
    kept = [slabs._memory]
    slabs.prepare()
    slabs.prepare()  # one is enough
    assert slabs.free == 1
    assert faults_of_a_slab(slabs) < pages / 2
    kept.append(slabs._memory)
    assert faults_of_a_slab(slabs) > pages / 2


def test_nothing_is_prepared_for_a_task_that_does_not_stream() -> None:
    """A few chunks are no reason to take megabytes."""
    slabs = Slabs()
    slabs.prepare()
    slabs.copy(np.ones(1000))
    slabs.prepare()
    assert slabs.free == 0


def test_a_slab_is_used_again_when_nothing_refers_to_it() -> None:
    """Not earlier: a slice of a slice, or an array over it, is a reference."""
    slabs = Slabs()
    memory, start = slabs.copy(np.full(1000, 7, "u1"))
    held: list[Any] = [np.frombuffer(memory[start : start + 1000][10:20], "u1"), memory]
    fill(slabs)
    slabs.copy(np.ones(1))
    del memory
    while held:
        assert slabs.free == 0
        assert bytes(held[0][:10]) == b"\7" * 10
        held.pop()
    gc.collect()
    assert slabs.free == 1
    second = fill(slabs)
    slabs.copy(np.ones(1))
    assert slabs.free == 0, "the free one was not taken"
    del second
    gc.collect()
    assert slabs.free == 1


def test_memory_is_given_back_when_there_is_rest() -> None:
    """Whatever waited for a slow disk: of the slabs, a few are kept."""
    slabs = Slabs()
    waited = [fill(slabs) for _ in range(3 * MOST_FREE)]
    slabs.copy(np.ones(1))
    waited.clear()
    gc.collect()
    assert slabs.free == MOST_FREE
    for _ in range(2 * MOST_FREE):
        slabs.give_back()
    assert slabs.free == KEPT_FREE


def test_what_is_in_use_now_and_then_is_not_given_back() -> None:
    """A batch frees several slabs at once, and the next one takes them again."""
    slabs = Slabs()
    for _ in range(5):
        waited = [fill(slabs) for _ in range(MOST_FREE)]
        slabs.copy(np.ones(1))
        waited.clear()
        gc.collect()
        slabs.give_back()
    assert slabs.free == MOST_FREE


def test_a_large_chunk_has_memory_of_its_own() -> None:
    """And what follows goes on in the slab that was begun."""
    slabs = Slabs()
    memory, start = slabs.copy(np.ones(8, "u1"))
    large, begin = slabs.copy(np.ones(LARGEST_SHARED + 1, "u1"))
    assert (len(large), begin) == (LARGEST_SHARED + 1, 0)
    assert slabs.copy(np.ones(1, "u1")) == (memory, start + 8)
    mapped = weakref.ref(large.obj)
    del large
    gc.collect()
    assert mapped() is None
    assert slabs.free == 0


def test_memory_that_is_not_there_is_a_memory_error() -> None:
    """As for any other object; what was copied before stays."""
    slabs = Slabs()
    memory, start = slabs.copy(np.arange(8, dtype="u1"))
    with pytest.raises(MemoryError, match="no memory"):
        slabs.copy(np.broadcast_to(np.uint8(0), (2**62,)))
    assert memory[start : start + 8] == bytes(range(8))
    assert slabs.copy(np.zeros(1))[0] is memory


@pytest.mark.anyio
async def test_what_is_refused_or_cancelled_takes_up_no_memory(tmp_path: Path) -> None:
    """The queue's bound holds also for an experiment that tries again and again."""
    chunk = np.zeros((4, 1000))
    disk = GatedDisk()
    with use(disk):
        async with Storage(tmp_path, queue_bytes=2 * chunk.nbytes) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.gate.clear()
                task.append_nowait("emg", chunk)
                used = task._channel.slabs._end
                for _ in range(10):
                    with pytest.raises(QueueFull):
                        task.append_nowait("emg", chunk)
                    with anyio.move_on_after(0):
                        await task.append("emg", chunk)
                assert task._channel.slabs._end == used == chunk.nbytes
                disk.gate.set()
