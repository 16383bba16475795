"""Families of curves: colours in order for steps and layers, distinct ones for names; σ along the top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dit_lens.plot.inputs import labels_of, spread
from dit_lens.plot.style import FAINT, OKABE_ITO, trimmed

MOST_NAMED = 6
"""More curves than this are told apart by a colour scale, not by a legend."""


def line_colours(labels: Sequence[object]) -> list[str] | list[tuple[float, ...]]:
    """Return a colour per curve: along a scale for numbers, from the palette for names or few curves."""
    if len(labels) <= MOST_NAMED or any(isinstance(v, str) for v in labels):
        return [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(labels))]
    values = np.array(labels, dtype=float)
    return [tuple(c) for c in trimmed()(Normalize(values.min(), values.max())(values))]


def name_lines(figure: Figure, ax: Axes, dim: str, labels: Sequence[object]) -> None:
    """Say which curve is which: a legend for few or named ones, a colour scale for many."""
    if len(labels) <= MOST_NAMED or any(isinstance(v, str) for v in labels):
        ax.legend(title=dim, alignment="left", loc="center left", bbox_to_anchor=(1.0, 0.5))
        return
    values = np.array(labels, dtype=float)
    scale = ScalarMappable(Normalize(values.min(), values.max()), trimmed())
    bar = figure.colorbar(scale, ax=ax, label=dim, fraction=0.04, pad=0.02, aspect=25)
    bar.locator = MaxNLocator(6, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)


def curve_axes(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label a panel of curves, with whole numbers along x and faint lines to read heights by."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)


def sigma_axis(ax: Axes, array: xr.DataArray | xr.Dataset) -> None:
    """Write the noise level σ of some steps along the top, where the array knows it."""
    if "sigma" not in array.coords or array["sigma"].dims != ("step",):
        return
    steps = np.asarray(labels_of(array, "step"), dtype=float)
    chosen = spread(len(steps), 8)
    top = ax.secondary_xaxis("top")
    top.set_xticks(steps[chosen], [f"{s:.2f}" for s in array["sigma"].to_numpy()[chosen]])
    top.set_xlabel("noise level σ")
    top.spines["top"].set_visible(False)
    top.tick_params(length=2)
