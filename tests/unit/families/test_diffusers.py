"""diffusers' own pipelines under tracing: nothing changes, labels are right, edits reach what they should."""

import inspect

import numpy as np
import pytest
import torch

import dit_lens as dl

pytest.importorskip("diffusers")

# Where each class returns (video, text), read off its code: not through the registry, which the library uses.
RETURNS = {
    "WanTransformerBlock": (None, None),
    "LTXVideoTransformerBlock": (None, None),
    "BasicTransformerBlock": (None, None),
    "CogVideoXBlock": (0, 1),
    "HunyuanVideoTransformerBlock": (0, 1),
    "HunyuanVideoSingleTransformerBlock": (0, 1),
    "MochiTransformerBlock": (0, 1),
    "FluxTransformerBlock": (1, 0),
    "FluxSingleTransformerBlock": (1, 0),
    "JointTransformerBlock": (1, 0),
}
UNGUIDED, GUIDED = {"cfg_scale": 1.0}, {"cfg_scale": 3.0}


def transformers(pipe):
    found = {"high": pipe.transformer, "low": getattr(pipe, "transformer_2", None)}
    return found if found["low"] is not None else {"dit": found["high"]}


def blocks(dit):
    lists = [getattr(dit, n, []) for n in ("blocks", "transformer_blocks", "single_transformer_blocks")]
    return [block for found in lists for block in found]


def leftovers(pipe):
    found = []
    for expert, dit in transformers(pipe).items():
        for name, m in dit.named_modules():
            if m._forward_hooks or m._forward_pre_hooks or {"forward", "cache_context"} & set(vars(m)):
                found.append(f"{expert}.{name}")
    found += [n for n in ("prepare_latents",) if n in vars(pipe)]
    return found + [n for n in ("step",) if n in vars(pipe.scheduler)]


class Independent:
    """A recorder of its own: steps by the scheduler's calls, branches by what the model is told to make."""

    def __init__(self, pipe, cond=None):
        self.pipe, self.cond, self.step, self.states, self.told, self.samples = pipe, cond, 0, {}, [], []
        self.handles = []
        for expert, dit in transformers(pipe).items():
            self.handles.append(dit.register_forward_pre_hook(self.before(expert), with_kwargs=True))
            for layer, block in enumerate(blocks(dit)):
                self.handles.append(block.register_forward_hook(self.after(layer)))
        original, names = pipe.scheduler.step, list(inspect.signature(pipe.scheduler.step).parameters)

        def step(*args, **kwargs):
            given = dict(zip(names, args, strict=False)) | kwargs
            self.samples.append((given["sample"].clone(), given["model_output"].clone()))
            out = original(*args, **kwargs)
            self.step += 1
            return out

        pipe.scheduler.step = step

    def before(self, expert):
        def hook(module, args, kwargs):
            text = kwargs.get("class_labels", kwargs.get("encoder_hidden_states"))
            self.told.append(text.clone())
            same = [self.cond is not None and torch.equal(row, self.cond) for row in text]
            self.now = expert, ["cond" if s else "uncond" for s in same]

        return hook

    def after(self, layer):
        def hook(module, args, output):
            video, text = RETURNS[type(module).__name__]
            values = {"video": output if video is None else output[video]}
            if text is not None and output[text] is not None:
                values["text"] = output[text]
            expert, branches = self.now
            for stream, value in values.items():
                for row, branch in zip(value, branches, strict=True):
                    self.states[stream, self.step, expert, branch, layer] = row.clone()

        return hook

    def close(self):
        del self.pipe.scheduler.step
        for handle in self.handles:
            handle.remove()


def watched(case, **options):
    """Run a pipeline bare under the independent recorder; what a run without guidance is told is the condition."""
    first = Independent(case.pipe)
    case.bare(steps=2, cfg_scale=1.0)
    first.close()
    out = Independent(case.pipe, first.told[0][0])
    case.bare(**options)
    out.close()
    return out


def same(h, at):
    return h


def copy(h, at):
    return h.clone()


@pytest.mark.parametrize("cfg", [UNGUIDED, GUIDED], ids=["unguided", "guided"])
@pytest.mark.parametrize("edit", [None, same, copy], ids=["no edit", "same", "copy"])
def test_tracing_changes_nothing_bit_for_bit(case, cfg, edit):
    expected = (case.bare(steps=2, **cfg) * 255).round()
    lens = dl.Lens(case.pipe)
    places = [dl.at(site=s, stream=n, layer=0) for n, sites in lens.streams.items() for s in sites]
    places += [dl.at(site=s) for s in ("latents", "velocity", "x0")]
    record = [dl.energy, dl.x0, dl.velocity, (dl.hidden, dl.at(site="block_in"))]
    run = case.run(lens, steps=2, record=record, edit=[(edit, p) for p in places] if edit else [], **cfg)
    assert run.video.dtype == np.uint8 and np.array_equal(run.video, expected)
    assert leftovers(case.pipe) == []


@pytest.mark.parametrize("cfg", [UNGUIDED, GUIDED], ids=["unguided", "guided"])
def test_every_value_stands_under_the_label_that_an_independent_recorder_gives(case, cfg):
    seen = watched(case, **cfg)
    lens = dl.Lens(case.pipe)
    text = [(dl.hidden, dl.at(stream="text", layer=0))] if "block" in lens.streams.get("text", ()) else []
    run = case.run(lens, record=[dl.hidden, dl.velocity, *text], **cfg)
    values = {"video": run["hidden"].load(), "text": run["hidden_text"].load() if text else None}
    branches = ["cond"] if cfg is UNGUIDED else ["cond", "uncond"]
    assert [str(b) for b in values["video"].branch.values] == branches
    experts = {step: expert for _, step, expert, *_ in seen.states}
    assert [str(e) for e in values["video"].expert.values] == [experts[s] for s in range(3)]
    assert set(experts.values()) == set(transformers(case.pipe))  # the switch came in mid-run
    counts = {"video": 0, "text": 0}
    for (stream, step, _, branch, layer), expected in seen.states.items():
        if stream == "video" or (layer == 0 and text):
            got = values[stream].sel(step=step, branch=branch, layer=layer).values
            assert np.array_equal(got.reshape(expected.shape), expected.numpy()), (
                stream,
                step,
                branch,
                layer,
            )
            counts[stream] += 1
    assert counts == {"video": 3 * len(branches) * lens.layers, "text": 3 * len(branches) * bool(text)}
    for step, (sample, output) in enumerate(seen.samples):
        for name, expected in (("latents", sample), ("velocity", output)):
            got = torch.from_numpy(run[name].isel(step=step).values)  # [frame, y, x, channel]
            assert torch.equal(got[case.held :], arranged(case, expected[0])), (name, step)
            still = run[name].isel(step=0).values[: case.held] * (name == "latents")  # its velocity is zero
            assert np.array_equal(got[: case.held].numpy(), still)


def arranged(case, x):
    """Return one row of a pipeline's latents as [frame, y, x, channel], by the pipelines' own code."""
    if case.name == "flux":
        h, w = case.sample.size
        return case.pipe._unpack_latents(x[None], h, w, case.pipe.vae_scale_factor)[0].permute(1, 2, 0)[None]
    if case.name.startswith("ltx") and x.ndim == 2:
        f, h, w = case.latent
        return case.pipe._unpack_latents(x[None], f, h, w)[0].permute(1, 2, 3, 0)
    if case.name == "cogvideox":
        return x.permute(0, 2, 3, 1)
    return x.permute(1, 2, 0)[None] if x.ndim == 3 else x.permute(1, 2, 3, 0)


def test_an_edit_of_latents_is_what_the_pipeline_would_have_gone_on_from(case):
    """Against a scheduler that is made to return other latents after its first step."""
    pipe, original = case.pipe, case.pipe.scheduler.step
    first = []

    def step(*args, **kwargs):
        out = original(*args, **kwargs)
        if first:
            return out
        first.append(True)
        if isinstance(out, tuple):
            return (out[0] + 0.5, *out[1:])
        out.prev_sample = out.prev_sample + 0.5
        return out

    pipe.scheduler.step = step
    try:
        expected = case.bare(**GUIDED)
    finally:
        del pipe.scheduler.step

    def shifted(h, at):
        return torch.cat([h[: case.held], h[case.held :] + 0.5])

    run = case.run(dl.Lens(pipe), edit=[(shifted, dl.at(site="latents", step=1))], **GUIDED)
    assert np.array_equal(run.video, (expected * 255).round())


def test_an_edit_at_every_site_changes_its_place_and_what_follows_alone(case):
    lens = dl.Lens(case.pipe)
    step = 1
    for stream, sites in lens.streams.items():
        record = [dl.hidden]
        before = case.run(lens, record=record, **GUIDED)
        clean = before["hidden"].load()
        for site in sites:
            place = dl.at(site=site, stream=stream, layer=0, step=step, branch="uncond")
            at_site = (
                []
                if (site, stream) == ("block", "video")
                else [(dl.hidden, dl.at(site=site, stream=stream, layer=0))]
            )
            run = case.run(lens, record=[*record, *at_site], edit=[(dl.replace(value=3.0), place)], **GUIDED)
            changed = (run["hidden"].load() != clean).any(("frame", "y", "x", "channel"))
            assert not changed.sel(step=0).any() and not changed.sel(step=step, branch="cond").any(), (
                site,
                stream,
            )
            assert changed.sel(step=step, branch="uncond", layer=1), (site, stream)
            assert changed.sel(step=2).all(), (site, stream)
            name = (
                "hidden"
                + ("" if site == "block" else f"_{site}")
                + ("" if stream == "video" else f"_{stream}")
            )
            assert (run[name].sel(step=step, branch="uncond", layer=0) == 3).all(), (site, stream)


def test_x0_is_what_the_scheduler_takes_it_for(case):
    """Against the scheduler's own estimate, where it gives one, or its step to the end."""
    pipe, original, found = case.pipe, case.pipe.scheduler.step, []
    final = []
    names = list(inspect.signature(original).parameters)

    def step(*args, **kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        scheduler, x, v = pipe.scheduler, given["sample"], given["model_output"]
        out = original(*args, **kwargs)
        index = getattr(scheduler, "step_index", None)
        if hasattr(scheduler, "convert_model_output"):
            found.append(scheduler.model_outputs[-1])
        elif hasattr(scheduler, "sigmas"):
            found.append(x + (scheduler.sigmas[-1] - scheduler.sigmas[index - 1]) * v)
        else:
            found.append(original(v, given["timestep"], x).pred_original_sample)
        final.append(out[0] if isinstance(out, tuple) else out.prev_sample)
        return out

    pipe.scheduler.step = step
    try:
        case.bare(**GUIDED)
    finally:
        del pipe.scheduler.step
    lens = dl.Lens(pipe)
    run = case.run(lens, record=[dl.x0], **GUIDED)
    for step in range(3):
        got = torch.from_numpy(run["x0"].isel(step=step).values)
        torch.testing.assert_close(got[case.held :], arranged(case, found[step][0]), rtol=0, atol=2e-6)
    still = torch.from_numpy(run["latents"].isel(step=0).values[: case.held])
    assert np.array_equal(lens.decode(torch.cat([still, arranged(case, final[-1][0])])), run.video)
    sigmas = run["x0"].sigma.values
    assert (np.diff(sigmas) < 0).all() and 0 < sigmas[-1] < sigmas[0] <= 1


def test_an_edit_of_x0_is_the_velocity_that_gives_it(case):
    """Every step is told what the clean latents are: the last one ends there."""
    lens = dl.Lens(case.pipe)

    def ramp(h, at):
        return torch.cat([h[: case.held], torch.linspace(-0.9, 0.9, h.numel()).view_as(h)[case.held :]])

    run = case.run(lens, record=[dl.x0], edit=[(ramp, dl.at(site="x0"))])
    x0 = run["x0"].isel(step=-1)
    expected = ramp(torch.zeros(x0.shape), None)[case.held :]
    got = torch.from_numpy(x0.values)[case.held :]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)  # the way to the velocity and back rounds
    assert np.abs(lens.decode(x0).astype(int) - run.video.astype(int)).max() <= 1


def test_the_estimate_is_what_a_run_has(case):
    lens = dl.Lens(case.pipe)
    run = case.run(lens, steps=2, record=[dl.hidden, dl.x0])
    latent = lens.family.anatomy.latent_grid(case.pipe, case.sample)
    assert run["x0"].shape[1:] == (*latent[1:], latent[0])
    grid = lens.family.anatomy.token_grid(case.pipe.transformer, latent)
    assert run["hidden"].shape[3:] == (*grid, lens.family.anatomy.channels(case.pipe.transformer))


def test_a_body_reads_and_sets_what_a_block_holds(case):
    lens = dl.Lens(case.pipe)
    plain = case.run(lens, steps=2, record=[dl.hidden], **GUIDED)
    stream = [name for name, sites in lens.streams.items() if "block" in sites][-1]
    with lens.trace(case.sample, steps=2, **GUIDED, **case.extra) as tr:
        tr.record(dl.hidden, dl.at(layer=1))
        kept = [].save()
        for call in tr.calls(step=1):
            given = call.block(0).input
            h = call.block(0).output
            kept.append(
                (call.branch, call.expert, given.shape, h.clone(), call.block(0, stream).output.shape)
            )
            call.block(0).output = h + 1
    branches = "+".join(b for b, *_ in kept)
    assert sorted(branches.split("+")) == ["cond", "uncond"]
    for branch, expert, shape, h, _ in kept:
        for n, name in enumerate(branch.split("+")):
            expected = plain["hidden"].sel(step=1, branch=name, layer=0)
            count = expected.values[..., 0].size
            part = h[n if len(h) > 1 else 0][:count].numpy()
            assert np.array_equal(part, expected.values.reshape(count, -1)), (branch, expert)
        assert shape == h.shape
    assert not np.array_equal(
        tr.run["hidden"].sel(step=1).values, plain["hidden"].sel(step=1, layer=1).values
    )
    assert np.array_equal(
        tr.run["hidden"].sel(step=0, layer=1).values, plain["hidden"].sel(step=0, layer=1).values
    )
    assert leftovers(case.pipe) == []
