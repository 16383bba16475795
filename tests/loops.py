"""What tests of runs share: a loop of a user's own around a model of their own, and a record that interrupts a run."""

import os

import numpy as np
import torch
from torch import nn

import dit_lens as dl


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.mlp(x))


class Model(nn.Module):
    """Latents [row, 2, 2, 4, 4] to their velocity; a token is one position; the branch shifts it."""

    def __init__(self, width=8, layers=3):
        super().__init__()
        self.into, self.out = nn.Linear(2, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x, t, shift):
        h = self.into(x.flatten(2).transpose(1, 2)) + shift + (t / 1000)[:, None, None]
        for block in self.blocks:
            h = block(h)
        return self.out(h).transpose(1, 2).reshape(x.shape)


SHIFT = {"cond": 0.5, "uncond": 0.0}
SAMPLE = dl.Sample(prompt="anything", size=(16, 16), num_frames=5)
SIGMAS = [1.0, 0.75, 0.5, 0.25]
SCALE = 3.0


def own_lens():
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False)
    return dl.blocks(
        model,
        "blocks",
        latent=lambda sample: (2, 2, 4, 4),
        grid=lambda latent: latent[1:],
        condition=lambda sample, branch: {"shift": torch.tensor([[[SHIFT[branch]]]])},
        steps=4,
        cfg_scale=SCALE,
    )


@torch.no_grad()
def sampled(lens, loop, seed=0):
    """Euler's steps, written by a user."""
    model = lens.pipe.dit
    x = torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    for number, after in enumerate([*SIGMAS[1:], 0.0]):
        with loop.step(x) as step:
            v = {}
            for branch in loop.branches:
                with step.call(branch):
                    v[branch] = model(step.latents, torch.tensor([step.timestep]), SHIFT[branch])
            velocity = step.velocity(v["uncond"] + SCALE * (v["cond"] - v["uncond"]))
            start = step.latents
        assert step.number == number and step.sigma == SIGMAS[number]
        x = start + velocity * (after - step.sigma)
    return x


class Interrupted(Exception):
    pass


def interruptible():
    """Return a record that raises after some calls. Nothing that names it counts them: the environment does."""

    @dl.keeps("frame", "y", "x")
    def guarded(h):
        left = int(os.environ["CALLS_LEFT"])
        if left == 0:
            raise Interrupted
        os.environ["CALLS_LEFT"] = str(left - 1)
        return h[..., 0]

    return guarded


def same(a, b):
    assert set(a.names) == set(b.names)
    for name in a.names:
        assert np.array_equal(a[name].values, b[name].values, equal_nan=a[name].dtype.kind == "f"), name
