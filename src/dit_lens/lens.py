"""`Lens`: a pipeline under the microscope. `run` traces a generation; `trace` does it with a body."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens import records
from dit_lens.capture import Recorder, to_codes
from dit_lens.coords import GRID_DIMS, LATENT_DIMS, at, grid_dim
from dit_lens.errors import PlanError, StoreError
from dit_lens.estimate import Estimate, estimate
from dit_lens.families.base import Family, Seen
from dit_lens.plan import Entry, Layout, Plan
from dit_lens.run import Run
from dit_lens.session import Call, Latents, Session
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
        pipe: a DiffSynth `WanVideoPipeline`, with its models loaded (and VRAM management, if any, switched
            on); a diffusers pipeline (docs/diffusers.md), or an nnsight `DiffusionModel` that holds one.
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
        """Decode latents to frames.

        Args:
            latents: [..., frame, latent_y, latent_x, latent_channel], as `run["x0"]` gives them.

        Returns:
            Frames [..., time, height, width, rgb], uint8.

        Raises:
            PlanError: not latents, or they hold NaN (they were not recorded).
        """
        wanted = ("frame", *LATENT_DIMS.values())
        dims = getattr(latents, "dims", wanted)
        if tuple(dims[-4:]) != wanted:
            raise PlanError(f"decode takes latents [..., {', '.join(wanted)}]; these have {dims}.")
        values = latents if isinstance(latents, Tensor) else torch.from_numpy(np.array(latents.values))
        if bool(torch.isnan(values).any()):
            raise PlanError(
                "decode: the latents hold NaN: the place was not recorded, or the run is not complete."
            )
        rows = values.reshape(-1, *values.shape[-4:]).permute(0, 4, 1, 2, 3)
        frames = self.family.decode(self.pipe, rows)
        return frames.reshape(*values.shape[:-4], *frames.shape[1:])

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
        latent = self.family.latent_grid(self.pipe, sample)
        dit: Any = next(iter(self.dits.values()))
        grid, channels = self.family.token_grid(dit, latent), self.family.channels(dit)
        return estimate(job.plan, job.layout, latent, grid, channels, self.dtype)

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

        A LoRA merged in, or another checkpoint, gives another hash. Cheap: at most 256 values a tensor are
        read.
        """
        # _version counts in-place changes: nothing is read again while the weights stand.
        key = tuple((p.data_ptr(), p._version) for dit in self.dits.values() for p in dit.parameters())
        if self._fingerprint is None or self._fingerprint[0] != key:
            digest = hashlib.sha256()
            for expert, dit in self.dits.items():
                for name, p in dit.named_parameters():
                    flat = p.detach().flatten()
                    values = flat[:: max(1, flat.numel() // 256)].float().cpu().numpy()
                    digest.update(f"{expert}.{name}{tuple(p.shape)}{p.dtype}".encode() + values.tobytes())
            self._fingerprint = key, digest.hexdigest()[:16]
        return self._fingerprint[1]

    def __repr__(self) -> str:
        experts = ", ".join(f"{n}: {type(d).__name__}" for n, d in self.dits.items())
        return f"Lens({self.family.name}; {experts}; {self.layers} layers; sites {', '.join(self.sites)})"


class Job:
    """One run to be made: arguments settled, plan checked, name known, before anything is computed."""

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
        branches = family.branches(self.keywords)
        self.layout = Layout(lens.streams, lens.layers, steps, branches, tuple(lens.dits), family.latents)
        self._declared = plan
        self.plan.check(self.layout)
        self.root = None if store is None else Path(store)
        self.scratch: tempfile.TemporaryDirectory[str] | None = None
        self._manifest: tuple[Plan, dict[str, Any]] | None = None
        self.writer: RunWriter | None = None

    @property
    def plan(self) -> Plan:
        """The plan, with what is always written: x_s at every step, which replay starts from."""
        # Where the user asks for latents at some steps, all are written all the same.
        always = Plan()
        for stream in self.layout.latents:
            always = always.with_record(records.latents, at(stream=stream))
        written = {record.variable for record in always.records}
        others = tuple(r for r in self._declared.records if r.variable not in written)
        return Plan((*others, *always.records), self._declared.edits)

    def declare(self, plan: Plan) -> None:
        """Take a plan that the body of a trace has added to.

        Raises:
            PlanError: it cannot be carried out.
        """
        self._declared = plan
        self.plan.check(self.layout)

    @property
    def manifest(self) -> dict[str, Any]:
        """All that makes this run what it is, under `identity`; the rest may differ between tries."""
        if self._manifest is None or self._manifest[0] is not self._declared:
            self._manifest = self._declared, self._describe()
        return self._manifest[1]

    def _describe(self) -> dict[str, Any]:
        sample, family = self.sample, self.lens.family
        identity = {
            "plan": self.plan.to_json(),
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
            "model": {
                "family": family.name,
                "fingerprint": self.lens.fingerprint(),
                **self.lens.info,
            },
            "dtype": str(self.lens.dtype),
            **family.facts(self.lens.pipe),
            "encoding": self.encoding,
            "body": self.body,
            "versions": versions(),
        }
        return {"identity": identity, "plan": str(self.plan)}

    @property
    def path(self) -> Path | None:
        """Where the run stands in its store; None without a store."""
        if self.root is None:
            return None
        prefix = f"{self.sample.task}-{self.sample.id}-seed{self.seed}"
        return self.root / run_name(
            self.manifest["identity"], "".join(c if c.isalnum() or c in "-_" else "_" for c in prefix)
        )

    def finished(self) -> Run | None:
        """Return the run where the store holds it complete."""
        path = self.path
        if path is None or not (path / "zarr.json").exists():
            return None
        try:
            return Run(path) if status(path).complete else None
        except StoreError:
            return None  # not readable as it is: the writer says why, or takes it over

    def run(
        self, watch: Callable[[Call | None], None] | None = None, plan: Callable[[], Plan] | None = None
    ) -> Run:
        """Run the pipeline, writing as it goes."""

        def settled() -> Plan:
            if plan is not None:
                self.declare(plan())
            return self.plan

        lens = self.lens
        session = Session(
            lens.family, lens.pipe, lens.dits, settled, self.layout, self.seed, self._open, watch
        )
        keywords = dict(self.keywords)
        undo = (lambda: None) if self.progress else lens.family.quiet(lens.pipe, keywords)
        try:
            output = session.run(lambda: lens.pipe(**keywords))
            writer = session.recorder.writer
            write_outputs(writer, lens.family.outputs(output, keywords))
            writer.close()
        finally:
            undo()
            if self.writer is not None:
                self.writer.abort()
        return Run(writer.path, self.scratch)

    def _open(self, session: Session, seen: Seen) -> tuple[Recorder, Mapping[int, Latents]]:
        """Open the run in the store, now that grid and noise levels are known."""
        samples = len(range(*next(iter(seen.rows.values())).indices(10**9)))
        path = self.path
        if path is None:
            self.scratch = tempfile.TemporaryDirectory(prefix="dit_lens_")
            path = Path(self.scratch.name) / "run"
        grids = {stream: tokens.grid for stream, tokens in seen.streams.items()}
        coords = coordinates(self.layout, session.sigmas, session.timesteps, grids)
        self.writer = RunWriter(path.parent, path.name, self.manifest, coords, durable=self.scratch is None)
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


def write_outputs(writer: RunWriter, outputs: Mapping[str, np.ndarray]) -> None:
    """Write what the pipeline made: `video`, [time, height, width, rgb]; `audio`, [speaker, audio_time]."""
    for name, values in outputs.items():
        writer.declare(OUTPUTS[name](values))
        writer.write(name, {}, values)


def _video(frames: np.ndarray) -> Variable:
    dims = ("time", "height", "width", "rgb")
    return Variable("video", dims, frames.shape, "uint8", unit="run", long_name="decoded video")


def _audio(waveform: np.ndarray) -> Variable:
    dims = ("speaker", "audio_time")
    return Variable("audio", dims, waveform.shape, "float32", unit="run", long_name="decoded sound")


OUTPUTS: dict[str, Callable[[np.ndarray], Variable]] = {"video": _video, "audio": _audio}
"""What a pipeline may give beside the records, and how it stands in the store."""


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


__all__ = ["Job", "Lens"]
