"""Probes of tokens: a planted direction is found and is worth something, nulls are not, and scenes stay apart."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.experiments import probe_cuts
from dit_lens.experiments.token_probes import Items, fit, folds_of
from dit_lens.experiments.token_questions import TOKEN_QUESTIONS, question_of
from dit_lens.experiments.token_states import read_tokens
from dit_lens.models.options import ModelOptions
from dit_lens.plan.places import Spot
from scripts import script

SPOT = Spot("block", 0, 1.0, 1000.0, 0, "dit", "cond", 1)


@pytest.mark.parametrize("task", TOKEN_QUESTIONS)
def test_the_right_answer_takes_some_cells_and_not_all(task):
    question = question_of(task)
    for seed in range(1_000_000, 1_000_010):
        sample = dl.tasks.make(task, seed)
        cells = question.cells(sample)
        assert 2 <= len({*cells}) == len(cells) <= question.most
        for answer in (sample.score(sample.truth).answer, *(one.text for one in sample.answers)):
            taken = question.taken(sample, answer)
            assert taken is not None and taken <= {*cells}
        shown = question.taken(sample, sample.score(sample.truth).answer)
        assert task == "latin" or 0 < len(shown) < len(cells)
        assert question.taken(sample, "???") is None


def test_a_trail_that_is_no_path_is_read_by_its_edges():
    maze = dl.tasks.maze(1_000_001)
    start = maze.scorer.keywords["start"]
    edges = question_of("maze").taken(maze, "edges 00R 01D")
    assert edges == {(0, 0), (0, 1), (1, 1)} - {start, maze.scorer.keywords["goal"]}
    with pytest.raises(dl.TaskError, match="take one of maze"):
        question_of("occlude")


def read(scenes=40, seeds=2, items=6, channels=30, unread=(), seed=0):
    """Make what is read: layer 1 says it at step 1, along a channel; layer 0 says where the token is; else there is noise."""
    rng = np.random.default_rng(seed)
    shape = (scenes, seeds)
    taken = np.broadcast_to(np.arange(items) < 2, (*shape, items)).astype(int)
    taken = rng.permuted(taken, axis=-1)
    taken[list(unread)] = -1
    place = rng.permuted(np.broadcast_to(np.arange(items), (*shape, items)), axis=-1)
    state = rng.standard_normal((2, 2, *shape, items, channels))  # [layer, step, ...]
    state[0, ..., :items] += 4 * np.eye(items)[place]
    state[1, 1, ..., 7] += 4 * (taken == 1)
    noise = rng.standard_normal((2, *shape, items, channels))
    data = {
        "state": (("layer", "step", "sample", "seed", "item", "channel"), state),
        "input": (("step", "sample", "seed", "item", "channel"), noise),
        "latents": (("step", "sample", "seed", "item", "value"), noise[..., :8]),
        "first_frame": (("sample", "seed", "item", "given"), noise[0, ..., :5]),
        "board": (("sample", "seed", "item", "cell"), np.eye(items)[place]),
        "ideal": (
            ("step", "sample", "seed", "item"),
            np.stack([np.zeros(taken.shape), 0.8 * (taken == 1) - 0.4]),
        ),
        "taken": (("sample", "seed", "item"), taken),
        "place": (("sample", "seed", "item"), place),
        "picture": ("sample", np.arange(scenes) // 2),
    }
    coords = {
        "layer": [0, 1],
        "step": [0, 1],
        "sample": [f"t/{i}" for i in range(scenes)],
        "seed": range(seeds),
    }
    return xr.Dataset(data, {**coords, "sigma": ("step", [1.0, 0.5])})


def interval(values):
    return dl.analysis.mean(values.mean("seed"), bounds=(0, 1))


@pytest.fixture(scope="module")
def fitted():
    return fit(read(), folds=4, controls=2, seed=0)


def test_what_is_planted_is_read_and_nothing_else(fitted):
    found = interval(fitted.state)
    assert float(found["mean"].sel(layer=1, step=1)) > 0.9
    for null in (
        found.sel(layer=1, step=0),
        found.sel(layer=0),
        interval(fitted.input),
        interval(fitted.first_frame),
    ):
        assert (
            abs(null["mean"] - 0.5) < 0.1
        ).all()  # of 40 scenes; 0.03 is the standard deviation over draws
    assert interval(fitted.ideal)["mean"].values.tolist() == [0.5, 1.0]


def test_a_probe_that_knows_the_place_is_good_at_the_control_task_alone(fitted):
    control = interval(fitted.state_control)
    assert (
        float(interval(fitted.board_control)["mean"]) > 0.99
        and abs(float(interval(fitted.board)["mean"]) - 0.5) < 0.1
    )
    assert (control["mean"].sel(layer=0) > 0.9).all() and abs(
        control["mean"].sel(layer=1, step=1) - 0.5
    ) < 0.1
    selective = dl.effect(fitted.state.mean("seed"), fitted.state_control.mean("seed"), bounds=(0, 1))
    assert (selective.high.sel(layer=0) < 0).all() and float(selective.low.sel(layer=1, step=1)) > 0


def test_after_the_cut_a_new_probe_reads_less_and_directions_are_of_their_step(fitted):
    read_here = [
        float(fitted[n].sel(layer=1, step=1).mean()) for n in ("after_means", "after_probe", "state")
    ]
    assert (
        read_here[0] < 0.6 < read_here[1] < read_here[2]
    )  # the probe's direction is not all that tells them apart
    for name in ("means", "probe"):
        assert (abs(fitted[name].sel(layer=1, step=1)).argmax("channel") == 7).all()
    assert np.allclose(fitted.means.sel(layer=1, step=1, channel=7), 4, atol=0.3)
    transfer = interval(fitted.transfer.sel(layer=1))["mean"]
    assert float(transfer.sel(step=1, tested=1)) == pytest.approx(
        float(fitted.state.sel(layer=1, step=1).mean())
    )
    assert all(abs(float(transfer.sel(step=a, tested=b)) - 0.5) < 0.1 for a, b in ((0, 1), (1, 0)))


def test_folds_keep_pictures_whole_and_runs_without_an_answer_do_not_count():
    folds = folds_of(np.repeat(np.arange(10), 3), 4, 0).reshape(10, 3)
    assert (folds == folds[:, :1]).all() and {*folds.ravel()} == {0, 1, 2, 3}
    items = Items.of(read(unread=range(30, 40)), 4, 1, 0)
    assert items.counted.any(-1).sum() == 60
    with pytest.raises(dl.TaskError, match="fewer --folds, or --label right"):
        Items.of(read(unread=range(2, 40)), 4, 1, 0)


def test_labels_that_belong_to_a_scene_are_not_known_from_it():
    """The leak that folds of tokens would have: every scene has marks of its own, and they say nothing of another one."""
    data = read()
    marks = np.random.default_rng(1).standard_normal((40, 6, 30)) * 5
    data["state"] = data.state * 0.01 + xr.DataArray(marks, dims=["sample", "item", "channel"])
    data.taken.values[:, 1] = data.taken.values[:, 0]
    data["picture"] = "sample", np.arange(40)
    assert (abs(interval(fit(data, 4, 1, 0).state)["mean"] - 0.5) < 0.15).all()


def test_a_cut_takes_what_tells_tokens_apart_and_its_placebo_changes_as_much():
    h = torch.randn(2, 3, 3, 30, generator=torch.Generator().manual_seed(0))
    direction, along = np.eye(30)[7] * 3, np.eye(30)[[4, 5]].sum(0)
    cut = probe_cuts.cut(direction=direction)(h, SPOT)
    assert torch.allclose(cut[..., 7], h[..., 7].mean().expand(2, 3, 3), atol=1e-6)
    placebo = probe_cuts.cut_elsewhere(direction=direction, along=along)(h, SPOT)
    assert torch.allclose((placebo - h).norm(dim=-1), (cut - h).norm(dim=-1), atol=1e-5)
    assert torch.equal(placebo[..., 7], h[..., 7]) and not torch.allclose(placebo[..., 4], h[..., 4])


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


@pytest.mark.slow
def test_the_script_reads_cuts_and_goes_on_from_what_it_has(organism, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    module = script("probes")
    small = {
        "task": "circle",
        "samples": 4,
        "steps": 2,
        "layers": "4,8",
        "at_steps": "1",
        "folds": 2,
        "controls": 1,
    }
    options = module.Options(**small, label="right", out=tmp_path)
    assert module.main(options) == 0
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["runs that count"].startswith("4 of 4") and "0.5" not in said["question"]
    results = xr.open_zarr(tmp_path / "results.zarr", consolidated=False).load()
    assert results.changed.sizes == {"kind": 5, "place": 3, "sample": 4, "seed": 1}
    assert (results.ideal == 1).all()  # one right answer: who knows it needs nothing else
    # Equal amounts: a cut of one layer moves the latents, and so do its placebos.
    assert (results.distance > 0).all()
    assert "runs of 2 steps" in capsys.readouterr().err
    before = sorted(tmp_path.glob("*/*.zarr")) + sorted(tmp_path.glob("states/blocks/*"))
    assert module.main(options) == 0  # nothing is made again
    assert sorted(tmp_path.glob("*/*.zarr")) + sorted(tmp_path.glob("states/blocks/*")) == before
    assert json.loads((tmp_path / "summary.json").read_text()) == said


@pytest.mark.slow
def test_what_is_read_is_the_state_at_the_cells_of_the_last_frame(organism):
    sample, question = dl.tasks.choose(1_000_003), question_of("choose")
    batch = organism.batch([(sample, 5)], steps=2)
    found = read_tokens(organism, batch, question, [3], [1], "shown")
    x = batch.step(0, batch.noise).latents
    now = batch.step(1, x, watch=[("block", "cond", 3), ("block_in", "cond", 0)])
    for item, (r, c) in enumerate(question.cells(sample)):
        for name, site, layer in (("state", "block", 3), ("input", "block_in", 0)):
            there = now.states[site, "cond", layer][0, -1, r, c]
            assert np.allclose(found[name].squeeze()[item], there)
        under = x[0, :, -1, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].ravel()
        assert np.allclose(found.latents.squeeze()[item], under)
    ideal = dl.analysis.ideal_denoiser(sample, organism.encode).weights(x, batch.sigmas[1])[0]
    assert np.allclose(found.ideal.squeeze()[: len(ideal)], ideal - 1 / len(ideal))  # beyond the prior


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"task": "occlude"}, "no question"),
        ({"folds": 1}, "2 folds"),
        ({"samples": 6}, "--folds 4 takes 8"),
        ({"task": "choose", "label": "right"}, "several right answers"),
        ({"task": "custom", "image": None, "eval_root": "here"}, "scorer"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_a_model_is_loaded(changes, match, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("a model is loaded"))
    module = script("probes")
    with pytest.raises(dl.TaskError, match=match):
        module.main(module.Options(**{"samples": 8, **changes}))
