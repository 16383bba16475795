"""`Lens`: a pipeline under the microscope. `run` traces a generation; `trace` does it with a body."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens import records
from dit_lens.capture import Recorder, to_codes
from dit_lens.coords import GRID_DIMS, at, grid_dim
from dit_lens.errors import PlanError, StoreError
from dit_lens.estimate import Estimate, estimate
from dit_lens.families.base import Family, Seen, Stage
from dit_lens.plan import Entry, Layout, Plan
from dit_lens.run import Run
from dit_lens.session import Call, Latents, Session, Stages
from dit_lens.store import RunWriter, Variable, open_run, run_name, status, versions
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.batch import Batch
    from dit_lens.trace import Trace

RecordEntries = Iterable[Entry] | Callable[..., Any]


class Lens:
    """A pipeline that can be traced.

    Args:
        pipe: a DiffSynth `WanVideoPipeline` or `LTX2AudioVideoPipeline`, with its models loaded (and VRAM
            management, if any, switched on); a diffusers pipeline (docs/diffusers.md), or an nnsight
            `DiffusionModel` that holds one.
        family: what the library knows of its architecture; found from the pipeline unless given.
        info: what is known of the checkpoint, for the manifest.

    Raises:
        PlanError: no family knows this pipeline, or a path of the family is not there.
    """

    def __init__(
        self, pipe: Any, family: Family | None = None, info: Mapping[str, Any] | None = None
    ) -> None:
        from dit_lens.families import family_of, unwrap

        self.pipe = unwrap(pipe)
        self.family = family or family_of(self.pipe)
        self.dits = self.family.dits(self.pipe)
        self.info = dict(info or {})
        self._fingerprint: tuple[Any, str] | None = None
        self._nnsight: Any = None
        self.wrapped_before: set[torch.nn.Module] = set()  # by an nnsight model of the user's own

    # ---- running

    def run(
        self,
        sample: Sample,
        seed: int = 0,
        *,
        record: RecordEntries = (),
        edit: RecordEntries = (),
        steps: int | None = None,
        cfg_scale: float | None = None,
        store: str | Path | None = None,
        encoding: str | None = None,
        progress: bool = False,
        **arguments: Any,
    ) -> Run:
        """Generate a sample, recording and editing on the way.

        A run that stands complete in the store is returned as it is; one that was interrupted goes on where
        it stopped.

        Args:
            sample: what to generate.
            seed: of the initial noise.
            record: functions, or (function, place) pairs; a bare function means everywhere.
            edit: likewise.
            steps: scheduler steps; the family's default unless given.
            cfg_scale: guidance scale; likewise. 1 runs the conditional branch alone.
            store: folder of runs to write into; a temporary one, gone with the run, unless given.
            encoding: how bfloat16 states are stored: "float32", "codes" or "float16" (see
                docs/store-layout.md).
            progress: show the pipeline's progress bar.
            **arguments: any other keyword of the pipeline's own call.

        Raises:
            PlanError: something asked for cannot be carried out here.
            CaptureError: something asked for did not happen.
            StoreError: the store cannot be written or resumed.
        """
        job = Job(
            self, sample, seed, Plan.of(record, edit), steps, cfg_scale, store, encoding, progress, arguments
        )
        return job.finished() or job.run()

    def trace(self, sample: Sample, seed: int = 0, **options: Any) -> Trace:
        """Open a tracing context: an nnsight trace whose body may also declare records and edits.

        Takes what `run` takes. In the body: `tr.record(f, place)`, `tr.edit(f, place)`, `for call in
        tr.calls(...)`, and all of nnsight through `lens.nnsight`. After it: `tr.run`. It always runs, also
        where the store holds the same run already: the body's own values are wanted.
        """
        from dit_lens.trace import open_trace

        return open_trace(self, sample, seed, **options)

    def batch(
        self,
        pairs: Sequence[tuple[Sample, int]],
        steps: int | None = None,
        cfg_scale: float | None = None,
        at_once: int = 64,
        **arguments: Any,
    ) -> Batch:
        """Prepare (sample, seed) pairs to go through the model together, step by step; see `Batch`.

        Raises:
            PlanError: the family does not say how to batch, or the samples do not fit together.
        """
        from dit_lens.batch import Batch

        return Batch(self, pairs, steps, cfg_scale, at_once, **arguments)

    def decode(self, latents: xr.DataArray | Tensor) -> np.ndarray:
        """Decode latents to frames, or to sound.

        Args:
            latents: [..., frame, latent_y, latent_x, latent_channel], as `run["x0"]` gives them; or of sound, as
                `run["x0_audio"]`.

        Returns:
            Frames [..., time, height, width, rgb], uint8; or of sound [..., speaker, audio_time], float32.

        Raises:
            PlanError: not latents, or they hold NaN (they were not recorded).
        """
        wanted = {s: tuple(grid_dim(d, "latents", s) for d in GRID_DIMS) for s in self.family.latents}
        dims = tuple(getattr(latents, "dims", wanted["video"]))
        stream = next((s for s, w in wanted.items() if dims[-4:] == w), None)
        decoder = {"video": self.family.decode, "audio": self.family.decode_audio}.get(stream or "")
        if decoder is None:
            known = " or ".join(f"[..., {', '.join(w)}]" for w in wanted.values())
            raise PlanError(f"decode takes latents {known}; these have {dims}.")
        values = latents if isinstance(latents, Tensor) else torch.from_numpy(np.array(latents.values))
        if bool(torch.isnan(values).any()):
            raise PlanError(
                "decode: the latents hold NaN: the place was not recorded, or the run is not complete."
            )
        rows = values.reshape(-1, *values.shape[-4:]).permute(0, 4, 1, 2, 3)
        decoded: np.ndarray = decoder(self.pipe, rows)
        return decoded.reshape(*values.shape[:-4], *decoded.shape[1:])

    def estimate(
        self, plan: Plan | RecordEntries, sample: Sample, steps: int | None = None, **arguments: Any
    ) -> Estimate:
        """Say before any run how many bytes each record will write, and how much memory it holds.

        Args:
            plan: a plan, or its records.
            sample: gives the size.
            steps: as in `run`.
            **arguments: as in `run`; `cfg_scale` decides how many branches there are.
        """
        plan = plan if isinstance(plan, Plan) else Plan.of(plan)
        cfg = arguments.pop("cfg_scale", None)
        job = Job(self, sample, 0, plan, steps, cfg, None, None, False, arguments)
        lines = [
            line
            for part in job.stages
            for line in estimate(
                part.plan,
                part.layout,
                self.family.sizes(self.pipe, sample, job.keywords, part.layout.stage),
                self.dtype,
            ).lines
        ]
        return Estimate(tuple(lines))

    # ---- what it is

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the model's states."""
        return self.family.dtype(self.pipe)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.family.block_list(next(iter(self.dits.values()))))

    @property
    def sites(self) -> dict[str, str]:
        """Site names, with the path below a block that each stands for."""
        return self.streams["video"]

    @property
    def streams(self) -> dict[str, dict[str, str]]:
        """Streams that a block carries, each with its sites."""
        return {
            stream: {name: site.path for name, site in sites.items()}
            for stream, sites in self.family.sites.items()
        }

    @property
    def nnsight(self) -> Any:
        """The pipeline as nnsight sees it: `lens.nnsight.dit.blocks[3].output` in the body of a trace."""
        if self._nnsight is None:
            from nnsight import NNsight

            root = self.family.root(self.pipe)
            self.wrapped_before = {m for m in root.modules() if "__nnsight__" in vars(m)}
            self._nnsight = NNsight(root)
        return self._nnsight

    def fingerprint(self) -> str:
        """Hash the experts' parameters: names, shapes, types and some of the values of each.

        A LoRA merged in, one that is kept beside the weights, or another checkpoint gives another hash. Cheap: at most
        256 values a tensor are read, none of weights that rest on disk.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        # _version counts in-place changes: nothing is read again while the weights stand.
        tensors = [item for expert, dit in self.dits.items() for item in _tensors(expert, dit)]
        key = tuple((p.data_ptr(), p._version) for _, p in tensors)
        if "weights" not in self.info and any(p.is_meta for _, p in tensors):
            raise PlanError(
                "The weights rest on disk, where they cannot be told from others: load them by dl.load, or say what they are by "
                "Lens(pipe, info={'weights': ...})."
            )
        if self._fingerprint is None or self._fingerprint[0] != key:
            digest = hashlib.sha256()
            for name, p in tensors:
                digest.update(f"{name}{tuple(p.shape)}{p.dtype}".encode())
                if not p.is_meta:
                    flat = p.detach().flatten()
                    digest.update(flat[:: max(1, flat.numel() // 256)].float().cpu().numpy().tobytes())
            self._fingerprint = key, digest.hexdigest()[:16]
        return self._fingerprint[1]

    def identity(self) -> dict[str, Any]:
        """Return all of the model that makes a result what it is, as plain data; results of others are others."""
        model = {"family": self.family.name, "fingerprint": self.fingerprint(), **self.info}
        return {"model": model, "dtype": str(self.dtype), **self.family.facts(self.pipe)}

    def __repr__(self) -> str:
        experts = ", ".join(f"{n}: {type(d).__name__}" for n, d in self.dits.items())
        return f"Lens({self.family.name}; {experts}; {self.layers} layers; sites {', '.join(self.sites)})"


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
        self.root = None if store is None else Path(store)
        self.scratch: tempfile.TemporaryDirectory[str] | None = None
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
        finally:
            undo()
            for job in self.stages:
                if job.writer is not None:
                    job.writer.abort()
        return Run(writers[-1].path, self.scratch)

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
            first.scratch = tempfile.TemporaryDirectory(prefix="dit_lens_")
        path = self.path or Path(first.scratch.name) / self.name  # type: ignore[union-attr]  # one of the two is there
        grids = {stream: tokens.grid for stream, tokens in seen.streams.items()}
        coords = coordinates(self.layout, session.sigmas, session.timesteps, grids)
        self.writer = RunWriter(path.parent, path.name, self.manifest, coords, durable=self.root is not None)
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


def _tensors(expert: str, dit: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through what a model computes with: parameters, and tensors that its modules keep in lists (LoRAs)."""
    yield from ((f"{expert}.{name}", p) for name, p in dit.named_parameters())
    for path, module in dit.named_modules():
        for name, kept in vars(module).items():
            if isinstance(kept, list):
                for n, tensor in enumerate(kept):
                    if isinstance(tensor, Tensor):
                        yield f"{expert}.{path}.{name}[{n}]", tensor


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


__all__ = ["Job", "Lens"]
