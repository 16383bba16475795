"""Swaps on a model that says what they must do: one site of one layer reads the prompt, and the last step makes the video."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.experiments import swap_outcomes, swaps
from dit_lens.experiments.couples import Couple, couples, neighbours
from dit_lens.experiments.samples import given_frames
from dit_lens.experiments.swap_outcomes import CleanEnds, outcomes_of
from dit_lens.models.options import ModelOptions
from readers import READS, SAID, reader, sample
from scripts import script


@pytest.fixture(scope="module")
def lens():
    return reader()


def outcomes(lens, site, layer, couple=None, places=None):
    pairs = [(couple or Couple.of(sample("dark"), sample("bright")), 7)]
    batch = lens.batch(swaps.rows_of(pairs))
    every = places or swaps.places_of(swaps.WHERE, [0, 5], batch.sigmas)
    arms = swaps.swaps_of(layer, [(layer + 1) % 3], every, swaps.branches_of(batch, "all,cond"))
    found = outcomes_of(CleanEnds.of(batch, True), site, layer, arms)
    names = np.array([arm.name for arm in arms], np.dtypes.StringDType())
    return found.assign_coords(arm=names).isel(pair=0)


@pytest.mark.parametrize("site", ["block", "update", "cross_attn", "ffn"])
@pytest.mark.parametrize("layer", range(3))
def test_only_what_carries_the_prompt_swaps_the_answer_in_both_directions(lens, site, layer):
    found = outcomes(lens, site, layer)
    carries = layer >= READS if site == "block" else layer == READS and site in ("update", "cross_attn")
    for arm in ("all branches", "conditional branch"):
        of_arm = found.sel(arm=arm)
        assert np.allclose(of_arm.leaning, 1 if carries else -1, atol=1e-5)
        assert (of_arm.flip == carries).all() and (of_arm.kept != carries).all()
    for arm in ("own states", "same sample, other seed"):
        assert np.allclose(found.leaning.sel(arm=arm), -1, atol=1e-5)
    assert (found.own_change == 0).all()
    placebo = found.leaning.sel(arm="placebo")
    assert ((placebo > -0.99) & (placebo < 0.5)).all() if carries else np.allclose(placebo, -1, atol=1e-5)


def test_x0_moves_where_the_swap_is_and_the_end_only_if_the_last_step_was_swapped(lens):
    found = outcomes(lens, "cross_attn", READS)
    for arm, ends in (
        ("step 0", -1),
        ("first third of the steps", -1),
        ("step 5", 1),
        ("last third of the steps", 1),
    ):
        assert np.allclose(found.leaning.sel(arm=arm), ends, atol=1e-5), arm
        assert np.allclose(found.leaning_x0.sel(arm=arm), 1, atol=1e-5), arm
        assert np.allclose(found.leaning_x0_clean.sel(arm=arm), -1, atol=1e-5), arm


def test_movement_is_what_the_formula_of_a_swapped_step_says_and_nothing_where_nothing_is_carried(lens):
    """A step from noise level a to b moves the latents by (1 - b / a) of what x0 moves by; the last one by all of it."""
    found = outcomes(lens, "cross_attn", READS).movement
    batch = lens.batch(swaps.rows_of([(Couple.of(sample("dark"), sample("bright")), 7)]))
    first = batch.step(0, batch.noise)
    a, b = batch.sigmas[:2]
    apart = (first.x0[1] - first.x0[0]).square().mean().sqrt()
    moved = [float((1 - b / a) * apart / first.latents[row].square().mean().sqrt()) for row in (0, 1)]
    assert np.allclose(found.sel(arm="step 0"), moved, rtol=1e-4) and max(moved) < 0.7
    ends = CleanEnds.of(batch, False)
    whole = ends.apart()[0] / ends.latents[:2].square().mean((1, 2, 3, 4)).sqrt().numpy()
    for arm in ("all branches", "step 5", "last third of the steps"):
        assert np.allclose(found.sel(arm=arm), whole, rtol=1e-4) and whole.min() > 1.9, arm
    for arm in ("own states", "same sample, other seed"):
        assert np.allclose(found.sel(arm=arm), 0, atol=1e-5), arm
    assert float(found.sel(arm="conditional branch").min()) > 0.1
    still = outcomes(lens, "ffn", READS).movement.sel(arm="all branches")
    assert np.allclose(still, 0, atol=1e-5)


def test_another_layers_values_are_those_of_that_layer(lens):
    found = outcomes(
        lens, "cross_attn", 0
    )  # which gets what layer 1 reads in the donor: both prompts then sum to nothing
    assert np.allclose(found.leaning.sel(arm="another layer's states, order 0"), 0, atol=1e-5)


def test_two_samples_that_are_the_same_move_nothing_and_have_no_leaning(lens):
    same = Couple.of(sample("dark"), sample("dark", "1"))
    found = outcomes(lens, "cross_attn", READS, same)
    assert np.isnan(found.leaning).all() and np.isnan(found.leaning_x0).all()
    assert found.flip.sel(arm="all branches").all() and found.kept.sel(arm="all branches").all()
    batch = lens.batch(swaps.rows_of([(same, 7)]))
    arms = swaps.swaps_of(READS, [], {"all steps": tuple(range(6))}, [None])
    clean, ended = swaps.run_swaps(batch, "cross_attn", READS, arms[:1])
    assert torch.equal(ended[0], clean)


def test_a_swap_holds_one_layer_and_lets_it_go(lens, monkeypatch):
    seen = []
    batch = lens.batch(swaps.rows_of([(Couple.of(sample("dark"), sample("bright")), 7)]))
    arms = swaps.swaps_of(READS, [], {"all steps": tuple(range(6))}, [None])
    make, places = swaps.arm_of, []

    def remember(swap, site, layer, held):
        places.append(held)
        return make(swap, site, layer, held)

    monkeypatch.setattr(swaps, "arm_of", remember)
    swaps.run_swaps(
        batch, "update", READS, arms, watch_clean=lambda step, clean: seen.append(set(clean.states))
    )
    assert seen == [{(s, b, READS) for s in ("block_in", "block") for b in ("cond", "uncond")}] * 6
    assert places and not any(places)


def test_thirds_of_the_noise_level_are_not_thirds_of_the_steps():
    sigmas = [5 * s / (1 + 4 * s) for s in np.linspace(1, 0, 13)[:-1]]  # shift 5
    places = swaps.places_of(["sigma", "thirds"], [], sigmas)
    bounds = {"upper": (2 / 3, 1), "middle": (1 / 3, 2 / 3), "lower": (0, 1 / 3)}
    for name, (low, high) in bounds.items():
        steps = places[f"{name} third of the noise level"]
        assert all(low < sigmas[step] <= high for step in steps)
    assert sorted(n for name in swaps.LEVELS for n in places[name]) == list(range(12))
    assert len(places[swaps.LEVELS[0]]) == 9 and len(places[swaps.THIRDS[0]]) == 4
    assert swaps.places_of(["sigma"], [], [1.0, 0.9]) == {"upper third of the noise level": (0, 1)}
    even = swaps.places_of(["sigma"], [], np.linspace(1, 0, 7)[:-1].tolist())
    assert list(even.values()) == [(0, 1), (2, 3), (4, 5)]


def test_controls_are_at_the_first_place():
    arms = swaps.swaps_of(2, [0], {"step 3": (3,)}, [None, "cond"])
    assert {arm.steps for arm in arms} == {(3,)}
    assert [arm.name for arm in arms[:2]] == ["step 3", "step 3, conditional branch"]


def test_sites_that_the_model_lacks_are_refused_and_those_it_has_named():
    assert swaps.sites_of("update,ffn", ["block", "block_in", "ffn"]) == ["update", "ffn"]
    with pytest.raises(dl.TaskError, match="--sites gate: gate is none of block, ffn"):
        swaps.sites_of("gate", ["block", "ffn"])
    with pytest.raises(dl.TaskError, match="update is none of block"):
        swaps.sites_of("update", ["block"])
    with pytest.raises(dl.TaskError, match="--where nowhere"):
        swaps.names_in("nowhere", swaps.WHERE, "where")


def test_the_orders_of_the_control_keep_no_layer_and_differ():
    orders = swaps.derangements(range(6), 5, seed=3)
    assert len(orders) == 5 and len(set(map(tuple, orders))) == 5
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert all(a != b for order in orders for a, b in enumerate(order))
    assert orders == swaps.derangements(range(6), 5, seed=3) != swaps.derangements(range(6), 5, seed=4)
    assert swaps.derangements([2, 8], 3, seed=0) == [[8, 2]] and swaps.derangements([2], 3, seed=0) == []


# ---- couples


@pytest.mark.slow
def test_circle_is_coupled_by_prompt_and_other_tasks_by_scene_and_no_picture_comes_twice():
    options = script("layer_swap").Options(samples=24)
    found = list(couples(options))
    assert len({couple.image.tobytes() for couple in found}) == 24
    assert all(couple.both[0].image.tobytes() == couple.donor.image.tobytes() for couple in found)
    assert {tuple(s.prompt for s in couple.both) for couple in found} == {
        ("circle the disc", "circle the square")
    }
    mazes = list(couples(script("layer_swap").Options(task="maze", samples=3)))
    ids = [s.id for couple in mazes for s in couple.both]
    assert len(set(ids)) == 6 and all(couple.is_judged for couple in mazes)
    assert [couple.id for couple in couples(script("layer_swap").Options(task="maze", samples=2))] == ids[
        :4:2
    ]
    (couple,) = couples(script("layer_swap").Options(samples=1, num_frames=5))
    assert couple.num_frames == 5 and couple.score(couple.truth).solved


def test_neighbours_are_of_one_shape_and_task_and_who_is_alone_is_named():
    def made(task, name, frames=5):
        return dl.Sample("go", size=(16, 16), num_frames=frames, task=task, id=name)

    samples = [made("a", "0"), made("b", "0"), made("a", "1"), made("b", "1", 9), made("b", "2")]
    found, alone = neighbours(samples)
    assert [(c.task, c.id, c.donor.id) for c in found] == [("a", "0", "1"), ("b", "0", "2")]
    assert alone == ("b/1",)
    with pytest.raises(dl.TaskError, match="of different shapes"):
        Couple.of(samples[0], samples[3])


def test_contradictions_are_refused_before_a_model_is_loaded(tmp_path):
    module, picture = script("layer_swap"), tmp_path / "cat.png"
    Image.new("RGB", (16, 16)).save(picture)
    wide = tmp_path / "wide.png"
    Image.new("RGB", (32, 16)).save(wide)
    mine = {"image": picture, "prompt": "dark"}
    for given, words in (
        ({"donor_prompt": "bright"}, "go with --image"),
        (mine, "--image goes with --donor-image"),
        ({**mine, "donor_image": tmp_path / "no.png"}, "there is no such file"),
        ({**mine, "donor_image": picture, "text_only": True}, "first frames are left out"),
        ({"samples": 0}, "give at least 1"),
        ({"where": "here"}, "--where here"),
        ({"branches": "one"}, "--branches one"),
    ):
        with pytest.raises(dl.TaskError, match=words):
            module.main(module.Options(**given))
    with pytest.raises(dl.TaskError, match="different shapes"):
        couples(module.Options(**mine, donor_image=wide))


# ---- the script


def go(monkeypatch, lens, out, **options):
    module = script("layer_swap")
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    assert module.main(module.Options(out=out, cfg_scale=2.0, **options)) == 0
    results = xr.open_zarr(out / "results.zarr", consolidated=False).load()
    return results, json.loads((out / "summary.json").read_text())


@pytest.fixture
def mine(tmp_path):
    for name, level in (("cat", 40), ("bicycle", 200)):
        Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / f"{name}.png")
    return {"image": tmp_path / "cat.png", "prompt": "dark", "num_frames": 3}


@pytest.mark.parametrize("frames, has_picture, given", [(3, True, 1), (3, False, 0), (1, True, 0)])
def test_no_distance_counts_the_frames_that_samples_are_given_but_a_single_one(
    lens, frames, has_picture, given
):
    picture = Image.new("RGB", (16, 16)) if has_picture else None
    pair = Couple.of(*(sample(prompt).with_(image=picture, num_frames=frames) for prompt in SAID))
    ends = CleanEnds.of(lens.batch(swaps.rows_of([(pair, 7)]), steps=2), False)
    other = ends.latents.clone()
    other[:, :, :given] += 9.0
    assert given_frames(pair.both[0]) == has_picture and ends.given == given
    assert np.array_equal(ends.leaning(other, range(4)), ends.leaning(ends.latents, range(4)))


def test_swaps_count_the_given_frames_where_all_studies_do(lens, monkeypatch):
    monkeypatch.setattr(swap_outcomes, "given_frames", lambda _: 2)
    pair = Couple.of(*(sample(prompt).with_(num_frames=3) for prompt in SAID))
    assert CleanEnds.of(lens.batch(swaps.rows_of([(pair, 7)]), steps=2), False).given == 2


@pytest.mark.slow
def test_two_pictures_of_ones_own_need_no_scorer_and_seeds_are_what_intervals_are_over(
    monkeypatch, lens, mine, tmp_path, capsys
):
    given = {**mine, "donor_image": tmp_path / "bicycle.png", "donor_prompt": "bright", "seeds": 3}
    results, summary = go(
        monkeypatch, lens, tmp_path / "out", **given, sites="block,cross_attn", map_steps="0"
    )
    assert "runs of 6 steps" in capsys.readouterr().err
    assert results.donor.item() == "bicycle" and "flip" not in results and "flips" not in summary
    assert summary["intervals are over"] == "noise seeds of one couple"
    assert summary["leaning is defined for"] == "3 of 3"
    whole = summary["leaning"]["site cross_attn"]["layer 1"][0]
    assert whole["arm"] == "all branches" and whole["mean"] == pytest.approx(1) and whole["low"] < 1
    place = summary["layer from which on leaning is above 0, block, all branches"]
    assert place == {
        "crossing": 0.5,
        "low": 0,
        "high": None,
        "at or before": ["low"],
    }  # of 3 that agree, a half may be otherwise
    moved = summary["movement of the latents right after, share of their RMS"]["site cross_attn"]
    assert [moved[f"layer {n}"][0]["mean"] for n in range(3)] == pytest.approx([0, 2, 0], abs=0.1)
    against = summary["leaning, all branches minus placebo"]["site cross_attn"]
    assert against[0]["effect"] == pytest.approx(0, abs=1e-5) and against[1]["effect"] > 0.5
    assert (tmp_path / "out" / "leaning_by_layer_cross_attn.png").stat().st_size > 5000


@pytest.mark.slow
def test_one_couple_and_one_seed_have_numbers_and_no_intervals(monkeypatch, lens, mine, tmp_path):
    _, summary = go(
        monkeypatch, lens, tmp_path / "out", **mine, donor_prompt="bright", map_steps="0,5", steps=6
    )
    assert summary["intervals are over"].startswith("nothing")
    assert summary["leaning"]["site block"]["layer 2"][0] == {"arm": "all branches", "mean": pytest.approx(1)}
    assert (tmp_path / "out" / "leaning_one_step.png").exists()


@pytest.mark.slow
def test_two_samples_that_are_the_same_say_that_there_is_nothing_to_lean_to(
    monkeypatch, lens, mine, tmp_path
):
    results, summary = go(
        monkeypatch, lens, tmp_path / "out", **mine, donor_prompt="dark", seeds=2, map_steps="0"
    )
    assert np.isnan(results.leaning).all() and (results.own_change == 0).all()
    assert summary["leaning is defined for"] == "0 of 2" and "nothing to lean to" in summary["no leaning"]
    assert "NaN" not in (tmp_path / "out" / "summary.json").read_text() and "leaning" not in summary


@pytest.mark.slow
def test_the_papers_settings_swap_one_layer_at_step_0(monkeypatch, lens, mine, tmp_path):
    results, summary = go(
        monkeypatch, lens, tmp_path / "out", **mine, donor_prompt="bright", seeds=2, paper=True
    )
    arms = results.arm.values.tolist()
    assert arms[:2] == ["step 0", "step 0, conditional branch"] and results.attrs["steps"] == "50"
    assert set(results.last_step.values.tolist()) == {0} and results.sizes["layer"] == 3
    assert summary["controls are at"] == "step 0"
    first = summary["leaning of x0 at the last swapped step"]["site block"]["layer 1"][0]
    assert first["arm"] == "step 0" and first["mean"] == pytest.approx(1)
    assert summary["leaning"]["site block"]["layer 1"][0]["mean"] == pytest.approx(-1)  # later steps undo it


def test_controls_stand_on_the_branch_of_the_first_arm_and_an_arm_of_one_step_is_shown():
    from dit_lens.experiments.swap_summary import arms_together

    places = swaps.places_of(["step"], [0, 3], [1.0, 0.9, 0.8, 0.7])
    arms = swaps.swaps_of(2, [5], places, ["cond"])
    assert [arm.branch for arm in arms] == ["cond"] * len(arms)
    names = [arm.name for arm in arms]
    assert names[:2] == ["step 0, conditional branch", "step 3, conditional branch"]
    values = xr.DataArray(np.arange(len(names), dtype=float), {"arm": np.array(names, object)}, "arm")
    shown = arms_together(values).arm.values.tolist()
    assert names[0] in shown and names[1] not in shown
