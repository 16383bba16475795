"""DiffSynth's `WanModel` written to be trained: the same parameters, by the same names, and the same outputs.

DiffSynth rotates in complex float64; here the rotation is real and in float32, and a block is one graph, so that `torch.compile`
fuses it. `tests/unit/training/test_network.py` compares the outputs and the gradients of the two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_lens.models import organism


class Attention(nn.Module):
    """Attention of tokens to each other, or to the words of the prompt."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))

    def forward(
        self, x: Tensor, keys: Tensor, turn: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return what the tokens x [row, token, channel] gather from others.

        Args:
            x: those that ask.
            keys: those that are asked, [row, token, channel].
            turn: cosine and sine of the rotation by position, [token, 1, channel pair]. None for none.
            mask: whether a token sees another, [token, token]. None for all.
        """
        q, k = self.norm_q(self.q(x)), self.norm_k(self.k(keys))
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, self.v(keys)))
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        q, k, v = (t.transpose(1, 2) for t in (q, k.type_as(v), v))
        out = F.scaled_dot_product_attention(q.type_as(v), k, v, attn_mask=mask)
        return self.o(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs of channels of x [row, token, head, channel] by angles [token, 1, pair]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


class Block(nn.Module):
    """One block of the DiT."""

    def __init__(self, dim: int, ffn: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = (Attention(dim, heads, eps) for _ in range(2))
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=eps, elementwise_affine=False) for _ in range(2))
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn), nn.GELU(approximate="tanh"), nn.Linear(ffn, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: Tensor, context: Tensor, time: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the tokens after the block, [row, token, channel]; time is [row, 6, channel]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + time).chunk(6, dim=1)
        own = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.self_attn(own, own, (cosine, sine), mask)
        x = x + self.cross_attn(self.norm3(x), context)
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Head(nn.Module):
    """Tokens to the velocity of their patches."""

    def __init__(self, dim: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return [row, token, patch channel]; time is [row, channel]."""
        shift, scale = (self.modulation + time[:, None]).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class Network(nn.Module):
    """The organism's DiT; its `state_dict` is that of DiffSynth's `WanModel`.

    Args:
        causal: a token sees those of its own and of earlier latent frames alone.
    """

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        config = organism.ORGANISMS["organism-full"].config
        dim, eps, heads = config["dim"], config["eps"], config["num_heads"]
        self.causal, self.frequencies = causal, config["freq_dim"]
        self.patch_embedding = nn.Conv3d(config["in_dim"], dim, config["patch_size"], config["patch_size"])
        self.text_embedding = nn.Sequential(
            nn.Linear(config["text_dim"], dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(self.frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        layers = (Block(dim, config["ffn_dim"], heads, eps) for _ in range(config["num_layers"]))
        self.blocks = nn.ModuleList(layers)
        self.head = Head(dim, 4 * config["out_dim"], eps)
        self.angles = _angles(dim // heads)
        self.turns: dict[Any, tuple[Tensor, Tensor]] = {}
        nn.init.zeros_(self.head.head.weight)
        nn.init.zeros_(self.head.head.bias)

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return the velocity, [row, channel, frame, y, x].

        Args:
            x: latents and their condition, [row, channel, frame, y, x].
            sigma: noise level of each row.
            context: embedded prompts, [row, token, channel].
        """
        time = self.time_embedding(waves(1000 * sigma, self.frequencies))
        words = self.text_embedding(context)
        tokens = self.patch_embedding(x)
        grid = tokens.shape[2:]
        tokens = (
            tokens.flatten(2).transpose(1, 2).float()
        )  # under autocast too: all blocks are then compiled once
        cosine, sine = self.turn(grid, x.device)
        frames = torch.arange(grid[0], device=x.device).repeat_interleave(grid[1] * grid[2])
        mask = frames[:, None] >= frames if self.causal else None
        steps = self.time_projection(time).unflatten(1, (6, -1))
        for block in self.blocks:
            tokens = block(tokens, words, steps, cosine, sine, mask)
        patches = "b (f h w) (y x c) -> b c f (h y) (w x)"
        return rearrange(self.head(tokens, time), patches, h=grid[1], w=grid[2], y=2, x=2)

    def turn(self, grid: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the rotation of each token of a grid (frame, y, x), [token, 1, pair]."""
        if (grid, device) in self.turns:
            return self.turns[grid, device]
        parts = []
        for n, (size, angles) in enumerate(zip(grid, self.angles, strict=True)):
            turned = torch.outer(torch.arange(size).double(), angles)
            shape = [1, 1, 1]
            shape[n] = size
            parts.append(turned.view(*shape, -1).expand(*grid, -1))
        turns = torch.cat(parts, -1).flatten(0, 2)[:, None]
        self.turns[grid, device] = turns.cos().float().to(device), turns.sin().float().to(device)
        return self.turns[grid, device]


def _angles(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the angle by which a position turns each pair of a head's channels: those of frame, y and x (Su et al. 2021)."""
    third = dim // 3
    widths = (dim - 2 * third, third, third)
    return tuple(10000.0 ** -(torch.arange(0, w, 2)[: w // 2].double() / w) for w in widths)  # type: ignore[return-value]


def waves(position: Tensor, channels: int) -> Tensor:
    """Return the sinusoidal embedding of positions [row], [row, channel] (Vaswani et al. 2017)."""
    half = channels // 2
    rates = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=position.device) / half)
    turns = torch.outer(position.double(), rates)
    return torch.cat([turns.cos(), turns.sin()], 1).to(position.dtype)
