"""Frames replaced: what stands there instead, the last frame alone, a toy that writes into them, and one that does not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl
from dit_lens import tasks
from dit_lens.engine.applied import apply_edit
from dit_lens.experiments.last_frame import KnownAnswers, judge, last_alone
from dit_lens.experiments.scratch import OF_LATENTS, Change, other_scene, overwrite
from dit_lens.experiments.scratch_runs import IdealRuns, Planted, run_changes
from dit_lens.lens import Lens
from dit_lens.models.options import ModelOptions
from scripts import script

MIDDLE = [1, 2]
SPOT = dl.Spot("latents", 3, 0.75, 750.0, 5, "dit")


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")  # the smallest


@pytest.fixture(scope="module")
def scratch_space():
    return script("scratch_space")


# ---- contents


@pytest.mark.parametrize("content", OF_LATENTS)
def test_latents_become_another_belief_with_the_noise_that_the_run_began_with(content):
    h, x0, noise, elsewhere = torch.randn(4, 4, 3, 5, 2).unbind()
    source = (
        (lambda at: elsewhere) if content in ("another scene", "right answer", "another answer") else None
    )
    (edit,) = Change(content, [3], MIDDLE, False).placed(noise.permute(3, 0, 1, 2), source)
    out = apply_edit(edit, SPOT, h, x0)
    assert torch.equal(out[[0, 3]], h[[0, 3]])  # the first frame, and the last
    belief = ((out - 0.75 * noise) / 0.25)[MIDDLE]
    tokens = x0[MIDDLE].flatten(0, 2)
    if content == "token shuffle":
        where = (belief.flatten(0, 2)[:, None] - tokens).abs().amax(-1).argmin(1)
        assert sorted(where.tolist()) == list(range(len(tokens))) != where.tolist()
        torch.testing.assert_close(belief.flatten(0, 2), tokens[where])
        return
    wanted = {
        "zeros": torch.zeros(()),
        "mean over time": x0[MIDDLE].mean(0),
        "itself": x0[MIDDLE],
    }.get(content, elsewhere[MIDDLE])
    torch.testing.assert_close(belief, wanted.expand_as(belief), atol=1e-5, rtol=1e-5)


def test_a_mean_of_tokens_is_that_of_the_frames_alone():
    h = torch.randn(4, 3, 5, 2)
    out = overwrite(content="token mean", frames=MIDDLE)(h, SPOT)
    assert torch.equal(out[[0, 3]], h[[0, 3]])
    torch.testing.assert_close(out[1:3], h[1:3].mean((0, 1, 2)).expand(2, 3, 5, 2))


def test_a_placebo_changes_what_is_believed_by_as_much_in_another_direction_and_does_not_add_up():
    x0, noise = torch.randn(2, 4, 3, 5, 8)
    h, moved = torch.zeros_like(x0), []
    for step in range(8):  # from what the placebo of the step before left
        at = replace(SPOT, step=step)
        (edit,) = Change("zeros", range(8), MIDDLE, True).placed(noise.permute(3, 0, 1, 2), None)
        h = apply_edit(edit, at, h, x0)
        moved.append(((h - 0.75 * noise) / 0.25 - x0)[MIDDLE])
        torch.testing.assert_close(moved[-1].norm(dim=-1), x0[MIDDLE].norm(dim=-1), atol=1e-4, rtol=1e-4)
        assert abs(torch.cosine_similarity(moved[-1].flatten(), x0[MIDDLE].flatten(), 0)) < 0.5
    assert not torch.allclose(moved[0], moved[1])


@pytest.mark.parametrize("task", ["maze", "circle", "arrows", "latin", "tictac", "occlude", "pick"])
def test_another_scene_is_the_same_one_every_time_and_another(task):
    sample = tasks.make(task, 1_000_000)
    other = other_scene(sample, task)
    assert not np.array_equal(other.truth[0], sample.truth[0]) and other.size == sample.size
    assert np.array_equal(other_scene(sample, task).truth, other.truth)


# ---- the last frame alone


def test_the_last_frame_is_judged_whatever_the_others_are(organism):
    sample = tasks.loop(1_000_000)
    known = KnownAnswers.of(sample, organism.encode)
    batch = organism.batch([(sample, 0)], steps=2)
    right = known.latents.to(batch.noise)[:, None]  # two answers, as arms
    spoiled, other_end = right.clone(), right.clone()
    spoiled[:, :, :, 1:-1] = 0
    other_end[:, :, :, -1] = right[:, :, :, :1].mean(3)  # a last frame that shows neither
    found = judge(batch, [known], torch.cat([right, spoiled, other_end]))
    assert found.last_solved.values.ravel().tolist() == [True] * 4 + [False] * 2
    assert found.solved.values.ravel().tolist() == [True] * 2 + [False] * 4
    assert found.last_answer.values.ravel().tolist()[:4] == list(known.texts) * 2
    assert torch.equal(last_alone([known], spoiled), right)


def test_another_answer_is_a_wrong_one_where_any_is_known_and_never_the_runs_own(organism):
    for sample in (tasks.circle(1_000_000), tasks.loop(1_000_000)):
        known = KnownAnswers.of(sample, organism.encode)
        drawn = {known.another(known.latents[0], seed) for seed in range(8)}
        assert drawn == {1} and (known.right == 1) == (sample.task == "circle")


# ---- runs


@pytest.fixture(scope="module")
def setting(organism):
    samples = [tasks.choose(1_000_000), tasks.choose(1_000_002)]
    batch = organism.batch([(sample, 3) for sample in samples], steps=4)
    beside = organism.batch([(other_scene(sample, "choose"), 4) for sample in samples], steps=4)
    answers = [KnownAnswers.of(sample, organism.encode) for sample in samples]
    return batch, beside, answers, Planted(batch, answers, walked(batch)[-1].latents, True, 0)


def walked(batch, watch=()):
    x, out = batch.noise, []
    for step in range(batch.steps):
        out.append(batch.step(step, x, watch=watch))
        x = out[-1].latents
    return out


def test_another_scenes_belief_is_that_of_the_step_before(setting):
    batch, beside, _, planted = setting
    others, x, clean = walked(beside), batch.noise, walked(batch)
    for step in range(4):
        if step in (1, 2):
            sigma = batch.sigmas[step]
            x = x.clone()
            x[:, :, MIDDLE] = ((1 - sigma) * others[step - 1].x0 + sigma * batch.noise)[:, :, MIDDLE]
        out = batch.step(step, x)
        if step == 1:
            moved = [
                [float((a[n, :, -1] - b[n, :, -1]).square().mean().sqrt()) for n in range(2)]
                for a, b in ((out.latents, clean[1].latents), (out.x0, clean[1].x0))
            ]
        x = out.latents
    ended, leverage = run_changes(batch, beside, [Change("another scene", [1, 2], MIDDLE, False)], planted)
    torch.testing.assert_close(ended[0], x, atol=1e-4, rtol=1e-4)
    assert leverage.moved.values[0] == pytest.approx(moved[0], rel=1e-3)
    assert leverage.moved_x0.values[0] == pytest.approx(moved[1], rel=1e-3)


def test_another_scenes_states_are_those_of_this_step(setting):
    batch, beside, _, planted = setting
    place = ("block", "cond", 4)
    theirs = [out.states[place] for out in walked(beside, [place])]

    def put(row):
        return lambda h, at: theirs[at.step][row]

    x = batch.noise
    for step in range(4):
        edits = [[(put(row), dl.at(layer=4, step="2-3", frame="1-2"))] for row in range(2)]
        x = batch.step(step, x, edits=edits).latents
    ended, _ = run_changes(batch, beside, [Change("another scene", [2, 3], MIDDLE, False, 4)], planted)
    torch.testing.assert_close(ended[0], x, atol=1e-4, rtol=1e-4)


def test_the_ideal_denoiser_is_changed_likewise_and_follows_what_is_planted(organism, setting):
    batch, beside, answers, _ = setting
    ideal = IdealRuns(batch, beside, answers, organism.encode)
    own = Planted(batch, answers, ideal.clean, True, 0)
    ended, moved = ideal.run(
        [Change("zeros", [2], MIDDLE, False), Change("another answer", [1, 2, 3], [2, 3], False)], own
    )
    for pair, known in enumerate(answers):
        x, noise = batch.noise[pair].double().numpy(), batch.noise[pair].double().numpy()
        for step, sigma in enumerate(batch.sigmas):
            if step == 2:
                x[:, MIDDLE] = sigma * noise[:, MIDDLE]
            x0 = known.ideal.x0(x[None], sigma)[0]
            after = [*batch.sigmas, 0.0][step + 1]
            x = x0 + after / sigma * (x - x0)
        np.testing.assert_allclose(ended[0, pair], x, atol=1e-4)
        torch.testing.assert_close(
            ideal.clean[pair], torch.from_numpy(known.ideal.run(noise[None], batch.sigmas)[-1][0])
        )
        # What is planted in the last frame, too, comes out there.
        assert int(known.nearest(ended[1, pair][None])) == own.another[pair]
    assert (moved.moved_x0.values[1] > moved.moved_x0.values[0]).all()


# ---- a toy that writes into a frame what it reads there later, and one whose frames are independent


class Toy(nn.Module):
    """Says the right answer; of the relay, the last frame is right only where frame 1 holds what was written there."""

    def __init__(self, relay):
        super().__init__()
        self.relay, self.blocks = relay, nn.ModuleList([nn.Identity()])
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x, timestep, answer):
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        h = self.blocks[0](x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        if not self.relay:  # each frame hangs on itself
            return (x - (0.9 * answer + 0.1 * h)) / sigma
        x0, code = answer.clone(), torch.full_like(answer[:, :, 1], 6.0)
        x0[:, :, 1] = code
        blank = torch.zeros_like(answer[:, :, -1])
        early = (sigma > 2 / 3)[:, 0]
        is_written = shown(h[:, :, 1], code, sigma[:, 0])
        is_shown = shown(h[:, :, -1], answer[:, :, -1], sigma[:, 0])
        x0[:, :, -1] = torch.where(torch.where(early, is_written, is_shown), answer[:, :, -1], blank)
        return (x - x0) / sigma


def shown(h, what, sigma):
    """Say of rows [row, channel, y, x] whether they show something more than half, at their noise level."""
    share = (h * what).sum((1, 2, 3), keepdim=True) / what.square().sum((1, 2, 3), keepdim=True)
    return share > (1 - sigma) / 2 + 1e-3


def toy_lens(organism, relay):
    codec = organism.family.codec

    def condition(sample, branch):
        return {"answer": organism.encode(sample.truth).permute(3, 0, 1, 2)[None]}

    toy = dl.blocks(
        Toy(relay).eval().requires_grad_(False),
        "blocks",
        latent=lambda sample: (48, 4, sample.height // 8, sample.width // 8),
        grid=lambda latent: latent[1:],
        condition=condition,
        decode=lambda latents: codec.decode(organism.pipe, latents),
        steps=8,
    )
    encode = lambda pipe, frames: codec.encode(organism.pipe, frames)  # noqa: E731
    family = replace(toy.family, codec=replace(toy.family.codec, encode=encode))
    return Lens.of(replace(toy.specimen, family=family))


def go(module, lens, out, monkeypatch, **changes):
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    settings = {
        "task": "circle",
        "samples": 2,
        "steps": 8,
        "contents": "token shuffle",
        "at_steps": "none",
        "layers": "none",
    }
    options = module.Options(**{**settings, "out": out, **changes})
    assert module.main(options) == 0
    return json.loads((out / "summary.json").read_text())


def contrast(summary, where="intermediate", who="model"):
    found = summary[f"right in the last frame, zeros minus placebo, {where} frames, first third, {who}"]
    return found["effect"]


@pytest.mark.slow
def test_a_last_frame_that_is_made_of_frame_1_is_lost_with_it(organism, scratch_space, tmp_path, monkeypatch):
    summary = go(scratch_space, toy_lens(organism, relay=True), tmp_path, monkeypatch, layers="0")
    assert summary["right in the last frame, clean"]["mean"] == 1
    assert contrast(summary) == -1 and contrast(summary, who="ideal denoiser") == 0
    assert contrast(summary, who="model minus ideal denoiser") == -1
    placebo = summary["latents: right in the last frame"]["content zeros"]["span first third"][
        "where intermediate"
    ][1]
    assert placebo["edit"] == "placebo" and placebo["mean"] == 1
    states = summary["states: right in the last frame"]["layer 0"]["state_content zeros"]["span first third"]
    assert [one["mean"] for one in states["where intermediate"]] == [0, 1]  # replaced, placebo


@pytest.mark.slow
def test_frames_that_are_independent_lose_nothing_and_do_not_move(
    organism, scratch_space, tmp_path, monkeypatch
):
    summary = go(scratch_space, toy_lens(organism, relay=False), tmp_path, monkeypatch)
    assert contrast(summary) == 0
    leverage = summary["latents: leverage, x0"]
    for content in ("content zeros", "content token shuffle"):
        for span in leverage[content].values():
            assert all(one["mean"] == 0 for one in span["where intermediate"])
            assert all(one["mean"] > 0.01 for one in span["where with the last"])  # the positive control


# ---- what is refused


def test_what_cannot_be_is_refused(organism, scratch_space, tmp_path, monkeypatch):
    options = scratch_space.Options
    with pytest.raises(dl.TaskError, match="--contents nothing: on maze there are zeros"):
        scratch_space.main(options(contents="nothing"))
    with pytest.raises(dl.TaskError, match="another answer"):
        scratch_space.main(
            options(contents="another answer")
        )  # a maze has one, and no wrong one that is known
    with pytest.raises(dl.TaskError, match="give a task"):
        scratch_space.main(options(eval_root=tmp_path))
    sample = tasks.choose(1_000_000)
    with pytest.raises(dl.TaskError, match=r"raise --(num-frames or --)?steps"):
        scratch_space.spans_of(organism.batch([(sample, 0)], steps=1), options())
    batch = organism.batch([(sample, 0)], steps=4)
    assert scratch_space.spans_of(batch, options(at_steps="all,2-3,1")) == {
        "first third": [1, 2],
        "all": [1, 2, 3],
        "2-3": [2, 3],
        "1": [1],
    }
    with pytest.raises(dl.PlanError, match="--at-steps 0"):
        scratch_space.spans_of(batch, options(at_steps="0"))
