"""Temporal energy: which latent frames a layer works on, and at which denoising step."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dit_lens.plot.inputs import TEMPORAL_LABEL, labels_of, limits, select, titled
from dit_lens.plot.lines import curve_axes, line_colours, name_lines
from dit_lens.plot.style import colourbar, index_ticks, new_figure, styled

FAMILIES = ("sample", "seed", "step", "branch", "layer")


@styled
def temporal_energy(energy: xr.DataArray, title: str | None = None) -> Figure:
    """Draw temporal energy against the latent frame, one curve or a family of them.

    Args:
        energy: [frame], or with one of step, layer, branch, seed, sample: a curve for each; dimensionless.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, or a state was not recorded.
    """
    energy = select(energy, ["frame"], "temporal_energy", FAMILIES)
    family = str(energy.dims[0]) if energy.ndim == 2 else None
    labels = labels_of(energy, family) if family else [None]
    figure = new_figure(7.2, 3.8, titled("Temporal energy", energy, title))
    ax = figure.subplots()
    x = np.asarray(labels_of(energy, "frame"), dtype=float)
    rows = np.atleast_2d(energy.to_numpy())
    for row, label, colour in zip(rows, labels, line_colours(labels), strict=True):
        ax.plot(x, row, color=colour, label=label, marker="o", markersize=3 if len(rows) == 1 else 2)
    curve_axes(ax, "latent frame", TEMPORAL_LABEL)
    if family:
        name_lines(figure, ax, family, labels)
    return figure


@styled
def temporal_heatmap(energy: xr.DataArray, title: str | None = None) -> Figure:
    """Draw the temporal energy of one layer as a heat map: denoising steps down, latent frames across.

    Args:
        energy: [step, frame] of one layer and branch, dimensionless; σ stands at the right where it is a
            coordinate.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, or a step was not recorded.
    """
    energy = select(energy, ["step", "frame"], "temporal_heatmap")
    steps, frames = energy.sizes["step"], energy.sizes["frame"]
    width, height = min(7.5, 2.6 + 0.3 * frames + 1.2), min(6.5, 1.6 + 0.16 * steps)
    figure = new_figure(max(width, 5.2), max(height, 3.0), titled("Temporal energy", energy, title))
    ax = figure.subplots()
    low, high = limits(energy.to_numpy())
    image = ax.imshow(energy.to_numpy(), aspect="auto", vmin=low, vmax=high, cmap="viridis")
    ax.spines[:].set_visible(False)
    index_ticks(ax.xaxis, labels_of(energy, "frame"), most=21)
    index_ticks(ax.yaxis, labels_of(energy, "step"), most=14)
    ax.set(xlabel="latent frame", ylabel="denoising step (0 = most noise)")
    if "sigma" in energy.coords and energy["sigma"].dims == ("step",):
        right = ax.secondary_yaxis("right")
        index_ticks(right.yaxis, [f"{s:.2f}" for s in energy["sigma"].to_numpy()], most=14)
        right.set_ylabel("noise level σ")
        right.spines["right"].set_visible(False)
    colourbar(figure, image, ax, TEMPORAL_LABEL)
    return figure
