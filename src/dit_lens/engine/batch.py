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
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.engine.forward import Forward, Meeting, PerRow, Place, Rows, Stepped, Waiting, stack
from dit_lens.engine.session import apply_edit
from dit_lens.errors import PlanError
from dit_lens.families.family import Batching
from dit_lens.families.latents import apart
from dit_lens.plan.binding import Slot
from dit_lens.plan.places import Spot, positions
from dit_lens.plan.plan import Layout, Placed, Plan
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.lens import Lens


class Batch:
    """Samples of one shape, prepared once, that go through the model together.

    Args:
        lens: the model.
        pairs: a sample and a seed each. Samples may differ in all but their size and number of frames.
        steps: scheduler steps; the family's default unless given.
        cfg_scale: guidance scale; likewise.
        at_once: rows in one forward, at most; more are split.
        **arguments: any other keyword of the pipeline's own call.

    Attributes:
        noise: what step 0 starts from, [row, channel, frame, y, x].
        layout: coordinates of a run.
        sigmas: noise level of each step.
        timesteps: what the model is told at each step.
        grid: (frame, y, x) of the video's tokens.
        grids: likewise, by stream.

    Raises:
        PlanError: the family does not say how to batch, or the samples do not fit together.
    """

    def __init__(
        self,
        lens: Lens,
        pairs: Sequence[tuple[Sample, int]],
        steps: int | None = None,
        cfg_scale: float | None = None,
        at_once: int = 64,
        **arguments: Any,
    ) -> None:
        self.lens, self.pairs = lens, list(pairs)
        family, pipe = lens.family, lens.pipe
        steps = family.default_steps if steps is None else steps
        self.batching: Batching = _batching(lens, self.pairs, steps, at_once)
        self.at_once = min(at_once, self.batching.most or at_once)
        self.cfg_scale = family.default_cfg if cfg_scale is None else cfg_scale
        keywords = [family.arguments(s, seed, steps, self.cfg_scale, arguments) for s, seed in self.pairs]
        self._keywords = keywords[0]
        family.refuse(pipe, self._keywords)
        if family.later(self._keywords):
            raise PlanError("A batch runs one stage, and this pipeline call has several: use lens.run.")
        branches = family.branches(self._keywords)
        self.layout = Layout(lens.streams, lens.layers, steps, branches, tuple(lens.dits), family.latents)
        prepared = [self._prepare(k) for k in keywords]
        self.given = {b: stack(b, [p[b] for p in prepared]) for b in branches}
        # Every branch starts from the same.
        starts: list[Tensor] = [self.given[branch].pop("latents") for branch in branches]
        self.noise = starts[0]
        self.scheduler = copy.deepcopy(pipe.scheduler)  # the pipeline's own is set anew by its next run
        schedule = family.schedule(self.scheduler)
        if schedule.state:
            raise PlanError(f"{type(self.scheduler).__name__} keeps {schedule.state}: use lens.run.")
        self.sigmas, self.timesteps = schedule.sigmas, schedule.timesteps
        self.grid = family.token_grid(next(iter(lens.dits.values())), (0, *self.noise.shape[2:]))
        sizes = family.more_sizes(pipe, self._keywords, 0) if family.more_sizes is not None else {}
        self.grids = {stream: size.tokens for stream, size in sizes.items()} | {"video": self.grid}
        self._slots: dict[int, tuple[Placed, Slot]] = {}

    def _prepare(self, keywords: dict[str, Any]) -> dict[str, dict[str, Any]]:
        pipe = self.lens.pipe
        undo = self.lens.family.quiet(pipe, keywords)
        try:
            return self.batching.prepare(pipe, keywords)
        finally:
            undo()

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.layout.steps

    def keywords(self, branch: str, rows: Sequence[int] | None = None) -> dict[str, Any]:
        """Return what the model is given on a branch, beside the latents and timestep of a step.

        Args:
            branch: of guidance.
            rows: which of the batch's pairs each row is; each its own unless given.
        """
        index = torch.tensor(range(len(self.pairs)) if rows is None else rows)
        return {
            name: value.rows[index.to(value.rows.device)] if isinstance(value, PerRow) else value
            for name, value in self.given[branch].items()
        }

    def expert(self, step: int) -> str:
        """Return the name of the DiT that serves a step."""
        return self.batching.expert(self.lens.pipe, self.timesteps[step], self._keywords)

    @torch.no_grad()
    def step(
        self,
        step: int,
        latents: Tensor,
        rows: Sequence[int] | None = None,
        edits: Sequence[Sequence[Placed]] | None = None,
        watch: Sequence[Place] = (),
        groups: Sequence[int] | None = None,
    ) -> Stepped:
        """Take one denoising step from given latents.

        Args:
            step: which.
            latents: [row, channel, frame, y, x]; any number of rows.
            rows: which of the batch's pairs each row is; each its own unless given.
            edits: what is placed on each row; what does not select this step is not applied.
            watch: states to return, by (site, branch, layer).
            groups: for edits over seeds: rows of one number are seen together. They stand side by side. Where
                a group has more rows than go at once, its rows run one after another, as often as there are
                places to wait for one another.

        Raises:
            PlanError: an edit cannot be carried out, or an edit over seeds has no groups.
        """
        pairs = list(range(len(self.pairs)) if rows is None else rows)
        placed = [[] for _ in pairs] if edits is None else [list(e) for e in edits]
        whole = Rows(latents, pairs, placed, None if groups is None else list(groups))
        whole.check(len(self.pairs))
        self._check_watched(watch)
        done = []
        for part in parts(whole, self.at_once):
            if len(part.pairs) > self.at_once:
                done += self._one_by_one(step, part, watch)
            else:
                done.append(Forward(self, step, part, watch).run())
        return Stepped.cat(done)

    def guide(self, velocities: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the velocity after classifier-free guidance, of the branches' velocities at a step."""
        if self.batching.guide is not None:
            return self.batching.guide(self.lens.pipe, self._keywords, velocities, self.timesteps[step])
        if len(velocities) == 1:
            return next(iter(velocities.values()))
        return velocities["uncond"] + self.cfg_scale * (velocities["cond"] - velocities["uncond"])

    @torch.no_grad()
    def readout(
        self, step: int, states: Mapping[str, Tensor], latents: Tensor, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Return x0 as if the network ended after a block, guidance included.

        Args:
            step: which.
            states: the block's, by branch, [row, frame, y, x, channel].
            latents: what the step started from, [row, channel, frame, y, x].
            rows: which of the batch's pairs each row is; each its own unless given.

        Returns:
            [row, channel, frame, y, x], of the video.

        Raises:
            PlanError: the family does not know how its network reads a state out.
        """
        family, video, timestep = self.lens.family, apart(latents)["video"], self.scheduler.timesteps[step]
        if family.readout is None:
            raise PlanError(f"Family {family.name} does not say how its network reads a block's state out.")
        dit, velocities = self.lens.dits[self.expert(step)], {}
        own = {"latents": video, "timestep": timestep.unsqueeze(0).to(video)}
        for branch, h in states.items():
            given = self.keywords(branch, rows) | own
            velocities[branch] = family.readout(dit, h.flatten(1, 3), given)
        velocity = self.guide(velocities, step)
        velocity = self.batching.blend(self.scheduler, timestep, velocity, video, given, "video")
        return family.x0(self.scheduler, video, velocity, step)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents [row, channel, frame, y, x] to frames [row, time, height, width, rgb], uint8."""
        frames: np.ndarray = self.lens.family.decode(self.lens.pipe, apart(latents)["video"])
        return frames

    def outputs(self, latents: Tensor) -> dict[str, np.ndarray]:
        """Decode the last latents of one row [1, channel, frame, y, x] to what a run keeps, by name."""
        family, streams = self.lens.family, apart(latents)
        out = {"video": self.decode(latents)[0]}
        if family.decode_audio is not None and "audio" in streams:
            out["audio"] = family.decode_audio(self.lens.pipe, streams["audio"])[0]
        return out

    @property
    def rates(self) -> Mapping[str, float]:
        """Positions per second of outputs, by name."""
        return self.lens.family.rates(self.lens.pipe, self._keywords)

    def slot(self, placed: Placed) -> Slot:
        """Resolve an edit's place on this batch's steps; checked when it is first seen."""
        if id(placed) not in self._slots:
            plan = Plan(edits=(placed,))
            plan.check(self.layout, over_seeds=True)
            plan.check_sources(self.lens.fingerprint)
            slot = Slot.of(placed, True, self.layout, self.sigmas)
            if not any(self.expert(step) in slot.experts for step in slot.steps):
                raise PlanError(f"edit {placed}: none of its steps is served by {', '.join(slot.experts)}.")
            # The edit is held too, so that its id is not given to another.
            self._slots[id(placed)] = placed, slot
        return self._slots[id(placed)][1]

    def _check_watched(self, watch: Sequence[Place]) -> None:
        for site, branch, layer in watch:
            if site not in self.lens.sites or branch not in self.layout.branches:
                raise PlanError(
                    f"watch {site, branch, layer}: there are the sites {', '.join(self.lens.sites)}, and in this batch the "
                    f"branches {', '.join(self.layout.branches)}."
                )
            positions("layer", ((layer, layer),), self.layout.layers)

    def spot(
        self,
        step: int,
        pair: int,
        site: str,
        branch: str | None,
        layer: int | None,
        stream: str = "video",
    ) -> Spot:
        """Return the place of one row, as edits are told it."""
        times, seed = (self.sigmas[step], self.timesteps[step]), self.pairs[pair][1]
        return Spot(site, step, *times, seed, self.expert(step), branch, layer, stream=stream)

    def _one_by_one(self, step: int, group: Rows, watch: Sequence[Place]) -> list[Stepped]:
        """Run the rows of a group one after another, until what they hand over at every meeting stands.

        Each round settles at least one more meeting, in the order in which the model comes to them.
        """
        known: dict[Meeting, Tensor] = {}
        while True:
            seen: dict[Meeting, dict[int, Tensor]] = {}
            out = [
                Forward(self, step, group[n : n + 1], watch, Waiting(n, known, seen)).run()
                for n in range(len(group.pairs))
            ]
            new = {meeting: self._met(step, group, meeting, values) for meeting, values in seen.items()}
            if all(meeting in known and torch.equal(known[meeting], value) for meeting, value in new.items()):
                return out
            known = new

    def _met(self, step: int, group: Rows, meeting: Meeting, values: dict[int, Tensor]) -> Tensor:
        """Return what an edit over seeds makes of the rows that came to it; other rows' places stay empty."""
        placed, branch, layer = meeting
        rows = sorted(values)
        together = torch.stack([values[row] for row in rows])
        spot = self.spot(step, group.pairs[rows[0]], placed.site, branch, layer)
        out = torch.zeros(len(group.pairs), *together.shape[1:], dtype=together.dtype, device=together.device)
        out[rows] = apply_edit(placed, spot, together)
        return out


def _batching(lens: Lens, pairs: Sequence[tuple[Sample, int]], steps: int, at_once: int) -> Batching:
    """Return the family's way to batch, once the samples are seen to fit together."""
    if lens.family.batching is None:
        raise PlanError(
            f"Family {lens.family.name} does not say how to batch: use lens.run, a run at a time."
        )
    if not pairs or steps < 1 or at_once < 1:
        raise PlanError(
            f"A batch has samples, steps and rows: {len(pairs)} pairs, steps={steps}, at_once={at_once}."
        )
    sizes = sorted({(*(s.size or ()), s.num_frames) for s, _ in pairs})
    if len(sizes) > 1:
        raise PlanError(f"The samples of a batch have one (height, width, num_frames); these have {sizes}.")
    for sample, _ in pairs:
        if not isinstance(sample.prompt, str):
            raise PlanError(f"{sample.task}/{sample.id} is a prompt batch: give each prompt as a sample.")
    return lens.family.batching


def parts(rows: Rows, at_once: int) -> Iterator[Rows]:
    """Cut rows into parts of at most `at_once`; those of one group stay together, also if they are more."""
    start, count, groups = 0, len(rows.pairs), rows.groups
    while start < count:
        stop = min(start + at_once, count)
        if groups is not None:
            while stop < count and stop > start and groups[stop] == groups[stop - 1]:
                stop -= 1
            if stop == start:
                stop = start + sum(group == groups[start] for group in groups)
        yield rows[start:stop]
        start = stop
