"""One run in progress: which call is running, what applies to it, and whether all of it happened.

Labels come from the pipeline (a family's `intercept` drives `call` and `advance`), never from counting hooks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_lens.engine.recorder import Recorder
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.family import Family, Seen, Site, Tokens, submodule
from dit_lens.plan.binding import Slot
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Layout, Placed, Plan

Latents = Mapping[str, Tensor]
"""Stream name to its latents, [row, channel, frame, y, x]."""

Where = tuple[str, str, int]
"""Site, stream and layer."""


@dataclass(frozen=True)
class Call:
    """One forward of a DiT inside a step.

    Attributes:
        step: scheduler step, 0 the noisiest.
        sigma: noise level in [0, 1].
        branch: guidance branch; `cond+uncond` where one batch carries both.
        expert: the DiT that runs.
        seen: what the call said of itself.
        stage: pass of the sampling loop.
    """

    step: int
    sigma: float
    seen: Seen
    stage: int = 0

    @property
    def branch(self) -> str:
        """Name of the branch, or of all that the batch carries."""
        return "+".join(self.seen.rows)

    @property
    def expert(self) -> str:
        """Name of the DiT that runs."""
        return self.seen.expert

    def __str__(self) -> str:
        stage = f"stage={self.stage}, " if self.stage else ""
        return f"{stage}step={self.step}, branch={self.branch}, expert={self.expert}"


class Session:
    """Drives one stage of a run: applies edits, takes records, audits.

    Args:
        family: of the model.
        pipe: the pipeline.
        dits: experts by name.
        plan: `plan()` gives records and edits; asked when the first call comes.
        layout: coordinates of the run.
        seed: of the trajectory.
        open_recorder: makes the recorder once grid and noise levels are known; the stored latents of a run to
            go on with come with it, by step.
        watch: told of every call before it runs.
    """

    def __init__(
        self,
        family: Family,
        pipe: Any,
        dits: Mapping[str, torch.nn.Module],
        plan: Callable[[], Plan],
        layout: Layout,
        seed: int,
        open_recorder: Callable[[Session, Seen], tuple[Recorder, Mapping[int, Latents]]],
        watch: Callable[[Call | None], None] | None = None,
    ) -> None:
        self.family, self.pipe, self.dits, self.layout, self.seed = family, pipe, dits, layout, seed
        self._plan, self._open_recorder, self._watch = plan, open_recorder, watch
        self.plan = Plan()
        self.now: Call | None = None
        self.step = 0
        self.resume = 0  # first step that is not in the store yet
        self.sigmas: list[float] = []
        self.timesteps: list[float] = []
        self._recorder: Recorder | None = None
        self._stored: Mapping[int, Latents] = {}
        self._latents: Latents = {}  # what this step starts from, edits included
        self._seen: dict[str, Seen] = {}  # branches that ran in this step
        self._stepped: set[str] = set()  # streams whose scheduler has stepped
        self._slots: list[Slot] = []  # edits first: a record reads what they leave
        self._fired: dict[Slot, set[tuple[Any, ...]]] = defaultdict(set)  # in this step
        self._ever: set[Slot] = set()
        self._undo: list[Callable[[], Any]] = []

    # ---- what the family drives

    def call(
        self, seen: Seen, latents: Latents, proceed: Callable[[Latents], Any], skip: Callable[[], Any]
    ) -> Any:
        """Serve one forward of a DiT."""
        if self._recorder is None:
            self._open(seen)
        for branch in seen.rows:
            if branch in self._seen or branch not in self.layout.branches:
                raise CaptureError(
                    f"step {self.step}: branch {branch!r} ran {'twice' if branch in self._seen else 'unasked'}; this run "
                    f"has the branches {self.layout.branches}, once a step each. Something runs the model on its own."
                )
            self._seen[branch] = seen
        if self.step < self.resume - 1:  # this step stands in the store: nothing to compute
            return skip()
        if not self._latents:
            self._latents = self._start_step(latents)
        self.now = Call(self.step, self.sigmas[self.step], seen, self.layout.stage)
        try:
            if self._watch is not None:
                self._watch(self.now)
            return proceed(self._latents)
        finally:
            self.now = None

    def advance(
        self,
        velocity: Tensor,
        timestep: Any,
        latents: Tensor,
        proceed: Callable[[Tensor, Tensor], Tensor],
        stream: str = "video",
    ) -> Tensor:
        """Serve one step of the scheduler: velocity and x0 are known now.

        With the last stream, the step is audited and committed.
        """
        if self._recorder is None or not self._seen:
            raise CaptureError(f"The scheduler stepped before the model ran (step {self.step}).")
        if abs(float(timestep) - self.timesteps[self.step]) > 1e-3:
            raise CaptureError(
                f"step {self.step}: the scheduler was told timestep {float(timestep):.3f}, its own list says "
                f"{self.timesteps[self.step]:.3f}: the pipeline skips or repeats steps, which cannot be labelled."
            )
        self._stepped.add(stream)
        if self.step < self.resume - 1:
            proceed(velocity, latents)  # some schedulers count their steps
            out = self._stored[self.step + 1][stream].to(latents)
        else:
            start = self._latents[stream]
            velocity = self._velocity(velocity, start, stream)
            out = proceed(velocity, start)
        if self._stepped >= set(self._streams):
            self._end_step()
        return out

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return what the running step starts from, edits included; the given latents where it is replayed."""
        return self._latents.get(stream, latents)

    def _end_step(self) -> None:
        if self.step >= self.resume:
            self._commit_step()
        self._latents, self._seen, self._stepped = {}, {}, set()
        self._ever |= self._fired.keys()
        self._fired.clear()
        self.step += 1

    def remove(self) -> None:
        """Remove all hooks."""
        while self._undo:
            self._undo.pop()()

    # ---- opening

    @property
    def recorder(self) -> Recorder:
        """The recorder; there once the first call has come."""
        if self._recorder is None:
            raise CaptureError("The model never ran: the pipeline made no call.")
        return self._recorder

    @property
    def _streams(self) -> tuple[str, ...]:
        """Streams with latents that this run has: a model of video and sound may run one alone."""
        seen = next(iter(self._seen.values()))
        return tuple(stream for stream in self.layout.latents if stream in seen.streams)

    def _open(self, seen: Seen) -> None:
        self.plan = self._plan()
        self.plan.check(self.layout)
        schedule = self.family.schedule(self.pipe.scheduler)
        self.sigmas, self.timesteps = schedule.sigmas, schedule.timesteps
        if len(self.timesteps) != self.layout.steps:
            raise CaptureError(
                f"The scheduler has {len(self.timesteps)} steps, the run was asked for {self.layout.steps}."
            )
        for is_edit, items in ((True, self.plan.edits), (False, self.plan.records)):
            self._slots += [Slot.of(placed, is_edit, self.layout, self.sigmas) for placed in items]
        self._recorder, self._stored = self._open_recorder(self, seen)
        self.resume = min(set(range(self.layout.steps + 1)) - self._recorder.writer.committed_steps)
        self._install()

    def _install(self) -> None:
        """Put one hook on every module where something is placed, and nowhere else."""
        for expert, dit in self.dits.items():
            for layer, block in enumerate(self.family.block_list(dit)):
                for stream, sites in self.family.sites.items():
                    for name, site in sites.items():
                        here = [slot for slot in self._slots if slot.hangs(name, stream, layer, expert)]
                        if here:
                            module = submodule(block, site.path)
                            self._undo.append(self._hook(module, site, (name, stream, layer), here).remove)

    def _hook(self, module: torch.nn.Module, site: Site, where: Where, slots: list[Slot]) -> Any:
        def visit(h: Tensor) -> Tensor | None:
            return None if self.now is None else self._visit(self.now, where, slots, h)

        return site.attach(module, visit)

    # ---- values

    def _visit(self, call: Call, where: Where, slots: list[Slot], h: Tensor) -> Tensor | None:
        """Apply what is placed here to the call's rows of h [row, token, channel]; None where nothing changed."""
        site, stream, layer = where
        tokens, out = self._tokens(call, where, h), None
        for branch, rows in call.seen.rows.items():
            for sample, row in enumerate(range(*rows.indices(h.shape[0]))):
                spot = self._spot(site, stream, call.expert, branch, layer, sample)
                value = h[row, tokens.part].view(*tokens.grid, h.shape[-1])
                new = self._apply(slots, spot, value)
                if new is not value:
                    out = h.clone() if out is None else out
                    out[row, tokens.part] = new.flatten(0, 2)
        return out

    def _tokens(self, call: Call, where: Where, h: Tensor) -> Tokens:
        """Return how the stream's tokens stand in h."""
        site, stream, layer = where
        tokens = call.seen.streams.get(stream)
        if tokens is None:
            raise CaptureError(f"{site} at layer {layer}, {call}: this run has no stream {stream!r}.")
        if h.ndim != 3 or h.shape[1] != tokens.total:
            raise CaptureError(
                f"{site} at layer {layer}, {call}: the value is {tuple(h.shape)}, but the grid {tokens.grid}, {tokens.before} "
                f"tokens before it and {tokens.after} after it make {tokens.total} [row, token, channel]: this site does "
                f"not hold the {stream}'s tokens; place it elsewhere."
            )
        return tokens

    def _spot(
        self,
        site: str,
        stream: str,
        expert: str,
        branch: str | None = None,
        layer: int | None = None,
        sample: int = 0,
    ) -> Spot:
        s = self.step
        times = self.sigmas[s], self.timesteps[s]
        return Spot(site, s, *times, self.seed, expert, branch, layer, sample, stream, self.layout.stage)

    def _apply(self, slots: list[Slot], spot: Spot, value: Tensor, edit: bool = True) -> Tensor:
        """Edit and record a value; the very same tensor where nothing changed."""
        for slot in slots:
            if not slot.selects(spot):
                continue
            if slot.is_edit and edit:
                self._mark(slot, spot)
                value = apply_edit(slot.placed, spot, value)
            # A step that is in the store runs once more only to go on from it.
            elif not slot.is_edit and self.step >= self.resume:
                self._mark(slot, spot)
                self.recorder.take(slot, spot, value, slot.placed.function(value))
        return value

    def _mark(self, slot: Slot, spot: Spot) -> None:
        key = (spot.branch, spot.layer, spot.sample)
        fired = self._fired[slot]
        if key in fired:
            raise CaptureError(f"{slot.placed} fired twice at {spot}: the module runs more than once a call.")
        fired.add(key)

    def _at_site(self, site: str, stream: str, latents: Tensor, edit: bool = True) -> Tensor:
        """Edit and record what stands on the latent grid; the very same tensor where nothing changed."""
        slots = [s for s in self._slots if s.placed.site == site and s.placed.stream == stream]
        expert, out = next(iter(self._seen.values())).expert, None
        # The first latents of a prompt batch are one row, which the model repeats for every prompt.
        rows = latents.expand(max(self.recorder.samples, latents.shape[0]), *latents.shape[1:])
        for sample, row in enumerate(rows):
            spot = self._spot(site, stream, expert, sample=sample)
            value = row.permute(1, 2, 3, 0)
            new = self._apply(slots, spot, value, edit)
            if new is not value:
                out = rows.clone() if out is None else out
                out[sample] = new.permute(3, 0, 1, 2)
        return latents if out is None else out

    def _start_step(self, latents: Latents) -> Latents:
        # What comes from the store had its edits already.
        edit = not 0 < self.step == self.resume - 1
        return {s: self._at_site("latents", s, latents[s], edit) for s in self._streams}

    def _velocity(self, velocity: Tensor, latents: Tensor, stream: str) -> Tensor:
        velocity = self._at_site("velocity", stream, velocity)
        if not any(s.placed.site == "x0" and s.placed.stream == stream for s in self._slots):
            return velocity
        scheduler = self.pipe.scheduler
        x0 = self.family.x0(scheduler, latents, velocity, self.step)
        new = self._at_site("x0", stream, x0)
        if new is x0 or torch.equal(new, x0):
            return velocity
        return self.family.velocity(scheduler, latents, new, self.step).to(velocity.dtype)

    # ---- audit

    def _commit_step(self) -> None:
        if set(self._seen) != set(self.layout.branches):
            missing = sorted(set(self.layout.branches) - set(self._seen))
            raise CaptureError(
                f"step {self.step}: the branches {missing} never ran; {sorted(self._seen)} did."
            )
        expert = next(iter(self._seen.values())).expert
        for slot in self._slots:
            if self.step in slot.steps and expert in slot.experts:
                self._audit(slot, expert)
        info = {"sigma": self.sigmas[self.step], "timestep": self.timesteps[self.step], "expert": expert}
        self.recorder.end_step(self.step, info)

    def _audit(self, slot: Slot, expert: str) -> None:
        placed = slot.placed
        wanted: set[tuple[Any, ...]] = {(None, None)}
        if not placed.on_latents:
            wanted = {(b, n) for b in slot.branches for n in slot.layers}
        missing = {(b, n, s) for b, n in wanted for s in range(self.recorder.samples)} - self._fired[slot]
        if missing:
            branch, layer, sample = min(missing, key=str)
            where = self._module_path(placed, expert, layer)
            raise CaptureError(
                f"{placed}: nothing was captured at step={self.step}, branch={branch}, layer={layer}, expert={expert}"
                f"{f', sample={sample}' if self.recorder.samples > 1 else ''}{where}, and at {len(missing) - 1} more "
                "places: the module did not run there. Leave the place out, or switch off what skips the module."
            )

    def _module_path(self, placed: Placed, expert: str, layer: int | None) -> str:
        """Return the module that a place stands for, in words; empty outside the blocks."""
        if layer is None:
            return ""
        path, n = self.family.locate(self.dits[expert], layer)
        below = self.layout.sites[placed.stream][placed.site]
        return f" (module {path}.{n}" + (f".{below})" if below else ")")

    def audit(self) -> None:
        """Check that all that was asked for has happened, now that the stage is over.

        Raises:
            CaptureError: something has not.
        """
        if self.step != self.layout.steps:
            raise CaptureError(f"The run ended after {self.step} of {self.layout.steps} steps.")
        never = [slot.placed for slot in self._slots if slot not in self._ever]
        if never and self.resume == 0:
            raise CaptureError(
                f"{never[0]} never fired in this run: no step had its sigma and expert together."
            )
        self.recorder.end_run(slot for slot in self._slots if not slot.is_edit)


class Stages:
    """Drives one run: its stages, one after another, as the family says.

    Args:
        sessions: one for each stage.
        watch: told of the end (None).
    """

    def __init__(
        self, sessions: Sequence[Session], watch: Callable[[Call | None], None] | None = None
    ) -> None:
        self.sessions, self._watch, self._now = sessions, watch, sessions[0]
        self.seed = sessions[0].seed

    def run(self, work: Callable[[], Any]) -> Any:
        """Run the pipeline under the sessions; all that was installed is removed, whatever happens."""
        family, pipe = self._now.family, self._now.pipe
        undo = family.intercept(pipe, family, self)
        try:
            out = work()
            if self._watch is not None:
                self._watch(None)
            self._now.audit()
            if self._now is not self.sessions[-1]:
                raise CaptureError(
                    f"The run ended in stage {self._now.layout.stage} of {len(self.sessions)}."
                )
            return out
        finally:
            self._now.remove()
            undo()

    def enter(self, stage: int) -> None:
        """Go on with a stage, once the one before is audited."""
        if stage == self._now.layout.stage:
            return
        if not 0 <= stage < len(self.sessions) or stage != self._now.layout.stage + 1:
            raise CaptureError(f"The pipeline went from stage {self._now.layout.stage} to stage {stage}.")
        self._now.audit()
        self._now.remove()
        self._now = self.sessions[stage]

    def call(self, *args: Any) -> Any:
        """Serve one forward of a DiT, in the stage that runs."""
        return self._now.call(*args)

    def advance(self, *args: Any, **keywords: Any) -> Tensor:
        """Serve one step of the scheduler, in the stage that runs."""
        return self._now.advance(*args, **keywords)

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return what the running step starts from, edits included."""
        return self._now.start(latents, stream)


def apply_edit(edit: Placed, spot: Spot, value: Tensor) -> Tensor:
    """Apply an edit, in its region of the grid alone, and check what it returns.

    Raises:
        PlanError: it returned another shape or type.
    """
    new = edit.function(value, spot)
    if not isinstance(new, Tensor) or new.shape != value.shape or new.dtype != value.dtype:
        got = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
        raise PlanError(
            f"edit {edit.name} at {spot} returned {got}; the value is {value.dtype} {tuple(value.shape)} "
            "[frame, y, x, channel]: return the same shape and type."
        )
    return new if not edit.place.region or new is value else _within(edit, value, new)


def _within(edit: Placed, value: Tensor, new: Tensor) -> Tensor:
    """Take the new value inside the edit's region of the grid, the old one outside."""
    mask = torch.from_numpy(edit.place.inside(tuple(value.shape[-4:-1]))).to(value.device)  # type: ignore[arg-type]
    return torch.where(mask[..., None], new, value)


__all__ = ["Call", "Latents", "Session", "Stages", "apply_edit"]
