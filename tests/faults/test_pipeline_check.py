"""A batch is the pipeline's loop, or refuses."""

import functools

import pytest
import torch

import dit_lens as dl
from dit_lens.engine.inputs import _stack


@pytest.fixture
def pipe_and_lens(tiny_pipe):
    pipe = tiny_pipe()
    return pipe, dl.Lens(pipe)


PLANTED = {
    "guided velocity": lambda step: lambda v, t, x, **more: step(1.1 * v, t, x, **more),
    "latents": lambda step: lambda v, t, x, **more: step(v, t, x, **more) + 0.01,
    "timestep": lambda step: lambda v, t, x, **more: step(v, t + 1, x, **more),
}
"""What a pipeline's own loop does around its scheduler's step, unknown to any batch."""


def planted(kind, around):
    """Return a kind of pipeline whose own loop has something around its scheduler's step."""

    class Planted(kind):
        @functools.wraps(kind.__call__)
        def __call__(self, *args, **keywords):
            step = self.scheduler.step
            self.scheduler.step = around(step)
            try:
                return kind.__call__(self, *args, **keywords)
            finally:
                self.scheduler.step = step

    return Planted


@pytest.mark.parametrize("what", PLANTED)
def test_what_a_pipeline_does_between_its_calls_shows(pipe_and_lens, sample, what):
    pipe, lens = pipe_and_lens
    lens.batch([(sample, 0)], steps=3, cfg_scale=3.0)
    pipe.__class__ = planted(type(pipe), PLANTED[what])
    with pytest.raises(dl.PlanError, match=f"not be the pipeline's own loop: at step . its {what} is"):
        lens.batch([(sample, 0)], steps=4, cfg_scale=3.0)


def test_one_check_serves_all_batches_of_the_same_loop(pipe_and_lens, sample, monkeypatch):
    from dit_lens.engine import pipeline_check

    _, lens = pipe_and_lens
    observe, count = pipeline_check._observe, []
    monkeypatch.setattr(pipeline_check, "_observe", lambda batch: count.append(1) or observe(batch))
    for seed, prompt in ((0, "solve the maze"), (1, "circle the disc")):
        lens.batch([(sample.with_(prompt=prompt), seed)], steps=3, cfg_scale=3.0)
    assert len(count) == 1
    lens.batch([(sample, 0)], steps=3, cfg_scale=1.0)
    assert len(count) == 2


def test_a_small_region_that_differs_is_not_averaged_away(sample):
    """A mask that is put back in one position of 1,024 is found, though the rest is equal."""
    from dit_lens.engine.pipeline_check import _compare, rounding

    right = torch.randn(1, 4, 4, 8, 8)
    wrong = right.clone()
    wrong[..., 0, 0, 0] += 0.5
    _compare("latents", 1, {"video": right}, {"video": right}, rounding(right.dtype))
    with pytest.raises(dl.PlanError, match="its latents is off by"):
        _compare("latents", 1, {"video": wrong}, {"video": right}, rounding(right.dtype))
    with pytest.raises(dl.PlanError, match="its latents is off by"):
        _compare(
            "latents",
            1,
            {"video": torch.full_like(right, torch.nan)},
            {"video": right},
            rounding(right.dtype),
        )


def late(step, when):
    """Return a scheduler's step that does something of its own from a step on."""
    calls = []

    def stepped(v, t, x, **more):
        calls.append(1)
        return when(step, v, t, x, more) if len(calls) > 3 else step(v, t, x, **more)

    return stepped


LATE = {
    "guided velocity": lambda step, v, t, x, more: step(0.9 * v, t, x, **more),
    "latents": lambda step, v, t, x, more: step(v, t, x, **more) + 0.1,
}


@pytest.mark.parametrize("what", LATE)
def test_what_a_pipeline_does_late_in_its_loop_shows(pipe_and_lens, sample, what):
    pipe, lens = pipe_and_lens
    lens.batch([(sample, 0)], steps=6, cfg_scale=3.0)
    pipe.__class__ = planted(type(pipe), lambda step: late(step, LATE[what]))
    with pytest.raises(dl.PlanError, match=f"at step . its {what} is"):
        lens.batch([(sample, 0)], steps=6, cfg_scale=3.0)


def test_guidance_that_ends_early_shows(pipe_and_lens, sample):
    pipe, lens = pipe_and_lens
    kind, calls = type(pipe), []

    class Ending(kind):
        @functools.wraps(kind.__call__)
        def __call__(self, *args, **keywords):
            model, calls[:] = self.model_fn, []

            def model_fn(**inputs):
                calls.append(inputs["positive"])
                if not inputs["positive"] and len(calls) > 6:  # the fourth step on
                    return torch.zeros_like(inputs["latents"])
                return model(**inputs)

            self.model_fn = model_fn
            try:
                return kind.__call__(self, *args, **keywords)
            finally:
                self.model_fn = model

    pipe.__class__ = Ending
    with pytest.raises(dl.PlanError, match="at step 3 its guidance is of"):
        lens.batch([(sample, 0)], steps=6, cfg_scale=3.0)


def test_a_network_that_runs_beside_the_model_at_every_step_is_refused(pipe_and_lens, sample):
    pipe, lens = pipe_and_lens
    pipe.control = torch.nn.Linear(1, 1)

    class Controlled(type(pipe.scheduler)):
        def step(self, v, t, x, **more):
            pipe.control(torch.ones(1))
            return super().step(v, t, x, **more)

    pipe.scheduler.__class__ = Controlled
    with pytest.raises(dl.PlanError, match=r"control of the \w+ runs at every step beside the DiT"):
        lens.batch([(sample, 0)], steps=3)
    assert "forward" not in vars(pipe.control)


def test_what_a_batch_would_leave_out_is_refused(pipe_and_lens, sample):
    _, lens = pipe_and_lens
    noise = torch.zeros(1, 2)
    with pytest.raises(dl.PlanError, match=r"first_frame \(cond\) comes with some of them"):
        _stack("cond", [{"latents": noise}, {"latents": noise, "first_frame": noise}])
    with pytest.raises(dl.PlanError, match="it decodes whole videos"):
        lens.batch([(sample, 0)], steps=2, tiled=True)
    with pytest.raises(dl.PlanError, match="the seed stands beside its sample"):
        lens.batch([(sample, 0)], steps=2, seed=3)
    with pytest.raises(dl.PlanError, match="runs the branches one after the other"):
        lens.batch([(sample, 0)], steps=2, cfg_scale=3.0, cfg_merge=True)
