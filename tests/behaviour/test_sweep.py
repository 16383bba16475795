"""Arms share the clean run up to their first edit, and end where runs of their own would."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.engine.sweep import run_arms
from dit_lens.plan.plan import Placed

CLOSE = {"rtol": 0, "atol": 2e-5}


def placed(function, **where):
    return Placed(function, dl.at(**where))


def alone(batch, pair, edits):
    x = batch.noise[pair : pair + 1]
    for step in range(batch.steps):
        x = batch.step(step, x, rows=[pair], edits=[edits]).latents
    return x[0]


@pytest.fixture
def batch(lens, sample):
    other = replace(sample, prompt="circle the disc")
    return lens.batch([(sample, 0), (sample, 1), (other, 0), (other, 1)], steps=4, cfg_scale=1.0)


ARMS = [
    [placed(dl.add_noise(scale=0.4), site="latents", step=2)],
    [placed(dl.scale(factor=0.5), layer=1, step="1-"), placed(dl.zero(), site="ffn", layer=2, step=3)],
    [],
    [placed(dl.zero(), layer=0, step=3)],
]


def test_arms_end_where_their_own_runs_would(batch):
    seen = []
    clean, ended = run_arms(batch, ARMS, look=lambda now: seen.append((now.step, list(now.rows))))
    for pair in range(4):
        assert torch.allclose(clean[pair], alone(batch, pair, []), **CLOSE)
        for arm, edits in enumerate(ARMS):
            assert torch.allclose(ended[arm, pair], alone(batch, pair, edits), **CLOSE)
    assert torch.equal(ended[2], clean)
    arms = [sorted({arm for arm, _ in rows}) for _, rows in seen]
    assert arms == [[1], [0, 1], [0, 1, 3]]  # nobody runs before its first edit
    assert [step for step, _ in seen] == [1, 2, 3]


def test_states_that_are_watched_belong_to_the_rows_that_are_named(batch):
    place, found = ("block", "cond", 1), {}

    def look(now):
        found.update(
            {(now.step, arm, pair): now.edited.states[place][i] for i, (arm, pair) in enumerate(now.rows)}
        )

    def first(step, clean):
        found.update({(step, None, pair): x for pair, x in enumerate(clean.states[place])})

    run_arms(batch, ARMS[1:2], watch=[place], look=look, clean_first=first)
    x = batch.noise[2:3]
    for step in range(4):
        out = batch.step(step, x, rows=[2], edits=[ARMS[1]], watch=[place])
        key = (step, 0, 2) if step else (0, None, 2)
        assert torch.allclose(found[key], out.states[place][0], rtol=0, atol=1e-4)
        x = out.latents


def test_an_arm_may_differ_by_pair_and_leave_pairs_out(batch):
    clean, ended = run_arms(batch, [lambda pair: ARMS[0] if pair == 1 else []])
    assert torch.equal(ended[0, [0, 2, 3]], clean[[0, 2, 3]])
    assert torch.allclose(ended[0, 1], alone(batch, 1, ARMS[0]), **CLOSE)


def test_an_ensemble_averages_the_seeds_of_each_sample_that_carry_it(lens, sample):
    other = replace(sample, prompt="circle the disc")
    batch = lens.batch([(s, seed) for s in (sample, other) for seed in (0, 1, 2)], steps=2, cfg_scale=1.0)
    ensemble = [placed(dl.mean_over_seeds(), layer=1, step=0)]
    _, ended = run_arms(batch, [ensemble, lambda pair: ensemble if pair % 3 < 2 else []])
    for first in (0, 3):
        for arm, count in ((0, 3), (1, 2)):
            rows = list(range(first, first + count))
            x = batch.noise[rows]
            for step in range(2):
                x = batch.step(step, x, rows=rows, edits=[ensemble] * count, groups=[0] * count).latents
            assert torch.allclose(ended[arm, rows], x, **CLOSE)
    assert not torch.allclose(ended[0, 0], ended[1, 0], atol=1e-4)


def test_without_arms_it_is_the_clean_run(batch):
    clean, ended = run_arms(batch, [])
    assert ended.shape == (0, *clean.shape)


def test_states_of_no_more_rows_than_go_at_once_are_shown_together(lens, sample):
    place, sizes, found = ("block", "cond", 1), [], {}
    others = [replace(sample, prompt=prompt) for prompt in ("a", "b", "c")]
    batch = lens.batch([(s, 0) for s in others], steps=4, cfg_scale=1.0, at_once=2)

    def look(now):
        sizes.append(len(now.rows))
        assert len(now.edited.states[place]) == len(now.rows)
        found.update({(now.step, *row): x for row, x in zip(now.rows, now.edited.latents, strict=True)})

    _, ended = run_arms(batch, [ARMS[1], ARMS[0]], watch=[place], look=look)
    assert sizes == [2, 1, 2, 2, 2, 2, 2, 2]  # three rows, then six, two at a time
    assert all(torch.equal(found[3, arm, pair], ended[arm, pair]) for arm in (0, 1) for pair in range(3))


def test_an_arm_can_put_in_what_a_clean_run_holds_at_the_same_step(batch):
    places, held = [("block", "cond", n) for n in range(3)], {}

    def first(step, clean):
        held.update({place[2]: value for place, value in clean.states.items()})

    def swap(source, layer):
        return lambda pair: [placed(lambda h, at: held[at.layer][source(pair)], layer=layer, step="1-")]

    own, other = swap(lambda pair: pair, 1), swap(lambda pair: pair ^ 1, 2)
    clean, ended = run_arms(batch, [own, other], watch=places, clean_first=first)
    assert torch.allclose(ended[0], clean, **CLOSE)
    assert not torch.allclose(ended[1], clean, atol=1e-3)


def test_a_sweep_is_a_table_of_what_single_runs_come_to(lens, sample):
    samples = [dl.tasks.circle(1_000_000), dl.tasks.circle(1_000_001)]
    pairs = [(s, seed) for seed in (0, 5) for s in samples]  # in any order
    noise = (dl.add_noise(scale=2.0), dl.at(site="latents", step=1))
    arms = {"noise": [noise], "no first layer": (dl.zero(), dl.at(layer=0)), "nothing": []}
    table = lens.sweep(pairs, arms, steps=3, cfg_scale=2.0)
    assert dict(table.sizes) == {"arm": 4, "sample": 2, "seed": 2}
    assert table.arm.values.tolist() == ["clean", *arms]
    assert table.sample.values.tolist() == ["circle/1000000", "circle/1000001"]
    assert table.noise_seed.values.tolist() == [[0, 5], [0, 5]] and table.attrs["steps"] == 3
    assert "add_noise" in str(table.edits.sel(arm="noise").values)
    for i, one in enumerate(samples):
        for k, seed in enumerate((0, 5)):
            bare = lens.run(one, seed, record=[dl.x0], steps=3, cfg_scale=2.0)
            assert (
                float(table.distance.sel(arm="clean")[i, k])
                == float(table.distance.sel(arm="nothing")[i, k])
                == 0
            )
            for arm, edit in (("clean", ()), ("noise", [noise]), ("no first layer", arms["no first layer"])):
                run = lens.run(one, seed, edit=edit, record=[dl.x0], steps=3, cfg_scale=2.0)
                score, found = one.score(run.video), table.isel(sample=i, seed=k).sel(arm=arm)
                assert (bool(found.solved), str(found.answer.values)) == (score.solved, score.answer)
                assert float(found.score) == pytest.approx(score.score, abs=0.02)
                moved = np.square(run["x0"].values[-1] - bare["x0"].values[-1]).mean() ** 0.5
                assert float(found.distance) == pytest.approx(float(moved), abs=1e-3)
    assert (table.distance.sel(arm=["noise", "no first layer"]) > 0.01).all()


def test_edits_over_seeds_see_the_seeds_of_one_sample_and_rows_may_be_few_at_a_time(lens, sample):
    pairs = [
        (s, seed) for seed in (0, 1, 2) for s in (sample, sample.with_(id="b", prompt="circle the disc"))
    ]
    arms = {"mean": [(dl.mean_over_seeds(), dl.at(layer=1))]}
    table = lens.sweep(pairs, arms, steps=2, cfg_scale=1.0)
    assert "solved" not in table and (table.distance.sel(arm="mean") > 1e-3).all()
    # A sample's rows are those of a sweep of that sample alone.
    alone = lens.sweep([p for p in pairs if p[0].id == "b"], arms, steps=2, cfg_scale=1.0)
    assert np.allclose(table.distance.sel(sample="custom/b"), alone.distance[:, 0], atol=1e-4)
    few = lens.sweep(pairs, arms, steps=2, cfg_scale=1.0, at_once=2)
    assert np.allclose(table.distance, few.distance, atol=1e-4)


def test_a_sweep_takes_samples_of_several_shapes(lens, sample):
    wide = sample.with_(size=(32, 48), id="wide")
    table = lens.sweep([(wide, 0), (sample, 0)], {"off": [(dl.zero(), dl.at(layer=1))]}, steps=2)
    assert table.sample.values.tolist() == ["custom/wide", "custom/0"] and (table.distance[1] > 0).all()


def test_what_a_sweep_cannot_do_is_refused_before_it_runs(lens, sample, monkeypatch):
    from dit_lens.engine.batch import Batch

    scored = dl.tasks.circle(7)
    lens.batch([(sample, 0)], steps=2)  # the loop is compared with the pipeline's, once
    monkeypatch.setattr(Batch, "advance", None)
    for pairs, arms, says in (
        ([(sample, 0)], {"clean": [dl.zero()]}, "arm without edits"),
        ([(sample, 0), (scored, 0)], {}, "circle/7 has a scorer and custom/0 has none"),
        ([(sample, 0), (scored, 0), (scored, 1)], {}, "as many seeds for each sample"),
        ([(sample, 0)], {"a": [dl.scale]}, "call it with its options"),
        ([(sample, 0)], {"a": [(dl.zero(), dl.at(layer=99))]}, "layer"),
        ([(sample, 0)], {"a": [(dl.zero(), "layer 1")]}, "dl.at"),
    ):
        with pytest.raises(dl.PlanError, match=says):
            lens.sweep(pairs, arms, steps=2)
