"""Gradients go through every family's batch: the slope on the way to the clean state is what finite differences say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.families.latents import apart
from gradients import slope, weighted

pytestmark = pytest.mark.slow

spec = importlib.util.spec_from_file_location("tiny_ltx", Path(__file__).parent / "ltx.py")
tiny_ltx = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_ltx)


def compare(lens, samples, size, rel, extra=None, site="block", layer=-1):
    batch = lens.batch([(samples[0], 0), (samples[1], 1)], steps=3, cfg_scale=3.0, **(extra or {}))
    metric = weighted(apart(batch.noise)["video"].shape[1:])
    whole = dl.at(step=[1, 2], layer=[0, -1])
    found, expected = [], []
    for until in (None, -1):
        gain = batch.attribute(metric, [site], place=whole, until=until, by_blocks=until is not None)
        for step in (1, 2):
            for branch in batch.layout.branches[-1:]:
                at = site, step, branch, range(lens.layers)[layer]
                last = step if until is None else batch.steps - 1
                expected.append(slope(batch, metric, at, last, size))
                chosen = gain[site].sel(step=step, branch=branch, layer=at[3])
                found.append(float(chosen.sum()))
    np.testing.assert_allclose(found, expected, rtol=rel, atol=rel * np.abs(expected).max())
    assert np.abs(expected).max() > 0
    return gain


@pytest.mark.parametrize("site", ["block", "k"])
def test_two_experts_of_wan(tiny_pipe, sample, site):
    lens = dl.Lens(tiny_pipe(experts=2, dtype=torch.float64))
    gain = compare(lens, [sample, sample.with_(prompt="a cat")], 1e-3, 1e-4, site=site)
    assert gain.expert.values.tolist() == ["high", "low"]


@pytest.mark.parametrize(
    "name",
    [
        "wan-image",
        "ltx-image",
        "hunyuan",
        "flux",
        "dit",
    ],  # the others (ltx, cogvideox, mochi, sd3, pixart) go the same ways
)
def test_diffusers(made, name):
    case = made(name)
    samples = [case.sample, case.sample.with_(prompt="another one")]
    compare(dl.Lens(case.pipe), samples, 1e-3, 2e-2, case.extra)


def test_sound_that_goes_along_carries_its_part_of_the_gradient():
    lens = dl.Lens(tiny_ltx.make_pipe())
    words = [dl.Sample(prompt=prompt, size=(64, 64), num_frames=9) for prompt in ("a", "b")]
    gain = compare(
        lens, words, 1e-2, 1e-3, layer=0
    )  # a later one does not reach the sound before the step is over
    batch = lens.batch([(words[0], 0), (words[1], 1)], steps=3, cfg_scale=3.0)
    metric = weighted(apart(batch.noise)["video"].shape[1:])
    place = dl.at(stream="audio", step=1, layer=0, branch="cond")
    sound = batch.attribute(metric, place=place, integrate=4)
    assert sound.block.dims == ("step", "branch", "layer", "frame_audio", "y_audio", "x_audio")
    assert float(sound.block.sum()) == pytest.approx(sound.block_patched.item(), rel=5e-2)
    assert abs(sound.block_patched.item()) > 0 and "frame" in gain.dims


def test_in_bfloat16_estimates_are_those_of_float32_but_for_rounding(tiny_pipe, sample):
    gains = []
    for dtype in (torch.float32, torch.bfloat16):
        batch = dl.Lens(tiny_pipe(dtype=dtype)).batch([(sample, 0), (sample, 1)], steps=3, cfg_scale=2.0)
        options = {"place": dl.at(step=1, layer=[0, 2]), "until": -1, "check": 12}
        gains.append(batch.attribute(lambda x0: (x0.float() ** 3).mean(), ["block", "self_attn"], **options))
    exact, rounded = gains
    assert np.corrcoef(exact.block.values.ravel(), rounded.block.values.ravel())[0, 1] > 0.98
