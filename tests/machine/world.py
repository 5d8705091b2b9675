"""What the rules of the state machine work with: folders, a recorder, tasks as they must be."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine

from tests.campaign.content import SUBJECT, TASK
from tests.machine.driver import Died
from tests.machine.model import Breach, Task
from tests.machine.recorder import FAILED

if TYPE_CHECKING:
    from tests.campaign.frame import Outcome
    from tests.machine.driver import Nursery, Recorder
    from trialstore import TaskReader


class World(RuleBasedStateMachine):
    """A folder, the recorder at work in it, and what its tasks must hold.

    Parameters
    ----------
    nursery : Nursery
        Where recorders come from.
    parent : pathlib.Path
        Where the folders of this example go; taken away with it.
    outcome : Outcome
        Counts of the campaign.
    """

    def __init__(self, nursery: Nursery, parent: Path, outcome: Outcome) -> None:
        super().__init__()
        self.nursery = nursery
        self.outcome = outcome
        self.base = Path(tempfile.mkdtemp(prefix="machine-", dir=parent))
        self.worlds = itertools.count()
        self.world = self.base / f"{next(self.worlds)}"
        self.world.mkdir()
        self.serials = itertools.count()
        self.task: Task | None = None
        self.done: dict[Path, Task] = {}
        self.recorder: Recorder | None = None
        self.reader: TaskReader | None = None
        self.may_die = False
        self.lags = False
        self.after: Path | None = None
        self.has_child = False
        self.backend = "asyncio"
        #: What was done and said, for whoever has to repeat it.
        self.story: list[str] = []

    def tell(self, what: str) -> None:
        """Remember what has happened, and show it with a failing example."""
        self.story.append(what)
        note(what)

    # --- the recorder -----------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The data's root."""
        return self.world / "data"

    @property
    def folder(self) -> Path:
        """The task's folder."""
        return self.root / SUBJECT / (TASK if self.task is None else self.task.name)

    def _start(self) -> Recorder:
        if self.recorder is None:
            self.recorder = self.nursery.start(
                self.root, has_child=self.has_child, backend=self.backend
            )
            self.may_die = self.lags = False
            self.after = None
        return self.recorder

    def _tell(self, do: str, /, **told: Any) -> dict[str, Any] | None:
        """Tell the recorder something; None if it died of what we have done to it."""
        try:
            said = self._start().call(do, **told)
        except Died:
            if not self.may_die:
                raise Breach("broken", f"the recorder died of {do}({told})") from None
            self.tell(f"{do} {told}: died")
            self._end(kill=True)
            return None
        self.tell(f"{do} {told}: {said}")
        self._note_levels(said)
        return said

    def _note_levels(self, said: dict[str, Any]) -> None:
        if self.task is not None and self.task.is_open and "durable" in said:
            self.task.floor = max(self.task.floor, said["durable"], said["written"])

    def _end(self, *, kill: bool, publisher_too: bool = False, burst: int = 0) -> None:
        """End the recorder, perhaps in the middle of a burst of trials."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        if self.task is not None and self.task.is_open:
            for _ in range(burst):
                serial = self._hand_over()
                recorder.send("write", serial=serial, wait="none")
        recorder.end(kill=kill, publisher_too=publisher_too)
        self.tell(f"end: {'killed' if kill else 'by itself'}, in a burst of {burst}")
        if kill:
            self.outcome.tried += 1
            self.outcome.count("recorders killed")
        was_cut = self.after is not None and self.after.is_dir()
        if self.after is not None and was_cut:
            self.outcome.count("power cuts")
            self.tell("the power was cut")
            self.world, self.reader = self.after, None
        if self.task is not None:
            if self.task.is_open and not kill:
                self.task.end(self._failed())
            self.task.is_exposed |= self.lags or was_cut
            self.task.is_open = False
            self.outcome.acknowledged += self.task.floor

    def _failed(self) -> list[int]:
        """Return the trials that the last recorder has named as not written, at its end."""
        path = self.world / FAILED
        failed: list[int] = json.loads(path.read_text()) if path.exists() else []
        path.unlink(missing_ok=True)
        if failed:
            self.tell(f"could not write {failed}")
        return failed

    def _hand_over(self) -> int:
        assert self.task is not None
        serial = self.task.streamed
        if serial is None:
            serial = next(self.serials)
        self.task.serials.append(serial)
        self.task.streamed = None
        return serial

    def _open(self) -> Task | None:
        """Return the task, open for recording; None if the recorder died or could not open it."""
        if self.task is not None and self.task.is_open:
            return self.task
        if self.task is not None:
            return self._opened("resume", self.task.name)
        return self._opened("create", TASK) or self._opened("repeat", TASK)

    def _opened(self, how: str, name: str) -> Task | None:
        is_new = how != "resume"
        said = self._tell("open", how=how, task=name)
        if said is None:
            return None
        if "error" in said:
            self._judge_refusal(said)
            return None
        if is_new:
            self.task, self.reader = Task(said["task"]), None
            if said["first"] != 0:
                raise Breach("wrong", f"a new task begins with trial {said['first']}")
        assert self.task is not None
        self.task.settle(said["first"])
        self.task.is_open = True
        return self.task

    def _judge_refusal(self, said: dict[str, Any]) -> None:
        """A task may be refused for a reason: a fault of the disk, or a damage of ours."""
        is_ours = said["error"] in {"DamagedData", "FormatError"}
        if is_ours and self.task is not None and self.task.damage != "other" and not self.lags:
            raise Breach("broken", f"cannot go on: {said}")
        if said["error"] in {"StorageError", "TaskExists"} or is_ours:
            return
        raise Breach("broken", f"cannot open: {said}")
