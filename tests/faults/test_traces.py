"""Traces: each value belongs to its call or is an error; no body is cut short in silence; a body sees all steps."""

import linecache
import os
import signal
import sys
import textwrap
import time
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
import forked

SITES = ("self_attn", "cross_attn", "ffn")


@pytest.fixture(autouse=True)
def no_warning_stands_for_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def recorded(lens, sample):
    run = lens.run(
        sample, steps=2, record=[(dl.hidden, dl.at(site=site)) for site in ("block", "block_in", *SITES)]
    )

    def value(site, step, branch, layer):
        name = "hidden" if site == "block" else f"hidden_{site}"
        return run[name].sel(step=step, branch=branch, layer=layer).values.reshape(-1, 64)

    return value


# ---- order within a call


@pytest.mark.parametrize("site", SITES)
def test_a_site_of_a_block_that_is_past_is_an_error(lens, pipe, sample, left_behind, site):
    with pytest.raises(
        dl.CaptureError, match=rf"block\(2\)\.site\('{site}'\)\.output at step=0, branch=cond"
    ):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                call.block(2).output.sum()
                call.block(2).site(site).output.sum()
    assert left_behind(pipe) == []


def test_a_site_of_a_lower_block_is_an_error(lens, sample):
    with pytest.raises(dl.CaptureError, match=r"block\(0\)\.site\('ffn'\)\.output at step=1, branch=uncond"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls(step=1, branch="uncond"):
                call.block(1).site("self_attn").output.sum()
                call.block(0).site("ffn").output.sum()


def test_the_input_after_the_output_is_an_error(lens, sample):
    with pytest.raises(dl.CaptureError, match=r"block\(1\)\.input at step=0"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                call.block(1).output.sum()
                call.block(1).input.sum()


@pytest.mark.parametrize("site", SITES)
def test_a_write_to_a_site_that_is_past_is_an_error_and_lands_nowhere(lens, sample, site):
    seen = []
    with pytest.raises(dl.CaptureError, match="the model is past it"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls(branch="cond"):
                h = call.block(1).output
                seen.append(call.step)
                call.block(0).site(site).output = torch.zeros_like(h)
    assert seen == [0]


def test_sites_in_order_give_what_run_records(lens, sample, recorded):
    with lens.trace(sample, steps=2) as tr:
        values = {}.save()
        for call in tr.calls():
            for layer in range(3):
                block = call.block(layer)
                values[("block_in", call.step, call.branch, layer)] = block.input.clone()
                for site in ("self_attn", "cross_attn", "ffn"):
                    values[(site, call.step, call.branch, layer)] = block.site(site).output.clone()
                values[("block", call.step, call.branch, layer)] = block.output.clone()
    assert len(values) == 2 * 2 * 3 * 5
    for place, value in values.items():
        assert np.array_equal(value[0].numpy(), recorded(*place)), place


def test_a_sites_value_is_what_a_record_placed_there_gets(lens, sample, recorded):
    with lens.trace(sample, steps=1) as tr:
        values = {}.save()
        for call in tr.calls(branch="cond"):
            for site in ("block_in", "self_attn", "block"):
                values[site] = call.block(1).site(site).value.clone()
    for site, value in values.items():
        assert np.array_equal(value[0].numpy(), recorded(site, 0, "cond", 1)), site


def test_the_same_value_can_be_read_twice_and_is_the_one_that_was_set(lens, sample):
    with lens.trace(sample, steps=1) as tr:
        same = [].save()
        for call in tr.calls():
            h = call.block(1).site("ffn").output
            call.block(1).site("ffn").output = h * 2
            same.append(torch.equal(call.block(1).site("ffn").output, h * 2))
    assert same == [True, True]


def test_writes_to_a_site_and_to_an_input_act_in_their_own_call(lens, sample):
    def zero(h, at):
        return torch.zeros_like(h)

    place = {"step": 1, "branch": "cond", "layer": 1}
    expected = lens.run(sample, steps=2, edit=[(zero, dl.at(site="ffn", **place))], record=[dl.hidden])
    with lens.trace(sample, steps=2) as tr:
        tr.record(dl.hidden)
        for call in tr.calls(step=1, branch="cond"):
            site = call.block(1).site("ffn")
            site.output = torch.zeros_like(site.output)
    assert np.array_equal(tr.run["hidden"].values, expected["hidden"].values)
    expected = lens.run(sample, steps=2, edit=[(zero, dl.at(site="block_in", **place))], record=[dl.hidden])
    with lens.trace(sample, steps=2) as tr:
        tr.record(dl.hidden)
        for call in tr.calls(step=1, branch="cond"):
            call.block(1).input = torch.zeros_like(call.block(1).input)
    assert np.array_equal(tr.run["hidden"].values, expected["hidden"].values)


def test_a_value_of_another_shape_is_refused(lens, sample):
    with pytest.raises(dl.PlanError, match=r"block\(1\)\.output at .* was set to torch.float32 \(1, 3\)"):
        with lens.trace(sample, steps=1) as tr:
            for call in tr.calls():
                call.block(1).output = call.block(1).output[:, :3, 0]


def test_a_module_that_runs_twice_in_a_call_has_no_one_value(tiny_pipe, sample):
    pipe = tiny_pipe()
    ffn, forward = pipe.dit.blocks[1].ffn, type(pipe.dit.blocks[1]).forward

    def twice(*args, **kwargs):
        ffn(torch.zeros(1, 1, 64))
        return forward(pipe.dit.blocks[1], *args, **kwargs)

    pipe.dit.blocks[1].forward = twice
    with pytest.raises(dl.CaptureError, match=r"block\(1\)\.site\('ffn'\)\.output at step=0.* ran 2 times"):
        with dl.Lens(pipe).trace(sample, steps=1) as tr:
            for call in tr.calls():
                call.block(1).site("ffn").output.sum()


# ---- nnsight's own envoys


def test_what_never_runs_is_an_error_that_says_what_to_ask_for(lens, pipe, sample, left_behind):
    with pytest.raises(
        dl.CaptureError, match=r"dit\.output at step=0, branch=cond.*did not come.*call\.block"
    ):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                call.dit.output.sum()
    assert left_behind(pipe) == []


@pytest.mark.parametrize("how", ["lens.nnsight", "call.dit", "block.envoy", "site.envoy"])
def test_raw_envoys_do_not_cross_calls(lens, sample, how):
    seen = []
    with pytest.raises(dl.CaptureError, match=r"dit\.blocks\.0\.\S*output at step=0, branch=cond.*past it"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                seen.append(call.step)
                call.block(2).output.sum()
                envoy = {
                    "lens.nnsight": lens.nnsight.dit.blocks[0],
                    "call.dit": call.dit.blocks[0],
                    "block.envoy": call.block(0).envoy,
                    "site.envoy": call.block(0).site("ffn").envoy,
                }[how]
                envoy.output.sum()
    assert seen == [0]


def test_raw_writes_and_skips_do_not_cross_calls(lens, sample):
    with pytest.raises(dl.CaptureError, match=r"dit\.blocks\.0\.output at step=0.* could not be set"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                lens.nnsight.dit.blocks[0].output = call.block(1).output
    with pytest.raises(dl.CaptureError, match=r"dit\.blocks\.0\.skip at step=0.* could not be skipped"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                lens.nnsight.dit.blocks[0].skip(call.block(1).output)


def test_an_operation_inside_a_module_does_not_cross_calls(lens, sample):
    with pytest.raises(dl.CaptureError, match=r"dit\.blocks\.0\.source\.\S+ at step=0"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls():
                source = lens.nnsight.dit.blocks[0].source
                name = next(iter(source)).path.rsplit(".", 1)[-1]
                call.block(1).output.sum()
                getattr(source, name).output.sum()


def test_a_value_outside_of_a_call_is_refused(lens, sample):
    with pytest.raises(dl.CaptureError, match="asked for outside of a call"):
        with lens.trace(sample, steps=2):
            lens.nnsight.dit.head.output.sum()
    with pytest.raises(dl.CaptureError, match="asked for outside of a call"):
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls(step=0):
                call.block(0).output.sum()
            lens.nnsight.dit.head.output.sum()


def test_nnsights_counting_loops_are_refused(lens, sample):
    for name in ("iter", "all", "invoke"):
        with pytest.raises(dl.PlanError, match=r"tr\.\w+ "):
            with lens.trace(sample, steps=2) as tr:
                attribute = getattr(tr, name)
                attribute()


def test_parts_outside_the_transformer_can_be_waited_for_around_the_calls(lens, sample):
    with lens.trace(sample, steps=2) as tr:
        words = lens.nnsight.text_encoder.output.clone().save()
        steps = [].save()
        for call in tr.calls(branch="cond"):
            steps.append(call.step)
    assert isinstance(words, torch.Tensor) and steps == [0, 1]


def test_tr_result_is_the_run(lens, sample):
    with lens.trace(sample, steps=1) as tr:
        run = tr.result.save()
    assert run is tr.run


# ---- loops


def test_a_call_that_is_past_gives_no_values(lens, sample):
    with pytest.raises(
        dl.CaptureError, match=r"block\(0\)\.output at step=0, branch=cond.*it is at step=0, branch=unc"
    ):
        with lens.trace(sample, steps=2) as tr:
            first = None
            for call in tr.calls():
                first = first or call
                if call is not first:
                    first.block(0).output.sum()
    with pytest.raises(dl.CaptureError, match="the run has ended"):
        with lens.trace(sample, steps=2) as tr:
            calls = list(tr.calls())
            calls[0].block(0).output.sum()


def test_a_loop_over_steps_that_are_past_is_an_error(lens, sample):
    with pytest.raises(dl.CaptureError, match=r"tr\.calls selects step=0, branch=cond.* past it"):
        with lens.trace(sample, steps=3) as tr:
            for call in tr.calls(step=1):
                call.block(0).output.sum()
            for call in tr.calls(step="0-2"):
                call.block(0).output.sum()


def test_a_loop_whose_calls_another_loop_has_taken_is_an_error(lens, sample):
    for first in (True, False):
        with pytest.raises(dl.CaptureError, match=r"past it.*two at once take each other's calls"):
            with lens.trace(sample, steps=3) as tr:
                later = tr.calls(step="1-")
                for call in tr.calls():
                    call.block(0).output.sum()
                    for other in tr.calls(step=2, branch="cond") if first else ():
                        other.block(0).output.sum()
                        break
                    next(later)


def test_a_loop_inside_of_a_loop_takes_the_calls_that_the_outer_one_leaves(lens, sample):
    with lens.trace(sample, steps=3) as tr:
        seen = [].save()
        for call in tr.calls(branch="cond"):
            seen.append((call.step, float(call.block(0).output.sum())))
            other = next(tr.calls(step=call.step, branch="uncond"))
            seen.append((other.step, float(other.block(0).output.sum())))
    assert [step for step, _ in seen] == [0, 0, 1, 1, 2, 2]


def test_break_is_the_users_right(lens, sample):
    with lens.trace(sample, steps=3) as tr:
        steps = [].save()
        for call in tr.calls(branch="cond"):
            steps.append(call.step)
            if call.step == 1:
                break
        last = call.block(2).output.clone().save()  # the call is still running
    assert steps == [0, 1] and isinstance(last, torch.Tensor) and tr.run.complete


def test_a_body_that_catches_the_error_goes_on_with_the_next_call(lens, sample):
    with lens.trace(sample, steps=2) as tr:
        missed = [].save()
        values = [].save()
        for call in tr.calls():
            values.append(call.block(1).output.clone())
            try:
                call.dit.output.sum()
            except dl.CaptureError:
                missed.append((call.step, call.branch))
    assert missed == [(0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond")] and len(values) == 4


def test_what_was_saved_is_there(lens, sample):
    with lens.trace(sample, steps=2) as tr:
        for call in tr.calls():
            kept = call.block(0).output.save()
        after = torch.ones(3).save()
    assert kept.shape[-1] == 64 and after.sum() == 3 and tr.run.complete


def test_stop_ends_the_model_and_says_so(lens, pipe, sample, left_behind):
    with lens.trace(sample, steps=2) as tr:
        for call in tr.calls():
            kept = call.block(0).output.clone().save()
            tr.stop()
    assert kept.shape[-1] == 64 and left_behind(pipe) == []
    with pytest.raises(dl.CaptureError, match="stopped the model"):
        _ = tr.run


# ---- streams, batches, experts


def test_a_branch_of_a_merged_batch_is_its_own_rows(lens, sample):
    merged = {"steps": 2, "cfg_merge": True}
    clean = lens.run(sample, **merged, record=[dl.hidden])
    with lens.trace(sample, **merged) as tr:
        tr.record(dl.hidden)
        values = [].save()
        for call in tr.calls(step=0, branch="uncond"):
            h = call.block(1).output
            values.append((call.branch, h.clone()))
            call.block(1).output = h * 2
            call.block(2).output[:] = 0  # in place, in the same rows
    ((branch, value),) = values
    expected = clean["hidden"].sel(step=0, branch="uncond", layer=1).values.reshape(-1, 64)
    assert branch == "uncond" and value.shape[0] == 1 and np.array_equal(value[0].numpy(), expected)
    first = tr.run["hidden"].sel(step=0)
    assert np.array_equal(first.sel(branch="cond").values, clean["hidden"].sel(step=0, branch="cond").values)
    assert np.array_equal(first.sel(branch="uncond", layer=1).values.reshape(-1, 64), expected * 2)
    assert not first.sel(branch="uncond", layer=2).values.any()


def test_a_merged_call_without_a_branch_is_whole(lens, sample):
    with lens.trace(sample, steps=1, cfg_merge=True) as tr:
        shapes = [].save()
        for call in tr.calls():
            shapes.append((call.branch, call.block(0).output.shape[0]))
    assert shapes == [("cond+uncond", 2)]


def test_two_experts_give_their_own_blocks(two_experts, sample):
    lens = dl.Lens(two_experts)
    clean = lens.run(sample, steps=4, record=[dl.hidden])
    with lens.trace(sample, steps=4) as tr:
        values = [].save()
        for call in tr.calls(branch="cond"):
            values.append((call.step, call.expert, call.block(1).output.clone()))
    assert {expert for _, expert, _ in values} == {"high", "low"}
    for step, expert, value in values:
        expected = clean["hidden"].sel(step=step, branch="cond", layer=1).values.reshape(-1, 64)
        assert np.array_equal(value[0].numpy(), expected), (step, expert)
    with pytest.raises(dl.CaptureError, match="past it"):
        with lens.trace(sample, steps=4) as tr:
            for call in tr.calls():
                call.block(1).output.sum()
                call.block(0).output.sum()


# ---- errors and interrupts


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyError, KeyboardInterrupt, SystemExit, StopIteration])
def test_an_error_of_the_body_keeps_its_type_and_line(lens, pipe, sample, run_bare, left_behind, kind):
    before = run_bare(pipe, sample)
    with pytest.raises(kind) as caught:
        with lens.trace(sample, steps=2) as tr:
            for call in tr.calls(step=1):
                call.block(0).output.sum()
                raise kind("in the body")
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert 'raise kind("in the body")' in lines
    assert left_behind(pipe) == []
    assert np.array_equal(run_bare(pipe, sample), before)


def test_an_interrupt_in_the_model_leaves_nothing(lens, pipe, sample, left_behind):
    def interrupt(h, at):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with lens.trace(sample, steps=2, edit=[(interrupt, dl.at(step=1, layer=2))]) as tr:
            for call in tr.calls():
                call.block(0).output.sum()
    assert left_behind(pipe) == []
    with lens.trace(sample, steps=1) as tr:
        for call in tr.calls():
            call.block(0).output.sum()
    assert tr.run.complete


@pytest.mark.usefixtures("lost_interrupts")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_at_any_moment_leaves_nothing(lens, pipe, sample, tmp_path, run_bare, left_behind, times):
    before, moments = run_bare(pipe, sample), np.random.default_rng(times)
    left = []

    def press(number, frame):
        left.pop()
        if left:
            signal.setitimer(signal.ITIMER_REAL, moments.choice([0.0003, 0.001, 0.003]))
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.signal(signal.SIGALRM, press)
    start = time.monotonic()
    traced_with(lens, sample, tmp_path, 2.0)
    whole = time.monotonic() - start
    try:
        for _ in range(6):
            left[:] = [None] * times
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, whole))
                    traced_with(lens, sample, tmp_path, 2.0)
                except KeyboardInterrupt:
                    pass
                while left:  # the trace was faster, or its cleaning up was
                    time.sleep(0.01)
            except KeyboardInterrupt:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert left_behind(pipe) == []
            run, seen = traced_with(lens, sample, tmp_path, 2.0)
            assert run.complete and seen == [0, 1, 2]
            assert np.array_equal(run_bare(pipe, sample), before)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1


def test_a_forward_of_the_users_own_is_there_after_a_trace(tiny_pipe, sample):
    pipe = tiny_pipe()
    block, calls = pipe.dit.blocks[1], []
    forward = block.forward
    block.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    patched = block.forward
    with dl.Lens(pipe).trace(sample, steps=1) as tr:
        for call in tr.calls():
            call.block(1).output.sum()
    assert len(calls) == 2 and vars(block)["forward"] is patched


def test_a_model_of_the_users_own_goes_on_after_a_trace(tiny_pipe, sample):
    from nnsight import NNsight

    pipe = tiny_pipe()
    theirs = NNsight(pipe.dit.blocks[0].ffn)
    with dl.Lens(pipe).trace(sample, steps=1) as tr:
        for call in tr.calls():
            call.block(0).output.sum()
    with theirs.trace(torch.zeros(1, 2, 64)):
        out = theirs.output.clone().save()
    assert tuple(out.shape) == (1, 2, 64)


# ---- what the body leaves alone


def test_a_write_after_the_model_has_gone_on_is_an_error(lens, pipe, sample, left_behind):
    for later in ("site", "call", "end"):
        with pytest.raises(
            dl.CaptureError, match=r"block\(0\).output at step=0.* after the model had gone on"
        ):
            with lens.trace(sample, steps=2, cfg_scale=1.0) as tr:
                for call in tr.calls():
                    h = call.block(0).output
                    call.block(1).site("self_attn").output.sum()
                    h.zero_()
                    if later == "site":
                        call.block(2).output.sum()
                    if later == "end":
                        break
    assert left_behind(pipe) == []


def test_a_write_where_the_model_waits_acts(lens, sample):
    seen = []
    for how in ("set", "in place", "in place, by another name", "set, then in place"):
        with lens.trace(sample, steps=2, cfg_scale=1.0) as tr:
            sums = [].save()
            for call in tr.calls():
                if how == "set":
                    call.block(0).output = call.block(0).output * 2
                elif how == "in place":
                    call.block(0).output.mul_(2)
                elif how == "in place, by another name":
                    call.block(0).output.sum()
                    call.block(1).input.mul_(2)
                else:
                    call.block(0).output = call.block(0).output.clone()
                    call.block(0).output.mul_(2)
                h = call.block(2).output
                sums.append(h if not sums else sums.pop().add_(h))  # of a call that is over
        seen.append(tr.run.video)
    assert all(np.array_equal(seen[0], other) for other in seen[1:])


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def kernels():
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (autocast, "another autocast"),
        (lambda: torch.device("meta"), "another default device"),
        (torch.inference_mode, "another inference mode"),
        (kernels, "another choice of attention kernels"),
    ],
)
def test_a_mode_of_the_body_does_not_hold_for_the_model(lens, pipe, sample, left_behind, context, words):
    with pytest.raises(dl.CaptureError, match=words):
        with lens.trace(sample, steps=1, cfg_scale=1.0) as tr:
            with context():
                for _ in tr.calls():
                    pass
    with pytest.raises(dl.CaptureError, match="another default dtype"):
        with lens.trace(sample, steps=1, cfg_scale=1.0) as tr:
            for call in tr.calls():
                call.block(0).output.sum()
            torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)
    assert left_behind(pipe) == [] and not torch.is_autocast_enabled("cpu")


def test_modes_of_a_moment_and_of_gradients_are_the_bodys_own(lens, sample):
    before = lens.run(sample, steps=2, cfg_scale=1.0).video
    own = torch.nn.Linear(64, 64)
    torch.nn.init.eye_(own.weight)
    torch.nn.init.zeros_(own.bias)
    with lens.trace(sample, steps=2, cfg_scale=1.0) as tr:
        for call in tr.calls():
            h = call.block(0).output
            with torch.autocast("cpu", torch.bfloat16):
                assert (h @ torch.ones(64, 1)).dtype == torch.bfloat16
            call.block(0).output = own(h)
            with torch.enable_grad():
                assert own(call.block(1).output).requires_grad
                assert not call.block(2).output.requires_grad
            assert not own(h).requires_grad  # as in the model
    assert torch.is_grad_enabled() and np.abs(tr.run.video.astype(int) - before).max() <= 1


# ---- the store


def test_the_same_cell_twice_runs_twice_and_takes_its_place(lens, sample, tmp_path):
    paths, steps = [], []
    for _ in range(2):
        with lens.trace(sample, steps=2, store=tmp_path) as tr:
            tr.record(dl.energy)
            seen = [].save()
            for call in tr.calls(branch="cond"):
                seen.append(call.step)
                call.block(0).output = call.block(0).output * 2
        paths.append(tr.run.path)
        steps.append(seen)
        assert tr.run.complete and tr.run["energy"].shape[0] == 2
    assert paths[0] == paths[1] and steps == [[0, 1], [0, 1]]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [paths[0].name]


def traced_with(lens, sample, store, factor, fail=None):
    os.environ["FAIL_AT"] = str(fail)  # no value that the body reads: the runs have one name
    with lens.trace(sample, steps=3, store=store) as tr:
        tr.record(dl.energy)
        seen = [].save()
        for call in tr.calls(branch="cond"):
            seen.append(call.step)
            call.block(0).output = call.block(0).output * factor
            if str(call.step) == os.environ["FAIL_AT"]:
                raise RuntimeError("interrupted")
    return tr.run, seen


def test_an_interrupted_trace_starts_from_step_0(lens, sample, tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        traced_with(lens, sample, tmp_path, 2.0, fail=2)
    run, seen = traced_with(lens, sample, tmp_path, 2.0)
    expected, _ = traced_with(lens, sample, None, 2.0)
    assert seen == [0, 1, 2] and run.complete
    assert np.array_equal(run["energy"].values, expected["energy"].values)


def test_an_interrupted_trace_leaves_the_complete_run(lens, sample, tmp_path):
    run, _ = traced_with(lens, sample, tmp_path, 2.0)
    before = run["energy"].values
    with pytest.raises(RuntimeError, match="interrupted"):
        traced_with(lens, sample, tmp_path, 2.0, fail=1)
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    after = type(run)(folder)
    assert after.complete and np.array_equal(after["energy"].values, before)


WITH_TESTS = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
"""What a script of its own needs to import the tiny pipelines."""

KILLED = """
import os, pathlib, sys
import dit_lens as dl
from conftest import make_pipe
from PIL import Image
sample = dl.Sample(prompt="a", image=Image.new("RGB", (32, 32)), num_frames=5)
lens = dl.Lens(make_pipe())
with lens.trace(sample, steps=2, store=sys.argv[1]) as tr:
    tr.record(dl.energy)
    for call in tr.calls(branch="cond"):
        call.block(0).output.sum()
        if str(call.step) == os.environ["FAIL_AT"]:  # no value that the body reads: the runs have one name
            os.kill(os.getpid(), 9)
names = sorted(p.name for p in pathlib.Path(sys.argv[1]).iterdir() if p.is_dir())
print(tr.run.complete, len(names), flush=True)
"""


def test_a_killed_trace_leaves_the_complete_run_and_is_swept(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    printed = []
    for step in ("never", "1", "never"):
        environment = {**WITH_TESTS, "FAIL_AT": step}
        done = forked.run(script, tmp_path / "runs", folder=tmp_path, env=environment)
        assert (done.returncode == -signal.SIGKILL) == (step == "1"), done.stderr
        printed.append(done.stdout.strip())
        if step == "1":
            runs = [
                dl.Run(p) for p in (tmp_path / "runs").iterdir() if p.is_dir() and ".partial" not in p.name
            ]
            assert [run.complete for run in runs] == [True]
    assert printed == ["True 1", "", "True 1"]


# ---- how it is written


def cell(text, name, **names):
    """Run text as a notebook does: compiled under a name whose source stands in linecache."""
    text = textwrap.dedent(text)
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    scope = {"dl": dl, **names}
    exec(compile(text, name, "exec"), scope)
    return scope


CELL = """
with lens.trace(sample, steps=1) as tr:
    values = [].save()
    for call in tr.calls(branch="cond"):
        values.append(call.block(0).output.mul({}).clone())
"""


def test_a_notebook_cell_twice_and_another_cell_of_the_same_name(lens, sample):
    first = cell(CELL.format(1), "<ipython-input-1>", lens=lens, sample=sample)["values"]
    again = cell(CELL.format(1), "<ipython-input-1>", lens=lens, sample=sample)["values"]
    other = cell(CELL.format(3), "<ipython-input-1>", lens=lens, sample=sample)["values"]
    assert torch.equal(first[0], again[0]) and torch.equal(other[0], first[0] * 3)


def test_a_source_that_is_not_what_runs_is_refused(lens, sample):
    text, name = textwrap.dedent(CELL.format(7)), "<ipython-input-2>"
    changed = text.replace("7", "8")
    linecache.cache[name] = (len(changed), None, changed.splitlines(True), name)
    with pytest.raises(dl.PlanError, match="is not what runs"):
        exec(compile(text, name, "exec"), {"dl": dl, "lens": lens, "sample": sample})


LIVE = """
def one(lens, sample):
    with lens.trace(sample, steps=1, cfg_scale=1.0) as tr:
        values = [].save()
        for call in tr.calls():
            assert call.step == 0
            values.append(call.block(0).output * 2.0 + len([v for v in (1, 2) if v > 1]))
    return values


def two(lens, sample):
    with lens.trace(sample, steps=1, cfg_scale=1.0) as tr:
        values = [].save()
        for call in tr.calls():
            assert call.step == 0
            values.append(call.block(0).output * 2.0 - len([v for v in (1, 2) if v > 1]))
    return values
"""


@pytest.mark.parametrize(
    "changed",
    [
        LIVE.replace("output * 2.0", "output - 2.0"),
        LIVE.replace("output * 2.0", "output * 2"),
        LIVE.replace("v > 1", "v < 1"),
        LIVE.replace("values.append(", "print("),
        LIVE.replace("2.0 +", "2.0 @")
        .replace("2.0 -", "2.0 +")
        .replace("2.0 @", "2.0 -"),  # in each other's place
        LIVE.replace("return values", "return ["),
    ],
)
def test_a_file_that_changes_after_it_was_imported_is_refused(lens, sample, tmp_path, changed):
    file = tmp_path / "live.py"
    file.write_text(LIVE)
    scope = {}
    exec(compile(LIVE, str(file), "exec"), scope)
    first = scope["one"](lens, sample)
    file.write_text(changed)
    os.utime(file, (1, 1))
    with pytest.raises(dl.PlanError, match="is not what runs"):
        scope["one"](lens, sample)
    file.write_text(LIVE + "\n# What stands elsewhere may change.\n")
    assert torch.equal(scope["one"](lens, sample)[0], first[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("with lens.trace(sample, steps=1) as tr: x = 1\n", "starts on a line of its own"),
        (
            "with lens.trace(sample, steps=1) as tr:\n    try:\n        x = 1\n    finally:\n        pass\n",
            "try",
        ),
        ("def f():\n    with lens.trace(sample, steps=1) as tr:\n        return 1\nf()\n", "leave return"),
        ("for _ in range(1):\n    with lens.trace(sample, steps=1) as tr:\n        break\n", "leave return"),
        ("with lens.trace(sample, steps=1) as tr:\n    global x\n    x = 1\n", "`global` in it"),
        ("with lens.trace(sample, steps=1) as tr, open(os.devnull) as f:\n    x = f.read()\n", "stands last"),
        ("tr = lens.trace(sample, steps=1)\ntr.__enter__()\n", "no source of a `with` block"),
    ],
)
def test_a_body_that_cannot_run_beside_the_model_is_refused(lens, pipe, sample, left_behind, text, words):
    with pytest.raises(dl.PlanError, match=words):
        cell(text, f"<ipython-input-{words}>", lens=lens, sample=sample, os=os)
    assert left_behind(pipe) == []
    assert sys.gettrace() is None or "pdb" not in str(sys.gettrace())


def test_the_header_may_hold_several_lines_and_other_contexts(lens, sample):
    with (
        torch.no_grad(),
        lens.trace(
            sample,
            steps=1,
        ) as tr,
    ):
        """A text that stands first."""
        x: int = 3
        for call in tr.calls():
            assert call.block(0).output.shape[-1] == 2**6, f"{x} is not it"
    assert tr.run.complete


def test_traces_without_a_store_leave_no_name_in_the_module(lens, sample):
    with lens.trace(sample, steps=1) as tr:
        unsaved = 1
        for call in tr.calls():
            call.block(0).output.sum()
    with pytest.raises(NameError):
        print(unsaved)


def counted(lens, sample, save):
    total = count = 0
    kept, unchanged = [], None
    with lens.trace(sample, steps=2, cfg_scale=1.0) as tr:
        for call in tr.calls():
            h = call.block(0).output
            total = total + float(h.norm())
            count += 1
            kept.append(count)
            unchanged = unchanged
        if save:
            total.save()
            count.save()
    return total, count, kept


def test_a_variable_that_a_body_sets_is_saved_or_a_warning_names_it(lens, sample):
    with pytest.warns(UserWarning, match=r"old values .*: count, total. Call count.save\(\)") as seen:
        assert counted(lens, sample, save=False) == (0, 0, [1, 2])
    assert seen[0].filename == __file__
    total, count, kept = counted(lens, sample, save=True)
    assert total > 0 and count == 2 and kept == [1, 2]
    body = CELL.format(1).replace("values =", "h = 2\n    values =")
    with pytest.warns(UserWarning, match=r"old values .*: h\. Call"):
        cell(body, "<ipython-input-h>", lens=lens, sample=sample, h=1)


def test_calls_are_selected_by_the_words_of_at(lens, sample):
    for chosen, count in (
        ({"branch": "all"}, 4),
        ({"expert": "all"}, 4),
        ({"branch": ["cond"]}, 2),
        ({"expert": ("dit",)}, 4),
    ):
        with lens.trace(sample, steps=2, cfg_scale=2.0) as tr:
            seen = [].save()
            for call in tr.calls(**chosen):
                seen.append(call.step)
        assert len(seen) == count
    with pytest.raises(dl.PlanError, match="give one, or 'all'"):
        with lens.trace(sample, steps=2, cfg_scale=2.0) as tr:
            for call in tr.calls(branch=["cond", "uncond"]):
                call.block(0).output.save()


def test_body_and_plan_do_not_meet_at_one_place(lens, sample):
    with pytest.raises(dl.PlanError, match="is declared at this place"):
        with lens.trace(sample, steps=1, cfg_scale=1.0, edit=[(dl.zero(), dl.at(layer=0))]) as tr:
            for call in tr.calls():
                call.block(0).output.save()
    record = [(dl.hidden, dl.at(site="block_in", layer=1))]
    with pytest.raises(dl.PlanError, match="is declared at this place"):
        with lens.trace(sample, steps=1, cfg_scale=1.0, record=record) as tr:
            for call in tr.calls():
                call.block(1).input = call.block(1).input * 0
    with lens.trace(sample, steps=2, cfg_scale=1.0, edit=[(dl.zero(), dl.at(layer=0, step=0))]) as tr:
        for call in tr.calls(step=1):
            call.block(0).output = call.block(0).output * 0


def test_what_a_body_may_write_into_is_not_recorded_before(lens, sample):
    record = [(dl.hidden, dl.at(site="block_in", layer=1))]
    with pytest.raises(dl.PlanError, match="is declared at this place"):
        with lens.trace(sample, steps=1, cfg_scale=1.0, record=record) as tr:
            for call in tr.calls():
                call.block(1).input[:] = 0


@pytest.mark.parametrize("inside", [True, False], ids=["in the loop", "around it"])
def test_gradients_that_the_body_sets_on_are_on_wherever_it_does(lens, sample, inside):
    found = []
    with lens.trace(sample, steps=2, cfg_scale=1.0) as trace:
        trace.record(dl.x0)
        with nullcontext() if inside else torch.enable_grad():
            for call in trace.calls():
                with torch.enable_grad() if inside else nullcontext():
                    h = call.block(0).output.detach().clone().requires_grad_()
                    (h**2).sum().backward()
                    found.append(float((h.grad - 2 * h.detach()).abs().max()))
    assert found == [0.0, 0.0]
    plain = lens.run(sample, steps=2, cfg_scale=1.0, record=[dl.x0])
    np.testing.assert_array_equal(trace.run["x0"], plain["x0"])
