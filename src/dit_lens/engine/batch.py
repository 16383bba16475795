"""Many trajectories through the model together, step by step, in the hands of the caller.

`lens.run` traces one trajectory and keeps everything of it. An experiment runs thousands that differ a little:
here they are rows of one batch, one call is one denoising step, and the caller decides what each row starts
from. So arms that share a beginning share its computation, and states can be compared where they arise.

    batch = lens.batch([(sample, 0), (sample, 1)], steps=20)
    x = batch.noise
    for step in range(batch.steps):
        x = batch.step(step, x).latents

Equal to single runs within float tolerance, not bit for bit: a larger product sums in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.engine.applied import apply_to_heads
from dit_lens.engine.batch_rows import batching_of, parts
from dit_lens.engine.checkpoints import run_again
from dit_lens.engine.exchange import Exchange, Meeting
from dit_lens.engine.fixed import fixed_frames
from dit_lens.engine.in_place import reads_refused, scheduler_in_place
from dit_lens.engine.inputs import ModelInputs
from dit_lens.engine.open_model import open_to_gradients
from dit_lens.engine.pipeline_check import check_against_pipeline, value_of, warn_of_keeping
from dit_lens.engine.request import Request, name_anew, seeds_together, verify_of
from dit_lens.engine.rows import Moment, Row, Shared
from dit_lens.engine.stages import check_schedule, grids_of
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.stepper import Stepper
from dit_lens.engine.visitor import Place, Visitor, spot_of
from dit_lens.errors import PlanError
from dit_lens.families.call import Forward
from dit_lens.families.latents import apart, together
from dit_lens.families.patching import guarded, traced, undisturbed
from dit_lens.families.specimen import Specimen
from dit_lens.plan.binding import Binding
from dit_lens.plan.content import Walk
from dit_lens.plan.places import TEXT, positions
from dit_lens.plan.plan import Entry, Placed, Plan
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr

    from dit_lens.store.run import Run


class Batch:
    """Samples of one shape, prepared once, that go through the model together.

    Args:
        specimen: the model.
        pairs: a sample and a seed each. Samples may differ in all but their size and number of frames.
        steps: scheduler steps. Default: the family's.
        cfg_scale: guidance scale. Default: the family's.
        at_once: rows in one forward, at most; more are split.
        record: what `run` records of every pair, as in `lens.run`.
        edit: what `run` edits in every pair, as in `lens.run`.
        store: folder of runs that `run` writes into. Default: a temporary one, gone with the runs.
        encoding: how bfloat16 states are stored, as in `lens.run`.
        verify: whether runs that a store holds are checked by their first step, as in `lens.run`.
        **arguments: any other keyword of the pipeline's own call.

    Attributes:
        model: what the model was when the batch was prepared, as plain data.
        requests: what each pair is asked for.
        arguments: other keywords of the pipeline's call.
        layout: coordinates of a run.
        sigmas: noise level of each step.
        timesteps: what the model is told at each step.
        grid: (frame, y, x) of the video's tokens.
        grids: (frame, y, x) of the tokens of each stream.

    Raises:
        PlanError: the family does not say how to batch, the samples do not fit together, or the batch would not be the
            pipeline's own loop.
    """

    def __init__(
        self,
        specimen: Specimen,
        pairs: Sequence[tuple[Sample, int]],
        steps: int | None = None,
        cfg_scale: float | None = None,
        at_once: int = 64,
        record: Iterable[Entry] | Entry = (),
        edit: Iterable[Entry] | Entry = (),
        store: str | Path | None = None,
        encoding: str | None = None,
        verify: str = "first",
        **arguments: Any,
    ) -> None:
        self.specimen, self.pairs, self.verify = specimen, list(pairs), verify_of(verify)
        self.arguments = arguments
        self.batching = batching_of(specimen, self.pairs, at_once)
        plan = Plan.of(record, edit)
        self.requests = [
            Request(
                specimen,
                sample,
                seed,
                plan,
                steps=steps,
                cfg_scale=cfg_scale,
                store=store,
                encoding=encoding,
                arguments=arguments,
                loop="batch",
                together=seeds,
            )
            for (sample, seed), seeds in zip(self.pairs, seeds_together(plan, self.pairs), strict=True)
        ]
        first = self.requests[0]
        if len(first.stages) > 1:
            raise PlanError("A batch runs one stage, and this pipeline call has several: use lens.run.")
        self.cfg_scale, self.keywords = first.cfg_scale, first.keywords
        self.layout = first.stages[0].layout
        self.at_once = min(at_once, self.batching.most or at_once)
        self.model = specimen.identity(repeatable=True)
        self.described_inputs = self._describe_inputs()
        self.inputs = ModelInputs.of(specimen, self.requests)
        with undisturbed(specimen.dits.values()):
            self.scheduler = _copied(specimen.pipe.scheduler)
        self.schedule = specimen.family.flow.schedule(self.scheduler)
        if self.schedule.state:
            raise PlanError(f"{type(self.scheduler).__name__} keeps {self.schedule.state}: use lens.run.")
        check_schedule(self.schedule, self.layout)
        self.sigmas, self.timesteps = self.schedule.sigmas, self.schedule.timesteps
        self.grids = {stream: tokens.grid for stream, tokens in self.inputs.streams.items()}
        self.grid = self.grids["video"]
        self._bindings: dict[int, tuple[Placed, Binding]] = {}
        for is_edit, items in ((True, plan.edits), (False, plan.records)):
            for placed in items:
                self.binding(placed, is_edit)  # what cannot be carried out is refused before anything runs
        if check_against_pipeline(self):
            before, self.model = self.model, specimen.identity(repeatable=True)
            if self.model != before:
                warn_of_keeping()

    @property
    def noise(self) -> Tensor:
        """What step 0 starts from, [row, channel, frame, y, x]: a copy, which may be written into."""
        return self.inputs.noise[list(range(len(self.pairs)))]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.layout.steps

    @cached_property
    def fixed_frames(self) -> int:
        """How many of the first latent frames stay as they are: the pipeline gives them, and puts them back after every step."""
        return fixed_frames(self)

    def generated(self, latents: Tensor) -> Tensor:
        """Return the frames of video latents [..., channel, frame, y, x] that are not fixed."""
        return apart(latents)["video"][..., self.fixed_frames :, :, :]

    def expert(self, step: int) -> str:
        """Return the name of the DiT that serves a step."""
        return self.batching.expert(self.specimen.pipe, self.timesteps[step], self.keywords)

    # ---- steps

    @torch.no_grad()
    def step(
        self,
        step: int,
        latents: Tensor,
        rows: Sequence[int] | None = None,
        edits: Sequence[Iterable[Entry] | Entry] | None = None,
        watch: Sequence[Place] = (),
        groups: Sequence[int] | None = None,
        x0: Tensor | None = None,
        gradients: bool = False,
        by_blocks: bool = False,
    ) -> Stepped:
        """Take one denoising step from given latents.

        Args:
            step: which.
            latents: [row, channel, frame, y, x]; any number of rows.
            rows: which of the batch's pairs each row is. Default: row n is pair n.
            edits: what is placed on each row, as in `lens.run`; what does not select this step is not applied. Default:
                the batch's own, as in `run`.
            watch: states to return, by (site, branch, layer).
            groups: for edits over seeds: rows of one number are seen together. They stand side by side. Where
                a group has more rows than go at once, its rows run one after another, as often as there are
                places to wait for one another.
            x0: of the step before, for edits that take it, as its `Stepped` has it: [row, channel, frame, y, x].
            gradients: whether velocity, x0 and latents carry their gradients, with respect to the latents that are given and to
                what edits put in. The rows have to go at once, and no parameter of the model gets a gradient.
            by_blocks: with gradients, whether a block's input alone is held, and the block runs again in the backward pass.

        Raises:
            PlanError: an edit cannot be carried out, an edit over seeds has no groups, or no gradient goes through the model.
        """
        if not 0 <= step < self.steps:
            raise PlanError(f"step={step}: this batch has the steps 0 to {self.steps - 1}.")
        pairs = list(range(len(self.pairs)) if rows is None else rows)
        declared = self.requests[0].plan.edits
        placed = [declared for _ in pairs] if edits is None else [Plan.of((), e).edits for e in edits]
        numbers = [None] * len(pairs) if groups is None else list(groups)
        sizes = {len(latents), len(pairs), len(placed), len(numbers), len(latents if x0 is None else x0)}
        if len(sizes) > 1 or not all(0 <= pair < len(self.pairs) for pair in pairs):
            raise PlanError(
                f"{len(latents)} latents, {len(pairs)} rows out of {len(self.pairs)} pairs, {len(placed)} lists of edits: give "
                "one of each for every row."
            )
        if len({*numbers}) != sum(n == 0 or numbers[n] != numbers[n - 1] for n in range(len(numbers))):
            raise PlanError(f"groups={numbers}: rows of one number stand side by side.")
        bind = self.bind if gradients else self.binding  # what is bound is not to hold a graph
        traced_rows = [
            Row(self.pairs[pair][1], [bind(edit) for edit in row_edits], group=number)
            for pair, row_edits, number in zip(pairs, placed, numbers, strict=True)
        ]
        if not gradients:
            return self.advance(step, latents, pairs, traced_rows, watch, x0=x0)
        if len(pairs) > self.at_once or watch:
            raise PlanError(
                f"gradients=True of {len(pairs)} rows, at_once={self.at_once}, watch={[*watch]}: give as many rows as go at "
                "once, and in place of a watched state let an edit return a tensor of yours that requires a gradient."
            )
        with open_to_gradients(self):
            shared = Shared(row.placed for row in traced_rows)
            out = self.advance_with_gradients(step, latents, pairs, traced_rows, shared, x0, by_blocks)
        if not out.velocity.requires_grad:
            raise PlanError(
                "gradients=True, and the velocity has none: give latents that require one, or an edit that returns a tensor "
                "which does. If it does, the model computes under torch.no_grad, or ends in .detach()."
            )
        return out

    @torch.no_grad()
    def advance(
        self,
        step: int,
        latents: Tensor,
        pairs: Sequence[int],
        rows: Sequence[Row],
        watch: Sequence[Place] = (),
        shared: Shared | None = None,
        x0: Tensor | None = None,
    ) -> Stepped:
        """Take one denoising step of rows, a forward's worth at a time, and commit it in their runs.

        Args:
            step: which.
            latents: [row, channel, frame, y, x].
            pairs: which of the batch's pairs each row is.
            rows: the trajectories.
            watch: states to return, by (site, branch, layer).
            shared: functions that rows go through in turn. Default: those that several of these rows do.
            x0: of the step before, [row, channel, frame, y, x], for edits that take it.
        """
        self._check_watched(watch)
        done, shared = [], shared or Shared(row.placed for row in rows)
        with self._in_place(step):
            for part in parts([row.group for row in rows], self.at_once):
                x, numbers, members = latents[part], pairs[part], rows[part]
                before = None if x0 is None else x0[part]
                if len(members) > self.at_once:
                    done += self._one_by_one(step, x, numbers, members, watch, before)
                else:
                    done.append(self._forward(step, x, numbers, members, watch, shared, before))
        return Stepped.cat(done)

    @contextmanager
    def _in_place(self, step: int) -> Iterator[None]:
        """Stand in the place of the pipeline's loop at a step; see `in_place.py`."""
        pipe = self.specimen.pipe
        with scheduler_in_place(pipe, self.scheduler, self.batching.place, step), reads_refused(pipe):
            yield

    def advance_with_gradients(
        self,
        step: int,
        latents: Tensor,
        pairs: Sequence[int],
        rows: Sequence[Row],
        shared: Shared,
        x0: Tensor | None = None,
        by_blocks: bool = False,
    ) -> Stepped:
        """Take one denoising step of rows that go through the model at once, and leave the way back open for gradients.

        Args:
            step: which.
            latents: [row, channel, frame, y, x].
            pairs: which of the batch's pairs each row is.
            rows: the trajectories, at most as many as go at once.
            shared: functions that rows go through in turn.
            x0: of the step before, [row, channel, frame, y, x], for edits that take it.
            by_blocks: whether of every block its input alone is held, and the block runs again in the backward pass.
        """
        with torch.enable_grad(), self._in_place(step):
            return guarded(
                lambda: self._forward(step, latents, pairs, rows, (), shared, x0, by_blocks=by_blocks)
            )

    def _forward(
        self,
        step: int,
        latents: Tensor,
        pairs: Sequence[int],
        rows: Sequence[Row],
        watch: Sequence[Place],
        shared: Shared,
        x0_before: Tensor | None = None,
        exchange: Exchange | None = None,
        records: bool = True,
        by_blocks: bool = False,
    ) -> Stepped:
        """Take a step of rows that go through the model at once."""
        pipe, flow, batching = self.specimen.pipe, self.specimen.family.flow, self.batching
        expert, timestep = self.expert(step), self.scheduler.timesteps[step]
        dit = self.specimen.dits[expert]
        visitor = Visitor(self.specimen, rows, watch, exchange, shared)
        stepper = Stepper(flow, self.scheduler, self.layout, self.sigmas, self.timesteps, visitor)
        stepper.x0 = {} if x0_before is None else self._by_stream(x0_before)
        begun = stepper.begin(step, expert, self._by_stream(latents), records=records)
        start = {stream: x.clone() for stream, x in begun.items()}  # a model may write into what it is given
        batching.load(pipe, expert)
        prepared = {branch: self.inputs.of_branch(branch, pairs) for branch in self.layout.branches}
        velocities: dict[str, Mapping[str, Tensor]] = {}
        blocks = self.specimen.blocks(dit) if by_blocks else []
        with traced([dit]), visitor.installed({expert: dit}), run_again(blocks, visitor, {expert: dit}):
            for branch, keywords in prepared.items():
                forward = Forward(
                    expert,
                    {branch: slice(0, len(rows))},
                    self.inputs.streams_of[branch],
                    self.timesteps[step],
                )
                with stepper.calling(forward):
                    out = batching.model(pipe, dit, {**keywords, "timestep": timestep}, start)
                velocities[branch] = {stream: x.clone() for stream, x in out.items()}  # or has returned
        first = prepared[self.layout.branches[0]]
        velocity, x0, after = {}, {}, {}
        for stream, x in start.items():
            by_branch = {branch: streams[stream] for branch, streams in velocities.items()}
            guided = self._guided(step, stream, x, by_branch, first)
            velocity[stream], x0[stream] = stepper.solve(stream, x, guided)
            if velocity[stream] is not guided:
                batching.refuse_moved(pipe, x, velocity[stream], step, first)
            after[stream] = self._after(step, x, velocity[stream], first)
        if records:
            stepper.end()
        return Stepped(together(velocity), together(x0), together(after), visitor.states)

    @torch.no_grad()
    def step_of_numbers(self, step: int, latents: Tensor) -> Stepped:
        """Take one step of the first pair as if the model gave a number for each branch; see `pipeline_check`."""
        start = self._by_stream(latents)
        first = self.inputs.of_branch(self.layout.branches[0], [0])
        velocity, after = {}, {}
        for stream, x in start.items():
            branches = self.layout.branches
            numbers = {branch: torch.full_like(x, value_of(branch, branches)) for branch in branches}
            velocity[stream] = self._guided(step, stream, x, numbers, first)
            after[stream] = self._after(step, x, velocity[stream], first)
        return Stepped(together(velocity), latents, together(after))

    def _guided(
        self, step: int, stream: str, x: Tensor, velocities: Mapping[str, Tensor], first: Mapping[str, Any]
    ) -> Tensor:
        """Return the velocity after guidance, and after what the pipeline blends into it."""
        flow, pipe = self.specimen.family.flow, self.specimen.pipe
        guided = flow.guide(pipe, self.keywords, velocities, self.timesteps[step])
        return self.batching.blend(self.scheduler, self.scheduler.timesteps[step], guided, x, first, stream)

    def _after(self, step: int, x: Tensor, velocity: Tensor, first: Mapping[str, Any]) -> Tensor:
        """Return what the next step starts from."""
        return self.batching.settle(self.batching.advance(self.scheduler, velocity, step, x), first)

    def _one_by_one(
        self,
        step: int,
        latents: Tensor,
        pairs: Sequence[int],
        rows: Sequence[Row],
        watch: Sequence[Place],
        x0: Tensor | None,
    ) -> list[Stepped]:
        """Run the rows of a group one after another, until what they hand over at every meeting stands."""
        exchange, shared = Exchange(len(rows)), Shared((row.placed for row in rows), least=1)

        def forward(last: bool) -> Stepped:
            one = slice(exchange.row, exchange.row + 1)
            before = None if x0 is None else x0[one]
            return self._forward(
                step, latents[one], pairs[one], rows[one], watch, shared, before, exchange, records=last
            )

        def edit(meeting: Meeting, members: list[int], values: Tensor) -> Tensor:
            placed, where, branch, _ = meeting
            moment = Moment(step, self.sigmas[step], self.timesteps[step], self.expert(step))
            spot = spot_of(rows[members[0]], moment, where, branch)
            return apply_to_heads(placed.bind(True, self.layout, self.sigmas), spot, values)

        return exchange.settle(forward, edit, last=any(row.recorders for row in rows))

    def _by_stream(self, latents: Tensor) -> dict[str, Tensor]:
        streams = apart(latents)
        if set(streams) != set(self.layout.latents):
            raise PlanError(
                f"These latents are of {', '.join(streams)}, the model has {', '.join(self.layout.latents)}: start from rows of "
                "batch.noise, or of what batch.step gave."
            )
        return streams

    def binding(self, placed: Placed, is_edit: bool = True) -> Binding:
        """Resolve the place of an edit or a record on this batch's steps; checked when it first comes.

        Raises:
            PlanError: it cannot be carried out.
        """
        if id(placed) not in self._bindings:
            # What is placed is held too, so that its id is not given to another.
            self._bindings[id(placed)] = placed, self.bind(placed, is_edit)
        return self._bindings[id(placed)][1]

    def bind(self, placed: Placed, is_edit: bool = True) -> Binding:
        """Resolve a place as `binding` does, and hold nothing.

        Raises:
            PlanError: it cannot be carried out.
        """
        spelt = self._spelt(placed)
        plan = Plan(edits=(spelt,)) if is_edit else Plan(records=(spelt,))
        plan.check(self.layout, over_seeds=True)
        plan.check_grids(grids_of(self.inputs.streams, apart(self.inputs.noise)))
        if TEXT in self.grids:
            plan.check_text(self.layout, self.grids[TEXT][2])
        plan.check_sources(self.specimen.fingerprint, self.specimen.architecture)
        binding = spelt.bind(is_edit, self.layout, self.sigmas)
        if problem := binding.never_fired([self.expert(step) for step in range(self.steps)]):
            raise PlanError(problem)
        return binding

    def _spelt(self, placed: Placed) -> Placed:
        """Return it with the positions of its words, where they are the same in all prompts of the batch.

        Raises:
            PlanError: they are not, or a word is not there.
        """
        others = [request.stages[0].layout for request in self.requests]
        spelt = [placed.spelt(layout) for layout in others] if placed.place.words else [placed]
        if any(one != spelt[0] for one in spelt):
            raise PlanError(
                f"{placed}: its words stand elsewhere in other prompts of this batch: run one prompt after the other."
            )
        return spelt[0]

    def _check_watched(self, watch: Sequence[Place]) -> None:
        sites = self.specimen.sites["video"]
        for site, branch, layer in watch:
            if site not in sites or branch not in self.layout.branches:
                raise PlanError(
                    f"watch {site, branch, layer}: there are the sites {', '.join(sites)}, and in this batch the "
                    f"branches {', '.join(self.layout.branches)}."
                )
            positions("layer", ((layer, layer),), self.layout.layers)

    # ---- whole runs

    def run(self, progress: str | None = None) -> list[Run]:
        """Make the run of every pair, with the batch's records and edits; those that stand complete are returned.

        Args:
            progress: name of a progress bar over the steps. Default: none.

        Returns:
            The runs, in the order of the pairs. A pair that comes twice is made once.

        Raises:
            StoreError: the store cannot be written.
            CaptureError: something asked for did not happen.
            PlanError: the model is no longer what it was when the batch was prepared.
        """
        from dit_lens.engine.batch_run import run_rows

        return run_rows(self, progress)

    def name_anew(self, requests: Iterable[Request] | None = None) -> None:
        """Let runs be named by what is there now: edits and records may hold other values than at the last time.

        Args:
            requests: of the runs. Default: one for each pair.

        Raises:
            PlanError: the model, a sample or an argument is no longer what prompts, pictures and noise were prepared with.
        """
        model, unnamed = name_anew(self.requests if requests is None else requests, self.specimen)
        same_model = (self.specimen.identity(repeatable=True) if unnamed else model) == self.model
        if not same_model or self._describe_inputs() != self.described_inputs:
            raise PlanError(
                f"{'A sample or an argument' if same_model else 'The model'} has changed since this batch was prepared with it, "
                "so its runs would bear the name of what did not make them: call lens.batch again."
            )

    def _describe_inputs(self) -> Any:
        """Return samples and arguments as data, without what cannot be named."""
        return Walk([], repeatable=True).whole([[sample for sample, _ in self.pairs], self.arguments])

    def check_codec(self) -> None:
        """Refuse a codec that cannot be decoded by, before anything is run for it.

        Raises:
            PlanError: it names the codec.
        """
        codec = self.specimen.family.codec
        if codec.decoded(self.keywords):
            codec.check(self.specimen.pipe)

    # ---- gradients

    def attribute(
        self, metric: Callable[[Tensor], Tensor], sites: Sequence[str] = ("block",), **options: Any
    ) -> xr.Dataset:
        """Estimate, for every place, what a metric gains if the clean row's state is patched in there: by gradients.

            gain = batch.attribute(metric, ["block", "self_attn"], clean=0, corrupt=1, place=dl.at(step=3), check=40)

        See `dit_lens.engine.attribution.attribute` for its options, what it returns and what it refuses.

        Args:
            metric: x0 [channel, frame, y, x] to a scalar tensor that carries its gradient.
            sites: where the states are read.
            **options: `clean` and `corrupt`, rows of the batch; `place`, `until`, `of`, `edits`, `integrate`, `check`,
                `seed`, `by_blocks`, `progress`.
        """
        from dit_lens.engine.attribution import attribute

        return attribute(self, metric, sites, **options)

    # ---- what states and latents stand for

    @torch.no_grad()
    def readout(
        self, step: int, states: Mapping[str, Tensor], latents: Tensor, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Return x0 as if the network ended after a block, guidance included.

        Args:
            step: which.
            states: the block's, by branch, [row, frame, y, x, channel].
            latents: what the step started from, [row, channel, frame, y, x].
            rows: which of the batch's pairs each row is. Default: row n is pair n.

        Returns:
            [row, channel, frame, y, x], of the video.

        Raises:
            PlanError: the family does not know how its network reads a state out.
        """
        family, video, timestep = (
            self.specimen.family,
            apart(latents)["video"],
            self.scheduler.timesteps[step],
        )
        if family.flow.readout is None:
            raise PlanError(f"Family {family.name} does not say how its network reads a block's state out.")
        dit, velocities = self.specimen.dits[self.expert(step)], {}
        first = self.inputs.of_branch(self.layout.branches[0], rows)
        inputs = {"latents": video, "timestep": timestep.unsqueeze(0).to(video)}
        for branch, h in states.items():
            keywords = self.inputs.of_branch(branch, rows) | inputs
            velocities[branch] = family.flow.readout(dit, h.flatten(1, 3), keywords)
        velocity = family.flow.guide(self.specimen.pipe, self.keywords, velocities, self.timesteps[step])
        velocity = self.batching.blend(self.scheduler, timestep, velocity, video, first, "video")
        return family.flow.x0(self.scheduler, video, velocity, step)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents [row, channel, frame, y, x] to frames [row, time, height, width, rgb], uint8."""
        frames: np.ndarray = self.specimen.family.codec.decode(self.specimen.pipe, apart(latents)["video"])
        return frames

    def outputs(self, latents: Tensor) -> dict[str, np.ndarray]:
        """Decode the last latents of one row [1, channel, frame, y, x] to what a run keeps, by name."""
        codec, streams = self.specimen.family.codec, apart(latents)
        if not codec.decoded(self.keywords):
            return {}
        out = {"video": self.decode(latents)[0]}
        if codec.decode_audio is not None and "audio" in streams:
            out["audio"] = codec.decode_audio(self.specimen.pipe, streams["audio"])[0]
        return out

    @property
    def rates(self) -> Mapping[str, float]:
        """Positions per second of outputs, by name."""
        return self.specimen.family.codec.rates(self.specimen.pipe, self.keywords)


def _copied(scheduler: Any) -> Any:
    """Return a copy of the pipeline's scheduler, as its own is set anew by its next run.

    Raises:
        PlanError: a method of it was replaced, which goes on with the pipeline's own.
    """
    kind = type(scheduler)
    replaced = sorted(
        name
        for name, held in vars(scheduler).items()
        # A method of its own is copied with it.
        if callable(held) and hasattr(kind, name) and getattr(held, "__self__", None) is not scheduler
    )
    if replaced:
        raise PlanError(
            f"{kind.__name__}.{replaced[0]} was replaced on the object, and a batch steps with a copy of it: write "
            "the change as a class of its own, or use lens.run."
        )
    return copy.deepcopy(scheduler)
