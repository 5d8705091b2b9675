"""What the PNG shows: how late the loop was, idle and while recording, and at each rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trialstore._cli.drill.verdict import LATE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from trialstore._cli.drill.verdict import Findings

_IDLE, _HOLDS, _FAILS = "#9a9a9a", "#1f4e79", "#b3541e"


def draw(findings: Findings, path: Path) -> None:
    """Draw the lateness of the loop and write it as PNG.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_ticks(left, findings)
    _draw_shares(right, findings)
    figure.suptitle(findings.sentences()[0])
    figure.savefig(path, dpi=120)


def _draw_ticks(axes: Axes, findings: Findings) -> None:
    asked = findings.asked
    if asked is not None:
        times = np.arange(len(asked.late)) / 1e3
        axes.plot(times, asked.late * 1e3, color=_HOLDS, linewidth=0.5, label="recording")
    if findings.idle is not None:
        times = np.arange(len(findings.idle)) / 1e3
        axes.plot(times, findings.idle * 1e3, color=_IDLE, linewidth=0.5, label="idle")
    axes.axhline(LATE * 1e3, color=_FAILS, linewidth=0.8, linestyle="--")
    axes.set(
        title="A loop that wants to run every millisecond", xlabel="time (s)", ylabel="late (ms)"
    )
    axes.set_ylim(bottom=0)
    _legend(axes, "upper right")


def _draw_shares(axes: Axes, findings: Findings) -> None:
    if findings.idle is not None:
        _draw_tail(axes, findings.idle, _IDLE, "idle")
    steps = sorted(findings.steps, key=lambda step: step.factor)
    for number, step in enumerate(steps):
        color = _HOLDS if findings.limit_of(step) is None else _FAILS
        opacity = 1 - 0.7 * number / len(steps)
        _draw_tail(axes, step.late, color, f"{step.factor:.3g} ×", opacity)
    axes.axvline(LATE * 1e3, color=_FAILS, linewidth=0.8, linestyle="--")
    axes.set(
        title="Share of ticks that are later than that", xlabel="late (ms)", ylabel="share",
        xscale="log", yscale="log",
    )  # fmt: skip
    _legend(axes, "lower left")


def _draw_tail(
    axes: Axes, late: NDArray[np.float32], color: str, label: str, opacity: float = 1.0
) -> None:
    if len(late):
        ordered = np.sort(late)[::-1] * 1e3
        axes.plot(
            np.maximum(ordered, 1e-2),
            np.arange(1, len(ordered) + 1) / len(ordered),
            color=color, linewidth=1, label=label, alpha=opacity,
        )  # fmt: skip


def _legend(axes: Axes, place: Literal["upper right", "lower left"]) -> None:
    if axes.get_legend_handles_labels()[0]:  # there is nothing yet after an early Ctrl-C
        axes.legend(loc=place)
