"""LTX-2: two streams, reference tokens, a mask over the first frame, two stages; the real classes at a tiny size."""

import contextlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl
from dit_lens.families.ltx2 import LTX2, SITES

# The test folder is no package: its helper is loaded by its path.
spec = importlib.util.spec_from_file_location("tiny_ltx", Path(__file__).parent / "ltx.py")
tiny_ltx = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_ltx)

EVERYWHERE = [(s, n) for s, sites in SITES.items() for n in (*sites, "latents", "velocity", "x0")]
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
    keywords = LTX2.arguments(sample, seed, steps, cfg_scale, {"progress_bar_cmd": lambda s: s, **extra})
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
            for stream, sites in SITES.items():
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
    record = [(dl.hidden, dl.at(site=n, stream=s)) for s, sites in SITES.items() for n in sites]
    stages = [s.dataset.load() for s in lens.run(sample, record=record, **given).stages]
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
    a_call = sum(map(len, SITES.values())) * tiny_ltx.LAYERS
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


@pytest.mark.parametrize(("stream", "site"), EVERYWHERE)
def test_an_edit_at_every_site_reaches_the_model_and_only_its_stream_first(lens, stream, site):
    place = {"layer": 0, "branch": "cond"} if site in SITES[stream] else {}
    record = [(dl.hidden, dl.at(stream=s)) for s in SITES] + [(dl.x0, dl.at(stream=s)) for s in SITES]
    clean = lens.run(WORDS, steps=2, record=record)
    at = dl.at(site=site, stream=stream, step=1, **place)
    run = lens.run(WORDS, steps=2, record=record, edit=[(dl.replace(value=0.5), at)])
    for s in SITES:
        name = name_of("hidden", "block", s)
        before, after = clean[name].load(), run[name].load()
        assert np.array_equal(before.isel(step=0), after.isel(step=0))
        if site not in ("velocity", "x0"):
            # What one stream holds reaches the other one within the block, or in the next.
            assert not np.array_equal(
                before.sel(step=1, branch="cond", layer=1), after.sel(step=1, branch="cond", layer=1)
            )
        if site in SITES[stream]:
            assert np.array_equal(before.sel(step=1, branch="uncond"), after.sel(step=1, branch="uncond"))
        changed = not np.array_equal(*(r[name_of("x0", "", s, "")].isel(step=1).values for r in (clean, run)))
        assert changed == (s == stream or site not in ("velocity", "x0"))


@pytest.mark.parametrize("stream", SITES)
def test_patching_a_run_with_its_own_states_changes_nothing(lens, stream):
    clean = lens.run(SAMPLE, steps=2, record=[(dl.hidden, dl.at(stream=stream))])
    source = clean[name_of("hidden", "block", stream)]
    again = lens.run(SAMPLE, steps=2, edit=[(dl.patch(source), dl.at(stream=stream))])
    assert np.array_equal(clean.video, again.video) and np.array_equal(clean["audio"], again["audio"])


def test_a_region_of_the_sound_is_edited_alone(lens):
    record = [(dl.hidden, dl.at(stream="audio", layer=1))]
    clean = lens.run(WORDS, steps=1, record=record)["hidden_audio"].load()
    edit = [(dl.zero(), dl.at(stream="audio", layer=1, frame="3-5"))]
    run = lens.run(WORDS, steps=1, record=record, edit=edit)["hidden_audio"].load()
    changed = (clean != run).any("channel_audio").isel(step=0, branch=0, layer=0, y_audio=0, x_audio=0)
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
    velocity = LTX2.readout(pipe.dit, state, {**seen, "latents": seen["video_latents"]})
    assert torch.allclose(velocity, seen["both"][0], rtol=0, atol=1e-5)


class Interrupted(Exception):
    pass


# Calls of the model before the interruption, and after it: the last step that stands in the store runs once more.
INTERRUPTED = [("guided", 4, 4), ("later", 5, 4), ("stages", 5, 3 + 1 + 3), ("stages", 8 + 2, 1 + 1 + 1)]


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
