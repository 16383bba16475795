"""What the Wan family says of a call is what the pipeline does."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families.diffsynth.wan import REFUSED, WAN, look
from dit_lens.families.site import Tokens


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
    assert found == (rows, {"video": Tokens((3, 3, 2)), "text": Tokens((1, 1, 5))}, 500.0, "dit")


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


SUPPORTED = {
    *("prompt", "negative_prompt", "input_image", "end_image", "input_video", "denoising_strength"),
    *("control_video", "reference_image", "camera_control_direction", "camera_control_speed"),
    *(
        "camera_control_origin",
        "seed",
        "rand_device",
        "height",
        "width",
        "num_frames",
        "cfg_scale",
        "cfg_merge",
    ),
    *("switch_DiT_boundary", "num_inference_steps", "sigma_shift", "motion_bucket_id", "tiled", "tile_size"),
    *("tile_stride", "framewise_decoding", "progress_bar_cmd", "output_type"),
}
IDLE = {
    *("audio_sample_rate", "vace_scale", "animate2_prompt_ref", "animate2_offload_kv", "animate2_log_scale"),
    *("vap_prompt", "negative_vap_prompt", "tea_cache_model_id", "wantodance_fps"),
}
"""These do nothing without one that is refused, and have defaults."""


def test_every_argument_of_the_pipelines_call_is_supported_or_refused(pipe):
    known = inspect.signature(type(pipe).__call__).parameters
    assert SUPPORTED | IDLE | set(REFUSED) | {"self"} == set(known)
    assert not SUPPORTED & set(REFUSED) and not IDLE & set(REFUSED)
    assert all(known[name].default is None for name in REFUSED)


def test_the_schedule_that_is_spelt_out_is_the_pipelines_own(pipe, sample):
    known = inspect.signature(type(pipe).__call__).parameters
    ours = WAN.call.arguments(sample, 0, 3, 1.0, {})
    for name in ("sigma_shift", "switch_DiT_boundary"):
        assert ours[name] == known[name].default
    assert WAN.call.arguments(sample, 0, 3, 1.0, {"sigma_shift": 8.0})["sigma_shift"] == 8.0


def test_an_argument_that_the_pipeline_does_not_take_is_refused_before_anything_runs(lens, sample):
    with pytest.raises(dl.DitLensError, match="no argument 'sigma_shft': did you mean 'sigma_shift'"):
        lens.run(sample, sigma_shft=3.0)


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
    pipe = tiny_pipe()
    pipe.compile_pipeline()
    with pytest.raises(dl.DitLensError, match=r"dit\.blocks\.0 is compiled"):
        dl.Lens(pipe).run(sample)


def test_models_that_are_run_by_another_function_are_refused(tiny_pipe, sample):
    from diffsynth.models.wan_video_dit import WanModel

    class LongCatVideoTransformer3DModel(WanModel):
        pass

    pipe = tiny_pipe()
    pipe.dit.__class__ = LongCatVideoTransformer3DModel
    with pytest.raises(dl.DitLensError, match=r"dit is a LongCat.*another function"):
        dl.Lens(pipe).run(sample)
    pipe = tiny_pipe()
    pipe.dit.wantodance_enable_global = True  # its unconditional branch skips the 9th layer
    with pytest.raises(dl.DitLensError, match=r"WanToDance model.*skips the 9th"):
        dl.Lens(pipe).run(sample)
    pipe = tiny_pipe()
    pipe.vap = torch.nn.Linear(1, 1)
    with pytest.raises(dl.DitLensError, match="vap is loaded"):
        dl.Lens(pipe).run(sample)


def test_an_image_model_without_its_image_or_its_encoder_is_refused(tiny_pipe, sample):
    pipe = tiny_pipe()
    with pytest.raises(dl.DitLensError, match="takes 100 channels, 48 of latents and the rest of an image"):
        dl.Lens(pipe).run(replace(sample, image=None, size=(48, 32)))
    pipe.dit.has_image_input = pipe.dit.require_clip_embedding = True
    with pytest.raises(dl.DitLensError, match="prompt would be read as an image"):
        dl.Lens(pipe).run(sample)


def test_the_grids_are_those_of_the_pipelines_own_run(lens, pipe, sample):
    run = lens.run(sample, steps=1, record=[dl.energy])
    latent = WAN.anatomy.latent_grid(pipe, sample)
    assert (
        tuple(run["latents"].sizes[d] for d in ("latent_channel", "frame", "latent_y", "latent_x")) == latent
    )
    assert tuple(run["energy"].sizes[d] for d in ("frame", "y", "x")) == WAN.anatomy.token_grid(
        pipe.dit, latent
    )


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
    assert torch.equal(WAN.flow.readout(pipe.dit, state, seen), seen["velocity"])


def test_a_path_that_is_not_there_names_itself(pipe):
    with pytest.raises(dl.DitLensError, match="holds no model at dit, dit2"):
        WAN.anatomy.dits(SimpleNamespace())
    with pytest.raises(dl.DitLensError, match="no list of blocks"):
        WAN.anatomy.check("dit", torch.nn.Linear(1, 1))
    odd = SimpleNamespace(blocks=torch.nn.ModuleList([torch.nn.Linear(1, 1)]))
    with pytest.raises(dl.DitLensError, match=r"site 'self_attn' should be blocks\[0\]\.self_attn"):
        WAN.anatomy.check("dit", odd)
