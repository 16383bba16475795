"""x_s is what the model sees: frames that a pipeline puts in are labelled with what is there, and do not move."""

import numpy as np
import pytest
import torch

import dit_lens as dl

pytest.importorskip("diffusers")

STEPS = 3


class Given:
    """A pipeline that puts in its first latent frame, a sample for it, and the keywords of its bare call."""

    def __init__(self, pipe, sample, extra, cfg_scale, scale):
        self.pipe, self.sample, self.extra, self.cfg_scale, self.scale = pipe, sample, extra, cfg_scale, scale

    def bare(self):
        size = {
            "height": self.sample.height,
            "width": self.sample.width,
            "num_frames": self.sample.num_frames,
        }
        texts = {"prompt": self.sample.prompt, "negative_prompt": self.sample.negative_prompt}
        return {
            "image": self.sample.image, **size, **texts, **self.extra, self.scale: self.cfg_scale,
            "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), "output_type": "np",
        }  # fmt: skip

    def run(self, **options):
        lens = dl.Lens(self.pipe)
        return lens.run(self.sample, steps=STEPS, cfg_scale=self.cfg_scale, **self.extra, **options)


@pytest.fixture(scope="module")
def cases(build, pipes):
    def sample(size):
        texts = {"prompt": "a cat", "negative_prompt": "dog runs"}
        return dl.Sample(**texts, image=pipes.gray(size), num_frames=9, size=size)

    hunyuan = {**pipes.hunyuan_keywords()}
    return {
        "ti2v": Given(build("ti2v"), sample((32, 48)), pipes.SHORT, 3.0, "guidance_scale"),
        "token_replace": Given(
            build("hunyuan_image", "token_replace"), sample((16, 32)), hunyuan, 2.0, "true_cfg_scale"
        ),
    }


@pytest.fixture(params=["ti2v", "token_replace"])
def case(request, cases):
    return cases[request.param]


def grid(x):
    return x[0].permute(1, 2, 3, 0).numpy()


def test_latents_are_what_the_model_is_given_and_the_last_x0_is_the_video(case, watch_bare):
    blocks = case.pipe.transformer.blocks if hasattr(case.pipe.transformer, "blocks") else []
    watch, out = watch_bare(case.pipe, blocks, **case.bare())
    lens = dl.Lens(case.pipe)
    run = case.run(record=[dl.x0, dl.velocity, dl.hidden])
    assert np.array_equal(run.video, (out.frames[0] * 255).round())  # nothing changes
    assert len(watch.inputs) == 2 * STEPS
    for step in range(STEPS):
        seen = grid(watch.inputs[2 * step]["hidden_states"])
        assert np.array_equal(run["latents"].values[step], seen)
        assert np.array_equal(grid(watch.inputs[2 * step + 1]["hidden_states"]), seen)
        _, sample, output, _ = watch.steps[step]
        moved = sample.shape[2] - 2  # the first of three frames is not stepped, or stepped in vain
        velocity = run["velocity"].values[step]
        assert np.array_equal(velocity[1:], grid(output)[moved:])
        assert not velocity[0].any()
        assert np.array_equal(run["x0"].values[step][0], seen[0])
        for layer in range(len(blocks)):
            for call, branch in enumerate(("cond", "uncond")):
                state = run["hidden"].sel(step=step, branch=branch, layer=layer).values
                expected = watch.states[2 * step + call][layer][0].numpy()
                assert np.array_equal(state.reshape(expected.shape), expected)
    assert np.array_equal(
        run["latents"].values[0][0], run["latents"].values[-1][0]
    )  # the image's, at every step
    assert np.array_equal(lens.decode(run["x0"].isel(step=-1)), run.video)


def test_an_edit_of_the_given_frame_reaches_the_model_at_its_step_alone(case):
    plain = case.run(record=[dl.x0, dl.hidden])

    def brighter(h, at):
        return h + 0.5

    place = dl.at(site="latents", step=1, frame=0)
    run = case.run(record=[dl.x0, dl.hidden], edit=[(brighter, place)])
    expected = plain["latents"].values.copy()
    assert np.array_equal(run["latents"].values[1][0], expected[1][0] + np.float32(0.5))
    assert np.array_equal(run["latents"].values[1][1:], expected[1][1:])
    changed = (run["hidden"].load() != plain["hidden"].load()).any(("frame", "y", "x", "channel", "layer"))
    assert not changed.sel(step=0).any() and changed.sel(step=1).all()  # both branches
    assert np.array_equal(run["latents"].values[2][0], expected[2][0])  # the pipeline puts it in again
    assert not np.array_equal(run["latents"].values[2][1:], expected[2][1:])


def test_an_edit_beside_the_given_frame_is_what_the_pipeline_would_have_gone_on_from(case):
    original, first = case.pipe.scheduler.step, []

    def step(*args, **kwargs):
        out = original(*args, **kwargs)
        if first:
            return out
        first.append(True)
        return (out[0] + 0.5, *out[1:])

    case.pipe.scheduler.step = step
    try:
        expected = case.pipe(**case.bare()).frames[0]
    finally:
        del case.pipe.scheduler.step
    place = dl.at(site="latents", step=1, frame="1-2")
    run = case.run(edit=[(lambda h, at: h + 0.5, place)])
    assert np.array_equal(run.video, (expected * 255).round())


def test_an_edit_of_x0_that_would_do_nothing_says_so(case):
    with pytest.raises(dl.PlanError, match=r"latent frames \[0\].*does not move.*dl\.at\(frame="):
        case.run(edit=[(lambda h, at: h + 0.5, dl.at(site="x0", step=1))])
    with pytest.raises(dl.PlanError, match="the edit would do nothing there"):
        case.run(edit=[(lambda h, at: h + 0.5, dl.at(site="velocity"))])
    run = case.run(record=[dl.x0], edit=[(lambda h, at: h * 0 + 0.3, dl.at(site="x0", step=2, frame="1-2"))])
    assert np.allclose(run["x0"].values[2][1:], 0.3, atol=1e-6)
    assert np.array_equal(dl.Lens(case.pipe).decode(run["x0"].isel(step=2)), run.video)


def test_identity_edits_change_nothing(case):
    plain = case.run()
    places = [dl.at(site=site) for site in ("latents", "velocity", "x0", "block")]
    run = case.run(edit=[(lambda h, at: h.clone(), place) for place in places])
    assert np.array_equal(run.video, plain.video)


def test_a_batch_holds_the_given_frame(case):
    lens = dl.Lens(case.pipe)
    run = case.run(record=[dl.x0])
    batch = lens.batch([(case.sample, 0)], steps=STEPS, cfg_scale=case.cfg_scale, **case.extra)
    x = batch.noise
    for step in range(STEPS):
        assert np.allclose(grid(x), run["latents"].values[step], atol=1e-5)
        out = batch.step(step, x)
        assert np.allclose(grid(out.x0), run["x0"].values[step], atol=1e-5)
        x = out.latents
    assert np.abs(batch.decode(x)[0].astype(int) - run.video.astype(int)).max() <= 1


def test_part_of_a_frame_put_in_is_an_error(cases):
    """A mask inside a frame: what is there is neither x_s nor given."""
    case = cases["ti2v"]
    original = case.pipe.prepare_latents

    def prepare_latents(*args, **kwargs):
        latents, condition, mask = original(*args, **kwargs)
        mask[:, :, 0, 0] = 1
        return latents, condition, mask

    case.pipe.prepare_latents = prepare_latents
    try:
        with pytest.raises(dl.CaptureError, match=r"latent frames \[0\], in a part of a frame"):
            case.run()
    finally:
        del case.pipe.prepare_latents
