"""Whole runs in batches: every row a run, in the same store as `lens.run` writes.

They equal `lens.run` within float tolerance, not bit for bit, so the two never share a name. A run's last digits
depend on the rows beside it. So the rows of one forward are cut from what was asked for, not from what is missing: a
command that was interrupted and repeated ends, bit for bit, as one that was not. Another choice of pairs, or another
`at_once`, may put other rows beside a run; the run that is there stays as it is, and `manifest["batch"]` names the rows
that it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dit_lens.engine.batch_rows import over_seeds, rows_of
from dit_lens.engine.recorder import Recorder
from dit_lens.engine.request import Request, name_anew
from dit_lens.engine.runner import coordinates, finished, write_outputs
from dit_lens.engine.verify import company, is_due, verify_batch
from dit_lens.families.patching import one_interrupt
from dit_lens.store import RunWriter
from dit_lens.store.place import RunPlace
from dit_lens.store.run import Run
from dit_lens.store.scratch import Scratch
from dit_lens.tasks.pairs import counted_by_content

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch


def stored_rows(requests: Sequence[Request], verify: str) -> list[Run] | None:
    """Return the runs of a batch where the store holds them all, and none of them is to be checked; else None."""
    first = requests[0]
    if is_due(verify, first.store, first.specimen):
        return None
    name_anew(requests, first.specimen)
    runs = [finished(request) for request in requests]
    return None if None in runs else [run for run in runs if run is not None]


def run_rows(batch: Batch, progress: str | None = None) -> list[Run]:
    """Make the run of every pair of a batch; see `Batch.run`."""
    with one_interrupt():
        return _run_rows(batch, progress)


def _run_rows(batch: Batch, progress: str | None) -> list[Run]:
    batch.check_codec()
    batch.name_anew()
    requests = batch.requests
    scratch = Scratch() if requests[0].store is None else None
    root = requests[0].store if scratch is None else scratch.path
    assert root is not None
    paths = [root / request.stages[0].name for request in requests]
    firsts = [paths.index(path) for path in paths]  # of the pairs that are the same
    runs = {n: run for n in sorted(set(firsts)) if (run := finished(requests[n])) is not None}
    unique = sorted(set(firsts))
    parts = [unique[i : i + batch.at_once] for i in range(0, len(unique), batch.at_once)]
    parts = _whole_groups(batch, unique) if over_seeds(batch) else parts
    before = batch.requests[0].plan.state()
    for part in parts:
        verify_batch(batch, part, {n: runs[n] for n in part if n in runs})
        if missing := [n for n in part if n not in runs]:
            new_runs = _make(
                batch, part, missing, paths, scratch, progress, before if len(unique) > 1 else None
            )
            runs |= dict(zip(missing, new_runs, strict=True))
    return [runs[n] for n in firsts]


def _whole_groups(batch: Batch, numbers: Sequence[int]) -> list[list[int]]:
    """Return the pairs by sample: the seeds of a sample meet at edits over seeds."""
    samples = counted_by_content([sample for sample, _ in batch.pairs])
    groups: dict[int, list[int]] = {}
    for n in numbers:
        groups.setdefault(samples[n], []).append(n)
    return list(groups.values())


def _make(
    batch: Batch,
    part: Sequence[int],
    missing: Sequence[int],
    paths: Sequence[Path],
    scratch: Scratch | None,
    progress: str | None,
    memory: str | None,
) -> list[Run]:
    """Run some pairs of a batch together; write the runs that are missing.

    Args:
        batch: the batch.
        part: the pairs that run.
        missing: those whose runs are to be written.
        paths: of all runs.
        scratch: holds them where there is no store.
        progress: name of a progress bar.
        memory: what the plan's functions held before the first part, where several rows share them.
    """
    coords = coordinates(batch.requests[0].stages[0].plan, batch.layout, batch.schedule, batch.grids)
    beside = company(batch, part)
    with ExitStack() as opened:  # a run that was not finished when something fails stays incomplete
        places: dict[int, RunPlace] = {}
        for n in missing:
            manifest = {
                **batch.requests[n].stages[0].manifest,
                "batch": {"row": part.index(n), **beside},
            }
            places[n] = open_place(opened, paths[n], manifest, coords, scratch is None)
        recorders = {
            n: Recorder(batch.layout, 1, place.writer, batch.requests[n].encoding)
            for n, place in places.items()
        }
        rows = rows_of(batch, part, recorders)
        x, x0 = batch.noise[list(part)], None
        for step in tqdm(range(batch.steps), desc=progress, disable=progress is None, leave=False):
            now = batch.advance(step, x, list(part), rows, x0=x0)
            x, x0 = now.latents, now.x0
        if memory is not None and (len(part) > 1 or part[0] != 0):
            batch.requests[0].plan.refuse_kept(memory)
        for row, n in enumerate(part):
            if n in places:
                recorders[n].end_run([*rows[row].edits, *rows[row].records])
                write_outputs(places[n].writer, batch.outputs(x[row : row + 1]), batch.rates)
                places[n].close()
    return [Run(paths[n], scratch) for n in missing]


def open_place(
    opened: ExitStack, path: Path, manifest: dict[str, Any], coords: dict[str, Any], durable: bool
) -> RunPlace:
    """Open a run to write it from the start: what an interrupted batch left of it may have had other rows beside it."""
    place = opened.enter_context(
        RunPlace(path, partial(RunWriter, manifest=manifest, coords=coords, durable=durable))
    )
    place.open(anew=True)
    return place
