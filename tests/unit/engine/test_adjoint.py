"""The adjoint: one graph's gradient in the memory of one step, which leaves nothing behind and changes nothing."""

import gc

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import dit_lens as dl
from gradients import lens_on, starts_of, state, two_rows, weighted
from loops import SCALE, SHIFT

SHAPE = (2, 2, 4, 4)


def one_graph(batch, model, metric, steps):
    """Return the products at every block, by one graph through all steps, written by hand."""
    start = starts_of(batch, 1)[0]
    keys = [(s, b, layer) for s in range(steps) for b in ("cond", "uncond") for layer in range(3)]
    shifts = {key: torch.zeros(1, 32, 8, dtype=torch.float64, requires_grad=True) for key in keys}
    x = start
    for step in range(steps):
        velocities = {}
        for branch in ("cond", "uncond"):
            time = batch.timesteps[step] / 1000
            h = model.into(x.flatten(2).transpose(1, 2)) + SHIFT[branch] + time
            for layer, block in enumerate(model.blocks):
                h = block(h) + shifts[step, branch, layer]
            velocities[branch] = model.out(h).transpose(1, 2).reshape(x.shape)
        v = velocities["uncond"] + SCALE * (velocities["cond"] - velocities["uncond"])
        x0 = x - batch.sigmas[step] * v
        after = batch.sigmas[step + 1] if step + 1 < batch.steps else 0.0
        x = x + v * (after - batch.sigmas[step])
    gradients = torch.autograd.grad(metric(x0[0]), [*shifts.values()])
    out = {}
    for key, gradient in zip(keys, gradients, strict=True):
        way = state(batch, 0, ("block", *key)) - state(batch, 1, ("block", *key))
        out[key] = (way * gradient[0].unflatten(0, (2, 4, 4))).sum(-1)
    return out


def test_through_three_steps_it_is_one_graph():
    lens, metric = lens_on(), weighted(SHAPE, power=3)
    batch = two_rows(lens)
    gain = batch.attribute(metric, until=2)
    expected = one_graph(batch, lens.pipe.dit, metric, 3)
    for (step, branch, layer), values in expected.items():
        got = gain.block.sel(step=step, branch=branch, layer=layer)
        np.testing.assert_allclose(got, values, rtol=1e-6, atol=1e-14)


def test_a_step_before_the_last_may_be_read():
    lens, metric = lens_on(steps=4), weighted(SHAPE, power=3)
    batch = two_rows(lens)
    gain = batch.attribute(metric, until=1, place=dl.at(step=0))
    expected = one_graph(batch, lens.pipe.dit, metric, 2)
    np.testing.assert_allclose(gain.block[0, 0, 2], expected[0, "cond", 2], rtol=1e-6, atol=1e-14)


class Held:
    """A tensor that a graph holds, counted as long as it does."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.nbytes
        Held.now += self.size
        Held.peak = max(Held.peak, Held.now)

    def __del__(self):
        Held.now -= self.size


def peak_of(work):
    """Return how many bytes graphs held at most while some work was done; none is left."""
    Held.now = Held.peak = 0
    with saved_tensors_hooks(Held, lambda held: held.tensor):
        work()
    assert Held.now == 0
    return Held.peak


def test_what_it_holds_does_not_grow_with_the_steps():
    peaks = []
    for steps in (2, 4, 12):
        batch = two_rows(lens_on(), steps=steps)
        peaks.append(peak_of(lambda b=batch: b.attribute(weighted(SHAPE), until=-1)))
    assert peaks[0] > 0 and peaks[1] == peaks[2] == peaks[0]


def test_blocks_that_run_again_hold_less_and_give_the_same():
    batch = two_rows(lens_on())
    edits = [[(dl.scale(factor=0.5), dl.at(site="mlp", layer=1))]] * 2  # inside of a block that runs again
    calls, results, peaks = [], [], []
    for by_blocks in (False, True):
        options = {"until": -1, "by_blocks": by_blocks, "edits": edits}
        attribute = lambda o=options: batch.attribute(weighted(SHAPE, 3), ["block", "mlp"], **o)  # noqa: E731
        peaks.append(peak_of(attribute))
        with batch.specimen.blocks(batch.specimen.dits["dit"])[1].mlp.register_forward_hook(
            lambda *_: calls.append(by_blocks)  # noqa: B023
        ):
            results.append(attribute())
    assert calls.count(True) > calls.count(False)
    assert peaks[1] < peaks[0]
    for name in ("block", "mlp"):
        assert float(abs(results[0][name]).max()) > 0
        np.testing.assert_array_equal(results[1][name], results[0][name])
    plain = batch.attribute(weighted(SHAPE, 3), ["block", "mlp"], until=-1)
    assert not np.allclose(plain.block, results[0].block)  # the edit did act


def tensors():
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"until": -1},
        {"check": 2},
        {"integrate": 1},
        {"by_blocks": True, "edits": [[], [dl.scale(factor=2.0)]]},
    ],
    ids=["through", "check", "integrate", "by blocks, with edits"],
)
def test_many_runs_leave_no_tensor_and_no_hook(options):
    lens = lens_on(steps=2)
    batch = two_rows(lens)
    place = dl.at(layer=[0, 2], branch="cond", step=0)
    bindings, counts = [], []
    runs = 100 if "until" in options else 20
    for n in range(runs):
        batch.attribute(weighted(SHAPE), ["block", "mlp"], place=place, **options)
        if n in (2, runs - 1):
            counts.append(tensors())
            bindings.append(len(batch._bindings))
    assert counts[0] == counts[1] and bindings[0] == bindings[1]
    modules = [*lens.pipe.dit.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)


def test_no_cycle_holds_a_graph():
    """Without the collector all of it goes: a graph at 14B would stay on the device until it comes by."""
    batch = two_rows(lens_on())
    batch.attribute(weighted(SHAPE), until=-1)
    gc.collect()
    gc.disable()
    try:
        peak_of(lambda: batch.attribute(weighted(SHAPE), ["block", "mlp"], until=-1, check=3))
    finally:
        gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_flags_of_the_model_stay_as_they_are(fails):
    lens = lens_on()
    model = lens.pipe.dit
    model.train()
    model.blocks[1].requires_grad_(True)
    model.out.weight.requires_grad_(True)
    batch = two_rows(lens)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    values = {name: p.clone() for name, p in model.named_parameters()}

    def metric(x0):
        assert not any(p.requires_grad for p in model.parameters())
        return x0.detach().mean() if fails else x0.mean()

    try:
        batch.attribute(metric, until=-1)
        assert not fails
    except dl.PlanError:
        assert fails
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())
    assert torch.is_grad_enabled()


def test_it_works_where_gradients_are_off_around_it():
    batch = two_rows(lens_on())
    with torch.no_grad():
        off = batch.attribute(weighted(SHAPE), until=-1, check=3)
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(off.block, batch.attribute(weighted(SHAPE), until=-1).block)


def test_a_batch_goes_on_as_before():
    batch = two_rows(lens_on())
    before = batch.step(0, batch.noise)
    batch.attribute(weighted(SHAPE), until=-1)
    after = batch.step(0, batch.noise)
    assert torch.equal(before.latents, after.latents) and not after.latents.requires_grad
