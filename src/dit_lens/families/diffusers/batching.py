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
from dit_lens.families.diffusers.guidance import formula
from dit_lens.families.diffusers.intercept import Loop, ModelCall, refuse_moved
from dit_lens.families.diffusers.latents import Arrangement, substitute
from dit_lens.families.diffusers.pipeline import loop_of
from dit_lens.families.early_exit import ending_in
from dit_lens.families.family import Anatomy, Batching, Prepared

OURS = ("latents", "clean", "noise", "arrangement", "held", "first", "told")
"""What stands beside the model's own inputs: x_s, twice, as the step after it takes one away; at the first step, x as
the pipeline has it and how it is arranged; which latent frames are given, and not moved; the scheduler's timestep, and
what the model was told of it."""
SHARED = ("image_rotary_emb", "img_ids", "txt_ids")
"""Inputs that have no rows."""
REFUSED = {
    "callback_on_step_end": "it may change what the next step starts from",
    "mask_image": "the pipeline puts what lies outside of the mask back after every step",
    "eta": "it draws noise at every step",
}
"""Arguments of a pipeline that a batch would not honour."""
CONDITIONED = ("FluxFillPipeline",)
"""Pipelines that give their model the mask as a condition, and put nothing back."""


def batching(anatomy: Anatomy, branches: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Batching:
    """Return how the family batches.

    Args:
        anatomy: of the pipeline.
        branches: the pipeline call's keywords to the branches that it runs.
    """

    def prepared(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, Prepared]:
        return prepare(pipe, anatomy, keywords, branches(keywords))

    def model(
        pipe: Any, dit: Any, inputs: Mapping[str, Any], latents: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"video": forward(pipe, dit, {**inputs, "latents": latents["video"]})}

    return Batching(
        prepared,
        model,
        expert,
        settle=settle,
        blend=blend,
        advance=advance,
        refuse_moved=refuse_held,
        place=place,
    )


class _PreparedError(Exception):
    """Ends the pipeline's call once the model has been called on every branch."""


class Preparing(Loop):
    """The pipeline's loop up to its first step: keeps what the model is given, and runs it on nothing.

    Attributes:
        inputs: by branch, the model's inputs, with `OURS`.
        wanted: branches.
    """

    def __init__(self, pipe: Any, anatomy: Anatomy, wanted: tuple[str, ...]) -> None:
        super().__init__(pipe, anatomy)
        self.inputs: dict[str, Prepared] = {}
        self.wanted = wanted

    def serve(self, call: ModelCall) -> Any:
        """Keep the inputs of a call.

        Raises:
            PlanError: a batch would not give the model what the pipeline gives it.
        """
        start, what = call.start, type(self.pipe).__name__
        tokens, count = call.seen.streams["video"], len(call.inputs["hidden_states"])
        if tokens.after or tokens.before:
            raise PlanError(
                f"{what} sets {tokens.before} tokens before its latents and {tokens.after} behind them: use lens.run."
            )
        for branch, rows in call.seen.rows.items():
            inputs = {name: _of_rows(name, value, rows, count) for name, value in call.inputs.items()}
            told = inputs["timestep"]
            held = start.put_in | told_clean(told, start.arrangement, len(start.put_in))
            ours = {
                "latents": start.latents,
                "clean": start.latents,
                "noise": start.x,
                "arrangement": start.arrangement,
                "held": tuple(held.tolist()),
                "first": float(self.pipe.scheduler.timesteps[0]),
                "told": told,
            }
            self.inputs[branch] = Prepared({**inputs, **ours}, call.seen.streams)
        if set(self.inputs) >= set(self.wanted):
            raise _PreparedError
        return call.nothing()

    def advance(self, *args: Any) -> Tensor:
        """Refuse a step: it comes before the model has run on every branch.

        Raises:
            PlanError: always.
        """
        raise PlanError(
            f"{type(self.pipe).__name__} runs its model on {sorted(self.inputs)} alone in a step, and a batch "
            "with this cfg_scale needs "
            f"{list(self.wanted)}: use lens.run, or cfg_scale=1."
        )


def prepare(
    pipe: Any, anatomy: Anatomy, keywords: Mapping[str, Any], wanted: tuple[str, ...]
) -> dict[str, Prepared]:
    """Return, by branch, what the model is given at the first step of a pipeline's call.

    Raises:
        PlanError: a batch would not do what the pipeline does.
    """
    for name, reason in REFUSED.items():
        value = keywords.get(name)
        conditioned = name == "mask_image" and loop_of(pipe) in CONDITIONED
        if value is not None and value != 0 and not conditioned:
            raise PlanError(f"{name}= in a batch: {reason}; use lens.run.")
    if len(wanted) > 1:
        formula(pipe)
    loop = Preparing(pipe, anatomy, wanted)
    restore = loop.install()
    try:
        pipe(**keywords)
    except _PreparedError:
        return loop.inputs
    finally:
        restore()
        pipe.maybe_free_model_hooks()  # as its last line does
    raise PlanError(f"{type(pipe).__name__} never ran its model on {wanted}, only on {tuple(loop.inputs)}.")


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
    noise = keywords["noise"]
    inputs["hidden_states"] = substitute(inputs["hidden_states"], arrangement.write(latents, noise))
    inputs["timestep"] = told(keywords["told"], keywords["first"], keywords["timestep"])
    output = dit(**{**inputs, "return_dict": False})
    out = output[0] if isinstance(output, tuple) else output
    velocity = arrangement.read(out if out.ndim > 3 else out[:, : noise.shape[1]])
    # A learned variance stands behind the channels of the velocity; the pipelines drop it.
    return velocity[:, : latents.shape[1]]


def blend(
    scheduler: Any, timestep: Any, velocity: Tensor, latents: Tensor, keywords: Mapping[str, Any], stream: str
) -> Tensor:
    """Return the guided velocity, zero in frames that are given."""
    held = torch.tensor(keywords["held"], device=velocity.device)
    return velocity.masked_fill(held[:, None, None], 0) if bool(held.any()) else velocity


def refuse_held(pipe: Any, latents: Tensor, velocity: Tensor, step: int, keywords: Mapping[str, Any]) -> None:
    """Refuse an edit that would move frames that are given; see `Batching`."""
    refuse_moved(pipe, latents, velocity, torch.tensor(keywords["held"], device=latents.device), step)


def settle(latents: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Put given frames back, as the pipeline does after every step."""
    held = torch.tensor(keywords["held"], device=latents.device)
    if not bool(held.any()):
        return latents
    return torch.where(held[:, None, None], keywords["clean"].to(latents), latents)


def told_clean(told: Tensor, arrangement: Arrangement, frames: int) -> Tensor:
    """Return which latent frames a model is told to be clean at the first step, [frame] of bool."""
    none = torch.zeros(frames, dtype=torch.bool)
    if told.ndim != 2 or bool((told == 0).all()):
        return none
    tokens = told[0].view(arrangement.grid)
    clean = (tokens == 0).all(2).all(1)
    return clean.repeat_interleave(frames // len(clean)).cpu()


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


def place(scheduler: Any, step: int) -> None:
    """Let a scheduler stand where the pipeline's own does before a step; see `Batching`."""
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = step or None  # it looks for its place in its first step


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
