"""What a finding has to beat: an edit of equal norm elsewhere, a model without what it learned, labels without meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as replace_fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dit_lens.edits import generator_at
from dit_lens.errors import DitLensError, PlanError
from dit_lens.models.shuffled import shuffle_weights
from dit_lens.plan.functions import options
from dit_lens.plan.places import Spot


@options
def placebo(h: Tensor, at: Spot, *x0: Tensor, edit: Callable[..., Any], seed: int = 0) -> Tensor:
    """Change every token by as much as an edit does, in a random direction.

    The change of a token, its vector over the channels of the place, keeps its Euclidean norm, as far as the type of h has
    digits; its direction is uniform on the sphere in these channels, drawn from the place and the seeds, one for all branches of
    guidance. What the edit leaves as it is stays as it is, bit for bit. How far the latents then move is not matched: measure it
    beside an effect.

    Args:
        h: what the edit takes: [frame, y, x, channel], or [seed, frame, y, x, channel] of an edit over seeds.
        at: the place.
        x0: of the step before, where the edit takes it.
        edit: the edit whose place it takes. It is computed as well, on a copy of h.
        seed: of the directions, beside that of the run.

    Raises:
        PlanError: the edit returns another shape, NaN or Inf.
    """
    edited = edit(h.clone(), at, *x0)
    if edited.shape != h.shape:
        raise PlanError(
            f"placebo at {at}: {edit!r} returned {tuple(edited.shape)}, where the value is {tuple(h.shape)}."
        )
    exact = torch.promote_types(h.dtype, torch.float32)
    # Of a place with some channels alone, an edit acts on these: so does its placebo.
    acts = torch.ones(h.shape[-1], dtype=torch.bool, device=h.device)
    if at.channel is not None:
        acts = torch.zeros_like(acts).index_fill(0, torch.tensor(at.channel, device=h.device), True)
        edited = torch.where(acts, edited, h)
    size = (edited.to(exact) - h.to(exact)).norm(dim=-1, keepdim=True)
    if not bool(size.isfinite().all()):
        raise PlanError(
            f"placebo at {at}: {edit!r} moves {int((~size.isfinite()).sum())} of {size.numel()} tokens by NaN or Inf; mend the "
            "edit, or what it is given."
        )
    # One direction for all branches of guidance: what is alike on them cancels in their difference, as it does of the edit.
    place = replace_fields(at, branch=None)
    drawn = torch.randn(h.shape, generator=generator_at(place, "placebo", seed)).to(h.device, exact) * acts
    moved = h.to(exact) + size * drawn / drawn.norm(dim=-1, keepdim=True)
    return torch.where((size > 0) & acts, moved.to(h.dtype), h)


placebo.function.like = "edit"  # type: ignore[attr-defined]


def shuffled_labels(labels: ArrayLike, types: ArrayLike, *, seed: int = 0) -> NDArray[Any]:
    """Give every type of thing a random label, the same wherever it comes: the control task of a probe.

    A probe that reads what a state says cannot learn these labels; one that merely knows the types again can. What it is
    better at its own task than at this one is its selectivity (Hewitt & Liang 2019, arXiv 1909.03368).

    Args:
        labels: [thing], of the task.
        types: [thing], what kind each is of: its word, its place on a board.
        seed: of the drawing.

    Returns:
        [thing], a label for each type, drawn from the labels as often as they come. Every label comes, where there are types
        enough.

    Raises:
        DitLensError: the two are no lists of one length, or all things are of one type or of one label.
    """
    old, kinds = np.asarray(labels), np.asarray(types)
    if old.ndim != 1 or old.shape != kinds.shape:
        raise DitLensError(f"shuffled_labels: labels {old.shape} and types {kinds.shape}: give [thing] each.")
    names, shares = np.unique(old, return_counts=True)
    known, of_thing = np.unique(kinds, return_inverse=True)
    if len(names) < 2 or len(known) < 2:
        raise DitLensError(
            f"shuffled_labels: {len(names)} label(s) of {len(known)} type(s): a control task has 2 or more of each."
        )
    rng = np.random.default_rng(seed)
    first = names[: len(known)]
    drawn = np.concatenate([first, rng.choice(names, len(known) - len(first), p=shares / shares.sum())])
    out: NDArray[Any] = rng.permutation(drawn)[of_thing]
    return out


def random_direction(direction: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return a random direction as long as a given one: what `steer` by it is beaten by, or not.

    Args:
        direction: [..., channel]; a random one is drawn for each, uniform on the sphere of its length.
        seed: of the drawing.
    """
    given = np.asarray(direction, np.float64)
    drawn = np.random.default_rng(seed).standard_normal(given.shape)
    length = np.linalg.norm(given, axis=-1, keepdims=True)
    out: NDArray[np.float64] = drawn * length / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return out


__all__ = ["placebo", "random_direction", "shuffle_weights", "shuffled_labels"]
