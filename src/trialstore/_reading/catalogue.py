"""Tables over many trials that are not one task's attributes: times, and all tasks together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trialstore._reading.frame import build_frame, joined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from trialstore._reading.frame import Cells

LEVELS: Final = ("subject", "task", "number")


def frame_from_times(times: Sequence[tuple[int, int, int, int | None]]) -> pd.DataFrame:
    """Return acceptance and first chunk of each trial in nanoseconds, indexed by trial number."""
    import pandas as pd

    index = pd.Index([row[0] for row in times], dtype="int64", name="trial")
    columns = {
        "unix_ns": pd.array([row[1] for row in times], dtype="int64"),
        "monotonic_ns": pd.array([row[2] for row in times], dtype="int64"),
        "first_unix_ns": pd.array([row[3] for row in times], dtype="Int64"),
    }
    return pd.DataFrame(columns, index=index)


def concatenated(tables: Mapping[tuple[str, str], tuple[Cells, list[int]]]) -> pd.DataFrame:
    """Put the tables of tasks below one another, indexed by subject, task and trial number.

    Made from the recorded cells, not from DataFrames: pandas would turn integers beside floats, or
    beside nothing, into floats.
    """
    import pandas as pd

    rows = [(*key, number) for key, (_, numbers) in tables.items() for number in numbers]
    filled = [(cells, len(numbers)) for cells, numbers in tables.values() if numbers]
    frame = build_frame(joined(filled), len(rows))
    levels = zip(*rows, strict=True) if rows else ([], [], [])
    frame.index = pd.MultiIndex.from_arrays([list(level) for level in levels], names=LEVELS)
    return frame
