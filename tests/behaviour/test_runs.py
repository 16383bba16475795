"""Tracing changes nothing, labels are right, and what does not happen is an error."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families.diffsynth.wan import SITES
from dit_lens.plan.plan import Placed

EVERY_SITE = [*(n for n in SITES["video"] if not n.endswith("attention")), "latents", "velocity", "x0"]


def same(h, at):
    return h


def copy(h, at):
    return h.clone()


class Independent:
    """A recorder of its own: patches the pipeline's model_fn, labels by its keywords, and hooks the blocks plainly."""

    def __init__(self, pipe, paths):
        self.pipe, self.values, self.now, self.step = pipe, {}, None, -1
        self.last, self.original = None, pipe.model_fn
        self.handles = []
        for name in ("dit", "dit2"):
            dit = getattr(pipe, name)
            for layer, block in enumerate(dit.blocks if dit is not None else []):
                for site, path in paths.items():
                    module = block.get_submodule(path) if path else block
                    self.handles.append(module.register_forward_hook(self.hook(site, layer)))
        pipe.model_fn = self.call

    def hook(self, site, layer):
        def keep(module, args, output):
            self.values[(*self.now, site, layer)] = output.clone()

        return keep

    def call(self, **kw):
        timestep = float(kw["timestep"])
        if timestep != self.last:
            self.last, self.step = timestep, self.step + 1
        expert = "dit" if self.pipe.dit2 is None else "low" if kw["dit"] is self.pipe.dit2 else "high"
        branch = "merged" if kw.get("cfg_merge") else "cond" if kw["positive"] else "uncond"
        self.now = self.step, expert, branch
        return self.original(**kw)

    def close(self):
        self.pipe.model_fn = self.original
        for handle in self.handles:
            handle.remove()


OUTPUT_SITES = {n: s.path for n, s in SITES["video"].items() if s.end == "output" and not s.heads}
CASES = {
    "unguided": {"cfg_scale": 1.0},
    "guided": {"cfg_scale": 3.0},
    "merged": {"cfg_scale": 3.0, "cfg_merge": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("experts", [1, 2])
def test_every_value_stands_under_the_label_that_an_independent_recorder_gives(
    request, sample, run_bare, case, experts
):
    pipe = request.getfixturevalue("pipe" if experts == 1 else "two_experts")
    extra = CASES[case]
    watcher = Independent(pipe, OUTPUT_SITES)
    try:
        run_bare(pipe, sample, steps=4, **extra)
    finally:
        watcher.close()
    record = [(dl.hidden, dl.at(site=site)) for site in OUTPUT_SITES]
    run = dl.Lens(pipe).run(sample, steps=4, record=record, **extra)
    served = {(step, expert) for step, expert, *_ in watcher.values}
    assert len({expert for _, expert in served}) == experts  # the switch came in mid-run
    experts_by_step = dict(served)
    first = run["hidden"]
    assert [str(e) for e in first.expert.values] == [experts_by_step[s] for s in range(4)]
    assert np.allclose(first.sigma.values, pipe.scheduler.sigmas.numpy(), atol=0)
    assert np.allclose(first.timestep.values, pipe.scheduler.timesteps.numpy(), atol=0)
    branches = ["cond"] if case == "unguided" else ["cond", "uncond"]
    assert [str(b) for b in first.branch.values] == branches
    count = 0
    for site in OUTPUT_SITES:
        values = run["hidden" if site == "block" else f"hidden_{site}"].load()
        for (step, expert, branch, where, layer), expected in watcher.values.items():
            if where != site:
                continue
            rows = zip(branches, expected, strict=True) if branch == "merged" else [(branch, expected[0])]
            for name, tokens in rows:
                got = values.sel(step=step, branch=name, layer=layer).values.reshape(-1, tokens.shape[-1])
                assert np.array_equal(got, tokens.numpy()), (site, step, expert, name, layer)
                count += 1
    assert count == len(OUTPUT_SITES) * 4 * len(branches) * 3


@pytest.mark.parametrize("edit", [None, same, copy], ids=["no edit", "same", "copy"])
@pytest.mark.parametrize("case", CASES)
def test_tracing_changes_nothing_bit_for_bit(two_experts, sample, run_bare, left_behind, case, edit):
    expected = run_bare(two_experts, sample, **CASES[case])
    edits = [(edit, dl.at(site=site)) for site in EVERY_SITE] if edit else []
    record = [dl.energy, dl.x0, dl.velocity, (dl.hidden, dl.at(site="block_in"))]
    run = dl.Lens(two_experts).run(sample, steps=3, record=record, edit=edits, **CASES[case])
    assert np.array_equal(run.video, expected)
    assert left_behind(two_experts) == []


def test_a_prompt_batch_has_a_sample_dimension(tiny_pipe):
    from dit_lens.families.diffsynth.wan import WAN

    pipe = tiny_pipe(config={"in_dim": 48})  # text alone: no channels for an image
    two = dl.Sample(prompt=("solve the maze", "circle the disc"), size=(32, 32), num_frames=5)
    watched = Independent(pipe, {"block": ""})
    inner, pipe.model_fn = pipe.model_fn, watched.call
    try:
        pipe(
            **WAN.call.arguments(
                two, 0, 2, 3.0, {"progress_bar_cmd": lambda s: s, "output_type": "floatpoint"}
            )
        )
    finally:
        pipe.model_fn = inner
        watched.close()
    run = dl.Lens(pipe).run(
        two, steps=2, cfg_scale=3.0, record=[dl.hidden, dl.energy, dl.x0], output_type="floatpoint"
    )
    assert run["hidden"].dims == ("sample", "step", "branch", "layer", "frame", "y", "x", "channel")
    assert run["latents"].sizes["sample"] == 2
    for (step, _, branch, _, layer), expected in watched.values.items():
        got = run["hidden"].sel(step=step, branch=branch, layer=layer).values
        assert np.array_equal(got.reshape(2, -1, 64), expected.numpy())
    assert not np.array_equal(run["hidden"].isel(sample=0).values, run["hidden"].isel(sample=1).values)


def test_x0_is_the_schedulers_own_last_step(pipe, lens, sample):
    run = lens.run(sample, steps=3, cfg_scale=2.0, record=[dl.x0, dl.velocity])
    for step in range(3):
        x, v = (torch.from_numpy(run[n].isel(step=step).values) for n in ("latents", "velocity"))
        clean = pipe.scheduler.step(v, pipe.scheduler.timesteps[step], x, to_final=True)
        assert np.array_equal(run["x0"].isel(step=step).values, clean.numpy())
    assert np.array_equal(lens.decode(run["x0"].isel(step=-1)), run.video)


def test_the_readout_of_the_last_block_is_the_velocity(pipe, lens, sample):
    run = lens.run(sample, steps=2, cfg_scale=1.0, record=[dl.hidden, dl.velocity])
    for step in range(2):
        state = torch.from_numpy(run["hidden"].isel(step=step, branch=0, layer=-1).values)[None].flatten(1, 3)
        latents = torch.from_numpy(run["latents"].isel(step=step).values).permute(3, 0, 1, 2)[None]
        keywords = {"latents": latents, "timestep": pipe.scheduler.timesteps[step][None]}
        velocity = lens.family.flow.readout(pipe.dit, state, keywords)[0].permute(1, 2, 3, 0)
        assert np.array_equal(velocity.numpy(), run["velocity"].isel(step=step).values)


def test_an_edit_reaches_the_model_and_only_its_place(lens, sample):
    clean = lens.run(sample, steps=3, cfg_scale=2.0, record=[dl.hidden])
    place = dl.at(layer=1, step=1, branch="uncond", frame=1, y="0-1", x=0)
    run = lens.run(sample, steps=3, cfg_scale=2.0, record=[dl.hidden], edit=[(dl.replace(value=7.0), place)])
    a, b = clean["hidden"].load(), run["hidden"].load()
    here = b.sel(step=1, branch="uncond", layer=1)
    assert (here.isel(frame=1, y=slice(0, 2), x=0) == 7).all()
    changed = (a != b).any("channel")
    assert int(changed.sel(step=1, branch="uncond", layer=1).sum()) == 2
    assert not changed.sel(step=0).any() and not changed.sel(step=1, branch="cond").any()
    assert not changed.sel(step=1, branch="uncond", layer=0).any()
    assert changed.sel(step=1, branch="uncond", layer=2).all() and changed.sel(step=2).all()


def test_patching_a_run_with_its_own_states_changes_nothing(lens, sample):
    clean = lens.run(sample, steps=2, cfg_scale=2.0, record=[dl.hidden, dl.x0])
    again = lens.run(sample, steps=2, cfg_scale=2.0, record=[dl.x0], edit=[dl.patch(clean["hidden"])])
    assert np.array_equal(clean["x0"], again["x0"]) and np.array_equal(clean.video, again.video)


def test_what_a_record_returns_never_reaches_the_model(lens, pipe, sample, run_bare):
    @dl.keeps("frame", "y", "x", "channel")
    def ruin(h):
        return h * 0

    sites = ("block", "block_in", "q", "x0", "latents")
    run = lens.run(sample, steps=2, cfg_scale=1.0, record=[(ruin, dl.at(site=s)) for s in sites])
    assert np.array_equal(run.video, run_bare(pipe, sample, steps=2))
    assert (run["ruin_q"].values == 0).all()


class Stop(Exception):
    pass


def fail(h, at):
    raise Stop


@dl.keeps("frame", "y", "x")
def fail_record(h):
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["edit", "record", "model", "vae"])
def test_nothing_is_left_behind_when_something_raises(pipe, lens, sample, left_behind, monkeypatch, what):
    options = {"record": [dl.energy]}
    if what == "edit":
        options["edit"] = [(fail, dl.at(step=1, layer=2))]
    elif what == "record":
        options["record"] = [(fail_record, dl.at(step=1))]
    elif what == "model":
        monkeypatch.setattr(type(pipe.dit.blocks[1]), "forward", lambda *a, **k: fail(0, 0))
    else:
        monkeypatch.setattr(type(pipe.vae), "decode", lambda *a, **k: fail(0, 0))
    with pytest.raises((Stop, KeyboardInterrupt)):
        lens.run(sample, steps=3, **options)
    assert left_behind(pipe) == []
    monkeypatch.undo()
    assert lens.run(sample, steps=1).complete


def test_a_place_that_never_fires_names_coordinate_module_and_remedy(pipe, lens, sample, left_behind):
    original = pipe.model_fn

    def skipping(**kw):
        block = kw["dit"].blocks[1]
        block.forward, run = (lambda x, *a: x), block.forward
        try:
            # Skip the block as a cache would: its module is not called at all.
            blocks = kw["dit"].blocks
            kw["dit"].blocks = torch.nn.ModuleList([b for b in blocks if b is not block])
            return original(**kw)
        finally:
            block.forward = run
            del block.forward
            kw["dit"].blocks = blocks

    pipe.model_fn = skipping
    try:
        with pytest.raises(
            dl.CaptureError, match=r"step=0, branch=cond, layer=1.*blocks\.1.*Leave the place out"
        ):
            lens.run(sample, steps=2, record=[dl.energy])
    finally:
        pipe.model_fn = original
    assert left_behind(pipe) == []


def test_an_expert_that_never_serves_is_an_error(two_experts, sample):
    with pytest.raises(dl.CaptureError, match=r"energy.*never fired"):
        dl.Lens(two_experts).run(
            sample, steps=2, switch_DiT_boundary=0.0, record=[(dl.energy, dl.at(expert="low"))]
        )


def test_a_batch_and_a_sweep_refuse_a_place_that_never_fires_before_anything_runs(
    two_experts, sample, tmp_path, monkeypatch
):
    lens, never = dl.Lens(two_experts), dl.at(expert="low", step=0)
    steps = {"steps": 2, "cfg_scale": 1.0}
    monkeypatch.setattr("dit_lens.engine.sweep.run_arms", None)  # nothing may run
    with pytest.raises(dl.PlanError, match=r"energy at\(.*never fired in this run"):
        lens.sweep([(sample, 0)], {"none": []}, record=[(dl.energy, never)], store=tmp_path, **steps)
    monkeypatch.setattr("dit_lens.engine.batch.check_against_pipeline", None)
    for entries in ({"record": [(dl.energy, never)]}, {"edit": [(dl.zero(), never)]}):
        with pytest.raises(dl.PlanError, match="never fired in this run: no step had its sigma and expert"):
            lens.batch([(sample, 0)], **steps, **entries)


@dl.keeps("frame", "y")
def wrong_dims(h):
    return h[..., 0]


@dl.keeps("frame", "y", "x")
def wrong_size(h):
    return h[:1, ..., 0]


@dl.keeps("channel")
def not_a_tensor(h):
    return 1.0


@dl.keeps("thing")
def changing(h, seen=[]):  # noqa: B006
    seen.append(1)
    return h.new_zeros(len(seen))


def undeclared(h):
    return h


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"record": [(dl.energy, dl.at(layer=3))]}, r"energy.*layer=3.*there are 3 of them, 0 to 2"),
        ({"record": [(dl.energy, dl.at(step="1-9"))]}, r"step=1-9 is out of range: there are 2"),
        ({"record": [(dl.energy, dl.at(site="mlp"))]}, r"unknown site 'mlp'; there are block"),
        ({"record": [(dl.energy, dl.at(branch="uncond"))]}, r"no branch 'uncond', only cond.*cfg_scale=1"),
        ({"record": [(dl.energy, dl.at(expert="low"))]}, r"no expert 'low', only dit"),
        ({"record": [(dl.energy, dl.at(sigma=(0.0, 0.1)))]}, r"no selected step has its sigma"),
        ({"record": [(dl.x0, dl.at(layer=1))]}, r"x0 stands outside the blocks"),
        ({"record": [undeclared]}, r"declare the dimensions"),
        ({"record": [wrong_dims]}, r"wrong_dims at block\(step=0.*returned torch.float32.*declares"),
        ({"record": [wrong_size]}, r"frame=1, but there are 3"),
        ({"record": [not_a_tensor]}, r"returned float"),
        ({"record": [changing]}, r"float32 \(2,\), and torch.float32 \(1,\) before"),
        ({"record": [dl.energy, (dl.energy, dl.at(layer=1))]}, r"Two records write 'energy'"),
        ({"edit": [dl.add_noise]}, r"call it with its options"),
        ({"edit": [lambda h, at: h[:1]]}, r"edit lambda at block\(step=0.*return the same shape and type"),
        ({"edit": [lambda h, at: h.double()]}, r"returned torch.float64.*value is torch.float32"),
        ({"edit": [lambda h, at: None]}, r"returned NoneType"),
        ({"tea_cache_l1_thresh": 0.1, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}, r"TeaCache skips"),
        (
            {"sliding_window_size": 2, "sliding_window_stride": 1},
            r"sliding windows run the model several times",
        ),
        ({"steps": 0}, r"steps=0"),
    ],
)
def test_bad_input_is_refused_with_its_place_and_a_remedy(pipe, lens, sample, left_behind, options, words):
    with pytest.raises(dl.DitLensError, match=words):
        lens.run(sample, **{"steps": 2, "cfg_scale": 1.0, **options})
    assert left_behind(pipe) == []


def test_a_pipeline_is_traced_once_at_a_time(pipe, lens, sample):
    def nested(h, at):
        lens.run(sample, steps=1)

    with pytest.raises(dl.PlanError, match="traced already"):
        lens.run(sample, steps=1, edit=[nested])


SEEN = {}


def look_for_hooks(h, at):
    modules = SEEN["pipe"].named_modules()
    SEEN["hooks"] = [n for n, m in modules if m._forward_hooks or m._forward_pre_hooks]
    return h


def test_hooks_stand_only_where_something_is_placed(pipe, lens, sample):
    SEEN["pipe"] = pipe
    record = [(dl.energy, dl.at(site="q", layer=2)), dl.x0]
    lens.run(sample, steps=1, edit=[(look_for_hooks, dl.at(layer=1))], record=record)
    assert SEEN["hooks"] == ["dit.blocks.1", "dit.blocks.2.self_attn.q"]


def test_nan_and_inf_are_kept_and_counted(lens, sample):
    def spoil(h, at):
        h = h.clone()
        h[0, 0, 0, 0], h[0, 0, 0, 1] = float("nan"), float("inf")
        return h

    place = dl.at(layer=2)
    run = lens.run(sample, steps=1, cfg_scale=1.0, record=[(dl.hidden, place)], edit=[(spoil, place)])
    here = run["hidden"].isel(step=0, branch=0, layer=0, frame=0, y=0, x=0).values
    assert np.isnan(here[0]) and np.isinf(here[1])
    assert run.status.nan["hidden"] == 1 and run.status.inf["hidden"] == 1


@pytest.mark.parametrize("encoding", ["float32", "codes"])
def test_bfloat16_states_survive_the_store_bit_for_bit(tiny_pipe, run_bare, encoding, tmp_path):
    from dit_lens.store import read_codes

    pipe = tiny_pipe(dtype=torch.bfloat16)
    small = dl.Sample(
        prompt="solve the maze", image=dl.tasks.occlude(0).image.crop((0, 0, 32, 32)), num_frames=5
    )
    kept = {}

    def keep(h, at):
        kept[at.layer] = h.clone()
        return h

    run = dl.Lens(pipe).run(
        small,
        steps=1,
        cfg_scale=1.0,
        record=[dl.hidden],
        edit=[keep],
        encoding=encoding,
        store=tmp_path / "s.zarr",
    )
    assert np.array_equal(run.video, run_bare(pipe, small, steps=1))
    for layer, value in kept.items():
        codes = read_codes(run.path, "hidden", {"step": 0, "branch": 0, "layer": layer})
        assert np.array_equal(codes, value.view(torch.uint16).numpy())
        assert np.array_equal(run["hidden"].isel(step=0, branch=0, layer=layer).values, value.float().numpy())


def test_states_of_another_schedule_are_refused_unless_one_step_is_picked(lens, sample):
    source = lens.run(sample, steps=5, record=[dl.hidden])["hidden"]
    with pytest.raises(dl.PlanError, match=r"step 1 has sigma 0\.\d+, this run's 0\.\d+"):
        lens.run(sample, steps=2, edit=[(dl.patch(source), dl.at(layer=1, step=1))])
    picked = source.sel(step=1)
    lens.run(sample, steps=2, edit=[(dl.patch(picked), dl.at(layer=1, step=1))])


def test_states_of_another_model_are_refused_and_a_users_own_array_is_not(lens, tiny_pipe, sample, tmp_path):
    other = dl.Lens(tiny_pipe(seed=1))
    run = other.run(sample, steps=2, record=[dl.hidden], store=tmp_path / "runs.zarr")
    offline = next(iter(dl.open_runs(tmp_path).leaves))
    place = dl.at(layer=1, step=1)
    for source in (run["hidden"], run["hidden"].sel(step=1).load(), offline["hidden"]):
        said = rf"another model \(fingerprint {other.fingerprint()}; this model: {lens.fingerprint()}"
        with pytest.raises(dl.PlanError, match=said):
            lens.run(sample, steps=2, edit=[(dl.patch(source), place)])
        with pytest.raises(dl.PlanError, match="another model"):
            lens.batch([(sample, 0)], steps=2).binding(Placed(dl.patch(source), place))
        other.run(sample, steps=2, edit=[(dl.patch(source), place)])
    mine = lens.run(sample, steps=2, edit=[(dl.patch(run["hidden"].drop_attrs()), place)], record=[dl.hidden])
    assert np.array_equal(mine["hidden"].sel(layer=1, step=1), run["hidden"].sel(layer=1, step=1))


def test_states_and_masks_of_other_grids_and_steps_are_refused(lens, sample):
    source = lens.run(sample, steps=3, record=[dl.hidden])["hidden"]
    longer = replace(sample, num_frames=5)
    with pytest.raises(dl.PlanError, match=r"the source is \(3, 3, 2, 64\) there, the value \(2, 3, 2, 64\)"):
        lens.run(longer, steps=3, edit=[(dl.patch(source), dl.at(layer=1))])
    with pytest.raises(
        dl.PlanError, match=r"patch at block\(step=[01].*patch between runs of the same number of steps"
    ):
        lens.run(sample, steps=4, edit=[(dl.patch(source), dl.at(layer=1))])
    mask = np.ones((2, 3, 2), bool)
    with pytest.raises(dl.PlanError, match=r"The mask is .*\(2, 3, 2\)"):
        lens.run(sample, steps=1, edit=[(dl.zero(), dl.at(layer=1, mask=mask))])


def test_a_lazy_array_outlives_its_run_and_the_folder_goes_with_the_last_of_them(lens, sample):
    run = lens.run(sample, steps=2, record=[dl.hidden])
    folder, held = run.path.parent, run["hidden"].load().copy()
    part = run.dataset["hidden"].isel(layer=1)
    copy, sigma = part.copy(deep=True), part.sigma
    del run, part
    gc.collect()
    assert np.array_equal(copy, held.isel(layer=1)) and sigma.values[0] == 1
    assert folder.is_dir()
    del copy, sigma
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["edit", "record"])
def test_an_error_of_a_users_function_says_where_it_was_raised(lens, sample, kind):
    @dl.keeps("frame")
    def broken(h, *at):
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="of the user's own") as raised:
        lens.run(sample, steps=2, **{kind: [(broken, dl.at(layer=1, step=1, branch="cond"))]})
    (note,) = raised.value.__notes__
    assert all(part in note for part in ("broken", "step=1", "layer=1"))


def test_several_prompts_with_an_image_are_refused(lens, sample):
    with pytest.raises(dl.PlanError, match="Several prompts with an image"):
        lens.run(sample.with_(prompt=("solve the maze", "go to one goal")), steps=1)


def test_a_region_is_held_against_the_frames_that_an_argument_asks_for(lens, sample):
    """The sample has 9 frames, 3 of them latent."""

    def edited(frame, step, frames):
        place = dl.at(layer=0, frame=frame, step=step)
        return lens.run(
            sample, steps=3, cfg_scale=1.0, num_frames=frames, edit=[(dl.zero(), place)], record=[dl.hidden]
        )

    hidden = edited(frame=3, step=0, frames=13)["hidden"].sel(layer=0, step=0, branch="cond")
    assert (hidden.sel(frame=3) == 0).all() and (hidden.sel(frame=2) != 0).any()
    with pytest.raises(dl.PlanError, match=r"edit zero.*at\(.*frame=2.*frame=2 is out of range"):
        edited(frame=2, step=2, frames=5)


def test_a_run_says_what_it_holds(lens, sample):
    run = lens.run(sample, steps=2, record=[dl.energy])
    assert list(run) == run.names and "energy" in run and "x0" not in run and 0 not in run
