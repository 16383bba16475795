"""Channels: how unevenly they tell tokens apart, and what the strongest of them show."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import labels_of, limits, select, spread, titled
from dit_lens.plot.style import (
    BLUE,
    FAINT,
    MUTED,
    VERMILLION,
    colourbar,
    image_panels,
    new_figure,
    styled,
    token_axes,
)


@styled
def channel_importance(importance: xr.DataArray, top: int = 10, title: str | None = None) -> Figure:
    """Draw the variance of all channels of one state, sorted, and name the largest.

    Args:
        importance: [channel], variance over tokens, dimensionless.
        top: how many channels to name.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, or the state was not recorded or has no variance at all.
    """
    importance = select(importance, ["channel"], "channel_importance")
    values = importance.to_numpy().astype(float)
    order = np.argsort(-values, kind="stable")
    if not values[order[0]] > 0:
        raise DitLensError("channel_importance: no channel has any variance, so there is nothing to rank.")
    top = min(top, len(values))
    names = np.asarray(labels_of(importance, "channel"))[order[:top]]
    figure = new_figure(9.2, 3.9, titled("Channel importance", importance, title))
    curve, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    _curve(curve, values[order], top)
    _bars(bars, [f"channel {n}" for n in names], values[order[:top]] / values.sum())
    return figure


@styled
def top_channels(maps: xr.DataArray, most_frames: int = 7, title: str | None = None) -> Figure:
    """Draw the maps of the most important channels: a row per channel, a column per latent frame.

    Args:
        maps: [rank, frame, y, x] from `top_channels`, at one step, branch and layer. A row has one colour
            scale, its own.
        most_frames: how many latent frames to show, evenly spread.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, or the state was not recorded.
    """
    maps = select(maps, ["rank", "frame", "y", "x"], "top_channels")
    maps = maps.assign_coords(frame=labels_of(maps, "frame")).isel(
        frame=spread(maps.sizes["frame"], most_frames)
    )
    ranks, frames, height, width = maps.shape
    names = labels_of(maps, "channel") if "channel" in maps.coords else ["?"] * ranks
    heading = titled("Maps of the most important channels", maps, title)
    figure, axes = image_panels(ranks * frames, width / height, heading, columns=frames)
    token_axes(axes, height, width)
    for row, (rank, name) in enumerate(zip(maps.to_numpy(), names, strict=True)):
        panels = axes[row * frames : (row + 1) * frames]
        low, high = limits(rank, 0.5, 99.5)  # a few massive tokens would leave the rest one colour
        for ax, values in zip(panels, rank, strict=True):
            image = ax.imshow(values, vmin=low, vmax=high, cmap="cividis")
        panels[0].set_ylabel(f"channel {name}\ny (token)", fontsize=8)
        colourbar(figure, image, panels, "activation")
    for ax, frame in zip(axes, labels_of(maps, "frame"), strict=False):
        ax.set_title(f"frame {frame}", fontsize=8, pad=3)
    return figure


def _curve(ax: Axes, ordered: NDArray[np.float64], top: int) -> None:
    """Draw variance against rank, both logarithmic; those with none are counted in a note."""
    shown = ordered[ordered > 0]
    ranks = np.arange(1, len(shown) + 1)
    ax.loglog(ranks, shown, color=BLUE)
    ax.plot(
        ranks[:top], shown[:top], "o", color=VERMILLION, markersize=3.5, label=f"the {top} named at the right"
    )
    ax.set(xlabel="rank of the channel", ylabel="variance over tokens (dimensionless)")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(color=FAINT, linewidth=0.6)
    ax.legend(loc="lower left")
    if len(shown) < len(ordered):
        note = f"{len(ordered) - len(shown)} channels have no variance"
        ax.text(0.98, 0.96, note, transform=ax.transAxes, ha="right", va="top", fontsize=8, color=MUTED)


def _bars(ax: Axes, names: list[str], shares: NDArray[np.float64]) -> None:
    """Draw the named channels' shares of the variance of all channels."""
    ax.barh(np.arange(len(names)), 100 * shares, color=VERMILLION, height=0.7)
    ax.set_yticks(np.arange(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set(xlabel="share of the variance of all channels (%)", title=f"together {shares.sum():.0%}")
