"""A plot that is given what it does not draw says what it takes, at once; it never draws for an hour."""

import inspect
import time

import numpy as np
import pytest
import xarray as xr

from dit_lens import plot
from dit_lens.errors import DitLensError

LATENTS = xr.DataArray(
    np.zeros((20, 4, 24, 24, 48), np.float32),
    dims=["step", "frame", "latent_y", "latent_x", "latent_channel"],
    coords={"step": range(20), "sigma": ("step", np.linspace(1, 0.05, 20))},
    name="x0",
)
LABELS = {"value_label": "energy", "title": "t"}
DRAWS = {
    "channel_importance": {},
    "commitment_steps": {},
    "contact_sheet": {},
    "curves": {**LABELS, "along": "step"},
    "depth_sheet": {"layers": range(20), "steps": range(4)},
    "energy_across_layers": {},
    "energy_frames": {},
    "energy_vs_step": {},
    "heatmap": LABELS,
    "layer_grid": {},
    "pca_frames": {},
    "response": {**LABELS, "amounts": LATENTS, "along": "step", "amount_label": "a"},
    "schedule": {},
    "temporal_energy": {},
    "temporal_heatmap": {},
    "top_channels": {},
}
WRONG = {
    "latents of a run": LATENTS,
    "their values": LATENTS.values,
    "a dataset without what it needs": LATENTS.to_dataset(),
    "seven dimensions": xr.DataArray(np.zeros((2,) * 7), dims=list("abcdefg")),
    "a million positions": xr.DataArray(np.zeros(10**6), dims="q"),
    "a million numbers": np.zeros(10**6),
    "a number": 3.0,
    "nothing": None,
    "a text": "runs/maze.zarr",
    "texts": xr.DataArray(np.array(["a", "b"]), dims="step"),
    "complex numbers": xr.DataArray(np.zeros((2, 2), complex), dims=["step", "layer"]),
    "a mapping": {"step": [1, 2]},
}


def test_every_function_that_draws_is_here():
    assert set(DRAWS) == set(plot.__all__) - {"save", "read_video", "write_video", "overlay"}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", DRAWS)
def test_what_cannot_be_drawn_is_refused_at_once_by_the_name_of_the_plot(name, what):
    start = time.perf_counter()
    with pytest.raises(DitLensError, match=name.replace("depth_sheet", "(depth|contact)_sheet")):
        getattr(plot, name)(WRONG[what], **DRAWS[name])
    assert time.perf_counter() - start < 5


def test_a_schedule_says_what_it_takes_and_takes_it():
    with pytest.raises(
        DitLensError, match=r"schedule: sigmas is one number a step, \[step\]; this has \[step 20, frame 4"
    ):
        plot.schedule(LATENTS)
    figure = plot.schedule(LATENTS.sigma, 1000 * LATENTS.sigma, ["a"] * 20)
    assert len(figure.axes) == 3 and len(figure.axes[-1].patches) == 20
    assert len(plot.schedule(LATENTS.sigma.expand_dims("sample")).axes[-1].patches) == 20
    for timesteps in (LATENTS, np.zeros((20, 2)), "abc", [[1]] * 20):
        with pytest.raises(DitLensError, match="schedule"):
            plot.schedule(LATENTS.sigma, timesteps)


@pytest.mark.parametrize(
    "draw, words",
    [
        (
            lambda: plot.energy_frames(xr.DataArray(np.ones((999, 2, 2)), dims=["frame", "y", "x"])),
            "999 pictures are too",
        ),
        (
            lambda: plot.temporal_energy(xr.DataArray(np.ones((5000, 2)), dims=["sample", "frame"])),
            "5,000 positions along sample are too many",
        ),
        (
            lambda: plot.heatmap(xr.DataArray(np.ones((999, 2, 2)), dims=list("abc")), **LABELS),
            "999 panels are too many",
        ),
        (
            lambda: plot.heatmap(xr.DataArray(np.ones((9, 9999)), dims=list("ab")), annotate=True, **LABELS),
            "89,991 numbers to write are too many",
        ),
        (
            lambda: plot.contact_sheet(np.zeros((99, 99, 8, 8, 3), np.uint8), most_columns=None),
            "9,801 pictures are too many",
        ),
        (lambda: plot.schedule(np.ones(20_000)), "20,000 sigmas are too many"),
    ],
)
def test_more_than_one_figure_holds_is_refused_with_what_it_holds(draw, words):
    with pytest.raises(DitLensError, match=f"{words}.*select at most"):
        draw()


@pytest.mark.parametrize(
    "frames",
    [LATENTS, LATENTS.values, np.zeros((4, 8, 8), np.uint8), np.zeros((2, 8, 8, 4)), "a.mp4", None, 3],
)
def test_what_is_no_video_is_not_written(tmp_path, frames):
    with pytest.raises(DitLensError, match="write_video: "):
        plot.write_video(frames, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_every_argument_of_every_plot_has_a_name_in_its_page():
    for name in DRAWS:
        function = getattr(plot, name)
        for argument in inspect.signature(function).parameters:
            assert f"{argument}:" in inspect.getdoc(function), (name, argument)
