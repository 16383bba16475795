"""`Lens`: the face of a model. `run` traces a generation, `trace` does it with a body, `batch` steps many together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from dit_lens.engine import runner
from dit_lens.engine.estimate import Estimate, estimate_request
from dit_lens.engine.request import Request, verify_of
from dit_lens.engine.verify import is_due, verify_run
from dit_lens.errors import needing
from dit_lens.families.bare import specimen_of_blocks
from dit_lens.families.decoding import decode, encode
from dit_lens.families.specimen import Specimen
from dit_lens.plan import objects
from dit_lens.plan.plan import Entry, Plan
from dit_lens.store.run import Run
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr
    from torch import Tensor

    from dit_lens.engine.batch import Batch
    from dit_lens.engine.capture import Capture
    from dit_lens.engine.trace import Trace
    from dit_lens.families.family import Family
    from dit_lens.families.site import Site

RecordEntries = Iterable[Entry] | Callable[..., Any]
P = ParamSpec("P")


class Lens:
    """A pipeline that can be traced.

    Args:
        pipe: a DiffSynth `WanVideoPipeline` or `LTX2AudioVideoPipeline`, with its models loaded (and VRAM
            management, if any, switched on); a diffusers pipeline (docs/diffusers.md), or an nnsight
            `DiffusionModel` that holds one.
        family: what the library knows of its architecture. Default: the family that knows the pipeline's class.
        info: what is known of the checkpoint, for the manifest.

    Raises:
        PlanError: no family knows this pipeline, or a path of the family is missing in it.
    """

    def __init__(
        self, pipe: Any, family: Family | None = None, info: Mapping[str, Any] | None = None
    ) -> None:
        self.specimen = Specimen.of(pipe, family, info)

    @classmethod
    def of(cls, specimen: Specimen) -> Lens:
        """Return a lens on a specimen."""
        lens = cls.__new__(cls)
        lens.specimen = specimen
        return lens

    def with_sites(self, sites: Mapping[str, str | Site], stream: str = "video") -> Lens:
        """Return a lens on the same pipeline that knows more sites.

        Args:
            sites: name to the path below a block of a module, whose output is read, or to a `Site`.
            stream: whose tokens they hold.

        Raises:
            PlanError: a name is taken, the model has no such stream, or a path is not there.

        Example:
            >>> import dit_lens as dl
            >>> lens = dl.load("organism-v1").with_sites({"gelu": dl.Site("ffn.1", channels=512)})
        """
        return Lens.of(self.specimen.with_sites(sites, stream))

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
        verify: str = "first",
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
            edit: functions, or (function, place) pairs.
            steps: scheduler steps. Default: the family's.
            cfg_scale: guidance scale. Default: the family's. 1 runs the conditional branch alone.
            store: folder of runs to write into. Default: a temporary one, filled when the run is read, gone with it.
            encoding: how bfloat16 states are stored: "float32", "codes" or "float16" (see
                docs/store-layout.md).
            verify: which runs of the store are begun again for one step, and compared bit for bit, before they are
                returned: the "first" one that this lens takes from the store, "always" or "never". Of a run that was
                interrupted the last two steps are, unless "never".
            progress: show the pipeline's progress bar.
            **arguments: any other keyword of the pipeline's own call.

        Raises:
            PlanError: a part of the plan or an argument cannot be carried out with this model.
            CaptureError: a record or an edit did not happen.
            StoreError: the store cannot be written or resumed, or a stored run differs from what is computed now.
        """
        verify_of(verify)
        request = Request(
            self.specimen,
            sample,
            seed,
            Plan.of(record, edit),
            steps=steps,
            cfg_scale=cfg_scale,
            store=store,
            encoding=encoding,
            arguments=arguments,
        )
        stored = runner.finished(request)
        if stored is None:
            return runner.run(request, progress, check=verify != "never")
        if not runner.warn_of_what_was_kept(stored) and is_due(verify, request.store, self.specimen):
            verify_run(request, stored)
        return stored

    def trace(self, sample: Sample, seed: int = 0, **options: Any) -> Trace:
        """Open a tracing context: an nnsight trace whose body may also declare records and edits.

        Takes what `run` takes, `verify` aside. In the body: `tr.record(f, place)`, `tr.edit(f, place)`, `for call in
        tr.calls(...)`, and all of nnsight through `lens.nnsight`. After the body: `tr.run`. A trace always runs, from
        step 0, also where the store holds the same run: the caller wants the body's own values.
        """
        with needing("lens.trace"):
            from dit_lens.engine.trace import open_trace

        return open_trace(self.specimen, sample, seed, **options)

    def batch(
        self,
        pairs: Sequence[tuple[Sample, int]],
        steps: int | None = None,
        cfg_scale: float | None = None,
        at_once: int = 64,
        **options: Any,
    ) -> Batch:
        """Prepare (sample, seed) pairs to go through the model together, step by step; see `Batch`.

        Args:
            pairs: a sample and a seed each, of one size and number of frames.
            steps: scheduler steps. Default: the family's.
            cfg_scale: guidance scale. Default: the family's.
            at_once: rows in one forward, at most.
            **options: what else `run` takes: `record`, `edit`, `store`, `encoding`, `verify`, and keywords of the
                pipeline's own call.

        Raises:
            PlanError: the family does not say how to batch, the samples do not fit together, or the batch would not be
                the pipeline's own loop.
        """
        from dit_lens.engine.batch import Batch

        return Batch(self.specimen, pairs, steps, cfg_scale, at_once, **options)

    def capture(
        self,
        sigmas: Sequence[float],
        *,
        record: RecordEntries = (),
        edit: RecordEntries = (),
        **options: Any,
    ) -> Capture:
        """Trace a loop of your own, which tells its steps and calls; see `dit_lens.engine.capture`.

        Args:
            sigmas: noise level of each step, in [0, 1].
            record: as in `run`.
            edit: as in `run`.
            **options: `timesteps`, `branches`, `sample`, `seed`, `store`, `encoding`; see `Capture`.
        """
        from dit_lens.engine.capture import Capture

        return Capture(self.specimen, Plan.of(record, edit), sigmas, **options)

    def sweep(
        self,
        pairs: Sequence[tuple[Sample, int]],
        arms: Mapping[str, RecordEntries],
        *,
        steps: int | None = None,
        cfg_scale: float | None = None,
        at_once: int = 64,
        record: RecordEntries = (),
        store: str | Path | None = None,
        encoding: str | None = None,
        verify: str = "first",
        progress: bool = False,
        **arguments: Any,
    ) -> xr.Dataset:
        """Run every (sample, noise seed) clean and under every arm, and judge what comes out.

            table = lens.sweep(
                [(sample, seed) for sample in samples for seed in range(4)],
                arms={f"no layer {n}": [(dl.zero(), dl.at(site="self_attn", layer=n))] for n in range(lens.layers)},
            )
            table.solved.mean(("sample", "seed"))

        Rows go through the model together, and an arm shares the steps of the clean run up to its first edit. A row equals
        `lens.run(sample, seed, edit=...)` within float tolerance, not bit for bit. Edits over seeds
        (`dl.mean_over_seeds()`) see the noise seeds of one sample together.

        Args:
            pairs: samples with noise seeds, as many seeds for each sample.
            arms: edits by the name of the arm, each as in `run(edit=...)`: functions, or (function, place) pairs.
            steps: scheduler steps. Default: the family's.
            cfg_scale: guidance scale. Default: the family's. 1 runs the conditional branch alone.
            at_once: rows that go through the model in one forward, at most.
            record: what every run records, as in `run`; goes with `store`.
            store: folder of runs, into which the run of every arm and pair is written. Default: none is written.
            encoding: how bfloat16 states are stored, as in `run`.
            verify: whether runs that the store holds are compared with what the sweep computes, as in `run`. A sweep computes
                everything anew; a stored run stays as it is.
            progress: show a progress bar.
            **arguments: any other keyword of the pipeline's own call.

        Returns:
            On [arm, sample, seed]: `solved`, `score` and `answer`, where the samples have a scorer; `distance`, the root of
            the mean squared distance of the last video latents to those of the clean run. The first arm is `clean`,
            samples are called `task/id`, and `noise_seed` [sample, seed] says what each seed is.

        Raises:
            PlanError: an edit cannot be carried out, the family does not say how to batch, or the pairs fit into no table.
        """
        from dit_lens.engine.sweep import sweep

        return sweep(
            self.specimen,
            pairs,
            arms,
            steps=steps,
            cfg_scale=cfg_scale,
            at_once=at_once,
            record=record,
            store=store,
            encoding=encoding,
            verify=verify,
            progress=progress,
            **arguments,
        )

    def decode(self, latents: xr.DataArray | Tensor | np.ndarray) -> np.ndarray:
        """Decode latents to frames, or to sound.

        Args:
            latents: [..., frame, latent_y, latent_x, latent_channel], as `run["x0"]` gives them; or of sound, as
                `run["x0_audio"]`.

        Returns:
            Frames [..., time, height, width, rgb], uint8; or of sound [..., speaker, audio_time], float32.

        Raises:
            PlanError: not latents, or they hold NaN (they were not recorded).
        """
        return decode(self.specimen, latents)

    def encode(self, frames: Any) -> Tensor:
        """Encode frames to latents as they stand in a run.

        Args:
            frames: [time, height, width, rgb], uint8; as many as the model makes (for Wan 4k + 1).

        Returns:
            [frame, latent_y, latent_x, latent_channel], as `run["x0"]` has them at a step, and as `decode` takes them.

        Raises:
            PlanError: the family does not say how to encode.
        """
        return encode(self.specimen, frames)

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
        cfg_scale = arguments.pop("cfg_scale", None)
        request = Request(
            self.specimen, sample, 0, plan, steps=steps, cfg_scale=cfg_scale, arguments=arguments
        )
        return estimate_request(request)

    # ---- what it is

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self.specimen.pipe

    @property
    def family(self) -> Family:
        """What the library knows of its architecture."""
        return self.specimen.family

    @property
    def dits(self) -> dict[str, Any]:
        """The experts, as the pipeline holds them now, by name."""
        return dict(self.specimen.dits)

    @property
    def info(self) -> Mapping[str, Any]:
        """What is known of the checkpoint."""
        return self.specimen.info

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the model's states."""
        return self.specimen.dtype

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.specimen.layers

    @property
    def sites(self) -> dict[str, str]:
        """Site names of the video, with the path below a block that each stands for."""
        return self.streams["video"]

    @property
    def streams(self) -> dict[str, dict[str, str]]:
        """Streams that a block carries or is given, each with its sites, where values stand."""
        return {
            stream: {
                name: path for name, path in sites.items() if name not in self.attentions.get(stream, ())
            }
            for stream, sites in self.specimen.paths.items()
        }

    @property
    def attentions(self) -> dict[str, list[str]]:
        """By stream whose tokens look, the sites of attentions, which `dl.attention(...)` reads."""
        found: dict[str, list[str]] = {}
        for (stream, name), held in self.specimen.carried.items():
            if held.is_attention:
                found.setdefault(stream, []).append(name)
        return found

    @property
    def nnsight(self) -> Any:
        """The pipeline as nnsight sees it: `lens.nnsight.dit.blocks[3].output` in the body of a trace."""
        if self.specimen.envoys is None:
            with needing("lens.nnsight"):
                from dit_lens.engine.envoys import wrap

            self.specimen.envoys = wrap(self.family.anatomy.root(self.pipe))
        return self.specimen.envoys

    def fingerprint(self) -> str:
        """Return the checksum of the model's weights; see `Specimen.fingerprint`."""
        return self.specimen.fingerprint()

    def identity(self, unnamed: list[str] | None = None) -> dict[str, Any]:
        """Return all of the model that makes a result what it is, as plain data; see `Specimen.identity`."""
        return self.specimen.identity(unnamed)

    def __content__(self, walk: Any) -> Any:
        """Return what a function that reads the lens is named by."""

        def parts(*_: Any) -> list[Any]:
            return [walk.visit(self.specimen), objects.beyond(walk, self, Lens, ("specimen",))]

        return {"@lens": walk.node(self, parts)}

    def __repr__(self) -> str:
        experts = ", ".join(f"{n}: {type(d).__name__}" for n, d in self.dits.items())
        return f"Lens({self.family.name}; {experts}; {self.layers} layers; sites {', '.join(self.sites)})"


def _as_lens(specimen_of: Callable[P, Specimen]) -> Callable[P, Lens]:
    def blocks(*args: P.args, **kwargs: P.kwargs) -> Lens:
        return Lens.of(specimen_of(*args, **kwargs))

    blocks.__doc__ = specimen_of.__doc__
    signature = inspect.signature(specimen_of).replace(return_annotation="Lens")
    blocks.__signature__ = signature  # type: ignore[attr-defined]  # what `help` and editors show
    return blocks


blocks = _as_lens(specimen_of_blocks)

__all__ = ["Lens", "blocks"]
