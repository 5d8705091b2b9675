"""A reaching task: two blocks of targets in random order, the hand's path in each trial, the score.

Run it with ``python examples/reaching.py [FOLDER]``, as often as you like; ``analysis.py`` reads
what it records. The hand is simulated: a minimum-jerk movement (Flash and Hogan, 1985) with noise.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anyio
import numpy as np

from trialstore import ArrayInfo, Design, Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from trialstore import Trial

RATE = 100.0  # samples of the hand's position per second
TARGETS = {"left": (-10.0, 10.0), "ahead": (0.0, 14.0), "right": (10.0, 10.0)}  # cm
RADIUS = 1.0  # cm; a reach that ends closer than this is a hit


def make_design(blocks: int, repetitions: int) -> Design:
    """Show every target equally often in each block, in an order that is the same in every run."""
    design = Design()
    for number in range(blocks):
        block = design.add_block()
        for target in TARGETS:
            for _ in range(repetitions):
                block.add_trial(attrs={"target": target})
        block.shuffle(seed=number)
    return design


def reach(target: str, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Yield the position of the hand, shape (2, 1) in cm, sample by sample."""
    reaction, duration = rng.uniform(0.15, 0.25), 0.3
    goal = np.asarray(TARGETS[target])[:, np.newaxis] + rng.normal(0.0, 0.6, (2, 1))
    for time in np.arange(0.0, reaction + duration, 1 / RATE):
        s = np.clip((time - reaction) / duration, 0.0, 1.0)
        yield goal * (10 * s**3 - 15 * s**4 + 6 * s**5) + rng.normal(0.0, 0.02, (2, 1))


async def run_trial(trial: Trial, rng: np.random.Generator) -> None:
    """Follow one reach; its samples gather in the trial, in memory."""
    target = trial.attrs["target"]
    hand = trial.add_array("hand")
    next_sample = anyio.current_time()
    position = np.zeros((2, 1))
    for position in reach(target, rng):
        next_sample += 1 / RATE
        await anyio.sleep_until(next_sample)
        hand.stack(position)
    miss = float(np.linalg.norm(position[:, 0] - TARGETS[target]))
    trial.attrs.update(miss_cm=miss, hit=miss < RADIUS)


async def experiment(root: str) -> None:
    """Run two blocks and record them."""
    rng = np.random.default_rng()
    hand = ArrayInfo(rate=RATE, unit="cm", channels=["x", "y"], dims=("channel", "time"))
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.create_task(
            "reach", metadata={"radius_cm": RADIUS}, arrays={"hand": hand}, repeat=True
        ) as task:
            for block in make_design(blocks=2, repetitions=1):
                for trial in block:
                    await run_trial(trial, rng)
                    await task.write(trial)  # does not wait for the disk
                    print(block.index, trial.attrs["target"], f"{trial.attrs['miss_cm']:.2f} cm")
                await task.flush()  # in the break: everything so far survives a power cut
    print(f"recorded in {task.root}")


if __name__ == "__main__":
    anyio.run(experiment, sys.argv[1] if len(sys.argv) > 1 else "data")
