"""Labelled matrices: layer by step, the step that was perturbed by the step that was looked at, ..."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from dit_lens.analysis.states import name_of, not_recorded, require_dims, shape_of
from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import (
    axis_label,
    centre_of,
    counted,
    labels_of,
    require_few,
    require_labelled,
    whereabouts,
)
from dit_lens.plot.inputs import limits as range_of
from dit_lens.plot.style import (
    INK,
    MOST_PANELS,
    best_columns,
    colourbar,
    index_ticks,
    new_figure,
    signed_colours,
    styled,
)

MOST_NUMBERS = 60
"""In more cells than this the numbers would be too small, or the figure too large."""

MOST_WRITTEN = 5000
"""Cells into which numbers are written where the user asks for it."""

MOST_CELLS = 4_000_000
"""More than a screen has pixels."""

BLANK: dict[str, Any] = {"facecolor": "#f2f2f2", "edgecolor": "#bdbdbd", "hatch": "////", "linewidth": 0}
"""How a cell that was not measured looks."""


@styled
def heatmap(
    values: xr.DataArray | xr.Dataset,
    *,
    value_label: str,
    title: str,
    diverging: bool = False,
    annotate: bool | None = None,
    limits: tuple[float, float] | None = None,
    borders: Sequence[int] = (),
    columns: int | None = None,
) -> Figure:
    """Draw a matrix, or several on one colour scale; the first row is at the top.

    Cells that are NaN were not measured, and are hatched. An axis is labelled with its coordinate's
    `long_name` and `units`, where it has them.

    Args:
        values: [row, column] or [panel, row, column]: any dimensions, in that order; further ones are dropped
            where their length is 1. Or what `analysis.mean` or `analysis.effect` returns: then the picture
            says n, and a dot marks every effect whose interval excludes 0 (the simultaneous band, where there
            is one).
        value_label: what the values are, with their unit.
        title: of the figure.
        diverging: values have a sign; colours are centred at 0.
        annotate: write the number into every cell; None does where there are at most 60.
        limits: the values at the ends of the colours. Default: the lowest and the highest that is shown.
        borders: numbers of rows, which are columns too, before which a line is drawn: where something changes along both.
        columns: of panels. Default: what fits well.

    Raises:
        DitLensError: there are too many or too few dimensions, or nothing was measured.
    """
    require_labelled(values, "heatmap", xr.DataArray, xr.Dataset)
    array, dots, facts = _unpack(values)
    stack = array.to_numpy().reshape(-1, *array.shape[-2:]).astype(float)
    require_few(len(stack), MOST_PANELS, "panels", "heatmap")
    require_few(array.size, MOST_CELLS, "cells", "heatmap")
    numbers = array.size <= MOST_NUMBERS if annotate is None else annotate
    if numbers:
        require_few(array.size, MOST_WRITTEN, "numbers to write", "heatmap")
    figure, axes, size = _panels(stack, numbers, title, columns)
    low, high = limits or _limits(stack, diverging)
    for ax, name, matrix, marks in zip(axes, _names(array), stack, dots.reshape(stack.shape), strict=True):
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=-1, **BLANK))
        colours = signed_colours() if diverging else "viridis"
        image = ax.imshow(matrix, aspect="auto", vmin=low, vmax=high, cmap=colours)
        ax.set_title(name, fontsize=8, pad=3)
        ax.spines[:].set_visible(False)
        if numbers:
            _write(ax, image, matrix, signed=diverging)
        _dot(ax, image, matrix, marks, aside=numbers)
        for border in borders:
            ax.axhline(border - 0.5, color="white", linewidth=1.2, linestyle=(0, (4, 2)))
            ax.axvline(border - 0.5, color="white", linewidth=1.2, linestyle=(0, (4, 2)))
    _label(axes, array, size)
    colourbar(figure, image, axes, value_label)
    _key(figure, facts if dots.any() else facts[:1], blank=bool(np.isnan(stack).any()))
    return figure


def _unpack(values: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, NDArray[np.bool_], list[str]]:
    """Return the values, where a dot goes, and in words: n, and what the dots mean."""
    if isinstance(values, xr.DataArray):
        array = _matrices(values)
        return array, np.zeros(array.shape, bool), []
    centre = centre_of(values, "heatmap")
    array = _matrices(values[centre])
    facts = [counted(values.attrs["n_samples"], values.attrs["n_seeds"])]
    if centre == "mean":
        return array, np.zeros(array.shape, bool), facts
    wide = "band_low" in values
    low, high = (_matrices(values[n]) for n in (("band_low", "band_high") if wide else ("low", "high")))
    what = "simultaneous band" if wide else "CI"
    facts.append(f"{100 * values.attrs['level']:g}% {what} excludes 0")
    return array, ((low > 0) | (high < 0)).to_numpy(), facts


def _matrices(array: xr.DataArray) -> xr.DataArray:
    """Load [row, column] or [panel, row, column].

    Raises:
        DitLensError: there are too many or too few dimensions, or all values are NaN.
    """
    require_dims(array, (), "heatmap")
    single = [d for d in array.dims if array.sizes[d] == 1]
    array = array.squeeze(single[: max(0, array.ndim - 3)])
    if array.ndim not in (2, 3):
        raise DitLensError(
            f"heatmap: {name_of(array)} has {shape_of(array)}; it draws rows x columns, or panels x rows x "
            "columns: select or average the others, e.g. .sel(...) or .mean(...)."
        )
    array = array.compute()
    if bool(array.isnull().all()):
        raise not_recorded(array, [", ".join(whereabouts(array))], "heatmap")
    return array


def _names(array: xr.DataArray) -> list[str]:
    """Return what stands above each panel; above a single one, where it is from."""
    if array.ndim == 2:
        return [" · ".join(whereabouts(array))]
    dim = str(array.dims[0])
    return [n if isinstance(n, str) else f"{axis_label(array, dim)} {n}" for n in labels_of(array, dim)]


def _limits(stack: NDArray[np.float64], diverging: bool) -> tuple[float, float]:
    """Return the ends of the colour scale; symmetric about 0 where values have a sign."""
    if not diverging:
        return range_of(stack)
    furthest = float(np.nanmax(np.abs(stack))) or 1.0
    return -furthest, furthest


def _panels(
    stack: NDArray[np.float64], numbers: bool, title: str, panel_columns: int | None = None
) -> tuple[Figure, list[Axes], tuple[float, float]]:
    """Return a figure with a panel for each matrix, in rows, and the size of a panel in inches."""
    count, rows, columns = stack.shape
    if count == 1:
        width = min(8.0, max(3.6, columns * (0.56 if numbers else 0.3)))
        height = min(6.0, max(1.6, rows * (0.36 if numbers else 0.27)))
        across = 1
    else:
        across = panel_columns or best_columns(count, columns / rows)
        width = min(3.2, max(1.7, 11 / across, columns * 0.42 * numbers))
        height = min(1.25 * width, max(0.6 * width, width * rows / columns))
    down = ceil(count / across)
    figure = new_figure(across * (width + 0.1) + 1.6, down * (height + 0.3) + 1.3, title)
    grid = figure.subplots(down, across, squeeze=False)
    for spare in grid.flat[count:]:
        spare.set_axis_off()
    return figure, list(grid.flat[:count]), (width, height)


def _label(axes: list[Axes], array: xr.DataArray, size: tuple[float, float]) -> None:
    """Name rows and columns at the left and lower edges of the grid; inside they would be repeated."""
    rows, columns = (str(d) for d in array.dims[-2:])
    spec = axes[0].get_subplotspec()
    assert spec is not None
    across = spec.get_gridspec().ncols
    for i, ax in enumerate(axes):
        left, bottom = i % across == 0, i + across >= len(axes)
        ax.tick_params(length=2, pad=2, labelleft=left, labelbottom=bottom)
        _ticks(ax.yaxis, labels_of(array, rows), size[1] / 0.17)
        names = labels_of(array, columns)
        longest = max(len(str(n)) for n in names)
        crowded = _ticks(ax.xaxis, names, size[0] / (0.085 * longest + 0.12))
        if crowded:
            ax.tick_params(axis="x", labelrotation=30)
            for text in ax.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        ax.set_ylabel(axis_label(array, rows) if left else "")
        ax.set_xlabel(axis_label(array, columns) if bottom else "")


def _ticks(axis: Any, labels: list[object], room: float) -> bool:
    """Label positions: numbers as many as there is room for, names all; say whether these are crowded."""
    names = any(isinstance(n, str) for n in labels)
    index_ticks(axis, labels, most=len(labels) if names else max(2, int(room)))
    return names and len(labels) > room


def _inks(image: AxesImage, values: NDArray[np.float64]) -> NDArray[np.str_]:
    """Return for each cell the ink that can be read on its colour."""
    luminance = np.asarray(image.to_rgba(values))[..., :3] @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.45, INK, "white")


def _write(ax: Axes, image: AxesImage, matrix: NDArray[np.float64], signed: bool) -> None:
    """Write the number into each cell that was measured, all with as many decimals."""
    largest = np.nanmax(np.abs(matrix))
    decimals = max(0, 2 - ceil(log10(largest))) if largest > 0 else 0
    inks = _inks(image, matrix)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            text = f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=inks[row, column])


def _dot(
    ax: Axes, image: AxesImage, matrix: NDArray[np.float64], marks: NDArray[np.bool_], aside: bool
) -> None:
    """Put a dot into the marked cells: in the middle, or in a corner where the number stands there."""
    row, column = np.nonzero(marks)
    shift = 0.36 if aside else 0.0
    ax.scatter(column + shift, row - shift, s=9, c=_inks(image, matrix)[row, column], linewidths=0)


def _key(figure: Figure, facts: list[str], blank: bool) -> None:
    """Say below the panels how many runs there are, and what dots and hatching mean."""
    handles: list[Any] = [Line2D([], [], linestyle="", label=facts[0])] if facts else []
    handles += [Line2D([], [], linestyle="", marker="o", markersize=3, color=INK, label=f) for f in facts[1:]]
    handles += [Patch(label="not measured", **BLANK)] if blank else []
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=3, handlelength=1.4)
