"""One run to be made: what is settled before anything runs, what names it, and where it is written."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens import records
from dit_lens.engine.recorder import Recorder, to_codes
from dit_lens.engine.session import Call, Latents, Session, Stages
from dit_lens.errors import PlanError, StoreError
from dit_lens.families.family import Seen, Stage
from dit_lens.plan.places import GRID_DIMS, at, grid_dim
from dit_lens.plan.plan import Layout, Plan
from dit_lens.store import RunWriter, Variable, open_run, run_name, status, versions
from dit_lens.store.names import absolute
from dit_lens.store.run import Run
from dit_lens.store.scratch import Scratch
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.lens import Lens


class Job:
    """One run to be made: arguments settled, plan checked, name known, before anything is computed.

    Where the pipeline has several stages there is one for each, which writes a run of its own; the first holds the
    others in `stages`, and runs them all.
    """

    def __init__(
        self,
        lens: Lens,
        sample: Sample,
        seed: int,
        plan: Plan,
        steps: int | None,
        cfg_scale: float | None,
        store: str | Path | None,
        encoding: str | None,
        progress: bool,
        arguments: Mapping[str, Any],
        body: str | None = None,
        stage: int = 0,
    ) -> None:
        family = lens.family
        self.lens, self.sample, self.seed, self.encoding, self.body = lens, sample, seed, encoding, body
        steps = family.default_steps if steps is None else steps
        cfg_scale = family.default_cfg if cfg_scale is None else cfg_scale
        if steps < 1:
            raise PlanError(f"steps={steps}: a run has at least one.")
        self.keywords = family.arguments(sample, seed, steps, cfg_scale, arguments)
        family.refuse(lens.pipe, self.keywords)
        self.progress = progress
        stages = (Stage(steps, family.branches(self.keywords)), *family.later(self.keywords))
        size = stages[stage].steps, stages[stage].branches
        self.layout = Layout(
            lens.streams, lens.layers, *size, tuple(lens.dits), family.latents, stage, len(stages)
        )
        self.root = None if store is None else absolute(store)
        self.scratch: Scratch | None = None
        self.lease = (
            threading.Lock()
        )  # held while the run is made, so that its writers know of every way it ends
        self._declared = plan
        self._identity: tuple[Plan, dict[str, Any]] | None = None
        self.writer: RunWriter | None = None
        given = (lens, sample, seed, plan, steps, cfg_scale, store, encoding, progress, arguments, body)
        self.stages = [self, *(Job(*given, n) for n in range(1, len(stages)) if stage == 0)]
        for job in self.stages:
            job.stages = self.stages
        if stage == 0:
            self.declare(plan)

    @property
    def plan(self) -> Plan:
        """The plan of this stage, with what is always written: x_s at every step, which replay starts from."""
        return self._complete(self._declared.in_stage(self.layout))

    def _complete(self, declared: Plan) -> Plan:
        # Where the user asks for latents at some steps, all are written all the same.
        always = Plan()
        for stream in self.layout.latents:
            always = always.with_record(records.latents, at(stream=stream))
        written = {record.variable for record in always.records}
        others = tuple(r for r in declared.records if r.variable not in written)
        return Plan((*others, *always.records), declared.edits)

    def declare(self, plan: Plan) -> None:
        """Take a plan: the first one, and what the body of a trace has added to it.

        Raises:
            PlanError: it cannot be carried out.
        """
        for job in self.stages:
            job._declared = plan
            job.plan.check(job.layout)
        self.plan.check_sources(self.lens.fingerprint)

    @property
    def manifest(self) -> dict[str, Any]:
        """All that makes this run what it is, under `identity`; the rest may differ between tries."""
        several = {"stages": [job.name for job in self.stages]} if len(self.stages) > 1 else {}
        return {"identity": self.identity, "plan": str(self.plan), **several}

    @property
    def identity(self) -> dict[str, Any]:
        """All that makes this run what it is."""
        if self._identity is None or self._identity[0] is not self._declared:
            self._identity = self._declared, self._describe()
        return self._identity[1]

    def _describe(self) -> dict[str, Any]:
        sample, family = self.sample, self.lens.family
        identity = {
            # Of all stages: what one of them does changes the ones after it.
            "plan": self._complete(self._declared).to_json(),
            "sample": {
                "task": sample.task,
                "id": sample.id,
                "prompt": sample.prompt,
                "negative_prompt": sample.negative_prompt,
                "num_frames": sample.num_frames,
                "size": sample.size,
                "image": None if sample.image is None else hashlib.sha256(sample.image.tobytes()).hexdigest(),
            },
            "seed": self.seed,
            "arguments": {k: _plain(v) for k, v in self.keywords.items() if k not in family.silent},
            **self.lens.identity(),
            "encoding": self.encoding,
            "body": self.body,
            "versions": versions(),
        }
        if self.layout.stage:
            identity["stage"] = self.layout.stage
        return identity

    @property
    def path(self) -> Path | None:
        """Where the run stands in its store; None without a store."""
        return None if self.root is None else self.root / self.name

    @property
    def name(self) -> str:
        """Name of the run."""
        stage = f"-stage{self.layout.stage}" if self.layout.stage else ""
        prefix = f"{self.sample.task}-{self.sample.id}-seed{self.seed}{stage}"
        return run_name(self.identity, "".join(c if c.isalnum() or c in "-_" else "_" for c in prefix))

    def finished(self) -> Run | None:
        """Return the run where the store holds it complete, with all its stages; the last is what is returned."""
        for job in self.stages:
            path = job.path
            if path is None or not (path / "zarr.json").exists():
                return None
            try:
                if not status(path).complete:
                    return None
            except StoreError:
                return None  # not readable as it is: the writer says why, or takes it over
        return None if path is None else Run(path)

    def run(
        self, watch: Callable[[Call | None], None] | None = None, plan: Callable[[], Plan] | None = None
    ) -> Run:
        """Run the pipeline, writing as it goes."""
        with self.lease:
            return self._run(watch, plan)

    def _run(self, watch: Callable[[Call | None], None] | None, plan: Callable[[], Plan] | None) -> Run:
        def settled() -> None:
            if plan is not None:
                self.declare(plan())

        lens, family = self.lens, self.lens.family
        sessions = [job.session(settled, watch) for job in self.stages]
        keywords = dict(self.keywords)
        undo = (lambda: None) if self.progress else family.quiet(lens.pipe, keywords)
        try:
            output = Stages(sessions, watch).run(lambda: lens.pipe(**keywords))
            writers = [session.recorder.writer for session in sessions]
            rates = family.rates(lens.pipe, keywords)
            write_outputs(writers[-1], family.outputs(output, keywords), rates)
            for writer in writers:
                writer.close()
            scratch = self.scratch
        finally:
            undo()
            for job in self.stages:
                if job.writer is not None:
                    job.writer.abort()
            self.scratch = None  # from here on it goes with the run, not with this job
        return Run(writers[-1].path, scratch)

    def session(self, settled: Callable[[], Any], watch: Callable[[Call | None], None] | None) -> Session:
        """Make the session that drives this stage."""

        def plan() -> Plan:
            settled()
            return self.plan

        lens = self.lens
        return Session(lens.family, lens.pipe, lens.dits, plan, self.layout, self.seed, self._open, watch)

    def _open(self, session: Session, seen: Seen) -> tuple[Recorder, Mapping[int, Latents]]:
        """Open the run in the store, now that grid and noise levels are known."""
        samples = len(range(*next(iter(seen.rows.values())).indices(10**9)))
        first = self.stages[0]
        if self.root is None and first.scratch is None:
            first.scratch = Scratch()
        path = self.path or first.scratch.path / self.name  # type: ignore[union-attr]  # one of the two is there
        grids = {stream: tokens.grid for stream, tokens in seen.streams.items()}
        coords = coordinates(self.layout, session.sigmas, session.timesteps, grids)
        in_store = self.root is not None
        self.writer = RunWriter(
            *(path.parent, path.name, self.manifest, coords),
            durable=in_store,
            exclusive=in_store,
            lease=first.lease,
        )
        recorder = Recorder(self.layout, samples, self.writer, self.encoding)
        committed = self.writer.committed_steps
        if not committed:
            return recorder, {}
        if state := self.lens.family.schedule(self.lens.pipe.scheduler).state:
            raise StoreError(
                f"{path} was interrupted, and its scheduler keeps {state}, which a replay would not repeat: "
                "remove the folder and run again."
            )
        done = open_run(path)
        recorder.experts = [str(e) for e in done["expert"].values]
        stored = {s: done["latents" if s == "video" else f"latents_{s}"] for s in self.layout.latents}
        return recorder, {
            step: {stream: _to_latents(values, step) for stream, values in stored.items()}
            for step in sorted(committed)
        }


OUTPUTS = {
    "video": (("time", "height", "width", "rgb"), "uint8", "decoded video"),
    "audio": (("speaker", "audio_time"), "float32", "decoded sound"),
}
"""What a pipeline may give beside the records, and how it stands in the store."""


def write_outputs(
    writer: RunWriter, outputs: Mapping[str, np.ndarray], rates: Mapping[str, float] | None = None
) -> None:
    """Write what the pipeline made, by the names of `OUTPUTS`, with its positions per second where known."""
    for name, values in outputs.items():
        dims, dtype, words = OUTPUTS[name]
        rate = (rates or {}).get(name)
        writer.declare(Variable(name, dims, values.shape, dtype, unit="run", long_name=words, rate=rate))
        writer.write(name, {}, values)


def _to_latents(stored: xr.DataArray, step: int) -> Tensor:
    values = torch.from_numpy(np.array(stored.isel(step=step).values))  # [(sample,) frame, y, x, channel]
    values = values if values.ndim == 5 else values[None]
    return values.permute(0, 4, 1, 2, 3).contiguous()


def coordinates(
    layout: Layout,
    sigmas: list[float],
    timesteps: list[float],
    grids: Mapping[str, tuple[int, int, int]],
) -> dict[str, Any]:
    """Return the coordinates of a run's group; `grids` are (frame, y, x) by stream."""
    return {
        "step": np.arange(layout.steps),
        "sigma": ("step", np.asarray(sigmas, np.float64)),
        "timestep": ("step", np.asarray(timesteps, np.float64)),
        "expert": ("step", [layout.experts[0]] * layout.steps),  # set step by step, as they are served
        "branch": list(layout.branches),
        "layer": np.arange(layout.layers),
        **{
            grid_dim(dim, "block", stream): np.arange(size)
            for stream, grid in grids.items()
            for dim, size in zip(GRID_DIMS, grid, strict=False)
        },
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tobytes"):  # images and arrays, by content
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, Tensor):
        return hashlib.sha256(to_codes(value.detach().cpu().contiguous()).tobytes()).hexdigest()
    return repr(value)


__all__ = ["Job", "coordinates", "write_outputs"]
