"""How near two videos are, in decibels."""

import numpy as np
import pytest

from dit_lens.analysis import psnr
from dit_lens.errors import DitLensError


def test_it_is_what_its_formula_gives():
    video = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(video + np.uint8(1), video) == pytest.approx(20 * np.log10(255))
    half = video.copy()
    half[0] += np.uint8(10)  # mean squared difference 50
    assert psnr(half, video) == psnr(video, half) == pytest.approx(10 * np.log10(255**2 / 50))
    latents = np.zeros((3, 3))
    assert psnr(latents + 0.1, latents, peak=2.0) == pytest.approx(10 * np.log10(4 / 0.01))


def test_equal_values_count_as_a_hundred_and_uint8_does_not_wrap_around():
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(black, black) == 100
    assert psnr(black, white) == pytest.approx(0)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DitLensError, match="give two arrays of one shape"):
        psnr(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(DitLensError, match="NaN or Inf"):
        psnr(np.array([np.nan]), np.zeros(1))
    with pytest.raises(DitLensError, match="give the range of a value"):
        psnr(np.zeros(1), np.ones(1), peak=0)
