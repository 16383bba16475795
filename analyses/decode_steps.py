"""What does the model believe at every step? Decode its clean estimate x0, and let the task's scorer read it.

The paper's Chain-of-Steps (arXiv 2603.16870): answers are made along the denoising steps. Writes, per sample:
x0 of every step as a video, a contact sheet (rows = steps, columns = frames) with the answer read at each,
and the noise schedule; over samples: how many are solved at each step.

    python analyses/decode_steps.py --task maze --samples 8 --out runs/decode_steps
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens.experiments.cache import save
from dit_lens.experiments.options import PictureOptions
from dit_lens.experiments.pictures import believed, choose
from dit_lens.experiments.samples import steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import distance_to_end
from dit_lens.experiments.study import each_sample
from dit_lens.experiments.summary import rate, write_summary


@dataclass
class Options(PictureOptions):
    """Decode x0 at every step."""

    out: Path = Path("runs/decode_steps")


def main(options: Options) -> int:
    """Run, decode, score, draw, save."""
    lens = options.load()
    steps = choose(options.vis_steps, steps_of(options, lens), "vis-steps")
    options.out.mkdir(parents=True, exist_ok=True)

    def analyse(sample: dl.Sample, folder: Path) -> dict[str, Any]:
        run = lens.run(
            sample,
            options.seed,
            record=[(dl.x0, dl.at(step=[*steps, -1]))],  # the last is what distances are to
            steps=options.steps,
            cfg_scale=options.cfg_scale,
            store=options.out / "store.zarr",
            **options.arguments,
        )
        moved = distance_to_end(run["x0"]).sel(step=steps).values.tolist()
        return believed(run, lens.decode, sample, folder, steps) | {"distance": moved}

    numbers, left_out = each_sample(options, "decode_steps", lens, analyse)
    write_summary(options, {"n": len(numbers), **conclude(numbers, options)}, left_out)
    print(f"{len(numbers)} samples, {len(left_out)} left out; see {options.out}/")
    return int(bool(left_out))


NAMES = {
    "distance": "RMS distance of x0 to the last step's",
    "solved": "x0 holds the right answer",
    "score": "graded score of x0",
    "answer": "answer read off x0",
}


def conclude(numbers: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """Write `results.zarr`: what was read at every step, where samples have a scorer; return the headline."""
    coords = {
        "sample": np.array([f"{f['task']}/{f['id']}" for f in numbers], np.dtypes.StringDType()),
        "step": ("step", numbers[0]["step"], {"long_name": "scheduler step (0 = most noise)"}),
    }
    kinds = {"answer": np.dtypes.StringDType()}  # what zarr has a specification for
    data = {
        name: (("sample", "step"), np.array([f[name] for f in numbers], kinds.get(name)), {"long_name": said})
        for name, said in NAMES.items()
        if all(name in f for f in numbers)
    }
    results = xr.Dataset(data, coords)
    save(results, options.out / "results.zarr")
    if "solved" not in results:
        return {"distance_to_last_step": dict(_by_step(results.distance.mean("sample")))}
    return {"solved_at_step": {s: rate(list(v)) for s, v in _by_step(results.solved)}}


def _by_step(values: xr.DataArray) -> list[tuple[str, Any]]:
    return [(str(s), values.sel(step=s).values) for s in values.step.values.tolist()]


if __name__ == "__main__":
    run_script(main, Options)
