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
from functools import partial
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from dit_lens.engine.recorder import Recorder, same_bits
from dit_lens.engine.request import sample_content
from dit_lens.engine.rows import Row
from dit_lens.engine.runner import coordinates, write_outputs
from dit_lens.engine.stages import check_schedule, grids_of
from dit_lens.engine.stepper import Stepper
from dit_lens.engine.visitor import Visitor
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.call import Forward, Schedule
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
        self.branches = _names(branches)
        self.layout = Layout(
            specimen.paths,
            specimen.layers,
            len(levels),
            self.branches,
            tuple(specimen.dits),
            specimen.family.anatomy.latents,
        )
        check_schedule(self.schedule, self.layout)
        plan.check(self.layout)
        self._refuse_x0()
        plan.check_sources(specimen.fingerprint)
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
        self._next, self._is_entered = 0, False
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
            CaptureError: a branch, or something placed, never ran; or there are more steps than noise levels.
            PlanError: the latents are of another form, or there is no such expert or branch.
        """
        number = self._next
        if number >= self.layout.steps:
            raise CaptureError(f"capture: step {number}, and there are {self.layout.steps} noise levels.")
        streams = _by_stream(number, latents)
        expert = self.layout.experts[0] if expert is None else expert
        branches = self.branches if branches is None else _names(branches)
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
        step = CapturedStep(self, number, expert, start, unedited)
        yield step
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
        coords = coordinates(self.layout, self.schedule, {"video": tokens["video"].grid})
        label = "capture" if self.sample is None else f"{self.sample.task}-{self.sample.id}"
        name = run_name(identity, "".join(c if c.isalnum() or c in "-_" else "_" for c in label))
        manifest = {"identity": identity, "plan": str(plan)}
        self._writer = RunWriter(self._root, name, manifest, coords, durable=self._scratch is None)
        self._cleanup.callback(self._writer.abort)
        recorder = Recorder(self.layout, rows, self._writer, self.encoding)
        visitor = Visitor(
            self.specimen,
            [Row(self.seed, edits, records, [recorder], row) for row in range(rows)],
            all_told=True,
        )
        levels, told = torch.tensor(self.schedule.sigmas), torch.tensor(self.schedule.timesteps)
        scheduler = SimpleNamespace(sigmas=levels, timesteps=told)
        flow = Flow(schedule=lambda scheduler: self.schedule)
        self._stepper = Stepper(
            flow, scheduler, self.layout, self.schedule.sigmas, self.schedule.timesteps, visitor
        )
        self._cleanup.enter_context(traced(self.specimen.dits.values()))
        self._cleanup.enter_context(visitor.installed(self.specimen.dits))


def _names(branches: str | Sequence[str]) -> tuple[str, ...]:
    return (branches,) if isinstance(branches, str) else tuple(branches)


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


def _holds(value: Tensor, latents: Tensor) -> bool:
    """Say whether some rows of a value are latents, in whatever number type; other channels may stand behind theirs."""
    if value.ndim != latents.ndim or value.shape[2:] != latents.shape[2:] or not value.is_floating_point():
        return False
    value = value[:, : latents.shape[1]]
    if value.shape[1:] != latents.shape[1:]:
        return False
    return any(same_bits(part, latents.to(part.dtype)) for part in value.split(len(latents)))


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
        capture, names = self._capture, _names(branch)
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
