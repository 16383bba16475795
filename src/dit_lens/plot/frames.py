"""Token maps: energy or principal components of one state, frame by frame, or of one step, layer by layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dit_lens.analysis.pca import to_rgb
from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import ENERGY_LABEL, labels_of, limits, require_labelled, select, titled
from dit_lens.plot.style import colourbar, image_panels, styled, token_axes

LOG_RANGE = 30.0
"""Where the largest value is this many times the smallest, a linear scale would show the largest only."""


@styled
def energy_frames(energy: xr.DataArray, title: str | None = None) -> Figure:
    """Draw the energy of every token of one state: a heat map per latent frame, on one colour scale.

    Args:
        energy: [frame, y, x] (one step, branch and layer), dimensionless.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, or the state was not recorded.
    """
    energy = select(energy, ["frame", "y", "x"], "energy_frames")
    figure, axes = _panels(energy, "frame", titled("Energy per token", energy, title))
    low, high = limits(energy.to_numpy())
    for ax, values in zip(axes, energy.to_numpy(), strict=True):
        image = ax.imshow(values, vmin=low, vmax=high, cmap="viridis")
    colourbar(figure, image, axes, ENERGY_LABEL)
    return figure


@styled
def pca_frames(maps: xr.DataArray, title: str | None = None) -> Figure:
    """Draw the principal components of one state as colours: a map per latent frame.

    Args:
        maps: [frame, y, x, rgb] from `to_rgb`, in [0, 1]; or [frame, y, x, component], which is scaled on
            itself. For colours that compare across steps and layers, make `to_rgb(all_maps)` first and select
            from it.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, or the state was not recorded.
    """
    rgb = _as_rgb(maps, "pca_frames")
    rgb = select(rgb, ["frame", "y", "x", "rgb"], "pca_frames")
    figure, axes = _panels(rgb, "frame", titled("PCA: components 0, 1, 2 as red, green, blue", rgb, title))
    for ax, colours in zip(axes, rgb.to_numpy(), strict=True):
        ax.imshow(colours)
    return figure


@styled
def layer_grid(
    maps: xr.DataArray, frame: int | None = None, relative: bool = False, title: str | None = None
) -> Figure:
    """Draw one small map per layer, at one step and branch.

    Args:
        maps: energy [layer, frame, y, x], drawn on one colour scale (logarithmic where the layers differ by
            more than a factor of 30); or colours [layer, frame, y, x, rgb] or components [layer, frame, y, x,
            component].
        frame: the latent frame to show; the mean over frames where it is None.
        relative: divide every layer's energy by its mean over the tokens shown, so that patterns can be
            compared between layers of very different energy. Without effect on colours.
        title: instead of what is shown and where.

    Raises:
        DitLensError: there are other dimensions, no such frame, or a layer was not recorded.
    """
    require_labelled(maps, "layer_grid")
    colours = "rgb" in maps.dims or "component" in maps.dims
    maps = _as_rgb(maps, "layer_grid") if colours else maps
    maps = select(maps, ["layer", "frame", "y", "x", *(["rgb"] if colours else [])], "layer_grid")
    where = "mean over frames" if frame is None else f"frame {frame}"
    what = "PCA colours" if colours else "Energy per token"
    maps = maps.mean("frame", keep_attrs=True) if frame is None else _frame(maps, frame)
    heading = titled(f"{what} by layer · {where}", maps.drop_vars("frame", errors="ignore"), title)
    figure, axes = _panels(maps, "layer", heading)
    relative = relative and not colours
    maps = maps / maps.mean(["y", "x"]) if relative else maps
    values = maps.to_numpy()
    norm = None if colours else _shared_scale(values)
    for ax, layer in zip(axes, values, strict=True):
        image = ax.imshow(layer, norm=norm, cmap="viridis")
    if not colours:
        label = "energy of a token / mean of its layer" if relative else ENERGY_LABEL
        colourbar(figure, image, axes, label + (", log scale" if isinstance(norm, LogNorm) else ""))
    return figure


def _panels(maps: xr.DataArray, along: str, title: str) -> tuple[Figure, list[Axes]]:
    """Return a panel per position along a dimension, each named, the tokens numbered at the edges."""
    height, width = maps.sizes["y"], maps.sizes["x"]
    figure, axes = image_panels(maps.sizes[along], width / height, title)
    for ax, label in zip(axes, labels_of(maps, along), strict=True):
        ax.set_title(f"{along} {label}", fontsize=8, pad=3)
    token_axes(axes, height, width)
    return figure, axes


def _frame(maps: xr.DataArray, frame: int) -> xr.DataArray:
    """Select one latent frame by its coordinate."""
    labels = labels_of(maps, "frame")
    if frame not in labels:
        raise DitLensError(f"layer_grid: there is no frame {frame}; there are {labels[0]} to {labels[-1]}.")
    return maps.isel(frame=labels.index(frame))


def _as_rgb(maps: xr.DataArray, caller: str) -> xr.DataArray:
    """Return colours, scaling components on themselves."""
    require_labelled(maps, caller)
    return to_rgb(maps) if "component" in maps.dims else maps


def _shared_scale(values: NDArray[np.floating]) -> Normalize:
    """Return one colour scale for all panels; logarithmic where a linear one would show the largest only."""
    low, high = limits(values)
    floor, ceiling = limits(values, 1, 99)
    log = low > 0 and ceiling > LOG_RANGE * floor
    return LogNorm(low, high) if log else Normalize(low, high)
