"""What the PNG shows: the recording as it was read back, and how late the loop was meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trialstore._cli import ecg
from trialstore._cli.playback import ARRAY, CHUNK_SAMPLES
from trialstore._cli.report import Lateness

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

    from trialstore import TaskReader
    from trialstore._cli.playback import Playback

#: Labels of more trials than this would lie over one another.
_LABELS: Final = 20
_SIGNAL, _LATE, _BORDER = "#1f4e79", "#b3541e", "#9a9a9a"


def draw(playback: Playback, reader: TaskReader, path: Path) -> None:
    """Draw a playback as it was read back, and write it as PNG.

    Raises
    ------
    DamagedData
        If the recording does not fit its checksums.
    OSError
        If the file cannot be written.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_signal(upper, playback, reader)
    _draw_lateness(lower, playback)
    figure.suptitle(
        f"{ecg.SOURCE['source']}\nrecorded as {reader.root.parent.name}/{reader.root.name}"
    )
    figure.savefig(path, dpi=120)


def _draw_signal(axes: Axes, playback: Playback, reader: TaskReader) -> None:
    rate, trials = playback.plan.rate, reader.trials
    for number, (samples, start) in enumerate(
        zip(reader.iterarray(ARRAY), trials["start"], strict=True)
    ):
        if samples is not None:
            times = (start + np.arange(samples.shape[1])) / rate
            axes.plot(times, ecg.millivolts(samples[0]), color=_SIGNAL, linewidth=0.8)
        if number:
            axes.axvline(start / rate, color=_BORDER, linewidth=0.8, linestyle="--")
    if len(trials) <= _LABELS:
        _label(axes, trials, rate)
    axes.set_ylabel("ECG / mV")
    axes.set_title("what was read back; dashed: borders of trials", loc="left", fontsize="medium")


def _label(axes: Axes, trials: pd.DataFrame, rate: float) -> None:
    axes.margins(y=0.15)
    for number, (start, samples, beats) in enumerate(
        zip(trials["start"], trials["samples"], trials["beats"], strict=True)
    ):
        axes.text(
            (start + samples / 2) / rate,
            0.98,
            f"trial {number}\n{beats} beats",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize="small",
        )


def _draw_lateness(axes: Axes, playback: Playback) -> None:
    plan, late = playback.plan, Lateness.of(playback.lateness)
    due = np.asarray(playback.ends) / plan.rate
    axes.vlines(due, 0, 1e3 * np.asarray(playback.lateness), color=_LATE, linewidth=0.9)
    axes.axhline(late.p99, color=_BORDER, linewidth=0.8)
    at_the_right = axes.get_yaxis_transform()
    axes.text(1.005, late.p99, "99 %", transform=at_the_right, va="center", fontsize="small")
    axes.set_xlim(0, plan.samples / plan.rate)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time in the recording / s")
    axes.set_ylabel("loop late by / ms")
    every = 1e3 * CHUNK_SAMPLES / plan.rate / plan.speed
    axes.set_title(
        f"how late the event loop was at each chunk, one every {every:.3g} ms: {late}",
        loc="left",
        fontsize="medium",
    )
