"""Clean runs, kept in a store: experiments start from them, and scripts share them.

A run's last digits depend on the rows beside it, so the pairs decide how batches are cut, not the runs that are
missing; see `dit_lens.engine.batch_run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dit_lens import records
from dit_lens.engine.batch_run import stored_rows
from dit_lens.engine.request import Request
from dit_lens.lens import Lens
from dit_lens.plan.plan import Plan
from dit_lens.store.run import Run
from dit_lens.tasks.sample import Sample


def clean_runs(
    lens: Lens,
    pairs: Sequence[tuple[Sample, int]],
    store: Path | str,
    steps: int | None = None,
    cfg_scale: float | None = None,
    at_once: int = 64,
    **arguments: Any,
) -> list[Run]:
    """Return the unedited run of every (sample, seed), with `latents` and `x0` of every step and the video.

    Runs in the store are read, missing ones are made: in batches where the family knows how, else one by one. A
    pair that comes twice is made once. `arguments` are other keywords of the pipeline's call.

    Raises:
        StoreError: the store cannot be written.
    """
    if lens.family.batching is None:
        return [
            lens.run(
                sample, seed, record=[records.x0], steps=steps, cfg_scale=cfg_scale, store=store, **arguments
            )
            for sample, seed in tqdm(pairs, desc="clean runs", leave=False)
        ]
    plan = Plan.of([records.x0])
    options: dict[str, Any] = {
        "steps": steps,
        "cfg_scale": cfg_scale,
        "store": store,
        "arguments": arguments,
    }
    requests = [Request(lens.specimen, s, seed, plan, loop="batch", **options) for s, seed in pairs]
    if (stored := stored_rows(requests, "first")) is not None:
        return stored
    shapes: dict[object, list[int]] = {}
    for i, (sample, _) in enumerate(pairs):
        shapes.setdefault((sample.size, sample.num_frames), []).append(i)
    runs: dict[int, Run] = {}
    for numbers in shapes.values():
        batch = lens.batch(
            [pairs[i] for i in numbers],
            steps,
            cfg_scale,
            at_once,
            record=[records.x0],
            store=store,
            **arguments,
        )
        runs |= dict(zip(numbers, batch.run("clean runs"), strict=True))
    return [runs[i] for i in range(len(pairs))]
