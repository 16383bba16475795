"""Bodies of traces on other families: streams, merged batches, stages; each value is its own call's, or an error."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families.site import Site


def test_a_branch_of_a_merged_batch_is_its_own_rows(made):
    case = made("ltx")
    lens = dl.Lens(case.pipe)
    plain = case.run(lens, steps=2, record=[dl.hidden], cfg_scale=3.0)
    with lens.trace(case.sample, steps=2, cfg_scale=3.0, **case.extra) as tr:
        tr.record(dl.hidden)
        values = [].save()
        for call in tr.calls(step=0, branch="cond"):
            h = call.block(0).output
            values.append(h.clone())
            call.block(0).output = h * 2
    expected = plain["hidden"].sel(step=0, branch="cond", layer=0).values
    (value,) = values
    assert value.shape[0] == 1
    assert np.array_equal(value[0].numpy().reshape(expected.shape), expected)
    after = tr.run["hidden"].sel(step=0, layer=0)
    assert np.array_equal(after.sel(branch="cond").values, expected * 2)
    assert np.array_equal(
        after.sel(branch="uncond").values, plain["hidden"].sel(step=0, branch="uncond", layer=0).values
    )


def test_another_stream_of_a_block_that_is_past_is_an_error(made):
    case = made("hunyuan")
    lens = dl.Lens(case.pipe)
    stream = [name for name, sites in lens.streams.items() if "block" in sites][-1]
    assert stream != "video"
    with pytest.raises(dl.CaptureError, match=rf"block\(0, stream='{stream}'\)\.output at step=0"):
        with lens.trace(case.sample, steps=2, **case.extra) as tr:
            for call in tr.calls():
                call.block(1).output.sum()
                call.block(0, stream).output.sum()


def test_the_transformer_itself_is_there_where_the_pipeline_calls_it(made):
    case = made("ltx")
    lens = dl.Lens(case.pipe)
    with lens.trace(case.sample, steps=2, cfg_scale=1.0, **case.extra) as tr:
        shapes = [].save()
        for call in tr.calls():
            call.block(0).output.sum()
            out = call.dit.output
            shapes.append(tuple((out[0] if isinstance(out, tuple) else out).shape))
    assert len(shapes) == 2 and shapes[0] == shapes[1]


def test_both_ends_of_a_sites_module_are_of_its_own_stream(made):
    case = made("sd3")
    lens, given = dl.Lens(case.pipe), []
    block = case.pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_pre_hook(lambda _, args, named: given.append(named), with_kwargs=True)
    with lens.trace(case.sample, steps=1, **case.extra) as tr:
        got = [].save()
        for call in tr.calls():
            for stream in ("text", "video"):
                got.append(call.block(0, stream).site("block").input.clone())
            for stream in ("text", "video"):
                got.append(call.block(0, stream).site("block_in").output.clone())
                got.append(call.block(0, stream).output.clone())
    hook.remove()
    assert torch.equal(got[0], given[0]["encoder_hidden_states"])
    assert torch.equal(got[1], given[0]["hidden_states"])
    assert torch.equal(got[2], got[3]) and torch.equal(got[4], got[5]) and got[2].shape != got[4].shape


def test_an_end_of_a_module_of_several_streams_that_no_site_says_is_refused(made):
    case = made("sd3")
    family = dl.Lens(case.pipe).family
    text = {**family.anatomy.sites["text"], "self_attn": Site("attn", item=(1,))}
    sites = {**family.anatomy.sites, "text": text}
    lens = dl.Lens(case.pipe, family=replace(family, anatomy=replace(family.anatomy, sites=sites)))
    with lens.trace(case.sample, steps=1, **case.extra) as tr:
        for call in tr.calls():
            with pytest.raises(dl.PlanError, match=r"self_attn.*input: this module carries several states"):
                call.block(0, "text").site("self_attn").input.sum()


@pytest.mark.parametrize("way", ["record", "edit"])
def test_a_plan_and_a_body_do_not_meet_at_a_place_by_another_name(made, way):
    case = made("sd3")
    lens = dl.Lens(case.pipe)
    placed = (dl.hidden if way == "record" else dl.zero(), dl.at(site="block_in", layer=1))
    with pytest.raises(dl.PlanError, match=r"block\(1\)\.site\('block'\)\.input.*is declared at this place"):
        with lens.trace(case.sample, steps=1, **{way: [placed]}, **case.extra) as tr:
            for call in tr.calls():
                call.block(1).site("block").input = call.block(1).site("block").input * 2
