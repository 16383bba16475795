"""diffusers pipelines: batches, readouts, schedulers, resuming, nnsight's own model, and what is refused."""

import os

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl

diffusers = pytest.importorskip("diffusers")

GUIDED = {"steps": 3, "cfg_scale": 3.0}


@pytest.fixture
def euler(case):
    """The case with a scheduler that keeps nothing: Wan's own is a multistep one."""
    before = case.pipe.scheduler
    if case.name in ("wan", "wan2.2"):
        case.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    yield case
    case.pipe.scheduler = before


def test_a_batch_is_its_single_runs_and_the_last_readout_is_the_velocity(euler):
    case, lens = euler, dl.Lens(euler.pipe)
    other = case.sample.with_(prompt="dog runs")
    pairs = [(case.sample, 0), (other, 1)]
    batch = lens.batch(pairs, **GUIDED, **case.extra)
    runs = [lens.run(s, seed=n, record=[dl.x0], **GUIDED, **case.extra) for s, n in pairs]
    assert not np.array_equal(runs[0]["x0"].values, runs[1]["x0"].values)
    x, last = batch.noise, lens.layers - 1
    for step in range(3):
        out = batch.step(step, x, watch=[("block", branch, last) for branch in batch.layout.branches])
        dit, read = lens.dits[batch.expert(step)], {}
        for branch in batch.layout.branches:
            given = batch.inputs.of_branch(branch) | {
                "latents": x,
                "timestep": batch.scheduler.timesteps[step],
            }
            read[branch] = lens.family.flow.readout(
                dit, out.states["block", branch, last].flatten(1, 3), given
            )
        guided = lens.family.flow.guide(lens.pipe, batch.keywords, read, batch.timesteps[step])
        first = batch.inputs.of_branch("cond")
        blended = batch.batching.blend(batch.scheduler, None, guided, x, first, "video")
        assert torch.equal(blended, out.velocity)
        for row, run in enumerate(runs):
            expected = torch.from_numpy(run["x0"].isel(step=step).values)
            torch.testing.assert_close(out.x0[row].permute(1, 2, 3, 0), expected, rtol=0, atol=5e-5)
        x = out.latents
    videos = batch.decode(x)
    for row, run in enumerate(runs):
        assert np.abs(videos[row].astype(int) - run.video.astype(int)).max() <= 1
    assert not any("forward" in vars(m) for m in case.pipe.transformer.modules())


def test_an_edit_in_a_batch_is_the_edit_in_a_run(euler):
    case, lens = euler, dl.Lens(euler.pipe)
    places = [dl.at(layer=0, step=1, branch="uncond"), dl.at(site="latents", step=1)]
    edits = [(dl.scale(factor=1.5), place) for place in places]
    run = lens.run(case.sample, record=[dl.x0], edit=edits, **GUIDED, **case.extra)
    batch = lens.batch([(case.sample, 0)], **GUIDED, **case.extra)
    placed, x = list(dl.Plan.of((), edits).edits), batch.noise
    for step in range(3):
        out = batch.step(step, x, edits=[placed])
        expected = torch.from_numpy(run["x0"].isel(step=step).values)
        torch.testing.assert_close(out.x0[0].permute(1, 2, 3, 0), expected, rtol=0, atol=5e-5)
        x = out.latents


SCHEDULERS = {
    "unipc flow": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "dpm flow": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "dpm epsilon": ("DPMSolverMultistepScheduler", {}),
    "dpm karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc v": ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
    "unipc sample": ("UniPCMultistepScheduler", {"prediction_type": "sample"}),
    "ddim epsilon": ("DDIMScheduler", {"clip_sample": True}),
    "ddim v": ("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}),
    "ddim thresholding": ("DDIMScheduler", {"thresholding": True}),
    "ddim sample": ("DDIMScheduler", {"prediction_type": "sample", "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "cogvideox": ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction"}),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_x0_and_its_inverse_are_the_schedulers_own(name):
    from dit_lens.families.diffusers import schedulers

    kind, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(4)
    levels = schedulers.schedule(scheduler)
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    for step, timestep in enumerate(scheduler.timesteps):
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(step + 1))
        out = scheduler.step(v, timestep, x)
        own = scheduler.model_outputs[-1] if hasattr(scheduler, "model_outputs") else out.pred_original_sample
        torch.testing.assert_close(schedulers.x0(scheduler, x, v, step), own, rtol=1e-5, atol=1e-4)
        if not (options.get("clip_sample") or options.get("thresholding")):
            clean = 0.5 * v
            back = schedulers.velocity(scheduler, x, clean, step)
            torch.testing.assert_close(schedulers.x0(scheduler, x, back, step), clean, rtol=1e-4, atol=1e-3)
        x = out.prev_sample
    assert len(levels.sigmas) == 4 and 0 < levels.sigmas[-1] < levels.sigmas[0] <= 1 + 1e-6
    assert bool(levels.state) == (kind[:4] in ("UniP", "DPMS", "DDPM"))


class Interrupted(Exception):
    pass


def interrupt_after(count):
    """Return a record that raises once. Nothing that names it counts its calls: the environment does."""
    os.environ["CALLS_LEFT"] = str(count)

    @dl.keeps("frame", "y", "x")
    def guarded(h):
        left = os.environ["CALLS_LEFT"] = str(int(os.environ["CALLS_LEFT"]) - 1)
        if left == "0":
            raise Interrupted
        return h[..., 0]

    return guarded


@pytest.mark.parametrize("name", ["wan-image", "flux", "dit"])
def test_a_resumed_run_equals_an_uninterrupted_one(made, tmp_path, name):
    case, lens = made(name), dl.Lens(made(name).pipe)
    edit = [(dl.add_noise(scale=0.3), dl.at(site="latents"))]
    whole = case.run(lens, record=[dl.x0], edit=edit)
    record = [dl.x0, (interrupt_after(5), dl.at(layer=0))]  # two branches a step: in the third step
    with pytest.raises(Interrupted):
        case.run(lens, store=tmp_path, record=record, edit=edit)
    (path,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert not dl.Run(path).complete
    again = case.run(lens, store=tmp_path, record=record, edit=edit)
    assert again.path == path and again.complete and np.array_equal(again.video, whole.video)
    assert np.array_equal(again["x0"].values, whole["x0"].values)
    assert np.array_equal(again["latents"].values, whole["latents"].values)


def test_a_multistep_scheduler_is_not_resumed_or_batched(made, tmp_path):
    case, lens = made("wan"), dl.Lens(made("wan").pipe)
    with pytest.raises(dl.PlanError, match=r"keeps the model's outputs of earlier steps: use lens\.run"):
        lens.batch([(case.sample, 0)], **GUIDED, **case.extra)
    record = [interrupt_after(10)]
    with pytest.raises(Interrupted):
        case.run(lens, store=tmp_path, record=record)
    with pytest.raises(dl.StoreError, match="keeps the model's outputs of earlier steps"):
        case.run(lens, store=tmp_path, record=record)


def test_nnsights_own_model_becomes_a_lens_and_stays_what_it_was(made, tmp_path):
    from nnsight.modeling.diffusion import DiffusionModel

    case = made("ltx")
    case.pipe.save_pretrained(tmp_path / "pipe")
    model = DiffusionModel(str(tmp_path / "pipe"))
    lens = dl.Lens(model)
    assert isinstance(lens.pipe, diffusers.LTXPipeline)
    expected = case.bare(steps=2)
    run = case.run(lens, steps=2, record=[dl.hidden])
    assert np.array_equal(run.video, (expected * 255).round())
    with lens.trace(case.sample, steps=2, cfg_scale=3.0, **case.extra) as tr:
        kept = [].save()
        for call in tr.calls(step=0):
            kept.append(call.block(0).output.clone())
    keywords = {"height": 32, "width": 64, "num_frames": 9, "guidance_scale": 3.0, **case.extra}
    with model.generate(case.sample.prompt, num_inference_steps=2, seed=0, **keywords):
        theirs = model.transformer.transformer_blocks[0].output.save()
    assert torch.equal(theirs[1], kept[0][1])  # the conditional row, in a trace of their own, after ours
    assert np.array_equal(case.bare(steps=2), expected)


def test_a_run_in_the_store_is_found_again_and_settings_make_another(made, tmp_path):
    case = made("sd3")
    first = case.run(dl.Lens(case.pipe), steps=1, store=tmp_path)
    assert case.run(dl.Lens(case.pipe), steps=1, store=tmp_path).path == first.path
    before = case.pipe.scheduler
    case.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    try:
        assert case.run(dl.Lens(case.pipe), steps=1, store=tmp_path).path != first.path
    finally:
        case.pipe.scheduler = before
    parts = first.attrs["manifest"]["identity"]["components"]
    assert {"scheduler", "transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer"} <= set(parts)


def test_a_prompt_batch_has_a_sample_dimension(made):
    case = made("flux")
    two = case.sample.with_(prompt=("a cat", "dog runs"))
    run = dl.Lens(case.pipe).run(two, record=[dl.hidden, dl.x0], **GUIDED, **case.extra)
    assert run["hidden"].dims[0] == "sample" and "video" not in run.names
    alone = dl.Lens(case.pipe).run(
        case.sample.with_(prompt="a cat"), record=[dl.hidden], latents=first_row(case), **GUIDED, **case.extra
    )
    np.testing.assert_allclose(run["hidden"].isel(sample=0).values, alone["hidden"].values, atol=1e-5)


def first_row(case):
    """Return the first of the latents that a pipeline draws for two prompts."""
    both, _ = case.pipe.prepare_latents(2, 1, 8, 16, torch.float32, "cpu", torch.Generator().manual_seed(0))
    return both[:1]


# ---- what is refused


REFUSED = {
    "a first-order scheduler": ("FlowMatchHeunDiscreteScheduler", r"steps 2 times a step|not known here"),
    "a known scheduler": (
        "EulerDiscreteScheduler",
        r"EulerDiscreteScheduler: its noise levels.*not known here",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_that_cannot_be_labelled_are_refused(made, name):
    case, (kind, words) = made("sd3"), REFUSED[name]
    before, case.pipe.scheduler = case.pipe.scheduler, getattr(diffusers, kind)()
    try:
        with pytest.raises(dl.PlanError, match=words):
            case.run(dl.Lens(case.pipe))
    finally:
        case.pipe.scheduler = before


def test_caches_and_compiled_blocks_are_refused(made):
    case = made("wan")
    dit, lens = case.pipe.transformer, dl.Lens(case.pipe)
    dit.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    try:
        with pytest.raises(dl.PlanError, match=r"a cache is enabled.*FirstBlockCacheConfig"):
            case.run(lens)
    finally:
        dit.disable_cache()
        [vars(m).pop("_diffusers_hook", None) for m in dit.modules()]
    dit.blocks[0].compile()
    try:
        with pytest.raises(dl.PlanError, match="is compiled"):
            case.run(lens)
    finally:
        dit.blocks[0]._compiled_call_impl = None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sd3", {"skip_guidance_layers": [0]}, "skip_guidance_layers.*third time"),
        ("wan", {"generator": torch.Generator()}, "give seed="),
        ("sd3", {"record": [(dl.hidden, dl.at(stream="text"))]}, "layer=1.*Leave the place out"),
        ("wan", {"record": [(dl.hidden, dl.at(stream="text"))]}, "unknown site 'block'; there are cross_k, cross_v"),
        ("flux", {"record": [(dl.hidden, dl.at(site="ffn"))]}, "unknown site 'ffn'; there are block, block_in"),
        ("flux", {"record": [(dl.x0, dl.at(stream="text"))]}, "unknown site 'x0'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_says_what_and_where(made, name, options, words):
    case = made(name)
    with pytest.raises(dl.DitLensError, match=words):
        case.run(dl.Lens(case.pipe), steps=1, **options)


def test_a_sample_that_does_not_fit_the_pipeline_is_refused(made):
    image = made("wan-image")
    with pytest.raises(dl.PlanError, match="needs image="):
        dl.Lens(image.pipe).run(image.sample.with_(image=None), steps=1)
    with pytest.raises(dl.PlanError, match="takes no image"):
        dl.Lens(made("wan").pipe).run(image.sample, steps=1)
    with pytest.raises(dl.PlanError, match="needs class_labels="):
        dl.Lens(made("dit").pipe).run(made("dit").sample, steps=1)


def test_latents_that_are_changed_between_steps_are_an_error(made):
    case = made("wan-image")

    def callback(pipe, step, timestep, given):
        return {"latents": given["latents"] * 2}

    with pytest.raises(dl.CaptureError, match=r"not given the latents.*A callback"):
        case.run(dl.Lens(case.pipe), callback_on_step_end=callback)


def test_a_model_whose_blocks_are_not_registered_is_refused(made):
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(1, 1)])

    case = made("wan")
    before, case.pipe.transformer = case.pipe.transformer, Unknown()
    try:
        with pytest.raises(dl.PlanError, match=r"knows none of the block lists of Unknown.*Linear"):
            dl.Lens(case.pipe)
    finally:
        case.pipe.transformer = before


def test_a_merged_batch_is_told_by_its_text_and_else_by_the_list(made, monkeypatch):
    from dit_lens.families.diffusers import merged

    case = made("ltx")
    listed = case.run(dl.Lens(case.pipe), record=[dl.hidden], steps=1)
    monkeypatch.setattr(merged, "UNCOND_FIRST", ())
    told = case.run(dl.Lens(case.pipe), record=[dl.hidden], steps=1)
    assert np.array_equal(told["hidden"].values, listed["hidden"].values)
    same = case.sample.with_(negative_prompt=case.sample.prompt)
    with pytest.raises(dl.PlanError, match=r"in an order that is not known here.*cfg_scale=1"):
        dl.Lens(case.pipe).run(same, steps=1, cfg_scale=3.0, **case.extra)
    monkeypatch.setattr(merged, "COND_FIRST", ("LTXPipeline",))  # it is not so
    with pytest.raises(dl.PlanError, match=r"rows are known as.*the text.*says"):
        case.run(dl.Lens(case.pipe), steps=1)


def test_a_transformer_whose_blocks_are_offloaded_in_groups_is_traced_alike(made):
    from diffusers.hooks import apply_group_offloading

    case = made("flux")
    expected = case.bare(steps=2)
    offloaded = type(case)("flux")  # the hooks stay
    cpu = torch.device("cpu")
    apply_group_offloading(
        offloaded.pipe.transformer, cpu, cpu, "block_level", num_blocks_per_group=1, use_stream=False
    )
    copy = [(lambda h, at: h.clone(), dl.at(site=site)) for site in ("block", "latents")]
    run = offloaded.run(dl.Lens(offloaded.pipe), steps=2, record=[dl.hidden], edit=copy)
    assert np.array_equal(run.video, (expected * 255).round())
    plain = case.run(dl.Lens(case.pipe), steps=2, record=[dl.hidden])
    assert np.array_equal(run["hidden"].values, plain["hidden"].values)
    named = [r.attrs["manifest"]["identity"]["components"]["transformer"] for r in (run, plain)]
    assert named[0] != named[1]  # how it is offloaded is a part of what it is


@pytest.mark.parametrize("name", ["hunyuan", "mochi", "cogvideox"])
def test_pipelines_that_cast_latents_between_steps_are_traced_alike_in_bfloat16(made, name):
    """HunyuanVideo's latents are float32 at the first step alone; Mochi and CogVideoX cast them after every step."""
    case = type(made(name))(name)
    case.pipe.to(torch.bfloat16)
    expected = case.bare(steps=2)
    copy = [(lambda h, at: h.clone(), dl.at(site=site)) for site in ("latents", "velocity", "block")]
    run = case.run(dl.Lens(case.pipe), steps=2, record=[dl.hidden, dl.x0], edit=copy)
    assert np.array_equal(run.video, (expected * 255).round())
    assert run["hidden"].attrs["logical_dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["sd3", "wan-image", "ltx-image", "cogvideox"])
def test_an_edit_of_latents_in_place_reaches_the_model_as_a_pure_one_does(made, name):
    case = made(name)
    lens = dl.Lens(case.pipe)

    def in_place(h, at):
        h[:, 0] = 0
        return h

    def pure(h, at):
        out = h.clone()
        out[:, 0] = 0
        return out

    runs = [
        case.run(lens, record=[dl.x0, dl.hidden], edit=[(edit, dl.at(site="latents", step=1))])
        for edit in (in_place, pure)
    ]
    plain = case.run(lens, record=[dl.x0, dl.hidden])
    assert np.array_equal(runs[0].video, runs[1].video)
    for record in ("x0", "hidden", "latents"):
        assert np.array_equal(runs[0][record].values, runs[1][record].values)
    changed = (runs[0]["hidden"].load() != plain["hidden"].load()).any(
        ("frame", "y", "x", "channel", "layer")
    )
    assert not changed.sel(step=0).any() and changed.sel(step=1).all()


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_users_subclass_of_a_pipeline_decodes_as_the_pipeline(name, parts):
    case = parts.Case(name)
    case.pipe.__class__ = type("Mine", (type(case.pipe),), {})
    lens, sample, extra = dl.Lens(case.pipe), case.sample, case.extra
    batch = lens.batch([(sample, 0)], steps=2, **extra).run()[0]
    run = lens.run(sample, 0, steps=2, **extra)
    assert abs(batch.video.astype(int) - run.video.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["flux", "sd3", "ltx"])
def test_a_bfloat16_model_goes_into_batches(name, parts):
    case = parts.Case(name)
    case.pipe.to(torch.bfloat16)
    lens, record = dl.Lens(case.pipe), [dl.x0, dl.latents]
    batch = lens.batch([(case.sample, 0), (case.sample, 1)], record=record, **GUIDED, **case.extra)
    for seed, row in enumerate(batch.run()):
        run = lens.run(case.sample, seed, record=record, **GUIDED, **case.extra)
        for what in ("latents", "x0"):
            difference = np.square(row[what].values - run[what].values).mean()
            assert difference < 0.05**2 * np.square(run[what].values).mean()


@pytest.mark.parametrize("name", ["cogvideox", "mochi", "hunyuan"])
def test_latents_that_a_pipeline_rounds_between_steps_are_refused(name, parts):
    case = parts.Case(name)
    case.pipe.to(torch.bfloat16)
    with pytest.raises(dl.PlanError, match="how the pipeline rounds them in between"):
        dl.Lens(case.pipe).batch([(case.sample, 0)], **GUIDED, **case.extra)


class Store:
    """An attention processor that keeps what it has seen, as those of prompt-to-prompt editing do."""

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def __call__(self, *args, **keywords):
        out = self.inner(*args, **keywords)
        if str(len(self.seen)) == os.environ.get("POWER_GOES_AT"):
            raise OSError("the power went")
        self.seen.append(1)
        return out * (0.5 if len(self.seen) > 4 else 1)


def test_an_interrupted_run_whose_attention_processor_keeps_something_is_begun_anew(
    made, tmp_path, monkeypatch
):
    def run(store):
        case = type(made("ltx"))("ltx")
        attention = case.pipe.transformer.transformer_blocks[0].attn1
        attention.processor = Store(attention.processor)
        return case.run(dl.Lens(case.pipe), steps=6, cfg_scale=1.0, store=store)

    whole = run(tmp_path / "whole")
    monkeypatch.setenv("POWER_GOES_AT", "3")
    with pytest.raises(OSError, match="the power went"):
        run(tmp_path / "again")
    monkeypatch.delenv("POWER_GOES_AT")
    again = run(tmp_path / "again")
    assert again.path.name == whole.path.name
    np.testing.assert_array_equal(again["latents"].values, whole["latents"].values)


def test_what_a_pipeline_writes_in_every_run_is_nothing_that_is_kept(case, tmp_path):
    from dit_lens.store import journal

    run = case.run(dl.Lens(case.pipe, info={"weights": "tiny"}), store=tmp_path)
    words = journal.read(run.path).steps.values()
    assert len(words) == 3 and not any(word.get("state kept") for word in words)


@pytest.mark.parametrize("way", ["hook", "cpu", "group"])
def test_weights_that_are_moved_about_are_nothing_that_is_kept(made, tmp_path, way):
    accelerate = pytest.importorskip("accelerate")
    from dit_lens.store import journal

    case = type(made("ltx"))("ltx")
    transformer, cpu = case.pipe.transformer, torch.device("cpu")
    if way == "hook":
        hook = accelerate.hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
        accelerate.hooks.add_hook_to_module(transformer, hook)
    elif way == "cpu":
        accelerate.cpu_offload(transformer, cpu)
    else:
        transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    run = case.run(dl.Lens(case.pipe, info={"weights": "tiny"}), store=tmp_path)
    assert not any(words.get("state kept") for words in journal.read(run.path).steps.values())
