"""Tables over many trials that are not one task's attributes: times, and all tasks together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

LEVELS = ("subject", "task", "number")


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


def concatenate(frames: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Join the tables of tasks, indexed by subject, task and trial number.

    A column that some task lacks becomes nullable first: pandas would turn its integers into floats.
    """
    import pandas as pd

    filled = {key: frame for key, frame in frames.items() if len(frame)}
    if not filled:
        index = pd.MultiIndex.from_arrays([[], [], []], names=LEVELS)
        return pd.DataFrame(index=index)
    everywhere = set.intersection(*(set(frame.columns) for frame in filled.values()))
    ready = {
        key: frame.astype(
            {
                name: _nullable(str(frame[name].dtype))
                for name in frame.columns
                if name not in everywhere and _nullable(str(frame[name].dtype))
            }
        )
        for key, frame in filled.items()
    }
    joined = pd.concat(ready)
    joined.index = joined.index.set_names(LEVELS)
    return joined


def _nullable(dtype: str) -> str | None:
    if dtype == "bool":
        return "boolean"
    if dtype.startswith("int"):
        return dtype.replace("int", "Int")
    if dtype.startswith("uint"):
        return dtype.replace("uint", "UInt")
    return None
