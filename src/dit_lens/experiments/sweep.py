"""Arms of an experiment, side by side: every sample under every set of edits, beside its clean run.

An arm is a set of edits. Up to its first edit an arm *is* the clean run, so it joins there: a sweep over the
step of a perturbation costs half of what whole runs cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dit_lens.engine.batch import Batch, parts
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.visitor import Place
from dit_lens.plan.plan import Placed

Arm = Sequence[Placed] | Callable[[int], Sequence[Placed]]
"""Edits of an arm: the same for every pair, or by the pair's number; a pair without any stays clean."""


@dataclass
class Now:
    """What a sweep has at one step, of the rows of one forward.

    Attributes:
        step: which.
        clean: the clean rows, one a pair.
        rows: (arm, pair) of rows that have left the clean run: as many as go through the model at once.
        edited: those rows.
    """

    step: int
    clean: Stepped
    rows: list[tuple[int, int]]
    edited: Stepped


def sweep(
    batch: Batch,
    arms: Sequence[Arm],
    watch: Sequence[Place] = (),
    look: Callable[[Now], None] | None = None,
    progress: str | None = None,
    clean_first: Callable[[int, Stepped], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run every pair of a batch clean and under every arm.

    Edits over seeds see together the pairs of one sample that carry them; a sample's pairs stand side by side.

    Args:
        batch: the samples and seeds.
        arms: edits of each.
        watch: states that `look` and `clean_first` want, by (site, branch, layer). They are held for the clean rows
            and for the rows of one forward, at one step: never for all arms.
        look: called after every forward of edited rows.
        progress: name of a progress bar over the steps; none unless given.
        clean_first: called at every step with the clean rows, before an edited row takes it: for edits that put in
            what a clean run holds at that step.

    Returns:
        The last latents of the clean runs, [pair, channel, frame, y, x], and of the arms, [arm, pair, ...].

    Raises:
        PlanError: an edit cannot be carried out.
    """
    pairs = list(range(len(batch.pairs)))
    edits = [[list(arm(pair) if callable(arm) else arm) for pair in pairs] for arm in arms]
    clean, edited = batch.noise, batch.noise[:0]
    rows: list[tuple[int, int]] = []
    for step in tqdm(range(batch.steps), desc=progress, disable=progress is None, leave=False):
        new = [(a, p) for a in range(len(arms)) for p in pairs if _begin(batch, edits[a][p]) == step]
        rows, edited = rows + new, torch.cat([edited, clean[[p for _, p in new]]])
        order = sorted(range(len(rows)), key=rows.__getitem__)  # the pairs of a sample side by side
        rows, edited = [rows[i] for i in order], edited[order]
        now = batch.step(step, clean, watch=watch)
        if clean_first is not None:
            clean_first(step, now)
        edited = torch.cat([edited[:0], *_step(batch, step, now, edited, rows, edits, watch, look)])
        clean = now.latents
    ended = clean.repeat(len(arms), *[1] * clean.ndim) if arms else clean[None][:0]
    for (arm, pair), latents in zip(rows, edited, strict=True):
        ended[arm, pair] = latents
    return clean, ended


def _step(
    batch: Batch,
    step: int,
    clean: Stepped,
    edited: Tensor,
    rows: list[tuple[int, int]],
    edits: Sequence[Sequence[Sequence[Placed]]],
    watch: Sequence[Place],
    look: Callable[[Now], None] | None,
) -> Iterator[Tensor]:
    """Take a step with the edited rows, a forward's worth at a time; yield what comes after."""
    samples = _samples(batch)
    groups = [a * len(samples) + samples[p] for a, p in rows]
    for part in parts(groups, batch.at_once):
        members = rows[part]
        out = batch.step(
            step,
            edited[part],
            [p for _, p in members],
            [edits[a][p] for a, p in members],
            watch if look is not None else (),
            groups[part],
        )
        if look is not None:
            look(Now(step, clean, members, out))
        yield out.latents


def _begin(batch: Batch, edits: Sequence[Placed]) -> int | None:
    """Return the first step at which edits change anything."""
    return min((min(batch.binding(edit).steps) for edit in edits), default=None)


def _samples(batch: Batch) -> list[int]:
    """Number the pairs by their sample."""
    numbers = [0]
    for (before, _), (sample, _) in zip(batch.pairs, batch.pairs[1:], strict=False):
        numbers.append(numbers[-1] + (sample is not before))
    return numbers
