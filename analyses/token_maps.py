"""What does every layer hold? Energy and PCA maps of the tokens, over steps and layers.

The paper's layer-wise token visualisation (arXiv 2603.16870). Writes, per sample: for chosen steps and layers
the energy heat map and PCA map of every frame, temporal energy, channel importance and top channels; per step
the energy across layers and a grid of all layers; per run the energy against step, and step x frame heat
maps.

    python analyses/token_maps.py --task maze --layers 2,5,9 --vis-steps 0,5,19 --out runs/token_maps
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
from dit_lens.experiments.pictures import choose, held
from dit_lens.experiments.samples import draw, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import each_sample
from dit_lens.experiments.summary import write_summary


@dataclass
class Options(PictureOptions):
    """Map the tokens of layers and steps."""

    vis_steps: str = "auto"
    """Steps to draw: all, auto (5 of them), or a list such as 0-19,45-49."""
    layers: str = "auto"
    """Layers to draw: all, auto (4 of them), or a list such as 2,5,9."""
    branch: str = "cond"
    """Guidance branch to draw."""
    out: Path = Path("runs/token_maps")


def main(options: Options) -> int:
    """Record energy everywhere and full states at --vis-steps and --layers; draw; save."""
    lens = options.load()
    steps = choose(options.vis_steps, steps_of(options, lens), "vis-steps")
    layers = choose(options.layers, lens.layers, "layers", auto=4)
    options.out.mkdir(parents=True, exist_ok=True)
    record = [dl.energy, (dl.hidden, dl.at(step=steps, layer=layers, branch=options.branch))]
    largest = max(draw(options, lens), key=lambda s: s.height * s.width * s.num_frames, default=None)
    if largest is not None:
        print(lens.estimate(record, largest, options.steps, cfg_scale=options.cfg_scale))

    def analyse(sample: dl.Sample, folder: Path) -> dict[str, Any]:
        run = lens.run(
            sample,
            options.seed,
            record=record,
            steps=options.steps,
            cfg_scale=options.cfg_scale,
            store=options.out / "store.zarr",
            **options.arguments,
        )
        held(run, folder, steps, layers, options.branch)
        mean = run["energy"].sel(branch=options.branch).mean(("frame", "y", "x"))
        return {"energy": mean.values.tolist()}

    numbers, left_out = each_sample(options, "token_maps", lens, analyse)
    dims = ("sample", "step", "layer")
    about = {"long_name": "mean energy over tokens (L2 norm over channel)", "units": "1"}
    coords = {"sample": np.array([f"{f['task']}/{f['id']}" for f in numbers], np.dtypes.StringDType())}
    results = xr.Dataset({"energy": (dims, [f["energy"] for f in numbers], about)}, coords)
    save(results, options.out / "results.zarr")
    mean = results.energy.mean(("sample", "step")).values.tolist()
    summary = {"n": len(numbers), "mean_energy_by_layer": mean}
    write_summary(options, summary, left_out)
    print(f"see {options.out}/*/*/")
    return int(bool(left_out))


if __name__ == "__main__":
    run_script(main, Options)
