"""A model that says what it must do: one layer's cross-attention reads the prompt, and the last step makes the video."""

import torch
from torch import nn

import dit_lens as dl

READS = 1
"""The layer whose cross-attention says what the prompt asks; none other does."""
SAID = {"dark": -1.0, "bright": 1.0}


class Reader(nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def forward(self, h, told):
        return told.expand_as(h) if self.reads else torch.zeros_like(h)


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.cross, self.ffn = Reader(layer == READS), nn.Linear(4, 4)
        nn.init.zeros_(self.ffn.weight)

    def forward(self, h, told):
        h = h + self.cross(h, told)
        return h + self.ffn(h)


class Model(nn.Module):
    """Its x0 is what the last block says, whatever the latents: of swaps, the end shows the last step's alone."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(layer) for layer in range(3))

    def forward(self, x, timestep, told):
        h = torch.zeros_like(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, told)
        said = h.transpose(1, 2).unflatten(2, x.shape[2:])
        return (x - said) / (timestep / 1000)[:, None, None, None, None]


def told(sample, branch):
    level = SAID[sample.prompt] if branch == "cond" else 0.0
    return {"told": level * torch.tensor([[[1.0, 0.5, 0.0, 1.0]]])}


def decode(latents):
    frames = (128 + 40 * latents[:, :3]).clamp(0, 255).permute(0, 2, 3, 4, 1).byte().numpy()
    return frames.repeat(8, 2).repeat(8, 3)


def reader():
    """Return a lens of it."""
    torch.manual_seed(0)
    return dl.blocks(
        Model().eval().requires_grad_(False),
        "blocks",
        latent=lambda sample: (4, sample.num_frames, 2, 2),
        grid=lambda size: size[1:],
        condition=told,
        decode=decode,
        sites={"cross_attn": "cross", "ffn": "ffn"},
        channels=4,
        steps=6,
        cfg_scale=2.0,
    )


def sample(prompt, name="0"):
    def scorer(video):
        is_bright = bool(video[..., 0].mean() > 128)
        return dl.Score(is_bright == (prompt == "bright"), 0.5, "bright" if is_bright else "dark")

    return dl.Sample(prompt, size=(16, 16), num_frames=2, id=name, scorer=scorer)
