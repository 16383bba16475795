"""The last frame of a video, judged alone: by the scorer of all frames, beside the other frames of an answer that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dit_lens.analysis.ideal import IdealDenoiser, ideal_denoiser
from dit_lens.engine.outcomes import outcomes
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.wrong import wrong_answers

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch


@dataclass(frozen=True)
class KnownAnswers:
    """The answers of a scene that can be enumerated, as latents.

    Attributes:
        texts: as the scorer reads them.
        latents: of their videos, [answer, channel, frame, y, x], float64: the right ones, then the wrong ones.
        ideal: the ideal denoiser of the right ones.
    """

    texts: tuple[str, ...]
    latents: Tensor
    ideal: IdealDenoiser

    @classmethod
    def of(cls, sample: Sample, encode: Callable[[Any], Tensor]) -> KnownAnswers:
        """Encode the answers of a sample, by `lens.encode` or the like.

        Raises:
            TaskError: its right answers are not enumerated.
        """
        ideal, wrong = ideal_denoiser(sample, encode), wrong_answers(sample)
        videos = [encode(answer.video).double().cpu().permute(3, 0, 1, 2) for answer in wrong]
        latents = torch.cat([torch.from_numpy(ideal.videos), *(video[None] for video in videos)])
        return cls((*ideal.texts, *(answer.text for answer in wrong)), latents, ideal)

    @property
    def right(self) -> int:
        """How many are right: they come first."""
        return len(self.ideal.texts)

    def nearest(self, latents: Tensor, among: int | None = None) -> Tensor:
        """Return which of the first answers the last frame of each row is nearest to, [row].

        Args:
            latents: [row, channel, frame, y, x].
            among: so many answers. Default: all.
        """
        last = latents[:, None, :, -1].to(self.latents)
        return (last - self.latents[None, :among, :, -1]).square().flatten(2).sum(2).argmin(1)

    def another(self, latents: Tensor, seed: int) -> int:
        """Draw an answer other than a run's [channel, frame, y, x]: a wrong one, where any is known."""
        shown, count = int(self.nearest(latents[None])), len(self.texts)
        wrong = [n for n in range(self.right, count) if n != shown]
        return int(np.random.default_rng(seed).choice(wrong or [n for n in range(count) if n != shown]))


def last_alone(answers: Sequence[KnownAnswers], latents: Tensor) -> Tensor:
    """Keep the last frame of finished latents, and take all others from the answer that it is nearest to.

    Args:
        answers: of each pair.
        latents: [arm, pair, channel, frame, y, x].
    """
    out = latents.clone()
    for pair, known in enumerate(answers):
        chosen = known.latents[known.nearest(latents[:, pair])]
        out[:, pair, :, :-1] = chosen[:, :, :-1].to(latents)
    return out


def judge(batch: Batch, answers: Sequence[KnownAnswers], latents: Tensor, whole: bool = True) -> xr.Dataset:
    """Judge the last latent frame alone, and the whole video.

    Args:
        batch: the pairs.
        answers: of each pair.
        latents: finished ones, [arm, pair, channel, frame, y, x].
        whole: whether the whole video is judged too.

    Returns:
        On [arm, pair]: `last_solved`, `last_score`, `last_answer`, and `solved`, `score` of the whole. The graded score of
        the last frame counts all others as right.
    """
    found = outcomes(batch, last_alone(answers, latents), latents[0])[["solved", "score", "answer"]]
    found = found.rename({name: f"last_{name}" for name in found})
    return found.merge(outcomes(batch, latents, latents[0])[["solved", "score"]]) if whole else found


__all__ = ["KnownAnswers", "judge", "last_alone"]
