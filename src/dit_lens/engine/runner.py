"""Runs: a request through its pipeline, into a store; or out of the store, where it stands complete."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.engine.recorder import Recorder
from dit_lens.engine.stages import Opened, StageLoop, Stages, Watch, samples_of
from dit_lens.engine.verify import Comparison
from dit_lens.errors import DamageError, StoreError
from dit_lens.families.call import Forward, Schedule
from dit_lens.families.fingerprint import tensor_data
from dit_lens.families.kept import Holdings
from dit_lens.families.patching import one_interrupt, traced
from dit_lens.plan.content import Walk
from dit_lens.plan.digests import digest
from dit_lens.plan.places import GRID_DIMS, TEXT, grid_dim, head_dim, positions
from dit_lens.plan.plan import Layout, Plan
from dit_lens.store import RunWriter, Variable, journal, open_run
from dit_lens.store.draft import Draft
from dit_lens.store.place import RunPlace
from dit_lens.store.reader import load_run
from dit_lens.store.run import Run
from dit_lens.store.scratch import Scratch
from dit_lens.store.status import status_of

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.engine.request import Request, StageRequest


def finished(request: Request) -> Run | None:
    """Return a run where the store holds it complete and whole, with all its stages; the last stage is what is returned.

    No unit is read: a bit that changed in one is found when it is.
    """
    path = None
    for stage in request.stages:
        path = stage.path
        try:
            if path is None or not (path / "zarr.json").exists():
                return None
            stored = load_run(path)
            held = status_of(stored)
            if not held.complete or stored.flaw():
                return None  # gone on with, or made again with a warning
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}; give another store") from error
        except StoreError:
            return None  # not readable as it is: the writer says why, or takes it over
        if not held.identity_sha256.startswith(path.name.rpartition("-")[2]):
            raise StoreError(
                f"{path} holds another run than its name says (sha256 {held.identity_sha256[:10]}): a folder was renamed, "
                "or put there; give it its own name back."
            )
    return None if path is None else Run(path)


def warn_of_what_was_kept(run: Run) -> bool:
    """Warn where a record or an edit kept something while a run was made: a run that is handed out does not bring it there.

    Returns:
        Whether one did.
    """
    kept = any(words.get("state kept") for words in journal.read(run.path).steps.values())
    if kept:
        warnings.warn(
            f"{run.path} is handed out as it was made. A record, an edit, a hook or a module of yours kept something on the way "
            "then (a list, a counter, the step before), which is not there now, and the run is not checked: give every run an "
            "object of its own, and read what you need from the run's records.",
            stacklevel=3,
        )
    return kept


def run(
    request: Request,
    progress: bool = False,
    watch: Watch | None = None,
    plan: Callable[[], Plan] | None = None,
    check: bool = True,
) -> Run:
    """Run the pipeline, writing as it goes.

    Args:
        request: what is asked for.
        progress: whether the pipeline's progress bar is shown.
        watch: told of every call before it runs, and of the end.
        plan: gives the plan when the first call comes, where the body of a trace declares it.
        check: whether the last committed steps of a run that was interrupted are compared with what is made now.

    Raises:
        StoreError: the store cannot be written, or what it holds of the run is not what is made now.
    """
    specimen, keywords = request.specimen, request.fresh_keywords()
    if request.store is not None:
        request.model  # noqa: B018  (it is read before anything is wrapped)
    family, pipe = specimen.family, specimen.pipe
    scratch = cache(Scratch) if request.store is None else None  # one, when there is something to write
    lease = threading.Lock()
    # A body sees all steps, so its run begins anew, whatever stands in the store. So does a stage that is complete where
    # another one is not.
    beside = request.body is not None or _is_in_part(request)
    destinations = [Destination(stage, scratch, lease, beside, check) for stage in request.stages]

    def settle() -> None:
        if plan is not None:
            request.declare(plan())

    # The writers know by the lease that somebody is still at work with them, whatever interrupts the cleaning up.
    with lease, ExitStack() as cleanup:
        cleanup.enter_context(one_interrupt())
        # A trace with a body watches; it has marked the DiTs before nnsight wrapped them.
        if watch is None:
            cleanup.enter_context(traced(specimen.dits.values()))
        for destination in destinations:
            cleanup.callback(destination.abort)
        loops = [_loop(destination, settle, watch) for destination in destinations]
        with ExitStack() as running:
            if not progress:
                running.callback(family.call.quiet(pipe, keywords))
            output = Stages(loops, watch).run(lambda: pipe(**keywords))
        rates = family.codec.rates(pipe, keywords)
        write_outputs(destinations[-1].writer, family.codec.outputs(output, keywords), rates)
        paths = [destination.close() for destination in destinations]
    return Run(paths[-1], None if scratch is None else scratch())


def _is_in_part(request: Request) -> bool:
    """Return whether the store holds some stages of a run complete. It does not hold them all: of one that is damaged, warn."""
    complete = False
    for path in (stage.path for stage in request.stages if len(request.stages) > 1):
        damage = ""
        try:
            if path is not None and (path / "zarr.json").exists() and (stored := load_run(path)).is_complete:
                stored.refuse_rewritten()
                complete, damage = True, stored.flaw()
        except DamageError as error:
            damage = str(error)
        if damage:
            warnings.warn(f"a damaged run is made again: {path}: {damage}", stacklevel=2)
    return complete


def _loop(destination: Destination, settle: Callable[[], None], watch: Watch | None) -> StageLoop:
    stage = destination.stage

    def plan() -> Plan:
        settle()
        return stage.plan

    request = stage.request
    return StageLoop(request.specimen, stage.layout, request.seed, plan, destination.open, watch)


class Destination:
    """Where one stage of a run is written.

    Args:
        stage: of the request.
        scratch: gives the folder to write into where there is no store.
        lease: a lock that is held while the run is made.
        beside: whether the run is made again, whatever the store holds.
        check: whether what the store holds of it is compared with what is made now.
    """

    def __init__(
        self,
        stage: StageRequest,
        scratch: Callable[[], Scratch] | None,
        lease: threading.Lock,
        beside: bool = False,
        check: bool = True,
    ) -> None:
        self.stage, self.scratch, self._lease = stage, scratch, lease
        self._beside, self._check = beside, check
        self._writer: RunWriter | Draft | None = None
        self._state: list[Any] = []  # of what may keep something, when the run begins
        specimen, is_stored = stage.request.specimen, stage.request.store is not None
        # Before anything is wrapped.
        self._holdings = Holdings(specimen.pipe, specimen.dits.values()) if is_stored else None
        self._place: RunPlace | None = None

    @property
    def writer(self) -> RunWriter | Draft:
        """Writes the run; there once the first call has come."""
        if self._writer is None:
            raise StoreError("The model never ran: nothing was written.")
        return self._writer

    def open(self, schedule: Schedule, forward: Forward) -> Opened:
        """Open the run in the store, now that grid and noise levels are known.

        Raises:
            StoreError: the run cannot be written, or not be taken up where it stopped.
        """
        stage, request = self.stage, self.stage.request
        samples = samples_of(forward)
        grids = {stream: tokens.grid for stream, tokens in forward.streams.items()}
        path = stage.path
        if path is None:
            later = partial(self._open_draft, schedule, grids)
            return Opened(Recorder(stage.layout, samples, later, request.encoding))
        coords = coordinates(stage.plan, stage.layout, schedule, grids)
        make = partial(RunWriter, manifest=stage.manifest, coords=coords, lease=self._lease)
        self._place = place = RunPlace(path, make, self._beside)
        self._writer = writer = place.open()
        if any(words.get("state kept") for words in writer.words.values()):
            self._writer = writer = place.open(anew=True)
        self._state = self._kept()
        recorder = Recorder(stage.layout, samples, writer, request.encoding, self._words)
        committed = writer.committed_steps
        if not committed:
            return Opened(recorder)
        if schedule.state:
            raise StoreError(
                f"{path} was interrupted, and its scheduler keeps {schedule.state}, which a replay would not repeat: "
                "remove the folder and run again."
            )
        done = open_run(writer.path)
        recorder.experts = [str(e) for e in done["expert"].values]
        stored = {s: done["latents" if s == "video" else f"latents_{s}"] for s in stage.layout.latents}
        return Opened(
            recorder,
            {
                step: {stream: to_latents(values, step) for stream, values in stored.items()}
                for step in sorted(committed)
            },
            Comparison(Run(writer.path), stage.layout).recorder(samples) if self._check else None,
        )

    def _words(self) -> dict[str, bool]:
        """Say whether a function has kept something of the steps so far: a run resumed without that would be another."""
        return {} if self._kept() == self._state else {"state kept": True}

    def _kept(self) -> list[Any]:
        """Return what changes when an edit, a record, or something in the model keeps something."""
        held = [] if self._holdings is None else self._holdings.look()
        request = self.stage.request
        arguments = Walk([], checksum=tensor_data, repeatable=True, watching=True).whole(
            dict(request.arguments)
        )
        return [request.plan.state(), held, digest(arguments)]

    def _open_draft(self, schedule: Schedule, grids: Mapping[str, tuple[int, int, int]]) -> Draft:
        """Begin a run in no store, now that there is something to write. Nobody asks for its name before it ends."""
        assert self.scratch is not None
        layout = self.stage.layout
        coords = coordinates(self.stage.plan, layout, schedule, grids)
        self._writer = draft = Draft(self.scratch().path / f"stage{layout.stage}", coords)
        return draft

    def close(self) -> Path:
        """Complete the run; return where it stands, or will stand when somebody reads it."""
        writer = self.writer
        if self._place is not None:
            return self._place.close()
        assert isinstance(writer, Draft)
        assert self.scratch is not None
        path = self.scratch().path / self.stage.name
        finish = partial(writer.finish, self.stage.manifest, path)
        if writer.is_written:
            finish()
        else:
            self.scratch().put_off(finish, writer.nbytes)
            self._writer = None
        return path

    def abort(self) -> None:
        """Let go of the run; it stays incomplete where it is not closed."""
        if self._writer is not None:
            self._writer.abort()
        if self._place is not None:
            self._place.abort()


OUTPUTS = {
    "video": (("time", "height", "width", "rgb"), "uint8", "decoded video"),
    "audio": (("speaker", "audio_time"), "float32", "decoded sound"),
}
"""What a pipeline may give beside the records, and how it stands in the store."""


def write_outputs(
    writer: RunWriter | Draft, outputs: Mapping[str, np.ndarray], rates: Mapping[str, float] | None = None
) -> None:
    """Write what the pipeline made, by the names of `OUTPUTS`, with its positions per second where known."""
    for name, values in outputs.items():
        dims, dtype, words = OUTPUTS[name]
        rate = (rates or {}).get(name)
        writer.declare(Variable(name, dims, values.shape, dtype, unit="run", long_name=words, rate=rate))
        writer.write(name, {}, np.array(values))  # whoever made them may use their memory again


def to_latents(stored: xr.DataArray, step: int) -> Tensor:
    """Return stored latents of a step as [row, channel, frame, y, x]."""
    values = torch.from_numpy(np.array(stored.isel(step=step).values))  # [(sample,) frame, y, x, channel]
    values = values if values.ndim == 5 else values[None]
    return values.permute(0, 4, 1, 2, 3).contiguous()


def coordinates(
    plan: Plan, layout: Layout, schedule: Schedule, grids: Mapping[str, tuple[int, int, int]]
) -> dict[str, Any]:
    """Return the coordinates of a run's group; `grids` are (frame, y, x) by stream."""
    heads = {
        head_dim(record.stream): np.arange(record.held(layout).heads)
        for record in plan.records
        if record.by_head(layout)
    }
    text = {}
    if TEXT in grids:
        text = {"text_token": np.asarray(positions("text_token", plan.text_tokens, grids[TEXT][2]))}
    return {
        "step": np.arange(layout.steps),
        "sigma": ("step", np.asarray(schedule.sigmas, np.float64)),
        "timestep": ("step", np.asarray(schedule.timesteps, np.float64)),
        "expert": ("step", [layout.experts[0]] * layout.steps),  # set step by step, as they are served
        "branch": list(layout.branches),
        "layer": np.arange(layout.layers),
        **{
            grid_dim(dim, "block", stream): np.arange(size)
            for stream, grid in grids.items()
            if stream != TEXT
            for dim, size in zip(GRID_DIMS, grid, strict=False)
        },
        **text,
        **heads,
    }
