"""Scripts that read answers, plans and states at every step: what they find where it was planted, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from dit_lens import analysis
from dit_lens.errors import TaskError
from dit_lens.experiments.study import Measured
from dit_lens.models.options import ModelOptions
from scripts import script


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


def course_of(denoiser, noise, sigmas):
    """Return what each step of a denoiser starts from, and its x0."""
    x, starts, beliefs = noise, [], []
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        starts.append(x)
        beliefs.append(denoiser.x0(x, sigma))
        x = x + (after - sigma) * (x - beliefs[-1]) / sigma
    return starts, beliefs


def test_the_ideal_denoiser_in_place_of_a_model_is_its_own_null(organism):
    """The planted effect: weights are found as they are; the planted null: nothing is left beyond the posterior."""
    revision = script("revision")
    samples = [dl.tasks.choose(1_000_000 + n) for n in range(3)]
    batch = organism.batch([(s, seed) for s in samples for seed in (0, 1)], steps=6)
    courses = []
    for pair, (sample, _) in enumerate(batch.pairs):
        ideal = analysis.ideal_denoiser(sample, organism.encode)
        noise = batch.noise[pair : pair + 1].double().numpy()
        courses.append(course_of(ideal, noise, batch.sigmas))
    starts, beliefs = (
        [np.concatenate([course[part][step] for course in courses]) for step in range(6)] for part in (0, 1)
    )
    found = revision.weigh(organism, batch, starts, beliefs)
    np.testing.assert_allclose(found.bits, found.null_bits, atol=1e-4)
    np.testing.assert_allclose(found.bits, found.posterior_bits, atol=1e-4)
    assert float(abs(found.divergence).max()) < 1e-3 and bool((found.same_pick == 1).all())
    several = found.bits.values > 0.1
    assert several[:, 0].all() and float(found.explained.values[several].min()) > 0.999
    assert bool(found.wrong.isnull().all())  # all candidates are right


@pytest.mark.slow
def test_the_ideal_denoiser_is_never_committed_to_a_wrong_answer_and_a_planted_revision_is_read():
    revision, lens = script("revision"), dl.load("organism")
    samples = [dl.tasks.latin(1_000_000), dl.tasks.tictac(1_000_000)]
    for sample in samples:
        batch = lens.batch([(sample, seed) for seed in (0, 1)], steps=6)
        rivals = revision.candidates(sample, lens)[0].videos if sample.task == "tictac" else None
        right = analysis.ideal_denoiser(sample, lens.encode)
        end = right.videos[:1]
        before = (
            end
            if rivals is None
            else rivals[[right.texts[0] != t for t in revision.candidates(sample, lens)[0].texts]][:1]
        )
        beliefs = [np.concatenate([before if step < 3 else end] * 2) for step in range(6)]
        data = revision.read_answers(lens, batch, beliefs)
        null = analysis.revisions(data.ideal_answer, data.ideal_right)
        assert bool(null.committed_right.all()) and not bool(null.committed_wrong.any())
        found = analysis.revisions(data.answer, data.right)
        assert bool((found.wrong_to_right == (sample.task == "tictac")).all()) and not bool(
            found.right_to_wrong.any()
        )
        assert bool((data.truth_read == 1).all())


def test_studies_that_cannot_say_anything_are_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("a model is loaded"))
    revision, plan = script("revision"), script("plan_commitment")
    with pytest.raises(TaskError, match=r"a part of the rings.*one right answer"):
        revision.main(revision.Options(task="circle"))
    with pytest.raises(TaskError, match="no one agent"):
        plan.main(plan.Options(task="latin"))
    with pytest.raises(TaskError, match="--seeds 1: the control is another seed's end"):
        plan.main(plan.Options(seeds=1))
    for module in (revision, plan):
        with pytest.raises(TaskError, match="judged by a scorer"):
            module.main(module.Options(eval_root=Path("nowhere")))


def test_what_a_task_says_nothing_of_is_named():
    revision = script("revision")
    assert list(revision.reasons(dl.tasks.choose(1))) == ["revision"]
    assert list(revision.reasons(dl.tasks.maze(1_000_000))) == ["superposition"]
    assert revision.reasons(dl.tasks.latin(1)) == {}


def test_plans_are_compared_frame_by_frame_without_the_first_and_without_what_the_end_does_not_show():
    plan = script("plan_commitment")
    end = [(0, 0), (0, 1), None, (0, 2)]
    steps = [[(5, 5), (0, 1), (3, 3), None], end, [(0, 0), None, None, (0, 2)]]
    assert plan.similarity(steps, end) == [0.5, 1.0, 0.5]
    assert np.isnan(plan.similarity(steps, [(0, 0), None, None, None])).all()
    other = [(0, 0), (0, 1), (0, 1), (9, 9)]
    control = plan.control([[steps[0], end], [other, other], [end] * 2, [end] * 2], [0, 0, 1, 1])
    assert control[0].tolist() == [1 / 3, 1 / 3] and control[1].tolist() == [0.5, 0.5]
    assert (control[2:] == 1).all()


def test_one_plan_for_all_and_runs_that_are_all_right_say_so_and_end_well(tmp_path):
    plan = script("plan_commitment")
    shape = ("sample", "seed", "step")
    same = np.ones((4, 2, 3))
    data = {"similar": (shape, same), "control": (shape, same), "solved": (shape[:2], np.ones((4, 2), bool))}
    coords = {"sample": list("abcd"), "seed": [0, 1], "step": [0, 1, 2], "sigma": ("step", [1.0, 0.8, 0.4])}
    results = xr.Dataset({**data, "length": ("sample", [8, 9, 10, 11])}, coords)
    options = plan.Options(out=tmp_path)
    plan.conclude(Measured(results, {}), options)
    found = plan.of_plans(results, options)
    assert (
        "two runs give one answer"
        in found["over halfway from another seed's end to its own from"]["not measured"]
    )
    assert "all outcomes are True" in plan.of_failures(results, options)["log odds of solved, not measured"]
    alike = plan.of_failures(results.assign(length=("sample", [8] * 4)), options)
    assert "too alike" in alike["solved by length, not measured"]
    none = results.assign(similar=results.similar * np.nan)
    plan.conclude(Measured(none, {}), options)
    assert "fewer than 2 samples" in (tmp_path / "summary.json").read_text()


def test_steps_of_two_kinds_are_found_beside_runs_that_share_nothing(tmp_path):
    """Planted: two experts whose steps have states of their own; and seeds that share half of theirs."""
    cross = script("cross_step_similarity")
    rng = np.random.default_rng(0)
    steps, border = 10, 4
    sigma = np.linspace(1, 0.1, steps)
    same = np.equal.outer(np.arange(steps) < border, np.arange(steps) < border)
    similar = np.clip(0.5 + 0.3 * same + rng.normal(0, 0.01, (5, 1, 2, steps, steps)), 0, 1)
    similar[..., np.arange(steps), np.arange(steps)] = 1
    similar = (similar + np.swapaxes(similar, -1, -2)) / 2
    text = np.dtypes.StringDType()
    results = xr.Dataset(
        {
            "similar": (("sample", "seed", "layer", "step", "other_step"), similar),
            "similar_again": (("sample", "seed", "step", "other_step"), similar[:, :, 1] + 0.02),
            "similar_seed": (("sample", "seed", "layer", "step"), np.full((5, 1, 2, steps), np.nan)),
            "similar_sample": (("sample", "seed", "layer", "step"), np.full((5, 1, 2, steps), 0.2)),
            "tokens": (("sample", "seed", "of"), np.tile([40, 64], (5, 1, 1))),
        },
        {
            "sample": list("abcde"), "seed": [0], "layer": [0, 9], "step": range(steps), "other_step": range(steps),
            "sigma": ("step", sigma), "of": ["compared", "all"],
            "expert": ("step", np.array(["dit"] * border + ["dit2"] * (steps - border), text)),
        },
    )  # fmt: skip
    options = cross.Options(out=tmp_path)
    found = cross.of_blocks(results, options) | cross.of_references(results, cross.neighbours(results))
    top = found["block score is highest at border"]
    assert top["peak"] == border and found["change of experts, first step after"] == [border]
    over = found["block score of the change of experts, minus the borders beside it"]
    assert over["low"] > 0.02
    assert "similarity of two runs at one step, another seed" not in found
    assert found["neighbouring steps minus two runs at one step, another sample"]["low"] > 0.4
    assert cross.error_of_tokens(*cross.drawn_twice(results)) == pytest.approx(0.02 / 2**0.5, rel=1e-6)
    cross.conclude(Measured(results, {}), options)
    assert (tmp_path / "similarity.png").stat().st_size > 5000


def test_states_that_take_too_much_memory_are_refused_with_what_to_do(tmp_path, monkeypatch, organism):
    cross = script("cross_step_similarity")
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    given = {
        "task": "choose",
        "samples": 2,
        "steps": 4,
        "cka_layers": "0,9",
        "cka_tokens": 40,
        "out": tmp_path,
    }
    with pytest.raises(TaskError, match=r"take 699 kB, .*--memory is 1e-06 GB: raise it, or take a smaller"):
        cross.main(cross.Options(**given, memory=1e-6))
    room = cross.room_of(organism, [dl.tasks.choose(1), dl.tasks.choose(2)], cross.Options(**given))
    # 2 pairs x 2 layers and their second draws, 4 steps of 40 tokens; 2 x 2 whole states; 6 kernels.
    assert int(room.bytes) == 6 * 4 * 40 * 128 * 4 + 4 * 64 * 128 * 4 + 8 * 6 * 40**2
    with pytest.raises(TaskError, match="4 steps are compared at least"):
        cross.main(cross.Options(**given | {"steps": 3}))
