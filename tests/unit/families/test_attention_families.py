"""Attention in every family, on the real classes: the map that is computed anew, times the values, is what the heads give."""

import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.attention_records import weights

# The test folder is no package: its helpers are loaded by their paths.


def helper(name):
    spec = importlib.util.spec_from_file_location(f"helper_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dl.keeps("token", "head", "channel_of_head")
def joined(a):
    """Return the heads' outputs of one attention: its map times its values."""
    every = torch.arange(a.queries.count) + a.queries.before
    return torch.einsum("hqk,khc->qhc", weights(a, every), a.v.float())


joined.reads_attention = True


def named(function, name):
    copy = types.FunctionType(function.__code__, function.__globals__, name)
    copy.__dict__.update(function.__dict__)
    return copy


def placed(lens, layer=0):
    """Return records of all attentions, and of all heads, of one layer."""
    records = []
    for stream, names in lens.attentions.items():
        for name in names:
            own = named(joined, f"made_by_{name}_of_{stream}")
            own = dl.keeps(f"token_{name}_{stream}", f"heads_{name}_{stream}", f"width_{name}_{stream}")(own)
            records.append((own, dl.at(site=name, stream=stream, layer=layer, step=1)))
    for stream in lens.attentions:
        heads = [name for name in lens.streams[stream] if name.endswith("heads")]
        records += [(dl.hidden, dl.at(site=name, stream=stream, layer=layer, step=1)) for name in heads]
    return records


def values(run, name):
    return run[name].isel(step=0, layer=0)


def heads(run, site, stream):
    """Return outputs of the heads as [branch, token, head, channel]."""
    array = values(run, f"hidden_{site}" + ("" if stream == "video" else f"_{stream}")).values
    return np.moveaxis(array.reshape(*array.shape[:2], -1, array.shape[-1]), 1, 2)


def by_attention(run, site, stream):
    of = "" if stream == "video" else f"_{stream}"
    return values(run, f"made_by_{site}_of_{stream}_{site}{of}").values


def assert_exact(lens, run, gates=None):
    """Compare every attention with its heads; `gates` [branch, token, head] of a model that gates them, by (site, stream)."""
    count = 0
    for stream, names in lens.attentions.items():
        for site in ("attention", "cross_attention"):
            if site not in names:
                continue
            expected = heads(run, site.replace("attention", "heads"), stream)
            got = by_attention(run, site, stream)
            if site == "cross_attention" and "image_attention" in names:
                got = got + by_attention(run, "image_attention", stream)
            got = got * (1 if gates is None else gates[site, stream][..., None])
            assert np.isfinite(got).all() and np.abs(expected).max() > 1e-4
            assert np.allclose(got, expected, atol=2e-5), (site, stream)
            count += 1
    return count


def assert_joint_is_exact(case, lens, cfg):
    """In a joint attention a stream looks at itself and at the other; the shares of both, and their values, make its heads."""
    record = [*placed(lens), (dl.attention(over="frames", heads="all"), dl.at(layer=0))]
    run = case.run(lens, steps=2, record=record, cfg_scale=cfg)
    for stream, other in (("video", "cross"), ("text", "video")):
        expected = heads(run, "heads", stream)
        for site in (
            "attention",
            f"{other}_attention",
        ):  # the map over all keys, whatever stream it is asked of
            got = by_attention(run, site, stream)
            assert np.abs(expected).max() > 1e-4 and np.allclose(got, expected, atol=2e-5), (stream, site)
    text = [(dl.attention(to="text"), dl.at(layer=0))]
    to_text = case.run(lens, steps=2, record=text, cfg_scale=cfg)["attention_to_text"].isel(layer=0)
    over = run["attention_over_frames"].isel(layer=0).sum("key_frame").mean("head")
    # What is not given to the video is given to the text.
    assert np.allclose(over + to_text.sum("text_token").mean(("y", "x")), 1, atol=1e-5)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_of_diffusers(case, cfg):
    lens = dl.Lens(case.pipe)
    if not lens.attentions:
        pytest.skip("blocks of several kinds, and attention row by row, have no sites inside")
    if "block" in lens.streams.get("text", ()):
        assert_joint_is_exact(case, lens, cfg)
        return
    run = case.run(lens, steps=2, record=placed(lens), cfg_scale=cfg)
    assert assert_exact(lens, run) == sum(
        "heads" in name for sites in lens.streams.values() for name in sites
    )


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_of_ltx2(cfg):
    pipe = helper("ltx").make_pipe()
    lens = dl.Lens(pipe)
    sample = dl.Sample(prompt="a cat walks", negative_prompt="bad", size=(64, 96), num_frames=17)
    block, seen, hooks = pipe.dit.transformer_blocks[0], {}, []
    modules = {
        ("attention", "video"): block.attn1,
        ("cross_attention", "video"): block.attn2,
        ("attention", "audio"): block.audio_attn1,
        ("cross_attention", "audio"): block.audio_attn2,
        ("audio_attention", "video"): block.audio_to_video_attn,
        ("video_attention", "audio"): block.video_to_audio_attn,
    }
    for key, module in modules.items():  # LTX-2.3 gates its heads before their projection
        keep = seen.setdefault(key, {"gates": [], "heads": []})
        hooks.append(module.to_gate_logits.register_forward_hook(_keeper(keep["gates"])))
        hooks.append(module.to_out.register_forward_pre_hook(_keeper(keep["heads"])))
    run = lens.run(sample, steps=2, record=placed(lens), cfg_scale=cfg)
    for hook in hooks:
        hook.remove()
    branches = 2 if cfg > 1 else 1
    gates = {
        key: 2 * torch.sigmoid(torch.cat(kept["gates"][branches:])).numpy() for key, kept in seen.items()
    }
    assert assert_exact(lens, run, gates) == 4
    for site, stream in (("audio_attention", "video"), ("video_attention", "audio")):
        own = by_attention(run, site, stream) * gates[site, stream][..., None]
        heads_given = torch.cat(seen[site, stream]["heads"][branches:]).numpy()
        assert np.allclose(own.reshape(heads_given.shape), heads_given, atol=2e-5)


def test_of_diffusers_with_an_image_that_has_an_attention_of_its_own(made):
    """Wan 2.1 I2V: keys and values of the image are added to the cross-attention, and attended to apart."""
    conftest = helper("conftest")
    case = conftest.Case("wan-image")
    torch.manual_seed(0)
    case.pipe.transformer = conftest.wan_transformer(36, image_dim=4, added_kv_proj_dim=24).eval()
    for parameter in case.pipe.transformer.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.2)
    case.extra = {"max_sequence_length": 512}  # what the real model's attention takes for granted
    lens = dl.Lens(case.pipe)
    assert lens.attentions["video"] == ["attention", "cross_attention", "image_attention"]
    run = case.run(lens, steps=2, record=placed(lens), cfg_scale=2.0)
    assert assert_exact(lens, run) == 2
    record = [dl.attention(to="image"), (dl.energy, dl.at(site="image_k", stream="image"))]
    run = case.run(lens, steps=1, record=record)
    assert np.allclose(run["attention_to_image"].sum("image_token"), 1, atol=1e-5)
    assert run["energy_image_k_image"].sizes["x_image"] == run["attention_to_image"].sizes["image_token"]


def test_attention_of_two_streams_to_each_others_frames_stands_in_one_run():
    lens = dl.Lens(helper("ltx").make_pipe())
    sample = dl.Sample(prompt="a cat walks", negative_prompt="bad", size=(64, 96), num_frames=17)
    record = [dl.attention(over="frames"), (dl.attention(over="frames"), dl.at(site="audio_attention"))]
    run = lens.run(sample, steps=1, record=record, cfg_scale=1.0)
    own, other = run["attention_over_frames"], run["attention_over_frames_audio_attention"]
    assert own.dims[-2:] == ("frame", "key_frame") and other.dims[-2:] == ("frame", "key_frame_audio")
    for array in (own, other):
        assert np.allclose(array.sum(array.dims[-1]), 1, atol=1e-5)
    with pytest.raises(dl.PlanError, match=r"audio_attention of video looks at audio.*attention to itself"):
        lens.run(sample, steps=1, record=[(dl.attention(to="self"), dl.at(site="audio_attention"))])


def _keeper(kept):
    return lambda module, args, output=None: kept.append((args[0] if output is None else output).clone())


@pytest.mark.parametrize(
    "name", ["wan2.1-i2v", "wan2.1-flf2v", "wan2.1-fun-control", "wan2.2-t2v", "wan2.2-ti2v"]
)
def test_of_wan(name):
    variants = helper("test_wan_variants")
    lens = dl.Lens(variants.make(name))
    arguments = variants.arguments_of(name)
    run = lens.run(variants.sample_of(name), record=placed(lens), **arguments)
    assert assert_exact(lens, run) == 2
    has_image = name in ("wan2.1-i2v", "wan2.1-flf2v", "wan2.1-fun-control")
    assert ("image" in lens.streams) == has_image == ("image_attention" in lens.attentions["video"])
    if has_image:
        record = [
            (dl.energy, dl.at(site="image_k", stream="image")),
            dl.attention(to="image"),
            dl.attention(to="text"),
        ]
        run = lens.run(variants.sample_of(name), record=record, **arguments)
        assert run["energy_image_k_image"].shape[-1] == 257
        assert np.allclose(run["attention_to_image"].sum("image_token"), 1, atol=1e-5)
        # What a second image adds stands among the keys, before the prompt, and is no token of it.
        total = run["attention_to_text"].sum("text_token")
        assert (total < 0.9).all() if name == "wan2.1-flf2v" else np.allclose(total, 1, atol=1e-5)


def test_a_kernel_of_wans_own_is_read_where_it_is_called(monkeypatch):
    """Where flash-attn is installed, Wan's attention does not go through torch's function."""
    from diffsynth.models import wan_video_dit as module

    def kernel(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v))
        ).transpose(1, 2)

    lens = dl.load("organism-v1")
    sample = dl.tasks.maze(seed=1_000_007)
    record = [*placed(lens), dl.attention(over="frames"), (dl.hidden, dl.at(site="attn_q", layer=1))]
    plain = lens.run(sample, steps=2, record=record).dataset.load()
    monkeypatch.setattr(module, "FLASH_ATTN_2_AVAILABLE", True)
    monkeypatch.setattr(module, "flash_attn", types.SimpleNamespace(flash_attn_func=kernel), raising=False)
    calls = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _counting(calls))
    run = lens.run(sample, steps=2, record=record).dataset.load()
    assert calls
    for name in plain.data_vars:
        assert np.allclose(plain[name].values, run[name].values, atol=1e-5, equal_nan=True), name


def _counting(calls):
    original = torch.nn.functional.scaled_dot_product_attention

    def function(*args, **kwargs):
        calls.append(args[0].shape)
        return original(*args, **kwargs)

    return function


def test_an_attention_by_another_kernel_is_refused_by_name(made, monkeypatch):
    """A backend of which torch's function hears nothing: nothing is captured, and the error says why."""
    case = made("wan")
    monkeypatch.setattr(
        "diffusers.models.transformers.transformer_wan.dispatch_attention_fn",
        lambda q, k, v, **_: q,
    )
    with pytest.raises(dl.CaptureError, match="scaled_dot_product_attention: switch the model"):
        case.run(dl.Lens(case.pipe), steps=2, record=[(dl.attention(to="self"), dl.at())])
