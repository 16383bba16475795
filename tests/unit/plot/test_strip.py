from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis.commitment import commitment
from dit_lens.errors import DitLensError
from dit_lens.plot.strip import commitment_steps

SETTLED = xr.DataArray([[0, 2], [2, 2], [4, 2], [0, 4]], dims=["sample", "seed"], name="commitment")


def test_shares_at_and_up_to_each_step() -> None:
    steps = xr.DataArray(
        [0, 2, 4], dims="step", coords={"step": [0, 2, 4], "sigma": ("step", [1.0, 0.9, 0.5])}
    )
    figure = commitment_steps(SETTLED, steps=steps)
    (ax,) = figure.axes
    assert [p.get_height() for p in ax.patches] == [25, 50, 25]
    assert [p.get_width() for p in ax.patches] == pytest.approx([1.6] * 3)
    assert ax.lines[0].get_xdata().tolist() == [0, 2, 4]
    assert ax.lines[0].get_ydata().tolist() == [25, 75, 100]
    assert len(ax.collections) == 1
    assert ax.get_title("right") == "n = 4 samples × 2 seeds · half by step 2"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("denoising step", "share of trajectories (%)")
    assert [t.get_text() for t in ax.child_axes[0].get_xticklabels()] == ["1.00", "0.90", "0.50"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "settled by this step, with 95% CI",
        "settled at this step",
    ]


def test_what_the_analysis_returns_is_drawn_and_one_sample_has_no_interval() -> None:
    answers = xr.DataArray([[["L", "R", "R"], ["R", "R", "R"]]], dims=["sample", "seed", "step"])
    figure = commitment_steps(commitment(answers.assign_coords(step=np.arange(3))), title="Settled")
    ax = figure.axes[0]
    assert [p.get_height() for p in ax.patches] == [50, 50] and not ax.collections
    assert figure.legends[0].get_texts()[0].get_text() == "settled by this step"
    assert figure.get_suptitle() == "Settled"


@pytest.mark.parametrize("as_dim", [True, False])
def test_a_panel_for_each_task(as_dim: bool) -> None:
    other = xr.full_like(SETTLED, 1)
    if as_dim:
        both = xr.concat([SETTLED, other], xr.Variable("task", ["maze", "loop"]))
    else:
        both = xr.concat([SETTLED, other], "sample").assign_coords(
            task=("sample", ["maze"] * 4 + ["loop"] * 4)
        )
    maze, loop = commitment_steps(both, by="task").axes
    assert [ax.get_title("left") for ax in (maze, loop)] == ["maze", "loop"]
    assert [p.get_height() for p in loop.patches] == [0, 100, 0, 0, 0]
    assert maze.get_title("right") == "n = 4 samples × 2 seeds\nhalf by step 2"


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DitLensError, match=r"settled at step 4, but the steps are \[0, 2\]"):
        commitment_steps(SETTLED, steps=[0, 2])
    with pytest.raises(DitLensError, match="task is neither a dimension nor a coordinate on sample"):
        commitment_steps(SETTLED, by="task")
    with pytest.raises(DitLensError, match=r"too much for one picture.*arm"):
        commitment_steps(SETTLED.expand_dims(arm=2))
    with pytest.raises(DitLensError, match="no dimension sample"):
        commitment_steps(SETTLED.isel(sample=0))
    with pytest.raises(DitLensError, match="no dimension step"):
        commitment_steps(SETTLED, steps=xr.DataArray([0, 2, 4], dims="time"))
