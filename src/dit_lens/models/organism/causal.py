"""Self-attention that looks back: a token sees the tokens of its own latent frame and of earlier ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffsynth.models.wan_video_dit import SelfAttention, rope_apply
from einops import rearrange
from torch import Tensor, nn


class MaskedAttention(nn.Module):
    """Attention of queries, keys and values, [row, token, channel], where a mask [token, token] lets it see.

    Args:
        num_heads: that the channels are divided into.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend."""
        q, k, v = (rearrange(t, "b s (n d) -> b n s d", n=self.num_heads) for t in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b n s d -> b s (n d)")


class CausalSelfAttention(SelfAttention):
    """DiffSynth's self-attention of Wan with a mask over frames. Its weights have the same names."""

    def __init__(self, dim: int, num_heads: int, eps: float = 1e-6) -> None:
        super().__init__(dim, num_heads, eps)
        self.attn = MaskedAttention(num_heads)

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        """Attend, [row, token, channel]; `freqs` are the rotations of the tokens, [token, 1, channel] complex."""
        q = rope_apply(self.norm_q(self.q(x)), freqs, self.num_heads)
        k = rope_apply(self.norm_k(self.k(x)), freqs, self.num_heads)
        frame = frame_of_tokens(freqs)
        out: Tensor = self.o(self.attn(q, k, self.v(x), frame[:, None] >= frame))
        return out


def frame_of_tokens(freqs: Tensor) -> Tensor:
    """Return the number of each token's latent frame, [token].

    Tokens stand frame by frame. The first rotation of a token is by the number of its frame alone, one radian a frame, so
    that a frame begins where it changes.
    """
    first = freqs[:, 0, 0]
    begins = torch.zeros(len(first), dtype=torch.long, device=first.device)
    begins[1:] = first[1:] != first[:-1]
    return begins.cumsum(0)


def make_causal(dit: Any) -> None:
    """Put causal self-attention into every block of a `WanModel`; the weights stay."""
    for block in dit.blocks:
        old = block.self_attn
        new = CausalSelfAttention(old.dim, old.num_heads, old.norm_q.eps)
        new.load_state_dict(old.state_dict())
        block.self_attn = new.to(old.q.weight)
