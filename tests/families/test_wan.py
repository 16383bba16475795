"""What the Wan family says of a call is what the pipeline does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families import Tokens
from dit_lens.families.wan import REFUSED, WAN, look


def keywords(pipe, **more):
    latents = torch.zeros(1, 48, 3, 6, 4)
    return {
        "dit": pipe.dit,
        "latents": latents,
        "context": torch.zeros(1, 5, 8),
        "timestep": torch.tensor([500.0]),
        **more,
    }


@pytest.mark.parametrize(
    "more, rows",
    [
        ({"positive": True}, {"cond": slice(0, 1)}),
        ({"positive": False}, {"uncond": slice(0, 1)}),
        ({"cfg_merge": True, "context": torch.zeros(4, 5, 8)}, {"cond": slice(0, 2), "uncond": slice(2, 4)}),
    ],
)
def test_a_call_is_labelled_from_its_own_keywords(pipe, more, rows):
    seen = look(pipe, keywords(pipe, **more))
    found = seen.rows, seen.streams, seen.timestep, seen.expert
    assert found == (rows, {"video": Tokens((3, 3, 2))}, 500.0, "dit")


def test_the_expert_is_the_dit_that_was_called(two_experts):
    assert look(two_experts, keywords(two_experts, positive=True)).expert == "high"
    low = keywords(two_experts, positive=True) | {"dit": two_experts.dit2}
    assert look(two_experts, low).expert == "low"


def test_reference_latents_are_a_prefix_of_one_frame(pipe):
    seen = look(pipe, keywords(pipe, positive=True, reference_latents=torch.zeros(1, 48, 1, 6, 4)))
    assert seen.streams["video"] == Tokens((3, 3, 2), before=6)


def test_an_unlabelled_call_is_an_error(pipe):
    with pytest.raises(dl.DitLensError, match="branch is unknown"):
        look(pipe, keywords(pipe))


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_what_hooks_see_is_refused_with_its_reason(lens, sample, name):
    with pytest.raises(dl.DitLensError, match=f"{name}=.*not supported under tracing"):
        lens.run(sample, **{name: 1})


def test_sequence_parallelism_and_compiled_blocks_are_refused(tiny_pipe, sample):
    pipe = tiny_pipe()
    pipe.use_unified_sequence_parallel = True
    with pytest.raises(dl.DitLensError, match="use_usp"):
        dl.Lens(pipe).run(sample)
    pipe.use_unified_sequence_parallel = False
    pipe.dit.blocks[1] = torch.compile(pipe.dit.blocks[1])
    with pytest.raises(dl.DitLensError, match=r"dit\.blocks\.1.*compiled"):
        dl.Lens(pipe).run(sample)


def test_the_grids_are_those_of_the_pipelines_own_run(lens, pipe, sample):
    run = lens.run(sample, steps=1, record=[dl.energy])
    latent = WAN.latent_grid(pipe, sample)
    assert (
        tuple(run["latents"].sizes[d] for d in ("latent_channel", "frame", "latent_y", "latent_x")) == latent
    )
    assert tuple(run["energy"].sizes[d] for d in ("frame", "y", "x")) == WAN.token_grid(pipe.dit, latent)


def test_the_readout_of_the_last_block_is_the_models_velocity(lens, pipe, sample):
    seen, inner = {}, pipe.model_fn

    def model_fn(**keywords):
        seen.update(keywords)
        seen["velocity"] = inner(**keywords)
        return seen["velocity"]

    pipe.model_fn = model_fn
    try:
        run = lens.run(sample, steps=1, record=[(dl.hidden, dl.at(layer=2))], cfg_scale=1)
    finally:
        pipe.model_fn = inner
    state = torch.from_numpy(np.array(run["hidden"].isel(step=0, branch=0, layer=0).values)).flatten(0, 2)[
        None
    ]
    assert torch.equal(WAN.readout(pipe.dit, state, seen), seen["velocity"])


def test_a_path_that_is_not_there_names_itself(pipe):
    with pytest.raises(dl.DitLensError, match="holds no model at dit, dit2"):
        WAN.dits(SimpleNamespace())
    with pytest.raises(dl.DitLensError, match="no list of blocks"):
        WAN.dits(SimpleNamespace(dit=torch.nn.Linear(1, 1)))
    odd = SimpleNamespace(dit=SimpleNamespace(blocks=torch.nn.ModuleList([torch.nn.Linear(1, 1)])))
    with pytest.raises(dl.DitLensError, match=r"site 'self_attn' should be blocks\[0\]\.self_attn"):
        WAN.dits(odd)
