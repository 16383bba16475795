"""When, along the denoising steps, an answer is settled, what was held before it, and whether it was given up again.

The functions take what a scorer reads off the decoded x0 at each step. Steps are named by their labels, so
steps that were not looked at (0, 5, 10, ...) are no claim: an answer may have changed and come back between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import name_of, place, require_dims, shape_of
from dit_lens.errors import DitLensError


def commitment(answers: xr.DataArray) -> xr.Dataset:
    """Find the step from which on the answer is the final one.

    Args:
        answers: [..., step], strings; may be lazy. The answer at the last step is the final one. An empty
            string ("nothing was read") is an answer like any other.

    Returns:
        Dataset on [...]:

        - `commitment`: label of the first step at and after which every answer equals the final one. The
          first label means that it was there from the start, the last that it came at the very end.
        - `distinct`: how many different answers were held before that step; the final one counts where it
          was held and left again. 0 where the commitment is at the first step.
        - `changes`: how often the answer differed from that of the step before.

    Raises:
        DitLensError: there is no `step`, its labels do not increase, or an answer is no string.
    """
    steps, values, rest = _trajectories(answers, "commitment")
    _require_strings(answers, values, "commitment")
    same = values[..., :, None] == values[..., None, :]
    held = np.logical_and.accumulate(same[..., -1, ::-1], -1)[..., ::-1]
    first = held.argmax(-1)
    position = np.arange(len(steps))
    is_new = ~(same & (position < position[:, None])).any(-1)
    distinct = (is_new & (position < first[..., None])).sum(-1)
    changes = (values[..., 1:] != values[..., :-1]).sum(-1)
    out = xr.Dataset(
        {
            "commitment": (rest.dims, steps[first]),
            "distinct": (rest.dims, distinct),
            "changes": (rest.dims, changes),
        },
        rest.coords,
    )
    out["commitment"].attrs["long_name"] = "step from which on the answer is the final one"
    out["distinct"].attrs["long_name"] = "different answers held before commitment"
    out["changes"].attrs["long_name"] = "changes of the answer between steps"
    return out


def corrections(solved: xr.DataArray) -> xr.Dataset:
    """Count how often a trajectory turns right, and how often wrong.

    Args:
        solved: [..., step], bool: whether the answer at the step is right; may be lazy.

    Returns:
        Dataset on [...]:

        - `wrong_to_right`, `right_to_wrong`: how many steps are right after a wrong one, and the reverse.
        - `ever_right`: whether any step is right.
        - `first_right`: label of the first step that is right, NaN where none is.
        - `self_corrected`: the first step is wrong and the last right, whatever happened between.

    Raises:
        DitLensError: there is no `step`, its labels do not increase, or the values are not bool.
    """
    steps, right, rest = _trajectories(solved, "corrections")
    if right.dtype != bool:
        raise DitLensError(
            f"corrections: {name_of(solved)} holds {right.dtype}, not bool; "
            "say what counts as right, e.g. score >= 0.5."
        )
    before, after = right[..., :-1], right[..., 1:]
    ever = right.any(-1)
    out = xr.Dataset(
        {
            "wrong_to_right": (rest.dims, (~before & after).sum(-1)),
            "right_to_wrong": (rest.dims, (before & ~after).sum(-1)),
            "ever_right": (rest.dims, ever),
            "first_right": (rest.dims, np.where(ever, steps[right.argmax(-1)], np.nan)),
            "self_corrected": (rest.dims, ~right[..., 0] & right[..., -1]),
        },
        rest.coords,
    )
    out["first_right"].attrs["long_name"] = "first step with the right answer"
    out["self_corrected"].attrs["long_name"] = "wrong at the first step, right at the last"
    return out


def revisions(answers: xr.DataArray, right: xr.DataArray, *, least: int = 2) -> xr.Dataset:
    """Say which trajectories commit to an answer, and give it up again.

    A trajectory is committed to an answer that it holds for `least` steps running or more. What counts is its first wrong answer
    of this kind, and its first right one, each beside the answer of the last step.

    Args:
        answers: [..., step], strings: the complete answer at the step, read with a margin; "" where there is none.
        right: [..., step], bool: whether that answer is right.
        least: how many steps, neighbours among those that are passed.

    Returns:
        Dataset of bool on [...]: `committed`; `committed_wrong`, `committed_right`, both of which may be; and of those

        - `wrong_kept`, `wrong_to_right`, `wrong_to_wrong` (another one), `wrong_to_none` (no complete answer): the end of a
          trajectory that was committed to a wrong answer; exactly one of them;
        - `right_kept`, `right_to_right`, `right_to_wrong`, `right_to_none`: of one that was committed to a right answer.

    Raises:
        DitLensError: there is no `step`, its labels do not increase, an answer is no string, `right` is not bool or has other
            dimensions, a step without an answer is right, or `least` is under 1.
    """
    steps, values, rest = _trajectories(answers, "revisions")
    _require_strings(answers, values, "revisions")
    if right.dtype != bool or set(right.dims) != set(answers.dims) or right.sizes != answers.sizes:
        raise DitLensError(
            f"revisions: {name_of(right)} is {right.dtype} {shape_of(right)}; give bool as the answers, {shape_of(answers)}."
        )
    steps_right, correct, _ = _trajectories(right.transpose(*answers.dims), "revisions")
    if not np.array_equal(steps, steps_right):
        raise DitLensError(
            f"revisions: {name_of(right)} is of other steps than the answers: {steps_right.tolist()}."
        )
    if (correct & (values == "")).any() or least < 1:
        raise DitLensError(
            f"revisions: a step without an answer is never right, and least={least} is 1 or more."
        )
    starts = max(values.shape[-1] - least + 1, 0)
    held = np.ones((*values.shape[:-1], starts), bool)
    for later in range(least):
        held &= values[..., later : later + starts] == values[..., :starts]
    held &= values[..., :starts] != ""
    end, end_right, out = values[..., -1], correct[..., -1], {"committed": held.any(-1)}
    for kind, of_kind in (("wrong", ~correct), ("right", correct)):
        at = held & of_kind[..., :starts]
        was = at.any(-1)
        first = at.argmax(-1)[..., None] if starts else np.zeros((*was.shape, 1), int)
        same = np.take_along_axis(values, first, -1)[..., 0] == end
        ends = {"none": end == "", "right": end_right & ~same, "wrong": ~end_right & ~same & (end != "")}
        out |= {f"committed_{kind}": was, f"{kind}_kept": was & same}
        out |= {f"{kind}_to_{other}": was & reached for other, reached in ends.items()}
    return xr.Dataset({name: (rest.dims, found) for name, found in out.items()}, rest.coords)


def _trajectories(array: xr.DataArray, caller: str) -> tuple[NDArray[Any], NDArray[Any], xr.DataArray]:
    """Return the step labels, the values [..., step], and the first step, for its dimensions and coordinates.

    Raises:
        DitLensError: there is no `step`, or its labels do not increase.
    """
    require_dims(array, ["step"], caller)
    array = array.compute().transpose(..., "step")
    steps = array["step"].to_numpy()
    if not (np.diff(steps) > 0).all():
        raise DitLensError(
            f"{caller}: the steps of {name_of(array)} do not increase: {steps.tolist()}; use .sortby('step')."
        )
    on_steps = [n for n, c in array.coords.items() if "step" in c.dims]
    return steps, array.to_numpy(), array.drop_vars(on_steps).isel(step=0)


def _require_strings(answers: xr.DataArray, values: NDArray[Any], caller: str) -> None:
    """Refuse answers [..., step] that are no strings, and name the first."""
    if values.dtype.kind not in "OUT":
        raise DitLensError(f"{caller}: {name_of(answers)} holds {values.dtype}, not strings.")
    for at in np.ndindex(values.shape) if values.dtype.kind == "O" else ():
        if not isinstance(values[at], str):
            answers = answers.transpose(..., "step")
            where = place(answers, dict(zip(map(str, answers.dims), at, strict=True)))
            raise DitLensError(
                f"{caller}: {name_of(answers)} is {values[at]!r} at {where}, not a string; "
                "read an answer there, or leave the place out."
            )
