"""A pipeline's own loop, as it drives the steps of a run: one `StageLoop` a stage, one `Stages` a run.

Labels come from the pipeline (a family's `intercept` drives `call` and `advance`), never from counting hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dit_lens.engine.rows import Row
from dit_lens.engine.stepper import Latents, Stepper
from dit_lens.engine.visitor import Visitor
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.call import Forward, Schedule
from dit_lens.families.patching import guarded
from dit_lens.families.site import Tokens
from dit_lens.plan.binding import Binding
from dit_lens.plan.places import TEXT
from dit_lens.plan.plan import Layout, Plan

if TYPE_CHECKING:
    from dit_lens.engine.recorder import Recorder
    from dit_lens.families.specimen import Specimen


@dataclass(frozen=True)
class Call:
    """One forward of a DiT inside a step.

    Attributes:
        step: scheduler step, 0 the noisiest.
        sigma: noise level in [0, 1].
        forward: what the call says of itself.
        stage: pass of the sampling loop.
        aside: context in which the model's modules run bare, without what is placed on the run.
    """

    step: int
    sigma: float
    forward: Forward
    stage: int = 0
    aside: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False, compare=False)

    @property
    def branch(self) -> str:
        """Name of the branch, or of all that the batch carries: `cond+uncond`."""
        return "+".join(self.forward.rows)

    @property
    def expert(self) -> str:
        """Name of the DiT that runs."""
        return self.forward.expert

    def __str__(self) -> str:
        stage = f"stage={self.stage}, " if self.stage else ""
        return f"{stage}step={self.step}, branch={self.branch}, expert={self.expert}"


@dataclass
class Opened:
    """Where a stage's records go.

    Attributes:
        recorder: takes them.
        stored: the latents of the committed steps of a run that was interrupted, by step.
        compare: takes the records of committed steps that are run again, and compares them with what is stored; and refuses other
            latents than those stored. None where nothing is compared.
    """

    recorder: Recorder
    stored: Mapping[int, Latents] = field(default_factory=dict)
    compare: Recorder | None = None

    @property
    def resume(self) -> int:
        """The first step that is not committed yet."""
        return next(step for step in range(len(self.stored) + 1) if step not in self.stored)

    @property
    def replay(self) -> int:
        """The first step that is run: the last committed, to go on from it; to compare, also the one that leads there."""
        return max(self.resume - (1 if self.compare is None else 2), 0)


Open = Callable[[Schedule, Forward], Opened]
"""(schedule, the first call) to where the records go."""

Watch = Callable[[Call | None], None]
"""Told of every call before it runs, and of the end (None)."""


class StageLoop:
    """Takes a run through one stage, as the pipeline's calls come.

    Args:
        specimen: the model.
        layout: coordinates of the stage.
        seed: of the trajectory.
        plan: gives records and edits; asked when the first call comes.
        open_recorder: says where the records go, once grid and noise levels are known.
        watch: told of every call before it runs.
        started: told of every step that starts, with what it starts from, edits included.
    """

    def __init__(
        self,
        specimen: Specimen,
        layout: Layout,
        seed: int,
        plan: Callable[[], Plan],
        open_recorder: Open,
        watch: Watch | None = None,
        started: Callable[[int, Latents], None] | None = None,
    ) -> None:
        self.specimen, self.layout, self.seed = specimen, layout, seed
        self._plan, self._open_recorder = plan, open_recorder
        self._watch, self._started = watch, started
        self.step = 0
        self._stepper: Stepper | None = None
        self._opened: Opened | None = None
        self._records: list[Binding] = []
        self._edits: list[Binding] = []
        self._latents: Latents = {}  # what this step starts from, edits included
        self._streams: tuple[str, ...] = ()  # with latents that this run has
        self._stepped: set[str] = set()  # streams whose scheduler has stepped
        self._skipping = False
        self._told = -2, float("nan")  # step and timestep of the last call

    # ---- what the family drives

    def call(
        self, forward: Forward, latents: Latents, proceed: Callable[[Latents], Any], skip: Callable[[], Any]
    ) -> Any:
        """Serve one forward of a DiT."""
        if self._stepper is None:
            self._open(forward, latents)
        stepper, resume = self.stepper, self.opened.resume
        self._check_order(forward)
        self._skipping = self.step < self.opened.replay  # the step stands in the store: nothing to compute
        if self._skipping:
            return skip()
        if not self._latents:
            present = {stream: latents[stream] for stream in self._streams}
            replayed = self.step < resume
            from_store = replayed and self.step == self.opened.replay > 0
            compare = self.opened.compare
            for row in stepper.visitor.rows:
                row.recorders = [self.opened.recorder if compare is None or not replayed else compare]
            records = not replayed or compare is not None
            self._latents = stepper.begin(
                self.step, forward.expert, present, edits=not from_store, records=records
            )
            if self._started is not None:
                self._started(self.step, self._latents)
        with stepper.calling(forward):
            if self._watch is not None:
                sigma, aside = stepper.sigmas[self.step], stepper.visitor.aside
                self._watch(Call(self.step, sigma, forward, self.layout.stage, aside))
            return proceed(self._latents)

    def _check_order(self, forward: Forward) -> None:
        """Refuse calls that do not go through the schedule once, from its beginning to its end.

        Raises:
            CaptureError: they do not.
        """
        timesteps = self.stepper.timesteps
        if self.step >= len(timesteps):
            raise CaptureError(
                f"The pipeline makes more steps than the {len(timesteps)} of its schedule: they cannot be labelled."
            )
        before, told = self._told
        if (
            before == self.step - 1
            and (forward.timestep - told) * (timesteps[self.step] - timesteps[before]) < 0
        ):
            raise CaptureError(
                f"step {self.step}: the model is told timestep {forward.timestep:.3f} after {told:.3f}, and the schedule goes "
                f"from {timesteps[before]:.3f} to {timesteps[self.step]:.3f}: the pipeline takes its steps in another order."
            )
        self._told = self.step, forward.timestep

    def advance(
        self,
        velocity: Tensor,
        timestep: Any,
        latents: Tensor,
        proceed: Callable[[Tensor, Tensor], Tensor],
        stream: str = "video",
    ) -> Tensor:
        """Serve one step of the scheduler. With the last stream, the step is audited and committed."""
        if self._stepper is None or not (self._latents or self._skipping):
            raise CaptureError(f"The scheduler stepped before the model ran (step {self.step}).")
        if abs(float(timestep) - self._stepper.timesteps[self.step]) > 1e-3:
            raise CaptureError(
                f"step {self.step}: the scheduler was told timestep {float(timestep):.3f}, its own list says "
                f"{self._stepper.timesteps[self.step]:.3f}: the pipeline skips or repeats steps, which cannot be labelled."
            )
        self._stepped.add(stream)
        if self._skipping:
            proceed(velocity, latents)  # some schedulers count their steps
            out = self.opened.stored[self.step + 1][stream].to(latents)
        else:
            start = self._latents[stream]
            velocity, _ = self._stepper.solve(stream, start, velocity)
            out = proceed(velocity, start)
        if self._stepped >= set(self._streams):
            self._end_step()
        return out

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return what the running step starts from, edits included; the same latents where it is replayed."""
        return self._latents.get(stream, latents)

    def _end_step(self) -> None:
        replayed = self.step < self.opened.resume
        if not replayed or (self.opened.compare is not None and not self._skipping):
            self.stepper.end(replayed)
        self._latents, self._stepped = {}, set()
        self.step += 1

    def remove(self) -> None:
        """Remove all hooks."""
        if self._stepper is not None:
            self._stepper.visitor.remove()

    # ---- opening

    @property
    def stepper(self) -> Stepper:
        """Takes the rows through their steps; there once the first call has come."""
        if self._stepper is None:
            raise CaptureError("The model never ran: the pipeline made no call.")
        return self._stepper

    @property
    def opened(self) -> Opened:
        """Where the records go; there once the first call has come."""
        if self._opened is None:
            raise CaptureError("The model never ran: the pipeline made no call.")
        return self._opened

    def _open(self, forward: Forward, latents: Latents) -> None:
        plan, scheduler = self._plan(), self.specimen.pipe.scheduler
        plan.check(self.layout)
        plan.check_grids(grids_of(forward.streams, latents))
        if TEXT in forward.streams:
            plan.check_text(self.layout, forward.streams[TEXT].count)
        flow = self.specimen.family.flow
        schedule = flow.schedule(scheduler)
        check_schedule(schedule, self.layout)
        self._edits, self._records = (
            [placed.bind(is_edit, self.layout, schedule.sigmas) for placed in items]
            for is_edit, items in ((True, plan.edits), (False, plan.records))
        )
        self._opened = self._open_recorder(schedule, forward)
        self._streams = tuple(stream for stream in self.layout.latents if stream in forward.streams)
        samples = samples_of(forward)
        rows = [
            Row(self.seed, self._edits, self._records, [self._opened.recorder], sample)
            for sample in range(samples)
        ]
        visitor = Visitor(self.specimen, rows)
        self._stepper = Stepper(flow, scheduler, self.layout, schedule.sigmas, schedule.timesteps, visitor)
        visitor.install(self.specimen.dits)

    # ---- audit

    def audit(self) -> None:
        """Check that all that was asked for has happened, now that the stage is over.

        Raises:
            CaptureError: something has not.
        """
        if self.step != self.layout.steps:
            raise CaptureError(f"The run ended after {self.step} of {self.layout.steps} steps.")
        self.opened.recorder.end_run([*self._edits, *self._records])


def samples_of(forward: Forward) -> int:
    """Return the number of rows that a branch of a call has: those of a prompt batch."""
    part = next(iter(forward.rows.values()))
    return int(part.stop) - int(part.start or 0)


def grids_of(tokens: Mapping[str, Tokens], latents: Latents) -> dict[str, tuple[int, int, int]]:
    """Return the grids (frame, y, x) of tokens by stream, and of latents by `latent_STREAM`; see `Plan.check_grids`."""
    grids = {stream: of_stream.grid for stream, of_stream in tokens.items()}
    return grids | {f"latent_{stream}": (x.shape[2], x.shape[3], x.shape[4]) for stream, x in latents.items()}


def check_schedule(schedule: Schedule, layout: Layout) -> None:
    """Refuse noise levels that are not those of the run.

    Raises:
        CaptureError: another number of steps than the run was asked for.
        PlanError: noise levels outside [0, 1].
    """
    if len(schedule.timesteps) != layout.steps:
        raise CaptureError(
            f"The scheduler has {len(schedule.timesteps)} steps, the run was asked for {layout.steps}."
        )
    if not all(0 <= sigma <= 1 for sigma in schedule.sigmas):
        raise PlanError(
            f"The noise levels {schedule.sigmas} are not all in [0, 1]: the scheduler's paths are not the straight or variance "
            "preserving ones whose sigma is the share of noise. Set another scheduler, such as FlowMatchEulerDiscreteScheduler."
        )


class Stages:
    """Drives one run: its stages, one after another, as the family says.

    Args:
        loops: one for each stage.
        watch: told of the end (None).
    """

    def __init__(self, loops: Sequence[StageLoop], watch: Watch | None = None) -> None:
        self.loops, self._watch, self._now = loops, watch, loops[0]

    def run(self, work: Callable[[], Any]) -> Any:
        """Run the pipeline; all that was installed is removed, whatever happens."""
        specimen = self._now.specimen
        family, pipe = specimen.family, specimen.pipe

        undo: list[Callable[[], None]] = []

        def clean() -> None:
            self._now.remove()
            while undo:
                undo[-1]()
                undo.pop()

        def drive() -> Any:
            undo.append(family.call.intercept(pipe, family.anatomy, self))
            out = work()
            if self._watch is not None:
                self._watch(None)
            self._now.audit()
            if self._now is not self.loops[-1]:
                raise CaptureError(f"The run ended in stage {self._now.layout.stage} of {len(self.loops)}.")
            return out

        return guarded(drive, clean)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.loops[0].seed

    def enter(self, stage: int) -> None:
        """Go on with a stage, once the one before is audited."""
        if stage == self._now.layout.stage:
            return
        if not 0 <= stage < len(self.loops) or stage != self._now.layout.stage + 1:
            raise CaptureError(f"The pipeline went from stage {self._now.layout.stage} to stage {stage}.")
        self._now.audit()
        self._now.remove()
        self._now = self.loops[stage]

    def call(self, *arguments: Any) -> Any:
        """Serve one forward of a DiT, in the stage that runs."""
        return self._now.call(*arguments)

    def advance(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Serve one step of the scheduler, in the stage that runs."""
        return self._now.advance(*arguments, **keywords)

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return what the running step starts from, edits included."""
        return self._now.start(latents, stream)
