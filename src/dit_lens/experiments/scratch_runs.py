"""Runs with some of their frames replaced, of a model and of the ideal denoiser, and the answers that are put into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.analysis.ideal import IdealDenoiser, ideal_denoiser
from dit_lens.engine.applied import apply_edit
from dit_lens.engine.sweep import Arm, Now, run_arms
from dit_lens.experiments.last_frame import KnownAnswers
from dit_lens.experiments.scratch import ANOTHER, RIGHT, SCENE, Change, OtherScenes, Source
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Placed

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

LEVERAGE = ("moved", "moved_x0")
"""How far the last frame is from the clean run's right after the first step that is edited: its latents, and its x0."""


class Planted:
    """The answers that are put into runs: the right one that a run is nearest to, and another one than it shows.

    Args:
        batch: the pairs.
        answers: of each pair.
        ends: last latents of the clean runs, [pair, channel, frame, y, x].
        has_others: whether there are other answers.
        draw: seed of the drawing among several, beside the noise seed.
    """

    def __init__(
        self, batch: Batch, answers: Sequence[KnownAnswers], ends: Tensor, has_others: bool, draw: int
    ) -> None:
        self.answers = answers
        rows = list(zip(answers, ends, (seed for _, seed in batch.pairs), strict=True))
        self.right = [int(known.nearest(end[None], known.right)) for known, end, _ in rows]
        self.another = [known.another(end, seed + draw) for known, end, seed in rows] if has_others else None

    def source(self, content: str, pair: int, scene: Source) -> Source | None:
        """Return where a content of a pair comes from; None where the run itself makes it."""
        if content == SCENE:
            return scene
        chosen = {RIGHT: self.right, ANOTHER: self.another}.get(content)
        if chosen is None:
            return None
        video = self.answers[pair].latents[chosen[pair]].permute(1, 2, 3, 0)
        return lambda at: video

    def compare(self, found: xr.Dataset, clean: xr.Dataset) -> xr.Dataset:
        """Say of last frames whether they show the answer of the clean run, and whether they show the other one.

        Args:
            found: of some arms, [arm, pair], with the answers `last_answer`, which are left out of what is returned.
            clean: of the clean runs, as one arm.
        """
        out = found.drop_vars("last_answer")
        out["last_kept"] = found.last_answer.dims, found.last_answer.values == clean.last_answer.values
        if self.another is not None:
            texts = [known.texts[n] for known, n in zip(self.answers, self.another, strict=True)]
            shown = found.last_answer.values == np.array(texts, np.dtypes.StringDType())
            out["last_another"] = found.last_answer.dims, shown
        return out


def run_changes(
    batch: Batch, beside: Batch, changes: Sequence[Change], planted: Planted
) -> tuple[Tensor, xr.Dataset]:
    """Run every pair under every change.

    Args:
        batch: the pairs.
        beside: another scene for each pair.
        changes: the arms.
        planted: what is put into them.

    Returns:
        The last latents, [arm, pair, channel, frame, y, x], and the leverage (`LEVERAGE`) on [arm, pair].
    """
    moved = np.zeros((len(LEVERAGE), len(changes), len(batch.pairs)), np.float32)

    def look(now: Now) -> None:
        for row, (arm, pair) in enumerate(now.rows):
            if now.step == changes[arm].steps[0]:
                moved[0, arm, pair] = apart(now.edited.latents[row], now.clean.latents[pair])
                moved[1, arm, pair] = apart(now.edited.x0[row], now.clean.x0[pair])

    layers = sorted({change.layer for change in changes if change.layer is not None})
    watch = [("block", branch, layer) for branch in batch.layout.branches for layer in layers]
    scenes, noise = OtherScenes(beside, watch), batch.noise
    arms: list[Arm] = [partial(_edits, change, noise, planted, scenes.source) for change in changes]
    _, ended = run_arms(batch, arms, look=look, progress="changes", clean_first=scenes.follow)
    return ended, _leverage(moved)


class IdealRuns:
    """Runs of the ideal denoiser of every pair, from the noise of a batch, clean and under changes of their latents.

    Args:
        batch: the pairs.
        beside: another scene for each pair.
        answers: of each pair.
        encode: frames to latents, `lens.encode`.
    """

    def __init__(
        self,
        batch: Batch,
        beside: Batch,
        answers: Sequence[KnownAnswers],
        encode: Callable[[Any], Tensor],
    ) -> None:
        self.batch, self.ideals = batch, [known.ideal for known in answers]
        self.noise = batch.noise.double().cpu()
        others = [ideal_denoiser(sample, encode) for sample, _ in beside.pairs]
        self.beside = [_beliefs(ideal, x, batch) for ideal, x in zip(others, beside.noise, strict=True)]
        ends = [_beliefs(ideal, x, batch)[-1] for ideal, x in zip(self.ideals, self.noise, strict=True)]
        self.clean = torch.stack(ends)

    def run(self, changes: Sequence[Change], planted: Planted) -> tuple[Tensor, xr.Dataset]:
        """Run every pair under every change; return what `run_changes` does."""
        parts = [self._run_pair(pair, changes, planted) for pair in range(len(self.ideals))]
        ended, moved = zip(*parts, strict=True)
        return torch.stack(ended, 1), _leverage(np.stack(moved, 2))

    def _run_pair(
        self, pair: int, changes: Sequence[Change], planted: Planted
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """Run one pair: a clean row, and one for each change."""
        edits = [_edits(change, self.noise, planted, self._scene, pair) for change in changes]
        x = x0 = self.noise[pair].expand(1 + len(changes), *self.noise.shape[1:])
        moved = np.zeros((len(LEVERAGE), len(changes)), np.float32)
        sigmas = [float(sigma) for sigma in (*self.batch.sigmas, 0.0)]
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            at = Spot("latents", step, sigma, self.batch.timesteps[step], self.batch.pairs[pair][1], "ideal")
            x = x.clone()
            for row, (change, placed) in enumerate(zip(changes, edits, strict=True), 1):
                if step in change.steps:
                    x[row] = _applied(placed, at, x[row], x0[row])
            x0 = torch.from_numpy(self.ideals[pair].x0(x, sigma))
            x = x + (after - sigma) * (x - x0) / sigma  # Euler's step, as the sampler's
            for row, change in enumerate(changes, 1):
                if step == change.steps[0]:
                    moved[:, row - 1] = apart(x[row], x[0]), apart(x0[row], x0[0])
        return x[1:], moved

    def _scene(self, pair: int) -> Source:
        """Return what the ideal denoiser of another scene believed at the step before."""
        return lambda at: self.beside[pair][at.step - 1].permute(1, 2, 3, 0)


def apart(a: Tensor, b: Tensor) -> float:
    """Return how far the last frames of two latents [channel, frame, y, x] are from each other, root mean squared."""
    return float((a[:, -1] - b[:, -1]).float().square().mean().sqrt())


def _edits(
    change: Change, noise: Tensor, planted: Planted, scene: Callable[[int], Source], pair: int
) -> list[Placed]:
    return change.placed(noise[pair], planted.source(change.content, pair, scene(pair)))


def _applied(placed: Sequence[Placed], at: Spot, x: Tensor, x0: Tensor) -> Tensor:
    """Apply edits to latents [channel, frame, y, x] of one run."""
    value, belief = (values.permute(1, 2, 3, 0) for values in (x, x0))
    for edit in placed:
        value = apply_edit(edit, at, value, belief)
    return value.permute(3, 0, 1, 2)


def _beliefs(ideal: IdealDenoiser, noise: Tensor, batch: Batch) -> list[Tensor]:
    """Return x0 of an ideal denoiser at every step, from the noise of one run."""
    return [torch.from_numpy(x0[0]) for x0 in ideal.run(noise[None], batch.sigmas)]


def _leverage(moved: NDArray[np.float32]) -> xr.Dataset:
    return xr.Dataset({name: (("arm", "pair"), part) for name, part in zip(LEVERAGE, moved, strict=True)})


__all__ = ["LEVERAGE", "IdealRuns", "Planted", "apart", "run_changes"]
