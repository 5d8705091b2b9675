"""Damage to published files: what was published comes back, or an error names file and trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread
import h5py
import numpy as np
import pytest

from tests.campaign import afterwards
from tests.campaign.frame import Effort
from tests.helpers import open_lab, reader_of
from tests.journals import Recording, frames_of
from trialstore import DamagedData, InvalidTrial, Storage
from trialstore._ondisk import layout
from trialstore._ondisk.journal import FrameType
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from pathlib import Path


def test_a_dataset_of_other_axes_is_damage_of_its_trial(tmp_path: Path) -> None:
    """Read whole or by a window, a dataset that is no longer what was published is refused."""
    with open_lab(tmp_path) as lab, lab.create("reach") as task:
        task.append("emg", np.ones((2, 9)))
        task.write({"n": 1})
        path = task.root / "emg.hdf5"
    with h5py.File(path, "r+") as file:
        del file["0"]
        file["0"] = 1.0
    reader = reader_of(tmp_path)
    for window in (None, (1, 3)):
        with pytest.raises(DamagedData, match="trial 0") as caught:
            reader.array("emg", 0, window)
        assert (caught.value.path, caught.value.trials) == (path, (0,))


def lose_arrays_of_trial_1(folder: Path) -> None:
    """Publish three trials, of which the second has lost its arrays, one of them its only one."""
    folder.mkdir(parents=True)
    recording = Recording(folder / layout.JOURNAL)
    for number in range(3):
        recording.append("emg", np.full((1, 4), float(number)))
        if number == 1:
            recording.append("key", np.array([7], "u1"))
        recording.trial(n=number)
        recording.commit()
    recording.close()
    (folder / layout.JOURNAL / layout.LOCK).touch()
    segment = folder / layout.JOURNAL / "000001.segment"
    lost = [frame for frame in frames_of(segment) if frame.type == FrameType.CHUNKS][1:3]
    with segment.open("r+b") as file:
        file.seek(lost[0].offset)
        file.write(bytes(lost[1].end - lost[0].offset))
    publish_once(folder, {})


@pytest.mark.anyio
async def test_a_lost_array_does_not_look_as_if_it_had_never_been(tmp_path: Path) -> None:
    """Published, resumed and being recorded, published again: reading it raises, however."""
    await anyio.to_thread.run_sync(lose_arrays_of_trial_1, tmp_path / "p0/reach")

    def look(trials: int) -> None:
        reader = reader_of(tmp_path)
        assert reader.array_names == ["emg", "key"]
        assert [trial for loss in reader.losses for trial in loss.trials] == [1, 1]
        for name in reader.array_names:
            with pytest.raises(DamagedData, match=f"array '{name}' of trial 1"):
                reader.array(name, trial=1)
            with pytest.raises(DamagedData, match=f"array '{name}' of trial 1"):
                list(reader.iterarray(name))
        with pytest.raises(InvalidTrial, match="no array 'key'"):
            reader.array("key", trial=2)
        with pytest.raises(DamagedData, match="of trial 1"):
            list(reader.follow())
        assert reader.array("emg", trial=2).tolist() == [[2.0] * 4]
        assert len(reader.trials) == trials

    await anyio.to_thread.run_sync(look, 3)
    async with Storage(tmp_path) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            await task.write({"n": 3})
            await task.flush()
            await anyio.to_thread.run_sync(look, 4)
    await anyio.to_thread.run_sync(look, 4)


@pytest.mark.slow
def test_a_bit_flipped_in_a_published_file_gives_no_wrong_data() -> None:
    """A sample of what the campaign does byte by byte, in processes that HDF5 might take down."""
    outcome = afterwards.row_37(Effort())
    assert outcome.is_clean, outcome.problems
