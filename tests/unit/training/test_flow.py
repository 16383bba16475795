"""What the training takes from the pipeline is the pipeline's: noise levels, the condition, a whole run."""

import numpy as np
import pytest
import torch

import dit_lens as dl
import flow
from dit_lens.models.organism import table
from feed import encode
from trainer import load_organism


@pytest.fixture(scope="module")
def lens():
    return dl.load("organism-full", weights="random")


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_levels_are_the_schedulers(lens, steps):
    lens.specimen.pipe.scheduler.set_timesteps(steps, shift=5.0)
    levels = flow.schedule(steps)
    torch.testing.assert_close(levels[:-1], lens.specimen.pipe.scheduler.sigmas.float())
    assert levels[-1] == 0


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.875, 1.0), (0.0, 0.875)])
def test_levels_are_drawn_between_two(levels):
    drawn = flow.draw_levels(4000, *levels, torch.device("cpu"))
    assert levels[0] <= drawn.min() and drawn.max() <= levels[1] + 1e-6
    # Even before the shift: the median is where half of the time lies.
    low, high = (level / (5 - 4 * level) for level in levels)
    assert abs((drawn < flow.shifted(torch.tensor((low + high) / 2))).float().mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("name", "scale"),
    [("full", 1.0), ("full", 3.0), ("causal", 1.0), ("few4", 1.0), ("two-expert", 1.0), ("lora", 1.0)],
)
def test_a_run_is_the_pipelines(name, scale):
    lens = dl.load(f"organism-{name}")
    sample, pipe = dl.tasks.latin(1_000_003), lens.specimen.pipe
    run = lens.run(sample, seed=3, steps=3, cfg_scale=scale, record=[dl.x0])
    network = load_organism(name, table.FOLDER, "cpu")
    codec = pipe.vae
    still = encode(codec, torch.from_numpy(sample.truth[:1])[None]).float()
    noise = torch.randn((1, 48, 7, 8, 8), generator=torch.Generator("cpu").manual_seed(3))
    given = flow.condition(still.expand(-1, -1, 7, -1, -1), flow.grey_latents(codec))
    context, empty = (pipe.text_encoder(*pipe.tokenizer(prompt)) for prompt in (sample.prompt, ""))
    with torch.no_grad():
        path = flow.trajectory(flow.guided(network, scale, empty), noise, given, context, 3)
    ours = path[-1][0].permute(1, 2, 3, 0).numpy()
    np.testing.assert_allclose(ours, run["x0"].isel(step=-1).squeeze().values, atol=2e-3)


def test_levels_of_a_step_and_velocity_make_x0():
    x, v = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2)
    sigma = torch.tensor([0.3, 0.8])
    noised = flow.noised(x, v, sigma)
    torch.testing.assert_close(noised - sigma.view(-1, 1, 1, 1, 1) * (v - x), x)
