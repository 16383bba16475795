"""Clean runs, kept in a store: experiments start from them, and scripts share them.

They are made in batches, so they equal `lens.run` within float tolerance, not bit for bit; their manifest says
so, and the two never share a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dit_lens import records
from dit_lens.batch import Batch
from dit_lens.capture import Recorder
from dit_lens.lens import Job, Lens, coordinates, write_outputs
from dit_lens.plan import Plan
from dit_lens.run import Run
from dit_lens.slot import Slot
from dit_lens.store import RunWriter
from dit_lens.streams import apart
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

    What the store holds is read, the rest is made: in batches where the family knows how, else one by one.

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
    found = [job.finished() for job in jobs]
    shapes: dict[object, list[int]] = {}
    for i, run in enumerate(found):
        if run is None:
            shapes.setdefault((pairs[i][0].size, pairs[i][0].num_frames), []).append(i)
    parts = [todo[n : n + at_once] for todo in shapes.values() for n in range(0, len(todo), at_once)]
    for part in tqdm(parts, desc="clean runs", disable=len(parts) < 2, leave=False):
        made = _make(lens.batch([pairs[i] for i in part], steps, cfg_scale, at_once), [jobs[i] for i in part])
        for i, run in zip(part, made, strict=True):
            found[i] = run
    return [run for run in found if run is not None]


def _make(batch: Batch, jobs: Sequence[Job]) -> list[Run]:
    """Run a batch, writing a run for every row; one that was interrupted is made anew from the start."""
    coords = coordinates(batch.layout, batch.sigmas, batch.timesteps, batch.grids)
    paths = [path for job in jobs if (path := job.path) is not None]
    writers = [RunWriter(p.parent, p.name, j.manifest, coords) for p, j in zip(paths, jobs, strict=True)]
    try:
        recorders = [Recorder(batch.layout, 1, writer) for writer in writers]
        slots = [Slot.of(record, False, batch.layout, batch.sigmas) for record in jobs[0].plan.records]
        x = batch.noise
        for step in range(batch.steps):
            out = batch.step(step, x)
            values = {"latents": apart(x), "x0": apart(out.x0)}
            for row, recorder in enumerate(recorders):
                if step not in recorder.writer.committed_steps:
                    for slot in slots:
                        site, stream = slot.placed.site, slot.placed.stream
                        read = values[site][stream][row].permute(1, 2, 3, 0)
                        spot = batch.spot(step, row, site, None, None, stream)
                        recorder.take(slot, spot, read, slot.placed.function(read))
                    times = {"sigma": batch.sigmas[step], "timestep": batch.timesteps[step]}
                    recorder.end_step(step, {**times, "expert": batch.expert(step)})
            x = out.latents
        for row, writer in enumerate(writers):
            write_outputs(writer, batch.outputs(x[row : row + 1]), batch.rates)
            writer.close()
    finally:
        for writer in writers:
            writer.abort()
    return [Run(path) for path in paths]
