"""What stands around LTX-2.3's DiT in a benchmark of the DiT: the same interfaces and geometry, next to no cost."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

SPACE, TIME, CHANNELS = 32, 8, 128


@contextlib.contextmanager
def torchaudio() -> Iterator[None]:
    """Let DiffSynth import where torchaudio is not installed: torchaudio encodes the user's sounds, and here are none."""
    if importlib.util.find_spec("torchaudio") is not None:
        yield
        return
    import diffsynth.models.ltx2_text_encoder  # noqa: F401  # transformers must see that torchaudio is missing

    standin: Any = ModuleType("torchaudio")
    standin.transforms = SimpleNamespace(MelSpectrogram=lambda **_: nn.Identity())
    sys.modules["torchaudio"] = standin
    try:
        yield
    finally:
        del sys.modules["torchaudio"]


class Tokenizer:
    """Stands for Gemma's: a number for every word, padded on the left.

    Args:
        length: tokens of every prompt.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def tokenize_with_weights(self, text: str) -> dict[str, list[tuple[int, int]]]:
        """Return (number, mask) of every token."""
        words = [(zlib.crc32(word.encode()) % 997 + 1, 1) for word in text.split()[: self.length]]
        return {"gemma": [(0, 0)] * (self.length - len(words)) + words}


class Gemma(nn.Module):
    """Stands for Gemma (12 G parameters) and the connectors after it: a word vector for each stream.

    Args:
        video: channels of the text that the video reads.
        audio: channels of the text that the sound reads.
    """

    def __init__(self, video: int, audio: int) -> None:
        super().__init__()
        self.video, self.audio = nn.Embedding(1000, video), nn.Embedding(1000, audio)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Return what the pipeline hands to the connectors."""
        return SimpleNamespace(hidden_states=input_ids)

    def process_hidden_states(
        self, ids: Tensor, mask: Tensor, padding_side: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the text [row, token, channel] of the video and of the sound, and the mask."""
        return self.video(ids), self.audio(ids), mask


class Video(nn.Module):
    """Stands for the video codec: 32x smaller in space and 8x in time, with the first frame alone; 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(CHANNELS, 3, generator=torch.Generator().manual_seed(0)))

    def encode(self, video: Tensor, *_: Any) -> Tensor:
        """Encode one frame [row, rgb, 1, height, width], which is all that the benchmark needs."""
        patches = nn.functional.avg_pool3d(video, (1, SPACE, SPACE))
        return torch.einsum("lc,bcfyx->blfyx", self.basis, patches)

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """Decode [row, channel, frame, y, x] to [row, rgb, time, height, width]."""
        colours = torch.einsum("lc,blfyx->bcfyx", self.basis, latents) / CHANNELS
        video = colours.repeat_interleave(SPACE, -1).repeat_interleave(SPACE, -2)
        return video.repeat_interleave(TIME, 2)[:, :, TIME - 1 :]


class Sound(nn.Module):
    """Stands for the vocoder: the mel bands of a moment, one after the other, are its sound."""

    output_sampling_rate = 25 * 16  # moments a second, bands

    def forward(self, latents: Tensor) -> Tensor:
        """Return the waveform [row, speaker, time] of latents [row, channel, time, mel]."""
        return latents[:, :2].flatten(2)
