"""Damage to published files: what was published comes back, or an error names file and trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from tests.campaign import afterwards
from tests.campaign.frame import Effort
from tests.helpers import open_lab, reader_of
from trialstore import DamagedData

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


@pytest.mark.slow
def test_a_bit_flipped_in_a_published_file_gives_no_wrong_data() -> None:
    """A sample of what the campaign does byte by byte, in processes that HDF5 might take down."""
    outcome = afterwards.row_37(Effort())
    assert outcome.is_clean, outcome.problems
