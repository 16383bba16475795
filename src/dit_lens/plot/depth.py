"""The depth lens: what every layer would show at every step, were it the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import spread
from dit_lens.plot.sheet import GAP, contact_sheet
from dit_lens.plot.style import BLUE, DPI, VERMILLION, styled

CHARACTER = 11
"""Pixels that a character of a column's label takes at the resolution of the sheet, about."""

BORDER = 2
"""Pixels of a border: two of them and white between fit into the gap."""


@styled
def depth_sheet(
    frames: ArrayLike,
    layers: Sequence[object],
    steps: Sequence[object],
    *,
    solved: ArrayLike | None = None,
    sigmas: Sequence[float] | None = None,
    title: str = "",
    most_steps: int | None = None,
) -> Figure:
    """Draw decoded frames as a sheet: a row per layer, the last at the bottom, and a column per step.

    Args:
        frames: [layer, step, height, width, rgb], uint8: one frame each, e.g. the last of the decoded video.
        layers: [layer], labels, from the first to the last.
        steps: [step], labels.
        solved: [layer, step], bool: a blue border with a tick, or a vermillion one with a cross, the colours
            of the contact sheet.
        sigmas: [step], noise levels, written under the steps.
        title: of the figure.
        most_steps: how many steps to show, evenly spread, first and last among them; None for all.

    Raises:
        DitLensError: frames are not 8-bit RGB on [layer, step, ...], or another argument does not match them.
    """
    if isinstance(frames, xr.Dataset | Mapping):
        raise DitLensError(f"depth_sheet: frames are an array; this is {type(frames).__name__}.")
    pictures = np.asarray(frames)
    if pictures.ndim != 5 or not pictures.size:
        raise DitLensError(
            f"depth_sheet: frames are [layer, step, height, width, rgb], not {list(pictures.shape)}."
        )
    marks = None if solved is None else np.asarray(solved)
    _match(pictures, layers, steps, marks, sigmas)
    chosen = spread(len(steps), most_steps)
    key = [] if marks is None else ["✓ solved\n✗ not solved", *[""] * (len(layers) - 1)]
    figure = contact_sheet(
        pictures[:, chosen],
        row_labels=[f"layer {n}" for n in layers],
        column_labels=[""] * len(chosen),
        title=title,
        row_notes=key or None,
        most_columns=None,
    )
    ax = figure.axes[0]
    cells = _cells(figure, len(layers), len(chosen))
    _columns(
        ax, cells[0], [steps[i] for i in chosen], None if sigmas is None else [sigmas[i] for i in chosen]
    )
    if marks is not None:
        for cell, right in zip(cells.reshape(-1, 4), marks[:, chosen].ravel(), strict=True):
            _mark(ax, cell, bool(right))
    return figure


def _match(
    pictures: NDArray[np.uint8],
    layers: Sequence[object],
    steps: Sequence[object],
    marks: NDArray[np.bool_] | None,
    sigmas: Sequence[float] | None,
) -> None:
    """Check that the labels and marks are those of the frames."""
    for what, values, axis in (("layers", layers, 0), ("steps", steps, 1), ("sigmas", sigmas, 1)):
        if values is not None and len(values) != pictures.shape[axis]:
            dim = ("layer", "step")[axis]
            raise DitLensError(
                f"depth_sheet: {what} has {len(values)} entries, but the frames are [{dim} {pictures.shape[axis]}]."
            )
    if marks is not None and (marks.shape != pictures.shape[:2] or marks.dtype != bool):
        raise DitLensError(
            f"depth_sheet: solved is bool [layer {pictures.shape[0]}, step {pictures.shape[1]}], as the frames "
            f"are; this one is {marks.dtype} {list(marks.shape)}."
        )


def _cells(figure: Figure, rows: int, columns: int) -> NDArray[np.int_]:
    """Return the place of every picture in the sheet, [row, column, (left, top, width, height)], in pixels."""
    sheet = figure.axes[0].images[0].get_array()
    assert sheet is not None
    height, width = sheet.shape[:2]
    tall, wide = (height + GAP) // rows - GAP, (width + GAP) // columns - GAP
    top, left = np.mgrid[:rows, :columns] * np.array([tall + GAP, wide + GAP])[:, None, None]
    return np.stack([left, top, np.full_like(left, wide), np.full_like(left, tall)], -1)


def _columns(ax: Axes, cells: NDArray[np.int_], steps: list[object], sigmas: list[float] | None) -> None:
    """Write the steps above the columns, in short where a column is narrow."""
    room = cells[0, 2] + GAP
    long = max(len(str(s)) for s in steps) + 5
    short = long * CHARACTER > room
    for (left, _, width, _), i in zip(cells, range(len(steps)), strict=True):
        name = str(steps[i]) if short else f"step {steps[i]}"
        noise = "" if sigmas is None else f"\n{sigmas[i]:.2f}" if short else f"\nσ {sigmas[i]:.2f}"
        ax.text(left + width / 2, -8, name + noise, ha="center", va="bottom", fontsize=8)
    if short:
        name = "step" + ("" if sigmas is None else "\nσ")
        ax.text(-12, -8, name, ha="right", va="bottom", fontsize=8)


def _mark(ax: Axes, cell: NDArray[np.int_], right: bool) -> None:
    """Draw the border of one picture, in the gap around it, and its sign in a corner."""
    left, top, width, height = (int(n) for n in cell)
    colour, sign = (BLUE, "✓") if right else (VERMILLION, "✗")
    corner = (left - 0.5 - BORDER / 2, top - 0.5 - BORDER / 2)
    look: dict[str, Any] = {
        "edgecolor": colour,
        "linewidth": BORDER * 72 / DPI,
        "clip_on": False,
        "snap": False,
    }
    ax.add_patch(Rectangle(corner, width + BORDER, height + BORDER, fill=False, **look))
    paper: dict[str, Any] = {
        "boxstyle": "square,pad=0.08",
        "facecolor": "white",
        "edgecolor": "none",
        "alpha": 0.8,
    }
    size = min(8.0, max(5.0, width / 11))
    place: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": size, "fontweight": "bold"}
    ax.text(left + width - 2, top + 2, sign, color=colour, bbox=paper, **place)
