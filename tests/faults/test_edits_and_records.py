"""An edit does what it says, in place or not, in a run and in a batch; a record never changes what it reads."""

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.plan.plan import Placed

SITES = ["block", "block_in", "self_attn", "cross_attn", "ffn", "q", "k", "v", "latents", "velocity", "x0"]
OUTSIDE = {"latents", "velocity", "x0"}
CLOSE = {"rtol": 0, "atol": 2e-5}  # float32, another order of summation


def pure(h, at):
    return 0.5 * h


def in_place(h, at):
    h *= 0.5
    return h


def one_frame_in_place(h, at):
    h[0] = 0
    return h


def one_frame(h, at):
    return torch.cat([torch.zeros_like(h[:1]), h[1:]])


def place(site, **region):
    return dl.at(site=site, **({} if site in OUTSIDE else {"layer": 1}), step="1-", **region)


def last_latents(batch, edits):
    x = batch.noise
    for step in range(batch.steps):
        x = batch.step(step, x, edits=[edits] * len(batch.pairs)).latents
    return x


def run_of(lens, sample, edits):
    return lens.run(sample, 3, steps=3, cfg_scale=2.0, edit=edits, record=[dl.x0])


@pytest.fixture(scope="module")
def clean(pipe, sample):
    """x0 of the run without edits."""
    return run_of(dl.Lens(pipe), sample, [])["x0"].values


@pytest.fixture(scope="module")
def batch(pipe, sample):
    """A batch without edits of its own, for single steps."""
    return dl.Lens(pipe).batch([(sample, 3), (sample, 4)], steps=3, cfg_scale=2.0)


@pytest.mark.parametrize("region", [{}, {"y": 0}, {"frame": 1, "x": 0}], ids=["all", "row", "cells"])
@pytest.mark.parametrize("site", SITES)
def test_an_edit_in_place_is_the_pure_one_in_a_run_and_in_a_batch(lens, sample, clean, batch, site, region):
    where = place(site, **region)
    runs = [run_of(lens, sample, [(f, where)]) for f in (pure, in_place)]
    assert np.array_equal(runs[0]["x0"].values, runs[1]["x0"].values)
    assert np.array_equal(runs[0].video, runs[1].video)
    assert not np.array_equal(runs[0]["x0"].values, clean)
    rows = [last_latents(batch, [Placed(f, where)]) for f in (pure, in_place)]
    assert torch.equal(*rows)
    last = torch.from_numpy(np.array(runs[0]["x0"].isel(step=-1).values)).permute(3, 0, 1, 2)
    assert torch.allclose(rows[0][0], last, **CLOSE)


@pytest.mark.parametrize("site", ["block", "x0", "latents"])
def test_what_is_written_outside_the_region_does_not_count(lens, sample, site):
    where = place(site, y=0)
    written = run_of(lens, sample, [(one_frame_in_place, where)])
    meant = run_of(lens, sample, [(one_frame, where)])
    both = run_of(lens, sample, [(one_frame, place(site, frame=0, y=0))])
    assert np.array_equal(written["x0"].values, meant["x0"].values)
    assert np.array_equal(written["x0"].values, both["x0"].values)


def test_an_edit_that_returns_the_value_it_was_given_after_writing_elsewhere_leaves_the_rest_alone(
    lens, sample
):
    """A row of the grid is zeroed in place; the hidden states of all other rows are those of the clean run."""

    def zeroed(h, at):
        h[:] = 0
        return h

    clean, edited = (
        lens.run(sample, steps=1, cfg_scale=1.0, record=[(dl.hidden, dl.at(layer=0))], edit=edits)[
            "hidden"
        ].values
        for edits in ([], [(zeroed, dl.at(layer=0, y=0))])
    )
    assert not edited[..., 0, :, :].any()
    assert np.array_equal(edited[..., 1:, :, :], clean[..., 1:, :, :])


IDENTITIES = {
    "same": lambda h, at: h,
    "copy": lambda h, at: h.clone(),
    "in place": lambda h, at: h.mul_(1),
    "noise of scale 0": dl.add_noise(scale=0.0),
    "scale 1": dl.scale(factor=1.0),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_edits_everywhere_leave_a_run_and_a_batch_bit_identical(lens, pipe, sample, run_bare, name):
    edits = [(IDENTITIES[name], dl.at(site=site)) for site in SITES]
    run = lens.run(sample, steps=3, cfg_scale=2.0, edit=edits)
    assert np.array_equal(run.video, run_bare(pipe, sample, steps=3, cfg_scale=2.0))
    batch = lens.batch([(sample, 0), (sample, 1)], steps=3, cfg_scale=2.0)
    assert torch.equal(last_latents(batch, [Placed(*edit) for edit in edits]), last_latents(batch, []))


@dl.keeps("channel")
def centred_in_place(h):
    h -= h.mean()
    return h.mean((0, 1, 2))


@dl.keeps("channel")
def centred_below_autograd(h):
    h.data -= 1
    return h.mean((0, 1, 2))


@dl.keeps("channel")
def written_by_numpy(h):
    h.numpy()[...] = 0
    return h.mean((0, 1, 2))


@pytest.mark.parametrize("record", [centred_in_place, centred_below_autograd, written_by_numpy])
@pytest.mark.parametrize("site", ["block", "latents", "x0"])
def test_a_record_that_changes_its_value_is_refused_in_a_run_and_in_a_batch(
    lens, pipe, sample, run_bare, left_behind, record, site
):
    before = run_bare(pipe, sample, steps=2)
    for work in (
        lambda: lens.run(sample, steps=2, cfg_scale=1.0, record=[(record, dl.at(site=site))]),
        lambda: lens.batch([(sample, 0)], steps=2, cfg_scale=1.0, record=[(record, dl.at(site=site))]).run(),
    ):
        with pytest.raises(dl.PlanError, match=rf"record {record.__name__} at {site}.*changes the value"):
            work()
    assert left_behind(pipe) == []
    assert np.array_equal(run_bare(pipe, sample, steps=2), before)


def test_under_inference_mode_a_run_is_itself_and_a_record_that_writes_is_refused(lens, sample):
    with torch.inference_mode():
        run = lens.run(sample, steps=2, record=[dl.energy, dl.x0], edit=[(in_place, dl.at(layer=1))])
        with pytest.raises(dl.PlanError, match="changes the value"):
            lens.run(sample, steps=2, record=[centred_in_place])
    plain = lens.run(sample, steps=2, record=[dl.energy, dl.x0], edit=[(in_place, dl.at(layer=1))])
    assert np.array_equal(run["energy"].values, plain["energy"].values)


def test_a_module_that_runs_twice_a_call_is_refused_in_a_run_and_in_a_batch(lens, pipe, sample):
    block = pipe.dit.blocks[1]
    forward = block.forward

    def twice(x, *rest):
        block.ffn(x)
        return forward(x, *rest)

    block.forward = twice
    edits = [(pure, dl.at(site="ffn", layer=1))]
    try:
        with pytest.raises(dl.CaptureError, match="fired twice"):
            lens.run(sample, steps=1, cfg_scale=1.0, edit=edits)
        with pytest.raises(dl.CaptureError, match="fired twice"):
            batch = lens.batch([(sample, 0)], steps=1, cfg_scale=1.0)
            batch.step(0, batch.noise, edits=[[Placed(*edits[0])]])
    finally:
        del block.forward


def test_a_site_that_holds_other_tokens_is_refused_in_a_run_and_in_a_batch(lens, pipe, sample):
    ffn = pipe.dit.blocks[1].ffn
    forward = ffn.forward

    def longer(x):
        out = forward(torch.cat([x, x[:, :1]], 1))
        return out

    block, inner = pipe.dit.blocks[1], pipe.dit.blocks[1].forward
    ffn.forward = longer
    block.forward = lambda x, *rest: x + 0 * block.ffn(x)[:, : x.shape[1]]
    edits = [(pure, dl.at(site="ffn", layer=1))]
    try:
        with pytest.raises(dl.CaptureError, match="does not hold the video's tokens"):
            lens.run(sample, steps=1, cfg_scale=1.0, edit=edits)
        with pytest.raises(dl.CaptureError, match="does not hold the video's tokens"):
            batch = lens.batch([(sample, 0)], steps=1, cfg_scale=1.0)
            batch.step(0, batch.noise, edits=[[Placed(*edits[0])]])
    finally:
        del ffn.forward, block.forward
    assert block.forward == inner


def test_the_model_that_runs_in_another_thread_is_not_recorded(lens, pipe, sample, run_bare):
    """A bare call of the same transformer while a run is traced leaves no value in the run."""
    import threading

    expected = lens.run(sample, steps=2, cfg_scale=1.0, record=[dl.energy])["energy"].values
    dit, inputs = pipe.dit, []

    def keep_inputs(module, args, kwargs):
        inputs.append((args, kwargs))

    handle = dit.blocks[0].register_forward_pre_hook(keep_inputs, with_kwargs=True)
    run_bare(pipe, sample, steps=1)
    handle.remove()
    args, kwargs = inputs[0]

    def run_a_block_elsewhere(h, at):
        thread = threading.Thread(target=lambda: dit.blocks[2](*args, **kwargs))
        thread.start()
        thread.join()
        return h

    run = lens.run(
        sample, steps=2, cfg_scale=1.0, record=[dl.energy], edit=[(run_a_block_elsewhere, dl.at(layer=1))]
    )
    assert np.array_equal(run["energy"].values, expected)


def test_a_record_that_changes_later_values_alone_changes_no_run(lens, pipe, sample, run_bare):
    """What torch does not count is compared the first time; afterwards a record still writes into a copy."""
    states = lens.run(sample, steps=2, cfg_scale=1.0, record=[dl.hidden])["hidden"].values
    most = (
        float(np.abs(states[0, 0, 0]).max()) * 1.0001
    )  # layer 0 of step 0 passes as it is, later ones do not

    @dl.keeps("channel")
    def clipped_later(h):
        array = h.numpy()
        np.clip(array, -most, most, out=array)
        return h.mean((0, 1, 2))

    run = lens.run(sample, steps=2, cfg_scale=1.0, record=[clipped_later, dl.energy])
    assert np.array_equal(run.video, run_bare(pipe, sample, steps=2))
    plain = lens.run(sample, steps=2, cfg_scale=1.0, record=[dl.energy])
    assert np.array_equal(run["energy"].values, plain["energy"].values)


@pytest.mark.parametrize("store", [False, True])
def test_what_a_record_keeps_of_its_value_is_not_what_is_stored(lens, sample, tmp_path, store):
    held = []

    @dl.keeps("frame", "y", "x", "channel")
    def grab(h):
        if held:
            held[0] += h.mean()
        held.append(h)
        return h

    options = {"steps": 3, "cfg_scale": 1.0, "store": tmp_path if store else None}
    right = lens.run(sample, record=[(dl.hidden, dl.at(layer=1))], **options)["hidden"].values
    run = lens.run(sample, record=[(grab, dl.at(layer=1))], **options)
    for value in held:
        value.zero_()
    np.testing.assert_array_equal(run["grab"].values, right)


def test_videos_that_a_decoder_makes_in_one_buffer_stay_apart():
    frames = np.zeros((1, 2, 3, 3, 3), np.uint8)

    def decode(latents):
        frames[...] = int(latents.mean().sigmoid() * 255)
        return frames

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])}).requires_grad_(
        False
    )

    def forward(model, x, t):
        return model["layers"][0](x.flatten(2).mT).mT.reshape(x.shape)

    size = {"latent": lambda sample: (4, 2, 3, 3), "grid": lambda latent: latent[1:]}
    lens = dl.blocks(model, "layers", forward=forward, decode=decode, **size)
    small = dl.Sample(prompt="a", size=(3, 3), num_frames=2)
    later = [lens.run(small, seed, steps=2) for seed in range(3)]
    at_once = [lens.run(small, seed, steps=2).video for seed in range(3)]
    assert all(np.array_equal(run.video, video) for run, video in zip(later, at_once, strict=True))


def test_records_see_the_velocity_that_an_edit_of_x0_becomes(tiny_pipe, sample):
    pipe, seen = tiny_pipe(), []
    lens, step = dl.Lens(pipe), pipe.scheduler.step

    def spy(v, t, x, **more):
        seen.append(v[0].permute(1, 2, 3, 0).numpy().copy())
        return step(v, t, x, **more)

    pipe.scheduler.step = spy
    edit = [(dl.zero(), dl.at(site="x0", step=1, frame=0))]
    run = lens.run(sample, steps=3, record=[dl.velocity, dl.x0], edit=edit)
    np.testing.assert_array_equal(run["velocity"].values, np.stack(seen))
    implied = run["latents"] - run["x0"].sigma * run["velocity"]
    np.testing.assert_allclose(run["x0"].values, implied.transpose(*run["x0"].dims).values, atol=1e-5)


def test_an_edit_of_x0_leaves_other_rows_and_cells_as_they_are(tiny_pipe, sample):
    lens = dl.Lens(tiny_pipe(dtype=torch.bfloat16))
    batch = lens.batch([(sample, 0), (sample, 1)], steps=3, cfg_scale=1.0)
    plain = batch.step(1, batch.noise)
    placed = Placed(dl.scale(factor=0.5), dl.at(site="x0", frame=0))
    edited = batch.step(1, batch.noise, edits=[[placed], []])
    assert torch.equal(edited.latents[1], plain.latents[1])
    assert torch.equal(edited.latents[0, :, 1:], plain.latents[0, :, 1:])
    assert not torch.equal(edited.latents[0, :, 0], plain.latents[0, :, 0])


def test_a_batch_steps_with_its_own_edits(lens, sample):
    edits = [(dl.zero(), dl.at(site="ffn", layer=1))]
    batch = lens.batch([(sample, 0)], steps=2, cfg_scale=1.0, edit=edits, record=[dl.x0])
    stepped, plain = (batch.step(0, batch.noise, edits=e) for e in (None, [[]]))
    x0 = torch.from_numpy(batch.run()[0]["x0"].isel(step=0).values)
    torch.testing.assert_close(stepped.x0[0].permute(1, 2, 3, 0), x0, **CLOSE)
    assert not torch.equal(stepped.x0, plain.x0)


def test_a_place_without_cells_and_a_dict_of_places_are_refused(lens, sample):
    mask = np.zeros((3, 3, 2), bool)
    mask[1, 0, 0] = True
    with pytest.raises(dl.PlanError, match="no cell of the grid"):
        lens.run(sample, steps=1, edit=[(dl.zero(), dl.at(layer=1, frame=0, mask=mask))])
    with pytest.raises(dl.PlanError, match="or a list of these"):
        lens.run(sample, steps=1, edit={dl.zero(): dl.at(layer=1)})


def test_a_watched_module_that_runs_twice_is_refused(tiny_pipe, sample):
    lens = dl.Lens(tiny_pipe())
    block, batch = lens.pipe.dit.blocks[1], lens.batch([(sample, 0)], steps=2, cfg_scale=1.0)
    forward = block.forward

    def twice(*args, **more):
        block.ffn(args[0] * 0)
        return forward(*args, **more)

    block.forward = twice
    with pytest.raises(dl.CaptureError, match="is watched, and ran twice"):
        batch.step(0, batch.noise, watch=[("ffn", "cond", 1)])
