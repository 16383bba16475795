"""What cannot be traced rightly is refused, by name, with the remedy; what can be is not."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl

diffusers = pytest.importorskip("diffusers")


@contextlib.contextmanager
def registered(**classes):
    """Register classes of blocks for a while: class name to (class, hidden state's index, text's index)."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    TransformerBlockRegistry._register()
    before = dict(TransformerBlockRegistry._registry)
    for kind, hidden, text in classes.values():
        metadata = TransformerBlockMetadata(
            return_hidden_states_index=hidden, return_encoder_hidden_states_index=text
        )
        TransformerBlockRegistry._registry[kind] = metadata
    try:
        yield
    finally:
        TransformerBlockRegistry._registry.clear()
        TransformerBlockRegistry._registry.update(before)


def test_lists_that_are_known_in_part_are_refused_with_what_is_missing(build):
    from diffusers.models.transformers.transformer_chroma import ChromaTransformerBlock

    missing = r"transformer_blocks are known, those in .*single_transformer_blocks.*{}.*left out"
    with pytest.raises(dl.PlanError, match=missing.format("BriaSingleTransformerBlock")):
        dl.Lens(build("bria"))
    pipe = build("chroma")
    with pytest.raises(dl.PlanError, match=r"knows none of.*register every class"):
        dl.Lens(pipe)
    with (
        registered(chroma=(ChromaTransformerBlock, 1, 0)),
        pytest.raises(dl.PlanError, match=missing.format("ChromaSingleTransformerBlock")),
    ):
        dl.Lens(pipe)


def test_a_list_under_a_name_that_diffusers_does_not_know_is_not_dropped(made):
    from dit_lens.families.diffusers import anatomy

    dit = made("wan").pipe.transformer
    assert anatomy.block_lists(dit) == ("blocks",)
    dit.late_blocks = nn.ModuleList([nn.Linear(1, 1)])
    try:
        with pytest.raises(dl.PlanError, match=r"late_blocks.*Linear"):
            anatomy.block_lists(dit)
    finally:
        del dit.late_blocks
    dit.temporal_transformer_blocks = nn.ModuleList([dit.blocks[0]])
    try:
        with pytest.raises(dl.PlanError, match="run in turns"):
            anatomy.block_lists(dit)
    finally:
        del dit.temporal_transformer_blocks


def test_a_registered_place_that_is_wrong_is_an_error(build):
    """Bria's blocks return (text, image), and are registered as (image,)."""
    from diffusers.models.transformers.transformer_bria import BriaSingleTransformerBlock

    pipe = build("bria")
    sample = dl.Sample(prompt="a cat", size=(8, 16))
    with registered(single=(BriaSingleTransformerBlock, 0, None)):
        lens = dl.Lens(pipe)
        with pytest.raises(dl.CaptureError, match=r"BriaTransformerBlock is registered.*returns 2 tensors"):
            lens.run(sample, steps=1, cfg_scale=1.0, record=[dl.hidden], max_sequence_length=8)
    assert not any(m._forward_hooks for m in pipe.transformer.modules())


def test_the_registered_place_is_honoured_without_a_text(made):
    """A block that returns (something, hidden state): the first of the tuple is not the hidden state."""
    from dit_lens.families.diffusers import anatomy

    class Pair(nn.Module):
        def forward(self, hidden_states):
            return hidden_states[:, :2], hidden_states + 1

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Pair()])

    with registered(pair=(Pair, 1, None)):
        site, dit, seen = anatomy.sites(Pairs(), ("blocks",))["video"]["block"], Pairs(), []
        handle = site.attach(dit.blocks[0], lambda h: seen.append(h) or h * 2)
        first, state = dit.blocks[0](torch.zeros(1, 5, 3))
        handle.remove()
    assert seen[0].shape == (1, 5, 3) and (state == 2).all() and not first.any()
    assert (
        dl.Lens(made("wan").pipe).family.anatomy.sites["video"]["block"].item is None
    )  # returns the tensor itself


def test_another_stream_at_the_registered_place_is_an_error(made):
    case = made("cogvideox")
    kind = type(case.pipe.transformer.transformer_blocks[0])
    with registered(swapped=(kind, 1, 0)), pytest.raises(dl.CaptureError, match="mend the registration"):
        case.run(dl.Lens(case.pipe), steps=1, record=[dl.hidden])


@pytest.mark.parametrize(
    ("name", "words"),
    [("z_image", "noise_refiner"), ("hunyuan_still", r"HunyuanImagePipeline.*guider")],
)
def test_pipelines_that_are_not_supported_say_what_they_lack(build, name, words):
    with pytest.raises(dl.PlanError, match=words):
        dl.Lens(build(name))


def test_a_model_without_a_patch_size_says_so(made):
    from dit_lens.families.diffusers.latents import patch

    dit = made("wan").pipe.transformer

    class Without:
        config = type("Config", (), {})()

    class Flat:
        config = type("Config", (), {"patch_size": (1, 1)})()

    assert patch(made("wan").pipe, dit) == (1, 2, 2)
    for model in (Without(), Flat()):
        with pytest.raises(
            dl.PlanError, match=r"patch_size=.*does not say how many latent positions.*dl\.blocks"
        ):
            patch(made("wan").pipe, model)


# ---- what changes what hooks see


def hooks():
    from diffusers import hooks as h

    return {
        "mag cache": lambda dit: h.apply_mag_cache(
            dit, h.MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0] * 3, retention_ratio=0.0)
        ),
        "attention broadcast": lambda dit: h.apply_pyramid_attention_broadcast(
            dit,
            h.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
            ),
        ),
        "taylorseer": lambda dit: h.apply_taylorseer_cache(
            dit, h.TaylorSeerCacheConfig(cache_identifiers=[r"blocks\.\d+\.attn1"])
        ),
        "layer skip": lambda dit: h.apply_layer_skip(dit, h.LayerSkipConfig(indices=[1], fqn="blocks")),
        "first block cache": lambda dit: h.apply_first_block_cache(
            dit, h.FirstBlockCacheConfig(threshold=0.1)
        ),
    }


@pytest.mark.parametrize(
    "name", ["mag cache", "attention broadcast", "taylorseer", "layer skip", "first block cache"]
)
def test_caches_and_layer_skips_are_refused_by_name_and_can_be_taken_off(made, name):
    case = type(made("wan"))("wan")
    lens = dl.Lens(case.pipe)
    expected = case.run(lens, steps=1).video
    hooks()[name](case.pipe.transformer)
    with pytest.raises(
        dl.PlanError, match=r"transformer\S* has the diffusers hook '\w+'.*remove_hook"
    ) as error:
        case.run(lens, steps=1)
    registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(case.pipe.transformer)
    for _ in range(4):  # a cache has hooks of several names; the error names them one by one
        registry.remove_hook(str(error.value).split("'")[1], recurse=True)
        try:
            run = case.run(lens, steps=1)
        except dl.PlanError as more:
            error = type("Next", (), {"value": more})()
        else:
            break
    assert np.array_equal(run.video, expected)


def test_layerwise_casting_is_no_cache(made):
    case = type(made("wan"))("wan")
    case.pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    expected = case.bare(steps=1)
    run = case.run(dl.Lens(case.pipe), steps=1, record=[dl.hidden])
    assert np.array_equal(run.video, (expected * 255).round())


def test_a_compiled_transformer_is_called_compiled(made):
    case = type(made("wan"))("wan")
    lens, plain = dl.Lens(case.pipe), case.pipe.transformer
    case.pipe.transformer = torch.compile(plain, backend="eager")
    with pytest.raises(dl.PlanError, match="is compiled"):
        case.run(lens, steps=1)
    with pytest.raises(dl.PlanError, match="is compiled"):
        dl.Lens(case.pipe)
    case.pipe.transformer = plain
    plain.forward = torch.compile(plain.forward, backend="eager")
    with pytest.raises(dl.PlanError, match="is compiled"):
        case.run(lens, steps=1)
    del plain.forward
    case.run(lens, steps=1)


def test_another_architecture_in_the_pipeline_needs_another_lens(made, parts):
    case = type(made("wan"))("wan")
    lens = dl.Lens(case.pipe)
    case.pipe.transformer = type(made("ltx"))("ltx").pipe.transformer
    with pytest.raises(dl.PlanError, match=r"another architecture \(LTXVideoTransformer3DModel\).*dl\.Lens"):
        case.run(lens, steps=1)


def test_the_family_reads_the_transformer_that_the_pipeline_holds_now(made, parts):
    case = type(made("wan"))("wan")
    lens = dl.Lens(case.pipe)
    first, family = case.run(lens, steps=1, record=[dl.hidden])["hidden"].load(), lens.family
    case.pipe.transformer = parts.wan_transformer()
    again = case.run(lens, steps=1, record=[dl.hidden])["hidden"]
    fresh = case.run(dl.Lens(case.pipe), steps=1, record=[dl.hidden])["hidden"]
    assert np.array_equal(again.values, fresh.values) and not np.array_equal(again.values, first.values)
    case.pipe.transformer = parts.wan_transformer().to(torch.bfloat16)
    assert family.anatomy.dits(case.pipe)["dit"] is case.pipe.transformer
    assert family.anatomy.dtype(case.pipe) == torch.bfloat16
    case.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(dl.PlanError, match="a cache is enabled"):
        family.call.refuse(case.pipe, {})


def test_weights_in_host_memory_are_traced_alike(made):
    """Offloaded by accelerate: every module fetches its weights as it runs."""
    accelerate = pytest.importorskip("accelerate")
    case = type(made("sd3"))("sd3")
    expected = case.run(dl.Lens(case.pipe), steps=1, record=[dl.hidden])
    accelerate.cpu_offload(case.pipe.transformer, execution_device=torch.device("cpu"))
    run = case.run(dl.Lens(case.pipe, info={"weights": "tiny"}), steps=1, record=[dl.hidden])
    assert np.array_equal(run.video, expected.video)
    assert np.array_equal(run["hidden"].values, expected["hidden"].values)


def test_one_video_a_prompt_is_no_reason_to_refuse(made):
    case = made("wan")
    case.run(dl.Lens(case.pipe), steps=1, num_videos_per_prompt=1)
    with pytest.raises(dl.PlanError, match=r"num_videos_per_prompt=2.*run several seeds"):
        case.run(dl.Lens(case.pipe), steps=1, num_videos_per_prompt=2)
