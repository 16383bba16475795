"""The calls of a diffusers pipeline, wrapped on its instances while a run lasts.

Expert: the transformer whose `forward` runs. Branch: the name that the pipeline gives to `cache_context`, or the
rows of a merged batch. Step, x_s and velocity: the scheduler's `step`; the first x_s comes from
`prepare_latents`, or from the model's input where the pipeline has no such method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.call import Forward, Listener, Tokens
from dit_lens.families.diffusers.latents import Arrangement, arrange, substitute
from dit_lens.families.diffusers.merged import merged_order
from dit_lens.families.family import Anatomy
from dit_lens.families.patching import MARK, refuse_traced, set_attribute, undo_all
from dit_lens.families.site import Item, pick, put

if TYPE_CHECKING:
    from torch import Tensor


def intercept(pipe: Any, anatomy: Anatomy, listener: Listener) -> Callable[[], None]:
    """Wrap the calls of a pipeline; returns what undoes it.

    Raises:
        PlanError: the pipeline is being traced already.
    """
    refuse_traced(pipe, pipe.scheduler.step)
    return Loop(pipe, anatomy, listener).install()


class Loop:
    """The pipeline's denoising loop, as it goes.

    Args:
        pipe: the pipeline.
        anatomy: of it.
        listener: the run in progress.
    """

    def __init__(self, pipe: Any, anatomy: Anatomy, listener: Listener) -> None:
        self.pipe, self.anatomy, self.listener = pipe, anatomy, listener
        self.context: str | None = None  # what the pipeline calls the branch that runs
        self.x: Tensor | None = None  # x_s, as the pipeline has it
        self.latents: Tensor | None = None  # x_s, [row, channel, frame, y, x]; one object a step
        self.arrangement = Arrangement((0, 0, 0))

    def install(self) -> Callable[[], None]:
        """Wrap; returns what undoes it."""
        pipe = self.pipe
        undo = [set_attribute(pipe.scheduler, "step", self._step(pipe.scheduler.step))]
        if hasattr(pipe, "prepare_latents"):
            undo.append(set_attribute(pipe, "prepare_latents", self._prepare(pipe.prepare_latents)))
        for name, dit in self.anatomy.dits(pipe).items():
            undo.append(set_attribute(dit, "forward", self._forward(name, dit)))
            if hasattr(dit, "cache_context"):
                undo.append(set_attribute(dit, "cache_context", self._context(dit.cache_context)))
        return undo_all(undo)

    # ---- wrappers

    def _prepare(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            self.x = out[0] if isinstance(out, tuple) else out
            return out

        return prepare_latents

    def _context(self, original: Any) -> Callable[..., Any]:
        @contextmanager
        def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
            before, self.context = self.context, name
            try:
                with original(name, **kwargs):
                    yield
            finally:
                self.context = before

        return cache_context

    def _forward(self, expert: str, dit: Any) -> Callable[..., Any]:
        original, signature = dit.forward, inspect.signature(type(dit).forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(dit, *args, **kwargs).arguments)
            hidden = given["hidden_states"]
            x, latents = self._start(dit, hidden, given)
            seen = self._look(expert, x, hidden, given)
            return self.serve(seen, x, latents, dit, given, original)

        return forward

    def _step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def step(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            x, latents, held = self._check(given["sample"], given["model_output"])
            still = latents[:, :, :held]
            velocity = self._read(given["model_output"], torch.zeros_like(still))
            done: dict[str, Any] = {}

            def proceed(new_velocity: Tensor, new_latents: Tensor) -> Tensor:
                inputs = dict(given)
                if new_velocity is not velocity:
                    inputs["model_output"] = self._write(new_velocity[:, :, held:], given["model_output"])
                if new_latents is not latents:
                    inputs["sample"] = self._write(new_latents[:, :, held:], given["sample"])
                done["out"] = original(**inputs)
                out = self._read(pick(done["out"], _item(done["out"])), still)
                done["latents"] = out
                return out

            after = self.listener.advance(velocity, given["timestep"], latents, proceed)
            out, item = done["out"], _item(done["out"])
            if after is not done["latents"]:
                out = put(out, item, self._write(after[:, :, held:], pick(out, item)))
            self.x, self.latents = self.arrangement.write(after, x).to(x.dtype), None
            return out

        setattr(step, MARK, True)
        return step

    def serve(
        self,
        seen: Forward,
        x: Tensor,
        latents: Tensor,
        dit: Any,
        given: dict[str, Any],
        original: Callable[..., Any],
    ) -> Any:
        """Hand one forward to the listener."""
        hidden = given["hidden_states"]
        inputs = {name: value for name, value in given.items() if value is not dit}

        def proceed(new: Mapping[str, Tensor]) -> Any:
            if new["video"] is latents:
                return original(**inputs)
            edited = self.arrangement.write(new["video"], x)
            return original(**{**inputs, "hidden_states": substitute(hidden, x, edited)})

        return self.listener.call(seen, {"video": latents}, proceed, lambda: self.nothing(dit, given))

    # ---- what a call says

    def _start(self, dit: Any, hidden: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return x_s as the pipeline has it, and as the session does: one object in all calls of a step."""
        if self.x is None or self.latents is None:
            if self.x is None:
                half = len(hidden) // 2
                # Noise does not repeat by chance: both halves of a merged batch start from the same.
                merged = len(hidden) == 2 * half and torch.equal(hidden[:half], hidden[half:])
                self.x = hidden[:half] if merged else hidden
            self.arrangement = arrange(self.pipe, dit, self.x, given)
            self.latents = self.arrangement.read(self.x)
        return self.x, self.latents

    def _look(self, expert: str, x: Tensor, hidden: Tensor, given: Mapping[str, Any]) -> Forward:
        count, grid = len(x), self.arrangement.grid
        # Packed latents may be followed by other tokens, such as those of a reference image.
        more = hidden.shape[1] - x.shape[1] if x.ndim == 3 else 0
        streams = {"video": Tokens(grid, after=more)}
        if "text" in self.anatomy.sites:
            streams["text"] = Tokens((1, 1, given["encoder_hidden_states"].shape[1]))
        timestep = given["timestep"]
        told = float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep)
        return Forward(expert, self._rows(len(hidden), count), streams, told)

    def _rows(self, rows: int, count: int) -> dict[str, slice]:
        """Return the rows of each branch.

        Raises:
            PlanError: the branch is unknown.
        """
        if rows == 2 * count and self.context in (None, "cond_uncond"):
            first, second = merged_order(self.pipe)
            return {first: slice(0, count), second: slice(count, rows)}
        if rows == count and self.context in (None, "cond_uncond"):
            return {"cond": slice(0, count)}
        if rows == count and self.context is not None:
            return {self.context: slice(0, count)}
        raise PlanError(
            f"{type(self.pipe).__name__} runs its model on {rows} rows for {count} latents, and calls that "
            f"{self.context!r}: which guidance branches these are is not known here."
        )

    def nothing(self, dit: Any, given: Mapping[str, Any]) -> Any:
        """Return zeros of the shape that the model gives, where its output is not needed."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        hidden = given["hidden_states"]
        shape = list(hidden.shape)
        channel = 2 if hidden.ndim == 3 or self.arrangement.frame_first else 1
        shape[channel] = getattr(dit.config, "out_channels", None) or dit.config.in_channels
        zeros = hidden.new_zeros(shape)
        return Transformer2DModelOutput(sample=zeros) if given.get("return_dict", True) else (zeros,)

    def _check(self, sample: Tensor, output: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return x_s, as the pipeline has it and as the session does, and how many frames are held.

        Raises:
            CaptureError: the scheduler steps from something else than what the model saw.
        """
        x, latents = self.x, self.latents
        if x is None or latents is None:
            raise CaptureError("The scheduler stepped before the model ran.")
        held = 0
        if sample.ndim == 5:  # a given first frame may be left out
            held = latents.shape[2] - sample.shape[1 if self.arrangement.frame_first else 2]
        same = held >= 0 and output.shape == sample.shape and len(sample) % len(x) == 0
        if same:
            stepped, seen = self._read(sample, latents[:, :, :held]), latents
            same = stepped.shape == seen.shape and torch.equal(stepped.to(seen.dtype), seen)
        if not same:
            raise CaptureError(
                f"{type(self.pipe).__name__}: the scheduler steps from a sample {tuple(sample.shape)} with an output "
                f"{tuple(output.shape)}; these are not the latents {tuple(x.shape)} that the last step left. A callback, or "
                "the pipeline itself, changes or cuts latents between steps (a frame put back, a learned variance): such a "
                "run cannot be labelled."
            )
        return x, latents, held

    def _read(self, value: Tensor, still: Tensor) -> Tensor:
        """Return what the scheduler is given or gives as [row, channel, frame, y, x], with the held frames before it."""
        out = self.arrangement.read(value[: len(still)])
        return torch.cat([still.to(out.dtype), out], 2) if still.shape[2] else out

    def _write(self, value: Tensor, like: Tensor) -> Tensor:
        """Return latents as the scheduler is given them; some pipelines give it both branches' rows."""
        out = self.arrangement.write(value, like).to(like.dtype)
        return out if len(out) == len(like) else torch.cat([out] * (len(like) // len(out)))


def _item(output: Any) -> Item:
    return (0,) if isinstance(output, tuple) else ("prev_sample",)
