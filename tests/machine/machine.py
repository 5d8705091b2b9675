"""The rules and the invariants.

Whether a recorder has died in the middle of something, and what it had acknowledged by then, is a
matter of time. So no rule has a precondition and nothing is drawn inside one: each does what it can
with what it finds, and Hypothesis can repeat any sequence.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.campaign.content import SUBJECT, TASK, attrs_of, joined
from tests.machine.driver import Died
from tests.machine.model import Breach, Task, equal
from tests.machine.world import World
from trialstore import DamagedData, FormatError, StorageError, TaskReader
from trialstore._ondisk import layout
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hypothesis.stateful import RuleBasedStateMachine

    from tests.campaign.frame import Outcome
    from tests.machine.driver import Nursery
    from trialstore import Trial

#: Calls of the recorder that may fail without its being told to give up.
_FAILING: Final = (
    *("write", "sync", "create", "sync_folder", "write_at", "identity", "identity_at"),
    *("rename", "remove", "add_folder", "link", "allocate", "free_bytes"),
)
_CODES: Final = (5, 28, 30)  # EIO, ENOSPC, EROFS
_MOMENTS: Final = ("before", "halfway", "after")


def machine_for(nursery: Nursery, parent: Path, outcome: Outcome) -> type[RuleBasedStateMachine]:
    """Return the machine for recorders from `nursery`, in `parent`, that counts in `outcome`."""

    class Ready(Machine):
        def __init__(self) -> None:
            super().__init__(nursery, parent, outcome)

    return Ready


class Machine(World):
    """Any sequence of recording, faults and reading of one task after another."""

    # --- recording --------------------------------------------------------------------------------

    @initialize(
        has_child=st.sampled_from([False, False, True]),
        is_trio=st.booleans(),
        count=st.integers(0, 5),
    )
    def begin(self, has_child: bool, is_trio: bool, count: int) -> None:
        """Publish in a process or in the recorder, on one of two event loops; a few trials."""
        self.has_child, self.backend = has_child, "trio" if is_trio else "asyncio"
        self.write(count=count, wait="none")

    @rule(count=st.integers(1, 6), wait=st.sampled_from(["none", "written", "durable"]))
    def write(self, count: int, wait: str) -> None:
        """Hand trials over."""
        for _ in range(count):
            task = self._open()
            if task is None:
                return
            serial = self._hand_over()
            said = self._tell("write", serial=serial, wait=wait)
            if said is None:
                return
            if "error" in said or said["index"] != len(task.serials) - 1:
                raise Breach("broken", f"write: {said}")
            if wait != "none" and task.floor < len(task.serials):
                raise Breach("broken", f"a receipt said {wait}: {said}")

    @rule()
    def append(self) -> None:
        """Stream the chunks of a trial, without its end."""
        task = self._open()
        if task is not None and task.streamed is None:
            serial = next(self.serials)
            said = self._tell("append", serial=serial)
            if said is not None and "error" in said:
                raise Breach("broken", f"append: {said}")
            if said is not None:
                task.streamed = serial

    @rule()
    def flush(self) -> None:
        """Make everything durable."""
        task = self._open()
        said = None if task is None else self._tell("flush")
        if task is not None and said is not None and said["durable"] < len(task.serials):
            raise Breach("broken", f"flush of {len(task.serials)} trials: {said}")

    @rule()
    def publish(self) -> None:
        """Publish between blocks."""
        task = self._open()
        said = None if task is None else self._tell("publish")
        if said is not None and self.has_child and "error" in said and not self._is_hurt():
            raise Breach("broken", f"publish: {said}")

    @rule(name=st.sampled_from("ab"))
    def pickle(self, name: str) -> None:
        """Store an object, perhaps in the place of an older one."""
        task = self._open()
        if task is None:
            return
        serial = next(self.serials)
        before = task.pickles.get(name, {None})
        task.pickles[name] = before | {serial}
        said = self._tell("pickle", serial=serial, name=name)
        if said is not None and "error" not in said:
            task.pickles[name] = {serial}

    @rule()
    def close(self) -> None:
        """Close the task: everything is durable, and published unless the disk refuses."""
        task = self._open()
        said = None if task is None else self._tell("close")
        if task is None or said is None:
            return
        task.is_open = False
        task.end(said.get("trials", []))
        task.streamed = None
        if "error" in said and not self._is_hurt() and not self.lags:
            raise Breach("broken", f"close: {said}")
        if "error" not in said and TaskReader(self.folder).status != "complete":
            raise Breach("broken", f"{self.folder} is closed, and not complete")

    @rule(how=st.sampled_from(["overwrite", "repeat"]))
    def begin_anew(self, how: str) -> None:
        """Record a new task: the old one goes to the trash, or the new one has another name."""
        if self.task is None or (self.task.is_open and self._closed() is None):
            return
        old, folder = self.task, self.folder
        trash = self._trash()
        task = self._opened(how, TASK if how == "repeat" else old.name)
        moved = self._trash() - trash
        self.task = task
        if task is not None and how == "repeat":
            self.done[folder.relative_to(self.world)] = old
        elif moved:
            self.done[moved.pop()] = old
        elif task is None:
            self.task = old  # refused, or dead before anything was moved

    def _closed(self) -> Task | None:
        self.close()
        return self.task if self.task is not None and not self.task.is_open else None

    def _trash(self) -> set[Path]:
        """Old tasks in the trash, below the world; not the journals and pickles there.

        Below the world, which is another one after a power cut.
        """
        folder = self.world / "data.trash" / SUBJECT
        names = set(folder.iterdir()) if folder.is_dir() else set()
        return {path.relative_to(self.world) for path in names if (path / layout.MANIFEST).exists()}

    # --- faults -----------------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(_FAILING),
        nth=st.integers(1, 6),
        times=st.integers(1, 3),
        code=st.sampled_from(_CODES),
        moment=st.sampled_from(_MOMENTS),
    )
    def fault(self, kind: str, nth: int, times: int, code: int, moment: str) -> None:
        """Let some calls of the disk fail that are to come."""
        self._tell("fault", kind=kind, nth=nth, times=times, code=code, moment=moment)
        self.lags = True
        self.outcome.tried += 1
        self.outcome.count("faults of the disk armed")

    @rule()
    def heal(self) -> None:
        """Let nothing fail any more."""
        if self.recorder is not None:
            self._tell("heal")

    @rule(
        nth=st.integers(1, 25),
        moment=st.sampled_from(_MOMENTS),
        loses_power=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def mortal(self, nth: int, moment: str, loses_power: bool, seed: int) -> None:
        """Let the recorder die in a call of the disk that is to come."""
        self._start()
        if loses_power and not self.has_child:
            self.after = self.base / f"{next(self.worlds)}"
        self.may_die = True
        after = None if self.after is None else str(self.after)
        self._tell("mortal", nth=nth, moment=moment, after=after, seed=seed)

    @rule(burst=st.integers(0, 8), publisher_too=st.booleans())
    def crash(self, burst: int, publisher_too: bool) -> None:
        """Kill the recorder, while it is handed trials."""
        self._end(kill=True, publisher_too=publisher_too, burst=burst)

    @rule(burst=st.integers(0, 8), seed=st.integers(0, 2**16))
    def power_cut(self, burst: int, seed: int) -> None:
        """Cut the power; where the publisher is a process, kill both."""
        if self.recorder is None or self.has_child:
            self._end(kill=True, publisher_too=True, burst=burst)
            return
        if self.task is not None and self.task.is_open:
            for _ in range(burst):
                self.recorder.send("write", serial=self._hand_over(), wait="none")
        self.after = self.base / f"{next(self.worlds)}"
        self.recorder.send("power_cut", after=str(self.after), seed=seed)
        self.may_die = True
        with contextlib.suppress(Died):
            for said in self.recorder.answers():
                self._note_levels(said)
        self._end(kill=True)

    @rule(which=st.integers(0, 1000), place=st.integers(0, 2**24))
    def cut(self, which: int, place: int) -> None:
        """Cut one file of a task, whose recorder is dead, at a byte."""
        self._damage(which, place, is_cut=True)

    @rule(which=st.integers(0, 1000), place=st.integers(0, 2**24))
    def flip(self, which: int, place: int) -> None:
        """Flip one bit of a task, whose recorder is dead."""
        self._damage(which, place, is_cut=False)

    def _damage(self, which: int, place: int, *, is_cut: bool) -> None:
        """Once for each task: two damages may fit each other."""
        if self.task is None or self.task.damage != "none":
            return
        if self.task.is_open:
            self._end(kill=True, publisher_too=True)
        if self.task.is_exposed:
            return
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size]
        files = sorted(path for path in files if not path.name.startswith("."))
        if not files:
            return
        # Half of the time where most of the bytes are.
        largest = max(files, key=lambda path: path.stat().st_size)
        path = largest if which % 2 else files[which // 2 % len(files)]
        in_journal = path.suffix in {".segment", ".witness"}
        data = bytearray(path.read_bytes())
        bit = place % (len(data) * 8)
        if is_cut:
            del data[bit // 8 :]
        else:
            data[bit // 8] ^= 1 << bit % 8
        self.reader = None  # it may have the file open as it was
        path.unlink()  # a published file may be linked from the base: damage one of them
        path.write_bytes(data)
        self.tell(f"{path.relative_to(self.world)} {'cut' if is_cut else 'flipped'} at bit {bit}")
        self.task.damage = "journal" if in_journal else "other"
        self.outcome.tried += 1
        self.outcome.count("files cut" if is_cut else "bits flipped")

    def _is_hurt(self) -> bool:
        return self.task is not None and self.task.damage != "none"

    # --- what comes after -------------------------------------------------------------------------

    @rule()
    def recover(self) -> None:
        """Publish what a dead recorder left: the same each time, the journal untouched (I4)."""
        if self.task is None or self.task.is_open or not (self.folder / layout.JOURNAL).is_dir():
            return
        if self.recorder is not None:  # it may be publishing the task just now
            self._end(kill=False)
        segments = self._segments()
        copy = self.base / f"{next(self.worlds)}" / self.folder.name
        shutil.copytree(self.folder, copy)
        told = []
        for _ in range(2):
            with self._refusal_is_fine():
                publish_once(copy, {"keep_journal": True})
            told.append(self._story(copy))
        if told[0] != told[1]:
            raise Breach("broken", f"recovered twice: {told}")
        with self._refusal_is_fine():
            publish_once(self.folder, {"keep_journal": True})
        if self._segments() != segments:
            raise Breach("broken", "recovery has changed the journal")
        self.outcome.count("recoveries")

    @contextlib.contextmanager
    def _refusal_is_fine(self) -> Any:
        """A damaged base is refused; everything else can be published."""
        try:
            yield
        except StorageError as error:
            if self.task is None or self.task.damage != "other":
                raise Breach("broken", f"cannot be recovered: {error!r}") from error

    def _story(self, folder: Path) -> list[str]:
        """What a reader finds in a task, as text."""
        with contextlib.suppress(DamagedData, FormatError):
            reader = TaskReader(folder)
            return [reader.status, *map(str, reader.losses), reader.trials.to_csv()]
        return []

    def _segments(self) -> dict[str, bytes]:
        paths = (self.folder / layout.JOURNAL).glob("*.segment")
        return {path.name: path.read_bytes() for path in paths}

    @rule(trial=st.integers(0, 100), start=st.integers(0, 12), length=st.integers(0, 30))
    def read_window(self, trial: int, start: int, length: int) -> None:
        """Read a part of one array, published or live."""
        if self.task is None or not self.folder.is_dir() or self.task.damage != "none":
            return
        reader = TaskReader(self.folder)
        if trial not in reader.trials.index or "emg" not in reader.array_names:
            return
        if trial in self.task.torn:
            return
        expected = joined(self.task.serials[trial]).get("emg")
        if expected is not None:
            found = reader.array("emg", trial=trial, window=(start, start + length))
            if not equal(found, expected[:, start : start + length]):
                raise Breach("wrong", f"window {start}, {length} of trial {trial}")

    @rule()
    def follow(self) -> None:
        """Follow a task that nobody records: every trial, then the end."""
        task = self.task
        if task is None or task.is_open or task.damage != "none" or not self.folder.is_dir():
            return
        if self.recorder is not None and self.has_child:
            return
        reader = TaskReader(self.folder)
        serials = [task.serials[trial] for trial in reader.trials.index]
        for trial, serial in zip(self._followed(reader, task), serials, strict=False):
            arrays = {name: array.data for name, array in trial.arrays.items()}
            expected = joined(serial)
            if trial.attrs != attrs_of(serial) or arrays.keys() != expected.keys():
                raise Breach("wrong", f"followed {trial.attrs}, not {attrs_of(serial)}")
            if not all(equal(arrays[name], expected[name]) for name in expected):
                raise Breach("wrong", f"followed other samples of {trial.attrs}")

    def _followed(self, reader: TaskReader, task: Task) -> Iterator[Trial]:
        """Follow to the end, or to the first trial whose samples a power cut took."""
        try:
            yield from reader.follow()
        except DamagedData:
            if not task.torn:
                raise

    @invariant()
    def everything_is_as_the_list_says(self) -> None:
        """Hold the task against the list, through a new reader and through an old one."""
        task = self.task
        if task is None or not self.folder.is_dir():
            if task is not None and task.floor:
                raise Breach("silent", f"{self.folder} is gone")
            return
        floor = task.floor
        if task.is_open and self.lags:
            task.floor = 0  # a witness that could not be written tells of the last trials later
        try:
            task.check(TaskReader(self.folder))
            if self.reader is None:
                self.reader = TaskReader(self.folder)
            else:
                task.check(self.reader)
        finally:
            task.floor = floor
        task.check_pickles(TaskReader(self.folder))
        task.check_published(self.folder)

    def teardown(self) -> None:
        """Let everything end by itself, look at it a last time, take it away."""
        failure = sys.exception()
        try:
            if failure is None:
                self._look_a_last_time()
        except Breach as breach:
            failure = breach
            raise
        finally:
            if isinstance(failure, Breach):
                # At once: one that depends on time may not come again when Hypothesis repeats it.
                story = "; ".join(self.story)
                failure.add_note(story)
                self.outcome.breach(failure.kind, f"{failure} | {story}")
            self.reader = None
            if self.recorder is not None:
                self._end(kill=True)
            shutil.rmtree(self.base, ignore_errors=True)

    def _look_a_last_time(self) -> None:
        self._end(kill=False)
        if self.task is not None:
            self.everything_is_as_the_list_says()
            self.outcome.named += len(self.task.named)
        for relative, task in self.done.items():
            task.check(TaskReader(self.world / relative))
            self.outcome.named += len(task.named)
