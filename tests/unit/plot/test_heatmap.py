from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_lens.analysis.statistics import effect, mean
from dit_lens.errors import DitLensError
from dit_lens.plot.heatmap import heatmap


def matrix(*sizes: int, dims: tuple[str, ...] = ("layer", "step")) -> xr.DataArray:
    values = np.random.default_rng(0).random(sizes)
    return xr.DataArray(
        values, dims=dims, coords={d: 2 * np.arange(n) for d, n in zip(dims, sizes, strict=True)}
    )


def draw(values: xr.DataArray | xr.Dataset, **options: object) -> Figure:
    return heatmap(values, value_label="share", title="Swaps", **options)  # type: ignore[arg-type]


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.images and ax.get_label() != "<colorbar>"]


def key(figure: Figure) -> list[str]:
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def outcomes(rate: xr.DataArray) -> xr.DataArray:
    """Outcomes of 20 samples and 2 seeds at each place of a matrix of rates."""
    drawn = np.random.default_rng(0).random((20, 2, *rate.shape)) < rate.to_numpy()
    return xr.DataArray(drawn, {"sample": np.arange(20), "seed": [0, 1]}, ["sample", "seed", *rate.dims])


def test_a_small_matrix_has_its_numbers() -> None:
    values = matrix(3, 4)
    values[1, 2] = np.nan
    figure = draw(values.assign_coords(branch="cond"))
    (ax,) = panels(figure)
    np.testing.assert_array_equal(np.ma.filled(ax.images[0].get_array(), np.nan), values)
    assert len(ax.texts) == 11 and ax.texts[0].get_text() == f"{float(values[0, 0]):.2f}"
    assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_title("left")) == ("layer", "denoising step", "cond")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "2", "4"]
    assert ax.images[0].get_clim() == (float(values.min()), float(values.max()))
    assert key(figure) == ["not measured"] and ax.patches[0].get_hatch()
    assert figure.axes[-1].get_ylabel() == "share" and figure.get_suptitle() == "Swaps"


def test_numbers_can_be_asked_for_and_left_out() -> None:
    assert not panels(draw(matrix(8, 10)))[0].texts
    assert len(panels(draw(matrix(8, 10), annotate=True))[0].texts) == 80
    assert not panels(draw(matrix(2, 2), annotate=False))[0].texts
    assert not key(draw(matrix(2, 2)))


@pytest.mark.parametrize(("largest", "text"), [(0.02, "0.020"), (0.9, "0.90"), (2.5, "2.5"), (250.0, "250")])
def test_numbers_have_two_digits(largest: float, text: str) -> None:
    ax = panels(draw(xr.DataArray([[0.0, largest]], dims=["layer", "step"])))[0]
    assert ax.texts[1].get_text() == text


def test_diverging_colours_are_centred() -> None:
    values = matrix(3, 3) - 0.8
    ax = panels(draw(values, diverging=True))[0]
    furthest = float(np.abs(values).max())
    assert ax.images[0].get_clim() == (-furthest, furthest)
    assert ax.texts[0].get_text()[0] in "+−"
    low, middle, high = (ax.images[0].cmap(v)[:3] for v in (0.2, 0.5, 0.8))
    assert low[2] > low[0] and high[0] > high[2] and min(middle) > 0.9
    assert panels(draw(values, limits=(-1, 1)))[0].images[0].get_clim() == (-1, 1)


def test_panels_share_one_scale_and_are_named_at_the_edges() -> None:
    figure = draw(matrix(12, 5, 6, dims=("layer", "after_step", "step")))
    axes = panels(figure)
    assert len({ax.images[0].get_clim() for ax in axes}) == 1 and len(axes) == 12
    assert [ax.get_title("left") for ax in axes[:2]] == ["layer 0", "layer 2"]
    assert [bool(ax.get_ylabel()) for ax in axes] == ([True] + [False] * 5) * 2
    assert axes[0].get_ylabel() == "after step"
    assert [bool(ax.get_xlabel()) for ax in axes] == [False] * 6 + [True] * 6
    width, height = figure.get_size_inches()
    assert width < 14 and height < 8


def test_named_columns_are_all_there_and_turned_where_they_do_not_fit() -> None:
    names = np.array(["a rather long name", "another long name", "short"], np.dtypes.StringDType())
    values = matrix(2, 3, dims=("step", "direction")).assign_coords(direction=names)
    ax = panels(draw(values))[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == names.tolist()
    assert ax.get_xticklabels()[0].get_rotation() == 30


def test_effects_whose_interval_excludes_zero_have_a_dot() -> None:
    rate = xr.DataArray([[0.5, 1.0], [0.0, 0.5]], dims=["layer", "step"])
    found = effect(outcomes(rate), outcomes(xr.full_like(rate, 0.5)), along=["layer", "step"])
    figure = draw(found, diverging=True)
    assert key(figure) == ["n = 20 samples × 2 seeds", "95% simultaneous band excludes 0"]
    dots = np.asarray(panels(figure)[0].collections[0].get_offsets()).round()
    assert sorted(map(tuple, dots.tolist())) == [(0, 1), (1, 0)]
    figure = draw(found[["effect", "low", "high"]])
    assert key(figure)[1] == "95% CI excludes 0"
    figure = draw(mean(outcomes(rate)))
    assert key(figure) == ["n = 20 samples × 2 seeds"]


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DitLensError, match=r"\[layer 3\]; it draws rows x columns"):
        draw(matrix(3, dims=("layer",)))
    with pytest.raises(DitLensError, match="branch 2, layer 2"):
        draw(matrix(2, 2, 2, 2, dims=("branch", "layer", "after_step", "step")))
    assert len(panels(draw(matrix(1, 2, 2, 2, dims=("branch", "layer", "after_step", "step"))))) == 2
    with pytest.raises(DitLensError, match="not recorded at layer 6"):
        draw(matrix(2, 2, dims=("after_step", "step")).assign_coords(layer=6) * np.nan)
