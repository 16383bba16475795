"""Bodies of traces on other families: streams, merged batches, stages; each value is its own call's, or an error."""

import numpy as np
import pytest

import dit_lens as dl


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
    stream = list(lens.streams)[-1]
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
