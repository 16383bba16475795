"""How every picture looks: one palette, one set of sizes, panels in a grid.

Figures are made without pyplot, so nothing is shown, no global state changes, and they work on a machine with
no display. Colours are safe for the colour-blind: Okabe & Ito's eight for lines and marks, viridis and its
kin for values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import ceil
from textwrap import wrap
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from dit_lens.errors import DitLensError

P = ParamSpec("P")
R = TypeVar("R")

DPI = 150
"""Dots per inch of saved figures; the contact sheet counts on it."""

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
OKABE_ITO = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
"""Okabe & Ito (2008), strongest first; yellow is left out, as a line of it cannot be seen on white."""

MOST_PANELS = 400
"""Small pictures in one figure; more take minutes."""

INK, MUTED, FAINT = "#222222", "#666666", "#d9d9d9"

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": False,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "image.cmap": "viridis",
    "figure.facecolor": "white",
    "savefig.dpi": DPI,
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in this style, whatever the user's matplotlib settings are."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            return function(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float, title: str, *, constrained: bool = True) -> Figure:
    """Return an empty figure of a size in inches, with its title at the left."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    if title and constrained:
        figure.suptitle(wrapped(title, width), x=0.01, ha="left", fontweight="bold")
    return figure


def wrapped(title: str, width: float) -> str:
    """Break a title into lines that fit a figure of a width in inches."""
    return "\n".join(wrap(title, max(20, int(width * 9.5)), break_on_hyphens=False))


def image_panels(
    count: int, aspect: float, title: str, *, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each of `count` small images, in reading order.

    Args:
        count: how many panels.
        aspect: width of an image divided by its height.
        title: of the figure.
        columns: panels in a row; by default what suits a page.

    Raises:
        DitLensError: there are more than `MOST_PANELS`.
    """
    if count > MOST_PANELS:
        raise DitLensError(
            f"{count:,} pictures are too many for one figure: select at most {MOST_PANELS}, e.g. by .isel(frame=slice(8))."
        )
    columns = columns or best_columns(count, aspect)
    rows = ceil(count / columns)
    panel = min(1.9, max(1.35, 11 / columns))
    figure = new_figure(max(columns * panel * 1.07 + 1.3, 5.0), rows * (panel / aspect + 0.26) + 0.8, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for spare in grid.flat[count:]:
        spare.set_axis_off()
    axes = list(grid.flat[:count])
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color=FAINT)
    return figure, axes


def best_columns(count: int, aspect: float) -> int:
    """Choose a number of columns that makes the figure about twice as wide as high, with few empty panels."""
    if count <= 6:
        return count
    ideal = (2.6 * count / aspect) ** 0.5  # labels add to the height
    return min(range(3, 9), key=lambda c: abs(c - ideal) + 1.5 * (ceil(count / c) * c - count))


def token_axes(axes: list[Axes], height: int, width: int) -> None:
    """Number the tokens at the left and lower edges of a grid of panels; inside they would be repeated."""
    for ax in axes:
        spec = ax.get_subplotspec()
        assert spec is not None
        columns = spec.get_gridspec().ncols
        if spec.colspan.start == 0:
            ax.set_yticks([0, height - 1])
            ax.set_ylabel("y (token)", fontsize=8, labelpad=1)
        if spec.num1 + columns >= len(axes):
            ax.set_xticks([0, width - 1])
            ax.set_xlabel("x (token)", fontsize=8, labelpad=1)
        ax.tick_params(length=2, pad=1.5, labelsize=7)


def colourbar(figure: Figure, image: ScalarMappable, axes: Axes | list[Axes], label: str) -> None:
    """Add a labelled colour bar for the panels that share its scale."""
    bar = figure.colorbar(image, ax=axes, label=label, fraction=0.03, pad=0.015, aspect=35)
    bar.outline.set_visible(False)


def trimmed(name: str = "viridis", top: float = 0.88) -> Colormap:
    """Return a colour map for lines: without its palest end, which cannot be seen on white."""
    return LinearSegmentedColormap.from_list(f"{name}_lines", mpl.colormaps[name](np.linspace(0, top, 256)))


def signed_colours() -> Colormap:
    """Return a colour map for signed values: the palette's blue below 0, its vermillion above, pale between."""
    ends = ["#003354", BLUE, "#8fc1de", "#f5f5f5", "#f2b58c", VERMILLION, "#6b2d00"]
    return LinearSegmentedColormap.from_list("blue_vermillion", ends)


def index_ticks(axis: Any, labels: list[Any], most: int = 10) -> None:
    """Label the positions 0, 1, ... of an axis with coordinate values: every one, or evenly chosen ones."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 10**9) if ceil(len(labels) / s) <= most)
    positions = list(range(0, len(labels), step))
    axis.set_ticks(positions, [str(labels[p]) for p in positions])
