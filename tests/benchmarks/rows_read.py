"""Reading back: all trials, one window, a live task, rows; beside what one writes by hand."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.benchmarks.content import CHANNELS, Device, attrs_of, differences
from tests.benchmarks.frame import Bar, Check, Outcome, Row, alternate, median, ratio
from tests.benchmarks.measure import conclude
from tests.benchmarks.peers import available, load
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.process import measure
from tests.benchmarks.rows_loop import require_right

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.frame import Effort, Figures, Pairs

_TRIAL_SAMPLES: Final = 2000
_SMALL_SAMPLES: Final = 2
_WINDOW: Final = 2000


# --- what is read ---------------------------------------------------------------------------------


def record(folder: str, trials: int, samples: int, chunks: int) -> Figures:
    """Record and publish a task; return what differs when it is read back."""
    return asyncio.run(_record(Path(folder), trials, samples, chunks))


async def _fill(ours: Ours, trials: int, samples: int, chunks: int) -> None:
    device = Device(samples)
    for trial in range(trials):
        for _ in range(chunks):
            await ours.append(device.read())
        await ours.write(attrs_of(trial))
    await ours.task.flush()


async def _record(folder: Path, trials: int, samples: int, chunks: int) -> Figures:
    ours = Ours(folder)
    await ours.open()
    await _fill(ours, trials, samples, chunks)
    await ours.aclose()
    return {"wrong": differences(Ours.read(folder), trials, samples, chunks)}


# --- ways to read it ------------------------------------------------------------------------------


def _arrays(folder: Path) -> Path:
    return folder / "p0" / "reach" / "emg.hdf5"


def _ours_array(folder: Path) -> Any:
    return Ours.reader(folder).array("emg")


def _ours_each(folder: Path) -> Any:
    return sum(1 for _ in Ours.reader(folder).iterarray("emg"))


def _ours_rows(folder: Path) -> Any:
    return Ours.reader(folder).trials


def _ours_follow(folder: Path) -> Any:
    return sum(1 for _ in Ours.reader(folder).follow())


def _hand_each(folder: Path) -> Any:
    import h5py

    with h5py.File(_arrays(folder)) as file:
        trials = len(file) - ("timing" in file)
        for trial in range(trials):
            file[str(trial)][()]
    return trials


def _hand_array(folder: Path) -> Any:
    import h5py

    with h5py.File(_arrays(folder)) as file:
        trials = len(file) - ("timing" in file)
        return np.vstack([file[str(trial)][()] for trial in range(trials)])


def _hand_rows(folder: Path) -> Any:
    import pandas as pd

    return pd.read_csv(folder / "p0" / "reach" / "trials.csv")


def _axopy_each(folder: Path) -> Any:
    return sum(1 for _ in load("axopy").read(folder))


_WAYS: Final[dict[str, Callable[[Path], Any]]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        *(_ours_array, _ours_each, _ours_rows, _ours_follow),
        *(_hand_each, _hand_array, _hand_rows, _axopy_each),
    )
}


def read(way: str, folder: str) -> Figures:
    """Read everything once, with all imports done and the files in the page cache."""
    import h5py
    import pandas as pd

    del h5py, pd
    if way == "axopy_each":
        load("axopy")
    for path in Path(folder).rglob("*"):
        if path.is_file():
            path.read_bytes()
    return _timed(_WAYS[way], Path(folder))


def _timed(function: Callable[[Path], Any], folder: Path) -> Figures:
    began = time.perf_counter()
    function(folder)
    return {"seconds": time.perf_counter() - began}


def window(folder: str) -> Figures:
    """Read one window of a long trial, all of it, and the window by hand, several times in turn."""
    import h5py

    reader = Ours.reader(Path(folder))
    size = reader.info("emg").shapes[0][1]
    parts, wholes, hands = [], [], []
    for turn in range(7):
        first = size // 8 * turn
        began = time.perf_counter()
        part = reader.array("emg", trial=0, window=(first, first + _WINDOW))
        parts.append(time.perf_counter() - began)
        began = time.perf_counter()
        whole = reader.array("emg", trial=0)
        wholes.append(time.perf_counter() - began)
        assert np.array_equal(part, whole[:, first : first + _WINDOW])
        # As the first: after something large, which took its place in the processor's caches.
        began = time.perf_counter()
        with h5py.File(reader.root / "emg.hdf5") as file:
            by_hand = file["0"][:, first : first + _WINDOW]
        hands.append(time.perf_counter() - began)
        assert np.array_equal(part, by_hand)
        del whole, by_hand
        reader.array("emg", trial=0)
    return {
        "part_s": statistics.median(parts),
        "hand_s": statistics.median(hands),
        "whole_s": statistics.median(wholes),
        "share": _WINDOW / size,
    }


def live(way: str, folder: str, trials: int, samples: int, chunks: int) -> Figures:
    """Record without a publisher's process and read from the journal, the task still open."""
    sys.frozen = True  # type: ignore[attr-defined] # no child: nothing is published meanwhile
    return asyncio.run(_live(way, Path(folder), trials, samples, chunks))


async def _live(way: str, folder: Path, trials: int, samples: int, chunks: int) -> Figures:
    import h5py
    import pandas as pd

    del h5py, pd
    ours = Ours(folder)
    await ours.open()
    await _fill(ours, trials, samples, chunks)
    found = await asyncio.to_thread(_timed, _WAYS[way], folder)
    wrong = await asyncio.to_thread(lambda: differences(Ours.read(folder), trials, samples, chunks))
    conclude(found | {"wrong": wrong})


# --- the row --------------------------------------------------------------------------------------


def run_reading(effort: Effort) -> Outcome:
    """Each way of ours and its counterpart in turn, over the same files."""
    outcome = Outcome()
    trials = effort.of(1000, 100, 10)
    chunks, samples = 4, _TRIAL_SAMPLES // 4
    with effort.workspace() as folder:
        wrong = measure(record, folder=folder, trials=trials, samples=samples, chunks=chunks)
        require_right(outcome, "published task", wrong["wrong"])
        chart = f"{trials} trials of {CHANNELS} x {_TRIAL_SAMPLES} float64"
        _compare(outcome, effort, folder, "array", ("hand_array", "ours_array"), chart, 1.3)
        ways = ("hand_each", "ours_each")
        published = _compare(outcome, effort, folder, "iterarray", ways, chart, 1.3)
        count = _turns(effort)
        followed = _seconds(folder, "ours_follow", count)
    outcome.bars.append(Bar(chart, "follow, published", followed, "s", count))
    _add_live(outcome, effort, chart, published, (trials, samples, chunks))
    _add_small(outcome, effort)
    _add_window(outcome, effort)
    _add_rows(outcome, effort)
    return outcome


def _turns(effort: Effort) -> int:
    """How often each way is measured: most of a quick run is the start of processes."""
    return effort.of(effort.pairs, 1, 1)


def _compare(
    outcome: Outcome,
    effort: Effort,
    folder: Path,
    what: str,
    ways: tuple[str, str],
    chart: str,
    limit: float,
) -> float:
    """Add what a way of ours takes beside the one by hand; return it, in seconds."""
    pairs = _pairs(effort, folder, *ways)
    count = len(pairs)
    hand, ours = (median([pair[side] for pair in pairs], "seconds") for side in (0, 1))
    outcome.bars += [
        Bar(chart, f"{what}, by hand", hand, "s", count),
        Bar(chart, f"{what}, trialstore", ours, "s", count),
    ]
    told = f"{what} of {chart}, as a multiple of the loop by hand"
    outcome.checks.append(Check(told, ratio(pairs, "seconds"), limit, "x", count))
    return ours


def _pairs(effort: Effort, folder: Path, first: str, second: str) -> Pairs:
    one, other = (partial(measure, read, way=way, folder=folder) for way in (first, second))
    return alternate(one, other, _turns(effort))


def _seconds(folder: Path, way: str, count: int) -> float:
    measured = [measure(read, way=way, folder=folder) for _ in range(count)]
    return median(measured, "seconds")


def _add_live(
    outcome: Outcome, effort: Effort, chart: str, published: float, size: tuple[int, int, int]
) -> None:
    trials, samples, chunks = size
    measured = []
    for _ in range(_turns(effort)):
        with effort.workspace() as folder:
            measured.append(
                measure(
                    live, way="ours_each", folder=folder,
                    trials=trials, samples=samples, chunks=chunks,
                )
            )  # fmt: skip
    require_right(outcome, "live task", measured[0]["wrong"])
    seconds, count = median(measured, "seconds"), len(measured)
    outcome.bars.append(Bar(chart, "iterarray, live", seconds, "s", count))
    what = f"iterarray of a live task of {trials} trials, as a multiple of the published one"
    outcome.checks.append(Check(what, seconds / published, 1.5, "x", count))


def _add_small(outcome: Outcome, effort: Effort) -> None:
    """Trials of 1 KB, where opening the file for each costs the most."""
    if "axopy" not in available():
        outcome.notes.append("AxoPy is not installed: small trials were not compared")
        return
    trials = effort.of(1000, 150, 10)
    with effort.workspace() as folder:
        wrong = measure(record, folder=folder, trials=trials, samples=_SMALL_SAMPLES, chunks=1)
        require_right(outcome, "small trials", wrong["wrong"])
        ways = ("ours_each", "axopy_each")
        pairs = _pairs(effort, folder, *ways)
    chart = f"{trials} trials of {CHANNELS} x {_SMALL_SAMPLES} float64"
    count = len(pairs)
    for side, who in enumerate(("trialstore", "AxoPy, the same files")):
        seconds = median([pair[side] for pair in pairs], "seconds")
        outcome.bars.append(Bar(chart, who, seconds, "s", count))
    what = f"iterarray of {chart}, as so many times faster than AxoPy"
    outcome.checks.append(Check(what, ratio(pairs, "seconds"), 5, "x", count, at_least=True))


def _add_window(outcome: Outcome, effort: Effort) -> None:
    chunks = effort.of(200, 100, 10)
    with effort.workspace() as folder:
        wrong = measure(record, folder=folder, trials=1, samples=_WINDOW, chunks=chunks)
        require_right(outcome, "long trial", wrong["wrong"])
        measured = [measure(window, folder=folder) for _ in range(_turns(effort))]
    part, whole = median(measured, "part_s"), median(measured, "whole_s")
    share, count = measured[0]["share"], len(measured)
    chart = f"one trial of {CHANNELS} x {_WINDOW * chunks:,} float64"
    outcome.bars += [
        Bar(chart, f"a window of {_WINDOW} samples", part * 1e3, "ms", count),
        Bar(chart, "the same by hand, unverified", median(measured, "hand_s") * 1e3, "ms", count),
        Bar(chart, "the whole trial", whole * 1e3, "ms", count),
    ]
    # Blocks that have a checksum are read whole, and opening the file is the same for both.
    what = f"a window of 1/{round(1 / share)} of a trial, as a share of the time of the whole"
    outcome.checks.append(Check(what, part / whole, 10 * share, "x", count))


def _add_rows(outcome: Outcome, effort: Effort) -> None:
    rows = effort.of(100_000, 3_000, 200)
    chart = f"{rows:,} rows of 8 attributes"
    with effort.workspace() as folder:
        wrong = measure(record, folder=folder, trials=rows, samples=1, chunks=0)
        require_right(outcome, "rows", wrong["wrong"])
        ways = ("hand_rows", "ours_rows")
        pairs = _pairs(effort, folder, *ways)
    count = len(pairs)
    for side, who in enumerate(("pandas.read_csv, dtypes guessed", "trialstore, as recorded")):
        seconds = median([pair[side] for pair in pairs], "seconds")
        outcome.bars.append(Bar(chart, who, seconds, "s", count))
    published = median([pair[1] for pair in pairs], "seconds")
    measured = []
    for _ in range(effort.of(3, 1, 1)):
        with effort.workspace() as folder:
            measured.append(
                measure(live, way="ours_rows", folder=folder, trials=rows, samples=1, chunks=0)
            )
    seconds = median(measured, "seconds")
    outcome.bars.append(Bar(chart, "trialstore, live", seconds, "s", len(measured)))
    outcome.notes.append(
        f"trials of {rows:,} rows takes {ratio(pairs, 'seconds'):.1f} x pandas.read_csv, which "
        "neither verifies the table nor keeps the recorded types"
    )
    outcome.notes.append(
        f"trials of a live task of {rows:,} rows takes {seconds / published:.1f} x the published"
    )


ROWS: Final = (
    Row(
        "reading",
        "Reading back",
        "array and iterarray of 1 000 trials of 64 x 2000 float64 with checksums verified; small "
        "trials; a window of one trial; a live task of 1 000 trials; trials of 100 000 rows; files "
        "in the page cache",
        "<= 1.3 x a hand-written h5py loop that opens the file once; >= 5 x faster than AxoPy for "
        "small trials; the window in time of the window's size; live <= 1.5 x published",
        run_reading,
    ),
)
