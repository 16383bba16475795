"""Schedulers that draw noise: traced equal to bare, and the same again from the same seed."""

import contextlib

import numpy as np
import pytest
import torch

import dit_lens as dl

diffusers = pytest.importorskip("diffusers")


@contextlib.contextmanager
def scheduled(case, scheduler):
    before, case.pipe.scheduler = case.pipe.scheduler, scheduler
    try:
        yield
    finally:
        case.pipe.scheduler = before


def dpm():
    return diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)


SEEDED = {
    "cogvideox dpm": ("cogvideox", dpm, {}),
    "pixart ddpm": ("pixart", diffusers.DDPMScheduler, {}),
    "pixart ddim eta": ("pixart", diffusers.DDIMScheduler, {"eta": 1.0}),
}
"""Pipelines that look at the signature of `scheduler.step`, and pass on their generator and eta."""


@pytest.mark.parametrize("cfg", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("name", SEEDED)
def test_a_traced_run_is_the_bare_one_and_can_be_repeated(made, name, cfg):
    pipeline, make, options = SEEDED[name]
    case = made(pipeline)
    with scheduled(case, make()):
        torch.manual_seed(1)  # of no account
        bare = case.bare(steps=3, cfg_scale=cfg, **options)
        lens, videos = dl.Lens(case.pipe), []
        for seed in (2, 3):
            torch.manual_seed(seed)
            edit = [(lambda h, at: h.clone(), dl.at(site="latents"))]
            run = case.run(lens, steps=3, cfg_scale=cfg, record=[dl.x0], edit=edit, **options)
            videos.append(run.video)
    assert np.array_equal(videos[0], (bare * 255).round()) and np.array_equal(*videos)
    with scheduled(case, make()):
        other = dl.Lens(case.pipe).run(case.sample, seed=1, steps=3, cfg_scale=cfg, **case.extra, **options)
    assert not np.array_equal(other.video, videos[0])


def test_eta_reaches_the_scheduler(made):
    case = made("pixart")
    with scheduled(case, diffusers.DDIMScheduler()):
        lens = dl.Lens(case.pipe)
        assert not np.array_equal(case.run(lens, eta=1.0).video, case.run(lens).video)


def test_the_wrapped_step_shows_its_signature(made):
    import inspect

    case = made("pixart")
    shown = inspect.signature(case.pipe.scheduler.step)
    during = []

    def look(h):
        during.append(inspect.signature(case.pipe.scheduler.step))
        return h[..., 0]

    case.run(dl.Lens(case.pipe), steps=1, record=[(dl.keeps("frame", "y", "x")(look), dl.at(layer=0))])
    assert during and all(signature == shown for signature in during)


UNSEEDED = {
    "euler stochastic": ("sd3", lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)),
    "dit ddpm": ("dit", diffusers.DDPMScheduler),
}
"""Pipelines that give their scheduler no generator: it draws from torch's own."""


@pytest.mark.parametrize("name", UNSEEDED)
def test_noise_that_no_generator_gives_comes_from_the_seed_of_the_run(made, name):
    pipeline, make = UNSEEDED[name]
    case = made(pipeline)
    with scheduled(case, make()):
        torch.manual_seed(0)
        bare = case.bare(steps=3)
        torch.manual_seed(123)
        state = torch.get_rng_state()
        lens = dl.Lens(case.pipe)
        first, again = case.run(lens, steps=3), case.run(lens, steps=3)
        assert torch.equal(torch.get_rng_state(), state)  # a run leaves no trace there
        other = lens.run(case.sample, seed=1, steps=3, cfg_scale=3.0, **case.extra)
    assert np.array_equal(first.video, again.video) and np.array_equal(first.video, (bare * 255).round())
    assert not np.array_equal(first.video, other.video)


@pytest.mark.parametrize("name", UNSEEDED)
def test_what_a_record_or_an_edit_draws_is_not_the_schedulers(made, name):
    pipeline, make = UNSEEDED[name]
    case = made(pipeline)
    drawn = []

    @dl.keeps("channel")
    def some_tokens(h):
        drawn.append(torch.rand(3))
        return h.flatten(0, 2)[torch.randperm(h[..., 0].numel())[:4]].mean(0)

    def same(h, at):
        torch.rand(5)
        return h

    with scheduled(case, make()):
        lens = dl.Lens(case.pipe)
        plain = case.run(lens, steps=3, record=[dl.latents])
        torch.manual_seed(5)
        place = dl.at(layer=0)
        looked = case.run(lens, steps=3, record=[dl.latents, (some_tokens, place)], edit=[(same, place)])
        after = torch.rand(1)
    assert np.array_equal(plain["latents"].values, looked["latents"].values)
    # What it draws goes on from call to call, and from the run to what comes after it.
    assert len({tuple(values.tolist()) for values in drawn}) == len(drawn) > 3
    torch.manual_seed(5)
    assert not torch.equal(after, torch.rand(1))


@pytest.mark.parametrize(
    "options", [{"clip_sample": True}, {"clip_sample": False, "thresholding": True}], ids=str
)
def test_the_record_of_an_edited_x0_is_what_the_scheduler_makes_of_it(made, options):
    case = made("pixart")
    with scheduled(case, diffusers.DDIMScheduler(**options)):
        lens, edit = dl.Lens(case.pipe), (dl.replace(value=3.0), dl.at(site="x0", step=0))
        run = case.run(lens, steps=3, record=[dl.x0, dl.latents, dl.velocity], edit=[edit])
        scheduler = case.pipe.scheduler
        scheduler.set_timesteps(3)
        given = [torch.tensor(run[name].sel(step=0).values) for name in ("velocity", "latents")]
        stepped = scheduler.step(given[0], scheduler.timesteps[0], given[1])
    np.testing.assert_allclose(run["x0"].sel(step=0), stepped.pred_original_sample, atol=1e-5)
    np.testing.assert_allclose(run["latents"].sel(step=1), stepped.prev_sample, atol=1e-5)
    assert float(run["x0"].sel(step=0).max()) < 3


@pytest.mark.parametrize("value", [1.2, 0.01])
def test_the_record_of_an_edited_x0_is_what_the_scheduler_takes_in_few_bits_too(made, value):
    """In bfloat16 the way to the velocity and back rounds by as much as a scheduler clips."""
    case = made("dit")
    case.pipe.to(torch.bfloat16)
    try:
        with scheduled(case, diffusers.DDIMScheduler(clip_sample=True)):
            edit = (dl.replace(value=value), dl.at(site="x0", step=[0, 2]))
            run = case.run(dl.Lens(case.pipe), steps=3, record=[dl.x0, dl.latents, dl.velocity], edit=[edit])
            scheduler = case.pipe.scheduler
            scheduler.set_timesteps(3)
            for step in (0, 2):
                given = [
                    torch.tensor(run[name].sel(step=step).values).bfloat16()
                    for name in ("velocity", "latents")
                ]
                stepped = scheduler.step(given[0], scheduler.timesteps[step], given[1])
                np.testing.assert_array_equal(run["x0"].sel(step=step), stepped.pred_original_sample.float())
    finally:
        case.pipe.to(torch.float32)


def test_dpm_solver_runs(made):
    """Wan with DPM++, PixArt as published."""
    for name, options in (
        ("wan", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
        ("pixart", {}),
    ):
        case = made(name)
        with scheduled(case, diffusers.DPMSolverMultistepScheduler(**options)):
            bare = case.bare(steps=3)
            run = case.run(dl.Lens(case.pipe), steps=3, record=[dl.x0])
        assert np.array_equal(run.video, (bare * 255).round())


def test_sigmas_beyond_one_are_refused_whatever_the_class_is_called(made):
    from dit_lens.families.diffusers import schedulers

    beyond = diffusers.FlowMatchEulerDiscreteScheduler()
    beyond.set_timesteps(3)
    beyond.sigmas = beyond.sigmas * 80
    with pytest.raises(dl.PlanError, match=r"noise levels \[80\.0.*not in \[0, 1\]"):
        schedulers.schedule(beyond)

    class Karras(diffusers.FlowMatchEulerDiscreteScheduler):
        """As Cosmos-Predict2 sets it: sigmas from 80 down, timesteps below 1."""

        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas = self.sigmas * 80

    Karras.__name__ = "FlowMatchEulerDiscreteScheduler"
    case = made("sd3")
    with scheduled(case, Karras()), pytest.raises(dl.PlanError, match=r"Set a scheduler whose sigmas"):
        case.run(dl.Lens(case.pipe), record=[dl.x0])


def test_x0_of_the_step_before_is_no_part_of_schedulers_that_are_no_flow(made):
    case = made("pixart")
    with pytest.raises(dl.PlanError, match="models of flow matching"):
        case.run(dl.Lens(case.pipe), edit=[(dl.renoise(), dl.at(step=1))])
