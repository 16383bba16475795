"""What `surprise.py` makes of losses and inversions: planted effects, planted nulls, and what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.experiments import video_losses
from dit_lens.experiments.samples import draw
from dit_lens.models.options import ModelOptions
from dit_lens.tasks.impossible import videos_of
from scripts import script

TEXT = np.dtypes.StringDType()


surprise = script("surprise")


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


def planted(names=("wall", "open"), samples=24, seeds=2, steps=3, effect=0.5, sizes=None):
    """Losses whose other video is worse by `effect` in the first comparison, and as good in the second."""
    rng = np.random.default_rng(0)
    loss = rng.normal(1, 0.05, (len(names), 2, steps, samples, seeds))
    loss[0, 1] += effect
    ideal = np.zeros_like(loss)
    ideal[0, 1] = 1.0
    dims = ("comparison", "video", "step", "sample", "seed")
    coords = {
        "comparison": np.array(names, TEXT),
        "video": np.array(surprise.VIDEOS, TEXT),
        "step": np.arange(steps),
        "sigma": ("step", np.linspace(1, 0.3, steps)),
        "sample": np.array([f"maze/{n}" for n in range(samples)], TEXT),
        "seed": np.arange(seeds),
    }
    psnr = np.full((2, samples), 30.0) if sizes is None else sizes
    by_video = {n: (("video", "sample"), psnr) for n in ("psnr", "codec_psnr", "other_noise_psnr")}
    by_video |= {n: (("video", "sample"), rng.normal(1, 0.1, psnr.shape)) for n in ("latent_psnr", "energy")}
    data = {"loss": (dims, loss), "ideal_loss": (dims, ideal), **by_video}
    apart = rng.normal(1, 0.1, (len(names), samples))
    return xr.Dataset({**data, "apart": (("comparison", "sample"), apart)}, coords)


def concluded(results, tmp_path, **options):
    given = surprise.Options(task="maze", out=tmp_path, **options)
    surprise.conclude(SimpleNamespace(results=results, left_out={}), given)
    return json.loads((tmp_path / "summary.json").read_text())


def test_a_planted_surprise_is_found_and_a_null_is_none(tmp_path):
    found = concluded(planted(), tmp_path)
    (primary,) = found["primary: share of pairs with the larger loss, minus one half"].items()
    assert primary[0] == "wall" and primary[1]["mean"] == 0.5 and primary[1]["low"] > 0.3
    share = {x["comparison"]: x for x in found["share of pairs whose other video has the larger loss"]}
    assert share["open"]["low"] < 0.5 < share["open"]["high"]
    loss = {x["comparison"]: x for x in found["loss, other minus right"]}
    assert loss["wall"]["mean"] == pytest.approx(0.5, abs=0.03)
    assert loss["open"]["low"] < 0 < loss["open"]["high"]
    (beyond,) = found["loss, other minus right, minus that of the null open"]
    assert beyond["comparison"] == "wall" and beyond["low"] > 0.4
    ideal = {x["comparison"]: x["mean"] for x in found["share, ideal denoiser"]}
    assert ideal == {"wall": 1.0, "open": 0.5}  # where both have one loss, it is a half
    assert (tmp_path / "share_by_step.png").stat().st_size > 5000


def test_less_surprising_is_less_than_one_half(tmp_path):
    found = concluded(planted(effect=-0.5), tmp_path)
    primary = found["primary: share of pairs with the larger loss, minus one half"]["wall"]
    assert primary["mean"] == -0.5 and primary["high"] < -0.3


def test_one_step_two_samples_and_a_null_alone_are_no_error(tmp_path):
    found = concluded(planted(samples=2, seeds=1, steps=1), tmp_path / "a")
    assert found["samples"] == 2
    alone = concluded(
        planted(names=("open",)).drop_vars("ideal_loss").assign(ideal_loss=lambda d: d.loss * np.nan),
        tmp_path / "b",
        invert=False,
    )
    assert not [name for name in alone if name.startswith(("primary", "share, ideal", "inversion"))]


def test_what_does_not_come_back_is_not_used_and_counted(tmp_path):
    psnr = np.full((2, 24), 30.0)
    psnr[0, :3], psnr[1, 2:10] = 20.0, 24.9
    found = concluded(planted(sizes=psnr), tmp_path / "a")["inversion"]
    assert found["videos below the gate"] == {"right": 3, "other": 8} and found["pairs that are used"] == 14
    energy = found["energy of the noise, other minus right"]
    results = planted(sizes=psnr).energy.isel(sample=slice(10, None))
    assert energy["effect"] == pytest.approx(float((results[1] - results[0]).mean()))
    none = concluded(planted(sizes=psnr), tmp_path / "b", gate=99.0)["inversion"]
    assert none["energy of the noise"] == "not measured: 0 pairs come back at the gate."


def test_options_that_do_not_fit_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("a model is loaded"))
    for options, reason in (
        ({"comparisons": ("colour",)}, "--comparisons colour: --task maze has wall, open, ending, reversed"),
        ({"task": "latin", "comparisons": ("wall", "ending")}, "--comparisons wall: --task latin has ending"),
        ({"refine": -1}, "--refine -1 .* give 0 or more"),
        ({"gate": 0.0}, "--gate 0.0: .* over 0 dB"),
        ({"gate": float("nan")}, "over 0 dB"),
    ):
        with pytest.raises(dl.TaskError, match=reason):
            surprise.main(surprise.Options(out=tmp_path, **options))


def test_only_the_gate_may_change_without_measuring_anew():
    plain = surprise.Options()
    assert surprise.Options(gate=30.0).settings == plain.settings
    assert surprise.Options(refine=1).settings != plain.settings


@pytest.mark.slow
def test_all_videos_of_a_pair_have_one_noise_and_the_right_one_is_measured_once(organism, monkeypatch):
    options = surprise.Options(task="occlude", steps=3, seeds=2, at="0,2", invert=False)
    samples = list(draw(surprise.Options(task="occlude", samples=2)))
    noises, own = [], video_losses.velocity_loss

    def seen(batch, clean, at, first):
        noises.append(batch.noise)
        return own(batch, clean, at, first)

    monkeypatch.setattr(video_losses, "velocity_loss", seen)
    found = surprise.measure(organism, samples, options)
    assert len(noises) == 5 and all(torch.equal(x, noises[0]) for x in noises)  # right, and four others
    right = found.loss.sel(video="right")
    assert (right == right.isel(comparison=0)).all() and found.loss.sizes["seed"] == 2
    # Row by row it is the loss of that video under the noise of its own pair.
    _, other = videos_of(samples[1], "colour")
    batch = organism.batch([(other, int(found.noise_seed[1, 1]))], steps=3)
    clean = organism.encode(other.truth).permute(3, 0, 1, 2)[None]
    expected = own(batch, clean, [0, 2], 1)[:, 0]
    got = found.loss.sel(comparison="colour", video="other").isel(sample=1, seed=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    # The scene has one right answer: wrong by what the videos differ in, and not surprised by time that runs backwards.
    ideal = found.ideal_loss.isel(seed=0, sample=1, step=1)
    off = (organism.encode(other.truth) - organism.encode(samples[1].truth))[1:].square().mean()
    assert float(ideal.sel(comparison="colour", video="other")) == pytest.approx(
        float(off) / batch.sigmas[2] ** 2, rel=1e-3
    )
    assert float(ideal.sel(video="right").max()) == float(ideal.sel(comparison="reversed").max()) == 0
