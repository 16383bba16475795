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
from numpy.typing import NDArray

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import centre_of, labels_of, spread
from dit_lens.plot.style import FAINT, INK, MUTED, OKABE_ITO, trimmed

MARKERS = "os^DvPXp"
"""A shape per curve, so that it is not known by its colour alone; one more than there are colours."""

MOST_NAMED = 6
"""More curves than this are told apart by a colour scale, not by a legend."""


def named(labels: Sequence[object]) -> bool:
    """Say whether curves are told apart by a legend: few, or with names for labels."""
    return len(labels) <= MOST_NAMED or any(isinstance(v, str) for v in labels)


def line_colours(labels: Sequence[object]) -> list[str] | list[tuple[float, ...]]:
    """Return a colour per curve: along a scale for numbers, from the palette for names or few curves."""
    if named(labels):
        return [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(labels))]
    values = np.array(labels, dtype=float)
    return [tuple(c) for c in trimmed()(Normalize(values.min(), values.max())(values))]


def name_lines(figure: Figure, ax: Axes, dim: str, labels: Sequence[object]) -> None:
    """Say which curve is which: a legend for few or named ones, a colour scale for many."""
    if named(labels):
        ax.legend(title=dim, alignment="left", loc="center left", bbox_to_anchor=(1.0, 0.5))
        return
    values = np.array(labels, dtype=float)
    scale = ScalarMappable(Normalize(values.min(), values.max()), trimmed())
    bar = figure.colorbar(scale, ax=ax, label=dim, fraction=0.04, pad=0.02, aspect=25)
    bar.locator = MaxNLocator(6, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)


def reference_line(ax: Axes, reference: float | xr.Dataset, label: str, in_legend: bool, caller: str) -> None:
    """Draw a horizontal line, and its interval where it has one; name it in the legend or beside the line.

    Raises:
        DitLensError: the reference is of several values.
    """
    if isinstance(reference, xr.Dataset):
        centre = centre_of(reference, f"{caller}: reference")
        if reference[centre].ndim:
            dims = ", ".join(map(str, reference[centre].dims))
            raise DitLensError(f"{caller}: the reference is one value, but this one has {dims}; select one.")
        low, high = (float(reference[n]) for n in ("low", "high"))
        ax.axhspan(low, high, color=MUTED, alpha=0.15, linewidth=0, zorder=0)
        reference = float(reference[centre])
    dashes, name = (0, (5, 3)), f"{label} {reference:.3g}"
    ax.axhline(reference, color=INK, linewidth=1.1, linestyle=dashes, zorder=1.5, label=name)
    if not in_legend:
        right = ax.get_yaxis_transform()
        words = f"{label}\n{reference:.3g}"
        ax.annotate(words, (1, reference), (5, 0), right, "offset points", va="center", fontsize=8)


def smallest_gap(x: NDArray[np.float64]) -> float:
    """Return the smallest distance between positions along x; 1 where there is only one."""
    return float(np.diff(np.sort(x)).min()) if len(x) > 1 else 1.0


def curve_axes(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label a panel of curves, with whole numbers along x and faint lines to read heights by."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)


def sigma_axis(
    ax: Axes,
    array: xr.DataArray | xr.Dataset,
    along: str = "step",
    x: NDArray[np.float64] | None = None,
) -> None:
    """Write the noise level σ of some steps along the top, where the array knows it.

    Args:
        ax: a panel with the steps along x.
        array: with a coordinate `sigma` on the dimension `along`; without one nothing is written.
        along: the dimension drawn along x.
        x: where its positions are drawn. Default: at their labels.
    """
    if "sigma" not in array.coords or array["sigma"].dims != (along,):
        return
    x = np.asarray(labels_of(array, along), dtype=float) if x is None else x
    chosen = spread(len(x), 8)
    top = ax.secondary_xaxis("top")
    top.set_xticks(x[chosen], [f"{s:.2f}" for s in array["sigma"].to_numpy()[chosen]])
    top.set_xlabel("noise level σ")
    top.spines["top"].set_visible(False)
    top.tick_params(length=2)
