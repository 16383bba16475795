"""Many samples through a diffusers transformer at once, outside its pipeline's loop.

The pipeline prepares each sample and runs up to its first calls of the model; what these are given is kept. At
another step the same inputs hold, but for the latents in `hidden_states` and the timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.call import Forward
from dit_lens.families.diffusers.intercept import Loop
from dit_lens.families.diffusers.latents import Arrangement, substitute
from dit_lens.families.early_exit import ending_in
from dit_lens.families.family import Anatomy, Batching, Prepared

OURS = ("latents", "noise", "arrangement", "first", "told")
"""What stands beside the model's own inputs: x_s; at the first step, x as the pipeline has it, the scheduler's
timestep, and what the model was told of it."""
SHARED = ("image_rotary_emb", "img_ids", "txt_ids")
"""Inputs that have no rows."""
REFUSED = {
    "guidance_rescale": "it needs both branches at once",
    "guidance_scale_2": "one scale serves all steps of a batch",
    "use_dynamic_cfg": "one scale serves all steps of a batch",
    "eta": "it draws noise at every step",
}
"""Arguments of a pipeline that a batch would not honour."""


def batching(branches: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Batching:
    """Return how the family batches.

    Args:
        branches: the pipeline call's keywords to the branches that it runs.
    """

    def prepared(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, Prepared]:
        return prepare(pipe, keywords, branches(keywords))

    def model(
        pipe: Any, dit: Any, given: Mapping[str, Any], latents: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"video": forward(pipe, dit, {**given, "latents": latents["video"]})}

    return Batching(prepared, model, expert, settle=settle, advance=advance)


_NO_LISTENER: Any = None


class _PreparedError(Exception):
    """Ends the pipeline's call once the model has been called on every branch."""


class Preparing(Loop):
    """The pipeline's loop up to its first step: keeps what the model is given, and runs it on nothing.

    Attributes:
        found: by branch, the model's inputs, with `OURS`.
        wanted: branches.
    """

    def __init__(self, pipe: Any, anatomy: Anatomy, wanted: tuple[str, ...]) -> None:
        super().__init__(pipe, anatomy, listener=_NO_LISTENER)  # nothing runs, nothing is recorded
        self.found: dict[str, Prepared] = {}
        self.wanted = wanted

    def serve(
        self,
        seen: Forward,
        x: Tensor,
        latents: Tensor,
        dit: Any,
        given: dict[str, Any],
        original: Callable[..., Any],
    ) -> Any:
        """Keep the inputs of a call."""
        hidden = given["hidden_states"]
        if seen.streams["video"].after:
            raise PlanError(f"{type(self.pipe).__name__} sets tokens behind the latents: use lens.run.")
        if held_frames(given["timestep"], self.arrangement) is not None and not torch.equal(
            hidden[: len(x)], x
        ):
            # It sets a clean frame over the latents at every step, and back at the end.
            raise PlanError(f"{type(self.pipe).__name__} puts a frame over its latents: use lens.run.")
        first = self.pipe.scheduler.timesteps[0]
        ours = {"latents": latents, "noise": x, "arrangement": self.arrangement, "first": float(first)}
        for branch, rows in seen.rows.items():
            own = {k: _of_rows(k, v, rows, len(hidden)) for k, v in given.items() if v is not dit}
            self.found[branch] = Prepared({**own, **ours, "told": own["timestep"]}, seen.streams)
        if set(self.found) >= set(self.wanted):
            raise _PreparedError
        return self.nothing(dit, given)


def prepare(pipe: Any, keywords: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, Prepared]:
    """Return, by branch, what the model is given at the first step of a pipeline's call.

    Raises:
        PlanError: a batch would not do what the pipeline does.
    """
    from dit_lens.families.diffusers import family_for

    for name, reason in REFUSED.items():
        if keywords.get(name):
            raise PlanError(f"{name}={keywords[name]!r} in a batch: {reason}; use lens.run.")
    loop = Preparing(pipe, family_for(pipe).anatomy, wanted)
    restore = loop.install()
    try:
        pipe(**keywords)
    except _PreparedError:
        return loop.found
    finally:
        restore()
        pipe.maybe_free_model_hooks()  # as its last line does
    raise PlanError(f"{type(pipe).__name__} never ran its model on {wanted}, only on {tuple(loop.found)}.")


def _of_rows(name: str, value: Any, rows: slice, count: int) -> Any:
    """Return a branch's rows of an input of the model."""
    if isinstance(value, Tensor) and value.ndim and len(value) == count and name not in SHARED:
        return value[rows]
    if isinstance(value, dict):
        return {k: _of_rows(k, v, rows, count) for k, v in value.items()}
    return value


def expert(pipe: Any, timestep: float, keywords: Mapping[str, Any]) -> str:
    """Return the name of the transformer that the pipeline's own loop takes at a timestep."""
    low, boundary = getattr(pipe, "transformer_2", None), pipe.config.get("boundary_ratio")
    if low is None or pipe.transformer is None:
        return "dit"
    return "high" if timestep >= boundary * pipe.scheduler.config.num_train_timesteps else "low"


def forward(pipe: Any, dit: Any, keywords: Mapping[str, Any]) -> Tensor:
    """Return the velocity [row, channel, frame, y, x] of one forward; see `Batching`."""
    latents: Tensor = keywords["latents"]
    arrangement: Arrangement = keywords["arrangement"]
    inputs = {name: value for name, value in keywords.items() if name not in OURS}
    old = keywords["noise"]
    inputs["hidden_states"] = substitute(inputs["hidden_states"], old, arrangement.write(latents, old))
    inputs["timestep"] = told(keywords["told"], keywords["first"], keywords["timestep"])
    out = dit(**{**inputs, "return_dict": False})[0]
    velocity = arrangement.read(out if out.ndim > 3 else out[:, : old.shape[1]])
    # A learned variance stands behind the channels of the velocity; the pipelines drop it.
    velocity = velocity[:, : latents.shape[1]]
    held = held_frames(keywords["told"], arrangement)
    return velocity if held is None else velocity.masked_fill(held[None, None, :, None, None], 0)


def settle(latents: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Put frames back that are held, as the pipeline does after every step."""
    arrangement: Arrangement = keywords["arrangement"]
    held = held_frames(keywords["told"], arrangement)
    if held is None:
        return latents
    return torch.where(held[:, None, None], arrangement.read(keywords["noise"]), latents)


def held_frames(told: Tensor, arrangement: Arrangement) -> Tensor | None:
    """Return which latent frames a model is told to be clean at the first step, [frame]; None where none is."""
    if told.ndim != 2 or bool((told == 0).all()) or not bool((told == 0).any()):
        return None
    tokens = told[0].view(arrangement.grid)
    return (tokens == 0).all(2).all(1).repeat_interleave(arrangement.pack[0])


def told(captured: Tensor, first: float, now: Tensor) -> Tensor:
    """Return what the model is told at a step, from what it was told at the first one.

    Models are told the scheduler's timestep, a multiple of it, or zero for frames that are held.

    Raises:
        PlanError: it is neither.
    """
    if bool((captured == first).all()):
        return now.to(captured).expand_as(captured)
    if first == 0:
        raise PlanError(
            f"The model is told {captured} at timestep 0, which does not say what it is told later."
        )
    share = captured.double() / first * float(now)
    return (share if captured.is_floating_point() else share.round()).to(captured.dtype)


def advance(scheduler: Any, velocity: Tensor, step: int, latents: Tensor) -> Tensor:
    """Return the latents of the next step; see `Batching`."""
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = step  # it counts its calls; here they come in any order
    after: Tensor = scheduler.step(velocity, scheduler.timesteps[step], latents, return_dict=False)[0]
    return after


# ---- readout


@torch.no_grad()
def readout(anatomy: Anatomy, pipe: Any, dit: Any, state: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Return the velocity [row, channel, frame, y, x] that the network gives if it ends after a block.

    The transformer runs once more, its blocks passing on what they are given, the last one the state: all that
    comes after the blocks (final norm, modulation by the time, projection) is the model's own code.

    Args:
        anatomy: of the pipeline.
        pipe: the pipeline.
        dit: the expert that ran.
        state: the block's video tokens, [row, token, channel].
        keywords: of the call (`Batch.keywords`), with `latents` and `timestep`.
    """
    with ending_in(anatomy, anatomy.block_list(dit), state):
        return forward(pipe, dit, keywords)
