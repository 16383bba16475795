"""The ideal denoiser: what a model would believe that knew every right answer of a scene, and nothing else.

Where the right videos z_1 ... z_K of a scene can be enumerated, with shares pi_k, the latents of flow matching at noise level
s are x_s = (1 - s) z + s eps, and Bayes' rule gives

    p_k(x_s) = pi_k exp(-|x_s - (1 - s) z_k|^2 / (2 s^2)) / sum over all answers,    x0*(x_s) = sum_k p_k z_k.

It computes nothing: whatever of a model's course it shows too (several answers that become one, a change of mind) is what
E[x0 | x_s] is, and no sign of reasoning. What is left beyond it is the finding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import DitLensError
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.scene import Answer


@dataclass(frozen=True)
class IdealDenoiser:
    """The posterior over the right answers of one scene.

    Attributes:
        texts: the answers, as the scorer reads them.
        videos: their latents, [answer, channel, frame, y, x].
        prior: their shares, [answer].
    """

    texts: tuple[str, ...]
    videos: NDArray[np.float64]
    prior: NDArray[np.float64]

    def weights(self, x: Any, sigma: float) -> NDArray[np.float64]:
        """Return the probability of each answer given noisy latents, [row, answer].

        Args:
            x: latents, [row, channel, frame, y, x].
            sigma: their noise level, in (0, 1].

        Raises:
            DitLensError: they are of another shape, hold NaN, or there is no such noise level.
        """
        sigma = float(sigma)
        if not 0 < sigma <= 1:
            raise DitLensError(
                f"sigma={sigma}: a noise level over 0 and up to 1 (a timestep of a thousand is no noise level)."
            )
        rows, known = self._flat(x), self.videos.reshape(len(self.texts), -1)
        scale = 1 - sigma
        # |x - scale z|^2 = |x|^2 - 2 scale x.z + scale^2 |z|^2, of which the first part is the same for all answers.
        off = -2 * scale * rows @ known.T + scale**2 * (known**2).sum(1)
        from scipy.special import logsumexp  # slow to import

        logits = np.log(self.prior) - off / (2 * sigma**2)
        return np.exp(logits - logsumexp(logits, 1, keepdims=True))

    def x0(self, x: Any, sigma: float) -> NDArray[np.float64]:
        """Return E[x0 | x_s], [row, channel, frame, y, x]: the mean of the answers by their weights."""
        return np.tensordot(self.weights(x, sigma), self.videos, 1)

    def loss(self, video: Any, noise: Any, sigma: float, first: int = 0) -> float:
        """Compute how badly the flow to a video is predicted: the mean over latent values of (z - E[x0 | x_s])² / s².

        As v = (x - x0) / s, it is the mean of (v - (eps - z))², the loss of flow matching, with x_s = (1 - s) z + s eps.

        Args:
            video: z, right or not, [channel, frame, y, x].
            noise: eps, [channel, frame, y, x].
            sigma: noise level, in (0, 1].
            first: latent frame from which on values count.

        Raises:
            DitLensError: as `weights`.
        """
        z = _array(video)
        x0 = self.x0(((1 - float(sigma)) * z + float(sigma) * _array(noise))[None], sigma)[0]
        return float(np.square((z - x0)[:, first:] / float(sigma)).mean())

    def run(self, noise: Any, sigmas: Sequence[float]) -> list[NDArray[np.float64]]:
        """Follow the flow from noise by Euler's steps, as the sampler does; return x0 at every step.

        Args:
            noise: what step 0 starts from, [row, channel, frame, y, x].
            sigmas: noise level of each step.

        Returns:
            [row, channel, frame, y, x] for each step; the last is the result where the flow ends at noise level 0.

        Raises:
            DitLensError: as `weights`.
        """
        levels = [float(sigma) for sigma in sigmas]
        if not levels:
            raise DitLensError("sigmas is empty: give the noise level of each step, such as batch.sigmas.")
        x, out = _array(noise), []
        for sigma, after in zip(levels, [*levels[1:], 0.0], strict=True):
            out.append(self.x0(x, sigma))
            x = x + (after - sigma) * (x - out[-1]) / sigma
        return out

    def _flat(self, x: Any) -> NDArray[np.float64]:
        rows = _array(x)
        if np.isnan(rows).any():
            raise DitLensError("The latents hold NaN: they were not recorded, or the run is not complete.")
        if len(rows) == 0 or rows.shape[1:] != self.videos.shape[1:]:
            raise DitLensError(
                f"The latents are {rows.shape}, those of the answers {self.videos.shape} [row or answer, channel, frame, y, x]: "
                "give latents of the same sample and model."
            )
        return rows.reshape(len(rows), -1)


def _array(values: Any) -> NDArray[np.float64]:
    """Return a tensor of any type, or an array, in float64."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)


def ideal_denoiser(
    sample: Sample, encode: Callable[[Any], Any], answers: Sequence[Answer] | None = None
) -> IdealDenoiser:
    """Return the ideal denoiser of a scene whose right answers are enumerable.

    Args:
        sample: of a task that enumerates them (`sample.answers`).
        encode: frames [time, height, width, rgb] of uint8 to latents [frame, y, x, channel], such as `lens.encode`.
        answers: that it knows, with their shares, such as candidates of which some are wrong. Default: every right one.

    Raises:
        TaskError: the sample's answers are not enumerated.
    """
    answers = sample.answers if answers is None else answers
    videos = np.stack([np.moveaxis(_array(encode(answer.video)), -1, 0) for answer in answers])
    prior = np.array([answer.prior for answer in answers])
    return IdealDenoiser(tuple(answer.text for answer in answers), videos, prior / prior.sum())
