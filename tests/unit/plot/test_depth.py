from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from dit_lens.errors import DitLensError
from dit_lens.plot import save
from dit_lens.plot.depth import depth_sheet
from dit_lens.plot.style import BLUE, VERMILLION


@pytest.fixture
def frames() -> np.ndarray:
    """One frame of 24 x 32 pixels for each of 3 layers and 4 steps, a grey of its own."""
    greys = np.arange(12, dtype=np.uint8).reshape(3, 4, 1, 1, 1) * 20
    return np.broadcast_to(greys, (3, 4, 24, 32, 3))


def words(figure: object) -> list[str]:
    return [t.get_text() for t in figure.axes[0].texts if t.get_text()]  # type: ignore[attr-defined]


def test_layers_go_down_and_steps_across(frames: np.ndarray) -> None:
    figure = depth_sheet(frames, [0, 5, 11], [0, 3, 7, 19], sigmas=[1, 0.9, 0.7, 0.2], title="Depth lens")
    assert words(figure)[:3] == ["layer 0", "layer 5", "layer 11"]
    assert words(figure)[3:] == ["step 0\nσ 1.00", "step 3\nσ 0.90", "step 7\nσ 0.70", "step 19\nσ 0.20"]
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    assert (mosaic[0, 0, 0], mosaic[-1, 0, 0], mosaic[-1, -1, 0]) == (0, 160, 220)
    assert not figure.axes[0].patches and [t.get_text() for t in figure.texts] == ["Depth lens"]


def test_marks_are_a_colour_and_a_sign(frames: np.ndarray, tmp_path: Path) -> None:
    solved = np.zeros((3, 4), bool)
    solved[2, 1:] = True
    figure = depth_sheet(frames, range(3), range(4), solved=solved)
    ax = figure.axes[0]
    borders = [p for p in ax.patches if isinstance(p, Rectangle)]
    colours = [VERMILLION] * 9 + [BLUE] * 3
    assert [p.get_edgecolor() for p in borders] == [pytest.approx(_rgba(c)) for c in colours]
    assert words(figure)[-12:] == ["✗"] * 9 + ["✓"] * 3 and "✓ solved\n✗ not solved" in words(figure)
    saved = np.asarray(Image.open(save(figure, tmp_path / "depth.png")).convert("RGB"))
    box = ax.get_window_extent()
    height, width = np.asarray(ax.images[0].get_array()).shape[:2]
    sheet = saved[round(saved.shape[0] - box.y1) :, round(box.x0) :][:height, :width]
    assert (sheet[0, :100] == 0).all()  # borders lie beside the pictures, not on them


def test_narrow_columns_have_short_names() -> None:
    frames = np.zeros((2, 30, 60, 60, 3), np.uint8)
    names = words(depth_sheet(frames, range(2), range(30), sigmas=np.linspace(1, 0, 30).tolist()))
    assert names[2:4] == ["0\n1.00", "1\n0.97"] and names[-1] == "step\nσ"
    few = words(depth_sheet(frames, range(2), range(30), most_steps=3))
    assert few[2:] == ["step 0", "step 14", "step 29"]


def test_errors_name_what_is_wrong(frames: np.ndarray) -> None:
    with pytest.raises(DitLensError, match=r"layers has 2 entries, but the frames are \[layer 3\]"):
        depth_sheet(frames, [0, 1], range(4))
    with pytest.raises(DitLensError, match=r"sigmas has 1 entries, but the frames are \[step 4\]"):
        depth_sheet(frames, range(3), range(4), sigmas=[1.0])
    with pytest.raises(DitLensError, match=r"solved is bool \[layer 3, step 4\].*bool \[4, 3\]"):
        depth_sheet(frames, range(3), range(4), solved=np.zeros((4, 3), bool))
    with pytest.raises(DitLensError, match=r"\[layer, step, height, width, rgb\], not \[4, 24, 32, 3\]"):
        depth_sheet(frames[0], range(3), range(4))
    with pytest.raises(DitLensError, match="uint8"):
        depth_sheet(frames / 255, range(3), range(4))


def _rgba(colour: str) -> tuple[float, ...]:
    return (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)
