"""Clean runs, kept in a store: experiments start from them, and scripts share them.

They are made in batches, so they equal `lens.run` within float tolerance, not bit for bit; their manifest says
so, and the two never share a name. A run's last digits depend on the rows beside it. So the batches are cut
from what was asked for, not from what is missing: a command that was interrupted and repeated ends, bit for
bit, as one that was not. Another choice of samples, or another `at_once`, may put other rows beside a run; the
run that is there stays as it is, and `manifest["batch"]` names the rows that it was made with.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from dit_lens import records
from dit_lens.engine.batch import Batch
from dit_lens.engine.recorder import Recorder
from dit_lens.engine.request import Job, coordinates, write_outputs
from dit_lens.families.latents import apart
from dit_lens.lens import Lens
from dit_lens.plan.binding import Slot
from dit_lens.plan.plan import Plan
from dit_lens.store import RunWriter
from dit_lens.store.run import Run
from dit_lens.tasks.sample import Sample


def clean_runs(
    lens: Lens,
    pairs: Sequence[tuple[Sample, int]],
    store: Path | str,
    steps: int | None = None,
    cfg_scale: float | None = None,
    at_once: int = 64,
) -> list[Run]:
    """Return the unedited run of every (sample, seed), with `latents` and `x0` of every step and the video.

    What the store holds is read, the rest is made: in batches where the family knows how, else one by one. A
    pair that is asked for twice is made once.

    Raises:
        StoreError: the store cannot be written.
    """
    plan = Plan.of([records.x0])
    if lens.family.batching is None:
        return [
            lens.run(sample, seed, record=[records.x0], steps=steps, cfg_scale=cfg_scale, store=store)
            for sample, seed in tqdm(pairs, desc="clean runs", leave=False)
        ]
    jobs = [Job(lens, s, seed, plan, steps, cfg_scale, store, None, False, {}, "batch") for s, seed in pairs]
    paths = [_path(job) for job in jobs]
    firsts = {path: i for i, path in reversed(list(enumerate(paths)))}
    found = {path: jobs[i].finished() for path, i in firsts.items()}
    shapes: dict[object, list[int]] = {}
    for i in sorted(firsts.values()):
        shapes.setdefault((pairs[i][0].size, pairs[i][0].num_frames), []).append(i)
    parts = [same[n : n + at_once] for same in shapes.values() for n in range(0, len(same), at_once)]
    todo = [part for part in parts if any(found[paths[i]] is None for i in part)]
    for part in tqdm(todo, desc="clean runs", disable=len(todo) < 2, leave=False):
        missing = [row for row, i in enumerate(part) if found[paths[i]] is None]
        batch = lens.batch([pairs[i] for i in part], steps, cfg_scale, at_once)
        _make(batch, [jobs[i] for i in part], missing)
        found |= {paths[part[row]]: Run(paths[part[row]]) for row in missing}
    return [run for path in paths if (run := found[path]) is not None]


def _make(batch: Batch, jobs: Sequence[Job], missing: Sequence[int]) -> None:
    """Run a batch, a job a row; write the runs of the rows that are missing."""
    coords = coordinates(batch.layout, batch.sigmas, batch.timesteps, batch.grids)
    rows = [_path(job).name for job in jobs]
    with ExitStack() as opened:  # a run that was not finished when something fails stays incomplete
        writers = {}
        for row in missing:
            path, manifest = _path(jobs[row]), {**jobs[row].manifest, "batch": {"row": row, "rows": rows}}
            writers[row] = opened.enter_context(_writer(path, manifest, coords))
        recorders = {row: Recorder(batch.layout, 1, writer) for row, writer in writers.items()}
        slots = [Slot.of(record, False, batch.layout, batch.sigmas) for record in jobs[0].plan.records]
        x = batch.noise
        for step in range(batch.steps):
            out = batch.step(step, x)
            values = {"latents": apart(x), "x0": apart(out.x0)}
            for row, recorder in recorders.items():
                for slot in slots:
                    site, stream = slot.placed.site, slot.placed.stream
                    read = values[site][stream][row].permute(1, 2, 3, 0)
                    spot = batch.spot(step, row, site, None, None, stream)
                    recorder.take(slot, spot, read, slot.placed.function(read))
                times = {"sigma": batch.sigmas[step], "timestep": batch.timesteps[step]}
                recorder.end_step(step, {**times, "expert": batch.expert(step)})
            x = out.latents
        for row, writer in writers.items():
            write_outputs(writer, batch.outputs(x[row : row + 1]), batch.rates)
            writer.close()


def _writer(path: Path, manifest: dict[str, object], coords: dict[str, object]) -> RunWriter:
    """Open a run to write it from the start: what an interrupted batch left of it may have had other rows beside it."""
    writer = RunWriter(path.parent, path.name, manifest, coords)
    if not writer.committed_steps:
        return writer
    writer.abort()
    shutil.rmtree(path)
    return RunWriter(path.parent, path.name, manifest, coords)


def _path(job: Job) -> Path:
    assert job.path is not None  # there is a store
    return job.path
