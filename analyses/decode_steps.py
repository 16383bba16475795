"""What does the model believe at every step? Decode its clean estimate x0, and let the task's scorer read it.

The paper's Chain-of-Steps (arXiv 2603.16870): answers are made along the denoising steps. Writes, per sample:
x0 of every step as a video, a contact sheet (rows = steps, columns = frames) with the answer read at each,
and the noise schedule; over samples: how many are solved at each step.

    python analyses/decode_steps.py --task maze --max-samples 8 --out runs/decode_steps
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import xarray as xr

import dit_lens as dl
from dit_lens import experiment, report


@dataclass
class Options(experiment.Options):
    """Decode x0 at every step."""

    out: Path = Path("runs/decode_steps")


def main(options: Options) -> int:
    """Run, decode, score, draw, save."""
    lens = dl.load(options.model)
    options.out.mkdir(parents=True, exist_ok=True)

    def analyse(sample: dl.Sample, folder: Path) -> dict[str, Any]:
        steps = report.choose(options.vis_steps, options.steps or lens.family.default_steps, "vis-steps")
        run = lens.run(
            sample,
            options.seed,
            record=[(dl.x0, dl.at(step=steps))],
            steps=options.steps,
            cfg_scale=options.cfg_scale,
            store=options.out / "store.zarr",
        )
        return report.believed(run, lens.decode, sample, folder)

    found, code = experiment.each_sample(options, "decode_steps", analyse)
    scored = [f for f in found if "solved" in f]
    if scored:
        dims = ("sample", "step")
        coords = {
            "sample": np.array([f"{f['task']}/{f['id']}" for f in scored], np.dtypes.StringDType()),
            "step": ("step", scored[0]["step"], {"long_name": "scheduler step (0 = most noise)"}),
        }
        names = {
            "solved": "x0 holds the right answer",
            "score": "graded score of x0",
            "answer": "answer read off x0",
        }
        data = {k: (dims, np.array([f[k] for f in scored]), {"long_name": v}) for k, v in names.items()}
        text = np.dtypes.StringDType()  # what zarr has a specification for
        data["answer"] = (dims, data["answer"][1].astype(text), data["answer"][2])
        results = xr.Dataset(data, coords)
        results.to_zarr(options.out / "results.zarr", mode="w", consolidated=False)
        by_step = {
            str(s): experiment.rate(list(results.solved.sel(step=s).values))
            for s in results.step.values.tolist()
        }
        experiment.write_summary(options.out, {"solved_at_step": by_step}, options.settings)
        last = by_step[str(results.step.values[-1])]
        print(f"solved at the last step: {last['rate']:.2f} (n={last['n']}, 95% {last['interval_95']})")
    print(f"see {options.out}/*/*/steps.png")
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
