"""Rows 30 and 31: stray code takes the recorder's descriptors, or its journal."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.campaign.content import SUBJECT, TASK
from tests.campaign.frame import CannotRun, Outcome, Row
from tests.campaign.sessions import judge, quiet, record_here
from tests.campaign.story import Settings, Told
from trialstore._ondisk import layout
from trialstore.testing import WatchedDisk, use

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.campaign.frame import Effort
    from trialstore._ondisk.disk import Buffer


# --- row 30: descriptors --------------------------------------------------------------------------


def run_descriptors(effort: Effort) -> Outcome:
    """Close the recorder's descriptors and let another file have their numbers."""
    if not sys.platform.startswith("linux"):
        raise CannotRun("descriptors are found in /proc")
    outcome = Outcome("descriptors taken away")
    dice = random.Random(effort.seed)
    for number, victim, is_reused in itertools.product(
        range(effort.of(3, 60)), ("segment", layout.WITNESS, layout.LOCK, "all"), (False, True)
    ):
        with effort.workspace(memory=True) as folder:
            _try_descriptors(folder, victim, is_reused, dice.randrange(12), number, outcome)
    for number in range(effort.of(5, 100)):
        with effort.workspace(memory=True) as folder:
            _try_while_writing(folder, number, dice, outcome)
    for nth in itertools.count(1, effort.of(4, 1)):
        if not _try_in_the_window(effort, nth, outcome):
            break
    return outcome


#: Files that stray code opens after it has closed a descriptor of ours: more than are free below.
_FILES_OPENED = 50


class _Stranger:
    """Some other part of the experiment's program, with a file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = b"nothing of trialstore's\n" * 100
        path.write_bytes(self._text)
        self._fd = os.open(path, os.O_RDWR)
        self._copies: set[int] = set()
        self.is_harmed = False

    def take(self, fd: int, *, is_reused: bool) -> None:
        """Close a descriptor that is not ours, by mistake; perhaps open our file on its number."""
        if is_reused:
            os.dup2(self._fd, fd)
            self._copies.add(fd)
        else:
            os.close(fd)

    def open_files(self, fd: int) -> None:
        """Close a descriptor that is not ours, by mistake, and open some files at once."""
        os.close(fd)
        self._copies.update(os.open(self._path, os.O_RDWR) for _ in range(_FILES_OPENED))

    def look(self, outcome: Outcome, where: str) -> None:
        """Count a file that was written to, or a descriptor that was closed, as a breach."""
        mine = os.fstat(self._fd).st_ino
        for fd in self._copies:
            try:
                is_mine = os.fstat(fd).st_ino == mine
            except OSError:
                is_mine = False
            if is_mine:
                os.close(fd)
            else:
                outcome.breach("broken", f"{where}: a stranger's descriptor was closed")
        os.close(self._fd)
        if not self.is_harmed and self._path.read_bytes() != self._text:
            outcome.breach("broken", f"{where}: a stranger's file was written to")


def _open_below(folder: Path, victim: str) -> list[int]:
    """Descriptors that are open for writing below a folder, to files with `victim` in their name.

    Without a child the publisher reads in this process; the row is about those that write.
    """
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            path = entry.readlink()
            told = Path("/proc/self/fdinfo", entry.name).read_text()
            flags = int(told.partition("flags:")[2].split()[0], 8)
            is_victim = folder in path.parents and (victim == "all" or victim in path.name)
            if is_victim and flags & (os.O_WRONLY | os.O_RDWR):
                found.append(int(entry.name))
    return found


def _try_descriptors(
    folder: Path, victim: str, is_reused: bool, stop: int, number: int, outcome: Outcome
) -> None:
    how = "and opened a file on the number" if is_reused else "and left it so"
    where = f"stray code closed {victim!r} before trial {stop} {how} ({number})"
    settings = Settings(root=str(folder / "data"), child=False, stops=(stop,))
    told, stranger = Told(), _Stranger(folder / "stranger.txt")

    async def pause(_: int) -> None:
        for fd in _open_below(folder / "data", victim):
            stranger.take(fd, is_reused=is_reused)

    with quiet():
        record_here(settings, told.hear, pause)
    outcome.tried += 1
    stranger.look(outcome, where)
    judge(told, settings, outcome, where)


def _try_while_writing(folder: Path, number: int, dice: random.Random, outcome: Outcome) -> None:
    """The same at a random moment, from another thread, while the recorder is writing."""
    where = f"stray code closed the segment at a random moment ({number})"
    settings = Settings(root=str(folder / "data"), child=False, count=40, flush_every=1, bulk=4096)
    told, stranger = Told(), _Stranger(folder / "stranger.txt")
    begun, delay = threading.Event(), dice.random() * 0.05

    def stray() -> None:
        begun.wait(30.0)
        threading.Event().wait(delay)
        for fd in _open_below(folder / "data", "segment")[:1]:
            with contextlib.suppress(OSError):  # closed by the recorder just now
                stranger.open_files(fd)

    def hear(event: dict[str, Any]) -> None:
        told.hear(event)
        if "submitted" in event:
            begun.set()

    thread = threading.Thread(target=stray)
    thread.start()
    with quiet():
        record_here(settings, hear)
    thread.join()
    outcome.tried += 1
    stranger.look(outcome, where)
    judge(told, settings, outcome, where)


class _ThiefDisk(WatchedDisk):
    """Takes the descriptor away in the worst moment: after it was looked at, before the write."""

    def __init__(self, nth: int, stranger: _Stranger) -> None:
        super().__init__()
        self._nth = nth
        self._stranger = stranger
        self._segments: set[int] = set()
        self._writes = 0

    def create(self, path: Path) -> int:
        """As `Disk.create`."""
        fd = super().create(path)
        if path.suffix == layout.SEGMENT_SUFFIX:
            self._segments.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """As `Disk.close`; the number may be given again."""
        self._segments.discard(fd)
        super().close(fd)

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """As `Disk.write`, for the n-th write of a segment to a stranger's file."""
        self._writes += fd in self._segments
        if fd in self._segments and self._writes == self._nth:
            self._stranger.take(fd, is_reused=True)
            self._stranger.is_harmed = True
        super().write(fd, pieces)


def _try_in_the_window(effort: Effort, nth: int, outcome: Outcome) -> bool:
    """No look at a descriptor can be near enough to its use: what went astray is written again."""
    where = f"stray code took the descriptor within write {nth}"
    with effort.workspace(memory=True) as folder:
        settings = Settings(root=str(folder / "data"), child=False, flush_every=1)
        told, stranger = Told(), _Stranger(folder / "stranger.txt")
        with use(_ThiefDisk(nth, stranger)), quiet():
            record_here(settings, told.hear)
        if not stranger.is_harmed:
            return False
        outcome.tried += 1
        stranger.look(outcome, where)
        judge(told, settings, outcome, where)
    return True


# --- row 31: the journal --------------------------------------------------------------------------


def _newest(journal: Path) -> Path:
    return max(journal.glob(f"*{layout.SEGMENT_SUFFIX}"))


def _rename(journal: Path) -> None:
    segment = _newest(journal)
    segment.rename(segment.with_suffix(".bak"))


def _move_away(journal: Path) -> None:
    _newest(journal).rename(journal.parents[3] / "elsewhere")


def _unlink(journal: Path) -> None:
    _newest(journal).unlink()


def _unlink_all(journal: Path) -> None:
    for path in journal.glob(f"*{layout.SEGMENT_SUFFIX}"):
        path.unlink()


def _unlink_witness(journal: Path) -> None:
    layout.witness_path(_newest(journal)).unlink()


def _unlink_lock(journal: Path) -> None:
    (journal / layout.LOCK).unlink()


def _replace_by_junk(journal: Path) -> None:
    junk = journal.parents[3] / "junk"
    junk.write_bytes(bytes(range(256)) * 64)
    junk.replace(_newest(journal))


def _replace_by_copy(journal: Path) -> None:
    segment = _newest(journal)
    copy = journal.parents[3] / "copy"
    shutil.copyfile(segment, copy)
    copy.replace(segment)


def _truncate(share: float) -> Callable[[Path], None]:
    def truncate(journal: Path) -> None:
        segment = _newest(journal)
        os.truncate(segment, int(segment.stat().st_size * share))

    return truncate


def _cut_one_byte(journal: Path) -> None:
    segment = _newest(journal)
    os.truncate(segment, segment.stat().st_size - 1)


def _rename_folder(journal: Path) -> None:
    journal.rename(journal.with_name("journal-old"))


def _bring_folder_back(journal: Path) -> None:
    journal.with_name("journal-old").rename(journal)


def _delete_folder(journal: Path) -> None:
    shutil.rmtree(journal)


def _delete_task(journal: Path) -> None:
    shutil.rmtree(journal.parent)


#: What happens to the journal, by name; whether its bytes can still be had, so that nothing at all
#: may be missing. (A folder that was moved away is not made again beside itself: held, until it is
#: back.)
_ACCIDENTS: Final[dict[str, tuple[Callable[[Path], None], bool]]] = {
    "segment renamed": (_rename, True),
    "segment moved away": (_move_away, True),
    "segment deleted": (_unlink, True),
    "all segments deleted": (_unlink_all, True),
    "witness deleted": (_unlink_witness, True),
    "lock deleted": (_unlink_lock, True),
    "segment replaced by junk": (_replace_by_junk, True),
    "segment replaced by its copy": (_replace_by_copy, True),
    "segment cut by a byte": (_cut_one_byte, False),
    "segment cut to half": (_truncate(0.5), False),
    "segment cut to nothing": (_truncate(0.0), False),
    "journal folder renamed": (_rename_folder, True),
    "journal folder deleted": (_delete_folder, True),
    "task folder deleted": (_delete_task, True),
}


def run_journal(effort: Effort) -> Outcome:
    """Rename, delete, replace and cut the journal under its writer."""
    outcome = Outcome("accidents of the journal")
    stops = range(13) if effort.is_full else (0, 6)
    for (name, (accident, is_whole)), stop in itertools.product(_ACCIDENTS.items(), stops):
        with effort.workspace(memory=True) as folder:
            _try_accident(folder, name, accident, is_whole, stop, outcome)
    return outcome


def _try_accident(
    folder: Path,
    name: str,
    accident: Callable[[Path], None],
    is_whole: bool,
    stop: int,
    outcome: Outcome,
) -> None:
    where = f"{name} before trial {stop}"
    settings = Settings(
        root=str(folder / "data"), child=False, flush_every=1, stops=(stop,), close_timeout=20.0
    )
    journal = folder / "data" / SUBJECT / TASK / layout.JOURNAL
    told = Told()

    async def pause(_: int) -> None:
        accident(journal)

    def hear(event: dict[str, Any]) -> None:
        told.hear(event)
        if "trouble" in event and accident is _rename_folder:
            # Not on the event loop, which is where this is heard.
            helper = threading.Thread(target=_bring_folder_back, args=(journal,))
            helper.start()
            helper.join()

    with quiet():
        record_here(settings, hear, pause)
    outcome.tried += 1
    outcome.count("new segments, at the next commit", len(told.failovers))
    outcome.count("times held until the folder was back", len(told.troubles))
    if name.startswith(("segment", "all")) and not told.failovers:
        outcome.breach("broken", f"{where}: the recorder did not notice")
    if told.troubles and accident is not _rename_folder:
        outcome.breach("broken", f"{where}: recording did not go on: {told.troubles}")
    judge(told, settings, outcome, where, is_whole=is_whole)


ROWS = (
    Row(
        30,
        "Stray code closes our descriptors and opens other files on their numbers",
        "Noticed before the next commit; no stranger's file is written to or closed; nothing is "
        "lost.",
        run_descriptors,
    ),
    Row(
        31,
        "The journal is renamed, deleted, replaced or cut under its writer",
        "Noticed within one commit; what can still be had is written again; what is gone is named; "
        "a folder that was moved away is waited for.",
        run_journal,
    ),
)
