"""One step of a loop of the user's own, as `capture` gives it: what it starts from, its calls, and the velocity that it tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_lens.engine.recorder import same_bits
from dit_lens.errors import CaptureError
from dit_lens.families.call import Forward
from dit_lens.families.site import Tokens

if TYPE_CHECKING:
    from dit_lens.engine.capture import Capture


class CapturedStep:
    """One step of a loop of the user's own.

    Attributes:
        number: 0 the noisiest.
        sigma: its noise level.
        timestep: what the model is told.
        branches: guidance branches that run in it.
        solved: streams whose velocity was told.
    """

    def __init__(
        self,
        capture: Capture,
        number: int,
        expert: str,
        start: Mapping[str, Tensor],
        unedited: Mapping[str, Tensor],
    ) -> None:
        self._capture, self._expert, self._start, self._unedited = capture, expert, start, unedited
        self.branches = capture.stepper.expected
        self.number = number
        self.sigma = capture.schedule.sigmas[number]
        self.timestep = capture.schedule.timesteps[number]
        self.solved: set[str] = set()
        self._is_taken = False  # whether the loop has asked for what the step starts from
        self._began = {stream: x.detach().clone() for stream, x in start.items()}
        # Where an edit has changed x_s or the velocity, by stream: a loop that ignores it goes from one of some pairs of x_s and
        # velocity, one that does not from the last of them.
        self._ways: dict[str, list[tuple[str, Tensor, Tensor]]] = {}

    @property
    def latents(self) -> Tensor:
        """What the step starts from, edits included: [row, channel, frame, y, x] of the video."""
        return self.streams["video"]

    @property
    def streams(self) -> Mapping[str, Tensor]:
        """What the step starts from, edits included, by stream."""
        self._is_taken = True
        return self._start

    @contextmanager
    def call(
        self,
        branch: str | Sequence[str] = "cond",
        before: int | None = None,
        after: int | None = None,
        streams: Mapping[str, tuple[int, int, int]] | None = None,
    ) -> Iterator[None]:
        """Run the model once inside this context.

        Args:
            branch: the guidance branch, or several that one batch carries, in the order of its rows.
            before: tokens before those of the video's grid. Default: the family's.
            after: tokens after them. Default: the family's.
            streams: (frame, y, x) counts of the tokens of other streams.
        """
        capture, names = self._capture, branch_names(branch)
        rows = len(capture.stepper.visitor.rows)
        own = capture.tokens(self._start["video"], self._expert)
        around = own.before if before is None else before, own.after if after is None else after
        tokens = {"video": Tokens(own.grid, *around)}
        tokens |= {stream: Tokens(counts) for stream, counts in (streams or {}).items()}
        parts = {name: slice(n * rows, (n + 1) * rows) for n, name in enumerate(names)}
        with ExitStack() as hooks:
            dit = capture.specimen.dits[self._expert]
            hooks.callback(dit.register_forward_pre_hook(self._refuse_unedited, with_kwargs=True).remove)
            for expert, other in capture.specimen.dits.items():
                if other is not dit:
                    first = capture.specimen.blocks(other)[0]  # some pipelines call the blocks by themselves
                    hooks.callback(
                        first.register_forward_pre_hook(partial(self._refuse_expert, expert)).remove
                    )
            hooks.enter_context(capture.stepper.calling(Forward(self._expert, parts, tokens, self.timestep)))
            yield
        if self._unedited and not self._is_taken:
            raise CaptureError(
                f"capture: the latents of step {self.number} are edited, and its call never asked for them: hand the model "
                "step.latents (or step.streams)."
            )

    def _refuse_expert(self, expert: str, *_: Any) -> None:
        """Refuse a DiT that runs in place of the one that the step was told."""
        raise CaptureError(
            f"capture: the expert {expert!r} runs in step {self.number}, which was told {self._expert!r}: say which one "
            f"serves it by loop.step(x, expert={expert!r})."
        )

    def _refuse_unedited(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse a model that is given the latents as they were before their edit."""
        for stream, before in self._unedited.items():
            if any(
                isinstance(value, Tensor) and _holds(value, before) for value in (*args, *kwargs.values())
            ):
                raise CaptureError(
                    f"capture: the model was given the {stream} latents of step {self.number} as they were before their edit: "
                    "hand it step.latents."
                )

    def velocity(self, velocity: Tensor, stream: str = "video") -> Tensor:
        """Tell the velocity after guidance; return what the loop is to step with, edits included.

        A loop that goes on with another velocity than the one returned is refused where its steps are Euler's. After the
        last step there is nothing to see it by.

        Raises:
            CaptureError: it was told already, is not of the latents' shape, or the latents were changed in place before.
        """
        if stream in self.solved:
            raise CaptureError(f"capture: step {self.number} was told its velocity of {stream} twice.")
        if stream not in self._start:
            raise CaptureError(
                f"capture: step {self.number} was told a velocity of {stream!r}, and it starts from {', '.join(self._start)}."
            )
        start = self._start[stream]
        if not isinstance(velocity, Tensor) or velocity.shape != start.shape:
            form = tuple(velocity.shape) if isinstance(velocity, Tensor) else type(velocity).__name__
            raise CaptureError(
                f"capture: step {self.number} was told a velocity {form} of {stream}, whose latents are "
                f"{tuple(start.shape)}: tell it after guidance, on [row, channel, frame, y, x]."
            )
        if not same_bits(start, self._began.pop(stream)):
            raise CaptureError(
                f"capture: the {stream} latents of step {self.number} were changed in place before their velocity was told, and "
                "x0 is made of the two: tell it first, or step with x = x + ... ."
            )
        self.solved.add(stream)
        solution, _ = self._capture.stepper.solve(stream, start, velocity)
        ways = [("velocity", start, velocity)] if solution is not velocity else []
        if stream in self._unedited:
            ways.append(("latents", self._unedited[stream], solution))
        if ways:
            ways.append(("", start, solution))
            self._ways[stream] = [(what, x.detach().clone(), v.detach().clone()) for what, x, v in ways]
        return solution

    def refuse_unedited_step(self, following: Mapping[str, Tensor]) -> None:
        """Refuse a loop that has stepped with the velocity that it told, or from the latents that it brought: not the edited.

        Args:
            following: what the next step starts from, by stream.

        Raises:
            CaptureError: it starts where a step without the edit leads.
        """
        length = self._capture.schedule.sigmas[self.number + 1] - self.sigma
        for stream, ways in self._ways.items():
            starts = [x.double() for _, x, _ in ways]
            ends = [x + length * v.double() for x, (_, _, v) in zip(starts, ways, strict=True)]
            if stream not in following or following[stream].shape != ends[-1].shape:
                continue  # the loop goes on with another grid: that is no step of Euler's
            stepped = following[stream].detach().double()
            for (what, _, _), start, end in zip(ways[:-1], starts, ends, strict=False):
                went = _went(stepped, start, end, ends[-1])
                if went == "edited":
                    self._capture.heeded.add((stream, what))
                # In few bits a step of Heun's kind can look so too: a loop that has heeded the edit before is not accused.
                is_coarse = _spacing(stepped) > torch.finfo(torch.float32).eps
                if went == "unedited" and not (is_coarse and (stream, what) in self._capture.heeded):
                    raise CaptureError(
                        f"capture: step {self.number} went on with the {what} of {stream} from before the edit: step with "
                        "x = step.latents + ... * step.velocity(...)."
                    )


def _holds(value: Tensor, latents: Tensor) -> bool:
    """Say whether some rows of a value are latents, in whatever number type; other channels may stand behind theirs."""
    if value.ndim != latents.ndim or value.shape[2:] != latents.shape[2:] or not value.is_floating_point():
        return False
    value = value[:, : latents.shape[1]]
    if value.shape[1:] != latents.shape[1:]:
        return False
    return any(same_bits(part, latents.to(part.dtype)) for part in value.split(len(latents)))


def _went(stepped: Tensor, start: Tensor, without: Tensor, edited: Tensor) -> str:
    """Say whether a loop took Euler's step with an edit ("edited") or without it ("unedited"), to the last bits; else "".

    That shows in cells which the step moves, and the edit moves elsewhere, both by more than rounding. Cells that a clamp
    holds and steps of no length show nothing; a frame that is put back is where neither leads, so a third of them is enough.
    """
    rounding = 2 * _spacing(stepped) * torch.maximum(start.abs(), stepped.abs())
    shows = ((without - edited).abs() > 2 * rounding) & ((without - start).abs() > 2 * rounding)
    ignored, used = (int((shows & ((stepped - end).abs() <= rounding)).sum()) for end in (without, edited))
    if max(ignored, used) <= int(shows.sum()) // 3:
        return ""
    return "unedited" if ignored > used else "edited"


def _spacing(values: Tensor) -> float:
    """Return the relative spacing of numbers: of the narrowest type that holds them all, which they were rounded to."""
    types = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    exact = (dtype for dtype in types if torch.equal(values.to(dtype).to(values), values))
    return torch.finfo(next(exact, torch.float64)).eps  # NaN equals nothing


def branch_names(branches: str | Sequence[str]) -> tuple[str, ...]:
    """Return guidance branches, of which one may stand by itself."""
    return (branches,) if isinstance(branches, str) else tuple(branches)
