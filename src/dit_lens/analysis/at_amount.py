"""Outcomes at an equal amount of a treatment: what an edit does once it has moved a run by so much."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from dit_lens.analysis.states import name_of, require_dims
from dit_lens.errors import DitLensError

Read = Literal["line", "before", "after"]
"""Where an outcome is read between two treatments: on the line between them, or at one of them."""


def at_amount(
    outcomes: xr.DataArray,
    amounts: xr.DataArray,
    level: float | xr.DataArray,
    along: str,
    read: Read = "line",
) -> xr.DataArray:
    """Return each outcome where the amount first reaches a level, along a dimension of growing treatment.

    Between the first position that reaches the level and the one before it the line between them is followed. A position is a
    treatment that was carried out; nothing is taken for what would come before the first one, or after the last. The line is a
    guess: where outcomes only rise, or only fall, with the amount, they lie between those of the two treatments.

    Args:
        outcomes: [sample, along, ...], numbers or bool.
        amounts: what each treatment amounts to, on dimensions of the outcomes; not below 0. It need not grow all along.
        level: the amount at which outcomes are read: one number, or one for each sample, ...
        along: the dimension of growing treatment.
        read: "line"; or "before" or "after" for the outcome of the last treatment below the level, or of the first that reaches
            it. A treatment of just that amount is read as it is.

    Returns:
        [sample, ...], float64; NaN where the first position already is above the level, or none reaches it.

    Raises:
        DitLensError: a dimension is missing, or an amount is no finite number.
    """
    for array in (outcomes, amounts):
        require_dims(array, [along], "at_amount")
    if not bool(np.isfinite(amounts).all()):
        raise DitLensError(
            f"at_amount: {name_of(amounts)} holds NaN or Inf; select the treatments that were measured."
        )
    outcomes, amounts = xr.broadcast(outcomes.astype(float), amounts.astype(float))
    reached = amounts >= level
    first = reached.argmax(along)
    before = (first - 1).clip(min=0)
    here, start = (amounts.isel({along: at}) for at in (first, before))
    share = ((level - start) / (here - start).where(here > start)).fillna(
        1.0
    )  # at the first position: itself
    share = share.drop_vars(along, errors="ignore")
    if read != "line":
        share = share.where(share == 1, 0.0 if read == "before" else 1.0)
    low, high = (outcomes.isel({along: at}).drop_vars(along, errors="ignore") for at in (before, first))
    value = low + share * (high - low)
    known = reached.any(along) & ((first > 0) | (here == level))
    return value.where(known.drop_vars(along, errors="ignore"))


__all__ = ["at_amount"]
