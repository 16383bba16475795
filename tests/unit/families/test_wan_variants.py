"""Every variant of Wan, by its real classes at a tiny size with random weights, through the real pipeline.

What a run says is checked against recorders of these tests' own: plain hooks, and wrapped calls of the pipeline.
"""

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl
from dit_lens.families.diffsynth.wan import WAN

PLAIN = {"in_dim": 16, "out_dim": 16, "has_image_input": False, "require_clip_embedding": True}
I2V = {**PLAIN, "in_dim": 36}
TI2V = {
    "in_dim": 48,
    "out_dim": 48,
    "has_image_input": False,
    "seperated_timestep": True,
    "require_clip_embedding": False,
    "require_vae_embedding": False,
    "fuse_vae_embedding_in_latents": True,
}
VARIANTS = {
    "wan2.1-t2v": (PLAIN, 1),
    "wan2.1-i2v": ({**I2V, "has_image_input": True}, 1),
    "wan2.1-flf2v": ({**I2V, "has_image_input": True, "has_image_pos_emb": True}, 1),
    "wan2.1-fun-control": ({**PLAIN, "in_dim": 48, "has_image_input": True, "has_ref_conv": True}, 1),
    "wan2.2-i2v": ({**I2V, "require_clip_embedding": False}, 2),
    "wan2.2-t2v": (PLAIN, 2),
    "wan2.2-ti2v": (TI2V, 1),
    "wan2.2-ti2v without an image": (TI2V, 1),
    "wan2.1-v2v": (PLAIN, 1),
    "wan2.1-speed": (PLAIN, 1),
    "wan2.1-fun-camera": (
        {**PLAIN, "in_dim": 32, "has_image_input": True, "add_control_adapter": True},
        1,
    ),
}
STEPS = 3


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sample_of(name):
    image = picture(0) if name.endswith(("i2v", "ti2v", "flf2v", "control", "camera")) else None
    return dl.Sample(prompt="solve the maze", image=image, num_frames=9, size=(64, 32))


def arguments_of(name):
    extra = {
        "wan2.1-flf2v": {"end_image": picture(1)},
        "wan2.1-fun-control": {
            "reference_image": picture(2),
            "control_video": [picture(3 + i) for i in range(9)],
        },
        "wan2.1-v2v": {"input_video": [picture(3 + i) for i in range(9)], "denoising_strength": 0.7},
        "wan2.1-speed": {"motion_bucket_id": 7},
        "wan2.1-fun-camera": {"camera_control_direction": "Left"},
    }
    return {"steps": STEPS, "cfg_scale": 2.0, **extra.get(name, {})}


def tiny_vae(latent_channels):
    from diffsynth.core.vram.initialization import skip_model_initialization
    from diffsynth.models import wan_video_vae as vae

    with (
        skip_model_initialization()
    ):  # the class fixes its inner size: made empty, then filled with a small one
        whole = vae.WanVideoVAE() if latent_channels == 16 else vae.WanVideoVAE38()
    small = (
        vae.VideoVAE_(dim=8, z_dim=16)
        if latent_channels == 16
        else vae.VideoVAE38_(dim=8, dec_dim=8, z_dim=48)
    )
    whole.model = small
    return whole


def tiny_clip():
    from diffsynth.core.vram.initialization import skip_model_initialization
    from diffsynth.models.wan_video_image_encoder import WanImageEncoder, clip_xlm_roberta_vit_h_14

    with skip_model_initialization():
        encoder = WanImageEncoder()
    text = {"vocab_size": 8, "text_dim": 8, "text_heads": 1, "text_layers": 1, "max_text_len": 4}
    encoder.model = clip_xlm_roberta_vit_h_14(
        vision_layers=2, vision_mlp_ratio=1, vision_heads=4, embed_dim=16, **text
    )
    return encoder


def make(name):
    with contextlib.redirect_stdout(io.StringIO()):
        from diffsynth.models.wan_video_dit import WanModel
        from diffsynth.models.wan_video_motion_controller import WanMotionControllerModel

        from dit_lens.models import organism

        pipe = organism.pipeline(weights=None)
    config, experts = VARIANTS[name]
    torch.manual_seed(0)
    sizes = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 3}
    for attribute in ("dit", "dit2")[:experts]:
        setattr(pipe, attribute, WanModel(**{**organism.CONFIG, **sizes, **config}))
    pipe.vae = tiny_vae(config["out_dim"])
    pipe.height_division_factor = pipe.width_division_factor = pipe.vae.upsampling_factor * 2
    pipe.text_encoder.table.normal_()
    if config["has_image_input"]:
        pipe.image_encoder = tiny_clip()
    if name == "wan2.1-speed":
        pipe.motion_controller = WanMotionControllerModel(freq_dim=16, dim=64)
    pipe.eval().requires_grad_(False)
    return pipe.to(device="cpu", dtype=torch.float32)


class Recorder:
    """What the pipeline does, step by step, seen by plain hooks and by wrapped calls."""

    def __init__(self, pipe):
        self.pipe, self.states, self.calls, self.steps = pipe, {}, [], []
        self.decoded = None

    def __enter__(self):
        pipe = self.pipe
        self.inner = pipe.model_fn, pipe.scheduler.step, pipe.vae.decode
        pipe.model_fn, pipe.scheduler.step, pipe.vae.decode = self.model_fn, self.step, self.decode
        self.handles = [
            block.register_forward_hook(self.keep(layer))
            for dit in (pipe.dit, pipe.dit2)
            if dit is not None
            for layer, block in enumerate(dit.blocks)
        ]
        return self

    def __exit__(self, *_):
        pipe = self.pipe
        pipe.model_fn = self.inner[0]
        del pipe.scheduler.step, pipe.vae.decode
        for handle in self.handles:
            handle.remove()

    def keep(self, layer):
        def hook(module, inputs, output):
            self.states[len(self.steps), self.branch, layer] = output.clone()

        return hook

    def model_fn(self, **keywords):
        self.branch = "cond" if keywords["positive"] else "uncond"
        velocity = self.inner[0](**keywords)
        expert = "high" if keywords["dit"] is self.pipe.dit else "low"
        self.calls.append((len(self.steps), self.branch, expert, keywords, velocity))
        return velocity

    def step(self, velocity, timestep, latents):
        after = self.inner[1](velocity, timestep, latents)
        final = self.inner[1](velocity, timestep, latents, to_final=True)
        self.steps.append({"timestep": float(timestep), "latents": latents.clone(), "final": final})
        return after

    def decode(self, latents, **keywords):
        self.decoded = latents.clone()
        return self.inner[2](latents, **keywords)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    pipe, name = make(request.param), request.param
    keywords = arguments_of(name)
    given = {k: v for k, v in keywords.items() if k not in ("steps", "cfg_scale")}
    call = WAN.call.arguments(
        sample_of(name), 0, STEPS, 2.0, {"progress_bar_cmd": lambda steps: steps, **given}
    )
    with Recorder(pipe) as seen:
        frames = pipe(**call)
    bare = np.stack([np.asarray(f) for f in frames])
    lens = dl.Lens(pipe)
    record = [(dl.hidden, dl.at(site=site)) for site in lens.sites] + [dl.x0, dl.velocity]
    sites = [*lens.sites, "latents", "velocity", "x0"]
    run = lens.run(sample_of(name), record=record, edit=[(keep, dl.at(site=s)) for s in sites], **keywords)
    return name, lens, run, seen, bare


def keep(h, at):
    return h.clone()


def grid_of(dit, latents):
    return latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2


def latent(run, name, step):
    """Return what a run recorded on the latent grid, [row, channel, frame, y, x]."""
    return torch.from_numpy(np.array(run[name].sel(step=step).values)).permute(3, 0, 1, 2)[None]


def test_tracing_changes_nothing_and_leaves_nothing_behind(variant, left_behind):
    _, lens, run, _, bare = variant
    assert np.array_equal(run.video, bare) and run.complete
    assert bare.std() > 10
    assert left_behind(lens.pipe) == []


def test_every_state_stands_under_the_label_that_plain_hooks_give_it(variant):
    name, lens, run, seen, _ = variant
    experts = VARIANTS[name][1]
    assert len(seen.calls) == 2 * STEPS and len(seen.states) == 2 * STEPS * lens.layers
    for step, branch, expert, keywords, _ in seen.calls:
        assert str(run.dataset["expert"].values[step]) == (expert if experts == 2 else "dit")
        assert float(run.dataset["timestep"].values[step]) == seen.steps[step]["timestep"]
        grid = grid_of(keywords["dit"], keywords["latents"])
        for layer in range(lens.layers):
            tokens = seen.states[step, branch, layer][0]
            ours = run["hidden"].sel(step=step, branch=branch, layer=layer)
            assert ours.shape[:3] == grid
            expected = tokens[len(tokens) - np.prod(grid) :].unflatten(0, grid)
            assert np.array_equal(ours.values, expected.numpy())
    assert experts == 1 or set(run.dataset["expert"].values) == {"high", "low"}
    prefix = seen.states[0, "cond", 0].shape[1] - np.prod(grid)
    assert prefix == (grid[1] * grid[2] if name == "wan2.1-fun-control" else 0)


def test_image_tokens_are_in_the_context_and_not_among_the_tokens(variant):
    name, lens, _, seen, _ = variant
    keywords = seen.calls[0][3]
    with_clip = "clip_feature" in keywords and lens.pipe.dit.has_image_input
    assert with_clip == (name in ("wan2.1-i2v", "wan2.1-flf2v", "wan2.1-fun-control", "wan2.1-fun-camera"))
    if with_clip:
        changed = {**keywords, "clip_feature": keywords["clip_feature"] * 0.5}
        assert not torch.equal(lens.pipe.model_fn(**changed), seen.calls[0][4])


def test_x0_is_the_schedulers_own_last_step(variant):
    name, _, run, seen, _ = variant
    clean = seen.calls[0][3].get("first_frame_latents")
    assert (clean is not None) == (name == "wan2.2-ti2v")
    for step, expected in enumerate(seen.steps):
        final = expected["final"].clone()
        if clean is not None:  # what the pipeline makes of it: that frame is given
            final[:, :, :1] = clean
        assert torch.equal(latent(run, "x0", step), final)
        assert torch.equal(latent(run, "latents", step), expected["latents"])
    assert torch.equal(latent(run, "x0", STEPS - 1), seen.decoded)


def test_an_edit_at_every_site_changes_the_outcome(variant, monkeypatch):
    name, lens, run, seen, _ = variant
    # The outcome is read off the latents: nothing need be decoded.
    monkeypatch.setattr(lens.pipe.vae, "decode", lambda latents, **_: torch.zeros(1, 3, 9, 64, 32))
    for site in [*lens.sites, "latents", "velocity", "x0"]:
        edited = lens.run(
            sample_of(name),
            record=[dl.x0],
            edit=[
                (dl.add_noise(scale=1.0), dl.at(site=site, step=1))
            ],  # q and k are normed: scaling is no edit
            output_type="floatpoint",
            **arguments_of(name),
        )
        assert not torch.allclose(latent(edited, "x0", STEPS - 1), seen.decoded, atol=1e-4), site
        assert torch.equal(latent(edited, "x0", 0), latent(run, "x0", 0)), site


def test_the_readout_of_the_last_block_is_the_models_own_velocity(variant):
    _, lens, run, seen, _ = variant
    for step, branch, _, keywords, velocity in seen.calls:
        state = run["hidden"].sel(step=step, branch=branch, layer=lens.layers - 1).values
        tokens = torch.from_numpy(np.array(state)).flatten(0, 2)[None]
        assert torch.equal(WAN.flow.readout(keywords["dit"], tokens, keywords), velocity)


def test_rows_that_go_through_together_are_their_single_runs(variant):
    name, lens, run, _, _ = variant
    sample, keywords = sample_of(name), arguments_of(name)
    if name == "wan2.1-fun-camera":
        for refused in (
            lambda: lens.batch([(sample, 0)], **keywords),
            lambda: lens.run(sample, cfg_merge=True, **keywords),
        ):
            with pytest.raises(dl.PlanError, match="camera_control_direction: DiffSynth keeps the first row"):
                refused()
        return
    batch = lens.batch([(sample, 0), (sample, 7)], **keywords)
    x, last = batch.noise, lens.layers - 1
    for step in range(STEPS):
        out = batch.step(step, x, watch=[("block", "uncond", last)])
        hidden = run["hidden"].sel(step=step, branch="uncond", layer=last).values
        assert np.allclose(out.states["block", "uncond", last][0].numpy(), hidden, rtol=0, atol=1e-3)
        assert torch.allclose(out.x0[:1], latent(run, "x0", step), rtol=0, atol=1e-4)
        x = out.latents
    other = lens.run(sample, 7, record=[dl.x0], **keywords)
    assert torch.allclose(x[1:], latent(other, "x0", STEPS - 1), rtol=0, atol=1e-4)
    assert not torch.allclose(x[0], x[1], atol=1e-2)


@pytest.mark.parametrize("name", ["wan2.1-t2v", "wan2.1-i2v", "wan2.2-ti2v", "wan2.1-fun-control"])
def test_a_merged_batch_is_split_into_its_branches(name):
    lens, keywords = dl.Lens(make(name)), arguments_of(name)
    apart = lens.run(sample_of(name), record=[dl.hidden], **keywords)
    merged = lens.run(sample_of(name), record=[dl.hidden], cfg_merge=True, **keywords)
    assert np.allclose(apart["hidden"].values, merged["hidden"].values, rtol=0, atol=1e-3)
