"""A batch is the pipeline's loop, or refuses."""

import functools

import pytest
import torch

import dit_lens as dl


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


@pytest.mark.parametrize("what", PLANTED)
def test_what_a_pipeline_does_between_its_calls_shows(pipe_and_lens, sample, what):
    pipe, lens = pipe_and_lens
    lens.batch([(sample, 0)], steps=3, cfg_scale=3.0)
    kind = type(pipe)

    class Planted(kind):
        @functools.wraps(kind.__call__)
        def __call__(self, *args, **keywords):
            step = self.scheduler.step
            self.scheduler.step = PLANTED[what](step)
            try:
                return kind.__call__(self, *args, **keywords)
            finally:
                self.scheduler.step = step

    pipe.__class__ = Planted
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
    from dit_lens.engine.pipeline_check import _compare

    right = torch.randn(1, 4, 4, 8, 8)
    wrong = right.clone()
    wrong[..., 0, 0, 0] += 0.5
    _compare("latents", 1, {"video": right}, {"video": right})
    with pytest.raises(dl.PlanError, match="its latents is off by"):
        _compare("latents", 1, {"video": wrong}, {"video": right})
    with pytest.raises(dl.PlanError, match="its latents is off by"):
        _compare("latents", 1, {"video": torch.full_like(right, torch.nan)}, {"video": right})
