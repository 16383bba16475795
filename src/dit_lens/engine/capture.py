"""A sampler of one's own under the lens: the loop tells its steps and calls, and the engine does all the rest.

    with lens.capture(sigmas=sigmas, branches=("cond", "uncond"), record=[dl.energy]) as loop:
        for number in range(len(sigmas)):
            with loop.step(x) as step:
                v = {}
                for branch in loop.branches:
                    with step.call(branch):
                        v[branch] = model(step.latents, step.timestep, branch)
                velocity = step.velocity(v["uncond"] + 3.0 * (v["cond"] - v["uncond"]))
            x = step.latents + (next_sigma - step.sigma) * velocity
    loop.run["energy"]

The library cannot see the code of such a loop, so its runs are never handed out in place of another: each has a name
of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from dit_lens.engine.captured_step import CapturedStep, branch_names
from dit_lens.engine.recorder import Recorder
from dit_lens.engine.request import sample_content
from dit_lens.engine.rows import Row
from dit_lens.engine.runner import coordinates, write_outputs
from dit_lens.engine.stages import check_schedule, grids_of
from dit_lens.engine.stepper import Stepper
from dit_lens.engine.visitor import Visitor
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.call import Schedule
from dit_lens.families.family import Flow
from dit_lens.families.patching import traced
from dit_lens.families.site import Tokens
from dit_lens.plan.plan import Layout, Plan
from dit_lens.store import RunWriter, run_name, versions
from dit_lens.store.names import absolute
from dit_lens.store.run import Run
from dit_lens.store.scratch import Scratch

if TYPE_CHECKING:
    import numpy as np

    from dit_lens.families.specimen import Specimen
    from dit_lens.tasks.sample import Sample


class Capture:
    """A loop of the user's own, traced.

    Args:
        specimen: the model.
        plan: records and edits.
        sigmas: noise level of each step, in [0, 1]. Flow matching: x_s = (1 - sigma) x_0 + sigma x_1.
        timesteps: what the model is told at each step. Default: 1000 sigma.
        branches: guidance branches of the run; a step may leave some out (`step`).
        sample: what is generated, for the manifest.
        seed: of the initial noise, for the manifest and for edits that draw noise.
        store: folder of runs. Default: a temporary one, gone with the run.
        encoding: how bfloat16 states are stored.

    Raises:
        PlanError: the plan cannot be carried out, or the noise levels are not in [0, 1].
    """

    def __init__(
        self,
        specimen: Specimen,
        plan: Plan,
        sigmas: Sequence[float],
        timesteps: Sequence[float] | None = None,
        branches: Sequence[str] = ("cond",),
        sample: Sample | None = None,
        seed: int = 0,
        store: str | Path | None = None,
        encoding: str | None = None,
    ) -> None:
        try:
            levels = [float(sigma) for sigma in sigmas]
            told = [1000 * sigma for sigma in levels] if timesteps is None else [float(t) for t in timesteps]
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"capture: sigmas={sigmas!r}, timesteps={timesteps!r}: give numbers ({error})."
            ) from error
        if not levels or len(told) != len(levels):
            raise PlanError(
                f"capture: {len(levels)} sigmas and {len(told)} timesteps; give one of each for every step."
            )
        self.specimen, self.plan, self.schedule = specimen, plan, Schedule(levels, told)
        self.sample, self.seed, self.encoding = sample, seed, encoding
        self.branches = branch_names(branches)
        self.layout = Layout(
            specimen.paths,
            specimen.layers,
            len(levels),
            self.branches,
            tuple(specimen.dits),
            specimen.family.anatomy.latents,
            carried=specimen.carried,
        )
        check_schedule(self.schedule, self.layout)
        self.plan = plan = plan.spelt(self.layout)
        plan.check(self.layout)
        self._refuse_x0()
        plan.check_sources(specimen.fingerprint, specimen.architecture)
        self._model = specimen.identity()  # before anything of it is wrapped
        self._scratch: Scratch | None = None
        if store is None:
            self._scratch = Scratch()
            store = self._scratch.path
        self._root = absolute(store)
        self._cleanup = ExitStack()
        self._stepper: Stepper | None = None
        self._writer: RunWriter | None = None
        self._run: Run | None = None
        self._last: CapturedStep | None = None  # the step before the next one
        self._next, self._is_entered, self._is_stepping = 0, False, False
        # Streams, and what of each (latents, velocity) the loop was seen to go on with as edited.
        self.heeded: set[tuple[str, str]] = set()

    @property
    def run(self) -> Run:
        """The run, with all that was recorded; there once the loop has ended."""
        if self._run is None:
            raise CaptureError(
                "capture: the run is there after the `with` block, when all its steps are done."
            )
        return self._run

    def __enter__(self) -> Self:
        if self._is_entered:
            raise CaptureError("capture: this loop has run: call lens.capture again for another run.")
        self._is_entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            if kind is not None:
                return
            if self._writer is None or self._next != self.layout.steps:
                raise CaptureError(
                    f"capture: the loop ended after {self._next} of {self.layout.steps} steps."
                )
            row = self.stepper.visitor.rows[0]  # all rows share a recorder, and what is placed on them
            row.recorders[0].end_run([*row.edits, *row.records])
            self._writer.close()
            self._run = Run(self._writer.path, self._scratch)

    def keep(self, **outputs: np.ndarray) -> None:
        """Keep what the loop made: `video` [time, height, width, rgb] of uint8, `audio` [speaker, audio_time].

        Raises:
            CaptureError: no step has run yet.
        """
        if self._writer is None:
            raise CaptureError("capture: keep what was made after the steps.")
        write_outputs(self._writer, outputs)

    @contextmanager
    def step(
        self,
        latents: Tensor | Mapping[str, Tensor],
        expert: str | None = None,
        branches: str | Sequence[str] | None = None,
    ) -> Iterator[CapturedStep]:
        """Take the next step; where an exception ended it before its time, the same one again.

        Args:
            latents: what it starts from, [row, channel, frame, y, x]; by stream where there are several.
            expert: the DiT that serves it. Default: the first.
            branches: the guidance branches that run in it, as where guidance holds in an interval alone. Default: all. Of
                the others nothing is recorded there, and what is placed on them does not fire.

        Yields:
            The step: what it starts from, edits included, and how its calls and its velocity are told.

        Raises:
            CaptureError: a branch, or something placed, never ran; there are more steps than noise levels; or a step is open.
            PlanError: the latents are of another form, or there is no such expert or branch.
        """
        number = self._next
        if self._is_stepping:
            raise CaptureError(f"capture: step {number} has begun already: end one step before the next.")
        if number >= self.layout.steps:
            raise CaptureError(f"capture: step {number}, and there are {self.layout.steps} noise levels.")
        streams = _by_stream(number, latents)
        expert = self.layout.experts[0] if expert is None else expert
        branches = self.branches if branches is None else branch_names(branches)
        for kind, names, known in (
            ("expert", (expert,), self.layout.experts),
            ("branch", branches, self.branches),
        ):
            if unknown := [name for name in names if name not in known]:
                raise PlanError(f"capture: no {kind} {unknown[0]!r}, only {', '.join(known)}.")
        if self._stepper is None:
            self._open(streams, expert)
        self._refuse_other_rows(number, streams)
        if self._last is not None:
            self._last.refuse_unedited_step(streams)
        self._drop(number)
        start = self.stepper.begin(number, expert, streams, branches=branches)
        unedited = {s: x.clone() for s, x in streams.items() if start[s] is not x}
        step, self._is_stepping = CapturedStep(self, number, expert, start, unedited), True
        try:
            yield step
        finally:
            self._is_stepping = False
        if missing := sorted(set(start) - step.solved):
            raise CaptureError(
                f"capture: step {number} ended without its velocity ({', '.join(missing)}): call step.velocity(...)."
            )
        self.stepper.end()
        self._last, self._next = step, self._next + 1

    def _refuse_x0(self) -> None:
        """Refuse x0 beside a pipeline whose scheduler takes the model's output for something else than a flow's velocity.

        Raises:
            PlanError: something is placed there.
        """
        placed = [item for item in (*self.plan.records, *self.plan.edits) if item.site == "x0"]
        if placed and not self.specimen.family.flow.is_flow(self.specimen.pipe):
            raise PlanError(
                f"{placed[0].name}: a capture takes x0 for x_s - sigma v, and the scheduler of this "
                f"{type(self.specimen.pipe).__name__} does not: record the latents and the velocity, or use lens.run."
            )

    def _refuse_other_rows(self, number: int, streams: Mapping[str, Tensor]) -> None:
        rows = len(self.stepper.visitor.rows)
        for stream, x in streams.items():
            if len(x) != rows:
                raise CaptureError(
                    f"capture: step {number} starts from {len(x)} rows of the stream {stream!r}, and the first step from {rows}: "
                    "which of them these are is not known. Let all rows go through all steps, or capture each row by itself."
                )

    def _drop(self, number: int) -> None:
        """Forget what an earlier try of a step has recorded, which ended by an exception."""
        for recorder in self.stepper.visitor.rows[0].recorders:
            recorder.drop_step()
        if self._writer is not None:
            self._writer.drop_step(number)

    @property
    def stepper(self) -> Stepper:
        """Takes the rows through their steps; there once the first has begun."""
        if self._stepper is None:
            raise CaptureError("capture: no step has begun.")
        return self._stepper

    def tokens(self, latents: Tensor, expert: str) -> Tokens:
        """Return how the video's tokens stand, by the family's own arrangement."""
        anatomy = self.specimen.family.anatomy
        grid = anatomy.token_grid(self.specimen.dits[expert], (latents.shape[1], *latents.shape[2:]))
        return Tokens(grid, anatomy.before, anatomy.after)

    def _open(self, streams: Mapping[str, Tensor], expert: str) -> None:
        rows, plan = len(streams["video"]), self.plan
        tokens = {"video": self.tokens(streams["video"], expert)}
        plan.check_grids(grids_of(tokens, streams))
        edits, records = (
            [placed.bind(is_edit, self.layout, self.schedule.sigmas) for placed in items]
            for is_edit, items in ((True, plan.edits), (False, plan.records))
        )
        identity = {
            "plan": plan.to_json([]),
            "sample": None if self.sample is None else sample_content(self.sample, []),
            "seed": self.seed,
            **self._model,
            "encoding": self.encoding,
            "loop": f"capture {uuid.uuid4().hex}",
            "versions": versions(),
        }
        coords = coordinates(plan, self.layout, self.schedule, {"video": tokens["video"].grid})
        label = "capture" if self.sample is None else f"{self.sample.task}-{self.sample.id}"
        name = run_name(identity, "".join(c if c.isalnum() or c in "-_" else "_" for c in label))
        manifest = {"identity": identity, "plan": str(plan), "architecture": self.specimen.architecture}
        self._writer = RunWriter(self._root, name, manifest, coords, durable=self._scratch is None)
        self._cleanup.callback(self._writer.abort)
        recorder = Recorder(self.layout, rows, self._writer, self.encoding)
        visitor = Visitor(
            self.specimen,
            [Row(self.seed, edits, records, [recorder], row) for row in range(rows)],
            all_told=True,
        )
        # Of the latents' type or wider: x0 is made of them.
        levels, told = (
            torch.tensor(values, dtype=torch.float64)
            for values in (self.schedule.sigmas, self.schedule.timesteps)
        )
        scheduler = SimpleNamespace(sigmas=levels, timesteps=told)
        flow = Flow(schedule=lambda scheduler: self.schedule)
        self._stepper = Stepper(
            flow, scheduler, self.layout, self.schedule.sigmas, self.schedule.timesteps, visitor
        )
        self._cleanup.enter_context(traced(self.specimen.dits.values()))
        self._cleanup.enter_context(visitor.installed(self.specimen.dits))


def _by_stream(number: int, latents: Any) -> dict[str, Tensor]:
    """Return what a step starts from, by stream.

    Raises:
        PlanError: it is no tensor [row, channel, frame, y, x], or not one for each stream.
    """
    streams = dict(latents) if isinstance(latents, Mapping) else {"video": latents}
    if "video" not in streams:
        raise PlanError(
            f"capture: step {number} starts from the streams {', '.join(map(repr, streams))}: give the latents of 'video', as a "
            "tensor or under this name."
        )
    for stream, x in streams.items():
        if isinstance(x, Tensor) and x.ndim == 5:
            continue
        form = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise PlanError(
            f"capture: step {number} starts from {form} of the stream {stream!r}: give a tensor [row, channel, frame, y, x]. "
            "Latents of images [row, channel, y, x] get their frame by x[:, :, None], packed ones [row, token, channel] are "
            "unpacked first; the model is given step.latents in the form that it takes."
        )
    return streams
