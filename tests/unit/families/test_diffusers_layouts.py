"""Latents stand in the order of each class; frames before the video, and frames cut off after decoding, are known."""

import numpy as np
import pytest
import torch

import dit_lens as dl

pytest.importorskip("diffusers")

STEPS = 2


def call(sample, **more):
    size = {"height": sample.height, "width": sample.width, "num_frames": sample.num_frames}
    return {
        "prompt": sample.prompt, "negative_prompt": sample.negative_prompt, **size, "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0), "output_type": "np", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def kandinsky(build):
    return build("kandinsky")


KANDINSKY = dl.Sample(prompt="a cat", negative_prompt="dog runs on", size=(32, 48), num_frames=9)


@pytest.mark.parametrize("cfg", [1.0, 3.0], ids=["unguided", "guided"])
def test_kandinsky_keeps_channels_last_and_a_condition_behind_them(kandinsky, watch_bare, cfg):
    transformer = kandinsky.transformer
    watch, out = watch_bare(
        kandinsky, transformer.visual_transformer_blocks, **call(KANDINSKY, guidance_scale=cfg)
    )
    branches = ["cond", "uncond"][: 1 + (cfg > 1)]
    run = dl.Lens(kandinsky).run(
        KANDINSKY, steps=STEPS, cfg_scale=cfg, record=[dl.hidden, dl.x0, dl.velocity], max_sequence_length=512
    )
    assert np.array_equal(run.video, (out.frames[0] * 255).round())
    assert run["latents"].shape == (STEPS, 3, 4, 6, 4) and run["hidden"].shape[3:] == (3, 2, 3, 24)
    assert [str(b) for b in run["hidden"].branch.values] == branches
    for step, (_, sample, output, _) in enumerate(watch.steps):
        assert np.array_equal(
            run["latents"].values[step], sample[0].numpy()
        )  # [frame, y, x, channel], as it stands
        assert np.array_equal(run["velocity"].values[step], output[0].numpy())
        for n, branch in enumerate(branches):
            number = step * len(branches) + n
            for layer, state in watch.states[number].items():
                values = run["hidden"].sel(step=step, branch=branch, layer=layer).values
                assert np.array_equal(values.reshape(state[0].shape), state[0].numpy())
    assert np.array_equal(run["x0"].values[-1], watch.steps[-1][3][0].numpy())


def test_a_region_of_kandinskys_latents_is_the_region_that_is_named(kandinsky):
    lens, place = dl.Lens(kandinsky), dl.at(site="latents", step=1, frame=2, y=3, x=5)
    plain = lens.run(KANDINSKY, steps=STEPS, cfg_scale=1.0)
    run = lens.run(KANDINSKY, steps=STEPS, cfg_scale=1.0, edit=[(dl.replace(value=7.0), place)])
    changed = (run["latents"].values[1] != plain["latents"].values[1]).any(-1)
    assert changed.sum() == 1 and changed[2, 3, 5]


def test_a_batch_of_kandinsky_is_its_run(kandinsky):
    lens = dl.Lens(kandinsky)
    run = lens.run(KANDINSKY, steps=STEPS, cfg_scale=3.0, record=[dl.x0])
    batch = lens.batch([(KANDINSKY, 0)], steps=STEPS, cfg_scale=3.0)
    out = batch.step(0, batch.noise)
    assert np.allclose(out.x0[0].permute(1, 2, 3, 0).numpy(), run["x0"].values[0], atol=1e-5)


def test_frames_and_channels_of_one_number_are_not_mistaken(build, watch_bare):
    """Four frames of four channels: sizes alone do not tell which is which."""
    pipe = build("kandinsky", visual_cond=False)
    sample = KANDINSKY.with_(num_frames=13)
    watch, _ = watch_bare(pipe, **call(sample, guidance_scale=1.0))
    run = dl.Lens(pipe).run(sample, steps=STEPS, cfg_scale=1.0)
    assert np.array_equal(run["latents"].values[0], watch.steps[0][1][0].numpy())


def test_a_layout_that_nothing_tells_is_refused():
    from dit_lens.families.diffusers.latents import layout_of

    class Config:
        out_channels = 4

    class Unheard(torch.nn.Module):
        config = Config()

    assert layout_of(Unheard(), torch.zeros(1, 4, 3, 6, 8)) == "bcfyx"
    assert layout_of(Unheard(), torch.zeros(1, 3, 4, 6, 8)) == "bfcyx"
    assert layout_of(Unheard(), torch.zeros(1, 3, 6, 8, 4)) == "bfyxc"
    for shape in ((1, 4, 4, 6, 8), (1, 3, 5, 6, 8)):
        with pytest.raises(
            dl.PlanError, match=r"which dimension of its latents.*is the channel is not known"
        ):
            layout_of(Unheard(), torch.zeros(shape))


# ---- frames before the video


@pytest.fixture(scope="module")
def vace(build):
    return build("vace")


VACE = dl.Sample(prompt="a cat", negative_prompt="dog runs", size=(32, 48), num_frames=9)


@pytest.mark.parametrize("references", [0, 1, 2])
def test_references_of_vace_stand_before_the_video(vace, pipes, watch_bare, references):
    images = [pipes.gray((32, 48), level) for level in (20, 200)][:references] or None
    options = {"reference_images": images, **pipes.SHORT}
    watch, out = watch_bare(vace, vace.transformer.blocks, **call(VACE, guidance_scale=3.0, **options))
    lens = dl.Lens(vace)
    run = lens.run(VACE, steps=STEPS, cfg_scale=3.0, record=[dl.hidden, dl.x0, dl.velocity], **options)
    assert np.array_equal(run.video, (out.frames[0] * 255).round())
    assert run["latents"].shape == (STEPS, 3, 4, 6, 16) and run["hidden"].shape[3:6] == (3, 2, 3)
    for step, (_, sample, output, _) in enumerate(watch.steps):
        assert sample.shape[2] == 3 + references
        for name, value in (("latents", sample), ("velocity", output)):
            expected = value[0, :, references:].permute(1, 2, 3, 0).numpy()
            assert np.array_equal(run[name].values[step], expected)
        for n, branch in enumerate(("cond", "uncond")):
            for layer, state in watch.states[2 * step + n].items():
                values = run["hidden"].sel(step=step, branch=branch, layer=layer).values
                assert np.array_equal(values.reshape(-1, 24), state[0, references * 6 :].numpy())
    frames = lens.decode(run["x0"].isel(step=-1))
    assert frames.shape[0] == 9 and np.array_equal(frames, run.video)


def test_edits_of_vace_leave_its_references_alone(vace, pipes, watch_bare):
    options = {"reference_images": [pipes.gray((32, 48))], **pipes.SHORT}
    lens, seen = dl.Lens(vace), []
    handle = vace.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    original = vace.transformer.patch_embedding.forward
    inputs = []
    vace.transformer.patch_embedding.forward = lambda x: (inputs.append(x.clone()), original(x))[1]
    try:
        edit = [(lambda h, at: h + 1, dl.at(site="latents", step=0))]
        lens.run(VACE, steps=1, cfg_scale=1.0, edit=edit, **options)
    finally:
        handle.remove()
        del vace.transformer.patch_embedding.forward
    assert torch.equal(inputs[0][:, :, :1], seen[0][:, :, :1])
    assert torch.equal(inputs[0][:, :, 1:], seen[0][:, :, 1:] + 1)
    with pytest.raises(dl.PlanError, match=r"6 tokens before its latents.*use lens\.run"):
        lens.batch([(VACE, 0)], steps=1, cfg_scale=1.0, **options)


def test_hunyuans_image_frame_is_cut_off_after_decoding(build, pipes):
    pipe = build("hunyuan_image", "latent_concat")
    sample = dl.Sample(
        prompt="a cat", negative_prompt="dog", image=pipes.gray((16, 32)), num_frames=9, size=(16, 32)
    )
    lens, extra = dl.Lens(pipe), pipes.hunyuan_keywords()
    run = lens.run(sample, steps=STEPS, cfg_scale=2.0, record=[dl.x0], **extra)
    expected = pipe(**{**call(sample, image=sample.image, true_cfg_scale=2.0), **extra}).frames[0]
    assert np.array_equal(run.video, (expected * 255).round()) and len(run.video) == 5
    assert np.array_equal(lens.decode(run["x0"].isel(step=-1)), run.video)
