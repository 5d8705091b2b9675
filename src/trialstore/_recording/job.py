"""One task's part of a batch, from the queue to the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trialstore._ondisk.entries import LossNote, SyncMark, encode
from trialstore._ondisk.yielding import give_way
from trialstore._recording.items import TrialItem, encode_batch
from trialstore._recording.progress import Level

if TYPE_CHECKING:
    from trialstore._ondisk.entries import Entry
    from trialstore._ondisk.losses import Loss
    from trialstore._recording.channel import Channel
    from trialstore._recording.queue import Parcel


@dataclass(slots=True, eq=False)
class Job:
    """One task's part of a batch until it is durable; the items are taken at the last moment."""

    channel: Channel
    trials: int
    losses: tuple[Loss, ...] = ()
    parcel: Parcel | None = None
    entries: list[Entry] = field(default_factory=list)
    count: int = 0
    nbytes: int = 0
    oldest_ns: int | None = None
    committed: bool = False
    error: Exception | None = None
    retry_at: float = 0.0

    def run(self) -> None:
        """Take, encode once, commit; in the worker thread."""
        if self.committed:
            return
        try:
            if not self.entries:
                give_way()
                self._encode()
                give_way()
            self.channel.journal.commit(self.entries, self.trials)
        except Exception as error:  # noqa: BLE001 - kept with the batch, reported, and tried again
            self.error = error
        else:
            self.committed, self.error = True, None
            # Here and not on the loop: giving 32 MiB back takes a millisecond.
            self.entries = []
            if self.parcel is not None:
                self.parcel.items.clear()

    def _encode(self) -> None:
        self.parcel = self.channel.lane.take()
        items = [] if self.parcel is None else self.parcel.items
        # After the items: what was refused before a trial is on disk no later than the trial.
        self.losses += self.channel.take_losses()
        entries = [encode(LossNote(self.losses))] if self.losses else []
        entries += encode_batch(items) or [encode(SyncMark())]
        self.count = len(items)
        self.nbytes = sum(item.nbytes for item in items)
        self.oldest_ns = items[0].accepted_ns if items else None
        past = next((item for item in reversed(items) if isinstance(item, TrialItem)), None)
        self.trials = self.trials if past is None else past.trial + 1
        self.entries = entries

    @property
    def size(self) -> int:
        """Bytes of the queue that it gives back."""
        return 0 if self.parcel is None else self.parcel.size


def next_job(channel: Channel) -> Job | None:
    """Begin the next part of a batch, if a task has something for it."""
    if not channel.lane.parcels and not channel.refused:
        return None
    return Job(channel, channel.progress.trials[Level.DURABLE - 1])
