"""One task on its way to plain files: follow the journal, build hidden files, publish them.

Everything here can be killed at any point and begun again: published files appear by rename, the
manifest last, and the journal goes only after that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import time
import uuid
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import DamagedData, PublishFailed, StorageError
from trialstore._ondisk import layout, manifest, recovery
from trialstore._ondisk.disk import current
from trialstore._ondisk.entries import CleanEnd
from trialstore._ondisk.lock import acquire, holder
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.manifest import ArrayRecord, Manifest
from trialstore._ondisk.replay import Replay
from trialstore._publishing.arrays import ArrayBuilder
from trialstore._publishing.interrupted import keep_uncommitted
from trialstore._publishing.pickled import vouch
from trialstore._publishing.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trialstore._ondisk.lock import Lock
    from trialstore._ondisk.samples import JournalTrial

#: Begins the token in the names of the files that a publisher builds, and of no others.
_PUBLISHER: Final = "publisher-"
_KILLED: Final = (
    "the recorder ended without closing the task (it was killed, or the computer stopped)"
)


class TaskPublisher:
    """Publishes one task.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder.
    fallbacks : sequence of pathlib.Path
        Folders of ours alone where further segments may lie; emptied in the end.
    keep_journal : bool
        Leave the journal in place.
    session : str or None
        The session of the recorder that is served, hexadecimal; None publishes whatever there is.

    Raises
    ------
    StorageError
        If the task's manifest cannot be understood.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fallbacks: Sequence[Path] = (),
        keep_journal: bool = False,
        session: str | None = None,
    ) -> None:
        self.folder = folder
        self.keep_journal = keep_journal
        self._journal = folder / layout.JOURNAL
        self._session = session
        self._fallbacks = tuple(fallbacks)
        self._disk = current()
        self._token = _PUBLISHER + uuid.uuid4().hex[:12]
        self._rows = Rows()
        self._arrays: dict[str, ArrayBuilder] = {}
        self._losses: list[Loss] = []
        self._waiting: deque[JournalTrial] = deque()
        self._undecided: deque[JournalTrial] = deque()
        self._rows_shown = 0
        self._base = recovery.base_manifest(folder)
        if self._base is not None:
            self._take_base(self._base)
        folders = (self._journal, *self._fallbacks)
        self._replay = Replay(folders, 0 if self._base is None else self._base.trials)
        self._is_cleared = False

    def _take_base(self, base: Manifest) -> None:
        """Begin with what was published before the task was resumed."""
        folder = self._journal / layout.BASE
        self._rows = Rows.of_base(folder, base)
        self._losses = list(base.losses)
        for name, record in base.arrays.items():
            self._arrays[name] = self._builder(name, record)

    def _builder(self, name: str, record: ArrayRecord) -> ArrayBuilder:
        return ArrayBuilder(self._disk, self.folder, name, record, self._token)

    def _remove_leftovers(self, mark: str = f".{_PUBLISHER}") -> None:
        """Remove hidden files of a publisher that died: a living one's recorder would not start us.

        The recorder's own, such as a pickle that it is just writing, are nothing to us.
        """
        for path in list(self.folder.iterdir()):
            if layout.is_building(path.name) and mark in path.name:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Delete a hidden file of ours, or a journal moved out of sight; follows no links."""
        if path.is_symlink() or not path.is_dir():
            self._disk.remove(path)
            return
        for entry in list(path.iterdir()):
            self._remove(entry)
        self._disk.remove_folder(path)

    # --- while recording --------------------------------------------------------------------------

    def follow(self) -> int:
        """Read what the journal has gained; return how many bytes of it have been read in all.

        Raises
        ------
        FileNotFoundError
            If the journal is gone.
        StorageError
            If it cannot be understood.
        """
        self._undecided += self._replay.poll()
        if not self._is_cleared:
            self._is_cleared = True
            # Not before the journal was read: a child that starts late, of a recorder that is dead,
            # took away what the next recorder's publisher was building.
            if not self._is_resumed():
                self._remove_leftovers()
        while self._undecided and self._undecided[0].seq <= self._replay.synced_to:
            self._take(self._undecided.popleft())
        return self._replay.scanned

    def _take(self, trial: JournalTrial) -> None:
        self._require_room(trial.index)
        self._rows.add(trial)
        if trial.commit.arrays:
            self._waiting.append(trial)

    def _require_room(self, trials: int) -> None:
        """Refuse to write more empty lines for lost trials than the journal can have lost.

        Raises
        ------
        PublishFailed
            If the journal claims trials without measure; it stays, and the task reads from it.
        """
        before = 0 if self._base is None else len(self._base.lost)
        missing = len(self._rows.lost) - before + trials - len(self._rows)
        if missing > self._replay.room:
            raise PublishFailed(
                f"{str(self._journal)!r} claims {trials} trials, of which {missing} are not there: "
                "that is more than its bytes can have been; it stays, and is read as it is"
            )

    def build(self, nbytes: int) -> bool:
        """Write about `nbytes` of waiting arrays into the hidden files; return if some are left."""
        while self._waiting and nbytes > 0:
            trial = self._waiting.popleft()
            for name, (_, size) in trial.commit.arrays.items():
                self._add_array(trial, name)
                nbytes -= size
        return bool(self._waiting)

    @property
    def is_building(self) -> bool:
        """Whether hidden files take up room on the disk."""
        return any(builder.is_open for builder in self._arrays.values())

    def _add_array(self, trial: JournalTrial, name: str) -> None:
        builder = self._arrays.get(name)
        if builder is None:
            builder = self._arrays[name] = self._builder(name, self._declared(name))
        try:
            builder.add(trial)
        except DamagedData as error:
            if not trial.whole_arrays()[name]:
                return  # chunks that are not there are named by the replay, which knows why
            file = "" if error.path is None else f"{layout.JOURNAL}/{error.path.name}"
            what = f"array {name!r}"
            self._losses.append(Loss((trial.index,), what, "damaged", file, None, str(error)))

    def _declared(self, name: str) -> ArrayRecord:
        """What was said of an array: by the manifest, or by the journal where that is lost."""
        with contextlib.suppress(StorageError):
            described = manifest.read(self.folder)
            if described is not None and name in described.arrays:
                return replace(described.arrays[name], trials={})
        for opening in self._replay.openings:
            match opening.description.get("arrays"):
                case dict(told) if isinstance(info := told.get(name), dict):
                    return ArrayRecord(info, 1)
        return ArrayRecord({}, 1)

    def refresh(self) -> None:
        """Let a person look: put ``trials.csv`` in place as far as it goes."""
        if len(self._rows) == self._rows_shown:
            return
        self._put_tables_in_place()

    def publish(self) -> int:
        """Publish everything durable so far while recording goes on; return the number of trials.

        Raises
        ------
        PublishFailed, OSError
            If it cannot be done; the journal is untouched.
        """
        self.follow()
        self.build(2**63)
        with self._publishing():
            described = self._described()
            self._put_in_place(described)
            described.trials = len(self._rows)
            self._disk.write_file(self.folder / layout.MANIFEST, described.encode())
        return len(self._rows)

    # --- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Publish everything, mark the task complete or interrupted, and take the journal away.

        Guarantee: the journal goes only after every file of the published set was verified and
        synced.

        Raises
        ------
        TaskLocked
            If a recorder has the task (again).
        FileNotFoundError
            If the journal was published by another, and perhaps a new one stands in its place, or
            another recorder has resumed the task.
        StorageError, OSError
            If it cannot be done; the journal is untouched.
        """
        lock = acquire(self._journal / layout.LOCK, "publisher")
        try:
            if not self._replay.stands():
                # Found by killing recorders: what we know would have replaced what is there now.
                raise FileNotFoundError(
                    errno.ENOENT, "the journal was replaced", str(self._journal)
                )
            self._undecided += self._replay.poll()
            if self._is_resumed():
                raise FileNotFoundError(
                    errno.ENOENT, "another recorder went on with the task", str(self._journal)
                )
            if not self._is_remainder():
                self._finish_locked()
            self._remove_leftovers("")  # of a killed recorder, too: it is gone, we have its lock
            # Everything is published by now. Windows keeps a journal that a reader has open.
            with contextlib.suppress(OSError):
                self._remove_journal(lock)
        finally:
            lock.release()

    def _is_resumed(self) -> bool:
        """Whether a newer recorder has had the task: its own publisher builds and publishes it.

        Two publishers at work on one task take each other's hidden files away.
        """
        newest = self._replay.sessions[-1:]
        return self._session is not None and bool(newest) and newest != [self._session]

    def _is_remainder(self) -> bool:
        """Whether all there is was published before: a recorder was killed while it resumed.

        Found by killing recorders: a journal that was just made would have been published, and its
        emptiness put in the place of every trial.

        Raises
        ------
        PublishFailed
            If the journal holds frames, and yet less than what is published.
        """
        described: Manifest | None = None
        with contextlib.suppress(StorageError):  # damaged or foreign: then the journal is the truth
            described = manifest.read(self.folder)
        if described is None or described.status == "recording":
            return False
        if self._replay.segments and self._replay.count < described.trials:
            raise PublishFailed(
                f"the journal in {str(self.folder)!r} knows {self._replay.count} trials, and "
                f"{described.trials} are published: 'trialstore check' tells more"
            )
        return not self._replay.segments

    def _finish_locked(self) -> None:
        while self._undecided:
            self._take(self._undecided.popleft())
        self._require_room(self._replay.count)
        while len(self._rows) < self._replay.count:
            self._rows.skip()
        self.build(2**63)
        with self._publishing():
            self._losses += keep_uncommitted(self._disk, self.folder, self._replay, self._token)
            pickles, damaged = vouch(self.folder)
            self._losses += [loss for loss in damaged if loss not in self._losses]
            described = self._described()
            self._put_in_place(described)
            self._describe_end(described)
            described.files.update(pickles)
            self._disk.write_file(self.folder / layout.MANIFEST, described.encode())

    @contextlib.contextmanager
    def _publishing(self) -> Any:
        """One publisher at a time: that of a killed recorder may still be at work."""
        lock = acquire(self._journal / layout.PUBLISH_LOCK, "publisher", patience=5.0)
        try:
            yield
        finally:
            lock.release()

    def _described(self) -> Manifest:
        """The manifest as far as the journal and the recorder's own manifest tell."""
        described: Manifest | None = None
        with contextlib.suppress(StorageError):  # damaged or foreign: the journal knows all of it
            described = manifest.read(self.folder)
        openings = self._replay.openings
        if described is None:
            told = openings[0].description if openings else {}
            described = Manifest(
                "recording",
                str(told.get("subject", self.folder.parent.name)),
                str(told.get("task", self.folder.name)),
                start=told.get("start"),
                environment=told.get("environment", {}),
                metadata=told.get("metadata", {}),
            )
        described.sessions = list(dict.fromkeys([*described.sessions, *self._replay.sessions]))
        described.columns = self._rows.table.kinds()
        described.lost = list(self._rows.lost)
        described.trials = len(self._rows)
        for name, builder in self._arrays.items():
            described.arrays[name] = builder.record
        known = set(self._losses)
        self._losses += [loss for loss in self._replay.losses() if loss not in known]
        described.losses = list(self._losses)
        return described

    def _put_in_place(self, described: Manifest) -> None:
        """Complete all hidden files, then rename them all: a failure leaves the old set whole."""
        ready = [builder for builder in self._arrays.values() if builder.finish()]
        for builder in ready:
            builder.publish()
        for name in self._arrays:
            path = layout.array_path(self.folder, name)
            if path.exists():
                described.files[path.name] = {"size": path.stat().st_size, "crc32": 0}
        described.files.update(self._put_tables_in_place())

    def _put_tables_in_place(self) -> dict[str, dict[str, int]]:
        files = self._rows.put_in_place(self._disk, self.folder, self._token)
        self._rows_shown = len(self._rows)
        return files

    def _describe_end(self, described: Manifest) -> None:
        end = self._replay.end
        if end is None:
            timing = self._rows.timing
            last = timing[-1] if timing else (0, time.time_ns(), 0, None)
            end = CleanEnd(len(self._rows), "interrupted", _KILLED, last[1], last[2])
        described.status = "interrupted" if end.status == "interrupted" else "complete"
        described.traceback = end.traceback
        described.statistics = end.statistics
        utc = datetime.fromtimestamp(end.unix_ns / 1e9, UTC).isoformat(timespec="milliseconds")
        described.end = {"utc": utc, "unix_ns": end.unix_ns, "monotonic_ns": end.monotonic_ns}

    def _remove_journal(self, lock: Lock) -> None:
        """Move the journal out of sight in one step, then delete it piece by piece.

        It stays where damage was found: damaged bytes are evidence, and somebody may read more out
        of them.
        """
        self._replay.close()
        damaged = any(loss.kind != "refused" for loss in self._losses)
        if self.keep_journal or damaged:
            return
        doomed = self.folder / layout.building_name(layout.JOURNAL, self._token)
        self._disk.replace(self._journal, doomed)
        lock.release()
        self._remove(doomed)
        for folder in filter(layout.is_folder, self._fallbacks):
            for path in list(folder.glob("*")):
                if layout.is_of_journal(path.name):
                    self._disk.remove(path)
            with contextlib.suppress(OSError):
                self._disk.remove_folder(folder)

    @property
    def recorder(self) -> int | None:
        """Process number of the recorder that has the task now, or None."""
        owner = holder(self._journal / layout.LOCK)
        return owner.pid if owner is not None and owner.role == "recorder" else None

    def close(self) -> None:
        """Let go of every file; hidden ones are taken away."""
        self._replay.close()
        for builder in self._arrays.values():
            with contextlib.suppress(OSError, StorageError):
                builder.discard()
        with contextlib.suppress(OSError):  # what a failure left, or the folder is gone
            self._remove_leftovers(self._token)


def answer(folder: Path, request: int, error: str | None) -> None:
    """Tell the recorder what came of a request; if even that fails, its own deadline will."""
    journal = folder / layout.JOURNAL
    data = json.dumps({"request": request, "error": error}).encode()
    with contextlib.suppress(OSError):
        if layout.is_folder(journal):
            current().write_file(journal / layout.ANSWER, data)
