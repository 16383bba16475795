"""Records: pure functions that read the value at a place.

A record is any function `f(h) -> tensor` of a value arranged on its grid, `h[frame, y, x, channel]`. The
dimensions that it keeps are declared once, with `keeps`; the library adds step, branch and layer. Nothing
here knows a model: each function is tested on a small tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from dit_lens.errors import PlanError

Record = Callable[[Tensor], Tensor]
F = TypeVar("F", bound=Record)


def keeps(*dims: str, site: str | None = None, units: str = "1", long_name: str = "") -> Callable[[F], F]:
    """Declare what a record returns.

    Args:
        dims: names of the dimensions of its result, in order, such as "frame", "y", "x".
        site: where it reads unless the place says otherwise; `block` by default.
        units: units of its values; "1" for the model's own.
        long_name: what it is, in words.

    Raises:
        PlanError: a dimension is no name.

    Example:
        >>> @keeps("channel", long_name="mean over tokens")
        ... def token_mean(h):
        ...     return h.float().mean((0, 1, 2))
    """
    if bad := [dim for dim in dims if not isinstance(dim, str)]:
        raise PlanError(
            f"keeps({bad[0]!r}): name the dimensions of the result, each on its own, as @dl.keeps('frame', 'y')."
        )

    def declare(function: F) -> F:
        words = long_name or getattr(function, "__name__", type(function).__name__)
        declared = {"dims": dims, "site": site, "units": units, "long_name": words}
        for name, value in declared.items():
            setattr(function, name, value)
        return function

    return declare


@keeps("frame", "y", "x", long_name="activation energy (L2 norm over channel)")
def energy(h: Tensor) -> Tensor:
    """L2 norm over channel of every token: [frame, y, x]."""
    return torch.linalg.vector_norm(h, dim=-1, dtype=torch.promote_types(h.dtype, torch.float32))


@keeps("frame", "y", "x", "channel", long_name="hidden state")
def hidden(h: Tensor) -> Tensor:
    """The whole state, without loss: [frame, y, x, channel]."""
    return h


@keeps("channel", long_name="variance over tokens")
def channel_variance(h: Tensor) -> Tensor:
    """Population variance over all tokens of every channel: [channel]."""
    return _precise(h).flatten(0, -2).var(0, correction=0)


@keeps("channel", long_name="mean over tokens")
def channel_mean(h: Tensor) -> Tensor:
    """Mean over all tokens of every channel: [channel]."""
    return _precise(h).flatten(0, -2).mean(0)


def _precise(h: Tensor) -> Tensor:
    """Return a value as float32, or as float64 where it is that."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


@keeps("frame", "y", "x", "channel", site="x0", long_name="clean latent estimated at the step")
def x0(h: Tensor) -> Tensor:
    """The clean latent that the model believes in at a step, x0 = x_s - sigma * v."""
    return h


@keeps("frame", "y", "x", "channel", site="latents", long_name="latent that the step starts from")
def latents(h: Tensor) -> Tensor:
    """x_s: the latent as the model sees it at a step."""
    return h


@keeps("frame", "y", "x", "channel", site="velocity", long_name="velocity after guidance")
def velocity(h: Tensor) -> Tensor:
    """v: the velocity that the scheduler steps with, after guidance."""
    return h


PURE = frozenset(map(id, (energy, hidden, channel_variance, channel_mean, x0, latents, velocity)))
"""The functions above, by identity: they change nothing and keep nothing, so they need no copy of what they read."""
