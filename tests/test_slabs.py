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
from trialstore._recording.slabs import SLAB_BYTES, Slabs

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
        array = dice.integers(0, 256, dice.integers(1, 40_000), dtype="u1")
        kept.append((array, *slabs.copy(array)))
    assert len({id(memory) for _, memory, _ in kept}) > 3
    for array, memory, start in kept:
        assert memory[start : start + len(array)] == array.tobytes()


def faults_of_a_slab(slabs: Slabs) -> int:
    """Fill a slab; return how many of its pages had to be found meanwhile."""
    chunk = np.ones(SLAB_BYTES, "u1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    slabs.copy(chunk)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="pages are found when first used")
def test_the_next_slab_is_ready_when_it_is_begun() -> None:
    """The loop does not wait for a slab's thousand pages where a thread has prepared it."""
    pages = SLAB_BYTES // mmap.PAGESIZE
    slabs = Slabs()
    assert faults_of_a_slab(slabs) > pages / 2
    slabs.prepare()
    slabs.prepare()  # one is enough
    assert faults_of_a_slab(slabs) < pages / 2
    assert faults_of_a_slab(slabs) > pages / 2


def test_nothing_is_prepared_for_a_task_that_does_not_stream() -> None:
    """A few chunks are no reason to take megabytes."""
    slabs = Slabs()
    slabs.prepare()
    slabs.copy(np.ones(1000))
    slabs.prepare()
    assert faults_of_a_slab(slabs) > SLAB_BYTES // mmap.PAGESIZE / 2


def test_memory_is_given_back_with_the_last_chunk_in_it() -> None:
    """Nothing holds a slab but the chunks in it, once the next has been begun."""
    slabs = Slabs()
    memory, _ = slabs.copy(np.zeros(10))
    mapped = weakref.ref(memory.obj)
    slabs.copy(np.zeros(SLAB_BYTES, "u1"))
    assert mapped() is not None
    del memory
    gc.collect()
    assert mapped() is None


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
