"""The recording half of the public interface: composition, checks at the call, and docstrings.

What happens behind it stands in ``_recording``; the road of a trial is drawn in the package's
docstring.
"""

from __future__ import annotations

import json
import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.to_thread

from trialstore._errors import InvalidName, InvalidTrial, PublishFailed, StorageError
from trialstore._ondisk import layout, pickles
from trialstore._ondisk.archive import storage_to_zip
from trialstore._ondisk.layout import PICKLE_SUFFIX, check_name, pickle_path, trash_path
from trialstore._reading.storage import StorageReader
from trialstore._recording import opening
from trialstore._recording.intake import ArrayNames
from trialstore._recording.recorder import Recorder, warn_unclosed
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping
    from types import TracebackType
    from typing import Self

    from anyio.abc import TaskGroup
    from numpy.typing import ArrayLike

    from trialstore._recording.channel import Channel
    from trialstore._recording.opening import Opened
    from trialstore._recording.receipt import Receipt
    from trialstore._recording.statistics import Statistics
    from trialstore._recording.trouble import Trouble

    StrPath = str | os.PathLike[str]

logger = logging.getLogger("trialstore")

_POLICIES = ("wait", "raise", "drop")


class Storage(StorageReader):
    """Records experiments, and reads what was recorded.

    Guarantee: no call on the event loop waits for the disk, and every trial that was accepted is
    durable, or named in an exception, when ``async with`` is left.

    Parameters
    ----------
    root : path, optional
        Folder of the data; created when recording starts.
    allow_overwrite : bool, optional
        `create_task` moves an older task of that name to the trash (``ROOT.trash``) instead of
        raising.
    queue_bytes : int, optional
        Bound of the queue between experiment and disk, in bytes; what is not durable yet counts.
    on_full : {'wait', 'raise', 'drop'}, optional
        What `TaskWriter.write` and `TaskWriter.append` do when the queue has no room: wait for it,
        raise `QueueFull`, or refuse the newest, which is counted and stored with the data as a
        `Loss`.
    fallback_root : path or None, optional
        Folder on another disk, where recording goes on when the first one fails.
    keep_journal : bool, optional
        Leave the journal in place after publication.
    close_timeout : float, optional
        Seconds within which closing must have made everything durable.
    on_trouble : callable or None, optional
        Called on the event loop with a frozen record (``what``, ``since``, ``queue_bytes``,
        ``queue_limit``, ``free_bytes``) when something goes wrong.

    Raises
    ------
    StorageError
        If a parameter makes no sense. On entering: if the root is a file or cannot be written.

    Examples
    --------
    >>> async def experiment():
    ...     async with Storage("data") as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             await task.write({"target": 3, "hit": True})
    """

    def __init__(
        self,
        root: StrPath = "data",
        allow_overwrite: bool = False,  # noqa: FBT001, FBT002 - AxoPy's signature
        *,
        queue_bytes: int = 256 * 2**20,
        on_full: Literal["wait", "raise", "drop"] = "wait",
        fallback_root: StrPath | None = None,
        keep_journal: bool = False,
        close_timeout: float = 30.0,
        on_trouble: Callable[[Trouble], object] | None = None,
    ) -> None:
        super().__init__(root)
        if on_full not in _POLICIES:
            raise StorageError(f"on_full must be one of {_POLICIES}, not {on_full!r}")
        if type(queue_bytes) is not int or queue_bytes < 1:
            raise StorageError(f"queue_bytes must be a positive int, not {queue_bytes!r}")
        if not close_timeout > 0:
            raise StorageError(
                f"close_timeout must be a positive number of seconds, not {close_timeout!r}"
            )
        self.allow_overwrite: bool = bool(allow_overwrite)
        self._tasks: TaskGroup | None = None
        self._recorder = Recorder(
            self.root,
            queue_bytes=queue_bytes,
            on_full=on_full,
            fallback_root=None if fallback_root is None else Path(fallback_root),
            keep_journal=keep_journal,
            close_timeout=float(close_timeout),
            on_trouble=on_trouble,
            publish_here=_publish_here,
        )
        self._finalizer: weakref.finalize[..., Storage] | None = None

    async def __aenter__(self) -> Self:
        await self._recorder.open()
        self._finalizer = weakref.finalize(self, _left_open, self._recorder, repr(self))
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._recorder.start(self._tasks.start_soon)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, GeneratorExit):
            # The coroutine is being thrown away: nothing can be awaited any more.
            self._recorder.abandon("the experiment's coroutine was closed")
            return
        problems: list[StorageError] = []

        async def close() -> None:
            problems.extend(await self._recorder.close(error))

        interruption = None
        try:
            await self._recorder.insist(close)
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as late:
            interruption = late
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._tasks is not None:
            # The writer has ended: this waits for nothing, and nothing can be wrapped in a group.
            try:
                await self._tasks.__aexit__(None, None, None)
            except BaseExceptionGroup:
                # Only a KeyboardInterrupt can have ended our tasks; it went through the loop.
                interruption = interruption or KeyboardInterrupt()
        _raise_or_note(problems, error)
        if interruption is not None:
            raise interruption

    def create_task(
        self,
        task_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        arrays: Mapping[str, ArrayInfo] | None = None,
        repeat: bool = False,
    ) -> TaskOpening:
        """Create a task for the current subject: ``await`` it, or enter it with ``async with``.

        Parameters
        ----------
        task_id : str
            Name of the task, which becomes a folder.
        metadata : Mapping, optional
            Anything JSON can hold; stored in the manifest.
        arrays : Mapping, optional
            Declares arrays by name: sampling rate, unit, channels, dims. Others may be written as
            well.
        repeat : bool, optional
            Take the next free name (``reach_run-02``) instead of raising.

        Raises
        ------
        InvalidName, InvalidTrial
            At once, if a name or the metadata cannot be stored.
        StorageError
            At once, if no subject is set or the Storage is not entered; when awaited, if the disk
            refuses.
        TaskExists
            When awaited, if the subject has started the task before.
        TaskLocked
            When awaited, if the task is to be overwritten and is being recorded.
        """
        name = check_name(task_id, "task")
        described = _plain_metadata(metadata or {})
        declared = _declared(arrays or {})
        place = self._recorder.place(self._require_subject())
        overwrite = self.allow_overwrite
        return TaskOpening(
            self._recorder,
            lambda: opening.create(
                place,
                name,
                metadata=described,
                arrays=declared,
                repeat=repeat,
                overwrite=overwrite,
            ),
        )

    def resume_task(self, task_id: str) -> TaskOpening:
        """Go on with a task after a crash or on a later day; trial numbers continue.

        Guarantee: no byte that an earlier session wrote is changed in place.

        Raises
        ------
        InvalidName, StorageError
            At once, as `create_task`.
        TaskNotFound
            When awaited, if the subject has not started the task.
        TaskLocked
            When awaited, if another recorder has it; the message names host, process and since
            when.
        FormatError, DamagedData
            When awaited, if the task is not trialstore's, or its manifest is damaged.
        """
        name = check_name(task_id, "task")
        place = self._recorder.place(self._require_subject())
        return TaskOpening(self._recorder, lambda: opening.resume(place, name))

    async def flush(self) -> None:
        """Wait until everything accepted so far, of all open tasks, is durable.

        Raises
        ------
        WriteFailed
            If the disk refuses for longer than `close_timeout`.
        """
        self._recorder.lifecycle.require_open()
        for channel in list(self._recorder.channels):
            await self._recorder.flush(channel)

    def statistics(self) -> Statistics:
        """Return the figures of all tasks of this Storage, in microseconds and without the disk."""
        return self._recorder.statistics()

    async def to_zip(self, outfile: StrPath | None = None) -> str:  # type: ignore[override]
        """Archive the whole root in a worker thread; see `storage_to_zip`.

        Returns
        -------
        str
            Name of the archive.

        Raises
        ------
        StorageError
            If the root is no folder or the archive cannot be written.
        """
        return await anyio.to_thread.run_sync(lambda: storage_to_zip(self.root, outfile))

    def _require_subject(self) -> str:
        self._recorder.lifecycle.require_open()
        if self._subject_id is None:
            raise StorageError("no subject is set: give storage.subject_id a name first")
        return self._subject_id


class TaskOpening:
    """What `Storage.create_task` gives: awaitable, and an async context manager, once."""

    def __init__(self, recorder: Recorder, prepare: Callable[[], Opened]) -> None:
        self._recorder = recorder
        self._prepare: Callable[[], Opened] | None = prepare
        self._writer: TaskWriter | None = None

    def __await__(self) -> Generator[Any, Any, TaskWriter]:
        return self._open().__await__()

    async def __aenter__(self) -> TaskWriter:
        self._writer = await self._open()
        return self._writer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            await self._writer.__aexit__(kind, error, trace)

    async def _open(self) -> TaskWriter:
        prepare, self._prepare = self._prepare, None
        if prepare is None:
            raise StorageError(
                "this task was opened already: call create_task or resume_task again"
            )
        return TaskWriter(self._recorder, await self._recorder.open_task(prepare))


class TaskWriter:
    """Records one task. You get one from `Storage.create_task` or `Storage.resume_task`.

    Guarantee: each call takes all of a trial or chunk, or nothing, also when it is cancelled.

    Attributes
    ----------
    trials : TrialWriter
        For rows alone.

    Examples
    --------
    >>> async def block(task, amplifier):
    ...     async for chunk in amplifier:
    ...         await task.append("emg", chunk)
    ...     receipt = await task.write({"target": 3})
    ...     await receipt.durable()
    """

    def __init__(self, recorder: Recorder, channel: Channel) -> None:
        self._recorder = recorder
        self._channel = channel
        self.trials: TrialWriter = TrialWriter(channel)
        self._finalizer = weakref.finalize(self, _unclosed_task, channel)
        self._finalizer.atexit = False  # the Storage says it then

    def __repr__(self) -> str:
        return f"<TaskWriter {self.task_id!r}: {self._channel.lifecycle.state.value}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, GeneratorExit):
            self._recorder.abandon("the experiment's coroutine was closed")
            return
        problems: list[StorageError] = []
        try:
            await self._close(error)
        except StorageError as problem:
            problems.append(problem)
        _raise_or_note(problems, error)

    @property
    def task_id(self) -> str:
        """Name of the task; differs from the one asked for after ``repeat=True``."""
        return self._channel.task

    @property
    def root(self) -> Path:
        """Folder of the task."""
        return self._channel.folder

    async def write(self, trial: object) -> Receipt:
        """Accept a trial: its attributes, its arrays, and the chunks appended since the last one.

        Parameters
        ----------
        trial : Trial, Mapping, or any object with ``.attrs`` and ``.arrays``
            A mapping is a trial without arrays. Arrays that were accepted are cleared, as in AxoPy.

        Returns
        -------
        Receipt
            Tells what becomes of the trial.

        Raises
        ------
        InvalidTrial
            Naming the attribute or array that cannot be stored; the trial is left as it was.
        InvalidName
            If an array's name cannot be a file name.
        QueueFull
            With ``on_full="raise"``, or if the trial is larger than the whole queue.
        StorageError
            If the task is closed.
        """
        return await self._channel.write(trial)

    def write_nowait(self, trial: object) -> Receipt:
        """Accept a trial without ever waiting; otherwise as `write`.

        Raises
        ------
        QueueFull
            If there is no room; nothing was taken.
        InvalidTrial, InvalidName, StorageError
            As `write`.
        """
        return self._channel.write_nowait(trial)

    async def append(self, name: str, chunk: ArrayLike) -> None:
        """Accept a chunk of samples for the trial that the next `write` commits.

        Parameters
        ----------
        name : str
            Name of the array.
        chunk : array_like
            Samples; copied. Shape and dtype must fit the chunks before it (and `ArrayInfo`, if the
            array was declared); chunks are stacked along ``stack_axis`` (default 1, as AxoPy's
            ``hstack``).

        Raises
        ------
        InvalidTrial
            If dtype or shape do not fit.
        InvalidName, QueueFull, StorageError
            As `write`.
        """
        await self._channel.append(name, chunk)

    def append_nowait(self, name: str, chunk: ArrayLike) -> None:
        """Accept a chunk without ever waiting; otherwise as `append`.

        Raises
        ------
        QueueFull
            If there is no room; nothing was taken.
        InvalidTrial, InvalidName, StorageError
            As `append`.
        """
        self._channel.append_nowait(name, chunk)

    async def pickle(self, obj: object, name: str) -> None:
        """Store an object as ``NAME.pkl``; durable when this returns.

        An older pickle of that name goes to the trash. Reading it back accepts plain containers,
        NumPy and pandas objects; anything else must be asked for with ``trusted=True``.

        Parameters
        ----------
        obj : object
            Anything that can be pickled.
        name : str
            Name of the file, without extension.

        Raises
        ------
        InvalidName
            If `name` cannot be a file name, or differs from another pickle's in case only.
        InvalidTrial
            If the object cannot be pickled.
        StorageError
            If the task is closed or the disk refuses.
        """
        self._channel.lifecycle.require_open()
        checked = check_name(name, "pickle")
        path = pickle_path(self.root, checked)
        data = pickles.seal(pickles.dumps(obj))
        recorder = self._recorder

        def store() -> None:
            try:
                known = layout.pickle_names_in(self.root)
                layout.check_not_casefold_equal(checked, known, "pickle")
                if path.exists():
                    stamp = f"{path.stat().st_mtime_ns}"
                    task = f"{path.parent.name}.{path.stem}{PICKLE_SUFFIX}"
                    old = trash_path(recorder.root.absolute(), path.parent.parent.name, task, stamp)
                    layout.check_no_links(recorder.root.absolute().parent, old.parent)
                    recorder.disk.make_folders(old.parent)
                    # Not a rename: killed in between, the task would be without its pickle.
                    recorder.disk.link(path, old)
                    recorder.disk.sync_folder(old.parent)
                recorder.disk.write_file(path, data)
            except OSError as error:
                raise StorageError(f"pickle {name!r} cannot be written: {error}") from error

        await recorder.call(store)

    async def flush(self) -> None:
        """Wait until everything accepted so far is durable.

        Raises
        ------
        WriteFailed
            If the disk refuses for longer than `close_timeout`; nothing is given up by that.
        StorageError
            If the task is closed.
        """
        self._channel.lifecycle.require_open()
        await self._recorder.flush(self._channel)

    async def publish(self) -> None:
        """Publish everything durable so far, between blocks, for tools that know no trialstore.

        Raises
        ------
        PublishFailed
            If the publisher cannot; the journal is untouched and recording goes on.
        WriteFailed, StorageError
            As `flush`.
        """
        await self._recorder.publish(self._channel)

    def statistics(self) -> Statistics:
        """Return the figures of this task; queue and batches are the whole Storage's."""
        return self._recorder.with_state(self._channel.statistics())

    async def aclose(self) -> None:
        """Drain, publish and close; shielded from cancellation, and within `close_timeout`.

        Closing twice does nothing. What is not published in time is published by the child alone,
        and the task reads from its journal until then.

        Raises
        ------
        WriteFailed
            Naming the trials that could not be made durable.
        PublishFailed
            If the publisher could not publish; the journal is whole.
        """
        await self._close(None)

    async def _close(self, error: BaseException | None) -> None:
        self._finalizer.detach()
        if self._channel.lifecycle.is_open:
            await self._recorder.insist(lambda: self._recorder.close_task(self._channel, error))


class TrialWriter:
    """Writes rows alone: ``await task.trials.write({...})``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def data(self) -> dict[str, list[Any]]:
        """Attributes written in this session: a list for each column, None where there was none."""
        return self._channel.columns.data

    async def write(self, data: Mapping[str, Any]) -> Receipt:
        """Accept one row, a trial without arrays.

        Raises
        ------
        InvalidTrial, QueueFull, StorageError
            As `TaskWriter.write`.
        """
        return await self._channel.write(data)


def _declared(arrays: Mapping[str, ArrayInfo]) -> dict[str, ArrayInfo]:
    """Declarations by normalised name; refuse two that would be one array."""
    names = ArrayNames({})
    declared = {names.check(key): _info(key, info) for key, info in arrays.items()}
    if len(declared) < len(arrays):
        raise InvalidName(f"two arrays have the same name in NFC: {list(arrays)!r:.200}")
    return declared


def _info(name: str, info: object) -> ArrayInfo:
    if not isinstance(info, ArrayInfo):
        raise InvalidTrial(
            f"array {name!r} must be declared with ArrayInfo, not {type(info).__name__}"
        )
    return info


def _plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON will give back; raise InvalidTrial for what it cannot hold."""
    try:
        plain = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTrial(f"metadata cannot be stored as JSON: {error}") from error
    if not isinstance(plain, dict):
        raise InvalidTrial("metadata must be a mapping")
    return plain


def _publish_here(folder: Path, options: dict[str, Any]) -> None:
    from trialstore._publishing.service import publish_once

    try:
        publish_once(folder, options)
    except OSError as error:
        raise PublishFailed(
            f"{str(folder)!r} was not published: {error}. The journal is whole and the task is "
            "readable from it"
        ) from error


def _raise_or_note(problems: list[StorageError], error: BaseException | None) -> None:
    """Raise what went wrong at the end, unless the experiment's own exception is on its way."""
    if not problems:
        return
    if error is None or isinstance(error, anyio.get_cancelled_exc_class()):
        # A cancellation is swallowed by the scope it belongs to, and the problem would be with it.
        first, *others = problems
        for other in others:
            first.add_note(f"also: {other}")
        raise first
    for problem in problems:
        logger.error("%s", problem)
        error.add_note(f"trialstore: {type(problem).__name__}: {problem}")


def _left_open(recorder: Recorder, what: str) -> None:
    """Last resort: the object is gone, or the interpreter is going."""
    recorder.abandon("the Storage was not closed")
    warn_unclosed(what)


def _unclosed_task(channel: Channel) -> None:
    if channel.lifecycle.is_open:
        warn_unclosed(f"TaskWriter {channel.task!r}")
