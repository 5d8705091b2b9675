"""Lines that keep data safe, each with the test that must fail when the line is taken away.

A test suite that still passes without one of them would not notice that somebody has lost it.
``nox -s mutations`` tries them all; `tests/test_mutations.py` sees that the list fits the code.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.campaign.frame import Outcome, Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.campaign.frame import Effort

PROJECT: Final = Path(__file__).parents[2]
_PACKAGE: Final = Path("src/trialstore")
#: A mutation may make a test hang; that is noticed too.
_PATIENCE: Final = 240.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """One safety line and its guard.

    Parameters
    ----------
    what : str
        What is taken away.
    file : str
        Below the package.
    text : str
        Stands there exactly once.
    instead : str
        What is put in its place.
    test : str
        ``module::function`` below ``tests``; one of its cases must fail then.
    """

    what: str
    file: str
    text: str
    instead: str
    test: str


MUTATIONS: Final = (
    Mutation(
        "the sync of files",
        "_ondisk/disk.py",
        '        getattr(os, "fdatasync", os.fsync)(fd)\n',
        "        os.fstat(fd)\n",
        "test_safety::test_a_sync_is_a_sync",
    ),
    Mutation(
        "the sync of folders",
        "_ondisk/disk.py",
        "            os.fsync(fd)\n        except OSError as error:\n            # Some",
        "            os.fstat(fd)\n        except OSError as error:\n            # Some",
        "test_safety::test_a_sync_is_a_sync",
    ),
    Mutation(
        "the sync of a batch, before its receipts",
        "_ondisk/segment.py",
        "        self._disk.sync(self._fd)\n        # Again:",
        "        # Again:",
        "test_testing_power::test_nothing_acknowledged_is_lost",
    ),
    Mutation(
        "the folder sync of a new segment",
        "_ondisk/segment.py",
        "            disk.sync(self._fd)\n            disk.sync_folder(folder)\n",
        "            disk.sync(self._fd)\n",
        "test_testing_power::test_nothing_acknowledged_is_lost",
    ),
    Mutation(
        "the folder sync of a new folder",
        "_ondisk/disk.py",
        "            self.sync_folder(path.parent)\n        except OSError as error:\n",
        "            path.lstat()\n        except OSError as error:\n",
        "test_testing_power::test_nothing_acknowledged_is_lost",
    ),
    Mutation(
        "the folder sync of a rename",
        "_ondisk/disk.py",
        "        self.rename(source, target)\n        self.sync_folder(target.parent)\n",
        "        self.rename(source, target)\n",
        "test_testing_power::test_nothing_acknowledged_is_lost",
    ),
    Mutation(
        "the sync of a file before its rename",
        "_ondisk/disk.py",
        "                self.write(fd, [data])\n                self.sync(fd)\n",
        "                self.write(fd, [data])\n",
        "test_testing_power::test_nothing_acknowledged_is_lost",
    ),
    Mutation(
        "the sync of what survived a kill",
        "_ondisk/recovery.py",
        "            disk.sync(fd)\n",
        "            os.fstat(fd)\n",
        "test_safety::test_resuming_makes_durable_what_a_kill_left",
    ),
    Mutation(
        "O_EXCL",
        "_ondisk/disk.py",
        "    | os.O_EXCL\n",
        "    | os.O_TRUNC\n",
        "test_segments::test_a_file_that_appears_in_the_last_moment_is_not_taken",
    ),
    Mutation(
        "O_NOFOLLOW",
        "_ondisk/disk.py",
        '    os.O_RDONLY\n    | getattr(os, "O_CLOEXEC", 0)\n    | getattr(os, "O_NOFOLLOW", 0)\n',
        '    os.O_RDONLY\n    | getattr(os, "O_CLOEXEC", 0)\n',
        "test_safety::test_links_are_not_read",
    ),
    Mutation(
        "going on after a short write",
        "_ondisk/disk.py",
        '                    queue[start] = memoryview(piece).cast("B")[written:]\n',
        "                    start += 1\n",
        "test_segments::test_short_writes_are_gone_on_with",
    ),
    Mutation(
        "the checksum of frame headers",
        "_ondisk/journal.py",
        "    if crc32(data[: _FRAME.size], salt) != crc:\n",
        "    if crc is None:\n",
        "test_journal::test_every_flipped_bit_costs_one_frame_at_most",
    ),
    Mutation(
        "the salt of frame headers",
        "_ondisk/journal.py",
        "    return crc32(session)\n",
        "    return 0\n",
        "test_journal::test_frames_of_another_session_are_a_torn_tail",
    ),
    Mutation(
        "the checksum of descriptions",
        "_ondisk/journal.py",
        "    return meta if crc32(meta) == frame.meta_crc else None\n",
        "    return meta\n",
        "test_replay::test_a_damaged_row_leaves_its_trial_out_and_names_it",
    ),
    Mutation(
        "the checksum of samples",
        "_ondisk/journal.py",
        "    return len(body) == frame.body_length and crc32(body) == frame.body_crc\n",
        "    return len(body) == frame.body_length\n",
        "test_replay::test_a_damaged_chunk_keeps_the_row_and_its_array_raises",
    ),
    Mutation(
        "the limit of lengths by the size of the file",
        "_ondisk/journal.py",
        "        whole = frame if frame is not None and frame.end <= size else None\n",
        "        whole = frame\n",
        "test_journal::test_every_prefix_holds_the_frames_that_end_in_it",
    ),
    Mutation(
        "the rule that a frame's number is given once",
        "_ondisk/segment_file.py",
        "        return frame.synced_to < frame.seq <= MOST and not is_known\n",
        "        return frame.synced_to < frame.seq <= MOST\n",
        "test_journal::test_frames_of_the_same_session_inside_samples_do_not_surface",
    ),
    Mutation(
        "the witness",
        "_ondisk/segment.py",
        "        give_way()\n        self._testify(trials)\n",
        "        give_way()\n",
        "test_replay::test_a_cut_between_two_frames_is_noticed_by_the_witness_alone",
    ),
    Mutation(
        "how far the journal was durable, in each frame",
        "_ondisk/segment.py",
        "                synced_to=self.durable_seq,\n",
        "                synced_to=0,\n",
        "test_safety::test_frames_tell_how_far_the_journal_was_durable",
    ),
    Mutation(
        "the lock of a task",
        "_ondisk/lock.py",
        "            if _try_lock(fd, exclusive=True) and _same_file(fd, path):\n",
        "            if _same_file(fd, path):\n",
        "test_witness_lock::test_another_recorder_is_named",
    ),
    Mutation(
        "seeing that the locked file is the one at the path",
        "_ondisk/lock.py",
        "            if _try_lock(fd, exclusive=True) and _same_file(fd, path):\n",
        "            if _try_lock(fd, exclusive=True):\n",
        "test_witness_lock::test_a_file_that_is_moved_while_it_is_being_locked_is_not_taken",
    ),
    Mutation(
        "seeing that the descriptor is still ours",
        "_ondisk/segment.py",
        "        if not all(self._disk.identity(fd) == identity "
        "for fd, identity in self._descriptors()):\n",
        "        if not self._descriptors():\n",
        "test_segments::test_a_stolen_descriptor_harms_no_foreign_file",
    ),
    Mutation(
        "seeing that the journal is still at its path",
        "_ondisk/segment.py",
        "        if self._disk.identity_at(self.path) != self._identity:\n",
        "        if self.path is None:\n",
        "test_segments::test_a_journal_taken_away_under_the_recorder_is_written_again",
    ),
    Mutation(
        "poisoning a segment instead of trying it again",
        "_ondisk/segments.py",
        "                self._poison(self._segment, error)\n                failure = error\n",
        "                failure = error\n"
        "                self._segment.commit(entries, trials)\n"
        "                self._settle(self._segment)\n"
        "                return\n",
        "test_safety::test_a_failed_sync_is_never_asked_again",
    ),
    Mutation(
        "the copy of an appended chunk",
        "_recording/slabs.py",
        '                memory[start : start + nbytes] = memoryview(source).cast("B")\n',
        '                return memoryview(source).cast("B"), 0\n',
        "test_recording::test_the_caller_may_reuse_its_buffers_at_once",
    ),
    Mutation(
        "using memory again only when nothing refers to it",
        "_recording/slabs.py",
        "        weakref.finalize(lease, self._free.append, mapped).atexit = False\n",
        "        self._free.append(mapped)\n",
        "test_slabs::test_what_was_copied_is_never_written_again",
    ),
    Mutation(
        "the copy of a trial's array",
        "_recording/intake.py",
        '    copy = np.array(opaque(array), order="C", copy=True).view(array.dtype)\n',
        '    copy = np.asarray(opaque(array), order="C").view(array.dtype)\n',
        "test_safety::test_arrays_of_foreign_trials_are_copied",
    ),
    Mutation(
        "counting what is not durable yet against the queue's bound",
        "_recording/writer.py",
        "        began, began_unix = time.monotonic(), time.time_ns()\n",
        "        began, began_unix = time.monotonic(), time.time_ns()\n"
        "        for job in jobs:\n"
        "            self._queue.release(job.size)\n"
        "            job.size = 0\n",
        "test_safety::test_what_is_not_durable_counts",
    ),
    Mutation(
        "the shield of the writer",
        "_recording/writer.py",
        "            with self._scope:\n"
        "                while not self._stopping:\n"
        "                    try:\n"
        "                        await self._turn()\n"
        "                    except anyio.get_cancelled_exc_class():\n",
        "            with anyio.CancelScope():\n"
        "                while not self._stopping:\n"
        "                    try:\n"
        "                        await self._turn()\n"
        "                    except ():\n",
        "test_ends::test_cancellation_and_time_outs_keep_everything",
    ),
    Mutation(
        "letting go in a forked child",
        "_recording/recorder.py",
        "    os.register_at_fork(after_in_child=_after_fork)\n",
        "    _after_fork  # noqa: B018\n",
        "test_ends::test_a_forked_child_cannot_write_and_frees_the_lock",
    ),
    Mutation(
        "reading tables back before they are renamed into place",
        "_publishing/rows.py",
        "    if read_file(hidden) != data:\n",
        "    if not data:\n",
        "test_safety::test_what_does_not_read_back_is_not_published",
    ),
    Mutation(
        "reading arrays back before they are renamed into place",
        "_publishing/arrays.py",
        "        if tuple(chunks.crc_of(part) for part in found) != stored.blocks:\n",
        "        if not found:\n",
        "test_safety::test_what_does_not_read_back_is_not_published",
    ),
    Mutation(
        "the manifest as the last of the published files",
        "_publishing/task.py",
        "            self._put_in_place(described)\n            self._describe_end(described)\n",
        "            self._describe_end(described)\n"
        "            self._disk.write_file(self.folder / layout.MANIFEST, described.encode())\n"
        "            self._put_in_place(described)\n",
        "test_safety::test_the_manifest_comes_last",
    ),
    Mutation(
        "seeing that a segment's name was given to another file",
        "_ondisk/segment_folders.py",
        "            self._let_go_if_replaced(key)\n",
        "            pass\n",
        "test_replay::test_a_segment_that_was_begun_again_is_read",
    ),
    Mutation(
        "telling what was refused no later than what came after it",
        "_recording/job.py",
        "        self.losses += self.channel.take_losses()\n",
        "",
        "test_queue::test_a_refusal_is_on_disk_before_what_came_after_it",
    ),
    Mutation(
        "hearing what a thread found of a portion",
        "_publishing/arrays.py",
        "            portion.proof.result()\n",
        "",
        "test_building::test_a_portion_that_fails_is_not_published",
    ),
    Mutation(
        "seeing that the journal is still the one that was followed",
        "_publishing/task.py",
        "            if not self._replay.stands():\n",
        "            if self._replay is None:\n",
        "test_publisher::test_a_late_publisher_does_not_publish_into_a_journal_that_was_just_made",
    ),
    Mutation(
        "checking a table before it is published again",
        "_publishing/rows.py",
        "        trials = manifest.read_described(folder, base, layout.TRIALS)\n",
        "        trials = read_file(folder / layout.TRIALS)\n",
        "test_safety::test_a_table_that_changes_while_recording_is_not_published",
    ),
    Mutation(
        "the checksum of the manifest",
        "_ondisk/manifest.py",
        "    if found is None or int(found[1], 16) != crc32(data[: found.start()]):\n",
        "    if found is None:\n",
        "test_manifest::test_every_changed_byte_is_noticed",
    ),
    Mutation(
        "the checksum of published samples",
        "_reading/published.py",
        "            fits = found == stored.blocks[first : first + len(found)]\n",
        "            fits = len(found) <= len(stored.blocks)\n",
        "test_reading::test_a_flipped_byte_of_an_array_is_told",
    ),
    Mutation(
        "the checksum of published tables",
        "_ondisk/manifest.py",
        '    if said is None or said["size"] != len(data) or said["crc32"] != crc32(data):\n',
        '    if said is None or said["size"] != len(data):\n',
        "test_reading::test_a_changed_table_is_told",
    ),
    Mutation(
        "showing only what is durable while recording",
        "_reading/live.py",
        "            found = [trial for trial in found if trial.seq <= durable]\n",
        "            found = [trial for trial in found if durable >= 0]\n",
        "test_safety::test_readers_are_not_shown_what_is_not_durable",
    ),
    Mutation(
        "the list of classes that a pickle may name",
        "_ondisk/pickle_classes.py",
        "    if use is None:\n        raise untrusted",
        "    if use is None:\n        use = Use.CALL\n    if use is ...:\n        raise untrusted",
        "test_pickles::test_code_does_not_run",
    ),
    Mutation(
        "the characters that no name may hold",
        "_ondisk/layout.py",
        "    if character in _FORBIDDEN:\n",
        "    if character in ():\n",
        "test_recording::test_bad_names_are_refused_at_the_call",
    ),
)


class Workshop:
    """A copy of the project, in which one line after another is taken away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("src", "tests", "examples"):
            ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
            shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
        shutil.copy(PROJECT / "pyproject.toml", folder)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder / "src"), str(folder))),
            # A file of the same size may be changed twice within a second.
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def uses_the_copy(self) -> bool:
        """Whether tests run here import what lies here, and no installed package."""
        program = "import trialstore; print(trialstore.__file__)"
        found = self._python("-c", program)
        return Path(found.stdout.strip()).is_relative_to(self._folder)

    def passes(self, tests: Iterable[str]) -> bool:
        """Whether tests pass; one that does not end does not.

        Raises
        ------
        RuntimeError
            If they could not be run at all.
        """
        chosen = [f"tests/{test.replace('::', '.py::')}" for test in dict.fromkeys(tests)]
        try:
            run = self._python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *chosen)
        except subprocess.TimeoutExpired:
            return False
        # pytest: 0 all passed, 1 some failed; a process that was killed by a signal is below zero,
        # and faulthandler ends a hanging one with 1. Everything else is a mistake of ours.
        if run.returncode not in (0, 1) and run.returncode > 0:
            raise RuntimeError(
                f"{chosen} could not be run: {run.stdout[-2000:]}{run.stderr[-500:]}"
            )
        return run.returncode == 0

    def is_noticed(self, mutation: Mutation) -> bool:
        """Take a line away, run its test, put the line back; whether the test has failed."""
        path = self._folder / _PACKAGE / mutation.file
        before = path.read_text()
        if before.count(mutation.text) != 1:
            raise RuntimeError(f"{mutation.what}: its text does not stand once in {mutation.file}")
        path.write_text(before.replace(mutation.text, mutation.instead))
        try:
            return not self.passes([mutation.test])
        finally:
            path.write_text(before)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )


def row_mutations(effort: Effort) -> Outcome:
    """Take safety lines away, six of them or all."""
    outcome = Outcome("lines taken away")
    chosen = list(MUTATIONS)
    if not effort.is_full:
        chosen = random.Random(effort.seed).sample(chosen, 6)
    with effort.workspace() as folder:
        workshop = Workshop(folder / "copy")
        if not workshop.uses_the_copy():
            raise RuntimeError("the tests of the copy would test the installed package")
        for mutation in chosen:
            if not workshop.passes([mutation.test]):
                outcome.breach("broken", f"{mutation.test} fails with every line in place")
        for mutation in chosen:
            outcome.tried += 1
            if not workshop.is_noticed(mutation):
                outcome.breach("broken", f"{mutation.what}: {mutation.test} has not noticed")
    return outcome


ROWS: Final = (
    Row(
        39,
        "a safety line taken away (mutation check)",
        "the test that guards the line fails",
        row_mutations,
    ),
)


def main() -> int:
    """Try every mutation, or those whose description holds a word that is given; tell of each."""
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in m.what for word in words)]
    failures = 0
    with tempfile.TemporaryDirectory(prefix="trialstore-mutations-") as folder:
        workshop = Workshop(Path(folder) / "copy")
        if not workshop.uses_the_copy():
            raise RuntimeError("the tests of the copy would test the installed package")
        for mutation in chosen:
            if not workshop.passes([mutation.test]):
                verdict = "FAILS UNMUTATED"
            else:
                verdict = "noticed" if workshop.is_noticed(mutation) else "NOT NOTICED"
            failures += verdict != "noticed"
            line = f"{verdict:<16}{mutation.what} ({mutation.file}): {mutation.test}"
            print(line, flush=True)  # noqa: T201
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
