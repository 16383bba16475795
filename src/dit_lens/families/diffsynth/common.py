"""What all DiffSynth pipelines share: `model_fn` and the scheduler's `step` are wrapped on the instances."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError
from dit_lens.families.call import Forward, Listener, Schedule
from dit_lens.families.family import Anatomy, Prepared
from dit_lens.families.patching import MARK, refuse_traced, set_attribute, undo_all
from dit_lens.tasks.sample import as_frames

if TYPE_CHECKING:
    from torch import Tensor


def interceptor(
    look: Callable[[Any, dict[str, Any]], Forward],
    hold: Callable[[Tensor, Mapping[str, Any]], Tensor] = lambda velocity, keywords: velocity,
) -> Callable[[Any, Anatomy, Listener], Callable[[], None]]:
    """Make a family's `intercept` out of a function that labels one call.

    Args:
        look: (pipe, keywords of `model_fn`) to what the call says of itself.
        hold: (velocity, keywords of `model_fn`) to the velocity without what the pipeline does not let move.
    """

    def intercept(pipe: Any, anatomy: Anatomy, listener: Listener) -> Callable[[], None]:
        model_fn, scheduler = pipe.model_fn, pipe.scheduler
        step = scheduler.step
        refuse_traced(pipe, model_fn)
        last: dict[str, Any] = {}  # keywords of the call before the step

        def call(**keywords: Any) -> Tensor:
            last.update(keywords)
            latents, forward = keywords["latents"], look(pipe, keywords)

            def proceed(latents: Mapping[str, Tensor]) -> Tensor:
                return model_fn(**{**keywords, "latents": latents["video"]})

            def skip() -> Tensor:
                rows = max(rows.stop for rows in forward.rows.values())
                return latents.new_zeros((rows, *latents.shape[1:]))

            return listener.call(forward, {"video": latents}, proceed, skip)

        def advance(model_output: Tensor, timestep: Any, sample: Tensor, **keywords: Any) -> Tensor:
            velocity = hold(model_output, last)
            return listener.advance(velocity, timestep, sample, lambda v, x: step(v, timestep, x, **keywords))

        setattr(call, MARK, True)
        return undo_all([set_attribute(pipe, "model_fn", call), set_attribute(scheduler, "step", advance)])

    return intercept


def schedule(scheduler: Any) -> Schedule:
    """Return the noise levels of DiffSynth's flow-matching schedulers, once their steps are set."""
    timesteps = [float(t) for t in scheduler.timesteps]
    state = "a generator of noise" if getattr(scheduler, "generator", None) is not None else ""
    return Schedule([float(s) for s in scheduler.sigmas][: len(timesteps)], timesteps, state)


def quiet(pipe: Any, keywords: dict[str, Any]) -> Callable[[], None]:
    """Keep the progress bar away, unless the caller has given one of his own."""
    keywords.setdefault("progress_bar_cmd", lambda steps: steps)
    return lambda: None


def outputs(output: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoded frames, where the pipeline was asked for them."""
    return {"video": as_frames(output)} if decoded(keywords) else {}


def facts(pipe: Any) -> dict[str, Any]:
    """Return what of a DiffSynth pipeline changes results, beside its components and arguments."""
    return {"device": str(pipe.device), "vram_management": bool(pipe.vram_management_enabled)}


def run_model(
    pipe: Any, dit: Any, keywords: Mapping[str, Any], latents: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run one branch outside the pipeline's loop; see `Batching.model`."""
    of_step = {"dit": dit, "latents": latents["video"], "timestep": told(pipe, keywords["timestep"])}
    return {"video": pipe.model_fn(**{**keywords, **of_step})}


def told(pipe: Any, timestep: Tensor) -> Tensor:
    """Return a timestep of the scheduler as the pipeline's loop hands it to the model."""
    return timestep.unsqueeze(0).to(dtype=pipe.torch_dtype, device=pipe.device)


def refuse_tiled(keywords: Mapping[str, Any]) -> None:
    """Refuse a batch of a pipeline that decodes in tiles, or frame by frame: batches decode whole.

    Raises:
        PlanError: it does.
    """
    for name in ("tiled", "framewise_decoding"):
        if keywords.get(name):
            raise PlanError(
                f"{name}=True in a batch: it decodes whole videos. Leave it out, or use lens.run."
            )


def decoded(keywords: Mapping[str, Any]) -> bool:
    """Say whether a DiffSynth pipeline decodes to pixels; see `Codec.decoded`."""
    return bool(keywords.get("output_type", "quantized") == "quantized")


class _ReachedModelError(Exception):
    """Ends the pipeline's call once its units have done their work."""


def prepare(
    branches: Callable[[Mapping[str, Any]], tuple[str, ...]],
    look: Callable[[Any, dict[str, Any]], Forward],
    blank: Callable[[Mapping[str, Any]], Any] = itemgetter("latents"),
) -> Callable[..., dict[str, Prepared]]:
    """Make a family's `Batching.prepare`: the pipeline runs up to its first calls of `model_fn`, and no further.

    Args:
        branches: the pipeline call's keywords to the branches that it runs, in order.
        look: (pipe, keywords of `model_fn`) to what the call says of itself.
        blank: keywords of `model_fn` to something of the shape of what it returns.
    """

    def prepared(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, Prepared]:
        names, calls = branches(keywords), []
        known = inspect.signature(pipe.model_fn).parameters

        def model_fn(**inputs: Any) -> Any:
            # What the model does not name (seeds, prompts, images) has done its work in the units.
            named = {k: v for k, v in inputs.items() if k in known or hasattr(v, "shape")}
            calls.append(Prepared(named, look(pipe, inputs).streams))
            if len(calls) == len(names):
                raise _ReachedModelError
            return blank(inputs)

        put_back = set_attribute(pipe, "model_fn", model_fn)
        try:
            pipe(**keywords)
        except _ReachedModelError:
            return dict(zip(names, calls, strict=True))
        finally:
            put_back()
        raise PlanError(f"{type(pipe).__name__} never called its model.")

    return prepared
