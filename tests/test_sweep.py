"""Arms share the clean run up to their first edit, and end where runs of their own would."""

from dataclasses import replace

import pytest
import torch

import dit_lens as dl
from dit_lens.experiments.sweep import sweep
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
    clean, ended = sweep(batch, ARMS, look=lambda now: seen.append((now.step, list(now.rows))))
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

    sweep(batch, ARMS[1:2], watch=[place], look=look, clean_first=first)
    x = batch.noise[2:3]
    for step in range(4):
        out = batch.step(step, x, rows=[2], edits=[ARMS[1]], watch=[place])
        key = (step, 0, 2) if step else (0, None, 2)
        assert torch.allclose(found[key], out.states[place][0], rtol=0, atol=1e-4)
        x = out.latents


def test_an_arm_may_differ_by_pair_and_leave_pairs_out(batch):
    clean, ended = sweep(batch, [lambda pair: ARMS[0] if pair == 1 else []])
    assert torch.equal(ended[0, [0, 2, 3]], clean[[0, 2, 3]])
    assert torch.allclose(ended[0, 1], alone(batch, 1, ARMS[0]), **CLOSE)


def test_an_ensemble_averages_the_seeds_of_each_sample_that_carry_it(lens, sample):
    other = replace(sample, prompt="circle the disc")
    batch = lens.batch([(s, seed) for s in (sample, other) for seed in (0, 1, 2)], steps=2, cfg_scale=1.0)
    ensemble = [placed(dl.mean_over_seeds(), layer=1, step=0)]
    _, ended = sweep(batch, [ensemble, lambda pair: ensemble if pair % 3 < 2 else []])
    for first in (0, 3):
        for arm, count in ((0, 3), (1, 2)):
            rows = list(range(first, first + count))
            x = batch.noise[rows]
            for step in range(2):
                x = batch.step(step, x, rows=rows, edits=[ensemble] * count, groups=[0] * count).latents
            assert torch.allclose(ended[arm, rows], x, **CLOSE)
    assert not torch.allclose(ended[0, 0], ended[1, 0], atol=1e-4)


def test_without_arms_it_is_the_clean_run(batch):
    clean, ended = sweep(batch, [])
    assert ended.shape == (0, *clean.shape)


def test_states_of_no_more_rows_than_go_at_once_are_shown_together(lens, sample):
    place, sizes, found = ("block", "cond", 1), [], {}
    others = [replace(sample, prompt=prompt) for prompt in ("a", "b", "c")]
    batch = lens.batch([(s, 0) for s in others], steps=4, cfg_scale=1.0, at_once=2)

    def look(now):
        sizes.append(len(now.rows))
        assert len(now.edited.states[place]) == len(now.rows)
        found.update({(now.step, *row): x for row, x in zip(now.rows, now.edited.latents, strict=True)})

    _, ended = sweep(batch, [ARMS[1], ARMS[0]], watch=[place], look=look)
    assert sizes == [2, 1, 2, 2, 2, 2, 2, 2]  # three rows, then six, two at a time
    assert all(torch.equal(found[3, arm, pair], ended[arm, pair]) for arm in (0, 1) for pair in range(3))


def test_an_arm_can_put_in_what_a_clean_run_holds_at_the_same_step(batch):
    places, held = [("block", "cond", n) for n in range(3)], {}

    def first(step, clean):
        held.update({place[2]: value for place, value in clean.states.items()})

    def swap(source, layer):
        return lambda pair: [placed(lambda h, at: held[at.layer][source(pair)], layer=layer, step="1-")]

    own, other = swap(lambda pair: pair, 1), swap(lambda pair: pair ^ 1, 2)
    clean, ended = sweep(batch, [own, other], watch=places, clean_first=first)
    assert torch.allclose(ended[0], clean, **CLOSE)
    assert not torch.allclose(ended[1], clean, atol=1e-3)
