"""A frame that a pipeline gives and puts back is in no arm and in no distance, and the model sees it as it is."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import outcomes
from dit_lens.engine.sweep import run_arms
from dit_lens.experiments import rescues
from dit_lens.experiments.compared_tokens import counted, tokens_of
from dit_lens.experiments.leverage import Movement
from dit_lens.experiments.steps import clean_steps, distance_to_end
from dit_lens.families.diffsynth.wan import WAN
from dit_lens.plan.plan import Placed
from scripts import script

pytestmark = pytest.mark.slow


def beside(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


variants = beside("test_wan_variants")


def lens_of(name):
    return dl.Lens(variants.make(name), WAN)


@pytest.fixture(scope="module")
def given():
    """Wan 2.2 TI2V, whose first latent frame is the picture's."""
    return lens_of("wan2.2-ti2v")


def pairs_of(count, name="wan2.2-ti2v"):
    one = variants.sample_of(name)
    return [(one.with_(id=str(n), image=variants.picture(n)), n) for n in range(count)]


@pytest.fixture(scope="module")
def batch(given):
    return given.batch(pairs_of(2), steps=4, cfg_scale=2.0)


@pytest.mark.parametrize(
    ("name", "count"),
    [("wan2.2-ti2v", 1), ("wan2.2-ti2v without an image", 0), ("wan2.2-i2v", 0), ("wan2.1-t2v", 0)],
)
def test_a_frame_is_fixed_where_the_pipeline_puts_it_back_after_every_step(name, count):
    batch = lens_of(name).batch([(variants.sample_of(name), 0)], **variants.arguments_of(name))
    assert batch.fixed_frames == count
    moved = [(x != batch.noise).any(4).any(3).any(1)[0].tolist() for _, x, _ in clean_steps(batch)][-1]
    assert moved == [False] * count + [True] * (3 - count)


def test_a_frame_of_ltx_is_fixed_where_there_is_a_picture():
    lens = dl.Lens(beside("ltx").make_pipe())
    sample = dl.Sample("go", Image.new("RGB", (96, 96), "red"), num_frames=9)
    for one, count in ((sample, 1), (sample.with_(image=None), 0)):
        assert lens.batch([(one, 0)], steps=2, cfg_scale=2.0).fixed_frames == count


def test_a_frame_of_a_diffusers_pipeline_is_fixed_where_it_is_put_in(build, pipes):
    pytest.importorskip("diffusers")
    sample = dl.Sample("a cat", pipes.gray((32, 48)), num_frames=9)
    batch = dl.Lens(build("ti2v")).batch([(sample, 0)], steps=3, cfg_scale=3.0, **pipes.SHORT)
    assert batch.fixed_frames == 1


def test_a_distance_is_over_the_frames_that_are_generated(batch):
    clean, _ = run_arms(batch, [])
    moved = clean[None].clone()
    moved[0, :, :, 1:] += 0.5
    found = outcomes(batch, moved, clean).distance.values
    assert np.allclose(found, 0.5)  # not 0.5 sqrt(2 / 3)
    given_moved = clean[None].clone()
    given_moved[0, :, :, 0] += 0.5
    assert (outcomes(batch, given_moved, clean).distance == 0).all()


@pytest.mark.parametrize("noise", ["replace", "add", "renoise"])
def test_noise_spares_the_frame_that_is_given(noise, given, batch, tmp_path):
    """What every arm starts its steps from has the picture's own latents in the first frame."""
    module = script("noise_sensitivity")
    options = module.Options(
        noise=noise, steps=4, cfg_scale=2.0, stops="1", cka_layers="1", cka_tokens=12, out=tmp_path
    )
    arms = module.arms_of(batch, options)
    assert not any(name.startswith("frame 0") for name in arms) and "frame 2, at step 1" in arms
    own = batch.noise[0, :, 0].permute(1, 2, 0).numpy()
    for edits in arms.values():
        edited = given.batch(pairs_of(1), steps=4, cfg_scale=2.0, edit=edits, record=[dl.latents])
        (run,) = edited.run()
        assert all((run["latents"].sel(step=step, frame=0) == own).all() for step in range(4))


def test_noise_sensitivity_counts_generated_frames_alone(given, batch, tmp_path):
    module = script("noise_sensitivity")
    options = module.Options(noise="add", steps=4, cfg_scale=2.0, stops="1", cka_layers="1", out=tmp_path)
    samples = [sample for sample, _ in pairs_of(2)]
    found = module.measure(given, samples, options)
    assert found.frame.values.tolist() == [1, 2]
    again = given.batch([(samples[0], int(found.noise_seed[0, 0]))], steps=4, cfg_scale=2.0)
    step = [Placed(dl.add_noise(scale=1.0), dl.at(site="latents", step=2, frame="1-"))]
    frame = [Placed(dl.add_noise(scale=(2 / 3) ** 0.5), dl.at(site="latents", step="1-", frame=2))]
    clean, (at_step, in_frame) = run_arms(again, [step, frame])

    def rms(x, frames):
        return pytest.approx(float((x - clean)[:, :, frames].square().mean().sqrt()), rel=1e-3)

    assert float(found.step_distance.sel(after_step=1)[0, 0]) == rms(at_step, [1, 2])
    of_frame = {"budget": "same energy", "frame": 2}
    assert float(found.frame_distance.sel(of_frame)[0, 0]) == rms(in_frame, [1, 2])
    assert float(found.frame_distance_elsewhere.sel(of_frame)[0, 0]) == rms(in_frame, [1])
    # Right after noise of unit variance has been added, generated latents are 1 away.
    assert np.allclose(found.moved, 1, atol=0.15)
    energy = dict(zip(found.kind.values.tolist(), found.noise_energy.values.tolist(), strict=True))
    assert (energy["step"], energy["same energy"], energy["same scale"]) == (2, 2, 3)  # 2 frames, 3 steps
    whole = int(np.prod(again.grid))
    assert (found.tokens == whole * 2 // 3).all()


def test_tokens_of_the_frame_that_is_given_are_not_compared(batch):
    frames, y, x = batch.grid
    assert frames == 3
    assert tokens_of(batch, 1000, 0) == [*range(y * x, 3 * y * x)]
    some = tokens_of(batch, 4, 0)
    assert len(some) == 4 and min(some) >= y * x
    assert counted(batch, some).values.tolist() == [[4, 2 * y * x]] * 2


def test_a_fork_and_a_rescue_leave_the_frame_that_is_given(batch, monkeypatch):
    module = script("causal_commitment")
    fork = module.fork(batch, 0, 2)
    assert fork.place == dl.at(site="latents", step=2, frame="1-")
    clean, ended = run_arms(batch, [[fork]])
    assert torch.equal(ended[0, :, :, 0], clean[:, :, 0]) and not torch.equal(ended[0], clean)
    starts, step = [], Batch.step
    monkeypatch.setattr(
        Batch, "step", lambda self, n, x, **more: starts.append(x) or step(self, n, x, **more)
    )
    noise = rescues.other_noise(batch)
    for first, held in ((0, 0), (0, 2), (2, 0)):
        rescues.rerun(batch, noise, noise, clean, first, held)
    assert len(starts) == 4 + 4 + 2
    assert all(torch.equal(x[:, :, 0], batch.noise[:, :, 0]) for x in starts)


def test_movement_counts_generated_frames_alone(batch, monkeypatch):
    edit = [Placed(dl.add_noise(scale=1.0), dl.at(site="latents", step=1, frame="1-"))]
    whole, generated = Movement([0], 2, 0), Movement([0], 2, batch.fixed_frames)

    def look(now):
        for movement in (whole, generated):
            movement.last = [now.step]
            movement.look(now)

    run_arms(batch, [edit], look=look)
    assert (
        np.allclose(generated.values, whole.values * (3 / 2) ** 0.5, rtol=1e-4) and (whole.values > 0).all()
    )
    given = []
    module = script("what_to_average")
    monkeypatch.setattr(module, "Movement", lambda *arguments: given.append(arguments) or 1 / 0)
    options = module.Options(steps=4, cfg_scale=2.0, seeds=2, what=("x0",), until="none", placebo=False)
    with pytest.raises(ZeroDivisionError):
        module.measure(dl.Lens(batch.specimen.pipe, WAN), [pairs_of(1)[0][0]], options)
    assert given[0][2] == 1


def test_the_distance_of_x0_to_its_end_is_over_generated_frames(given):
    run = given.run(pairs_of(1)[0][0], 0, steps=4, cfg_scale=2.0, record=[dl.x0])
    x0 = run["x0"].load()
    off = ((x0 - x0.isel(step=-1)) ** 2).isel(frame=slice(1, None))
    expected = off.mean(("frame", "latent_y", "latent_x", "latent_channel")) ** 0.5
    assert np.allclose(distance_to_end(x0), expected, rtol=1e-5) and float(expected[0]) > 0
    assert (distance_to_end(x0.isel(step=[-1])) == 0).all()


def test_every_frame_of_an_organism_is_generated(lens, sample):
    batch = lens.batch([(sample, 0)], steps=2)
    assert batch.fixed_frames == 0
    assert tokens_of(batch, 10**6, 0) == [*range(int(np.prod(batch.grid)))]
    assert script("causal_commitment").fork(batch, 0, 1).place == dl.at(site="latents", step=1)
