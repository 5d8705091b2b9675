"""How recordings end: exceptions, cancellation, signals, exits, forks."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest

from tests.conftest import wait_until
from tests.helpers import open_task, reader_of
from trialstore import Storage, StorageError
from trialstore._ondisk.lock import holder
from trialstore._publishing.modesty import be_modest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BACKENDS = ("asyncio", "uvloop", "trio")

PRELUDE = """
import os, signal, sys, gc, warnings
import anyio, numpy as np
from trialstore import Storage, StorageReader

def run(main):
    name = sys.argv[2]
    options = {"use_uvloop": name == "uvloop"} if name != "trio" else {}
    return anyio.run(main, backend="trio" if name == "trio" else "asyncio", backend_options=options)

async def fill(task, trials=5):
    for number in range(trials):
        await task.append("emg", np.full((2, 10), number))
        await task.write({"n": number})
"""


class Script:
    """A Python program in a process of its own."""

    def __init__(self, code: str, root: Path, backend: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(root), backend],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root.parent,
            **options,
        )

    def wait_for_line(self) -> str:
        """Return the next line the program prints."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        return line.strip()

    def end(self) -> tuple[int, str, str]:
        """Wait for the program; return exit code, output and errors."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def clean(self) -> None:
        """End the program whatever it does, and close its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Start programs that do not outlive the test."""
    started: list[Script] = []

    def start(*args: Any, **options: Any) -> Script:
        started.append(Script(*args, **options))
        return started[-1]

    yield start
    for program in started:
        program.clean()


def settled(root: Path, task: str = "reach") -> Any:
    """Wait until the publisher has finished the task; return its reader."""
    folder = root / "p0" / task

    def is_done() -> bool:
        return not any(path.name == "journal" or path.name[0] == "." for path in folder.iterdir())

    assert wait_until(is_done), list(folder.iterdir())
    return reader_of(root, task)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Run a program on each event loop."""
    name: str = request.param
    return name


# --- inside one process ---------------------------------------------------------------------------


class ExperimentError(Exception):
    """What an experiment raises."""


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["storage", "task"])
async def test_an_exception_leaves_as_itself(tmp_path: Path, where: str) -> None:
    """Not wrapped in a group; what was accepted is published; the traceback is in the manifest."""
    with pytest.raises(ExperimentError) as caught:
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            if where == "task":
                async with storage.create_task("reach") as task:
                    await task.append("emg", np.zeros((2, 3)))
                    await task.write({"n": 1})
                    await task.append("emg", np.ones((2, 3)))
                    raise ExperimentError("the amplifier fell")
            task = await storage.create_task("reach")
            await task.append("emg", np.zeros((2, 3)))
            await task.write({"n": 1})
            await task.append("emg", np.ones((2, 3)))
            raise ExperimentError("the amplifier fell")
    assert caught.value.args == ("the amplifier fell",)
    assert not hasattr(caught.value, "__notes__")

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert reader.status == "interrupted"
        assert reader.trials["n"].tolist() == [1]
        manifest = (tmp_path / "data/p0/reach/manifest.json").read_text()
        assert "ExperimentError: the amplifier fell" in manifest
        import h5py

        with h5py.File(tmp_path / "data/p0/reach/interrupted/emg.hdf5") as file:
            (key,) = (name for name in file if name != "timing")
            assert key.startswith("1_")
            assert file[key][:].tolist() == np.ones((2, 3)).tolist()

    await anyio.to_thread.run_sync(look)


@pytest.mark.anyio
async def test_an_exception_group_is_not_added(tmp_path: Path) -> None:
    """An experiment that runs its own task group sees its own group and nothing of ours."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_task(tmp_path / "data") as task:
            await task.write({"n": 1})
            async with anyio.create_task_group() as tasks:

                async def fail() -> None:
                    raise ExperimentError

                tasks.start_soon(fail)
    assert [type(error) for error in caught.value.exceptions] == [ExperimentError]


@pytest.mark.anyio
async def test_cancellation_and_time_outs_keep_everything(tmp_path: Path) -> None:
    """A scope cancelled around the whole session leaves everything accepted published."""
    with anyio.move_on_after(5) as scope:
        async with open_task(tmp_path / "data") as task:
            for number in range(100):
                task.write_nowait({"n": number})
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, len(reader.trials)) == ("interrupted", 100)

    await anyio.to_thread.run_sync(look)


@pytest.mark.anyio
async def test_cancelling_aclose_does_not_lose_anything(tmp_path: Path) -> None:
    """`aclose` is shielded: it finishes although its caller is cancelled."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        task = await storage.create_task("reach")
        for number in range(100):
            task.write_nowait({"n": number})
        with anyio.CancelScope() as scope:
            scope.cancel()
            await task.aclose()
        assert "closed" in repr(task)

        def look() -> None:
            reader = reader_of(tmp_path / "data")
            assert (reader.status, len(reader.trials)) == ("complete", 100)

        await anyio.to_thread.run_sync(look)


@pytest.mark.anyio
async def test_a_dropped_task_warns(tmp_path: Path) -> None:
    """A forgotten TaskWriter gives a ResourceWarning, and the Storage closes its task."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        task = await storage.create_task("reach")
        await task.write({"n": 1})
        with pytest.warns(ResourceWarning, match="reach"):
            del task
            gc.collect()

    def look() -> None:
        assert len(reader_of(tmp_path / "data").trials) == 1

    await anyio.to_thread.run_sync(look)


# --- processes of their own -----------------------------------------------------------------------


def test_ctrl_c_publishes_and_reaches_only_the_experiment(
    tmp_path: Path, backend: str, script: Callable[..., Script]
) -> None:
    """SIGINT to the foreground group, as from a terminal, leaves everything accepted published."""
    code = """
        async def main():
            async with Storage(sys.argv[1]) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    await fill(task)
                    print("ready", flush=True)
                    await anyio.sleep(60)
        try:
            run(main)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    program = script(code, tmp_path / "data", backend, start_new_session=True)
    assert program.wait_for_line() == "ready"
    os.killpg(program.process.pid, signal.SIGINT)
    code_out, _, err = program.end()
    assert code_out == 130, err
    reader = settled(tmp_path / "data")
    assert (reader.status, reader.trials["n"].tolist()) == ("interrupted", [0, 1, 2, 3, 4])


def test_sys_exit_publishes(tmp_path: Path, backend: str, script: Callable[..., Script]) -> None:
    """`sys.exit` in the middle of an experiment loses nothing and keeps its exit code."""
    code = """
        async def main():
            async with Storage(sys.argv[1]) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    await fill(task)
                    sys.exit(7)
        run(main)
    """
    code_out, _, err = script(code, tmp_path / "data", backend).end()
    assert code_out == 7, err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("interrupted", 5)


def test_the_loop_closed_under_us(tmp_path: Path, script: Callable[..., Script]) -> None:
    """When an asyncio loop is closed, what was accepted is written at exit, with a warning."""
    code = """
        import asyncio
        warnings.simplefilter("always")
        async def main():
            storage = Storage(sys.argv[1])
            await storage.__aenter__()
            globals()["kept"] = storage
            storage.subject_id = "p0"
            task = await storage.create_task("reach")
            globals()["kept_task"] = task
            await fill(task)
            for number in range(50):
                task.write_nowait({"n": number})
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    """
    code_out, _, err = script(code, tmp_path / "data", "asyncio").end()
    assert code_out == 0, err
    assert "ResourceWarning" in err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("interrupted", 55)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])  # trio calls it an error of its own
def test_a_loop_that_ends_with_the_storage_open(
    tmp_path: Path, backend: str, script: Callable[..., Script]
) -> None:
    """Nobody closes it: the program ends all the same, and what was accepted is written at exit."""
    code = """
        warnings.simplefilter("always")
        async def main():
            storage = Storage(sys.argv[1])
            await storage.__aenter__()
            storage.subject_id = "p0"
            task = await storage.create_task("reach")
            await fill(task)
            for number in range(50):
                task.write_nowait({"n": number})
            raise SystemExit(7)
        run(main)
    """
    code_out, _, err = script(code, tmp_path / "data", backend).end()
    assert code_out == 7, err
    assert "ResourceWarning" in err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("interrupted", 55)


def test_a_closed_coroutine(tmp_path: Path, script: Callable[..., Script]) -> None:
    """A coroutine that is thrown away (GeneratorExit) writes what was accepted without awaiting."""
    code = """
        import asyncio
        async def main():
            async with Storage(sys.argv[1]) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    await fill(task)
                    for number in range(50):
                        task.write_nowait({"n": number})
                    await asyncio.Event().wait()
        loop = asyncio.new_event_loop()
        task = loop.create_task(main())
        loop.run_until_complete(asyncio.sleep(2))
        coro = task.get_coro()
        task._log_destroy_pending = False
        del task
        loop.close()
        gc.collect()
        coro.close()
        print("closed")
    """
    code_out, out, err = script(code, tmp_path / "data", "asyncio").end()
    assert (code_out, out.strip()) == (0, "closed"), err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("interrupted", 55)


def test_a_forgotten_storage(tmp_path: Path, script: Callable[..., Script]) -> None:
    """A garbage-collected Storage warns and loses nothing."""
    code = """
        warnings.simplefilter("always")
        async def main():
            storage = Storage(sys.argv[1])
            await storage._recorder.open()
            storage._recorder.start(lambda function: None)
            import weakref
            from trialstore import _storage
            storage._finalizer = weakref.finalize(
                storage, _storage._left_open, storage._recorder, repr(storage))
            storage.subject_id = "p0"
            task = await storage.create_task("reach")
            for number in range(50):
                task.write_nowait({"n": number})
            await anyio.lowlevel.checkpoint()
            del task, storage
            gc.collect()
            print("collected")
        import anyio.lowlevel
        run(main)
    """
    code_out, out, err = script(code, tmp_path / "data", "asyncio").end()
    assert (code_out, out.strip()) == (0, "collected"), err
    assert "ResourceWarning" in err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("interrupted", 50)


@pytest.mark.leaves_files
def test_kill_keeps_every_durable_trial(
    tmp_path: Path, backend: str, script: Callable[..., Script]
) -> None:
    """After kill -9 the publisher completes the task with every acknowledged trial, and ends."""
    code = """
        async def main():
            async with Storage(sys.argv[1]) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    for number in range(100_000):
                        await task.append("emg", np.full((2, 10), number))
                        receipt = await task.write({"n": number})
                        if number % 10 == 0:
                            await receipt.durable()
                            print(number, flush=True)
        run(main)
    """
    program = script(code, tmp_path / "data", backend)
    acknowledged = -1
    while acknowledged < 200:
        acknowledged = int(program.wait_for_line())
    program.process.kill()
    rest = program.end()[1].split()
    acknowledged = max([acknowledged, *map(int, rest)])
    reader = settled(tmp_path / "data")
    assert reader.status == "interrupted"
    numbers = reader.trials["n"].tolist()
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged
    for number, array in enumerate(reader.iterarray("emg")):
        assert array is not None
        assert array.tolist() == np.full((2, 10), number).tolist()
    assert reader.losses == ()


@pytest.fixture
def ordinary_priority() -> Iterator[None]:
    """Let a test begin at the priority that an experiment has, where the user may raise it."""
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except PermissionError:
        pytest.skip("the tests have the lowest priority and may not raise it")
    yield
    be_modest()


@pytest.mark.usefixtures("ordinary_priority")
def test_the_publisher_is_not_in_the_terminals_group(
    tmp_path: Path, script: Callable[..., Script]
) -> None:
    """The child has a group of its own and the lowest priority, and ends with its work.

    It is in the recorder's session: where it had its own, Linux's autogroup feature gave it as much
    of the processors as the recorder, however low its priority was.
    """
    code = """
        async def main():
            async with Storage(sys.argv[1]) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    await fill(task)
                    await task.publish()
                    print(storage._recorder.publisher.pid, flush=True)
                    sys.stdin.readline()
        run(main)
    """
    program = script(code, tmp_path / "data", "asyncio", stdin=subprocess.PIPE)
    pid = int(program.wait_for_line())
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == os.getsid(program.process.pid)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert program.process.stdin is not None
    program.process.stdin.close()
    program.process.stdin = None
    assert program.end()[0] == 0
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.anyio
async def test_the_publisher_is_restarted(tmp_path: Path) -> None:
    """A publisher that is killed is started again and begins from the journal."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            for number in range(20):
                await task.append("emg", np.full((2, 10), number))
                await task.write({"n": number})
            await task.publish()
            pid = storage._recorder.publisher.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await task.append("emg", np.full((2, 10), 20))
            await task.write({"n": 20})
            await task.publish()
            second = storage._recorder.publisher.pid
            assert second is not None
            assert second != pid
            os.kill(second, signal.SIGKILL)

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, len(reader.trials)) == ("complete", 21)
        assert reader.array("emg", trial=20).tolist() == np.full((2, 10), 20).tolist()

    await anyio.to_thread.run_sync(look)


@pytest.mark.leaves_files
@pytest.mark.anyio
async def test_a_publisher_that_always_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After repeated deaths journal and task stay readable, and the recorder says so."""
    from trialstore import PublishFailed
    from trialstore._recording import publisher

    monkeypatch.setattr(publisher, "_PROGRAM", "import os, signal; os.kill(os.getpid(), 9)")
    with pytest.raises(PublishFailed, match="journal is whole"):
        async with open_task(tmp_path / "data") as task:
            await task.write({"n": 1})

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, len(reader.trials), reader.losses) == ("complete", 1, ())

    await anyio.to_thread.run_sync(look)


@pytest.mark.anyio
async def test_without_a_child_a_thread_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no process can be started the task is published at its close, with one warning."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    async with open_task(tmp_path / "data") as task:
        await task.append("emg", np.zeros((2, 3)))
        await task.write({"n": 1})
    assert "no publisher process" in caplog.text

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, reader.array("emg").shape) == ("complete", (2, 3))
        assert not (tmp_path / "data/p0/reach/journal").exists()

    await anyio.to_thread.run_sync(look)


@pytest.mark.anyio
async def test_a_forked_child_cannot_write_and_frees_the_lock(tmp_path: Path) -> None:
    """After fork the child's objects refuse; the parent goes on, and its lock is its own."""
    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 1})
        await task.flush()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child
            try:
                task.write_nowait({"n": 99})
            except StorageError as error:
                os.write(writing, str(error).encode())
            os.close(writing)
            signal.pause()
        try:
            os.close(writing)
            assert "fork" in await anyio.to_thread.run_sync(lambda: os.read(reading, 1000).decode())
            os.close(reading)
            await task.write({"n": 2})
            await task.aclose()
            # The child still lives: if it had kept the lock, the task would be in use for ever.

            def look() -> None:
                assert holder(tmp_path / "data/p0/reach/journal/lock") is None
                reader = reader_of(tmp_path / "data")
                assert (reader.status, reader.trials["n"].tolist()) == ("complete", [1, 2])

            await anyio.to_thread.run_sync(look)
        finally:
            os.kill(pid, signal.SIGKILL)
            await anyio.to_thread.run_sync(os.waitpid, pid, 0)


def test_ctrl_c_twice(tmp_path: Path, backend: str, script: Callable[..., Script]) -> None:
    """An impatient second Ctrl-C, in the middle of closing, loses nothing and tells no untruth."""
    code = """
        import time
        from trialstore._ondisk.disk import Disk, use
        class Slow(Disk):
            slow = False
            def sync(self, fd):
                if self.slow:
                    print("closing", flush=True)
                    time.sleep(0.2)
                super().sync(fd)
        disk = Slow()
        async def main():
            async with Storage(sys.argv[1]) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    await fill(task)
                    await task.flush()
                    disk.slow = True
                    for number in range(50):
                        task.write_nowait({"n": number})
                    print("ready", flush=True)
                    await anyio.sleep(60)
        try:
            with use(disk):
                run(main)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    program = script(code, tmp_path / "data", backend, start_new_session=True)
    assert program.wait_for_line() in ("ready", "closing")
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.wait_for_line() in ("ready", "closing")
    os.killpg(program.process.pid, signal.SIGINT)
    code_out, _, err = program.end()
    assert code_out == 130, err
    assert "WriteFailed" not in err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("interrupted", 55)


def test_asyncios_own_time_out_while_closing(tmp_path: Path, script: Callable[..., Script]) -> None:
    """A cancellation of asyncio's own passes shields; closing finishes, then it is raised."""
    code = """
        import asyncio, time
        from trialstore._ondisk.disk import Disk, use
        class Slow(Disk):
            def sync(self, fd):
                time.sleep(0.05)
                super().sync(fd)
        async def main():
            storage = Storage(sys.argv[1])
            async with storage:
                storage.subject_id = "p0"
                task = await storage.create_task("reach")
                for number in range(50):
                    task.write_nowait({"n": number})
                try:
                    async with asyncio.timeout(0.01):
                        await task.aclose()
                    print("no time-out")
                except TimeoutError:
                    print("time-out", task)
        with use(Slow()):
            asyncio.run(main())
    """
    code_out, out, err = script(code, tmp_path / "data", "asyncio").end()
    assert (code_out, out.strip()) == (0, "time-out <TaskWriter 'reach': closed>"), err
    reader = settled(tmp_path / "data")
    assert (reader.status, len(reader.trials)) == ("complete", 50)


@pytest.mark.anyio
async def test_a_task_that_is_just_being_closed(tmp_path: Path) -> None:
    """Leaving the Storage while another task of the experiment closes the writer waits for it."""
    async with anyio.create_task_group() as tasks:
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            task = await storage.create_task("reach")
            for number in range(100):
                task.write_nowait({"n": number})
            tasks.start_soon(task.aclose)
            await anyio.lowlevel.checkpoint()
        assert "closed" in repr(task)

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, len(reader.trials)) == ("complete", 100)

    await anyio.to_thread.run_sync(look)
