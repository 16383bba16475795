"""What tests of gradients share: small models in float64, metrics, and derivatives by finite differences."""

import functools

import torch
from torch import nn

import dit_lens as dl
from dit_lens.families.latents import apart
from loops import SAMPLE, SHIFT, Model


class LinearBlock(nn.Module):
    """A block whose output is linear in its input."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        return x + 0.3 * self.mlp(x)


def lens_on(linear=False, model=None, **options):
    """Return a lens on the model of `loops.py`, two branches, in float64."""
    torch.manual_seed(0)
    model = model or Model()
    if linear:
        model.blocks = nn.ModuleList(LinearBlock(8) for _ in range(3))
    return dl.blocks(
        model.double().eval().requires_grad_(False),
        "blocks",
        latent=lambda sample: (2, 2, 4, 4),
        grid=lambda latent: latent[1:],
        condition=lambda sample, branch: {"shift": torch.tensor([[[SHIFT[branch]]]])},
        sites={"mlp": "mlp"},
        **{"steps": 3, "cfg_scale": 3.0, **options},
    )


def two_rows(lens, **options):
    """Return a batch of two rows that differ in their noise."""
    return lens.batch([(SAMPLE, 0), (SAMPLE, 1)], **options)


def weighted(shape, power=1):
    """Return a metric: a weighted mean of the latents, or of a power of them."""
    weights = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(5))

    def metric(x0):
        return (x0**power * weights.to(x0)).mean()

    return metric


@functools.lru_cache(maxsize=2)
def starts_of(batch, row):
    """Return what every step of a row starts from."""
    x, starts = batch.noise[[row]], []
    for step in range(batch.steps):
        starts.append(x)
        x = batch.step(step, x, [row]).latents
    return starts


def state(batch, row, place):
    """Return a row's state at (site, step, branch, layer), [frame, y, x, channel]."""
    site, step, branch, layer = place
    stepped = batch.step(step, starts_of(batch, row)[step], [row], watch=[(site, branch, layer)])
    return stepped.states[site, branch, layer][0]


def measured(batch, metric, place, change, until, of="x0"):
    """Return the metric of row 1 where its state at a place is changed."""
    site, step, branch, layer = place
    at = dl.at(site=site, step=step, branch=branch, layer=layer)
    edits = [[(change, at)]]
    stepped = batch.step(step, starts_of(batch, 1)[step], [1], edits)
    for later in range(step + 1, until + 1):
        stepped = batch.step(later, stepped.latents, [1])
    return float(metric(apart(getattr(stepped, of))["video"][0]))


def slope(batch, metric, place, until, size, of="x0", token=None):
    """Return the derivative of the metric of row 1 along the way to row 0's state at a place, by central differences."""
    way = state(batch, 0, place) - state(batch, 1, place)
    if token is not None:
        mask = torch.zeros_like(way)
        mask[token] = 1
        way = way * mask
    above = measured(batch, metric, place, lambda h, at: h + size * way, until, of)
    below = measured(batch, metric, place, lambda h, at: h - size * way, until, of)
    return (above - below) / (2 * size)
