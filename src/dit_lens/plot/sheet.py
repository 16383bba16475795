"""The contact sheet: many videos at once, a row each, so that steps can be compared at a glance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import require_few, spread
from dit_lens.plot.style import BLUE, DPI, VERMILLION, new_figure, styled, wrapped
from dit_lens.video import as_video, require_frames

SHEET_PIXELS = (1600, 2200)
"""Width that the pictures of a row share, and height that the rows share, as far as `CELL_PIXELS` allows."""
CELL_PIXELS = (56, 260)
"""Smallest and largest width of one picture."""
GAP = 6
MOST_PICTURES = 5000
"""Of the smallest size, a sheet of them has 16 million pixels."""


@styled
def contact_sheet(
    videos: Sequence[Any] | NDArray[np.uint8],
    row_labels: Sequence[object] | None = None,
    column_labels: Sequence[object] | None = None,
    title: str = "",
    row_notes: Sequence[str] | None = None,
    row_solved: Sequence[bool | None] | None = None,
    most_columns: int | None = 8,
) -> Figure:
    """Draw videos as rows of frames, e.g. the decoded x0 of every denoising step.

    Pictures are drawn pixel by pixel at the resolution of `save`: small ones enlarged by a whole number,
    large ones reduced.

    Args:
        videos: [row, column, height, width, rgb], uint8; or a sequence of videos, each a sequence of PIL
            images or uint8 arrays. All of one length and size.
        row_labels: a label per row, e.g. "step 3"; "0", "1", ... by default.
        column_labels: a label per frame of the videos; "frame 0", ... by default.
        title: of the figure.
        row_notes: a note at the right of every row: the scorer's answer; by default what `row_solved` says,
            in words.
        row_solved: per row True (a blue tick), False (a vermillion cross) or None (no mark).
        most_columns: how many frames to show, evenly spread, first and last among them; None for all.

    Raises:
        DitLensError: there is nothing to show, the videos differ in shape, or labels do not match them.
    """
    if isinstance(videos, str | Mapping) or not isinstance(videos, Iterable):
        raise DitLensError(
            f"contact_sheet: videos are a sequence of videos; this is {type(videos).__name__}."
        )
    if hasattr(videos, "shape"):
        require_frames(tuple(videos.shape), 5, "contact_sheet")
    rows = [as_video(v, "contact_sheet") for v in videos]
    if not rows or any(r.shape != rows[0].shape for r in rows):
        shapes = ", ".join(sorted({str(r.shape) for r in rows})) or "none"
        raise DitLensError(f"contact_sheet: videos of one shape are needed, one or more; found {shapes}.")
    length = rows[0].shape[0]
    names = (
        [f"frame {i}" for i in range(length)] if column_labels is None else [str(c) for c in column_labels]
    )
    lines = [str(i) for i in range(len(rows))] if row_labels is None else [str(r) for r in row_labels]
    marks: list[bool | None] = [None] * len(rows) if row_solved is None else list(row_solved)
    words = {True: "solved", False: "not solved", None: ""}
    notes = [words[m] for m in marks] if row_notes is None else list(row_notes)
    for what, values, count in (
        ("row_labels", lines, len(rows)),
        ("column_labels", names, length),
        ("row_notes", notes, len(rows)),
        ("row_solved", marks, len(rows)),
    ):
        if len(values) != count:
            raise DitLensError(f"contact_sheet: {what} has {len(values)} entries for {count}.")
    chosen = spread(length, most_columns)
    require_few(len(rows) * len(chosen), MOST_PICTURES, "pictures", "contact_sheet")
    pictures = [[_fit(row[i], len(rows), len(chosen)) for i in chosen] for row in rows]
    return _compose(pictures, lines, [names[i] for i in chosen], title, notes, marks)


def _fit(frame: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Resize a frame to its share of the sheet: enlarged by a whole number, or reduced with care."""
    height, width = frame.shape[:2]
    share = min(SHEET_PIXELS[0] // columns, SHEET_PIXELS[1] // rows * width // height)
    target = min(max(share, CELL_PIXELS[0]), CELL_PIXELS[1])
    if width <= target:
        scale = target // width
        return frame.repeat(scale, 0).repeat(scale, 1)
    size = (target, max(1, round(height * target / width)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def _compose(
    pictures: list[list[NDArray[np.uint8]]],
    lines: list[str],
    names: list[str],
    title: str,
    notes: list[str],
    marks: list[bool | None],
) -> Figure:
    """Paste the pictures into one image, and write the labels around it."""
    height, width = pictures[0][0].shape[:2]
    mosaic = _mosaic(pictures)
    pixels = 72 / DPI  # points per pixel
    left = 24 + int(max(len(t) for t in lines) * 6.2 / pixels)
    noted = any(notes) or any(m is not None for m in marks)
    longest = max(len(line) for n in notes for line in n.split("\n")) + 4
    right = 24 + int(longest * 5.2 / pixels) if noted else 24
    across = left + mosaic.shape[1] + right
    title = wrapped(title, across / DPI)
    top, bottom = 50 + (24 + 26 * len(title.split("\n")) if title else 0), 20
    total = (across, top + mosaic.shape[0] + bottom)
    figure = new_figure(total[0] / DPI, total[1] / DPI, title, constrained=False)
    ax = figure.add_axes(
        (left / total[0], bottom / total[1], mosaic.shape[1] / total[0], mosaic.shape[0] / total[1])
    )
    ax.imshow(mosaic, aspect="auto")
    ax.set_axis_off()
    if title:
        figure.text(20 / total[0], 1 - 20 / total[1], title, fontsize=11, fontweight="bold", va="top")
    size = min(8, 8 * width / 90)  # "frame 12" is 85 pixels wide at 8 points
    for j, name in enumerate(names):
        ax.text(j * (width + GAP) + width / 2, -8, name, ha="center", va="bottom", fontsize=size)
    for i, (line, note, mark) in enumerate(zip(lines, notes, marks, strict=True)):
        y = i * (height + GAP) + height / 2
        ax.text(-12, y, line, ha="right", va="center", fontsize=9)
        if mark is not None:
            colour, sign = (BLUE, "✓") if mark else (VERMILLION, "✗")
            ax.text(mosaic.shape[1] + 10, y, sign, va="center", fontsize=13, color=colour, fontweight="bold")
        shift = 42 if any(m is not None for m in marks) else 12
        ax.text(mosaic.shape[1] + shift, y, note, va="center", fontsize=8)
    return figure


def _mosaic(pictures: list[list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Paste rows of equal pictures on white, with gaps."""
    height, width, depth = pictures[0][0].shape
    rows, columns = len(pictures), len(pictures[0])
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, depth)
    out = np.full(shape, 255, np.uint8)
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            y, x = i * (height + GAP), j * (width + GAP)
            out[y : y + height, x : x + width] = picture
    return out
