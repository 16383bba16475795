"""Traces: a write into what the body is handed is the same as setting it, or an error; it reaches nothing else."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import dit_lens as dl
from dit_lens.engine.handover import Memory


class Toy(nn.Module):
    """A model whose first block is given a view of the latents, and whose result is a view of the last block's output."""

    def __init__(self, branches=True, expands=False):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.branches, self.expands = branches, expands

    def forward(self, x, t, b):
        h = x.flatten(2).mT
        if self.expands:
            h = h.mean(1, keepdim=True).expand(-1, h.shape[1], -1)
        for layer in self.layers:
            h = layer(h)
        out = h.mT.reshape(x.shape)
        return out + b if self.branches else out


def toy_lens(**options):
    torch.manual_seed(0)
    return dl.blocks(
        Toy(**options).requires_grad_(False),
        "layers",
        latent=lambda s: (4, s.num_frames, *s.size),
        grid=lambda latent: latent[1:],
        condition=lambda s, b: {"b": torch.full((1, 1, 1, 1, 1), float(b == "cond"))},
    )


TOY = dl.Sample(prompt="a", size=(3, 3), num_frames=2)
KEYWORDS = {
    "steps": 2,
    "cfg_scale": 3.0,
    "record": [dl.x0, dl.latents, dl.velocity, (dl.hidden, dl.at(layer=[0, 1]))],
}


def values(run):
    return [run[name].values for name in ("x0", "latents", "velocity", "hidden")]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(values(one), values(other), strict=True))


def with_input(how, toy):
    with toy.trace(TOY, **KEYWORDS) as tr:
        for call in tr.calls(branch="cond"):
            block = call.block(0)
            if how == "set":
                block.input = torch.zeros_like(block.input)
            elif how == "in place":
                block.input[:] = 0
            elif how == "in place, by a view":
                block.input.mT[0].zero_()
            elif how == "in place, without its history":
                block.input.detach().zero_()
            elif how == "in place, half by half":
                block.input[:, :9] = 0
                block.input[:, 9:] = 0
            elif how == "set, then in place":
                new = torch.ones_like(block.input)
                block.input = new
                new.zero_()
            elif how == "in place of a model's own":
                block.input = call.block(0).input.clone()
                block.input.mul_(0)
    return tr.run


HOWS = (
    "set",
    "in place",
    "in place, by a view",
    "in place, without its history",
    "in place, half by half",
    "set, then in place",
    "in place of a model's own",
)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("expands", [False, True])
def test_a_write_to_an_input_that_is_a_view_of_the_latents_is_the_same_as_setting_it(how, expands):
    toy = toy_lens(expands=expands)
    edit = [(dl.zero(), dl.at(site="block_in", layer=0, branch="cond"))]
    expected = toy.run(TOY, edit=edit, **KEYWORDS)
    assert same(with_input(how, toy), expected)
    clean = toy.run(TOY, **KEYWORDS)
    assert not same(expected, clean)
    first = {"step": 0, "branch": "uncond"}
    assert np.array_equal(expected["hidden"].sel(first).values, clean["hidden"].sel(first).values)


def test_that_is_what_plain_hooks_make_of_it():
    toy = toy_lens()
    run = with_input("in place", toy)
    (model,), sigma = toy.specimen.dits.values(), run["latents"].sigma.values
    latents = run["latents"].transpose("step", "latent_channel", "frame", "latent_y", "latent_x").values
    x, after = (torch.tensor(latents[step])[None] for step in (0, 1))
    time = torch.full((1,), 1000.0 * float(sigma[0]))
    hook = model.layers[0].register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    cond = model(x, time, torch.ones(1, 1, 1, 1, 1))
    hook.remove()
    uncond = model(x, time, torch.zeros(1, 1, 1, 1, 1))
    velocity = uncond + 3.0 * (cond - uncond)
    assert torch.allclose(x + float(sigma[1] - sigma[0]) * velocity, after, atol=1e-5)


@pytest.mark.parametrize("branches", [True, False])
def test_what_the_body_keeps_of_a_call_that_is_over_is_its_own(branches):
    toy = toy_lens(
        branches=branches
    )  # without branches the prediction of the first call is a view of the last block's output
    clean = toy.run(TOY, **KEYWORDS)
    with toy.trace(TOY, **KEYWORDS) as tr:
        kept = [].save()
        for call in tr.calls():
            for earlier in kept:
                earlier.zero_()
            kept[:] = [call.block(0).input]
            call.block(1).output.sum()
            kept.append(call.block(2).output)
    assert same(tr.run, clean)
    with toy.trace(TOY, **KEYWORDS) as tr:
        for call in tr.calls(step=0):
            if call.branch == "cond":
                mine = call.block(2).output * 2
                call.block(2).output = mine
                written = call.block(2).output
                written.mul_(2)
            else:
                call.block(1).output.sum()
                mine.zero_()
                written.zero_()
    four = [((lambda h, at: h * 4), dl.at(layer=2, step=0, branch="cond"))]
    assert same(tr.run, toy.run(TOY, edit=four, **KEYWORDS))


def test_queries_keys_and_values_are_written_to_apart(lens, pipe, sample):
    keywords = {"steps": 2, "cfg_scale": 1.0, "record": [dl.x0, dl.hidden]}
    found = []
    for how in ("in place", "set"):
        with lens.trace(sample, **keywords) as tr:
            for call in tr.calls():
                site = call.block(1).site("q")
                if how == "set":
                    site.input = site.input * 0.5
                else:
                    site.input.mul_(0.5)
        found.append(tr.run)
    hook = pipe.dit.blocks[1].self_attn.q.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    try:
        found.append(lens.run(sample, **keywords))
    finally:
        hook.remove()
    found.append(lens.run(sample, **keywords))
    x0 = [run["x0"].values for run in found]
    assert np.array_equal(x0[0], x0[2]) and np.array_equal(x0[1], x0[2])
    assert not np.array_equal(x0[0], x0[3])


@pytest.mark.parametrize("stream", ["whole", "cond"])
def test_a_body_that_only_reads_leaves_every_bit(lens, sample, stream):
    keywords = {"steps": 2, "cfg_merge": True, "record": [dl.x0, dl.latents]}
    clean = lens.run(sample, **keywords)
    with lens.trace(sample, **keywords) as tr:
        seen = [].save()
        for call in tr.calls(branch="all" if stream == "whole" else "cond"):
            for layer in range(3):
                block = call.block(layer)
                site = block.site("ffn")
                for holder, name in ((block, "input"), (site, "input"), (site, "output"), (block, "output")):
                    h = getattr(holder, name)
                    assert getattr(holder, name) is h
                    seen.append(h.sum())
    assert len(seen) == 24
    assert np.array_equal(tr.run["x0"].values, clean["x0"].values)
    assert np.array_equal(tr.run["latents"].values, clean["latents"].values)


def test_a_branch_of_a_merged_batch_is_written_to_apart(lens, sample):
    keywords = {"steps": 2, "cfg_merge": True, "record": [dl.x0, dl.hidden]}
    expected = lens.run(sample, edit=[((lambda h, at: h * 0.5), dl.at(layer=1, branch="uncond"))], **keywords)
    for how in range(3):
        with lens.trace(sample, **keywords) as tr:
            for call in tr.calls(branch="uncond"):
                block = call.block(1)
                if how == 0:
                    block.output.mul_(0.5)
                elif how == 1:
                    block.output = new = block.output.clone()
                    new.mul_(0.5)
                else:
                    block.output = block.output.mul_(0.5)
        assert np.array_equal(tr.run["hidden"].values, expected["hidden"].values), how
        assert np.array_equal(tr.run["x0"].values, expected["x0"].values), how


@pytest.mark.parametrize("how", ["whole", "view", "detached", "set"])
def test_a_late_write_within_a_call_is_an_error_by_whatever_name(how):
    toy = toy_lens()
    with pytest.raises(dl.CaptureError, match=r"block\(0\)\.output at step=0.* after the model had gone on"):
        with toy.trace(TOY, **KEYWORDS) as tr:
            for call in tr.calls():
                if how == "set":
                    h = torch.zeros_like(call.block(0).output)
                    call.block(0).output = h
                else:
                    h = call.block(0).output
                    h = {"whole": h, "view": h[0], "detached": h.detach()}[how]
                call.block(1).output.sum()
                h.zero_()
                call.block(2).output.sum()


def test_a_write_in_inference_mode_acts_or_is_an_error():
    toy = toy_lens()
    expected = with_input("set", toy)
    with torch.inference_mode():
        assert same(with_input("in place", toy), expected)
        assert same(with_input("in place, by a view", toy), expected)
        with pytest.raises(dl.CaptureError, match="after the model had gone on"):
            with toy.trace(TOY, **KEYWORDS) as tr:
                for call in tr.calls():
                    h = call.block(0).output
                    call.block(1).output.sum()
                    h.zero_()


@pytest.mark.parametrize("how", ["numpy", "data"])
def test_a_write_that_torch_does_not_count_is_an_error(how):
    toy = toy_lens()
    with pytest.raises(dl.CaptureError, match=r"block\(0\)\.output.* that torch does not count"):
        with toy.trace(TOY, **KEYWORDS) as tr:
            for call in tr.calls():
                h = call.block(0).output
                if how == "numpy":
                    h.numpy()[:] = 0
                else:
                    h.data.zero_()


def test_copies_end_with_their_call_where_the_body_lets_them_go():
    toy = toy_lens()
    with toy.trace(TOY, **KEYWORDS) as tr:
        left = [].save()
        for call in tr.calls():
            if left:
                assert all(place.expired() for place in left[-1])
            places = []
            for layer in range(3):
                call.block(layer).output.mul_(2)
                places.append(StorageWeakRef(call.block(layer).output.untyped_storage()))
            left.append(places)
    assert len(left) == 4


def test_memory_is_watched_and_not_held():
    tensor = torch.ones(3, 4)
    memory = Memory(tensor, "it")
    writes, part = memory.writes, tensor[1:].detach()
    del tensor
    part.zero_()
    assert memory.writes == writes + 1 and not memory.is_gone
    del part
    assert memory.is_gone


# ---- nnsight's own envoys give the model's own tensors


def test_a_late_write_to_what_an_envoy_gave_around_the_calls_is_an_error(lens, pipe, sample, left_behind):
    for how in ("whole", "detached"):
        with pytest.raises(
            dl.CaptureError, match=r"text_encoder\.output was changed in place after the model had gone on"
        ):
            with lens.trace(sample, steps=2) as tr:
                words = lens.nnsight.text_encoder.output
                words = words if how == "whole" else words.detach()
                for call in tr.calls(step=1):
                    call.block(0).output.sum()
                    words.mul_(0.5)
    assert left_behind(pipe) == []


def test_a_write_there_where_the_model_waits_acts(lens, pipe, sample):
    keywords = {"steps": 2, "record": [dl.x0]}
    with lens.trace(sample, **keywords) as tr:
        lens.nnsight.text_encoder.output.mul_(0.5)
        for call in tr.calls():
            call.block(0).output.sum()
    with lens.trace(sample, **keywords) as other:
        lens.nnsight.text_encoder.output = lens.nnsight.text_encoder.output * 0.5
    assert np.array_equal(tr.run["x0"].values, other.run["x0"].values)


def test_a_late_write_to_what_an_envoy_gave_in_another_call_is_an_error():
    toy = toy_lens()
    with pytest.raises(dl.CaptureError, match=r"layers\.0\.input at step=0, branch=cond.* had gone on"):
        with toy.trace(TOY, **KEYWORDS) as tr:
            kept = []
            for call in tr.calls():
                if not kept:
                    kept.append(call.block(0).envoy.input)
                else:
                    call.block(1).output.sum()
                    kept[0].zero_()


def test_an_envoy_sees_what_the_body_has_written(lens, sample):
    with lens.trace(sample, steps=1, cfg_scale=1.0) as tr:
        seen = [].save()
        for call in tr.calls():
            call.block(1).output.fill_(7)
            seen.append(float(call.block(1).envoy.output.min()))
            call.block(2).input = torch.full_like(call.block(2).input, 3)
            (h, *_), _ = call.block(2).envoy.inputs
            seen.append(float(h.max()))
    assert seen == [7, 3]


# ---- modules that the body calls


def test_a_module_that_the_body_calls_runs_bare_and_is_no_visit(lens, pipe, sample):
    record = [(dl.hidden, dl.at(site="ffn"))]
    clean = lens.run(sample, steps=2, record=record)
    ffn = pipe.dit.blocks[1].ffn
    for when in ("before", "at its input", "at its output"):
        with lens.trace(sample, steps=2, record=record) as tr:
            pairs = [].save()
            for call in tr.calls():
                site = call.block(1).site("ffn")
                if when == "before":
                    again = ffn(call.block(0).output)
                    assert again.shape[-1] == 64
                elif when == "at its input":
                    again = ffn(site.input)
                    pairs.append((again, site.output))
                else:
                    before = site.input
                    out = site.output
                    pairs.append((ffn(before), out))
                pairs.append((site.output, site.output))
                value = clean["hidden_ffn"].sel(step=call.step, branch=call.branch, layer=1).values
                assert np.array_equal(site.output[0].numpy(), value.reshape(-1, 64))
        assert len(pairs) >= 4 and all(torch.equal(one, other) for one, other in pairs)
        assert np.array_equal(tr.run["hidden_ffn"].values, clean["hidden_ffn"].values)


def test_what_is_placed_does_not_act_on_what_the_body_calls(lens, pipe, sample):
    edit = [(dl.zero(), dl.at(site="ffn", layer=1))]
    expected = lens.run(sample, steps=1, edit=edit, record=[dl.x0])
    with lens.trace(sample, steps=1, edit=edit, record=[dl.x0]) as tr:
        found = [].save()
        for call in tr.calls():
            h = call.block(0).output
            found.append((pipe.dit.blocks[1].ffn(h), h))
    for out, h in found:
        assert torch.equal(out, pipe.dit.blocks[1].ffn(h)) and out.any()
    assert np.array_equal(tr.run["x0"].values, expected["x0"].values)


def test_a_whole_block_can_be_called_where_the_model_waits_at_it(lens, pipe, sample):
    with lens.trace(sample, steps=1) as tr:
        pairs = [].save()
        for call in tr.calls():
            args, keywords = call.block(1).envoy.inputs
            pairs.append((pipe.dit.blocks[1](*args, **keywords), call.block(1).output))
    assert len(pairs) == 2 and all(torch.equal(one, other) for one, other in pairs)


# ---- a trace in a trace, a loop again


def test_a_trace_in_the_body_of_another_says_what_it_is(lens, pipe, tiny_pipe, sample, left_behind):
    other = dl.Lens(tiny_pipe())
    for inner, words in ((lens, "is being traced already"), (other, "put it into a function")):
        with pytest.raises(dl.PlanError, match=words):
            with lens.trace(sample, steps=1) as tr:
                for call in tr.calls():
                    with inner.trace(sample, steps=1):
                        call.block(0).output.sum()
    assert left_behind(pipe) == []


def test_a_capture_is_entered_once():
    toy = toy_lens()
    capture = toy.capture([1.0, 0.5], record=[dl.x0])
    with pytest.raises(ZeroDivisionError), capture as loop:
        with loop.step(torch.zeros(1, 4, 2, 3, 3)):
            raise ZeroDivisionError
    with pytest.raises(dl.CaptureError, match=re.escape("call lens.capture again")), capture:
        pass


def test_a_place_that_is_written_to_by_an_envoy_and_by_a_copy_is_an_error():
    lens = toy_lens()
    with lens.trace(TOY, **KEYWORDS) as tr:
        for call in tr.calls(step=0):
            call.block(0).envoy.output.mul_(2)
            call.block(0).output.add_(1)  # the copy has what was written before
    first = tr.run
    with lens.trace(TOY, **KEYWORDS) as tr:
        for call in tr.calls(step=0):
            call.block(0).output = call.block(0).output * 2 + 1
    assert same(first, tr.run)
    with pytest.raises(dl.CaptureError, match="written to through an envoy as well"):
        with lens.trace(TOY, steps=2) as tr:
            for call in tr.calls(step=0):
                own, h = call.block(0).envoy.output, call.block(0).output
                own.mul_(2)
                h.add_(1)
