"""What a run is said to hold is what was asked for: also by noise level, by expert, and by half-kept dimensions."""

import numpy as np
import pytest
import torch

import dit_lens as dl


class Interrupted(Exception):
    pass


@dl.keeps("channel", site="x0")
def channels_of_x0(h):
    return h.mean((0, 1, 2))


@dl.keeps("frame", "y", "x")
def brightest(h):
    return h.argmax(-1)


def test_a_run_recorded_by_noise_level_is_complete_and_found_again(lens, sample, tmp_path):
    options = {"record": [(dl.energy, dl.at(sigma=(0.0, 0.9)))], "steps": 5, "store": tmp_path}
    run = lens.run(sample, **options)
    assert run.complete and run.status.missing == {}
    sigmas = run.dataset["sigma"].values
    assert list(run["energy"].step.values) == [s for s in range(5) if sigmas[s] <= 0.9] != list(range(5))
    assert lens.run(sample, **options).path == run.path


@pytest.mark.parametrize("expert", ["high", "low"])
@pytest.mark.parametrize("stop", [None, 4, "end"])
def test_a_run_recorded_on_one_expert_is_complete_also_after_an_interruption(
    two_experts, sample, tmp_path, monkeypatch, expert, stop
):
    lens = dl.Lens(two_experts)
    options = {"record": [(dl.energy, dl.at(expert=expert)), (dl.hidden, dl.at(expert=expert, layer=1))]}
    options |= {"steps": 5, "store": tmp_path}
    if stop is not None:
        from dit_lens.engine.recorder import Recorder

        def end_step(self, step, info, inner=Recorder.end_step):
            if step == stop:
                raise Interrupted
            inner(self, step, info)

        def end_run(self, records, inner=Recorder.end_run):
            inner(self, records)
            raise Interrupted

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(
                Recorder, "end_run" if stop == "end" else "end_step", end_run if stop == "end" else end_step
            )
            lens.run(sample, **options)
    run = lens.run(sample, **options)
    assert run.complete and run.status.missing == {}
    served = [s for s, e in enumerate(run.dataset["expert"].values) if str(e) == expert]
    assert 0 < len(served) < 5
    for name in ("energy", "hidden"):
        assert list(run[name].step.values) == served
        assert np.isfinite(run[name].values).all()
    assert lens.run(sample, **options).path == run.path


def test_a_bfloat16_record_that_keeps_a_part_of_the_latent_grid_is_float32(tiny_pipe, sample):
    run = dl.Lens(tiny_pipe(dtype=torch.bfloat16)).run(sample, steps=2, record=[channels_of_x0, dl.x0])
    assert run["channels_of_x0"].dtype == np.float32
    expected = run["x0"].mean(("frame", "latent_y", "latent_x")).values
    assert np.allclose(run["channels_of_x0"].values, expected, atol=0.02)


def test_whole_numbers_become_float32(lens, sample):
    run = lens.run(sample, steps=2, record=[brightest, dl.hidden])
    assert np.array_equal(run["brightest"].values, run["hidden"].values.argmax(-1).astype(np.float32))


def test_what_a_record_returns_is_copied_before_the_model_writes_over_it(lens, pipe, sample):
    def double(module, inputs):
        inputs[0].mul_(2)

    handle = pipe.dit.blocks[1].register_forward_pre_hook(double)
    record = [(dl.hidden, dl.at(layer=0)), (dl.hidden, dl.at(site="block_in", layer=1))]
    try:
        run = lens.run(sample, steps=2, record=record)
    finally:
        handle.remove()
    before, after = run["hidden"].isel(layer=0).values, run["hidden_block_in"].isel(layer=0).values
    assert np.array_equal(2 * before, after)
