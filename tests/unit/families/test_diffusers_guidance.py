"""Guidance belongs to the pipeline: which call is which branch, and what a batch makes of the branches."""

import functools

import numpy as np
import pytest
import torch

import dit_lens as dl

diffusers = pytest.importorskip("diffusers")

TEXTS = {"prompt": "a cat sits on the mat", "negative_prompt": "dog runs"}
STEPS = 2


def packed(pipe, x, size):
    return pipe._unpack_latents(x, *size, pipe.vae_scale_factor)[0].permute(1, 2, 0)[None].numpy()


def check_branches(lens, run, watch, guided, read):
    """Check that the pipeline's own formula gives the guided velocity with the calls as they are labelled."""
    hidden = run["hidden"].load()
    assert sorted(str(b) for b in hidden.branch.values) == ["cond", "uncond"]

    def call_of(step, branch, layer):
        """Return the number of the bare call that has a branch's states."""
        state = hidden.sel(step=step, branch=branch, layer=layer).values.reshape(-1)
        calls = (2 * step, 2 * step + 1)
        return next(n for n in calls if np.array_equal(watch.states[n][layer].reshape(-1), state))

    for step, (_, _, output, _) in enumerate(watch.steps):
        calls = {
            branch: {call_of(step, branch, layer) for layer in range(lens.layers)}
            for branch in ("cond", "uncond")
        }
        (first,), (second,) = calls["cond"], calls["uncond"]
        cond, uncond = watch.outputs[first], watch.outputs[second]
        assert torch.equal(guided(cond, uncond), output)
        assert not torch.equal(guided(uncond, cond), output)
        assert np.array_equal(read(output), run["velocity"].values[step])


# ---- two calls a step that have no name


def test_wan_video_to_video_is_told_by_its_text(build, pipes, watch_bare):
    pipe = build("wan_video")
    frames = [pipes.gray((32, 48), level) for level in range(0, 250, 28)]
    sample = dl.Sample(**TEXTS, size=(32, 48), num_frames=9)
    extra = {"video": frames, "strength": 1.0, **pipes.SHORT}
    keywords = {
        **TEXTS, "height": 32, "width": 48, **extra, "num_inference_steps": STEPS, "guidance_scale": 3.0,
        "generator": torch.Generator().manual_seed(0), "output_type": "np",
    }  # fmt: skip
    outputs = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    watch, out = watch_bare(pipe, pipe.transformer.blocks, **keywords)
    handle.remove()
    watch.outputs = outputs
    lens = dl.Lens(pipe)
    run = lens.run(sample, steps=STEPS, cfg_scale=3.0, record=[dl.hidden, dl.velocity], **extra)
    assert np.array_equal(run.video, (out.frames[0] * 255).round())
    check_branches(
        lens, run, watch, lambda c, u: u + 3.0 * (c - u), lambda x: x[0].permute(1, 2, 3, 0).numpy()
    )
    with pytest.raises(dl.PlanError, match=r"strength=0\.8.*Give strength=1\.0"):
        lens.run(sample, steps=STEPS, **{**extra, "strength": 0.8})
    same = sample.with_(negative_prompt=sample.prompt)
    with pytest.raises(
        dl.PlanError, match=r"more than once a step without naming.*encoded alike.*cfg_scale=1"
    ):
        lens.run(same, steps=STEPS, cfg_scale=3.0, **extra)
    lens.run(same, steps=STEPS, cfg_scale=1.0, **extra)


@pytest.mark.parametrize("name", ["FluxImg2ImgPipeline", "FluxKontextPipeline"])
def test_flux_with_an_image_is_told_by_its_text(build, pipes, watch_bare, name):
    pipe = build("flux_like", name)
    sample = dl.Sample(**TEXTS, size=(8, 16), image=pipes.gray((8, 16)))
    options = {"strength": 1.0} if "Img2Img" in name else {"max_area": 128, "_auto_resize": False}
    extra = {**options, **pipes.SHORT}
    keywords = {
        **TEXTS, "image": sample.image, "height": 8, "width": 16, **extra, "num_inference_steps": STEPS,
        "true_cfg_scale": 3.0, "generator": torch.Generator().manual_seed(0), "output_type": "np",
    }  # fmt: skip
    outputs, states = [], []
    tokens = 4 * 8  # of the picture that is made; those of the picture that is given stand behind them
    handles = [
        pipe.transformer.register_forward_pre_hook(lambda module, args: states.append({})),
        pipe.transformer.register_forward_hook(lambda module, args, out: outputs.append(out[0][:, :tokens])),
    ]
    for layer, block in enumerate(
        [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    ):
        handles.append(
            block.register_forward_hook(
                lambda module, args, out, layer=layer: states[-1].update({layer: out[1][:, :tokens]})
            )
        )
    watch, out = watch_bare(pipe, (), **keywords)
    for handle in handles:
        handle.remove()
    watch.outputs, watch.states = outputs, states
    lens = dl.Lens(pipe)
    run = lens.run(sample, steps=STEPS, cfg_scale=3.0, record=[dl.hidden, dl.velocity], **extra)
    assert np.array_equal(run.video, (out.images * 255).round())
    check_branches(lens, run, watch, lambda c, u: u + 3.0 * (c - u), lambda x: packed(pipe, x, (8, 16)))


def test_a_name_and_a_text_that_contradict_each_other_are_an_error(made):
    from dit_lens.families.diffusers.branches import Prompts, single

    case = made("wan")
    prompts = Prompts()
    prompts.embeddings = {"cond": torch.ones(1, 2, 3), "uncond": torch.zeros(1, 2, 3)}
    assert single(case.pipe, prompts, torch.ones(1, 2, 3), "cond", set()) == "cond"
    with pytest.raises(dl.PlanError, match="calls a forward 'cond' and gives it the text of 'uncond'"):
        single(case.pipe, prompts, torch.zeros(1, 2, 3), "cond", set())


# ---- embedded guidance is not classifier-free guidance


@pytest.fixture(scope="module")
def fill(build):
    return build("flux_like", "FluxFillPipeline", 12, guidance_embeds=True)


def fill_keywords(pipes):
    mask = pipes.Image.new("L", (16, 8), 255)
    return {"mask_image": mask, **pipes.SHORT}


def test_embedded_guidance_is_one_branch_and_is_passed_on(fill, pipes):
    sample = dl.Sample(prompt=TEXTS["prompt"], size=(8, 16), image=pipes.gray((8, 16)))
    lens, extra = dl.Lens(fill), fill_keywords(pipes)
    runs = {}
    for scale in (None, 5.0):
        embedded = {} if scale is None else {"guidance_scale": scale}
        expected = fill(
            prompt=sample.prompt, image=sample.image, height=8, width=16, num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0), output_type="np", **extra, **embedded,
        ).images  # fmt: skip
        runs[scale] = lens.run(sample, steps=STEPS, record=[dl.hidden, dl.x0], **extra, **embedded)
        assert np.array_equal(runs[scale].video, (expected * 255).round())
        assert [str(b) for b in runs[scale]["hidden"].branch.values] == ["cond"]
    assert not np.array_equal(runs[None]["x0"].values, runs[5.0]["x0"].values)
    with pytest.raises(dl.PlanError, match=r"no classifier-free guidance.*guidance_scale="):
        lens.run(sample, steps=STEPS, cfg_scale=3.0, **extra)
    batch = lens.batch([(sample, 0)], steps=STEPS, guidance_scale=5.0, **extra)
    x0 = batch.step(0, batch.noise).x0[0].permute(1, 2, 3, 0).numpy()
    assert np.allclose(x0, runs[5.0]["x0"].values[0], atol=1e-5)


# ---- what a batch makes of the branches


@pytest.fixture
def euler(made):
    """Return a function that gives a case a scheduler which keeps nothing."""
    undo = []

    def case(name):
        out = made(name)
        undo.append((out.pipe, out.pipe.scheduler))
        if name.startswith("wan"):
            out.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        return out

    yield case
    for pipe, scheduler in undo:
        pipe.scheduler = scheduler


def check_batch(lens, sample, **options):
    run = lens.run(sample, seed=3, steps=3, record=[dl.x0, dl.velocity], **options)
    batch = lens.batch([(sample, 3), (sample, 4)], steps=3, **options)
    x = batch.noise
    for step in range(3):
        out = batch.step(step, x)
        for name, value in (("velocity", out.velocity), ("x0", out.x0)):
            np.testing.assert_allclose(
                value[0].permute(1, 2, 3, 0).numpy(), run[name].values[step], rtol=0, atol=2e-5
            )
        x = out.latents
    return run


SCALES = {
    "rescaled ltx": ("ltx", {"guidance_rescale": 0.7}),
    "rescaled ltx with a frame": ("ltx-image", {"guidance_rescale": 0.7}),
    "a second scale": ("wan2.2", {"guidance_scale_2": 1.5}),
    "dynamic cogvideox": ("cogvideox", {"use_dynamic_cfg": True}),
    "plain": ("dit", {}),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_batch_guides_as_the_pipeline_does(euler, name):
    pipeline, options = SCALES[name]
    case = euler(pipeline)
    lens = dl.Lens(case.pipe)
    run = check_batch(lens, case.sample, cfg_scale=4.0, **case.extra, **options)
    if options:  # and it is not what the plain formula gives
        plain = lens.run(case.sample, seed=3, steps=3, cfg_scale=4.0, record=[dl.x0], **case.extra)
        assert np.abs(run["x0"].values - plain["x0"].values).max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_a_batch_of_qwen_image_keeps_the_norm_of_every_token(build, pipes, size):
    pipe = build("qwen")
    sample = dl.Sample(**TEXTS, size=size)
    extra = {**pipes.qwen_keywords(), "output_type": "latent"}
    lens = dl.Lens(pipe)
    check_batch(lens, sample, cfg_scale=4.0, **extra)
    batch = lens.batch([(sample, 0)], steps=1, cfg_scale=4.0, **extra)
    generator = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(batch.noise.shape, generator=generator) for _ in range(2))
    linear = uncond + 4.0 * (cond - uncond)
    height, width = batch.noise.shape[3:]
    tokens = [pipe._pack_latents(v.transpose(1, 2), 1, 4, height, width) for v in (cond, linear)]
    expected = tokens[1] * (tokens[0].norm(dim=-1, keepdim=True) / tokens[1].norm(dim=-1, keepdim=True))
    guided = lens.family.flow.guide(
        pipe, batch.keywords, {"cond": cond, "uncond": uncond}, batch.timesteps[0]
    )
    guided = pipe._pack_latents(guided.transpose(1, 2), 1, 4, height, width)
    torch.testing.assert_close(guided, expected)
    assert (expected - tokens[1]).abs().max() > 0.1  # the linear one is far off


def test_a_pipeline_whose_guidance_is_not_known_is_refused_by_name(made):
    case = made("sd3")

    kind = type(case.pipe)

    class Another(kind):
        @functools.wraps(kind.__call__)
        def __call__(self, *args, **kwargs):  # a loop of its own
            return super().__call__(*args, **kwargs)

    lens = dl.Lens(Another(**case.pipe.components))
    with pytest.raises(
        dl.PlanError, match=r"Another: how it puts its guidance branches together is not known"
    ):
        lens.batch([(case.sample, 0)], steps=1, cfg_scale=3.0, **case.extra)
    lens.batch([(case.sample, 0)], steps=1, cfg_scale=1.0, **case.extra)


def test_branches_that_never_come_are_an_error_in_a_batch(made):
    case = made("flux")
    lens = dl.Lens(case.pipe)
    options = {**case.extra, "negative_prompt": None}  # then Flux does no guidance
    with pytest.raises(dl.PlanError, match=r"runs its model on \['cond'\] alone.*needs \['cond', 'uncond'\]"):
        lens.batch([(case.sample, 0)], steps=1, cfg_scale=3.0, **options)
    case.run(lens, steps=1)  # nothing is left behind


# ---- what a batch does not do


def test_loops_that_begin_later_or_put_something_back_are_refused(build, pipes, made):
    picture = pipes.gray((8, 16))
    sample = dl.Sample(**TEXTS, size=(8, 16), image=picture)
    later = dl.Lens(build("flux_like", "FluxImg2ImgPipeline"))
    for begin in (later.run, lambda s, **k: later.batch([(s, 0)], **k)):
        with pytest.raises(dl.PlanError, match=r"strength=0\.5.*Give strength=1\.0"):
            begin(sample, steps=4, cfg_scale=1.0, strength=0.5, **pipes.SHORT)
        with pytest.raises(dl.PlanError, match=r"strength=0\.6"):  # the pipeline's default
            begin(sample, steps=4, cfg_scale=1.0, **pipes.SHORT)
    check_batch(later, sample, cfg_scale=3.0, strength=1.0, **pipes.SHORT)

    masked = dl.Lens(build("flux_like", "FluxInpaintPipeline"))
    half = pipes.Image.new("L", (16, 8), 0)
    half.paste(255, (0, 0, 8, 8))
    options = {"mask_image": half, "strength": 1.0, "steps": 3, "cfg_scale": 1.0, **pipes.SHORT}
    with pytest.raises(dl.PlanError, match="mask_image= in a batch: the pipeline puts"):
        masked.batch([(sample, 0)], **options)
    with pytest.raises(dl.CaptureError, match=r"not given the latents.*mask"):
        masked.run(sample, **options)

    case = made("sd3")
    lens = dl.Lens(case.pipe)
    with pytest.raises(dl.PlanError, match="callback_on_step_end= in a batch"):
        lens.batch([(case.sample, 0)], callback_on_step_end=lambda *a: {}, **case.extra)
    with pytest.raises(dl.PlanError, match="sigmas="):
        lens.batch([(case.sample, 0)], sigmas=[1.0, 0.5], **case.extra)
