"""A name is checked: a run that a store hands out is begun again for one step, and compared with what is stored.

A name says everything that the library can see of a run. What it cannot see (a function of the model that was replaced,
another kernel) shows in the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from dit_lens.engine.batch_rows import rows_of
from dit_lens.engine.pipeline_check import EnoughError, rounding
from dit_lens.engine.recorder import Recorder
from dit_lens.engine.request import verify_of
from dit_lens.engine.stages import Opened, StageLoop, Stages, samples_of
from dit_lens.engine.stepper import Latents
from dit_lens.errors import StoreError
from dit_lens.families.call import Forward, Schedule
from dit_lens.plan.plan import Layout
from dit_lens.store import Variable
from dit_lens.store.run import Run

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.engine.request import Request
    from dit_lens.families.specimen import Specimen

LEVELS = 0.1
"""How far a video may be off there, in grey levels: a rounded value in a hundred may be the next one."""


def is_due(verify: str, store: Path | None, specimen: Specimen) -> bool:
    """Say whether the next run that a store hands out is checked.

    Args:
        verify: `first` (the first run that the lens takes from the store), `always` or `never`.
        store: folder of runs.
        specimen: the model that would make the run.

    Raises:
        PlanError: `verify` is none of these.
    """
    verify_of(verify)
    if verify == "never" or store is None:
        return False
    return verify == "always" or store not in specimen.checked_stores


def passed(request: Request) -> None:
    """Take note that a run of a store has stood the comparison; one that failed leaves the next to be checked."""
    if request.store is not None:
        request.specimen.checked_stores.add(request.store)


def verify_run(request: Request, run: Run) -> None:
    """Begin a run again for one step, and compare bit for bit.

    Raises:
        StoreError: what the step gives now is not what is stored.
    """
    specimen, keywords = request.specimen, request.fresh_keywords()
    family, pipe = specimen.family, specimen.pipe
    loops = []
    for stage, stored in zip(request.stages, run.stages, strict=True):
        comparison = Comparison(stored, stage.layout)
        loops.append(
            StageLoop(
                specimen,
                stage.layout,
                request.seed,
                partial(getattr, stage, "plan"),
                comparison.open,
                started=partial(_after_first, stored),
            )
        )
    with specimen.held(keywords):
        try:
            output = Stages(loops).run(lambda: pipe(**keywords))
        except EnoughError:
            family.call.release(pipe)
        else:
            _compare_outputs(run, family.codec.outputs(output, keywords))  # a run of one step
    passed(request)


def _after_first(run: Run, step: int, latents: Latents) -> None:
    """Compare what step 1 starts from, and end there."""
    if step == 0:
        return
    for stream, x in latents.items():
        name = "latents" if stream == "video" else f"latents_{stream}"
        stored = run.dataset[name].isel(step=1).values
        rows = x.expand(len(stored) if stored.ndim == 5 else 1, *x.shape[1:]).permute(0, 2, 3, 4, 1)
        widened = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
        _compare(run, name, 1, widened.cpu().numpy().reshape(stored.shape), stored)
    raise EnoughError


def _compare_outputs(run: Run, outputs: Mapping[str, np.ndarray]) -> None:
    for name, values in outputs.items():
        _compare(run, name, 0, np.asarray(values), run.dataset[name].values)


def _compare(run: Run, name: str, step: int, now: np.ndarray, stored: np.ndarray) -> None:
    equal = now.shape == stored.shape and np.array_equal(
        now.astype(stored.dtype), stored, equal_nan=stored.dtype.kind in "fc"
    )
    if not equal:
        raise changed(run, name, step)


def changed(run: Run, name: str, step: int) -> StoreError:
    """Return the error that says that a stored run is not what would be made now."""
    return StoreError(
        f"{run.path} was asked for again, and is not what this model makes now: {name} of step {step} differs. Something that "
        "the run's name does not show has changed: numbers that a record or an edit draws without a seed (draw them by a "
        "generator made of at.seed), a function of the model that was replaced, the machine, a kernel. Use another "
        'store, remove the run, or take it as it is with verify="never".'
    )


class Comparison:
    """Takes the records of a first step in place of a store, and compares them with a stored run's.

    Args:
        run: the stored run.
        layout: coordinates of the run.
        exact: whether all records are compared, bit for bit. Where other rows stand beside the run than when it was made,
            rounding differs: what step 1 starts from is compared within it, or the output of a run of one step.
    """

    def __init__(self, run: Run, layout: Layout, exact: bool = True) -> None:
        self.run, self.layout, self.exact = run, layout, exact
        self.variables: dict[str, Variable] = {}
        self.recorded: dict[str, Sequence[Mapping[str, Sequence[int]]]] = {}

    def open(self, schedule: Schedule, forward: Forward) -> Opened:
        """Take the place of a run's destination."""
        samples = samples_of(forward)
        return Opened(self.recorder(samples))

    def recorder(self, samples: int = 1) -> Recorder:
        """Return a recorder that compares in place of writing."""
        encoding = self.run.attrs["manifest"]["identity"]["encoding"]
        return Recorder(self.layout, samples, self, encoding)

    def declare(self, variable: Variable, recorded: Any = None) -> None:
        """Take note of a variable, and of where it is recorded."""
        self.variables[variable.name] = variable
        self.recorded[variable.name] = recorded if isinstance(recorded, list | tuple) else [recorded or {}]

    def write(self, name: str, index: Mapping[str, int], values: np.ndarray) -> None:
        """Compare one unit.

        Raises:
            StoreError: it differs from the stored one.
        """
        variable, step = self.variables[name], int(index.get("step", 0))
        # In a run of one step there is no other: what it recorded is all that can be compared.
        if not self.exact and self.layout.steps > 1 and not (name.startswith("latents") and step == 1):
            return
        if variable.dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
            if variable.encoding == "float16":
                values = values.astype(np.float16).astype(np.float32)
        stored = self.run.dataset[name].isel(dict(index))
        # A reader gives a unit in the order of the array's dimensions, as it was written.
        made = xr.DataArray(values.reshape(stored.shape), dims=stored.dims)
        compare = _compare if self.exact else _compare_close
        for positions in self.recorded[
            name
        ]:  # a unit has other places, too, which integers cannot say are empty
            if all(index.get(dim) in at for dim, at in positions.items() if dim in index):
                there = {dim: list(at) for dim, at in positions.items() if dim in stored.dims}
                compare(self.run, name, step, made.isel(there).values, stored.isel(there).values)

    def set_coord(self, name: str, values: Any) -> None:
        """Take no notice: the coordinates are those of the stored run."""

    def set_recorded(self, name: str, recorded: Any) -> None:
        """Take no notice: what was asked for is said in the stored run."""

    def commit_step(self, step: int, info: Mapping[str, Any] | None = None) -> None:
        """Take no notice: nothing is written."""

    def end(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Compare what a run of one step comes to.

        Raises:
            StoreError: it differs from what is stored.
        """
        compare = _compare if self.exact else _compare_close
        for name, values in outputs.items() if self.layout.steps == 1 else ():
            compare(self.run, name, 0, np.asarray(values), self.run.dataset[name].values)


def verify_batch(batch: Batch, part: Sequence[int], runs: Mapping[int, Run]) -> None:
    """Begin the rows of one forward again, where one of them is the next run to be checked.

    Bit for bit where the same rows stand beside a run as when it was made; else within float tolerance.

    Raises:
        StoreError: what the model gives now is not what is stored.
    """
    if not runs or not is_due(batch.verify, batch.requests[0].store, batch.specimen):
        return
    now = company(batch, part)
    comparisons = {
        n: Comparison(run, batch.layout, now == _company_of(run.attrs["manifest"].get("batch", {})))
        for n, run in runs.items()
    }
    rows = rows_of(batch, part, {n: comparison.recorder() for n, comparison in comparisons.items()})
    x, x0 = batch.noise[list(part)], None
    for step in range(
        min(2, batch.steps)
    ):  # what the second starts from shows what the model gave in the first
        stepped = batch.advance(step, x, list(part), rows, x0=x0)
        x, x0 = stepped.latents, stepped.x0
    for row, n in enumerate(part):
        if n in comparisons and batch.steps == 1:
            comparisons[n].end(batch.outputs(x[row : row + 1]))
    passed(batch.requests[0])


def company(batch: Batch, part: Sequence[int]) -> dict[str, Any]:
    """Return what stands beside the rows of a forward, as the manifests of their runs say it."""
    names = [batch.requests[n].stages[0].name for n in part]
    return {"rows": names, "one_by_one": len(part) > batch.at_once}


def _company_of(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"rows": said.get("rows"), "one_by_one": said.get("one_by_one", False)}


def _compare_close(run: Run, name: str, step: int, now: np.ndarray, stored: np.ndarray) -> None:
    """Compare within what other rows beside a run change of its rounding."""
    number = str(run.attrs["manifest"]["identity"]["dtype"]).removeprefix("torch.")
    values, kept = now.astype(np.float64), stored.astype(np.float64)
    if now.shape == stored.shape:  # NaN in one place of both is equal
        nan = np.isnan(values) & np.isnan(kept)
        values, kept = np.where(nan, 0, values), np.where(nan, 0, kept)
    size = max(float(np.sqrt(np.square(kept).mean())), 1e-6)
    limit = LEVELS if stored.dtype == np.uint8 else rounding(getattr(torch, number)) * size
    if not (
        now.shape == stored.shape and float(np.sqrt(np.square(values - kept).mean())) <= limit
    ):  # so NaN differs too
        raise changed(run, name, step)


__all__ = ["Comparison", "is_due", "passed", "verify_batch", "verify_run"]
