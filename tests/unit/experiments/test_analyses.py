"""The scripts, each run small on the shipped organism: what they write, what they repeat, and exact controls."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.engine.batch import Batch
from dit_lens.experiments import swaps
from dit_lens.experiments.couples import Couple
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import draw
from dit_lens.experiments.study import Measured
from dit_lens.experiments.swap_outcomes import CleanEnds, outcomes_of
from dit_lens.models.options import ModelOptions
from dit_lens.plan.plan import Placed
from dit_lens.tasks import explore
from dit_lens.tasks.permanence import ball
from scripts import script

pytestmark = pytest.mark.slow
SPEED = "by the speed of one row alone"
SMALL = {"samples": 4, "block": 2, "steps": 4}
STUDIES = {
    "noise_sensitivity": {"task": "circle", "noise": "add", "cka_layers": "0,9", "stops": "0,2"},
    "layer_swap": {
        "layers": "2,8",
        "map_steps": "1,3",
        "cfg_scale": 2.0,
        "where": "whole,thirds,step",
        "branches": "all",
    },
    "seed_ensemble": {"task": "choose", "ks": (1, 2, 3), "layers": "each"},
    "depth_lens": {"task": "circle", "layers": "4,8", "tuning_scenes": 4, "sheets": 1, "vis_steps": "0,3"},
    "step_count": {"task": "circle", "counts": (1, 2, 4), "steps": None},
    "frame_count": {"task": "circle", "counts": (5, 13)},
    "emergent": {"task": "choose", "probe_scenes": 8},
    "causal_commitment": {"task": "choose", "seeds": 2, "forks": 2, "at": "1,3"},
    "early_selection": {"task": "choose", "seeds": 2, "at": "0,3"},
    "steps_or_frames": {"task": "choose", "back_to": "2", "hold": "1,2"},
    "revision": {"task": "loop"},
    "plan_commitment": {"task": "maze", "seeds": 2, "at": "0,2"},
    "cross_step_similarity": {"task": "choose", "cka_layers": "0,9", "cka_tokens": 40},
    "surprise": {"task": "occlude", "comparisons": ("colour", "reversed"), "at": "0,3", "refine": 0},
    "scratch_space": {"task": "choose", "contents": "zeros", "layers": "4", "at_steps": "none"},
}


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")  # the smallest: 10 layers


def go(name, out, monkeypatch, organism, **changes):
    module = script(name)
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)  # the real one, loaded once for all
    given = {**SMALL, **STUDIES[name], "out": out, **changes}
    options = module.Options(**given, **({"clean": out / "clean.zarr"} if name == "emergent" else {}))
    assert module.main(options) == 0
    return xr.open_zarr(out / "results.zarr", consolidated=False).load()


STEPS = {"step_count": 20}
FITS = {"depth_lens": (4, "the maps of depth_lens"), "emergent": (8, "the probes of emergent")}
RUNS = {  # what a study says that it costs, in whole runs of every pair
    "causal_commitment": 1 + 2 * (3 / 4 + 1 / 4),  # two forks at steps 1 and 3 of 4
    "early_selection": 1,
    "steps_or_frames": 1 + 1 + 2 * 2 / 4 + 2,  # start over; back to step 2, twice; one frame held, and two
    "surprise": 3 * 2 / 4
    + 2 * 3,  # three videos at 2 of 4 steps; two inverted, made again, and from other noise
    "scratch_space": 1 + (2 + 4 * 3 / 4) + (2 + 4 * 4 * 3 / 4),  # from step 1 on; four contents of states
    "seed_ensemble": 1 + 3 * (1 + 2 + 3) / 3,  # three thirds of the layers; K = 1, 2 and 3 of 3 seeds
    "step_count": (1 + 2 + 4) / 20,  # in runs of the model's own 20 steps
    "frame_count": (2 + 4) / 4,  # in runs of the samples' own 4 latent frames
    "depth_lens": 1,
    "emergent": 2,  # the probes read a run of their own
    "plan_commitment": 1,
    "revision": 1,
    "cross_step_similarity": 1,
    "noise_sensitivity": 1 + (3 + 2 + 1) / 4 + 2 * 4 * 3 / 4 + 2 * 4 * 3 / 4 + 4 * (3 / 4 + 1 / 4),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_costs_leaves_numbers_figures_and_the_command_and_is_not_made_twice(
    name, tmp_path, monkeypatch, organism, capsys
):
    if name == "layer_swap":  # which needs scenes that are solved, every frame of them
        organism = dl.load("organism")
    results = go(name, tmp_path, monkeypatch, organism)
    said = [line for line in capsys.readouterr().err.splitlines() if SPEED in line]
    if name in FITS:  # which is made before the study begins, on so many scenes, each once
        scenes, what = FITS[name]
        assert said.pop(0).startswith(
            f"{what}: {scenes} samples x 1 seeds x 1.0 runs = {scenes} runs of 4 steps"
        )
    assert len(said) == 1 and said[0].startswith(f"{name}: ")
    if name in RUNS:
        assert said[0].startswith(f"{name}: 4 samples x ")
        pairs = 4 * max(STUDIES[name].get("ks", (STUDIES[name].get("seeds", 1),)))  # an ensemble has K seeds
        assert (
            f"{RUNS[name]:.1f} runs = {pairs * RUNS[name]:,.0f} runs of {STEPS.get(name, 4)} steps" in said[0]
        )
    assert results.sizes["sample"] == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["command"].startswith("python ")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (
        manifest["settings"]["bootstrap"]["n_samples"] <= 4
        and "draws_seed" in manifest["settings"]["bootstrap"]
    )
    pictures = {p: p.stat().st_size for p in tmp_path.glob("**/*.png")}
    assert pictures and min(pictures.values()) > 5000

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr(Batch, "step", refuse)
    assert go(name, tmp_path, monkeypatch, organism).identical(results)
    assert SPEED not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, options, pictures",
    [
        (
            "decode_steps",
            {"samples": 2, "vis_steps": "0,3"},
            ["steps.png", "schedule.png", "video.mp4", "x0/step_003.mp4"],
        ),
        (
            "token_maps",
            {"vis_steps": "0,3", "layers": "4"},
            [
                "energy_vs_step.png",
                "layer_04/step_003_pca.png",
                "layer_04/temporal.png",
                "step_000_layer_grid.png",
            ],
        ),
    ],
)
def test_the_papers_pictures_are_there_and_are_not_made_twice(
    name, options, pictures, tmp_path, monkeypatch, organism
):
    module = script(name)
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    given = module.Options(task="circle", steps=4, out=tmp_path, **options)
    assert module.main(given) == 0
    for sample in ("1000000", "1000001")[: options.get("samples", 1)]:
        for picture in pictures:
            assert (tmp_path / "circle" / sample / picture).stat().st_size > 500
    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("circle/**/*.*")}
    assert module.main(given) == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("circle/**/*.*")} == made


def test_noise_of_scale_0_does_nothing_and_budgets_are_what_they_say(tmp_path, monkeypatch, organism):
    module = script("noise_sensitivity")
    still = go("noise_sensitivity", tmp_path / "a", monkeypatch, organism, scale=0.0, samples=2)
    assert (still.step_distance == 0).all() and (still.frame_distance == 0).all()
    measured = still.dissimilarity.values[np.isfinite(still.dissimilarity.values)]
    assert measured.size and np.abs(measured).max() < 1e-5
    noisy = go("noise_sensitivity", tmp_path / "b", monkeypatch, organism, scale=0.7, samples=2)
    energy = dict(
        zip(
            noisy.kind.values.tolist(),
            noisy.noise_energy.values[0] if noisy.noise_energy.ndim > 1 else noisy.noise_energy.values,
            strict=True,
        )
    )
    assert energy["step"] == pytest.approx(0.49 * 4) and energy["same energy"] == pytest.approx(0.49 * 4)
    assert energy["same scale"] == pytest.approx(0.49 * 3)
    assert energy["up to step"] == energy["at step"] == energy["step"]
    # Up to step 0 is at step 0; at step 2 the last step alone is left, and 4 frames' energy is in one.
    up, at = (noisy.stopped_distance.sel(stopping=k, drop=True) for k in ("up to step", "at step"))
    assert (up.sel(stop=0) == at.sel(stop=0)).all() and not np.allclose(up.sel(stop=2), at.sel(stop=2))
    one = next(iter(draw(StudyOptions(task="circle", samples=4))))
    batch = organism.batch([(one, int(noisy.noise_seed[0, 0]))], steps=4)
    hit = Placed(dl.add_noise(scale=0.7 * 2), dl.at(site="latents", frame=1, step=3))
    clean, ended = module.run_arms(batch, [[hit]])
    away = [0, 2, 3]
    for part, name in ((slice(None), "stopped_distance"), (away, "stopped_distance_elsewhere")):
        expected = (ended[0] - clean)[:, :, part].square().mean().sqrt()
        found = noisy[name].sel(stopping="at step", stop=2, frame=1)[0, 0]
        assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert (noisy.step_distance > 0).all()
    # A step before the noise is the clean run's: nothing is measured there.
    assert np.isnan(noisy.dissimilarity.sel(after_step=1, step=[0, 1])).all()


@pytest.mark.parametrize("kind", ["replace", "renoise"])
def test_noise_in_place_of_latents_and_noise_drawn_anew_are_what_they_say(
    kind, tmp_path, monkeypatch, organism
):
    module = script("noise_sensitivity")
    small = {"samples": 4, "seeds": 2, "cka_tokens": 40}
    found = go("noise_sensitivity", tmp_path, monkeypatch, organism, noise=kind, **small)
    assert found.budget.values.tolist() == ["same scale"] and "noise_energy" not in found
    one = next(iter(draw(StudyOptions(task="circle", samples=2))))
    batch = organism.batch([(one, int(found.noise_seed[0, 0]))], steps=4)
    edit = dl.noise() if kind == "replace" else dl.renoise()
    places = {"step_distance": {"after_step": 1}, "frame_distance": {"budget": "same scale", "frame": 2}}
    arms = [
        [Placed(edit, dl.at(site="latents", **where))] for where in ({"step": 2}, {"step": "1-", "frame": 2})
    ]
    clean, ended = module.run_arms(batch, arms)
    for moved, (name, where) in zip(ended, places.items(), strict=True):
        distance = float((moved - clean).square().mean().sqrt())
        assert float(found[name].sel(where)[0, 0]) == pytest.approx(distance, rel=1e-4)
    # Right after the noise: x_2 of the clean run against the edited one.
    states = organism.batch([(one, int(found.noise_seed[0, 0]))], steps=4, record=[dl.latents])
    plain = states.run()[0]["latents"].sel(step=2)
    hit = organism.batch(
        [(one, int(found.noise_seed[0, 0]))], steps=4, record=[dl.latents], edit=arms[0]
    ).run()[0]
    right_after = float(((hit["latents"].sel(step=2) - plain) ** 2).mean() ** 0.5)
    assert float(found.moved.sel(after_step=1)[0, 0]) == pytest.approx(right_after, rel=1e-3)
    # References, and what the sample of tokens costs.
    assert (found.tokens == [40, 64]).all()
    assert (found.dissimilarity_seed > 0).all()
    # Two samples are compared once, at the first of the two.
    assert (found.dissimilarity_sample[::2] > 0).all() and found.dissimilarity_sample[1::2].isnull().all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    peak = summary["sensitivity peaks after step"]
    assert peak["peak"] <= 2 and peak["no interval"].startswith("4 samples, and the bootstrap's interval")
    assert 0 < summary["error of a dissimilarity by the tokens drawn"] < 0.2
    assert {f"dissimilarity of two runs, another {n}" for n in ("seed", "sample")} <= set(summary)


def test_the_papers_settings_stand_in_for_defaults_alone():
    module = script("noise_sensitivity")
    paper = module.Options(paper=True).with_preset()
    assert paper.steps == 50 and paper.noise == "replace"
    assert module.Options(paper=True, steps=4).with_preset().steps == 4
    assert module.Options().with_preset().steps is None
    with pytest.raises(dl.TaskError, match="its scale is 1"):
        module.main(module.Options(noise="renoise", scale=0.5))


def test_what_happens_in_the_frame_that_was_hit_is_not_counted_elsewhere(organism):
    module = script("noise_sensitivity")
    batch = organism.batch([(s, 0) for s in draw(StudyOptions(task="circle", samples=2))], steps=2)
    clean, _ = module.run_arms(batch, [])
    arms = 1 + 4 * 2 + 4 * 2  # a step; two budgets; two kinds that stop after step 0
    ended = clean.repeat(arms, 1, 1, 1, 1, 1)
    for arm in range(1, arms):
        ended[arm, :, :, (arm - 1) % 4] += 3 * torch.randn_like(ended[arm, :, :, 0])
    found = module.gather(
        batch, clean, ended, module.heal(clean, ended[1:], [*range(clean.shape[2])]), [0], module.BUDGETS
    )
    for name in ("frame", "stopped"):
        assert (found[f"{name}_distance"] > 1).all() and (found[f"{name}_distance_elsewhere"] == 0).all()
        assert (found[f"{name}_score_elsewhere"] == found.clean_score).all()
    assert (found.frame_score.sel(frame=3) < found.clean_score).any()
    assert found.stopped_distance.dims == ("stopping", "stop", "frame", "pair")
    ended[2, 0, :, 2] += 1.0  # of the arm of frame 1, another frame
    found = module.gather(
        batch, clean, ended, module.heal(clean, ended[1:], [*range(clean.shape[2])]), [0], module.BUDGETS
    )
    assert float(found.frame_distance_elsewhere[0, 1, 0]) == pytest.approx((1 / 3) ** 0.5)


def test_the_readout_of_the_last_layer_is_the_models_own_x0_exactly(organism):
    depth = script("depth_lens")
    samples = [dl.tasks.circle(1_000_000), dl.tasks.choose(1_000_001)]
    batch = organism.batch([(s, 3) for s in samples], steps=3, cfg_scale=2.0)
    x = batch.noise
    for step in range(3):
        out = batch.step(step, x, watch=depth.watched(batch, [5, 9]))
        assert torch.equal(depth.read_out(batch, step, x, out, 9, {}), out.x0)
        assert not torch.allclose(depth.read_out(batch, step, x, out, 5, {}), out.x0, atol=0.1)
        x = out.latents


def test_maps_fitted_a_layer_at_a_time_are_those_fitted_together_and_last_layers_states_go_with_each(
    organism,
):
    depth = script("depth_lens")
    scenes = [dl.tasks.circle(i) for i in range(3)]
    given = {"task": "circle", "steps": 2, "block": 2, "cfg_scale": 2.0}
    batch = organism.batch([(s, 0) for s in scenes[:2]], steps=2, cfg_scale=2.0)
    layers = [2, 5, 9]
    whole, little = depth.Options(**given), depth.Options(**given, memory=1e-6)
    assert depth.passes(batch, layers, whole, fits=True) == [[2, 5, 9]]
    assert depth.passes(batch, layers, little, fits=True) == [[2], [5], [9]]
    # Two layers' states, on two branches of two rows, and the last layer's; and sums of one expert.
    tokens, channels = int(np.prod(batch.grid)), organism.pipe.dit.dim
    room = 3 * (4 * tokens * channels * 4) + 2 * 16 * channels**2
    assert depth.passes(batch, layers, depth.Options(**given, memory=room / 1e9), fits=True) == [[2, 5], [9]]
    assert depth.tune(organism, scenes, layers, whole).identical(depth.tune(organism, scenes, layers, little))
    together, _ = depth.read_all(batch, layers, [0, 1], {}, whole)
    apart, _ = depth.read_all(batch, layers, [0, 1], {}, little)
    assert list(together) == list(apart) and all(torch.equal(together[p], apart[p]) for p in apart)


def test_a_tuned_readout_comes_nearer_to_the_final_x0_on_scenes_it_was_not_fitted_on(
    tmp_path, monkeypatch, organism
):
    results = go("depth_lens", tmp_path, monkeypatch, organism, tuning_scenes=16)
    distance = results.distance.sel(layer=4).mean(("sample", "seed", "step"))
    assert float(distance.sel(readout="tuned")) < float(distance.sel(readout="plain"))
    last = results.distance.sel(layer=9)
    assert np.array_equal(last.sel(readout="tuned"), last.sel(readout="plain"))


def test_an_ensemble_of_one_is_the_single_run(tmp_path, monkeypatch, organism):
    results = go("seed_ensemble", tmp_path, monkeypatch, organism, samples=2)
    alone = results.rival_score.sel(k=1)
    assert np.allclose(results.score.sel(k=1).transpose("layers", "sample"), alone.sel(rival="single run"))
    assert (alone.sel(rival="majority vote") == alone.sel(rival="single run")).all()
    best, single = (results.rival_solved.sel(rival=r) for r in ("best of K (oracle)", "single run"))
    assert (best >= single).all()


def test_a_swap_with_its_own_states_changes_nothing_and_of_the_last_layer_everything(organism):
    scene = [dl.tasks.circle(1_000_000, kind=k) for k in ("disc", "square")]
    batch = organism.batch(swaps.rows_of([(Couple.of(*scene), 0)]), steps=3)
    arms = swaps.swaps_of(9, [], {"all steps": (0, 1, 2)}, [None])
    clean, ended = swaps.run_swaps(batch, "block", 9, arms)
    whole, own = ended[0], ended[[arm.name for arm in arms].index(swaps.OWN)]
    assert torch.allclose(own, clean, atol=1e-5)
    assert torch.allclose(whole[:2], clean[[1, 0]], atol=1e-4)
    assert not torch.allclose(whole[:2], clean[:2], atol=0.5)
    assert torch.equal(ended[:, 2:], clean[2:].expand(len(arms), *clean[2:].shape))


@pytest.mark.parametrize("site", ["block", "update", "cross_attn"])
def test_a_swap_in_lockstep_equals_one_from_stored_states(organism, site):
    scene = [dl.tasks.circle(1_000_000, kind=k) for k in ("disc", "square")]
    batch = organism.batch(swaps.rows_of([(Couple.of(*scene), 0)]), steps=3, cfg_scale=2.0)
    places = swaps.places_of(swaps.WHERE, [1], batch.sigmas)
    arms = [arm for arm in swaps.swaps_of(4, [7, 2], places, [None, "cond"]) if not arm.is_placebo]
    _, ended = swaps.run_swaps(batch, site, 4, arms)
    # All steps and layers of the clean runs first, then every row alone with what is read from there.
    ends = ("block_in", "block") if site == "update" else (site,)
    watch = [(end, b, n) for end in ends for b in ("cond", "uncond") for n in (2, 4, 7)]
    states, x = [], batch.noise
    for step in range(3):
        out = batch.step(step, x, watch=watch)
        states.append(out.states)
        x = out.latents
    for number, swap in enumerate(arms):
        for row in (0, 1):
            inside = {}

            def stored(h, at, swap=swap, row=row, inside=inside):
                values = [states[at.step][e, at.branch, swap.layer][swap.source(row)] for e in ends]
                return values[0] if len(values) == 1 else inside[at.branch] + values[1] - values[0]

            alone = batch.noise[row : row + 1]
            for step in range(3):
                if site == "update":
                    clear = batch.step(
                        step, alone, rows=[row], watch=[("block_in", b, 4) for b in ("cond", "uncond")]
                    )
                    inside.update({b: value[0] for (_, b, _), value in clear.states.items()})
                where = dl.at(site=ends[-1], layer=4, step=list(swap.steps), branch=swap.branch)
                alone = batch.step(step, alone, rows=[row], edits=[[Placed(stored, where)]]).latents
            assert torch.allclose(ended[number, row], alone[0], atol=1e-4), swap.name


def test_swaps_between_two_scenes_are_judged_with_the_frame_that_the_donor_was_given():
    organism = dl.load("organism")
    scenes = [dl.tasks.choose(1_000_000 + n) for n in range(4)]
    pairs = [(Couple.of(*scenes[:2]), 3), (Couple.of(*scenes[2:]), 4)]
    batch = organism.batch(swaps.rows_of(pairs), steps=6)
    last, ends = organism.layers - 1, CleanEnds.of(batch, True)
    arms = swaps.swaps_of(last, [], {"all steps": tuple(range(6))}, [None])
    found = outcomes_of(ends, "block", last, arms).sel(arm=0)
    right = ends.clean().right.values
    assert right.any() and np.array_equal(found.flip.values, right[:, ::-1])  # the donor's own video
    assert not found.kept.any() and np.allclose(found.leaning, 1, atol=1e-4)


def test_swaps_on_scenes_that_are_not_solved_say_so_and_still_lean(tmp_path, monkeypatch, organism):
    results = go("layer_swap", tmp_path, monkeypatch, organism, steps=1, samples=2, layers="3", map_steps="0")
    module = script("layer_swap")
    assert float(results.own_change.max()) < 1e-4 and results.sizes["order"] == 0
    none = results.assign(right=results.right & False)
    module.conclude(Measured(none, {}), module.Options(samples=2, out=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["no flip rates"].startswith("0 of 2 couples are solved under both")
    assert "flips" not in summary and summary["leaning is defined for"] == "2 of 2"
    confused = results.assign(right=results.right | True, confused=results.confused | True)
    module.conclude(Measured(confused, {}), module.Options(samples=2, out=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["of these, one video solves both"] == 2 and "flips" not in summary


def test_perception_and_action_are_dated_by_one_rule_on_runs_whose_probe_ends_right():
    emergent, text = script("emergent"), np.dtypes.StringDType()
    # By sample: where the probe, x0's picture and x0's answer stand at each step; a is goal 0, b goal 1.
    probe = ["baaa", "aaba", "bbbb", "aabb"]
    leans = ["bbaa", "aaaa", "bbbb", "aaaa"]
    answer = ["bbca", "caaa", "abbb", "aaaa"]
    values = {"goal_probe": probe, "goal_x0": leans, "answer": answer}
    dims = {"sample": list("pqrs"), "seed": [0], "step": range(4)}
    data = {n: (tuple(dims), np.array([[list(row)] for row in v], text)) for n, v in values.items()}
    right = (("sample", "seed"), np.array([[row[-1]] for row in answer], text))
    found = emergent.perception(xr.Dataset({**data, "goal_right": right}, dims), "goal")
    assert found["samples compared"] == 3  # the last sample's probe ends elsewhere
    assert found["of these, the probe names it at the last step"] == 0.75
    assert found["probe names it from step"]["mean"] == pytest.approx((1 + 3 + 0) / 3)
    assert found["x0 leans to it from step"]["mean"] == pytest.approx((2 + 0 + 0) / 3)
    assert found["x0 holds the answer from step"]["mean"] == pytest.approx((3 + 1 + 1) / 3)
    assert found["x0 leans minus probe names"]["effect"] == pytest.approx((1 - 3 + 0) / 3)


def test_mass_off_the_path_has_its_change_and_the_floor_of_the_ground_truth(tmp_path, monkeypatch, organism):
    results = go("emergent", tmp_path, monkeypatch, organism, task="maze")
    summary = json.loads((tmp_path / "summary.json").read_text())
    off = results.off_path.isel(seed=0)
    change = summary["off_path at the last step minus at the first"]
    assert change["effect"] == pytest.approx(float((off.isel(step=-1) - off.isel(step=0)).mean()))
    assert change["low"] <= change["effect"] <= change["high"]
    samples = draw(StudyOptions(samples=4))
    bare = [explore.off_path(s, s.truth) for s in samples]
    floor = results.off_path_floor.values
    assert (floor >= 0).all() and (floor < 0.5).all() and not np.allclose(floor, bare)  # the codec adds to it
    assert summary["off_path of the ground truth"]["mean"] == pytest.approx(floor.mean())
    above = summary["off_path at the last step minus of the ground truth"]["effect"]
    assert above == pytest.approx(float(off.isel(step=-1).mean()) - floor.mean())
    assert (results.on_path_floor > 0.9).all()


def test_working_memory_is_read_and_probed_while_the_ball_is_hidden(tmp_path, monkeypatch, organism):
    results = go("emergent", tmp_path, monkeypatch, organism, task="occlude", probe_scenes=24, steps=3)
    assert (results.hidden_ball_floor < 0.1).all()
    assert (results.keeps_colour_floor == 1).all() and (results.keeps_lane_floor == 1).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in ("colour", "lane"):
        assert set(summary[f"probe of the {name}"]) >= {
            "probe fitted",
            "probe shuffled labels",
            "most common answer",
        }
        assert (tmp_path / f"probe_{name}_by_step.png").stat().st_size > 5000
        sample = results.sample.values[0].split("/")[1]
        colour, (lane, _) = ball(dl.tasks.occlude(int(sample)))
        assert results[f"{name}_right"].values[0, 0] == {"colour": colour, "lane": str(lane)}[name]


def test_an_ensemble_needs_a_run(tmp_path, monkeypatch, organism):
    with pytest.raises(dl.TaskError, match="at least one run"):
        go("seed_ensemble", tmp_path, monkeypatch, organism, ks=(0, 3))
    with pytest.raises(dl.TaskError, match="--ks 2 2: give each number once"):
        go("seed_ensemble", tmp_path, monkeypatch, organism, ks=(2, 2))
    with pytest.raises(dl.TaskError, match=r"--seeds 2: the largest of --ks .* takes 3 seeds"):
        go("seed_ensemble", tmp_path, monkeypatch, organism, seeds=2)
    assert next(iter(draw(StudyOptions(task="maze", samples=2)))).id == "1000000"


def test_numbers_of_frames_are_those_that_are_made_and_each_is_made_once(
    tmp_path, monkeypatch, organism, capsys
):
    results = go("frame_count", tmp_path, monkeypatch, organism, counts=(6, 8, 9, 13), samples=2)
    assert results.frames.values.tolist() == [9, 13]
    assert "6, 8, 9 frames asked for: the model makes 9" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["frames made, by frames asked for"] == {"9": [6, 8, 9], "13": [13]}
    assert "noise is not" in summary["noise"]


def test_results_by_path_length_have_n_and_intervals_and_cut_samples_without_overlap(
    tmp_path, monkeypatch, organism
):
    steps = script("step_count")
    cut = steps.bins(xr.DataArray([8, 8, 9, 9, 11, 12, 15, 20, 20, 20], dims="sample"))
    assert {k: v.tolist() for k, v in cut.items()} == {
        "8 cells": [0, 1],
        "9-11 cells": [2, 3, 4],
        "12-15 cells": [5, 6],
        "20 cells": [7, 8, 9],
    }
    assert list(steps.bins(xr.DataArray([8, 8, 8, 8], dims="sample"))) == ["8 cells"]
    results = go(
        "step_count", tmp_path, monkeypatch, organism, task="maze", counts=(1, 4), samples=8, block=8
    )
    lengths = {s.id: explore.path_length(s) for s in draw(StudyOptions(samples=8))}
    assert results.length.values.tolist() == list(lengths.values())
    found = json.loads((tmp_path / "summary.json").read_text())["solved by path length"]
    inside = steps.bins(results.length)
    assert list(found) == list(inside) and sum(f["n"] for f in found.values()) <= 8
    for name, part in found.items():
        rates = results.solved.isel(sample=inside[name], seed=0).mean("sample").values
        assert [p["mean"] for p in part["by steps"]] == pytest.approx(rates.tolist())
        assert part["4 steps minus 1"]["effect"] == pytest.approx(rates[1] - rates[0])
        assert part["4 steps minus 1"]["low"] <= part["4 steps minus 1"]["high"]
    assert (tmp_path / "solved_by_length.png").stat().st_size > 5000


def test_forks_of_the_ideal_denoiser_go_from_chance_to_one_answer_as_noise_falls(organism):
    """The planted null: it commits where the posterior does, and computes nothing."""
    script_ = script("causal_commitment")
    samples = [dl.tasks.choose(1_000_000 + n, goals=2) for n in range(6)]
    options = script_.Options(task="choose", seeds=2, forks=8)
    batch = organism.batch([(s, seed) for s in samples for seed in range(2)], steps=12)
    same = script_.ideal_forks(organism, batch, [1, 6, 11], options).ideal_same.mean(("sample", "seed"))
    assert same.dims == ("at",) and 0.4 < float(same[0]) < 0.9 and float(same[-1]) == 1
    assert float(same[0]) <= float(same[1]) + 0.1
    maze = organism.batch([(dl.tasks.maze(1_000_000), 0), (dl.tasks.maze(1_000_001), 0)], steps=3)
    assert (
        script_.ideal_forks(organism, maze, [1], options).ideal_same == 1
    ).all()  # one answer is no choice


def test_the_ideal_denoisers_forks_are_the_same_in_blocks_of_any_size(organism):
    """The fault: noise that was drawn block by block, the same one in each."""
    script_ = script("causal_commitment")
    options = script_.Options(task="choose", seeds=2, forks=4)
    pairs = [(dl.tasks.choose(1_000_000 + n, goals=4), 5 * n + k) for n in range(3) for k in range(2)]
    whole, *parts = (
        script_.ideal_forks(organism, organism.batch(p, steps=8), [1, 2, 3, 4], options)
        for p in (pairs, pairs[:2], pairs[2:4], pairs[4:])
    )
    assert whole.equals(xr.concat(parts, "sample")) and float(whole.ideal_same.std()) > 0
    sample = pairs[0][0]
    places = [(sample, 0, 1), (sample, 1, 1), (sample, 0, 2), (pairs[2][0], 0, 1)]
    drawn = [script_.fresh_noise(*place).standard_normal() for place in [*places, places[0]]]
    assert len({*drawn}) == 4 and drawn[0] == drawn[-1]


def test_agreement_entropy_and_commitment_are_what_they_say():
    script_ = script("causal_commitment")
    assert script_.agreement(["a", "a", "b"]) == pytest.approx(1 / 3)
    answers = np.array([[["a", "a"], ["a", "b"], ["a", "c"], ["a", "d"]]])  # [at, fork, pair]
    assert script_.bits(answers).tolist() == [[0.0, 2.0]]
    same = xr.DataArray(
        np.repeat([[[0.2, 0.4, 0.8, 1.0]]], 5, 0),
        {"sample": list("abcde"), "seed": [0], "at": [1, 2, 3, 4], "sigma": ("at", [0.9, 0.8, 0.6, 0.3])},
        ["sample", "seed", "at"],
    )
    results = xr.Dataset({"same": same, "chance": ("sample", np.full(5, 0.2))}).assign_coords(
        sigma=same.sigma
    )
    found = script_.committed(same, results.chance, results)["value"]  # halfway is 0.6
    assert found == {"step": pytest.approx(2.5), "sigma": pytest.approx(0.7)}
    never = script_.committed(same * 0, results.chance, results)
    assert never["value"] == never["high"] == {"step": None, "sigma": None}
    assert "not measured" in script_.committed(same, results.chance + 0.7, results)


def test_picks_are_what_they_say():
    script_ = script("early_selection")
    early = xr.Dataset(
        {
            "answer": (("arm", "sample", "seed"), np.array([[["a", "b", "b"], ["c", "d", "e"]]])),
            "solved": (("arm", "sample", "seed"), np.array([[[True, False, False], [False] * 3]])),
            "score": (("arm", "sample", "seed"), np.array([[[0.1, 0.9, 0.2], [0.2, 0.1, 0.7]]])),
        }
    )
    sharp = np.array([[[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]]])
    agreed, sharpest, best = script_.picks(early, sharp)[0].tolist()
    assert (agreed, sharpest, best) == ([1, 0], [2, 0], [0, 2])  # right beats a better score
    final = xr.Dataset({name: early[name].isel(arm=0) for name in early})
    single, majority, top = script_.whole_runs(final, "solved").tolist()
    assert (majority, top) == ([0.0, 0.0], [1.0, 0.0]) and single == pytest.approx([1 / 3, 0])


def test_one_that_goes_on_is_the_whole_run_of_its_seed(tmp_path, monkeypatch, organism):
    """At the last step a pick costs as many whole runs, and the verifier's is the best of them."""
    found = go("early_selection", tmp_path, monkeypatch, organism, seeds=3, at="0,3")
    assert found.cost.values.tolist() == [(3 * 1 + 3) / 4, 3.0]
    best = found.whole_score.sel(whole="best of whole runs")
    assert (found.score.sel(pick="verifier", at=3) == best).all()
    assert (found.score.sel(pick="random").mean("at") == found.whole_score.sel(whole="one run")).all()


@pytest.mark.parametrize("slope", [0, 1, -1])
def test_frames_that_are_settled_in_order_have_a_slope_and_others_none(slope):
    script_ = script("steps_or_frames")
    steps, frames = 12, 6
    when = 5 + slope * (np.arange(frames) - 3)  # the step from which on a frame is what it ends as
    rng = np.random.default_rng(0)
    end, before = rng.standard_normal((2, 1, 3, 2, 4, frames, 4, 4)).reshape(2, 24, frames, 4, 4)[:, None]
    beliefs = np.array([np.where((step >= when)[:, None, None], end, before) for step in range(steps)])
    found = script_.settled(beliefs)
    assert found.tolist() == [when[1:].tolist()]
    array = xr.DataArray(found[None], {"frame": np.arange(1, frames)}, ["sample", "seed", "frame"])
    assert script_.slopes(array.astype(float)).item() == pytest.approx(slope)


def test_the_number_of_steps_is_read_where_it_is_stored(tmp_path, monkeypatch, organism):
    """Where all runs have one slope, what the interval allows is steepest from step 0 to the last: by the number of steps."""
    results = go("steps_or_frames", tmp_path, monkeypatch, organism)
    batch = organism.batch([(dl.tasks.choose(1_000_000), 0)], steps=4)
    assert results.sigma.dims == ("step",) and results.sigma.values.tolist() == list(batch.sigmas)
    script_, lows = script("steps_or_frames"), []
    flat = results.assign(settled=0 * results.settled, ideal_settled=0 * results.ideal_settled)
    for steps in (4, 7):
        measured = Measured(flat.drop_dims("step").assign_coords(step=np.arange(steps)), {})
        script_.conclude(measured, script_.Options(task="choose", out=tmp_path))
        summary = json.loads((tmp_path / "summary.json").read_text())
        lows.append(summary["slope of commitment over frames, model"]["low"])
    assert lows[1] == pytest.approx(2 * lows[0]) and lows[0] < 0


def test_the_first_wrong_frame_is_counted_by_fifths():
    script_ = script("steps_or_frames")
    frames = [[True] * 25, [False] * 25, [True] * 5 + [False] + [True] * 19, [True] * 24 + [False], None]
    scores = [dl.Score(f is not None and all(f), 0.5, "", None if f is None else tuple(f)) for f in frames]
    shares = [script_.first_wrong(score) for score in scores]
    assert np.isnan(shares[0]) and np.isnan(shares[4]) and shares[1:4] == [0.0, 5 / 24, 1.0]
    results = xr.Dataset({"first_wrong": (("sample", "seed"), np.array(shares)[:, None])})
    found = script_.of_failures(results)
    assert found["samples with a wrong frame"] == 3
    means = [one["mean"] for one in found["first wrong frame, by fifth of the video"].values()]
    assert means == pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3])
    one = script_.of_failures(results.isel(sample=[0, 1, 4]))
    assert one == {
        "samples with a wrong frame": 1,
        "first wrong frame, by fifth of the video, not measured": "fewer than 2 samples have one",
    }


def test_what_too_few_runs_say_nothing_of_is_named():
    """The fault: their part of the summary was left away in silence."""
    script_, counts = script("steps_or_frames"), script("step_count")
    ways = ["start over", "steps 1", "steps 1, repeated", "frames 2"]
    data = {
        "solved": (("sample", "seed"), np.array([[True], [True], [False]])),
        "rescued": (("way", "sample", "seed"), np.ones((4, 3, 1), bool)),
    }
    numbers = {name: ("way", np.ones(4)) for name in ("cost", "nfe")}
    coords = {"way": np.array(ways, np.dtypes.StringDType()), "sample": list("abc"), **numbers}
    found = script_.of_rescues(xr.Dataset(data, coords))
    assert found["rescued, of wrong runs, samples"] == 1 and found["kept, of right runs, samples"] == 2
    assert found["rescued, of wrong runs, not measured"] == "fewer than 2 samples have such a run"
    assert "rescued, of wrong runs" not in found and "kept, of right runs" in found
    alike = xr.Dataset({"solved": (("sample", "steps"), np.ones((4, 2))), "length": ("sample", [8] * 4)})
    assert "too alike" in counts.by_length(alike, counts.Options())["solved by path length, not measured"]


@pytest.mark.parametrize("name", ["steps_or_frames", "scratch_space"])
def test_too_few_latent_frames_are_refused_before_anything_is_computed(name, tmp_path, monkeypatch, organism):
    with pytest.raises(dl.TaskError, match="5 frames are 2 latent frames; this study takes 3 at least"):
        go(name, tmp_path, monkeypatch, organism, task="choose", samples=2, num_frames=5)
    assert not (tmp_path / "blocks").exists()


@pytest.mark.parametrize("task", ["maze", "choose", "latin", "occlude", "circle", "apart", "arrows"])
def test_a_score_says_which_frames_are_wrong(task):
    sample = dl.tasks.make(task, 1_000_000)
    video = sample.truth.copy()
    assert sample.score(video).frames == (True,) * len(video)
    video[5] = 255 - video[5]
    assert sample.score(video).frames == tuple(t != 5 for t in range(len(video)))
    assert "frames" not in repr(sample.score(video))


@pytest.mark.parametrize(
    "name",
    [
        "causal_commitment",
        "early_selection",
        "steps_or_frames",
        "scratch_space",
        "surprise",
        "revision",
        "plan_commitment",
    ],
)
def test_samples_without_a_scorer_are_refused_before_a_model_is_loaded(name, tmp_path, monkeypatch):
    module = script(name)
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("a model is loaded"))
    with pytest.raises(dl.TaskError, match="give a task"):
        module.main(module.Options(eval_root=tmp_path, out=tmp_path))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("causal_commitment", {"steps": 1}, "--steps 1: .* give 2 or more"),
        ("noise_sensitivity", {"steps": 1}, "--steps 1: .* give 2 or more"),
        ("plan_commitment", {"steps": 1}, "--steps 1: .* give 2 or more"),
        ("plan_commitment", {"at": "3"}, "--at 3: .* give one before the last"),
        ("revision", {"steps": 1}, "--steps 1: .* give 2 or more"),
        ("steps_or_frames", {"steps": 1}, "--steps 1: .* give 2 or more"),
    ],
)
def test_one_step_is_refused_before_anything_is_computed(
    name, changes, message, tmp_path, monkeypatch, organism
):
    monkeypatch.setattr(Batch, "__init__", lambda *_, **__: pytest.fail("a batch is prepared"))
    with pytest.raises(dl.TaskError, match=message):
        go(name, tmp_path, monkeypatch, organism, **changes)
