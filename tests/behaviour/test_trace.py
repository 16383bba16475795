"""The nnsight context: bodies addressed by meaning, in order, and nothing left behind."""

import numpy as np
import pytest
import torch

import dit_lens as dl


def test_the_code_of_the_design_runs(lens, pipe, sample, tmp_path, left_behind):
    clean = lens.run(sample, steps=3, record=[dl.hidden])
    with lens.trace(sample, seed=0, steps=3, store=tmp_path / "maze.zarr") as tr:
        tr.record(dl.energy, dl.at(layer="all"))
        tr.record(dl.hidden, dl.at(layer=[1, 2], step="0-1"))
        tr.record(dl.x0)
        tr.edit(dl.add_noise(scale=1.0), dl.at(site="latents", step=2))
        norms = [].save()
        for call in tr.calls(step="0-1", branch="cond"):
            h = call.block(1).output
            norms.append((call.step, call.branch, float(h.norm())))
            call.block(1).output = h.roll(1, dims=1)
    run = tr.run
    assert run.complete and left_behind(pipe) == []
    assert [(s, b) for s, b, _ in norms] == [(0, "cond"), (1, "cond")]
    before = clean["hidden"].sel(step=0, branch="cond", layer=1).values.reshape(-1, 64)
    after = run["hidden"].sel(step=0, branch="cond", layer=1).values.reshape(-1, 64)
    assert np.array_equal(after, np.roll(before, 1, axis=0))  # declared records see what the body has set
    assert np.isclose(norms[0][2], np.linalg.norm(before), rtol=1e-5)
    untouched = run["hidden"].sel(step=0, branch="uncond", layer=1).values
    assert np.array_equal(untouched, clean["hidden"].sel(step=0, branch="uncond", layer=1).values)


def test_values_are_those_that_run_records(lens, sample):
    run = lens.run(
        sample,
        steps=2,
        record=[dl.hidden, (dl.hidden, dl.at(site="self_attn")), (dl.hidden, dl.at(site="block_in"))],
    )
    with lens.trace(sample, steps=2) as tr:
        seen = {}.save()
        for call in tr.calls():
            where = (call.step, call.branch)
            seen[(*where, "block_in")] = call.block(0).input.clone()
            seen[(*where, "self_attn")] = call.block(1).site("self_attn").output.clone()
            seen[(*where, "block")] = call.block(2).output.clone()
    layers = {"block_in": 0, "self_attn": 1, "block": 2}
    assert len(seen) == 12
    for (step, branch, site), value in seen.items():
        name = "hidden" if site == "block" else f"hidden_{site}"
        expected = run[name].sel(step=step, branch=branch, layer=layers[site]).values
        assert np.array_equal(value[0].numpy(), expected.reshape(-1, 64)), (step, branch, site)


def test_two_loops_follow_one_another(lens, sample):
    with lens.trace(sample, steps=4) as tr:
        seen = [].save()
        for call in tr.calls(step="0-1", branch="cond"):
            seen.append(("first", call.step))
            call.block(0).output.sum()
        for call in tr.calls(step="2-3", branch="uncond"):
            seen.append(("second", call.step))
            call.block(0).output.sum()
    assert seen == [("first", 0), ("first", 1), ("second", 2), ("second", 3)]


def test_a_body_without_calls_only_declares(lens, sample):
    with lens.trace(sample, steps=2) as tr:
        tr.record(dl.energy)
    assert tr.run.complete and "energy" in tr.run.names


def test_asking_for_an_earlier_layer_is_an_error_not_the_next_call(lens, pipe, sample, left_behind):
    with (
        pytest.raises(
            dl.CaptureError, match=r"block\(0\)\.output at step=0, branch=cond.*lower layers first"
        ),
        lens.trace(sample, steps=3) as tr,
    ):
        for call in tr.calls(branch="cond"):
            call.block(2).output.sum()
            call.block(0).output.sum()
    assert left_behind(pipe) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"step": 9}, "step=9 is out of range: there are 2"),
        ({"branch": "left"}, "this run has cond, uncond"),
        ({"expert": "low"}, "this run has dit"),
    ],
)
def test_calls_that_are_not_there_are_refused(lens, sample, asked, words):
    with pytest.raises(dl.PlanError, match=words), lens.trace(sample, steps=2) as tr:
        for call in tr.calls(**asked):
            call.block(0).output.sum()


def test_a_layer_that_is_not_there_is_refused(lens, sample):
    with pytest.raises(dl.PlanError, match="there are 3 of them"), lens.trace(sample, steps=2) as tr:
        for call in tr.calls():
            call.block(7).output.sum()


def test_records_come_before_the_first_loop(lens, sample):
    with pytest.raises(dl.PlanError, match="comes before the first loop"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                call.block(0).output.sum()
                tr.record(dl.energy)


def test_an_error_in_the_body_surfaces_and_leaves_nothing(lens, pipe, sample, left_behind):
    with pytest.raises(ZeroDivisionError), lens.trace(sample, steps=2) as tr:
        for call in tr.calls(step=1):
            call.block(0).output.sum()
            1 / 0  # noqa: B018
    assert left_behind(pipe) == []
    assert lens.run(sample, steps=1).complete


def test_bad_options_are_refused_before_the_body(lens, sample):
    with pytest.raises(dl.PlanError, match="TeaCache"):
        lens.trace(sample, steps=2, tea_cache_l1_thresh=0.1)


def test_nnsights_own_envoys_work_in_the_body(lens, sample):
    with lens.trace(sample, steps=1, cfg_scale=1.0) as tr:
        for call in tr.calls(step=0):
            head = lens.nnsight.dit.head.output.clone().save()
    assert isinstance(head, torch.Tensor) and head.shape[-1] == 4 * 48


def test_the_run_is_there_only_after_the_body(lens, sample):
    tr = lens.trace(sample, steps=1)
    with pytest.raises(dl.CaptureError, match="after the `with` block"):
        _ = tr.run


def test_the_run_is_not_there_in_the_body(lens, sample):
    with pytest.raises(dl.CaptureError, match=r"after the `with` block.* runs beside the model"):
        with lens.trace(sample, steps=1) as tr:
            for call in tr.calls():
                call.block(0).output.sum()
            tr.run.names.save()


class Holder:
    """Holds a trace, as an experiment of the user's own does."""


@pytest.mark.filterwarnings("error")
def test_a_trace_is_no_input_of_its_body_wherever_it_is_held(lens, sample, tmp_path):
    holder, paths = Holder(), []
    for _ in range(2):
        with lens.trace(sample, steps=1, cfg_scale=1.0, store=tmp_path) as holder.trace:
            for call in holder.trace.calls():
                call.block(0).output.sum()
        paths.append(holder.trace.run.path)
    for early in (False, True):
        if early:
            tr = lens.trace(sample, steps=1, cfg_scale=1.0, store=tmp_path)
            with tr:
                for call in tr.calls():
                    call.block(1).output.sum()
        else:
            with lens.trace(sample, steps=1, cfg_scale=1.0, store=tmp_path) as tr:
                for call in tr.calls():
                    call.block(1).output.sum()
        paths.append(tr.run.path)
    assert paths[0] == paths[1] and paths[2] == paths[3]


def test_another_body_is_another_run(lens, sample, tmp_path):
    with lens.trace(sample, steps=1, store=tmp_path) as one:
        for call in one.calls():
            call.block(0).output = call.block(0).output * 2
    with lens.trace(sample, steps=1, store=tmp_path) as two:
        for call in two.calls():
            call.block(0).output = call.block(0).output * 3
    assert one.run.path != two.run.path


def test_what_a_trace_that_never_ran_has_wrapped_is_released_by_the_next(tiny_pipe, sample, left_behind):
    pipe = tiny_pipe()
    assert dl.Lens(pipe).nnsight is not None  # another lens, which traces nothing
    lens = dl.Lens(pipe)
    with lens.trace(sample, steps=1) as tr:
        for call in tr.calls():
            call.block(0).output.sum()
    assert tr.run.complete and left_behind(pipe) == []


def test_a_trace_runs_once(lens, sample):
    tr = lens.trace(sample, steps=1)
    with tr:
        tr.record(dl.x0)
    with pytest.raises(dl.PlanError, match=r"This trace has run: call lens\.trace again"):
        with tr:
            tr.record(dl.x0)
