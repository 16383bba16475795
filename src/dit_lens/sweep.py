"""Arms of an experiment, side by side: every sample under every set of edits, beside its clean run.

An arm is a set of edits. Up to its first edit an arm *is* the clean run, so it joins there: a sweep over the
step of a perturbation costs half of what whole runs cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dit_lens.batch import Batch
from dit_lens.forward import Place, Stepped
from dit_lens.plan import Placed

Arm = Sequence[Placed] | Callable[[int], Sequence[Placed]]
"""Edits of an arm: the same for every pair, or by the pair's number; a pair without any stays clean."""


@dataclass
class Now:
    """What a sweep has at one step.

    Attributes:
        step: which.
        clean: the clean rows, one a pair.
        rows: (arm, pair) of every row that has left the clean run.
        edited: those rows; None while there are none.
    """

    step: int
    clean: Stepped
    rows: list[tuple[int, int]]
    edited: Stepped | None


def sweep(
    batch: Batch,
    arms: Sequence[Arm],
    watch: Sequence[Place] = (),
    look: Callable[[Now], None] | None = None,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run every pair of a batch clean and under every arm.

    Edits over seeds see together the pairs of one sample that carry them; a sample's pairs stand side by side.

    Args:
        batch: the samples and seeds.
        arms: edits of each.
        watch: states that `look` wants, by (site, branch, layer).
        look: called after every step.
        progress: name of a progress bar over the steps; none unless given.

    Returns:
        The last latents of the clean runs, [pair, channel, frame, y, x], and of the arms, [arm, pair, ...].

    Raises:
        PlanError: an edit cannot be carried out.
    """
    pairs = list(range(len(batch.pairs)))
    edits = [[list(arm(pair) if callable(arm) else arm) for pair in pairs] for arm in arms]
    samples = _samples(batch)
    clean, edited = batch.noise, batch.noise[:0]
    rows: list[tuple[int, int]] = []
    for step in tqdm(range(batch.steps), desc=progress, disable=progress is None, leave=False):
        new = [(a, p) for a in range(len(arms)) for p in pairs if _begin(batch, edits[a][p]) == step]
        rows, edited = rows + new, torch.cat([edited, clean[[p for _, p in new]]])
        order = sorted(range(len(rows)), key=rows.__getitem__)  # the pairs of a sample side by side
        rows, edited = [rows[i] for i in order], edited[order]
        out = batch.step(
            step,
            torch.cat([clean, edited]),
            rows=pairs + [p for _, p in rows],
            edits=[[] for _ in pairs] + [edits[a][p] for a, p in rows],
            watch=watch,
            groups=samples + [(1 + a) * len(pairs) + samples[p] for a, p in rows],
        )
        now = Now(step, out[: len(pairs)], rows, out[len(pairs) :] if rows else None)
        clean, edited = now.clean.latents, out.latents[len(pairs) :]
        if look is not None:
            look(now)
    ended = clean.repeat(len(arms), *[1] * clean.ndim) if arms else clean[None][:0]
    for (arm, pair), latents in zip(rows, edited, strict=True):
        ended[arm, pair] = latents
    return clean, ended


def _begin(batch: Batch, edits: Sequence[Placed]) -> int | None:
    """Return the first step at which edits change anything."""
    return min((min(batch.slot(edit).steps) for edit in edits), default=None)


def _samples(batch: Batch) -> list[int]:
    """Number the pairs by their sample."""
    numbers = [0]
    for (before, _), (sample, _) in zip(batch.pairs, batch.pairs[1:], strict=False):
        numbers.append(numbers[-1] + (sample is not before))
    return numbers
