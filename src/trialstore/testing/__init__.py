"""Disks for tests: slow, hung, full, failing, and one whose power can be cut at every moment.

Put one under your own experiment and see what becomes of its trials:

```
with use(FullDisk(free=100_000)):
    async with Storage(root) as storage:
        ...
```

| disk | what it does | what a test can say |
|---|---|---|
| `SlowDisk` | waits at each write and sync | the loop stays on time |
| `HungDisk` | a call does not return until `release` | the experiment ends all the same |
| `FullDisk` | takes so many bytes and no more | it tells the experimenter, and goes on later |
| `FailingDisk` | the n-th call of a kind fails | whichever call fails, nothing is lost |
| `PowerCutDisk` | all states that a power cut may leave | each holds every acknowledged trial |

Each is the real disk in everything else, may be called from any thread, and stands in for the disk
of the *recording process*. The publisher is a process of its own and meets the real disk, except
under a `PowerCutDisk` (see `Disk.reaches_children`).

Nothing else in trialstore imports this package.
"""

from __future__ import annotations

from trialstore.testing._crash import State, States
from trialstore.testing._delays import HungDisk, SlowDisk
from trialstore.testing._failing import FailingDisk, Fault
from trialstore.testing._full import FullDisk
from trialstore.testing._power import PowerCutDisk
from trialstore.testing._watched import Kind, WatchedDisk, use

__all__ = [
    "FailingDisk",
    "Fault",
    "FullDisk",
    "HungDisk",
    "Kind",
    "PowerCutDisk",
    "SlowDisk",
    "State",
    "States",
    "WatchedDisk",
    "use",
]
