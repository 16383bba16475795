"""Self-attention that looks back: a token sees the tokens of its own latent frame and of earlier ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffsynth.models.wan_video_dit import SelfAttention, rope_apply
from einops import rearrange
from torch import Tensor


class CausalSelfAttention(SelfAttention):
    """DiffSynth's self-attention of Wan with a mask over frames. Its weights have the same names."""

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        """Attend, [row, token, channel]; `freqs` are the rotations of the tokens, [token, 1, channel] complex."""
        q = rope_apply(self.norm_q(self.q(x)), freqs, self.num_heads)
        k = rope_apply(self.norm_k(self.k(x)), freqs, self.num_heads)
        q, k, v = (rearrange(t, "b s (n d) -> b n s d", n=self.num_heads) for t in (q, k, self.v(x)))
        frame = frame_of_tokens(freqs)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=frame[:, None] >= frame)
        out: Tensor = self.o(rearrange(x, "b n s d -> b s (n d)"))
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
