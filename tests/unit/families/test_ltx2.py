"""LTX-2: two streams, reference tokens, a mask over the first frame, two stages; the real classes at a tiny size."""

import contextlib
import importlib.util
import inspect
import io
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl
from dit_lens.engine.sweep import run_arms
from dit_lens.experiments.clean_runs import clean_runs
from dit_lens.families.diffsynth.ltx2 import LTX2
from dit_lens.families.diffsynth.ltx2 import SITES as ALL
from dit_lens.families.latents import apart
from dit_lens.plan.plan import Placed

# The test folder is no package: its helper is loaded by its path.
spec = importlib.util.spec_from_file_location("tiny_ltx", Path(__file__).parent / "ltx.py")
tiny_ltx = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_ltx)

SITES = {
    s: {n: site for n, site in ALL[s].items() if not n.endswith("attention")} for s in ("video", "audio")
}
"""Of the streams that blocks carry, where values stand."""
PLAIN = {
    s: {n: site for n, site in sites.items() if not site.heads and n != "ffn_in"}
    for s, sites in SITES.items()
}
"""Those that a plain hook on a module's output reads."""
EVERYWHERE = [(s, n) for s, sites in SITES.items() for n in (*sites, "latents", "velocity", "x0")]
EVERYWHERE += [("text", n) for n in ALL["text"]]
SIZE = (64, 96)


def picture(seed, size=SIZE):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


SAMPLE = dl.Sample(prompt="a cat walks", negative_prompt="bad", image=picture(0), num_frames=17)
WORDS = dl.Sample(prompt="a cat walks", negative_prompt="bad", size=SIZE, num_frames=17)
CASES = {
    "guided": (SAMPLE, {}),
    "unguided": (SAMPLE, {"cfg_scale": 1.0}),
    "text": (WORDS, {}),
    "weak": (SAMPLE, {"input_images_strength": 0.7}),
    "later": (WORDS, {"input_images": [picture(0), picture(1)], "input_images_indexes": [0, 8]}),
    "context": (SAMPLE, {"in_context_videos": [[picture(n) for n in range(9)]]}),
    "retake": (
        WORDS,
        {"retake_video": [picture(n) for n in range(17)], "retake_video_regions": [(0.3, 0.6)]},
    ),
    "distilled": (SAMPLE, {"steps": 8, "cfg_scale": 1.0, "use_distilled_pipeline": True}),
    "stages": (
        SAMPLE,
        {"steps": 8, "cfg_scale": 1.0, "use_distilled_pipeline": True, "use_two_stage_pipeline": True},
    ),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_ltx.make_pipe()


@pytest.fixture(scope="module")
def lens(pipe):
    return dl.Lens(pipe)


def bare(pipe, sample, seed=0, steps=3, cfg_scale=3.0, **extra):
    """Run the pipeline alone; return its frames and its sound."""
    keywords = LTX2.call.arguments(sample, seed, steps, cfg_scale, {"progress_bar_cmd": lambda s: s, **extra})
    scheduler = pipe.scheduler
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            video, audio = pipe(**keywords)
    finally:
        pipe.scheduler = scheduler  # a second stage leaves its own
    return np.stack([np.asarray(f) for f in video]), audio.numpy()


def leftovers(pipe):
    found = [
        n for n, m in pipe.named_modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
    ]
    found += [name for name in ("denoise_stage", "step") if name in vars(pipe)]
    found += ["scheduler.step"] if "step" in vars(pipe.scheduler) else []
    found += [] if pipe.model_fn.__module__ == "diffsynth.pipelines.ltx2_audio_video" else ["model_fn"]
    return found


def copy(h, at):
    return h.clone()


def options(case):
    sample, given = CASES[case]
    return sample, {"steps": 3, "cfg_scale": 3.0, **given}


@pytest.mark.parametrize("case", CASES)
def test_tracing_changes_nothing_bit_for_bit(pipe, lens, case):
    sample, given = options(case)
    video, audio = bare(pipe, sample, **given)
    edit = [(copy, dl.at(site=site, stream=stream)) for stream, site in EVERYWHERE]
    record = [(f, dl.at(stream=s)) for s in SITES for f in (dl.energy, dl.x0, dl.velocity)]
    run = lens.run(sample, record=record, edit=edit, **given)
    assert np.array_equal(run.video, video) and np.array_equal(run["audio"].values, audio)
    assert run.complete and leftovers(pipe) == []
    assert len(run.stages) == (2 if case == "stages" else 1)


class Independent:
    """A recorder of its own: branches by the prompts' embeddings, steps by the timesteps, plain hooks on modules."""

    def __init__(self, pipe, sample):
        self.pipe, self.values, self.step, self.last, self.stage = pipe, {}, -1, None, 0
        embed = pipe.units[1].process
        self.prompts = {
            b: embed(pipe, p)["video_context"] for b, p in (("cond", sample.prompt), ("uncond", "bad"))
        }
        self.original, self.handles = pipe.model_fn, []
        for layer, block in enumerate(pipe.dit.transformer_blocks):
            for stream, sites in PLAIN.items():
                for site, where in sites.items():
                    module = block.get_submodule(where.path) if where.path else block
                    hook = self.hook(stream, site, layer)
                    if site == "block_in":
                        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                    else:
                        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))
        pipe.model_fn = self.call

    def hook(self, stream, site, layer):
        def keep(module, args, kwargs, output=None):
            if site == "block":
                output = output[0].x if stream == "video" else output[1].x
            elif site == "block_in":
                output = kwargs[stream].x
            self.values[(*self.now, stream, site, layer)] = output[0].clone()

        return keep

    def call(self, **kw):
        timestep, grid = float(kw["timestep"]), kw["video_latents"].shape[2:]
        if self.last is not None and self.last[1] != grid:
            self.stage, self.step = self.stage + 1, -1
        if self.last != (timestep, grid):
            self.last, self.step = (timestep, grid), self.step + 1
        branch = next(b for b, e in self.prompts.items() if torch.equal(e, kw["video_context"]))
        self.now = self.stage, self.step, branch
        return self.original(**kw)

    def close(self):
        self.pipe.model_fn = self.original
        for handle in self.handles:
            handle.remove()


def loaded(run):
    """Read all of a run: what is lazy goes with the run that it is of."""
    return run.dataset.load()


def name_of(function, site, stream, default="block"):
    return "_".join(
        [function, *([site] if site != default else []), *([stream] if stream != "video" else [])]
    )


@pytest.mark.parametrize("case", ["guided", "later", "context", "stages"])
def test_every_value_stands_under_the_label_that_an_independent_recorder_gives(pipe, lens, case):
    sample, given = options(case)
    watcher = Independent(pipe, sample)
    try:
        bare(pipe, sample, **given)
    finally:
        watcher.close()
    record = [(dl.hidden, dl.at(site=n, stream=s)) for s, sites in PLAIN.items() for n in sites]
    stages = [loaded(run) for run in lens.run(sample, record=record, **given).stages]
    counts = {}
    for (stage, step, branch, stream, site, layer), expected in watcher.values.items():
        values = (
            stages[stage][name_of("hidden", site, stream)].sel(step=step, branch=branch, layer=layer).values
        )
        tokens = values.reshape(-1, values.shape[-1])
        # References stand after the video's own tokens.
        assert np.array_equal(tokens, expected[: len(tokens)].numpy()), (
            stage,
            step,
            branch,
            stream,
            site,
            layer,
        )
        more = len(expected) - len(tokens)
        assert more == ({"later": 6, "context": 4}.get(case, 0) if stream == "video" else 0)
        counts[stage] = counts.get(stage, 0) + 1
    a_call = sum(map(len, PLAIN.values())) * tiny_ltx.LAYERS
    assert counts == ({0: 8 * a_call, 1: 3 * a_call} if case == "stages" else {0: 3 * 2 * a_call})


@pytest.mark.parametrize("case", ["guided", "text", "later"])
@pytest.mark.parametrize("stream", SITES)
def test_x0_is_the_schedulers_own_last_step(pipe, lens, case, stream):
    sample, given = options(case)
    run = lens.run(sample, record=[(f, dl.at(stream=stream)) for f in (dl.x0, dl.velocity)], **given)
    names = [name_of(n, "", stream, "") for n in ("latents", "velocity", "x0")]
    x, v, x0 = (torch.from_numpy(run[name].values) for name in names)
    for step in range(3):
        clean = pipe.scheduler.step(v[step], pipe.scheduler.timesteps[step], x[step], to_final=True)
        assert torch.equal(clean, x0[step])
    last = lens.decode(run[names[2]].isel(step=-1))
    assert np.array_equal(last, run.video if stream == "video" else run["audio"].values)


def test_x0_of_what_is_not_retaken_is_the_given_video(pipe, lens):
    sample, given = options("retake")
    run = loaded(lens.run(sample, record=[dl.x0], **given))
    encoded = pipe.video_vae_encoder.encode(pipe.preprocess_video(given["retake_video"]))[0].permute(
        1, 2, 3, 0
    )
    held = [
        np.allclose(run["x0"].isel(step=0, frame=f).values, encoded[f].numpy(), atol=1e-5) for f in range(3)
    ]
    assert held == [True, False, False]


def test_x0_of_the_first_frame_is_the_image(pipe, lens):
    run = lens.run(SAMPLE, steps=3, record=[dl.x0])
    image = (
        pipe.units[9].get_image_latent(pipe, SAMPLE.image, *SIZE, False, None, None)[0, :, 0].permute(1, 2, 0)
    )
    first = run["x0"].isel(frame=0).values
    assert np.allclose(first, image.numpy(), atol=1e-5)
    assert not np.allclose(run["x0"].isel(frame=1).values[0], image.numpy(), atol=0.1)
    edited = lens.run(
        SAMPLE, steps=3, record=[dl.x0], edit=[(dl.add_noise(scale=1.0), dl.at(site="latents", step=1))]
    )
    # The mask holds the frame fast also where an edit has moved its latents.
    assert np.allclose(edited["x0"].isel(frame=0).values, image.numpy(), atol=1e-4)


BOTH = [(f, dl.at(stream=s)) for s in SITES for f in (dl.hidden, dl.x0)]


@pytest.fixture(scope="module")
def clean(lens):
    return loaded(lens.run(WORDS, steps=2, record=BOTH))


@pytest.mark.parametrize(("stream", "site"), EVERYWHERE)
def test_an_edit_at_every_site_reaches_the_model_and_no_other_place(lens, clean, stream, site):
    place = {"layer": 0, "branch": "cond"} if site in ALL[stream] else {}
    at = dl.at(site=site, stream=stream, step=1, **place)
    run = loaded(lens.run(WORDS, steps=2, record=BOTH, edit=[(dl.replace(value=0.5), at)]))
    # Guided velocity and x0 are edited after the model ran; all else reaches both streams through its blocks.
    after = site in ("velocity", "x0")
    for s in SITES:
        a, b = (r[name_of("hidden", "block", s)] for r in (clean, run))
        assert a.isel(step=0).equals(b.isel(step=0))
        assert a.sel(step=1, branch="cond", layer=1).equals(b.sel(step=1, branch="cond", layer=1)) == after
        assert a.sel(step=1, branch="uncond").equals(b.sel(step=1, branch="uncond")) == (site != "latents")
        a, b = (r[name_of("x0", "", s, "")].isel(step=1) for r in (clean, run))
        assert a.equals(b) == (after and s != stream)


@pytest.mark.parametrize("stream", SITES)
def test_patching_a_run_with_its_own_states_changes_nothing(lens, stream):
    clean = lens.run(SAMPLE, steps=2, record=[(dl.hidden, dl.at(stream=stream))])
    source = clean[name_of("hidden", "block", stream)]
    again = lens.run(SAMPLE, steps=2, edit=[(dl.patch(source), dl.at(stream=stream))])
    assert np.array_equal(clean.video, again.video) and np.array_equal(clean["audio"], again["audio"])


def test_a_region_of_the_sound_is_edited_alone(lens):
    record = [(dl.hidden, dl.at(stream="audio", layer=1))]
    clean = loaded(lens.run(WORDS, steps=1, record=record))["hidden_audio"]
    edit = [(dl.zero(), dl.at(stream="audio", layer=1, frame="3-5"))]
    run = loaded(lens.run(WORDS, steps=1, record=record, edit=edit))["hidden_audio"]
    changed = (clean != run).any("channel_audio").isel(step=0, branch=0, layer=1, y_audio=0, x_audio=0)
    assert changed.values.nonzero()[0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("case", ["guided", "later"])
def test_the_readout_of_the_last_block_is_the_velocity(pipe, lens, case):
    sample, given = options(case)
    seen, original = {}, pipe.model_fn

    def model_fn(**keywords):
        seen.update(keywords)
        seen["both"] = original(**keywords)
        return seen["both"]

    pipe.model_fn = model_fn
    try:
        run = lens.run(
            sample, record=[(dl.hidden, dl.at(layer=-1))], **(given | {"steps": 1, "cfg_scale": 1.0})
        )
    finally:
        pipe.model_fn = original
    state = torch.from_numpy(run["hidden"].isel(step=0, branch=0, layer=0).values)[None].flatten(1, 3)
    velocity = LTX2.flow.readout(pipe.dit, state, {**seen, "latents": seen["video_latents"]})
    assert torch.allclose(velocity, seen["both"][0], rtol=0, atol=1e-5)


class Interrupted(Exception):
    pass


# Calls of the model before the interruption, and after it: the last two steps that stand in the store run once more.
INTERRUPTED = [("guided", 4, 6), ("later", 5, 6), ("stages", 5, 3 + 2 + 3), ("stages", 8 + 2, 2 + 2 + 1)]


@pytest.mark.parametrize("case, before, after", INTERRUPTED)
def test_an_interrupted_run_goes_on_bit_for_bit(pipe, lens, tmp_path, monkeypatch, case, before, after):
    sample, given = options(case)
    record = [(f, dl.at(stream=s)) for s in SITES for f in (dl.energy, dl.x0)]
    whole = lens.run(sample, record=record, **given)
    calls, forward, stop = [], type(pipe.dit).forward, [Interrupted]

    def counted(self, *args, **kwargs):
        calls.append(1)
        if stop and len(calls) > before:
            raise stop.pop()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe.dit), "forward", counted)
    with pytest.raises(Interrupted):
        lens.run(sample, record=record, store=tmp_path / "s.zarr", **given)
    calls.clear()
    run = lens.run(sample, record=record, store=tmp_path / "s.zarr", **given)
    assert len(calls) == after
    for a, b in zip(whole.stages, run.stages, strict=True):
        for name in a.names:
            assert np.array_equal(a[name].values, b[name].values), name
    assert leftovers(pipe) == []


@pytest.mark.parametrize("stage", [0, 1])
def test_stages_of_which_one_is_damaged_are_made_again(lens, tmp_path, stage):
    given = {"record": [dl.energy], "store": tmp_path, **STAGES}
    run = lens.run(SAMPLE, **given)
    whole = [loaded(one) for one in run.stages]
    (run.stages[stage].path / "energy" / "c.1.0.0.0.0.0").unlink()
    with pytest.warns(UserWarning, match=f"made again: .*{run.stages[stage].path.name}.*missing"):
        again = lens.run(SAMPLE, **given)
    for one, before in zip(again.stages, whole, strict=True):
        assert one.complete
        for name, values in loaded(one).items():
            assert np.array_equal(values, before[name]), name
    assert again.path == run.path and len(list(tmp_path.iterdir())) == 3


def test_the_ancestral_schedulers_x0_is_its_denoised_and_it_is_not_replayed(tmp_path):
    pipe = tiny_ltx.make_pipe(use_tokenwise_av_ca_scale_shift=True, use_keyframes_abs_pos_embedding=True)
    before, lens = pipe.scheduler, dl.Lens(pipe)
    given = {"steps": 8, "cfg_scale": 1.0, "use_distilled_pipeline": True}
    video, audio = bare(pipe, SAMPLE, **given)
    record = [(f, dl.at(stream=s)) for s in SITES for f in (dl.x0, dl.velocity)]
    run = lens.run(SAMPLE, record=record, **given)
    assert np.array_equal(run.video, video) and np.array_equal(run["audio"].values, audio)
    assert pipe.scheduler is before
    for stream in SITES:
        x, v, x0 = (
            torch.from_numpy(run[name_of(n, "", stream, "")].values) for n in ("latents", "velocity", "x0")
        )
        sigma = torch.tensor(run["x0"].sigma.values, dtype=torch.float32).view(-1, 1, 1, 1, 1)
        assert torch.equal(x - v * sigma, x0)
        # Noise is drawn anew: the next latents do not lie on the line from these to x0.
        following = x0[0] + (x[0] - x0[0]) * sigma[1] / sigma[0]
        assert not torch.allclose(x[1], following, atol=0.05)

    def stop(h, at):
        raise Interrupted

    with pytest.raises(Interrupted):
        lens.run(SAMPLE, edit=[(stop, dl.at(step=3))], store=tmp_path / "s.zarr", **given)
    with pytest.raises(dl.StoreError, match=r"keeps a generator of noise.*remove the folder"):
        lens.run(SAMPLE, edit=[(stop, dl.at(step=3))], store=tmp_path / "s.zarr", **given)


def test_a_second_stage_with_a_lora_of_its_own_leaves_the_model_as_it_was():
    from diffsynth.core import ModelConfig

    pipe = tiny_ltx.make_pipe()
    width = tiny_ltx.HEADS * tiny_ltx.WIDTH
    lora = {
        f"transformer_blocks.0.attn1.to_q.lora_{n}.weight": s
        for n, s in (("A", (4, width)), ("B", (width, 4)))
    }
    lora = {name: torch.randn(size) for name, size in lora.items()}
    pipe.stage2_lora_config, pipe.stage2_lora_strength = ModelConfig(path="none", state_dict=lora), 0.8
    given = {"steps": 3, "cfg_scale": 3.0, "use_two_stage_pipeline": True}
    with pytest.raises(dl.PlanError, match=r"merges the second stage's LoRA.*enable_lora_hot_loading"):
        dl.Lens(pipe).run(SAMPLE, **given)
    pipe.enable_lora_hot_loading(pipe.dit)
    video, audio = bare(pipe, SAMPLE, **given)
    pipe.clear_lora(verbose=0)
    lens = dl.Lens(pipe)
    with contextlib.redirect_stdout(io.StringIO()):
        run, again = lens.run(SAMPLE, **given), lens.run(SAMPLE, **given)
    for one in (run, again):
        assert np.array_equal(one.video, video) and np.array_equal(one["audio"].values, audio)
    assert not any(m.lora_A_weights for m in pipe.dit.modules() if hasattr(m, "lora_A_weights"))
    first, second = run.stages
    assert [str(b) for b in first.dataset.branch.values] == ["cond", "uncond"]
    assert [str(b) for b in second.dataset.branch.values] == ["cond"]
    assert second["latents"].sizes["latent_x"] == 2 * first["latents"].sizes["latent_x"]
    assert first.attrs["manifest"]["identity"]["stage2_lora"][1] == 0.8


def test_a_pipeline_under_vram_management_is_traced_as_it_is(monkeypatch):
    from diffsynth.configs.vram_management_module_maps import VRAM_MANAGEMENT_MODULE_MAPS
    from diffsynth.core.vram.layers import enable_vram_management

    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)  # torch.cpu has none
    names = VRAM_MANAGEMENT_MODULE_MAPS["diffsynth.models.ltx2_dit.LTXModel"]
    # Onload and computation type that differ: every wrapped module is copied for each forward.
    types = {
        "offload": torch.float32,
        "onload": torch.bfloat16,
        "preparing": torch.bfloat16,
        "computation": torch.float32,
    }
    config = {f"{k}_{part}": v for k, t in types.items() for part, v in (("dtype", t), ("device", "cpu"))}
    pipe = tiny_ltx.make_pipe()
    classes = {pkgutil.resolve_name(a): pkgutil.resolve_name(b) for a, b in names.items()}
    pipe.dit, pipe.vram_management_enabled = enable_vram_management(pipe.dit, classes, config), True
    video, audio = bare(pipe, SAMPLE)
    places = [dl.at(site=site, stream=stream) for stream, site in EVERYWHERE]
    blocks = [(dl.hidden, place) for place in places if place.site in SITES.get(place.stream, ())]
    run = dl.Lens(pipe).run(SAMPLE, steps=3, record=blocks, edit=[(copy, place) for place in places])
    assert np.array_equal(run.video, video) and np.array_equal(run["audio"].values, audio)
    for name in (n for n in run.names if n.startswith("hidden")):
        assert np.isfinite(run[name].values).all() and run[name].values.std() > 0
    assert leftovers(pipe) == []


STAGES = CASES["stages"][1]


def test_stages_are_runs_of_their_own_and_places_select_them(lens, tmp_path):
    record = [(dl.energy, dl.at(stage=0, step="0-1")), (dl.hidden, dl.at(stage=1, layer=1)), dl.x0]
    edit = [(dl.add_noise(scale=1.0), dl.at(site="latents", stage=1, step=1))]
    clean = lens.run(SAMPLE, record=record, store=tmp_path / "s.zarr", **STAGES)
    run = lens.run(SAMPLE, record=record, edit=edit, store=tmp_path / "s.zarr", **STAGES)
    first, second = run.stages
    assert {"energy", "x0"} <= set(first.names) and "hidden" not in first.names and "video" not in first.names
    assert {"hidden", "x0", "video", "audio"} <= set(second.names) and "energy" not in second.names
    assert second is run and second.path.name.startswith("custom-0-seed0-stage1-")
    assert first["energy"].sizes["step"] == 2 and second["latents"].sizes["step"] == 3
    assert np.array_equal(first["x0"].values, clean.stages[0]["x0"].values)
    changed = [not np.array_equal(*(r["x0"].isel(step=s).values for r in (clean, run))) for s in range(3)]
    assert changed == [False, True, True]
    # Both stand in the store, and a repeated call finds them.
    assert len(dl.open_runs(tmp_path / "s.zarr").children) == 4
    again = lens.run(SAMPLE, record=record, store=tmp_path / "s.zarr", **STAGES)
    assert again.path == clean.path and [r.path for r in again.stages] == [r.path for r in clean.stages]
    # The second stage starts from the first one's result, at its own noise level.
    assert float(second["x0"].sigma[0]) == pytest.approx(0.909375)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"audio_only": True}, r"audio_only=True makes no video"),
        ({"auto_duration": True}, r"auto_duration=True overrides"),
        (
            {
                "in_context_videos": [[picture(0)] * 9],
                "input_images": [picture(0)],
                "input_images_indexes": [8],
            },
            r"once more at every call",
        ),
        ({"use_distilled_pipeline": True}, r"8 steps and no guidance: pass steps=8, cfg_scale=1"),
        ({"record": [(dl.energy, dl.at(stage=1))]}, r"stage=1 is out of range: there are 1"),
        (
            {"record": [(dl.energy, dl.at(stream="text"))]},
            r"unknown site .block.; there are cross_k, cross_v",
        ),
        ({"record": [(dl.energy, dl.at(site="from_video"))]}, r"unknown site 'from_video'; there are block"),
        (STAGES | {"record": [(dl.energy, dl.at(step=0))]}, r"2 stages, each with steps.*dl.at\(stage=0"),
        (STAGES | {"record": [(dl.energy, dl.at(stage=1, step=5))]}, r"step=5 is out of range: there are 3"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_its_reason(pipe, lens, given, words):
    with pytest.raises(dl.PlanError, match=words):
        lens.run(SAMPLE, **({"steps": 3} | given))
    assert leftovers(pipe) == []


def test_a_call_without_its_prompt_and_a_compiled_block_are_refused(pipe):
    from dit_lens.families.diffsynth.ltx2 import look

    with pytest.raises(dl.PlanError, match="branch is unknown"):
        look({"video_latents": None})
    other = tiny_ltx.make_pipe()
    other.dit.transformer_blocks[1].compile()
    with pytest.raises(dl.PlanError, match=r"dit\.transformer_blocks\.1 is compiled"):
        dl.Lens(other).run(SAMPLE, steps=1)


@pytest.mark.parametrize("case", ["guided", "stages"])
def test_nothing_is_left_behind_when_something_raises(pipe, lens, case):
    def fail(h, at):
        raise Interrupted

    sample, given = options(case)
    scheduler = pipe.scheduler
    where = dl.at(stage=1, layer=1) if case == "stages" else dl.at(step=1, stream="audio")
    with pytest.raises(Interrupted):
        lens.run(sample, edit=[(fail, where)], **given)
    assert leftovers(pipe) == [] and pipe.scheduler is scheduler


def test_a_body_reads_and_sets_both_streams(lens):
    clean = lens.run(WORDS, steps=2, record=[(dl.hidden, dl.at(stream=s)) for s in SITES])
    got = []
    with lens.trace(WORDS, steps=2, record=[(dl.hidden, dl.at(stream=s)) for s in SITES]) as tr:
        for call in tr.calls(step=1, branch="uncond"):
            got.append(call.block(0).output.clone())
            got.append(call.block(0, stream="audio").output.clone())
            call.block(1, stream="audio").output = call.block(1, stream="audio").output * 0
    for values, name in zip(got, ("hidden", "hidden_audio"), strict=True):
        expected = clean[name].sel(step=1, branch="uncond", layer=0).values
        assert np.array_equal(values[0].numpy(), expected.reshape(values.shape[1:]))
    after = tr.run["hidden_audio"].sel(step=1, layer=1).load()
    assert not after.sel(branch="uncond").any() and after.sel(branch="cond").any()
    assert not np.array_equal(tr.run["audio"].values, clean["audio"].values)


def test_a_body_goes_through_the_stages(lens):
    seen, grids = [], set()
    with lens.trace(SAMPLE, **STAGES) as tr:
        for call in tr.calls(stage=0, step="6-7"):
            seen.append((call.stage, call.step))
        for call in tr.calls(stage=1):
            seen.append((call.stage, call.step))
            grids.add(tuple(call.block(0).output.shape))
    assert seen == [(0, 6), (0, 7), (1, 0), (1, 1), (1, 2)]
    assert grids == {(1, tr.run["latents"].isel(step=0, latent_channel=0).size, 32)}


@pytest.mark.parametrize("case", ["guided", "stages"])
def test_the_estimate_is_what_the_store_holds(lens, case):
    sample, given = options(case)
    record = [(dl.energy, dl.at(stream="audio")), dl.hidden, (dl.hidden, dl.at(stream="audio")), dl.x0]
    said = {line.variable: line.bytes for line in lens.estimate(record, sample, **given).lines}
    stages = lens.run(sample, record=record, **given).stages
    for n, run in enumerate(stages):
        for name in {"energy_audio", "hidden", "hidden_audio", "x0", "latents", "latents_audio"}:
            files = sum(f.stat().st_size for f in (run.path / name).glob("c.*"))
            assert said.pop(name + (f", stage {n}" if len(stages) > 1 else "")) == files, name
    assert not said


def test_the_papers_hook_fails_here_and_keeps_one_branch_where_ours_keeps_both(pipe, lens):
    def official(module, inputs, output):  # as the released tools have it
        return output.detach().cpu().float()

    handle = pipe.dit.transformer_blocks[0].register_forward_hook(official)
    try:
        with pytest.raises(AttributeError, match="'tuple' object has no attribute 'detach'"):
            bare(pipe, SAMPLE, steps=1)
    finally:
        handle.remove()
    values = loaded(lens.run(SAMPLE, steps=1, record=[dl.hidden]))["hidden"].isel(step=0)
    assert [str(b) for b in values.branch.values] == ["cond", "uncond"]
    assert not np.array_equal(values.sel(branch="cond").values, values.sel(branch="uncond").values)


def test_what_the_model_believed_is_written_with_its_sound(lens, tmp_path):
    import av

    from dit_lens.experiments import pictures as report

    run = lens.run(SAMPLE, steps=2, record=[dl.x0, (dl.x0, dl.at(stream="audio"))])
    report.believed(run, lens.decode, SAMPLE, tmp_path)
    for path in (tmp_path / "video.mp4", tmp_path / "x0" / "step_001.mp4"):
        with av.open(str(path)) as file:
            assert file.streams.video[0].average_rate == 24 and file.streams.audio[0].rate == 24_000
            heard = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], 1)
        wave, rate = run.sound
        length = min(heard.shape[1], wave.shape[1])
        assert length > 0.95 * wave.shape[1] and abs(wave.shape[1] / rate - 17 / 24) < 0.05
        assert np.corrcoef(heard[0, :length], wave[0, :length])[0, 1] > 0.5


PAIRS = [
    (SAMPLE, 0),
    (dl.Sample(prompt="a dog runs", negative_prompt="bad", image=picture(2), num_frames=17), 5),
]


def steps_of(batch, x, edits=None, **options):
    done = []
    for step in range(batch.steps):
        done.append(batch.step(step, x, edits=edits, **options))
        x = done[-1].latents
    return done


@pytest.mark.parametrize("pairs", [PAIRS, [(WORDS, 0)]], ids=["image", "text"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_every_row_of_a_batch_is_its_single_run_bit_for_bit(lens, pairs, cfg_scale):
    batch = lens.batch(pairs, steps=3, cfg_scale=cfg_scale)
    done = steps_of(batch, batch.noise, watch=[("block", "cond", 1)])
    for row, (sample, seed) in enumerate(pairs):
        run = loaded(lens.run(sample, seed, steps=3, cfg_scale=cfg_scale, record=BOTH))
        out = batch.outputs(done[-1].latents[row : row + 1])
        assert np.array_equal(out["video"], run["video"]) and np.array_equal(out["audio"], run["audio"])
        for step, stepped in enumerate(done):
            for stream, x0 in apart(stepped.x0).items():
                expected = run[name_of("x0", "", stream, "")].isel(step=step).values
                assert np.array_equal(x0[row].permute(1, 2, 3, 0).numpy(), expected)
            hidden = run["hidden"].sel(step=step, branch="cond", layer=1).values
            assert np.array_equal(stepped.states["block", "cond", 1][row].numpy(), hidden)


IN_BATCHES = ("block", "block_in", "latents", "x0", "from_audio", "from_video")


@pytest.mark.parametrize(("stream", "site"), [place for place in EVERYWHERE if place[1] in IN_BATCHES])
def test_an_edit_in_a_batch_does_what_it_does_to_a_single_run(lens, stream, site):
    place = dl.at(site=site, stream=stream, step=1)
    edit = dl.scale(factor=0.5)
    batch = lens.batch([(SAMPLE, 0)], steps=2)
    x = batch.noise[[0, 0]]
    for step in range(2):
        x = batch.step(step, x, rows=[0, 0], edits=[[], [Placed(edit, place)]]).latents
    for row, edits in enumerate(([], [(edit, place)])):
        run = lens.run(SAMPLE, steps=2, edit=edits)
        out = batch.outputs(x[row : row + 1])
        assert np.array_equal(out["video"], run.video) and np.array_equal(out["audio"], run["audio"].values)


def test_a_sweep_and_an_edit_over_seeds_take_the_sound_along(lens):
    batch = lens.batch([(SAMPLE, 0), (SAMPLE, 1)], steps=2)
    noise = [Placed(dl.add_noise(scale=1.0), dl.at(site="latents", step=1))]
    mean = [Placed(dl.mean_over_seeds(), dl.at(layer=1, step=1))]
    _, ended = run_arms(batch, [noise, mean])
    for pair in range(2):
        run = lens.run(SAMPLE, pair, steps=2, edit=[(noise[0].function, noise[0].place)])
        assert np.array_equal(batch.decode(ended[0, pair][None])[0], run.video)
    states = batch.step(
        1, batch.step(0, batch.noise).latents, edits=[mean, mean], groups=[0, 0], watch=[("block", "cond", 1)]
    )
    state = states.states["block", "cond", 1]
    assert torch.equal(state[0], state[1])


def test_clean_runs_hold_what_single_runs_hold(lens, tmp_path):
    (made,) = clean_runs(lens, [(SAMPLE, 0)], tmp_path / "s.zarr", steps=2)
    run = lens.run(SAMPLE, 0, steps=2, record=[dl.x0])
    for name in ("latents", "latents_audio", "x0", "video", "audio"):
        assert np.array_equal(made[name].values, run[name].values), name
    assert made.complete and made.sound[1] == 24_000


def test_x0_read_out_of_the_last_block_is_x0(lens):
    batch = lens.batch(PAIRS, steps=2)
    x = batch.noise
    for step in range(2):
        out = batch.step(
            step, x, watch=[("block", branch, layer) for branch in ("cond", "uncond") for layer in (0, 1)]
        )
        by_layer = [
            batch.readout(step, {b: out.states["block", b, layer] for b in ("cond", "uncond")}, x)
            for layer in (0, 1)
        ]
        assert torch.allclose(by_layer[1], apart(out.x0)["video"], rtol=0, atol=1e-4)
        assert not torch.allclose(by_layer[0], by_layer[1], atol=1e-2)
        x = out.latents


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input_images": [picture(1)], "input_images_indexes": [8]}, "do not go into batches: use lens.run"),
        (STAGES, "one stage"),
    ],
)
def test_what_does_not_go_into_a_batch_is_refused(lens, given, words):
    with pytest.raises(dl.PlanError, match=words):
        lens.batch([(WORDS, 0)], **({"steps": 2} | given))
    batch = lens.batch([(WORDS, 0)], steps=2)
    with pytest.raises(dl.PlanError, match=r"These latents are of video, the model has video, audio"):
        batch.step(0, batch.noise + 0)


def test_the_code_of_the_page_runs(lens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "ltx2.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    scope = {"dl": dl, "lens": lens, "image": SAMPLE.image}
    # At this model's size.
    exec(code.replace("num_frames=121", "num_frames=9").replace("layer=20", "layer=1"), scope)
    assert len(scope["run"].stages) == 2 and (tmp_path / "bell.mp4").exists()


def test_the_runs_of_a_sweep_have_their_sound(lens, tmp_path):
    edit = (dl.add_noise(scale=1.0), dl.at(site="latents", step=1))
    lens.sweep([(SAMPLE, 0), (SAMPLE, 1)], {"n": [edit]}, steps=2, store=tmp_path)
    for seed in (0, 1):
        stored = lens.batch([(SAMPLE, seed)], steps=2, edit=[edit], store=tmp_path, verify="never").run()[0]
        alone = lens.run(SAMPLE, seed, steps=2, edit=[edit])
        assert np.array_equal(stored["audio"].values, alone["audio"].values)
    assert len(list(tmp_path.glob("*seed*"))) == 4


def test_a_body_may_read_one_stream_where_the_plan_edits_the_other(lens):
    seen, edit = [], [(dl.scale(factor=0.5), dl.at(layer=0, step=1, branch="cond"))]
    with lens.trace(WORDS, steps=2, edit=edit) as tr:
        for call in tr.calls(step=1, branch="cond"):
            seen.append(call.block(0, stream="audio").output.clone())
    assert len(seen) == 1


def test_a_batch_decodes_whole(lens):
    for name in ("tiled", "framewise_decoding"):
        if name in inspect.signature(type(lens.pipe).__call__).parameters:
            with pytest.raises(dl.PlanError, match="it decodes whole videos"):
                lens.batch([(SAMPLE, 0)], steps=2, **{name: True})
