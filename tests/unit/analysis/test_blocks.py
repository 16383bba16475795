"""Block scores: two kinds of steps have a border; noise, and a drift over the noise level, have none."""

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import block_score
from dit_lens.analysis.cka_sampled import kernel_cka, kernel_matrix, unit_kernel
from dit_lens.errors import DitLensError

STEPS, BORDER = 20, 8
TIME = np.linspace(1, 0, STEPS + 1)[:-1]
SIGMA = 5 * TIME / (1 + 4 * TIME)
"""As a sampler with shift 5 has it: nearly still at first, fast in the end."""


def matrix(values):
    coords = {"step": range(STEPS), "other_step": range(STEPS), "sigma": ("step", SIGMA)}
    return xr.DataArray(values, coords, ("step", "other_step"), "similar")


def drift():
    return np.exp(-abs(np.subtract.outer(SIGMA, SIGMA)) / 0.3)


def test_two_kinds_of_steps_have_a_border_where_it_was_planted():
    same = np.equal.outer(np.arange(STEPS) < BORDER, np.arange(STEPS) < BORDER)
    found = block_score(matrix(0.8 * drift() + 0.2 * same), position="sigma")
    assert int(found.border[found.values.argmax()]) == BORDER and float(found.max()) > 0.15
    assert found.border.values.tolist() == list(range(2, STEPS - 1)) and found.dims == ("border",)


def test_a_drift_has_no_border_where_distance_is_that_of_the_noise_level():
    assert float(abs(block_score(matrix(drift()), position="sigma")).max()) < 2e-3
    assert float(abs(block_score(matrix(drift()))).max()) > 0.1  # by their number it would be taken for one
    steps = np.exp(-abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS))) / 6)
    assert float(abs(block_score(matrix(steps))).max()) < 2e-3


def test_independent_noise_has_no_block_structure():
    torch = pytest.importorskip("torch")
    random = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(30):
        states = [torch.randn(24, 16, generator=random) for _ in range(STEPS)]
        scores.append(block_score(matrix(kernel_matrix(states, list(range(24)))), position="sigma").values)
    mean, error = np.mean(scores, 0), np.std(scores, 0) / 30**0.5
    assert (abs(mean) < 4 * error).all() and error.max() < 0.01


def test_a_matrix_of_kernels_holds_the_cka_of_every_two_states():
    torch = pytest.importorskip("torch")
    states = [torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    tokens = [0, 3, 4, 9, 20]
    found = kernel_matrix(states, tokens)
    for a in range(3):
        for b in range(3):
            both = (unit_kernel(states[n], tokens) for n in (a, b))
            assert found[a, b] == pytest.approx(kernel_cka(*both), abs=1e-12)
    np.testing.assert_allclose(np.diag(found), 1)


def test_other_dimensions_are_kept_and_matrices_that_are_none_are_refused():
    both = xr.concat([matrix(drift()), matrix(drift() ** 2)], "layer").assign_coords(layer=[0, 5])
    found = block_score(both, position="sigma")
    assert found.dims == ("layer", "border")
    np.testing.assert_allclose(found.sel(layer=5), block_score(matrix(drift() ** 2), position="sigma"))
    with pytest.raises(DitLensError, match="give 4 steps or more"):
        block_score(matrix(drift()).isel(step=slice(3), other_step=slice(3)))
    with pytest.raises(DitLensError, match="the same on both"):
        block_score(matrix(drift()).isel(other_step=slice(None, None, -1)))
    with pytest.raises(DitLensError, match="NaN or Inf"):
        block_score(matrix(drift() * np.nan))


def test_four_even_steps_have_a_score_too():
    coords = {"step": range(4), "other_step": range(4)}
    same = np.equal.outer(np.arange(4) < 2, np.arange(4) < 2).astype(float)
    found = block_score(xr.DataArray(same, coords, ("step", "other_step")))
    # Of distances 1, 2, 3 the means are taken off: of the pairs (0,1), (1,2), (2,3) that is 2/3, and 0 of the others.
    assert found.values == pytest.approx([0.5]) and found.border.values.tolist() == [2]
