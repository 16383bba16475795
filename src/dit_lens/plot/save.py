"""Figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from dit_lens.errors import DitLensError
from dit_lens.plot.style import DPI


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG: the same figure gives the same bytes (150 dpi, no time in the metadata).

    Args:
        figure: any matplotlib figure.
        path: where to write, ending in .png or with no ending; folders are made.

    Returns:
        The path written.

    Raises:
        DitLensError: the path ends in something else than .png.
    """
    path = Path(path)
    if path.suffix.lower() not in ("", ".png"):
        raise DitLensError(
            f"save: figures are written as PNG, so the path must end in .png, not {path.name!r}."
        )
    path = path if path.suffix else path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": "dit_lens"})
    return path
