"""When answers are settled: the distribution of the commitment step over trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dit_lens.analysis.states import require_dims
from dit_lens.analysis.statistics import mean
from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import (
    axis_label,
    counted,
    labels_of,
    one_row,
    require_few,
    require_labelled,
    select,
)
from dit_lens.plot.lines import curve_axes, sigma_axis, smallest_gap
from dit_lens.plot.style import MUTED, SKY, VERMILLION, new_figure, styled

MOST_PARTS = 60
"""Panels in one figure."""

DRAWS = 4000
"""Bootstrap draws of the band: enough for a line's width in the picture."""


@styled
def commitment_steps(
    commitment: xr.DataArray | xr.Dataset,
    *,
    steps: xr.DataArray | Sequence[int] | None = None,
    by: str | None = None,
    title: str = "Step from which on the answer is the final one",
) -> Figure:
    """Draw at which step trajectories commit: the share at each step, and the share up to it with its 95% CI.

    Args:
        commitment: [sample] or [sample, seed], labels of steps; or the Dataset that `analysis.commitment`
            returns.
        steps: the steps that were looked at. Default: 0 to the latest commitment. With a coordinate
            `sigma`, as `run["x0"].step` has, σ stands along the top.
        by: a dimension, or a coordinate on `sample`, such as "task": a panel for each of its values.
        title: of the figure.

    Raises:
        DitLensError: there are other dimensions, a value is NaN, or it is none of the steps.
    """
    require_labelled(commitment, "commitment_steps", xr.DataArray, xr.Dataset)
    if isinstance(commitment, xr.Dataset) and "commitment" not in commitment:
        raise DitLensError(
            f"commitment_steps: a Dataset needs commitment; this one has {', '.join(map(str, commitment)) or 'nothing'}."
        )
    array = commitment["commitment"] if isinstance(commitment, xr.Dataset) else commitment
    parts = _parts(array, by)
    require_few(len(parts), MOST_PARTS, f"panels by {by}", "commitment_steps")
    panels = [(name, select(part, ["sample"], "commitment_steps", ["seed"])) for name, part in parts]
    if steps is None:
        steps = range(int(max(part.max() for _, part in panels)) + 1)
    if isinstance(steps, xr.DataArray):
        require_labelled(steps, "commitment_steps")
        require_dims(steps, ["step"], "commitment_steps")
    else:
        one_row(list(steps), "steps", "commitment_steps")
        steps = xr.DataArray(list(steps), dims="step", coords={"step": list(steps)})
    columns = min(3, len(panels))
    rows = ceil(len(panels) / columns)
    size = (7.2, 4.2) if len(panels) == 1 else (max(3.7 * columns, 7.2), 2.9 * rows + 0.8)
    figure = new_figure(*size, title)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for spare in grid.flat[len(panels) :]:
        spare.set_axis_off()
    for i, (ax, (name, part)) in enumerate(zip(grid.flat, panels, strict=False)):
        _panel(ax, part, steps, name)
        ax.set_ylabel("share of trajectories (%)" if i % columns == 0 else "")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)
    return figure


def _parts(array: xr.DataArray, by: str | None) -> list[tuple[str, xr.DataArray]]:
    """Return the trajectories of each panel with their name.

    Raises:
        DitLensError: there is no such dimension or coordinate.
    """
    if by is None:
        return [("", array)]
    if by in array.dims:
        return [(str(n), array.isel({by: i}, drop=True)) for i, n in enumerate(labels_of(array, by))]
    if by not in array.coords or array[by].dims != ("sample",):
        known = ", ".join(map(str, array.coords)) or "none"
        raise DitLensError(
            f"commitment_steps: {by} is neither a dimension nor a coordinate on sample; there are {known}."
        )
    labels = array[by].to_numpy()
    return [(str(n), array.isel(sample=np.flatnonzero(labels == n))) for n in dict.fromkeys(labels.tolist())]


def _panel(ax: Axes, commitment: xr.DataArray, steps: xr.DataArray, name: str) -> None:
    """Draw [sample] or [seed, sample]: bars for the share at each step, a line for the share up to it."""
    x = np.asarray(labels_of(steps, "step"), dtype=float)
    unknown = np.setdiff1d(commitment.to_numpy(), x)
    if len(unknown):
        raise DitLensError(
            f"commitment_steps: an answer is settled at step {unknown[0]:g}, but the steps are "
            f"{labels_of(steps, 'step')}; give all steps that were looked at."
        )
    step = xr.DataArray(x, dims="step", coords={"step": x})
    at, up_to = commitment == step, commitment <= step
    gap = smallest_gap(x)
    ax.bar(x, _share(at), 0.8 * gap, color=SKY, label="settled at this step")
    samples, seeds = commitment.sizes["sample"], commitment.sizes.get("seed", 1)
    if samples > 1:
        band = mean(up_to, draws=DRAWS)
        low, high = 100 * band["low"], 100 * band["high"]
        ax.fill_between(x, low, high, color=VERMILLION, alpha=0.18, linewidth=0)
    label = "settled by this step" + ", with 95% CI" * (samples > 1)
    ax.plot(x, _share(up_to), color=VERMILLION, marker="o", markersize=3, label=label)
    curve_axes(ax, axis_label(steps, "step"), "share of trajectories (%)")
    ax.set(xlim=(x[0] - 0.7 * gap, x[-1] + 0.7 * gap), ylim=(0, 105), yticks=range(0, 101, 20))
    sigma_axis(ax, steps)
    ax.set_title(name, fontweight="bold")
    half = x[np.argmax(_share(up_to) >= 50)]
    note = [counted(samples, seeds), f"half by step {half:g}"]
    ax.set_title(("\n" if name else " · ").join(note), loc="right", fontsize=8, color=MUTED)


def _share(held: xr.DataArray) -> NDArray[np.float64]:
    """Return the share of trajectories [step], in percent."""
    return 100 * held.mean([d for d in held.dims if d != "step"]).to_numpy()
