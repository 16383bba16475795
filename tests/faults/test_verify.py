"""A name is checked: what it cannot see shows in the first step of the run that a store hands out."""

import numpy as np
import pytest
import torch

import dit_lens as dl

PLAN = {"steps": 3, "cfg_scale": 2.0}


@pytest.fixture
def other_attention(monkeypatch):
    """Replace the attention function of DiffSynth's module, which no name of a run shows."""
    from diffsynth.models import wan_video_dit

    plain = wan_video_dit.flash_attention

    def replace():
        monkeypatch.setattr(
            wan_video_dit, "flash_attention", lambda *args, **options: 0.9 * plain(*args, **options)
        )

    return replace


@pytest.mark.parametrize(
    "record", [[], [dl.energy], [(dl.hidden, dl.at(layer=1, step=2))]], ids=["nothing", "energy", "late"]
)
def test_a_replaced_attention_is_caught_when_a_run_is_taken(
    tiny_pipe, sample, tmp_path, other_attention, record
):
    lens = dl.Lens(tiny_pipe())
    lens.run(sample, store=tmp_path, record=record, **PLAN)
    other_attention()
    with pytest.raises(dl.StoreError, match="asked for again, and is not what this model makes now"):
        lens.run(sample, store=tmp_path, record=record, **PLAN)


@pytest.mark.parametrize(
    "places",
    [[dl.at(layer=1)], [dl.at(layer=[0, 2], branch="uncond")], [dl.at(step=[0, 2])]],
    ids=["layer", "branch", "steps"],
)
@pytest.mark.parametrize("kind", ["integers", "bools", "floats"])
def test_what_is_recorded_at_some_places_alone_is_compared_there(
    tiny_pipe, sample, tmp_path, other_attention, places, kind
):
    """Integers have no NaN that could stand for the places between."""
    reduce = {
        "integers": lambda h: h.argmax(-1),
        "bools": lambda h: h[..., 0] > 0,
        "floats": lambda h: h.norm(dim=-1),
    }[kind]
    record = [(dl.keeps("frame", "y", "x")(reduce), place) for place in places]
    pairs = [(sample, 0), (sample, 1)]
    first = dl.Lens(tiny_pipe()).run(sample, store=tmp_path, record=record, **PLAN)
    dl.Lens(tiny_pipe()).batch(pairs, store=tmp_path / "rows", record=record, **PLAN).run()
    lens = dl.Lens(tiny_pipe())
    assert lens.run(sample, store=tmp_path, record=record, **PLAN).path == first.path
    lens.batch(pairs, store=tmp_path / "rows", record=record, **PLAN).run()
    other_attention()
    with pytest.raises(dl.StoreError, match="not what this model makes now"):
        dl.Lens(tiny_pipe()).run(sample, store=tmp_path, record=record, **PLAN)


def test_it_is_caught_in_a_run_of_one_step_and_in_a_batch(tiny_pipe, sample, tmp_path, other_attention):
    lens, pairs = dl.Lens(tiny_pipe()), [(sample, 0), (sample, 1)]
    lens.run(sample, store=tmp_path / "one", steps=1)
    lens.batch(pairs, store=tmp_path / "rows", record=[dl.energy], **PLAN).run()
    lens.batch(pairs, store=tmp_path / "bare rows", **PLAN).run()
    other_attention()
    with pytest.raises(dl.StoreError, match="video of step 0 differs"):
        lens.run(sample, store=tmp_path / "one", steps=1)
    for store in ("rows", "bare rows"):
        record = [dl.energy] if store == "rows" else []
        with pytest.raises(dl.StoreError, match="not what this model makes now"):
            lens.batch(pairs, store=tmp_path / store, record=record, **PLAN).run()


def test_a_process_checks_the_first_run_of_a_store_all_or_none(tiny_pipe, sample, tmp_path, other_attention):
    lens = dl.Lens(tiny_pipe())
    runs = [lens.run(sample, seed, store=tmp_path, **PLAN) for seed in (0, 1)]
    assert lens.run(sample, 0, store=tmp_path, **PLAN).path == runs[0].path  # the first is checked, and right
    other_attention()
    assert lens.run(sample, 1, store=tmp_path, **PLAN).path == runs[1].path
    assert lens.run(sample, 1, store=tmp_path, verify="never", **PLAN).path == runs[1].path
    with pytest.raises(dl.StoreError, match="not what this model makes now"):
        lens.run(sample, 1, store=tmp_path, verify="always", **PLAN)
    with pytest.raises(dl.PlanError, match="verify='sometimes'"):
        lens.run(sample, 1, store=tmp_path, verify="sometimes", **PLAN)


def test_a_check_changes_nothing_and_leaves_nothing_behind(
    tiny_pipe, sample, tmp_path, run_bare, left_behind
):
    pipe = tiny_pipe()
    before = run_bare(pipe, sample, steps=3, cfg_scale=2.0)
    lens = dl.Lens(pipe)
    edit = [(dl.add_noise(scale=0.5), dl.at(site="latents")), (dl.scale(factor=0.5), dl.at(layer=1))]
    record = [dl.energy, dl.x0, dl.velocity, dl.hidden]
    first = lens.run(sample, store=tmp_path, record=record, edit=edit, **PLAN)
    again = lens.run(sample, store=tmp_path, record=record, edit=edit, verify="always", **PLAN)
    assert again.path == first.path and left_behind(pipe) == []
    assert np.array_equal(run_bare(pipe, sample, steps=3, cfg_scale=2.0), before)


def test_a_run_that_failed_the_comparison_is_compared_again(tiny_pipe, sample, tmp_path, other_attention):
    lens = dl.Lens(tiny_pipe())
    pairs = [(sample, 0), (sample, 1)]
    lens.run(sample, store=tmp_path / "one", **PLAN)
    lens.batch(pairs, store=tmp_path / "rows", **PLAN).run()
    other_attention()
    for _ in range(2):
        with pytest.raises(dl.StoreError, match="not what this model makes now"):
            lens.run(sample, store=tmp_path / "one", **PLAN)
        with pytest.raises(dl.StoreError, match="not what this model makes now"):
            lens.batch(pairs, store=tmp_path / "rows", **PLAN).run()


def test_a_batch_is_not_run_with_another_model_than_it_was_prepared_with(tiny_pipe, sample, tmp_path):
    pipe = tiny_pipe()
    lens = dl.Lens(pipe)
    batch = lens.batch([(sample, 0)], store=tmp_path, **PLAN)
    with torch.no_grad():
        next(pipe.dit.parameters()).mul_(2)
    with pytest.raises(dl.PlanError, match="changed since this batch was prepared"):
        batch.run()


def test_a_batch_that_runs_again_is_named_by_what_its_edit_holds_then(tiny_pipe, sample, tmp_path):
    factor = [0.5]
    edit = [(lambda state, spot: state * factor[0], dl.at(layer=1))]
    batch = dl.Lens(tiny_pipe()).batch([(sample, 0)], store=tmp_path, edit=edit, **PLAN)
    (first,) = batch.run()
    factor[0] = 2.0
    (second,) = batch.run()
    assert first.path != second.path
    assert not np.array_equal(first.dataset["latents"].values, second.dataset["latents"].values)


def test_a_sweep_compares_the_runs_that_it_does_not_write_again(tiny_pipe, sample, tmp_path, other_attention):
    arms = {"less": [(dl.scale(factor=0.5), dl.at(layer=1))]}
    dl.Lens(pipe := tiny_pipe()).sweep([(sample, 0)], arms, store=tmp_path, **PLAN)
    dl.Lens(pipe).sweep([(sample, 0), (sample, 1)], arms, store=tmp_path, **PLAN)  # other rows beside it
    other_attention()
    with pytest.raises(dl.StoreError, match="not what this model makes now"):
        dl.Lens(pipe).sweep([(sample, 0)], arms, store=tmp_path, **PLAN)
    dl.Lens(pipe).sweep([(sample, 0)], arms, store=tmp_path, verify="never", **PLAN)


@pytest.mark.parametrize("steps", [1, 3])
def test_rows_with_others_beside_them_are_compared(tiny_pipe, sample, tmp_path, other_attention, steps):
    """Also where what step 1 starts from is edited, and where there is one step alone."""
    plan = {"steps": steps, "cfg_scale": 1.0, "edit": [(dl.add_noise(scale=0.1), dl.at(site="latents"))]}
    pairs = [(sample, seed) for seed in range(3)]
    dl.Lens(pipe := tiny_pipe()).batch(pairs, store=tmp_path, **plan).run()
    dl.Lens(pipe).batch(pairs[:2], store=tmp_path, **plan).run()
    other_attention()
    with pytest.raises(dl.StoreError, match="not what this model makes now"):
        dl.Lens(pipe).batch(pairs[:2], store=tmp_path, **plan).run()


def test_numbers_drawn_without_a_seed_are_the_first_suspect(tiny_pipe, sample, tmp_path):
    def noisy(h, at):
        return h + torch.randn_like(h)

    options = {"store": tmp_path, "edit": [(noisy, dl.at(layer=0))], **PLAN}
    lens = dl.Lens(tiny_pipe())
    lens.run(sample, **options)
    torch.rand(1)
    with pytest.raises(
        dl.StoreError, match=r"changed: numbers that a record or an edit draws without a seed"
    ):
        lens.run(sample, **options)
