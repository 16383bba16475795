"""Energy along depth and along the denoising steps: the mean over tokens, and how far the tokens spread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dit_lens.analysis.energy import energy_by_layer, energy_by_step
from dit_lens.analysis.states import GRID, name_of, require_dims, shape_of, token_dims
from dit_lens.errors import DitLensError
from dit_lens.plot.frames import LOG_RANGE
from dit_lens.plot.inputs import ENERGY_LABEL, labels_of, require_labelled, select, titled
from dit_lens.plot.lines import curve_axes, line_colours, name_lines, sigma_axis
from dit_lens.plot.style import MUTED, new_figure, styled

MOST_BANDS = 3
"""More bands than this hide one another, so the means are drawn alone."""


@styled
def energy_across_layers(
    energy: xr.DataArray | xr.Dataset, log: bool | None = None, title: str | None = None
) -> Figure:
    """Draw energy against depth: mean over tokens, and a band over the tokens.

    Args:
        energy: energy [layer, frame, y, x] at one step and branch, or what `energy_by_layer` returns,
            [layer]; one more dimension of several (step, branch, ...) gives a curve for each.
        log: whether energy is on a logarithmic axis; None decides by the range (more than a factor of 30).
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are too many dimensions, or a state was not recorded.
    """
    summary = _summary(energy, "layer", energy_by_layer, "energy_across_layers")
    return _profile(summary, "layer", log, ("Energy across layers", title), "energy_across_layers")


@styled
def energy_vs_step(
    energy: xr.DataArray | xr.Dataset, log: bool | None = None, title: str | None = None
) -> Figure:
    """Draw energy against the denoising step: mean over tokens, and a band over the tokens; σ along the top.

    Args:
        energy: energy [step, frame, y, x] of one layer and branch, or what `energy_by_step` returns, [step];
            one more dimension of several (layer, branch, ...) gives a curve for each.
        log: whether energy is on a logarithmic axis; None decides by the range (more than a factor of 30).
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are too many dimensions, or a state was not recorded.
    """
    summary = _summary(energy, "step", energy_by_step, "energy_vs_step")
    return _profile(summary, "step", log, ("Energy along the steps", title), "energy_vs_step")


def _summary(
    energy: xr.DataArray | xr.Dataset,
    along: str,
    summarise: Callable[[xr.DataArray], xr.Dataset],
    caller: str,
) -> xr.Dataset:
    """Return the mean over tokens and the band, which is computed where the caller has none."""
    require_labelled(energy, caller, xr.DataArray, xr.Dataset)
    if isinstance(energy, xr.Dataset):
        return energy
    require_dims(energy, [along], caller)
    tokens = token_dims(energy, caller)
    spare = [str(d) for d in energy.dims if d not in (along, *tokens) and energy.sizes[d] > 1]
    if len(spare) > 1:  # before anything is computed of what may be larger than memory
        raise DitLensError(
            f"{caller}: {name_of(energy)} has {shape_of(energy)}, too much for one picture: select, leaving at most one of "
            f"{', '.join(spare)}."
        )
    return summarise(energy)


def _profile(
    summary: xr.Dataset, along: str, log: bool | None, title: tuple[str, str | None], caller: str
) -> Figure:
    """Draw a curve, or one per position of the one other dimension."""
    if not {"mean", "low", "high"} <= set(summary.data_vars):
        raise DitLensError(
            f"{caller}: a Dataset needs mean, low, high; this one has {', '.join(map(str, summary))}."
        )
    others = [str(d) for d in summary["mean"].dims if d not in (along, *GRID)]
    mean, low, high = (select(summary[v], [along], caller, others) for v in ("mean", "low", "high"))
    family = str(mean.dims[0]) if mean.ndim == 2 else None
    labels = labels_of(mean, family) if family else [None]
    colours = line_colours(labels)
    bands = len(labels) <= MOST_BANDS
    x = np.asarray(labels_of(mean, along), dtype=float)

    figure = new_figure(7.2, 4.0, titled(title[0], mean, title[1]))
    ax = figure.subplots()
    for i, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        at = {family: i} if family else {}
        if bands:
            ax.fill_between(x, low.isel(at), high.isel(at), color=colour, alpha=0.16, linewidth=0)
        ax.plot(x, mean.isel(at), color=colour, label=label, marker="o", markersize=2.5)
    values = np.concatenate([v.to_numpy().ravel() for v in (mean, *([low, high] if bands else []))])
    log = bool(values.min() > 0 and values.max() > LOG_RANGE * values.min()) if log is None else log
    curve_axes(ax, along, ENERGY_LABEL)
    note = "mean over tokens" + (
        f"; band: {summary.attrs.get('interval', 0.95):.0%} of the tokens" if bands else ""
    )
    ax.set_title(note, loc="right", fontsize=8, color=MUTED)
    ax.set_yscale("log" if log else "linear")
    if not log:
        ax.set_ylim(bottom=min(0, values.min()))
    if along == "step":
        sigma_axis(ax, summary)
    if family:
        name_lines(figure, ax, family, labels)
    return figure
