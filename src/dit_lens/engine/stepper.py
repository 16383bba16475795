"""One denoising step of rows that go through the model together: what it starts from, its calls, velocity and x0, its commit.

A run (`stages.py`) and a batch (`batch.py`) drive the same steps; neither computes anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.recorder import bits, has_gradient, same_bits
from dit_lens.engine.rows import Moment
from dit_lens.engine.visitor import Visitor
from dit_lens.errors import CaptureError
from dit_lens.families.call import Forward
from dit_lens.families.family import Flow
from dit_lens.plan.plan import Layout

Latents = Mapping[str, Tensor]
"""Stream name to its latents, [row, channel, frame, y, x]."""


@dataclass
class Stepper:
    """Takes rows through their steps.

    Attributes:
        flow: what a step does to the latents.
        scheduler: of the run, its noise levels set.
        layout: coordinates of the run.
        sigmas: noise level of each step.
        timesteps: what the model is told at each step.
        visitor: applies what is placed on the rows.
        expected: guidance branches that run in the running step.
        x0: of the step before, by stream, [row, channel, frame, y, x]; empty where that is not known.
    """

    flow: Flow
    scheduler: Any
    layout: Layout
    sigmas: Sequence[float]
    timesteps: Sequence[float]
    visitor: Visitor
    expected: tuple[str, ...] = ()
    x0: Latents = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._branches: set[str] = set()  # that ran in this step

    def begin(
        self,
        step: int,
        expert: str,
        latents: Latents,
        edits: bool = True,
        records: bool = True,
        branches: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Begin a step; return what it starts from, by stream: the very same tensors where nothing is edited.

        Args:
            step: number.
            expert: the DiT that serves it.
            latents: x_s by stream.
            edits: whether x_s is edited. What comes from a store had its edits.
            records: whether records are taken. A step that stands in the store runs only to go on from it.
            branches: guidance branches that run in this step. Default: all of the run.
        """
        self._branches, self.expected = set(), self.layout.branches if branches is None else tuple(branches)
        moment = Moment(step, self.sigmas[step], self.timesteps[step], expert, self.layout.stage)
        self.visitor.begin(moment, records=records, x0=self.x0)
        self.x0 = {}
        return {s: self.visitor.on_latents("latents", s, x, edits) for s, x in latents.items()}

    @contextmanager
    def calling(self, forward: Forward) -> Iterator[None]:
        """Label what the hooks see while one forward of a DiT runs.

        Raises:
            CaptureError: a branch ran that was not asked for, or ran twice.
        """
        step = self.visitor.moment.step
        for branch in forward.rows:
            if branch in self._branches or branch not in self.expected:
                raise CaptureError(
                    f"step {step}: branch {branch!r} ran {'twice' if branch in self._branches else 'unasked'}; this run has the "
                    f"branches {self.expected} there, once each. Something runs the model on its own."
                )
            self._branches.add(branch)
        with self.visitor.calling(forward):
            yield

    def solve(self, stream: str, latents: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity, after guidance and edits, and the x0 that it stands for.

        An edit of x0 becomes the velocity that gives it; records see what the scheduler makes of that: some clip x0, and the
        way there and back rounds, in bfloat16 by much.

        Args:
            stream: of the latents.
            latents: x_s, what the step started from.
            velocity: after guidance.
        """
        visitor, step = self.visitor, self.visitor.moment.step
        velocity = visitor.on_latents("velocity", stream, velocity, records=False)
        x0 = self.flow.x0(self.scheduler, latents, velocity, step)
        new = visitor.on_latents("x0", stream, x0, records=False)
        if new is not x0 and not (self.sigmas[step] == 0 and same_bits(new, x0)):
            if self.sigmas[step] == 0:
                raise CaptureError(
                    f"step {step}: x0 is edited where the noise level is 0, and no velocity leads there: place the edit before."
                )
            # Where x0 was left alone the velocity stays as it was: the way back rounds.
            back = self.flow.velocity(self.scheduler, latents, new, step).to(velocity.dtype)
            moved = bits(new.detach()) != bits(x0.detach())
            alone = velocity.detach() + (back - back.detach()) if has_gradient(new, x0) else velocity
            velocity = torch.where(moved, back, alone)
            new = torch.where(moved, self.flow.x0(self.scheduler, latents, velocity, step), new)
        visitor.on_latents("velocity", stream, velocity, edits=False)
        visitor.on_latents("x0", stream, new, edits=False)
        if visitor.reads_x0:  # with gradients, it holds all that they need of this step
            self.x0 = {**self.x0, stream: new}
        return velocity, new

    def end(self, replayed: bool = False) -> None:
        """Audit the step, and commit it in every run that the rows stand for.

        Args:
            replayed: whether it starts from what stands in a store, so that not all edits come again.

        Raises:
            CaptureError: a branch, or something placed, never ran.
        """
        moment = self.visitor.moment
        if self._branches != set(self.expected):
            missing = sorted(set(self.expected) - self._branches)
            raise CaptureError(
                f"step {moment.step}: the branches {missing} never ran; {sorted(self._branches)} did. Where a loop of your own "
                "leaves branches out in some steps, it says so: loop.step(x, branches=...)."
            )
        if not replayed:
            self.visitor.audit(self.expected)
        info: dict[str, Any] = {
            "sigma": moment.sigma,
            "timestep": moment.timestep,
            "expert": moment.expert,
        }
        if self._branches != set(self.layout.branches):
            info["branches"] = [*self.expected]
        recorders = {
            id(r): r for row in self.visitor.rows for r in row.recorders
        }  # a prompt batch shares one
        for recorder in recorders.values():
            recorder.end_step(moment.step, info)
