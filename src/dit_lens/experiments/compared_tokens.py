"""Which tokens of a state are compared, and what their draw does to what is computed of them.

Samples of several shapes have several numbers of tokens, so these stand by sample. Tokens of a frame that the pipeline gives and
puts back (`Batch.fixed_frames`) are left out: they are alike from step to step whatever the model does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dit_lens.analysis.cka_sampled import sample_tokens
from dit_lens.errors import TaskError
from dit_lens.tasks.pairs import numbers

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

LEAST = 4
"""Tokens that debiased CKA takes, at least."""


def refuse_few_tokens(most: int) -> None:
    """Refuse too few tokens, before anything is computed.

    Raises:
        TaskError: fewer than 4 are asked for.
    """
    if most < LEAST:
        raise TaskError(f"--cka-tokens {most}: debiased CKA takes {LEAST} tokens at least.")


def tokens_of(batch: Batch, most: int, draw: int) -> list[int]:
    """Return which tokens of a state are compared: all of generated frames, or `most` of them, drawn, in order.

    Args:
        batch: the pairs.
        most: how many, at most.
        draw: seed of the draw.

    Raises:
        DitLensError: there are fewer than 4.
    """
    first, count = _generated(batch)
    return [first + token for token in sample_tokens(count, most, draw)]


def _generated(batch: Batch) -> tuple[int, int]:
    """Return the first token of the frames that are generated, and how many there are from it on."""
    frames, y, x = batch.grid
    first = batch.fixed_frames * frames // batch.noise.shape[2] * y * x
    return first, frames * y * x - first


def firsts(batch: Batch) -> list[int]:
    """Return the first pair of each sample, of which a second draw of tokens is compared, whatever block it is in."""
    samples = numbers(batch.pairs)
    return [samples.index(sample) for sample in sorted({*samples})]


def counted(batch: Batch, tokens: list[int]) -> xr.DataArray:
    """Return how many tokens are compared and how many there are, [pair, of]."""
    counts = [[len(tokens), _generated(batch)[1]]] * len(batch.pairs)
    labels = np.array(["compared", "all"], np.dtypes.StringDType())
    return xr.DataArray(counts, {"of": labels}, ("pair", "of"))


def told_of_tokens(tokens: xr.DataArray) -> Any:
    """Return how many tokens were compared, and how many there are; of samples of several shapes a list, with their numbers.

    Args:
        tokens: [sample, seed, of], of `counted`.
    """
    rows, samples = np.unique(
        tokens.isel(seed=0).transpose("sample", "of").values, axis=0, return_counts=True
    )
    told = [dict(zip(tokens["of"].values.tolist(), row, strict=True)) for row in rows.tolist()]
    if len(told) == 1:
        return told[0]
    return [{**one, "samples": count} for one, count in zip(told, samples.tolist(), strict=True)]


def error_of_tokens(values: xr.DataArray, again: xr.DataArray) -> float | None:
    """Return the standard error of a number by the draw of its tokens; None where all tokens were compared.

    Args:
        values: of one draw.
        again: of another, independent one; NaN where there is none.

    Returns:
        The root of half the mean squared difference of the two.
    """
    off = again - values
    return float((off**2).mean() / 2) ** 0.5 if bool(off.notnull().any()) else None


__all__ = ["counted", "error_of_tokens", "firsts", "refuse_few_tokens", "tokens_of", "told_of_tokens"]
