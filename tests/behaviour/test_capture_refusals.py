"""A captured loop that does something else than it tells is refused: in no case is a number wrong without a word."""

import pytest
import torch
from torch import nn

import dit_lens as dl
from dit_lens.errors import CaptureError

SIGMAS = [1.0, 0.6, 0.3]


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))}).requires_grad_(False)


@pytest.fixture
def bare(layers):
    return dl.blocks(layers, "layers", latent=lambda s: (4, 2, 3, 3), grid=lambda latent: latent[1:])


def velocity_of(layers, x):
    h = x.flatten(2).mT
    for layer in layers["layers"]:
        h = layer(h)
    return h.mT.reshape(x.shape)


def capture(lens, layers, advance, sigmas=SIGMAS, **options):
    with lens.capture(sigmas, record=[dl.latents, dl.x0, dl.velocity], **options) as loop:
        x = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        for after in [*sigmas[1:], 0.0]:
            with loop.step(x) as step:
                with step.call():
                    v = velocity_of(layers, step.latents)
                x = advance(step, x, v, after - step.sigma)
    return loop.run


def right(step, x, v, length):
    return step.latents + length * step.velocity(v)


def in_place(step, x, v, length):
    x.add_(length * v)
    step.velocity(v)
    return x


def from_its_own(step, x, v, length):
    return x + length * step.velocity(v)


def test_x0_is_of_the_latents_that_the_step_started_from(bare, layers):
    run = capture(bare, layers, right)
    x, v = torch.tensor(run["latents"].values), torch.tensor(run["velocity"].values)
    sigmas = torch.tensor(run["latents"].sigma.values[: len(SIGMAS)], dtype=torch.float32)
    expected = x[: len(SIGMAS)] - sigmas.view(-1, *[1] * (x.ndim - 1)) * v
    torch.testing.assert_close(torch.tensor(run["x0"].values), expected)
    with pytest.raises(CaptureError, match="changed in place before their velocity was told"):
        capture(bare, layers, in_place)


def test_a_loop_that_goes_on_from_latents_without_their_edit_is_refused(bare, layers):
    edit = [(dl.scale(factor=3.0), dl.at(site="latents", step=1))]
    capture(bare, layers, right, edit=edit)
    with pytest.raises(CaptureError, match="went on with the latents of video from before the edit"):
        capture(bare, layers, from_its_own, edit=edit)


def test_x0_cannot_be_edited_where_there_is_no_noise(bare, layers):
    edit = [(dl.scale(factor=0.5), dl.at(site="x0"))]
    capture(bare, layers, right, edit=edit)
    with pytest.raises(CaptureError, match="x0 is edited where the noise level is 0"):
        capture(bare, layers, right, sigmas=[1.0, 0.0], edit=edit)


def test_the_expert_that_runs_is_the_one_that_was_told(tiny_pipe, sample):
    pipe = tiny_pipe(experts=2)
    lens = dl.Lens(pipe)
    batch = lens.batch([(sample, 0)], steps=2, cfg_scale=1.0)
    given = batch.inputs.of_branch("cond", [0])

    def run(told, **entries):
        with torch.no_grad(), lens.capture([0.9, 0.3], **{"record": [dl.energy], **entries}) as loop:
            x = batch.noise
            for dit, expert in zip((pipe.dit, pipe.dit2), told, strict=True):
                with loop.step(x, expert=expert) as step:
                    with step.call():
                        v = pipe.model_fn(
                            **{**given, "dit": dit, "latents": x, "timestep": torch.tensor([step.timestep])}
                        )
                    step.velocity(v)
        return loop.run

    assert [*run(("high", "low"))["energy"].expert.values] == ["high", "low"]
    never = dl.at(layer=0, expert="low", step=0)
    for entries in ({"edit": [(dl.zero(), never)]}, {"record": [(dl.energy, never)]}):
        with pytest.raises(CaptureError, match=r"at\(.*\) never fired in this run: no step had its sigma"):
            run(("high", "low"), **entries)
    with pytest.raises(CaptureError, match=r"expert 'low' runs in step 1, .* loop.step\(x, expert='low'\)"):
        run((None, None))


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_edit_that_the_backward_pass_would_not_make_again_is_refused(reentrant):
    """Gradient checkpointing runs a block again when the capture has ended; without gradients it does no harm."""
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

        def forward(self, x, t):
            h = x.flatten(2).mT
            for layer in self.layers:
                h = checkpoint(layer, h, use_reentrant=reentrant)
            return h.mT.reshape(x.shape)

    net = Net()
    toy = dl.blocks(net, "layers", latent=lambda s: (4, 2, 3, 3), grid=lambda latents: latents[1:])
    x = torch.randn(1, 4, 2, 3, 3)

    def captured(start, **asked):
        with toy.capture([1.0], **asked) as loop:
            with loop.step(start) as step:
                with step.call():
                    velocity = net(step.latents, 0)
                return step.velocity(velocity)

    edit = [(dl.scale(factor=3.0), dl.at(layer=1))]
    with pytest.raises(CaptureError, match="gradient checkpointing"):
        captured(x.clone().requires_grad_(), edit=edit)
    captured(x.clone().requires_grad_(), record=[dl.energy])
    with torch.no_grad():
        captured(x, edit=edit)


def test_a_step_inside_of_a_step_is_refused_and_the_outer_one_goes_on(bare, layers):
    x = torch.randn(1, 4, 2, 3, 3)
    with bare.capture([1.0], record=[dl.x0]) as loop:
        with loop.step(x) as step:
            with pytest.raises(CaptureError, match="step 0 has begun already"), loop.step(x):
                pass
            with step.call():
                step.velocity(velocity_of(layers, step.latents))
    assert loop.run["x0"].sizes["step"] == 1


def test_x0_of_the_last_step_is_where_a_loop_in_double_precision_ends(bare, layers):
    layers.double()
    x = torch.randn(1, 4, 2, 3, 3, dtype=torch.float64)
    with bare.capture(SIGMAS, record=[dl.x0]) as loop:
        for after in [*SIGMAS[1:], 0.0]:
            with loop.step(x) as step:
                with step.call():
                    v = velocity_of(layers, step.latents)
                x = right(step, x, v, after - step.sigma)
    last = torch.tensor(loop.run["x0"].isel(step=-1).values).permute(3, 0, 1, 2)
    assert (last - x[0]).abs().max() < 1e-15
