"""Outcomes and effects with their intervals, along steps, layers, frames, or any other row of experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dit_lens.plot.inputs import axis_label, centre_of, counted, labels_of, select, whereabouts
from dit_lens.plot.lines import (
    MARKERS,
    curve_axes,
    line_colours,
    name_lines,
    named,
    reference_line,
    sigma_axis,
    smallest_gap,
)
from dit_lens.plot.profiles import MOST_BANDS
from dit_lens.plot.style import INK, MUTED, index_ticks, new_figure, styled

Array = NDArray[np.float64]

DODGE = 0.55
"""Share of the room between two positions over which the bars of several curves are spread."""


@styled
def curves(
    summary: xr.Dataset,
    along: str,
    *,
    value_label: str,
    title: str,
    reference: float | xr.Dataset | None = None,
    reference_label: str = "clean",
    marks: bool = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw estimates with their confidence intervals, one curve or a family of them.

    The intervals are bands for up to 3 curves, else bars; many curves, told apart by a colour scale, have none,
    and the note says so. Where the summary has a simultaneous band over the family (`band_low`, `band_high`),
    it is drawn lighter. σ stands along the top where it is a coordinate on `along`; an axis is labelled with
    its coordinate's `long_name` and `units`, where it has them.

    Args:
        summary: [along], or with one dimension more (arm, branch, ...) a curve for each; what `analysis.mean`
            or `analysis.effect` returns: `mean` or `effect`, `low`, `high`, and `n_samples`, `n_seeds`,
            `level` as attributes. For effects there is a line at 0.
        along: the dimension along x.
        value_label: what the values are, with their unit.
        title: of the figure.
        reference: a value to compare with, or a summary without dimensions: a dashed line, with its interval.
        reference_label: what the reference is.
        marks: draw bars instead of bands, at positions side by side whatever their distance: for few or
            unevenly spaced ones (1, 4, 20, 50 steps). Names are always drawn so.
        limits: lowest and highest value of the y axis.

    Raises:
        DitLensError: a variable or attribute is missing, there are other dimensions, or a value is NaN.
    """
    centre = centre_of(summary, "curves")
    family = _read(summary, centre, along, marks)
    figure = new_figure(7.2, 4.0, title)
    ax = figure.subplots()
    _draw_intervals(ax, family)
    _draw_lines(ax, family)
    if reference is not None:
        in_legend = family.dim is not None and named(family.labels)
        reference_line(ax, reference, reference_label, in_legend, "curves")
    if centre == "effect":
        ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
    curve_axes(ax, axis_label(summary, along), value_label)
    if family.side_by_side:
        index_ticks(ax.xaxis, family.ticks, most=24)
        ax.set_xlim(-0.5, len(family.ticks) - 0.5)
    elif not (family.x == family.x.round()).all():
        ax.xaxis.set_major_locator(MaxNLocator(10))
    if limits is not None:
        ax.set_ylim(limits)
    elif centre == "mean":
        ax.set_ylim(bottom=min(0, ax.dataLim.y0))
    sigma_axis(ax, summary, along, family.x)
    ax.set_title(family.where, fontsize=8)
    ax.set_title(_note(summary, along, family.shape), loc="right", fontsize=8, color=MUTED)
    if family.dim:
        name_lines(figure, ax, axis_label(summary, family.dim), family.labels)
    return figure


@dataclass(frozen=True)
class _Family:
    """Curves, and how they are drawn."""

    dim: str | None
    labels: list[object]
    ticks: list[object]
    x: Array
    """[along], where its positions are drawn."""
    side_by_side: bool
    middle: Array
    """[curve, along]."""
    intervals: dict[str, tuple[Array, Array]]
    """`band`, if there is one, and `ci`: low and high, [curve, along]."""
    where: str

    @property
    def words(self) -> bool:
        """Whether the positions are names, which have no order and so no line between them."""
        return any(isinstance(t, str) for t in self.ticks)

    @property
    def shape(self) -> str:
        """How intervals are drawn: as bands or bars, or not at all where they would hide one another."""
        if not named(self.labels):
            return "none"
        return "bars" if self.side_by_side or len(self.labels) > MOST_BANDS else "bands"

    @property
    def places(self) -> Array:
        """[curve, along], where the curves' points are drawn: bars side by side."""
        count = len(self.labels)
        shift = (np.arange(count) - (count - 1) / 2)[:, None] / count * smallest_gap(self.x) * DODGE
        return self.x + (shift if self.shape == "bars" else 0 * shift)


def _read(summary: xr.Dataset, centre: str, along: str, marks: bool) -> _Family:
    """Take the curves out of a summary."""
    others = [str(d) for d in summary[centre].dims if d != along]

    def take(name: str) -> xr.DataArray:
        return select(summary[name], [along], "curves", others)

    middle = take(centre)
    ends = {"band": ("band_low", "band_high"), "ci": ("low", "high")}
    intervals = {
        kind: (np.atleast_2d(take(low)), np.atleast_2d(take(high)))
        for kind, (low, high) in ends.items()
        if low in summary
    }
    dim = str(middle.dims[0]) if middle.ndim == 2 else None
    ticks = labels_of(middle, along)
    side_by_side = marks or any(isinstance(t, str) for t in ticks)
    x = np.arange(len(ticks)) if side_by_side else np.asarray(ticks)
    return _Family(
        dim=dim,
        labels=labels_of(middle, dim) if dim else [None],
        ticks=ticks,
        x=x.astype(float),
        side_by_side=side_by_side,
        middle=np.atleast_2d(middle),
        intervals=intervals,
        where=" · ".join(whereabouts(middle)),
    )


def _draw_intervals(ax: Axes, family: _Family) -> None:
    """Draw the simultaneous bands, and the intervals of the points on top of them."""
    looks = {"band": (0.1, 1.0, 2.0), "ci": (0.22, 2.4, 3.0)}
    colours = line_colours(family.labels)
    for kind, (lows, highs) in family.intervals.items():
        alpha, width, order = looks[kind]
        for x, low, high, colour in zip(family.places, lows, highs, colours, strict=True):
            if family.shape == "bands":
                ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
            elif family.shape == "bars":
                ax.vlines(x, low, high, color=colour, linewidth=width, alpha=0.75, zorder=order)


def _draw_lines(ax: Axes, family: _Family) -> None:
    """Draw the estimates."""
    bars = family.shape == "bars"
    few = len(family.labels) <= MOST_BANDS
    style: dict[str, Any] = {"linewidth": 0.8 if bars else 1.6, "zorder": 4}
    style |= {"linestyle": "none" if family.words else "-"}
    style |= {"markersize": (4.5 if few else 3.5) if bars else 3.0}
    colours = line_colours(family.labels)
    for i, (x, line) in enumerate(zip(family.places, family.middle, strict=True)):
        marker = MARKERS[i % len(MARKERS)] if named(family.labels) else "o"
        ax.plot(x, line, color=colours[i], label=family.labels[i], marker=marker, **style)


def _note(summary: xr.Dataset, along: str, shape: str) -> str:
    """Say how many runs there are and what the intervals are."""
    n, level = counted(summary.attrs["n_samples"], summary.attrs["n_seeds"]), summary.attrs["level"]
    if shape == "none":
        return f"{n}; intervals not drawn"
    note = f"{n}, {100 * level:g}% CI"
    if "band_low" not in summary:
        return note
    over = summary.attrs.get("along", along)
    over = [over] if isinstance(over, str) else list(over)
    whole = "the whole curve" if over == [along] else "all of " + ", ".join(over).replace("_", " ")
    return f"{note} ({'thin' if shape == 'bars' else 'lighter'}: of {whole} at once)"
