"""A disk that fails: recording goes on elsewhere or in memory, and says so."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from tests.helpers import reader_of
from trialstore import Level, Storage, WriteFailed
from trialstore._ondisk.disk import Disk, use

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Buffer

pytestmark = pytest.mark.anyio


class SickDisk(Disk):
    """Fails writes or syncs below a folder as often as it is told; everything else is real."""

    def __init__(self) -> None:
        self.write_error: OSError | None = None
        self.sync_error: OSError | None = None
        self.failures = 0
        self.limit = 10**9
        self.gate = threading.Event()
        self.gate.set()

    def _fail(self, error: OSError | None) -> None:
        if error is not None and self.failures < self.limit:
            self.failures += 1
            raise error

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """Write, or fail half way."""
        if self.write_error is not None and self.failures < self.limit:
            super().write(fd, pieces[: len(pieces) // 2])
        self._fail(self.write_error)
        super().write(fd, pieces)

    def sync(self, fd: int) -> None:
        """Sync, or fail, or hang until the gate opens."""
        assert self.gate.wait(60)
        self._fail(self.sync_error)
        super().sync(fd)


@pytest.mark.parametrize("kind", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_one_failure_goes_to_a_new_segment(
    tmp_path: Path, kind: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Failover in the same place: receipts become durable, one warning, nothing lost."""
    disk = SickDisk()
    with use(disk):
        async with Storage(tmp_path / "data", keep_journal=True) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                for number in range(6):
                    if number == 3:
                        setattr(disk, f"{kind}_error", OSError(code, "sick"))
                        disk.limit = 1
                    await task.append("emg", np.full((2, 4), number))
                    receipt = await task.write({"n": number})
                    await receipt.durable()
    assert disk.failures == 1
    assert sum("new segment" in record.message for record in caplog.records) == 1

    def look() -> None:
        assert len(list((tmp_path / "data/p0/reach/journal").glob("*.segment"))) == 2
        reader = reader_of(tmp_path / "data")
        assert reader.trials["n"].tolist() == list(range(6))
        assert reader.losses == ()
        assert reader.array("emg", trial=3).tolist() == np.full((2, 4), 3).tolist()

    await anyio.to_thread.run_sync(look)


async def test_a_disk_that_comes_back(tmp_path: Path) -> None:
    """Trials are held in memory, the hook is told once, and all is written when space is back."""
    disk = SickDisk()
    told: list[Any] = []
    heard = anyio.Event()

    def hook(trouble: Any) -> None:
        told.append(trouble)
        heard.set()

    with use(disk):
        async with Storage(tmp_path / "data", on_trouble=hook) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
                await task.flush()
                disk.write_error = OSError(errno.ENOSPC, "No space left on device")
                receipts = [await task.write({"n": number}) for number in range(1, 5)]
                with anyio.fail_after(30):
                    await heard.wait()
                (trouble,) = told
                assert "No space left" in trouble.what
                assert abs(trouble.since - time.time_ns()) < 60e9
                assert trouble.queue_limit == 256 * 2**20
                assert storage.statistics().trouble == trouble.what
                assert {receipt.level for receipt in receipts} == {Level.ACCEPTED}
                disk.write_error = None
                await receipts[-1].durable()
                assert storage.statistics().trouble is None
                assert len(told) == 2
                assert "recording goes on in a new segment" in told[1].what

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == list(range(5))

    await anyio.to_thread.run_sync(look)


async def test_a_second_disk_takes_over(tmp_path: Path) -> None:
    """With `fallback_root` recording goes on there, and everything is published in the end."""

    class HalfDisk(SickDisk):
        def create(self, path: Path) -> int:
            if self.write_error is not None and "data" in path.parts and path.suffix == ".segment":
                raise self.write_error
            return super().create(path)

        def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
            Disk.write(self, fd, pieces)

    disk = HalfDisk()
    with use(disk):
        async with Storage(tmp_path / "data", fallback_root=tmp_path / "second") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
                await task.flush()
                disk.write_error = OSError(errno.EIO, "sick")
                disk.sync_error, disk.limit = disk.write_error, 1
                receipt = await task.write({"n": 1})
                await receipt.durable()
                assert list((tmp_path / "second").rglob("*.segment"))

                def follow() -> None:
                    reader = reader_of(tmp_path / "data")
                    assert (reader.status, reader.trials["n"].tolist()) == ("recording", [0, 1])
                    assert reader.losses == ()

                await anyio.to_thread.run_sync(follow)
                disk.write_error = None

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1]
        assert not list((tmp_path / "second").rglob("*.segment"))

    await anyio.to_thread.run_sync(look)


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_closing_has_its_deadline(tmp_path: Path, how: str) -> None:
    """Past `close_timeout` WriteFailed names the trials that exist nowhere else; nothing hangs."""
    disk = SickDisk()
    with use(disk):
        try:
            with anyio.fail_after(20), pytest.raises(WriteFailed, match="trials 1 to 2") as caught:
                async with Storage(tmp_path / "data", close_timeout=0.5) as storage:
                    storage.subject_id = "p0"
                    async with storage.create_task("reach") as task:
                        await task.write({"n": 0})
                        await task.flush()
                        if how == "hangs":
                            disk.gate.clear()
                        else:
                            disk.write_error = OSError(errno.EIO, "sick")
                        receipt = await task.write({"n": 1})
                        await task.write({"n": 2})
            assert caught.value.trials == (1, 2)
            if how == "fails":
                assert isinstance(caught.value.__cause__, OSError)
            with pytest.raises(WriteFailed):
                await receipt.durable()
            assert receipt.level is Level.ACCEPTED
        finally:
            disk.gate.set()

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist()[0] == 0

    await anyio.to_thread.run_sync(look)


async def test_a_write_failure_does_not_hide_the_experiments_own(tmp_path: Path) -> None:
    """The experiment's exception leaves as itself, with a note of what could not be written."""
    disk = SickDisk()
    with use(disk), pytest.raises(ZeroDivisionError) as caught:
        async with Storage(tmp_path / "data", close_timeout=0.3) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.write_error = OSError(errno.EIO, "sick")
                await task.write({"n": 1})
                raise ZeroDivisionError
    assert any("WriteFailed" in note for note in caught.value.__notes__)
    disk.write_error = None


async def test_flush_has_an_end(tmp_path: Path) -> None:
    """`flush` on a failing disk raises after `close_timeout`, and gives nothing up."""
    disk = SickDisk()
    with use(disk):
        async with Storage(tmp_path / "data", close_timeout=0.5) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.write_error = OSError(errno.EIO, "sick")
                await task.write({"n": 1})
                with anyio.fail_after(20), pytest.raises(WriteFailed):
                    await task.flush()
                disk.write_error = None
                await task.flush()

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [1]

    await anyio.to_thread.run_sync(look)


async def test_a_hook_that_fails_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in `on_trouble` does not end the writer."""
    disk = SickDisk()
    called = anyio.Event()

    def hook(trouble: Any) -> None:
        called.set()
        raise RuntimeError("the hook is broken")

    with use(disk):
        async with Storage(tmp_path / "data", on_trouble=hook) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.write_error = OSError(errno.EIO, "sick")
                receipt = await task.write({"n": 1})
                with anyio.fail_after(30):
                    await called.wait()
                disk.write_error = None
                await receipt.durable()
    assert "hook failed" in caplog.text
