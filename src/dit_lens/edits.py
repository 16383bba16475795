"""Edits: pure functions that replace the value at a place.

An edit is any function `f(h, at) -> h` of a value `h[frame, y, x, channel]`; `at` (a `Spot`) says where it
is. It returns the same shape and type. `@options` lets it take options and stay data, so that a plan prints
and hashes.

A function may declare of itself, by an attribute: `f.over_seeds = True`, and h is [seed, frame, y, x, channel], all
seeds of a sample together; `f.reads_x0 = True`, and it is called on the latents as f(h, at, x0), with x0 of the step before
on the grid of h.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace as replace_fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.plan.functions import Configured, options
from dit_lens.plan.places import TEXT, Spot, head_dim

Edit = Callable[[Tensor, Spot], Tensor]
GRID = ["frame", "y", "x", "channel"]
ABLATIONS = ("zero", "token_mean", "token_shuffle", "mean", "resample")


def generator_at(at: Spot, salt: str, seed: int) -> torch.Generator:
    """Return a generator that depends on the place alone: the same on every device and in every replay."""
    key = f"{salt}/{seed}/{at.seed}/{at.site}/{at.step}/{at.branch}/{at.layer}/{at.sample}"
    if at.stream != "video" or at.stage:
        key += f"/{at.stream}/{at.stage}"
    if at.head is not None:
        key += f"/head {at.head}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))


@options
def add_noise(h: Tensor, at: Spot, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Add Gaussian noise of standard deviation `scale`, in units of the value itself (latents: about 1).

    The noise depends on the place and the seeds, not on any global state; a scale of 0 changes nothing, bit
    for bit.
    """
    if scale == 0:
        return h
    noise = torch.randn(h.shape, generator=generator_at(at, "noise", seed))
    return h + scale * noise.to(h)


@options
def noise(h: Tensor, at: Spot, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Replace by Gaussian noise of standard deviation `scale`: as latents, what a run starts from at sigma = 1.

    The noise is that of `add_noise` at the same place.
    """
    drawn = torch.randn(h.shape, generator=generator_at(at, "noise", seed))
    return scale * drawn.to(h)


@options
def renoise(h: Tensor, at: Spot, x0: Tensor, *, seed: int = 0) -> Tensor:
    """Draw the noise in the latents anew, and keep what the step before made of the answer.

    x_s becomes (1 - sigma_s) x0_{s-1} + sigma_s eps, a point of the same noise level on the straight path of flow matching
    from x0_{s-1} to other noise eps (that of `add_noise` at the same place).

    Args:
        h: latents x_s, [frame, y, x, channel].
        at: the place, from step 1 on.
        x0: of the step before, edits included, on the same grid.
        seed: of the noise, beside that of the run.
    """
    drawn = torch.randn(h.shape, generator=generator_at(at, "noise", seed))
    mixed = (1 - at.sigma) * x0.to(torch.promote_types(h.dtype, torch.float32)) + at.sigma * drawn.to(
        h.device
    )
    return mixed.to(h.dtype)


renoise.function.reads_x0 = True  # type: ignore[attr-defined]
renoise.function.site = "latents"  # type: ignore[attr-defined]


@options
def scale(h: Tensor, at: Spot, *, factor: float) -> Tensor:
    """Multiply by a factor."""
    return h * factor


@options
def zero(h: Tensor, at: Spot) -> Tensor:
    """Replace by zeros."""
    return torch.zeros_like(h)


@options
def replace(h: Tensor, at: Spot, *, value: Any) -> Tensor:
    """Replace by a value: a number, an array that broadcasts to [frame, y, x, channel], or a DataArray, by its dimensions."""
    try:
        new = torch.as_tensor(_values(_on_grid(value, at))).to(h)
    except (PlanError, ValueError) as error:
        raise PlanError(f"replace at {at}: {value!r} is neither a number nor an array ({error}).") from None
    try:
        return new.expand_as(h).clone()
    except RuntimeError:
        raise PlanError(
            f"replace at {at}: a value of shape {tuple(new.shape)} does not broadcast to {tuple(h.shape)} "
            "[frame, y, x, channel]."
        ) from None


@options
def patch(h: Tensor, at: Spot, *, source: Any, other_model: bool = False) -> Tensor:
    """Replace by the state that another run held at the same place.

    Args:
        h: [frame, y, x, channel].
        at: the place; its step, branch, layer and head are looked up in the source.
        source: an `xarray.DataArray` as `run["hidden"]` gives it, with a coordinate for every one of `step`,
            `branch`, `layer` and `head` that it spans; what it does not span is the same everywhere. One that says
            which model it is of (as `run["hidden"]` does) must be of this one.
        other_model: let it be of another model of the same architecture: a base model and its LoRA, two checkpoints.

    Raises:
        PlanError: the source was not recorded at this place, lacks a coordinate, or stands on another grid or
            another schedule of steps.
    """
    picked = _at_place(source, at, "patch", "source")
    _require_dims(picked, GRID, at, "patch", "source")
    return _fit(picked, h, at, "patch", "source")


@options
def steer(h: Tensor, at: Spot, *, direction: Any, scale: float = 1.0) -> Tensor:
    """Add `scale` times a direction [channel] to every token.

    Raises:
        PlanError: the direction has not as many channels as the value.
    """
    new = torch.as_tensor(_values(direction)).to(h)
    if new.shape != h.shape[-1:]:
        raise PlanError(
            f"steer at {at}: the direction has shape {tuple(new.shape)}, the value {h.shape[-1]} channels."
        )
    return h + scale * new


@options
def ablate(
    h: Tensor, at: Spot, *, to: str, reference: Any = None, seed: int = 0, direction: Any = None
) -> Tensor:
    """Take away what a value says, and leave something as ordinary in its place.

    | `to` | every token becomes | what is lost |
    |---|---|---|
    | `"zero"` | 0 | everything |
    | `"token_mean"` | the mean over all tokens of this very value | what tells tokens apart |
    | `"token_shuffle"` | another token of this very value, drawn without replacement | the place of each token |
    | `"mean"` | the mean at the same place over the samples of `reference` | what tells samples apart |
    | `"resample"` | what one sample of `reference`, drawn by `seed`, held at the same place | what tells samples apart |

    The mean and resample ablations of the literature are the last two: they are over data, so they need `reference`.

    Args:
        h: [frame, y, x, channel].
        at: the place; its step, branch and layer are looked up in the reference.
        to: one of the above.
        reference: states of other samples, an `xarray.DataArray` with the dimension `sample`, such as
            `xr.concat([run["hidden"] for run in runs], "sample")`; for step, branch and layer as in `patch`.
        seed: of the drawing; one sample is drawn for all places of a run, tokens are shuffled anew at each.
        direction: [channel], or [direction, channel] for what several span: what a token holds along it alone is taken away,
            and the rest of it stays. Default: all channels.

    Raises:
        PlanError: `to` is none of these, a reference is missing or not wanted, or it does not fit the place; a direction has
            not as many channels as the value, or is 0.
    """
    away = _ablated(h, at, to, reference, seed)
    if direction is None:
        return away
    basis = _basis(direction, h, at)
    change = (away.to(basis) - h.to(basis)) @ basis.T @ basis
    return (h.to(basis) + change).to(h.dtype)


def _basis(direction: Any, h: Tensor, at: Spot) -> Tensor:
    """Return orthonormal directions that span what some directions span, [direction, channel].

    Raises:
        PlanError: they have not as many channels as the value, or depend on one another.
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    rows = torch.atleast_2d(torch.as_tensor(_values(direction))).to(h.device, wide)
    if rows.ndim != 2 or rows.shape[1] != h.shape[-1]:
        raise PlanError(
            f"ablate at {at}: the direction has shape {tuple(rows.shape)}, the value {h.shape[-1]} channels."
        )
    lengths = rows.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()) or not bool(torch.isfinite(rows).all()):
        raise PlanError(f"ablate at {at}: a direction is 0, NaN or Inf, and points nowhere.")
    columns, upper = torch.linalg.qr((rows / lengths).T)
    if float(upper.diagonal().abs().min()) < 1e-5:
        raise PlanError(f"ablate at {at}: the directions depend on one another: leave some of them out.")
    return columns.T


def _ablated(h: Tensor, at: Spot, to: str, reference: Any, seed: int) -> Tensor:
    """Return a value with all its channels ablated; see `ablate`."""
    if to not in ABLATIONS:
        raise PlanError(f"ablate(to={to!r}): it is one of {', '.join(ABLATIONS)}.")
    if (reference is not None) != (to in ("mean", "resample")):
        said = "needs reference=, states of other samples" if reference is None else "takes no reference"
        raise PlanError(
            f"ablate(to={to!r}) {said}: "
            "'mean' and 'resample' are over samples, 'token_mean' and 'token_shuffle' over the tokens of one value."
        )
    if to == "zero":
        return torch.zeros_like(h)
    if to == "token_mean":
        mean = h.mean((0, 1, 2), dtype=torch.promote_types(h.dtype, torch.float32))
        return mean.to(h.dtype).expand_as(h).clone()
    if to == "token_shuffle":
        order = torch.randperm(h[..., 0].numel(), generator=generator_at(at, "shuffle", seed))
        return h.flatten(0, 2)[order.to(h.device)].unflatten(0, h.shape[:3])
    picked = _at_place(reference, at, "ablate", "reference")
    _require_dims(picked, ["sample", *GRID], at, "ablate", "reference")
    if to == "resample":
        run = replace_fields(at, site="", step=0, branch=None, layer=None, head=None)
        drawn = torch.randint(len(picked), (), generator=generator_at(run, "resample", seed))
        return _fit(picked[int(drawn)], h, at, "ablate", "reference")
    return _fit(picked.mean("sample", skipna=False), h, at, "ablate", "reference")


@options
def mean_over_seeds(h: Tensor, at: Spot) -> Tensor:
    """Replace the value of every seed by their mean: h is [seed, frame, y, x, channel]. For `lens.batch`.

    The training-free ensemble of arXiv 2603.16870. Where all seeds agree already, nothing changes, bit for bit. A function of
    your own that calls it sees the seeds only where it says so, by its attribute `over_seeds`.

    Raises:
        PlanError: h is of one seed.
    """
    _require_seeds("mean_over_seeds", h, at)
    if bool((h == h[:1]).all()):
        return h
    return h.mean(0, keepdim=True, dtype=torch.promote_types(h.dtype, torch.float32)).to(h.dtype).expand_as(h)


mean_over_seeds.function.over_seeds = True  # type: ignore[attr-defined]


@options
def medoid_over_seeds(h: Tensor, at: Spot) -> Tensor:
    """Replace the value of every seed by that of their medoid: h is [seed, frame, y, x, channel]. For `lens.batch`.

    The medoid is the seed whose Euclidean distances to all seeds have the least sum (Kaufman & Rousseeuw 1987); of several, it is
    the first. A mean is a value that the model may never make; a medoid is one that it has made. Where all seeds agree already,
    nothing changes, bit for bit. A function of your own that calls it declares `over_seeds`, as for `mean_over_seeds`.

    Raises:
        PlanError: h is of one seed.
    """
    _require_seeds("medoid_over_seeds", h, at)
    exact = torch.promote_types(h.dtype, torch.float32)
    # Pairs one by one: states may be large, and squares of norms would lose the digits of small distances.
    totals = [float(sum(torch.dist(a.to(exact), b.to(exact)) for b in h)) for a in h]
    return h[totals.index(min(totals))].expand_as(h)


medoid_over_seeds.function.over_seeds = True  # type: ignore[attr-defined]


def _require_seeds(edit: str, h: Tensor, at: Spot) -> None:
    """Refuse a value of one seed, whose first dimension would be taken for seeds.

    Raises:
        PlanError: it names the edit and the remedy.
    """
    if h.ndim != 5:
        raise PlanError(
            f"{edit} at {at}: it was given {tuple(h.shape)}, which is one seed [frame, y, x, channel]. A function that "
            "calls it declares that it sees all seeds: f.over_seeds = True."
        )


def _refuse_several(edit: str, option: str, **chosen: Any) -> None:
    """Refuse a run or a dataset in place of one of its arrays, when the edit is made.

    Raises:
        PlanError: it names the edit and what to give.
    """
    value = chosen[option]
    if hasattr(value, "data_vars") or hasattr(value, "dataset"):
        raise PlanError(
            f"{edit}({option}=...): a {type(value).__name__} holds several arrays; give one, such as "
            'run["hidden"].'
        )


def _require_array(edit: str, option: str, optional: bool, **chosen: Any) -> None:
    """Refuse what is no array of states, when the edit is made.

    Raises:
        PlanError: it names the edit and what to give.
    """
    _refuse_several(edit, option, **chosen)
    value = chosen[option]
    if value is None and optional:
        return
    if not isinstance(value, int | float | list | tuple) and not hasattr(value, "shape"):
        raise PlanError(
            f'{edit}({option}=...): a {type(value).__name__} is no array; give one, such as run["hidden"].'
        )


def _at_place(source: Any, at: Spot, edit: str, what: str) -> Any:
    """Look a place up in states that may span step, branch and layer, by their coordinates."""
    picked, dims = source, getattr(source, "dims", ())
    for dim in ("step", "branch", "layer", head_dim(at.stream)):
        if dim not in dims:
            continue
        if dim not in source.coords:
            raise PlanError(
                f"{edit} at {at}: the {what} spans {dim} without a coordinate, so that nothing says which is "
                f"which: add it with {what}.assign_coords({dim}=...)."
            )
        label, labels = getattr(at, dim.partition("_")[0]), source[dim].values.tolist()
        if label not in labels:
            raise PlanError(
                f"{edit} at {at}: the {what} has no {dim}={label!r}, only {labels}; "
                "place the edit there, or record more."
            )
        picked = picked.sel({dim: label})
    if "step" in dims and "sigma" in picked.coords and abs(float(picked.sigma) - at.sigma) > 1e-4:
        raise PlanError(
            f"{edit} at {at}: the {what}'s step {at.step} has sigma {float(picked.sigma):.4f}, this run's {at.sigma:.4f}: "
            f"{edit} between runs of the same number of steps, or select one step of the {what} to put it anywhere."
        )
    return _as_value(picked, at)


def _as_value(picked: Any, at: Spot) -> Any:
    """Return states of a store with the dimensions that a value has: channels of a head, and text on its grid."""
    dims = getattr(picked, "dims", ())
    channels = {dim: str(dim).removeprefix("head_") for dim in dims if str(dim).startswith("head_channel")}
    if channels:
        picked = picked.rename(channels)
    if at.stream != TEXT or "text_token" not in dims or not hasattr(picked, "expand_dims"):
        return picked
    others = [dim for dim in dims if dim == "sample"]
    lines = picked.rename(text_token="x").drop_vars("x", errors="ignore").expand_dims(["frame", "y"])
    return lines.transpose(*others, "frame", "y", "x", ...)


def _on_grid(value: Any, at: Spot) -> Any:
    """Return a DataArray on [frame, y, x, channel] of size 1 where it has no such dimension; anything else as it is.

    Raises:
        PlanError: it has another dimension.
    """
    if not hasattr(value, "dims") or not hasattr(value, "expand_dims"):
        return value
    names = {dim: _grid_name(dim, at) for dim in value.dims}
    if not set(names.values()) & set(GRID):
        return value  # nameless dimensions go by position
    if unknown := [dim for dim, name in names.items() if name not in GRID]:
        raise PlanError(
            f"replace at {at}: the value spans {', '.join(map(str, unknown))}: select one of each."
        )
    plain = value.drop_vars(list(value.coords)).rename(names)
    return plain.expand_dims([dim for dim in GRID if dim not in plain.dims]).transpose(*GRID)


def _grid_name(dim: Any, at: Spot) -> str:
    """Return the name on the grid of a dimension of a store, which says its stream and whether it is of latents."""
    return str(dim).removeprefix("latent_").removesuffix(f"_{at.stream}")


def _require_dims(picked: Any, wanted: list[str], at: Spot, edit: str, what: str) -> None:
    dims = getattr(picked, "dims", GRID)
    left = [_grid_name(dim, at) for dim in dims]
    if left != wanted:
        raise PlanError(
            f"{edit} at {at}: the {what} has the dimensions {left} there, and should have {wanted}: "
            "select one of what is more, and transpose."
        )


def _fit(picked: Any, h: Tensor, at: Spot, edit: str, what: str) -> Tensor:
    """Return looked-up states [frame, y, x, channel] as the value's type, on its device."""
    new = torch.as_tensor(_values(picked)).to(h)
    if new.shape != h.shape:
        raise PlanError(
            f"{edit} at {at}: the {what} is {tuple(new.shape)} there, the value {tuple(h.shape)} "
            f"[frame, y, x, channel]; {edit} between runs of one grid."
        )
    if bool(torch.isnan(new).any()) and not bool(torch.isnan(h).any()):
        raise PlanError(
            f"{edit} at {at}: the {what} holds NaN there, which means that it was never recorded."
        )
    return new


def _values(value: Any) -> Any:
    """Return what torch can read of a number, a tensor, an array or a DataArray."""
    if isinstance(value, Tensor | int | float):
        return value
    import numpy as np

    array = np.array(value)  # a copy: arrays read from a store may not be writable
    if array.dtype == np.uint16:
        raise PlanError(
            f"{type(value).__name__} of uint16 holds the bits of bfloat16 numbers, or no states: read it by dl.open_run(path), "
            "which gives numbers, or convert it to a type of floats first."
        )
    if array.dtype.kind not in "fiubc":
        raise PlanError(
            f"{type(value).__name__} of {array.dtype} holds no numbers: give numbers or an array of them."
        )
    return array


patch.function.check_options = partial(_require_array, "patch", "source", False)  # type: ignore[attr-defined]
replace.function.check_options = partial(_refuse_several, "replace", "value")  # type: ignore[attr-defined]
steer.function.check_options = partial(_require_array, "steer", "direction", False)  # type: ignore[attr-defined]
ablate.function.check_options = partial(_require_array, "ablate", "reference", True)  # type: ignore[attr-defined]

__all__ = [
    "Configured",
    "Edit",
    "ablate",
    "add_noise",
    "mean_over_seeds",
    "medoid_over_seeds",
    "noise",
    "patch",
    "renoise",
    "replace",
    "scale",
    "steer",
    "zero",
]
