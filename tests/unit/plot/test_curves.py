from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

from dit_lens.analysis.statistics import effect, mean
from dit_lens.errors import DitLensError
from dit_lens.plot.curves import curves
from dit_lens.plot.lines import MARKERS
from dit_lens.plot.style import OKABE_ITO

STEPS = [0, 5, 10, 15]


def outcomes(families: int = 0, dim: str = "arm", labels: list[str] | None = None) -> xr.DataArray:
    """Outcomes of 12 samples and 3 seeds at 4 steps, for some arms."""
    rng = np.random.default_rng(0)
    shape = (12, 3, *([families] if families else []), 4)
    values = xr.DataArray(
        rng.random(shape) < 0.4, dims=["sample", "seed", *([dim] if families else []), "step"]
    )
    values = values.assign_coords(
        sample=np.arange(12), seed=np.arange(3), step=STEPS, sigma=("step", [1.0, 0.9, 0.7, 0.3]), layer=6
    )
    return values.assign_coords({dim: labels}) if labels else values


def draw(summary: xr.Dataset, along: str = "step", **options: object) -> Axes:
    return curves(summary, along, value_label="solve rate", title="Noise", **options).axes[0]  # type: ignore[arg-type]


def test_one_curve_has_its_interval_and_says_where_and_how_many() -> None:
    summary = mean(outcomes())
    figure = curves(summary, "step", value_label="solve rate", title="Noise after a step")
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), summary["mean"])
    assert ax.lines[0].get_xdata().tolist() == STEPS
    (band,) = (c.get_paths()[0].vertices[:, 1] for c in ax.collections)
    assert (band.min(), band.max()) == pytest.approx((float(summary.low.min()), float(summary.high.max())))
    assert ax.get_title("right") == "n = 12 samples × 3 seeds, 95% CI" and ax.get_title("left") == "layer 6"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()[0]) == ("denoising step", "solve rate", 0)
    assert [t.get_text() for t in ax.child_axes[0].get_xticklabels()] == ["1.00", "0.90", "0.70", "0.30"]
    assert figure.get_suptitle() == "Noise after a step" and ax.get_legend() is None


def test_the_simultaneous_band_is_drawn_and_named() -> None:
    ax = draw(mean(outcomes(), along="step"))
    assert len(ax.collections) == 2
    assert ax.collections[0].get_alpha() < ax.collections[1].get_alpha()
    assert ax.get_title("right").endswith("95% CI (lighter: of the whole curve at once)")
    ax = draw(mean(outcomes(2), along=["arm", "step"]), marks=True)
    assert ax.get_title("right").endswith("(thin: of all of arm, step at once)")


def test_effects_have_a_line_at_zero() -> None:
    without = outcomes().isel(step=0, drop=True).drop_vars("sigma", errors="ignore")
    ax = draw(effect(outcomes(), without))
    assert [0.0, 0.0] in [list(line.get_ydata()) for line in ax.lines]
    assert ax.get_ylim()[0] < 0


def test_a_reference_is_a_dashed_line_with_its_interval() -> None:
    clean = mean(outcomes().isel(step=0, drop=True))
    ax = draw(mean(outcomes()), reference=clean, reference_label="clean run")
    assert ax.texts[0].get_text() == f"clean run\n{float(clean['mean']):.3g}"
    assert len(ax.patches) == 1 and ax.lines[1].get_ydata()[0] == float(clean["mean"])
    ax = draw(mean(outcomes(2, labels=["a", "b"])), reference=0.25)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b", "clean 0.25"]
    with pytest.raises(DitLensError, match="the reference is one value, but this one has step"):
        draw(mean(outcomes()), reference=mean(outcomes()))


@pytest.mark.parametrize(("count", "bands", "bars"), [(3, 3, 0), (5, 0, 5), (8, 0, 0)])
def test_intervals_of_many_curves_do_not_hide_one_another(count: int, bands: int, bars: int) -> None:
    figure = curves(mean(outcomes(count, "layer_edited")), "step", value_label="rate", title="")
    ax = figure.axes[0]
    kinds = [type(c).__name__ for c in ax.collections]
    assert (len(ax.lines), kinds.count("FillBetweenPolyCollection") + kinds.count("PolyCollection")) == (
        count,
        bands,
    )
    assert kinds.count("LineCollection") == bars
    assert ("intervals not drawn" in ax.get_title("right")) == (count > 6)
    assert count < 7 or figure.axes[-1].get_ylabel() == "layer edited"
    if count < 7:
        assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == count


def test_marks_stand_side_by_side() -> None:
    summary = mean(outcomes(2, labels=["a", "b"]).assign_coords(step=[1, 2, 8, 50]))
    ax = draw(summary, marks=True)
    first, second = (np.asarray(line.get_xdata()) for line in ax.lines)
    np.testing.assert_allclose((first + second) / 2, np.arange(4))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "8", "50"]
    assert len(ax.child_axes) == 1  # σ stands at the same places
    assert ax.child_axes[0].get_xticks().tolist() == [0, 1, 2, 3]


def test_names_along_x_are_not_joined() -> None:
    names = np.array(["up", "down", "left", "right"], np.dtypes.StringDType())
    summary = mean(outcomes().drop_vars("sigma").rename(step="direction").assign_coords(direction=names))
    ax = draw(summary, "direction")
    assert ax.lines[0].get_linestyle() == "None"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["up", "down", "left", "right"]


def test_axes_are_labelled_by_their_coordinates() -> None:
    values = outcomes().drop_vars("sigma").rename(step="scale").assign_coords(scale=[0.1, 0.2, 0.3, 0.5])
    values["scale"].attrs = {"long_name": "noise", "units": "latent sd"}
    ax = draw(mean(values), "scale", limits=(0, 1))
    assert ax.get_xlabel() == "noise (latent sd)" and ax.get_ylim() == (0, 1)
    assert any(0 < t < 0.5 for t in ax.get_xticks())


def test_no_two_of_the_first_curves_look_alike() -> None:
    looks = {(OKABE_ITO[i % 7], MARKERS[i % len(MARKERS)]) for i in range(56)}
    assert len(looks) == 56


def test_errors_name_what_is_wrong() -> None:
    summary = mean(outcomes(2))
    with pytest.raises(DitLensError, match="no dimension frame"):
        draw(summary, "frame")
    with pytest.raises(DitLensError, match="at most one of site, arm"):
        draw(summary.expand_dims(site=2))
    with pytest.raises(DitLensError, match="needs mean or effect, and low, high"):
        draw(summary[["mean"]])
    with pytest.raises(DitLensError, match="does not say its n_samples"):
        draw(summary.drop_attrs())
    with pytest.raises(DitLensError, match="step 10"):
        draw(mean(outcomes()).where(lambda s: s.step != 10))
