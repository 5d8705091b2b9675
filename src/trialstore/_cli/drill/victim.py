"""A recorder that is killed in the middle, and what it left.

``python -m trialstore._cli.drill.victim FOLDER LOAD`` records for ever and tells on standard output
which trials are durable, each with one system call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import numpy as np

from trialstore import DamagedData, Storage, StorageReader
from trialstore._cli.drill.load import Load
from trialstore._cli.drill.recording import ARRAY, SUBJECT
from trialstore._cli.drill.verdict import Crash

if TYPE_CHECKING:
    from trialstore import TaskReader

_TASK: Final = "killed"
#: Short trials: more of them can be told durable before the kill.
_TRIAL_SECONDS: Final = 0.02


def chunks_of(load: Load) -> int:
    """Return how many chunks a trial has."""
    return max(1, round(_TRIAL_SECONDS / load.period))


async def record(root: Path, load: Load) -> None:
    """Record trials as they come due, and tell each that is durable."""
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(_TASK) as task:
            trial = 0
            while True:
                for number in range(chunks_of(load)):
                    await task.append(ARRAY, load.chunk_of(trial + number))
                receipt = await task.write({"trial": trial})
                await receipt.durable()
                os.write(1, f"{trial}\n".encode())
                trial += 1


def kill_one(root: Path, load: Load, trials: int, timeout: float) -> Crash:
    """Start a recorder, kill it after so many durable trials, and look at what is there.

    Raises
    ------
    OSError
        If no process can be started.
    """
    told = json.dumps([load.channels, load.rate, load.dtype.str, load.chunk])
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(root), told]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            acknowledged = _last_told(process, trials)
        finally:
            process.kill()
        process.wait(timeout)
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
    storage = StorageReader(root)
    storage.subject_id = SUBJECT
    return examine(storage.require_task(_TASK), load, acknowledged + 1)


def _last_told(process: subprocess.Popen[bytes], trials: int) -> int:
    assert process.stdout is not None
    last = -1
    for line in process.stdout:
        last = int(line)
        if last + 1 >= trials:
            break
    return last


def examine(reader: TaskReader, load: Load, acknowledged: int) -> Crash:
    """Compare every acknowledged trial with what was recorded."""
    rows = reader.trials
    present = set(rows["trial"].tolist()) if len(rows) else set()
    missing = []
    for trial in range(acknowledged):
        try:
            is_whole = trial in present and np.array_equal(
                reader.array(ARRAY, trial=trial), expected(load, trial)
            )
        except DamagedData:
            is_whole = False
        if not is_whole:
            missing.append(trial)
    return Crash(acknowledged, len(rows), tuple(missing))


def expected(load: Load, trial: int) -> Any:
    """Return the samples of a trial: shape (channels, samples)."""
    return np.hstack([load.chunk_of(trial + number) for number in range(chunks_of(load))])


def main() -> None:
    """Record as told on the command line, until killed."""
    root, told = sys.argv[1:3]
    channels, rate, dtype, chunk = json.loads(told)
    anyio.run(record, Path(root), Load(channels, rate, np.dtype(dtype), chunk))
