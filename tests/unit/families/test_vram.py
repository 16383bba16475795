"""DiffSynth's VRAM management wraps and deep-copies modules: tracing sees through it.

On CPU with onload and computation dtype that differ, which takes the same path as with devices that differ: every
wrapped module is copied for each forward.
"""

import importlib

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families.diffsynth.wan import SITES

VALUES = [name for name in SITES["video"] if not name.endswith("attention")]
EVERYWHERE = [*VALUES, "latents", "velocity", "x0"]


@pytest.fixture(autouse=True)
def cache_of_cpu(monkeypatch):
    # DiffSynth empties the device's cache after it has moved models; torch.cpu has none.
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)


def managed(pipe, onload):
    from diffsynth.configs.vram_management_module_maps import VRAM_MANAGEMENT_MODULE_MAPS
    from diffsynth.core.vram.layers import enable_vram_management

    def found(path):
        module, name = path.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    names = VRAM_MANAGEMENT_MODULE_MAPS["diffsynth.models.wan_video_dit.WanModel"]
    states = {"offload": torch.float32, "onload": onload, "preparing": onload, "computation": torch.float32}
    config = {
        f"{k}_{part}": v for k, dtype in states.items() for part, v in (("dtype", dtype), ("device", "cpu"))
    }
    for name in ("dit", "dit2"):
        dit = getattr(pipe, name)
        setattr(
            pipe, name, enable_vram_management(dit, {found(a): found(b) for a, b in names.items()}, config)
        )
    pipe.vram_management_enabled = True
    return pipe


def keep(h, at):
    return h.clone()


@pytest.mark.parametrize("onload", [torch.float32, torch.bfloat16], ids=str)
def test_tracing_a_managed_pipeline_changes_nothing_and_sees_every_site(
    tiny_pipe, sample, run_bare, left_behind, onload
):
    pipe = managed(tiny_pipe(experts=2), onload)
    expected = run_bare(pipe, sample, steps=4, cfg_scale=2.0)
    record = [(dl.hidden, dl.at(site=site)) for site in VALUES]
    lens = dl.Lens(pipe)
    run = lens.run(
        sample, steps=4, cfg_scale=2.0, record=record, edit=[(keep, dl.at(site=s)) for s in EVERYWHERE]
    )
    assert np.array_equal(run.video, expected)
    assert set(map(str, run.dataset["expert"].values)) == {"high", "low"}
    for site in VALUES:
        values = run["hidden" if site == "block" else f"hidden_{site}"].values
        assert np.isfinite(values).all() and values.std() > 0
    assert run.complete and run.attrs["manifest"]["identity"]["vram_management"]
    assert left_behind(pipe) == []
    zeroed = lens.run(sample, steps=4, cfg_scale=2.0, edit=[(dl.zero(), dl.at(site="self_attn", layer=1))])
    assert not np.array_equal(zeroed.video, expected)


def test_a_managed_pipeline_holds_the_same_states_as_a_plain_one(tiny_pipe, sample):
    record = [(dl.hidden, dl.at(site=site)) for site in ("block", "q", "ffn")]
    plain = dl.Lens(tiny_pipe(experts=2)).run(sample, steps=3, record=record)
    wrapped = dl.Lens(managed(tiny_pipe(experts=2), torch.float32)).run(sample, steps=3, record=record)
    for name in ("hidden", "hidden_q", "hidden_ffn"):
        assert np.array_equal(plain[name].values, wrapped[name].values)


def test_batches_go_through_a_managed_pipeline(tiny_pipe, sample):
    pipe = managed(tiny_pipe(experts=2), torch.bfloat16)
    lens = dl.Lens(pipe)
    batch = lens.batch([(sample, 0), (sample, 1)], steps=4, cfg_scale=2.0)
    x = batch.noise
    for step in range(4):
        x = batch.step(step, x).latents
    one = lens.run(sample, 1, steps=4, cfg_scale=2.0, record=[dl.x0])
    last = torch.from_numpy(np.array(one["x0"].isel(step=-1).values)).permute(3, 0, 1, 2)
    assert torch.allclose(x[1], last, rtol=0, atol=2e-5)


@pytest.mark.parametrize("by_blocks", [False, True])
def test_gradients_through_a_managed_pipeline_are_those_through_a_plain_one(
    tiny_pipe, sample, left_behind, by_blocks
):
    gains = []
    for pipe in (tiny_pipe(experts=2), managed(tiny_pipe(experts=2), torch.float32)):
        batch = dl.Lens(pipe).batch([(sample, 0), (sample, 1)], steps=3, cfg_scale=2.0)
        sites = ["block", "ffn"]
        gains.append(batch.attribute(lambda x0: (x0**3).mean(), sites, until=-1, by_blocks=by_blocks))
        assert left_behind(pipe) == []
    for name in ("block", "ffn"):
        plain, wrapped = (gain[name].values for gain in gains)
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(wrapped, plain, rtol=1e-4, atol=1e-6 * np.abs(plain).max())
