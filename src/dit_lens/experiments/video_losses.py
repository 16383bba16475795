"""How badly a model predicts given videos, from one noise for all of them, and what comes back of them from their own noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dit_lens import analysis
from dit_lens.errors import PlanError, TaskError
from dit_lens.experiments.inversion import generate, invert, velocity_loss
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import batch_of, given_frames
from dit_lens.tasks.pairs import Pair
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.lens import Lens


def prepared(
    lens: Lens, videos: Sequence[Sample], pairs: Sequence[Pair], options: StudyOptions
) -> tuple[Batch, Tensor]:
    """Prepare videos with the noise seeds of pairs; return their batch, and what they are encoded as, a row a pair."""
    each = len(pairs) // len(videos)
    rows = [(videos[n // each], seed) for n, (_, seed) in enumerate(pairs)]
    clean = torch.stack([encoded(lens, video) for video in videos])
    return batch_of(lens, rows, options), clean.repeat_interleave(each, 0)


def encoded(lens: Lens, video: Sample) -> Tensor:
    """Return a video's latents, [channel, frame, y, x]."""
    return lens.encode(video.truth).permute(3, 0, 1, 2)


def losses(
    lens: Lens, videos: Sequence[Sample], like: Batch, steps: Sequence[int], options: StudyOptions
) -> np.ndarray:
    """Return the loss of the model and of the ideal denoiser, NaN where that is not known, [denoiser, step, pair].

    Args:
        lens: the model.
        videos: one a sample.
        like: the samples, with their noise seeds: every video has the same noise.
        steps: whose noise levels are taken.
        options: of the script.

    Raises:
        PlanError: the pipeline draws other noise for another video.
    """
    batch, clean = prepared(lens, videos, like.pairs, options)
    first = given_frames(videos[0])
    noise = batch.noise[:, :, first:]
    if not torch.equal(noise, like.noise[:, :, first:]):
        raise PlanError(
            "This pipeline draws other noise for another first frame: no two videos share theirs."
        )
    model = velocity_loss(batch, clean, steps, first).cpu().numpy()
    ideal = np.full(model.shape, np.nan)
    for row, (video, _) in enumerate(batch.pairs):
        try:
            denoiser = analysis.ideal_denoiser(video, lens.encode)
        except TaskError:  # its right answers are not known
            return np.stack([model, ideal])
        ideal[:, row] = [denoiser.loss(clean[row], batch.noise[row], batch.sigmas[s], first) for s in steps]
    return np.stack([model, ideal])


def apart(lens: Lens, right: Sample, other: Sample) -> float:
    """Return the root mean square distance of the latents of two videos."""
    return float((encoded(lens, right) - encoded(lens, other)).float().square().mean().sqrt())


def inversions(
    lens: Lens,
    made: Sequence[tuple[Sample, Sample]],
    pairs: Sequence[Pair],
    refine: int,
    options: StudyOptions,
) -> xr.Dataset:
    """Invert both videos of every sample, with its first noise seed, and make them again: [video, sample].

    Args:
        lens: the model.
        made: the two videos of each sample.
        pairs: each sample with its first noise seed.
        refine: refinements of each step of an inversion.
        options: of the script.
    """
    columns: dict[str, list[list[float]]] = {}
    for videos in zip(*made, strict=True):
        batch, clean = prepared(lens, videos, pairs, options)
        first = given_frames(videos[0])
        noise = invert(batch, clean, refine, first)
        back, others = generate(batch, noise), generate(batch, batch.noise)
        near: dict[str, list[float]] = {
            name: [
                analysis.psnr(batch.decode(x[n : n + 1])[0][first:], video.truth[first:])
                for n, video in enumerate(videos)
            ]
            for name, x in (("psnr", back), ("codec_psnr", clean), ("other_noise_psnr", others))
        }
        moving = [(x[:, :, first:].float().cpu().numpy()) for x in (back, clean)]
        near["latent_psnr"] = [analysis.psnr(x, z, peak=np.ptp(z)) for x, z in zip(*moving, strict=True)]
        near["energy"] = noise[:, :, first:].square().mean((1, 2, 3, 4)).tolist()
        for name, values in near.items():
            columns.setdefault(name, []).append(values)
    return xr.Dataset({name: (("video", "sample"), values) for name, values in columns.items()})


__all__ = ["apart", "encoded", "inversions", "losses", "prepared"]
