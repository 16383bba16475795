"""What a function of the user's reads of its pipeline in a batch: the scheduler as it stands in a run, or an error."""

import threading

import numpy as np
import pytest

import dit_lens as dl


def reading(pipe, what, site):
    """Return a record of a number that is read off the pipeline at every step."""

    @dl.keeps("frame", "y", "x")
    def number(h):
        return h[..., 0].float() * 0 + what(pipe)

    return number, dl.at(site=site)


def index(pipe):
    found = getattr(pipe.scheduler, "step_index", None)
    return -1 if found is None else found


READ = {
    "index": index,
    "levels": lambda pipe: float(getattr(pipe.scheduler, "sigmas", pipe.scheduler.timesteps).sum()),
    "timesteps": lambda pipe: float(pipe.scheduler.timesteps.double().sum()),
    "number of steps": lambda pipe: float(pipe.scheduler.num_inference_steps),
}


@pytest.mark.parametrize("site", ["latents", "velocity"])
def test_the_scheduler_stands_where_it_does_in_a_run(case, site):
    lens = dl.Lens(case.pipe, info={"weights": "tiny"})
    for name, what in READ.items():
        record = [reading(case.pipe, what, site)]
        try:
            batch = lens.batch([(case.sample, 0), (case.sample, 1)], 3, 3.0, record=record, **case.extra)
        except dl.PlanError as error:
            pytest.skip(f"no batch: {error}")
        lens.run(case.sample, steps=2, cfg_scale=1.0, **case.extra)
        expected = lens.run(case.sample, steps=3, cfg_scale=3.0, record=record, **case.extra)
        variable = next(n for n in expected.names if n.startswith("number"))
        for at_once in (2, 1):
            batch.at_once = at_once
            found = batch.run()[0]
            assert np.array_equal(found[variable].values, expected[variable].values), name


def guidance(pipe):
    return pipe.guidance_scale


def kept(pipe):
    return vars(pipe)["_guidance_scale"]


def timestep(pipe):
    return float(pipe.current_timestep)


@pytest.mark.parametrize("what", [guidance, kept, timestep])
def test_what_a_call_of_the_pipeline_sets_is_refused(made, what):
    case = made("ltx")
    lens = dl.Lens(case.pipe, info={"weights": "tiny"})
    placed = [(lambda h, at: h * what(case.pipe), dl.at(site="latents", step=1))]
    lens.run(case.sample, steps=3, cfg_scale=3.0, edit=placed, **case.extra)
    with pytest.raises(dl.PlanError, match=r"LTXPipeline.*which a call of the pipeline sets"):
        lens.batch([(case.sample, 0)], 3, 3.0, edit=placed, **case.extra).run()
    with pytest.raises(dl.PlanError, match=r"LTXPipeline.*which a call of the pipeline sets"):
        lens.sweep([(case.sample, 0)], {"a": placed}, steps=3, cfg_scale=3.0, **case.extra)
    assert "__getattribute__" not in vars(type(case.pipe))
    lens.batch([(case.sample, 0)], 3, 3.0, **case.extra).run()


def test_what_no_call_sets_is_read(made):
    case = made("ltx")
    lens = dl.Lens(case.pipe, info={"weights": "tiny"})

    def scaled(h, at):
        pipe = case.pipe
        known = [pipe.device, pipe.dtype, pipe.config, pipe.transformer.config.num_layers, pipe.vae.dtype]
        return h * len(known) / pipe.vae_spatial_compression_ratio

    lens.batch([(case.sample, 0)], 3, 3.0, edit=[(scaled, dl.at(site="latents", step=1))], **case.extra).run()


def test_a_hook_that_reads_what_a_call_sets_is_refused_too(made):
    case = type(made("sd3"))("sd3")
    pipe, lens = case.pipe, dl.Lens(case.pipe, info={"weights": "tiny"})

    def hook(module, args, outputs):
        return tuple(x * (1 + 0.1 * pipe.guidance_scale) for x in outputs)

    batch = lens.batch([(case.sample, 0)], 3, 3.0, **case.extra)
    batch.run()
    handle = pipe.transformer.transformer_blocks[0].register_forward_hook(hook)
    lens.run(case.sample, steps=3, cfg_scale=3.0, **case.extra)
    with pytest.raises(dl.PlanError, match=r"guidance_scale, which a call of the pipeline sets"):
        lens.batch([(case.sample, 0)], 3, 3.0, **case.extra).run()
    handle.remove()


def test_a_pipeline_is_of_its_own_class_in_a_batch_and_other_threads_read_what_they_like(made):
    case = made("ltx")
    pipe, kind, lens = case.pipe, type(case.pipe), dl.Lens(case.pipe, info={"weights": "tiny"})
    lens.run(case.sample, steps=3, cfg_scale=3.0, **case.extra)
    seen = []

    def edit(h, at):
        reader = threading.Thread(target=lambda: seen.append(pipe.guidance_scale))
        reader.start()
        reader.join()
        return h * (0.5 if type(pipe) is kind and pipe.__class__ is kind else 1)

    placed = [(edit, dl.at(site="latents", step=1))]
    truth = lens.run(case.sample, steps=3, cfg_scale=3.0, edit=placed, record=[dl.x0], **case.extra)["x0"]
    batch = lens.batch([(case.sample, 0)], 3, 3.0, edit=placed, record=[dl.x0], **case.extra)
    np.testing.assert_allclose(batch.run()[0]["x0"], truth, rtol=0, atol=2e-5)
    assert set(seen) == {3.0} and "__getattribute__" not in vars(kind)


def test_after_an_interrupt_everything_stands_as_it_did(made):
    case = made("ltx")
    pipe, lens = case.pipe, dl.Lens(case.pipe, info={"weights": "tiny"})

    def interrupt(h, at):
        raise KeyboardInterrupt

    batch = lens.batch([(case.sample, 0)], 3, 3.0, edit=[(interrupt, dl.at(layer=0, step=1))], **case.extra)
    before = dict(vars(pipe.scheduler))
    with pytest.raises(KeyboardInterrupt):
        batch.run()
    after = vars(pipe.scheduler)
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert "__getattribute__" not in vars(type(pipe))
