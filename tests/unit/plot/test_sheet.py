from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_lens.errors import DitLensError
from dit_lens.plot import contact_sheet, save
from dit_lens.plot.sheet import GAP


def test_rows_columns_notes_and_marks(video: np.ndarray) -> None:
    figure = contact_sheet(
        [video, video[::-1], video],
        row_labels=["step 0", "step 1", "step 2"],
        title="x0",
        row_notes=["two trails", "one trail", ""],
        row_solved=[False, True, None],
        most_columns=3,
    )
    words = [t.get_text() for t in figure.axes[0].texts]
    assert words[:3] == ["frame 0", "frame 4", "frame 8"]
    assert words[3:] == ["step 0", "✗", "two trails", "step 1", "✓", "one trail", "step 2", ""]
    assert [t.get_text() for t in figure.texts] == ["x0"]


def test_saved_pixels_are_those_of_the_frames(video: np.ndarray, tmp_path: Path) -> None:
    figure = contact_sheet(video[None], most_columns=2)
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    scale = 4  # 64 pixels fit four times into the largest picture, 260
    np.testing.assert_array_equal(mosaic[:, : 64 * scale], video[0].repeat(scale, 0).repeat(scale, 1))
    assert mosaic.shape == (48 * scale, 2 * 64 * scale + GAP, 3)
    saved = np.asarray(Image.open(save(figure, tmp_path / "sheet.png")).convert("RGB"))
    box = figure.axes[0].get_window_extent()
    top, left = round(saved.shape[0] - box.y1), round(box.x0)
    np.testing.assert_array_equal(saved[top : top + mosaic.shape[0], left : left + mosaic.shape[1]], mosaic)


def test_large_frames_are_reduced() -> None:
    figure = contact_sheet(np.zeros((2, 1, 480, 832, 3), np.uint8))
    assert figure.axes[0].images[0].get_array().shape == (2 * 150 + GAP, 260, 3)


def test_pictures_from_pil_and_words_for_marks(video: np.ndarray) -> None:
    figure = contact_sheet([[Image.fromarray(f) for f in video]], row_solved=[True])
    assert figure.axes[0].texts[-1].get_text() == "solved"


def test_errors(video: np.ndarray) -> None:
    with pytest.raises(DitLensError, match="videos of one shape"):
        contact_sheet([video, video[:3]])
    with pytest.raises(DitLensError, match="row_labels has 1 entries for 2"):
        contact_sheet([video, video], row_labels=["step 0"])
    with pytest.raises(DitLensError, match="uint8"):
        contact_sheet([video / 255])
