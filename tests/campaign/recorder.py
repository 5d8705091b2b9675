"""The process that is killed: records the model and tells what was acknowledged.

``python -m tests.campaign.recorder ROOT [--resume] [--first N] ...`` writes lines to standard
output, each with one system call, so that a kill leaves whole lines: ``O 5`` (the task is open,
trial 5 comes next), ``B 99`` (process 99 is the publisher), ``S 12`` (trial 12 is about to be
handed over), ``A 12`` (accepted), ``W 12`` (written), ``D 12`` (durable), ``V 12`` (a reader was
shown trial 12), ``P 13`` (the first 13 are published), ``C 20`` (closed with 20 trials).
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from tests.campaign.content import SUBJECT, TASK, Promise, arrays_of, attrs_of
from trialstore import Storage, Trial

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trialstore import TaskWriter


def say(kind: str, number: int) -> None:
    """Tell the parent, in one system call."""
    os.write(1, f"{kind} {number}\n".encode())


async def hand_over(task: TaskWriter, number: int, epoch: int = 0) -> None:
    """Record one trial, streamed or whole, and tell when it is durable if it is one to wait for.

    Raises
    ------
    RuntimeError
        If the task gives the trial another number: it knows of more trials than there are, or less.
    """
    say("S", number)
    arrays = arrays_of(number, epoch)
    if number % 2:
        for name, chunks in arrays.items():
            for chunk in chunks:
                await task.append(name, chunk)
        receipt = await task.write(attrs_of(number, epoch))
    else:
        trial = Trial(attrs=attrs_of(number, epoch))
        for name, chunks in arrays.items():
            trial.add_array(name)
            for chunk in chunks:
                trial.arrays[name].stack(chunk)
        receipt = await task.write(trial)
    if receipt.index != number:
        raise RuntimeError(f"trial {number} was given the number {receipt.index}")
    if number % 7 == 0:
        await receipt.durable()
        say("D", number)


async def record(
    root: Path,
    *,
    task: str = TASK,
    resume: bool = False,
    overwrite: bool = False,
    repeat: bool = False,
    first: int = 0,
    epoch: int = 0,
    count: int | None = None,
    publish_every: int = 0,
    pause: float = 0.0,
) -> None:
    """Record trials from `first` on; for ever, or `count` of them and then close.

    Everything is durable when it ends by itself; ``D`` is told for the last trial then.
    """
    numbers = itertools.count(first) if count is None else range(first, first + count)
    async with Storage(root, allow_overwrite=overwrite) as storage:
        storage.subject_id = SUBJECT
        opening = storage.resume_task(task) if resume else storage.create_task(task, repeat=repeat)
        async with opening as writer:
            say("O", first)
            if (publisher := storage._recorder.publisher.pid) is not None:
                say("B", publisher)
            for number in numbers:
                await hand_over(writer, number, epoch)
                if publish_every and number % publish_every == publish_every - 1:
                    await writer.publish()
                    say("P", number + 1)
                await anyio.sleep(pause)
    if count:
        say("C", first + count)


def heard(lines: Iterable[bytes]) -> Promise:
    """Put together what a recorder said before it ended."""
    promise = Promise()
    for line in lines:
        kind, _, rest = line.strip().partition(b" ")
        if not rest:
            continue
        number = int(rest)
        match kind:
            case b"O":
                promise.is_open = True
            case b"B":
                promise.publisher = number
            case b"S":
                promise.submitted = max(promise.submitted, number + 1)
            case b"A":
                promise.accepted.update(range(number + 1))
            case b"W":
                promise.written.update(range(number + 1))
            case b"D" | b"V":
                promise.durable.update(range(number + 1))
            case b"P" | b"C":
                promise.durable.update(range(number))
                promise.published.update(range(number))
    promise.written |= promise.durable
    return promise


def main(arguments: list[str] | None = None) -> None:
    """Record as told on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--publish-every", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument(
        "--no-child", action="store_true", help="publish in a thread, as frozen applications do"
    )
    told = parser.parse_args(arguments)
    if told.no_child:
        sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
    anyio.run(
        lambda: record(
            told.root,
            resume=told.resume,
            first=told.first,
            count=told.count,
            publish_every=told.publish_every,
            pause=told.pause,
        )
    )


if __name__ == "__main__":
    main()
