"""The network that is trained is DiffSynth's: the same parameters, the same outputs, the same gradients."""

import pytest
import torch

from dit_lens.models import organism
from dit_lens.models.organism.causal import make_causal
from network import Network


@pytest.fixture(scope="module", params=[False, True], ids=["full", "causal"])
def both(request):
    """The two networks with the same weights, none of them zero, and DiffSynth's function that calls one."""
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    torch.manual_seed(0)
    ours = Network(causal=request.param)
    for parameter in ours.parameters():
        if parameter.ndim < 2 or parameter is ours.head.head.weight:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs = WanModel(**organism.ORGANISMS["organism-full"].config)
    theirs.load_state_dict(ours.state_dict())
    if request.param:
        make_causal(theirs)
    return ours, lambda x, sigma, context: model_fn_wan_video(
        dit=theirs, latents=x[:, :48], y=x[:, 48:], timestep=1000 * sigma, context=context
    )


@pytest.mark.parametrize("grid", [(4, 8, 8), (7, 12, 12), (1, 8, 12)])
def test_outputs_are_diffsynths(both, grid):
    ours, theirs = both
    x, sigma, context = torch.randn(2, 100, *grid), torch.tensor([0.9, 0.2]), torch.randn(2, 8, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, sigma, context), theirs(x, sigma, context), atol=2e-5, rtol=1e-4)


def test_gradients_are_diffsynths(both):
    x, sigma, context = torch.randn(2, 100, 3, 4, 4), torch.tensor([0.9, 0.2]), torch.randn(2, 8, 32)
    gradients = []
    for network in both:
        seen = x.clone().requires_grad_(True)
        with torch.enable_grad():  # nnsight, once imported, has a backward of its own
            gradients += torch.autograd.grad(network(seen, sigma, context).square().sum(), seen)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_new_networks_have_no_velocity():
    with torch.no_grad():
        out = Network()(torch.randn(1, 100, 2, 4, 4), torch.tensor([0.5]), torch.randn(1, 8, 32))
    assert torch.equal(out, torch.zeros_like(out))
