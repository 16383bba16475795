from __future__ import annotations

import numpy as np
import pytest

from dit_lens.errors import DitLensError
from dit_lens.plot import overlay

GREY = np.full((16, 24, 3), 100, np.uint8)


def test_a_value_colours_its_own_token_and_no_other() -> None:
    values = np.zeros((2, 3))
    values[1, 2] = 4.0
    out = overlay(GREY, values, 4.0)
    changed = (out != GREY).any(2)
    assert changed[8:, 16:].all() and not changed[:8].any() and not changed[:, :16].any()
    half, full = (overlay(GREY, values, limit)[12, 20].astype(int) for limit in (8.0, 4.0))
    assert abs(full - 100).sum() > abs(half - 100).sum()
    assert np.array_equal(out, overlay(GREY, 10 * values, 4.0))  # over the limit is as at it


def test_nothing_and_nan_leave_the_frame_as_it_is_in_grey(video: np.ndarray) -> None:
    grey = np.repeat(np.rint(video[0].mean(2, keepdims=True)), 3, 2).astype(np.uint8)
    for nothing in (0.0, np.nan):
        assert np.array_equal(overlay(video[0], np.full((3, 4), nothing), 1.0), grey)


def test_a_marked_token_has_an_edge_and_keeps_its_inside() -> None:
    out = overlay(GREY, np.zeros((2, 3)), 1.0, mark=(0, 1))
    assert (out[:8, 8:16][[0, -1]] == 0).all() and (out[1:7, 9:15] == 100).all()
    assert (out[:, :8] == 100).all() and (out[8:] == 100).all()


def test_errors() -> None:
    with pytest.raises(DitLensError, match="uint8"):
        overlay(GREY / 255, np.zeros((2, 3)), 1.0)
    with pytest.raises(DitLensError, match="does not share out"):
        overlay(GREY, np.zeros((3, 3)), 1.0)
    with pytest.raises(DitLensError, match="over 0"):
        overlay(GREY, np.zeros((2, 3)), float("nan"))
