"""`Lens`: a pipeline under the microscope. `run` traces a generation; `trace` does it with a body."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.engine.estimate import Estimate, estimate
from dit_lens.engine.request import Job
from dit_lens.errors import PlanError
from dit_lens.families.family import Family
from dit_lens.families.identity import fingerprint, identity
from dit_lens.plan.places import GRID_DIMS, grid_dim
from dit_lens.plan.plan import Entry, Plan
from dit_lens.store.run import Run
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.engine.batch import Batch
    from dit_lens.engine.trace import Trace

_WRAPPED_HERE: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""Modules that a lens has wrapped for nnsight, also where its trace never came to run; others are the user's own."""

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
        from dit_lens.engine.trace import open_trace

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
        from dit_lens.engine.batch import Batch

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
            self.wrapped_before = {
                m for m in root.modules() if "__nnsight__" in vars(m) and m not in _WRAPPED_HERE
            }
            _WRAPPED_HERE.update(set(root.modules()) - self.wrapped_before)
            self._nnsight = NNsight(root)
        return self._nnsight

    def fingerprint(self) -> str:
        """Hash the DiTs that the pipeline holds now: every value of every tensor, their settings, hooks and classes.

        A LoRA merged in or kept beside the weights, its scale, another checkpoint: each gives another hash.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        return fingerprint(self.family.dits(self.pipe), self.info)

    def identity(self, unnamed: list[str] | None = None) -> dict[str, Any]:
        """Return all of the model that makes a result what it is, as plain data; results of others are others.

        Args:
            unnamed: gets a sentence for each part that cannot be named by its content; the data is then equal to no
                other.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        data, sentences = identity(self.pipe, self.family, self.family.dits(self.pipe), self.info)
        if unnamed is not None:
            unnamed += sentences
        return data

    def __content__(self, walk: Any) -> dict[str, Any]:
        """Return what a function that reads the lens is named by."""
        parts = lambda: [self.family.name, walk.visit(self.pipe, "its pipeline"), walk.visit(self.info)]  # noqa: E731
        return {"@lens": walk.node(self, parts)}

    def __repr__(self) -> str:
        experts = ", ".join(f"{n}: {type(d).__name__}" for n, d in self.dits.items())
        return f"Lens({self.family.name}; {experts}; {self.layers} layers; sites {', '.join(self.sites)})"


__all__ = ["Lens"]
