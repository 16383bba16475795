"""The organism's text side: a fixed vocabulary and frozen embeddings, with the interfaces of Wan's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# fmt: off
WORDS = [
    "<pad>", "<end>", "<unknown>", "solve", "the", "maze", "go", "to", "one", "goal", "circle", "disc",
    "square", "complete", "pattern", "roll", "ball", "behind", "bar",
]
# fmt: on
LENGTH = 8


class Tokenizer:
    """Splits a prompt into known words, case and punctuation aside."""

    def __call__(self, prompt: str | list[str] | tuple[str, ...], **_: Any) -> tuple[Tensor, Tensor]:
        """Return the ids [prompt, token] and their mask, padded to a fixed length."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
        for row, text in enumerate(prompts):
            words = "".join(c if c.isalnum() else " " for c in text.lower()).split()[: LENGTH - 1]
            known = [WORDS.index(w) if w in WORDS else WORDS.index("<unknown>") for w in words]
            ids[row, : len(words) + 1] = torch.tensor([*known, WORDS.index("<end>")])
        return ids, (ids != 0).long()


class TextEncoder(nn.Module):
    """Looks every word up in a frozen table.

    Args:
        channels: size of an embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(len(WORDS), channels))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings [prompt, token, channel] of ids [prompt, token], zero where masked."""
        table: Tensor = self.table  # type: ignore[assignment]
        return table[ids] * mask[..., None].to(table.dtype)
