"""Low-rank matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685), in the files that DiffSynth reads and writes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""Linear layers of a block that get them; those of DiffSynth's own training scripts."""


class LowRank(nn.Module):
    """A frozen linear layer with B A added to its weight.

    Args:
        base: the layer.
        rank: rows of A, columns of B.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (W + B A)^T + b."""
        return F.linear(x, self.base.weight + self.B @ self.A, self.base.bias)


def add(network: nn.Module, rank: int) -> None:
    """Freeze a network and give the linear layers of its blocks low-rank matrices, in place."""
    network.requires_grad_(False)
    for name, layer in list(network.named_modules()):
        if name.startswith("blocks.") and name.endswith(tuple(f".{target}" for target in TARGETS)):
            place, _, last = name.rpartition(".")
            setattr(network.get_submodule(place), last, LowRank(layer, rank))


def file_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices by parameter as DiffSynth names them in a file."""
    return {name[:-2] + _ENDS[name[-2:]]: value for name, value in values.items()}


def values_of(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices by parameter, of a file that names them as `file_of` does."""
    names = {end: letter for letter, end in _ENDS.items()}
    return {
        name.removesuffix(end) + letter: value.float()
        for name, value in file.items()
        for end, letter in names.items()
        if name.endswith(end)
    }


_ENDS = {".A": ".lora_A.default.weight", ".B": ".lora_B.default.weight"}
