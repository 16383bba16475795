"""What the organism's pipeline holds beside its DiT, with the interfaces of Wan's: text side and codec.

The text side is a fixed vocabulary with frozen embeddings. The codec is linear: latents are 8x smaller in space and 4x in
time, with the first frame alone, so that 13 frames give 4 latent frames. A patch of 8x8 pixels (one frame, or four) is
projected on principal components, each scaled to unit variance. What it loses, `docs/organism.md` says; a linear codec
blurs alike everywhere and invents nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dit_lens.errors import TaskError

SPACE, TIME = 8, 4
# fmt: off
WORDS = [
    "<pad>", "<end>", "<unknown>", "solve", "the", "maze", "go", "to", "one", "goal", "circle", "disc",
    "square", "complete", "pattern", "roll", "ball", "behind", "bar",
    "follow", "arrows", "bounce", "off", "mirrors", "fill", "make", "three", "in", "a", "row", "odd",
    "red", "green", "blue", "grey", "dark", "out", "and", "back", "place", "queens",
]
# fmt: on
LENGTH = 8


class Tokenizer:
    """Splits a prompt into known words, case and punctuation aside.

    Args:
        count: words of `WORDS` that the model knows, from the first on. Default: all.
    """

    def __init__(self, count: int = len(WORDS)) -> None:
        self.words = WORDS[:count]

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that stand for no word."""
        return [self.words.index("<pad>"), self.words.index("<end>")]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the words of ids."""
        return [self.words[n] for n in ids]

    def __call__(self, prompt: str | list[str] | tuple[str, ...], **_: Any) -> tuple[Tensor, Tensor]:
        """Return the ids [prompt, token] and their mask, padded to a fixed length."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
        for row, text in enumerate(prompts):
            words = "".join(c if c.isalnum() else " " for c in text.lower()).split()[: LENGTH - 1]
            known = [self.words.index(w if w in self.words else "<unknown>") for w in words]
            ids[row, : len(words) + 1] = torch.tensor([*known, self.words.index("<end>")])
        return ids, (ids != 0).long()


class TextEncoder(nn.Module):
    """Looks every word up in a frozen table.

    Args:
        channels: size of an embedding.
        count: words, as in `Tokenizer`.
    """

    def __init__(self, channels: int, count: int = len(WORDS)) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(count, channels))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings [prompt, token, channel] of ids [prompt, token], zero where masked."""
        table: Tensor = self.table  # type: ignore[assignment]
        return table[ids] * mask[..., None].to(table.dtype)


class LinearCodec(nn.Module):
    """Projects pixel patches on principal components, and back.

    Args:
        channels: number of latent channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsampling_factor = SPACE
        self.z_dim = channels
        self.model = SimpleNamespace(z_dim=channels)  # where the pipeline looks for it
        for name, pixels in (("first", 3 * SPACE**2), ("rest", 3 * SPACE**2 * TIME)):
            self.register_buffer(f"{name}_mean", torch.zeros(pixels))
            self.register_buffer(f"{name}_basis", torch.zeros(channels, pixels))
            self.register_buffer(f"{name}_scale", torch.ones(channels))

    def encode(self, videos: Tensor | Sequence[Tensor], device: Any = None, **_: Any) -> Tensor:
        """Encode videos [batch, rgb, time, height, width] in [-1, 1].

        Returns:
            [batch, channel, frame, latent_y, latent_x], with 1 + (time - 1) / 4 frames.

        Raises:
            TaskError: time is not 4k + 1, or a side not a multiple of 8.
        """
        video = torch.stack([v.to(device or v.device) for v in videos])
        time, height, width = video.shape[2:]
        if (time - 1) % TIME or height % SPACE or width % SPACE:
            raise TaskError(
                f"The organism's codec takes 4k + 1 frames of sides that are multiples of 8; these are {time} frames of "
                f"{height} x {width}: cut or pad them."
            )
        split = "b c (f t) (y p) (x q) -> b f y x (t p q c)"
        first = rearrange(video[:, :, :1], split, t=1, p=SPACE, q=SPACE)
        rest = rearrange(video[:, :, 1:], split, t=TIME, p=SPACE, q=SPACE)
        latents = torch.cat([self._project(first, "first"), self._project(rest, "rest")], 1)
        return rearrange(latents, "b f y x c -> b c f y x")

    def decode(self, hidden_states: Tensor, device: Any = None, **_: Any) -> Tensor:
        """Decode latents [batch, channel, frame, latent_y, latent_x].

        Returns:
            Videos [batch, rgb, time, height, width], about [-1, 1].
        """
        latents = rearrange(hidden_states.to(device or hidden_states.device), "b c f y x -> b f y x c")
        join = "b f y x (t p q c) -> b c (f t) (y p) (x q)"
        first = rearrange(self._restore(latents[:, :1], "first"), join, t=1, p=SPACE, q=SPACE, c=3)
        rest = rearrange(self._restore(latents[:, 1:], "rest"), join, t=TIME, p=SPACE, q=SPACE, c=3)
        return torch.cat([first, rest], 2)

    def _part(self, name: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, basis, scale = (getattr(self, f"{name}_{part}") for part in ("mean", "basis", "scale"))
        return mean.to(like), basis.to(like), scale.to(like)

    def _project(self, patches: Tensor, name: str) -> Tensor:
        mean, basis, scale = self._part(name, patches)
        return (patches - mean) @ basis.T / scale

    def _restore(self, latents: Tensor, name: str) -> Tensor:
        mean, basis, scale = self._part(name, latents)
        return (latents * scale) @ basis + mean
