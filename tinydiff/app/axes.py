"""Axes that can be read at small numbers and at the ends: ticks on a log axis, steps, single points.

Read next: generate.py.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

INK = "#333333"


def marker_of(points: Any) -> str:
    """The marker of a curve: a dot if the points are few, because a curve of one point has no line."""
    return "." if len(points) < 30 else ""


def log_scale(axes: Axes, which: str) -> None:
    """Make the axis "x" or "y" logarithmic, with two labelled ticks or more for any positive data."""
    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axis.set(major_locator=_LogTicks(), major_formatter="{x:,g}", minor_locator=NullLocator())
    axes.autoscale_view(scalex=which == "x", scaley=which == "y")


def step_scale(axes: Axes) -> None:
    """Label the x axis with whole numbers of training steps."""
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set(major_locator=MaxNLocator(5, integer=True, min_n_ticks=1), major_formatter="{x:,.0f}")


class _LogTicks(LogLocator):
    """Ticks at powers of ten.  A few decades also get 2 and 5 times these, and a small part of one gets even steps."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        for locator, least in ((LogLocator(), 4), (LogLocator(subs=(1, 2, 5)), 2)):
            ticks = np.asarray(locator.tick_values(vmin, vmax))
            if ((vmin <= ticks) & (ticks <= vmax)).sum() >= least:
                return ticks
        return MaxNLocator(4).tick_values(vmin, vmax)

    def nonsingular(self, vmin: float, vmax: float) -> tuple[float, float]:
        vmin, vmax = super().nonsingular(vmin, vmax)
        return (vmin / 1.05, vmax * 1.05) if vmax < 1.01 * vmin else (vmin, vmax)  # labels have six digits
