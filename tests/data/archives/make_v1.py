"""Make the frozen stores of layout 1 (`v1/`), with `dit_lens` 0.1.0 at commit cca1911: read in CI for ever, never made again.

    PYTHONPATH=src:tests python tests/data/archives/make_v1.py OUT

Beside each store stands what that version read from it: `expected.npz`, a flat array a name.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dit_lens as dl
from conftest import make_pipe

OUT = Path(sys.argv[1])
PIXELS = np.random.default_rng(0).integers(0, 255, (48, 32, 3), dtype=np.uint8)
SAMPLE = dl.Sample(prompt="solve the maze", image=Image.fromarray(PIXELS), num_frames=9, task="maze", id="7")


def values(run):
    """Return everything that a run holds, by name; what was not recorded is NaN."""
    data = run.dataset.load()
    texts = {"branch", "expert"}
    arrays = {str(n): v.values for n, v in data.variables.items() if str(n) not in texts}
    return arrays | {n: np.array([str(x) for x in data[n].values]) for n in texts}


def stop(h, at):
    """Interrupt a run at step 1."""
    if at.step == 1:
        raise KeyboardInterrupt
    return h


def main():
    """Make every store."""
    everything = [
        dl.energy,
        (dl.hidden, dl.at(layer=[0, 2], step="1-", branch="cond")),
        dl.x0,
        dl.velocity,
        dl.channel_mean,
    ]
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        lens, store = dl.Lens(make_pipe(experts=2, dtype=dtype)), OUT / f"{name}.zarr"
        expected = {}
        encodings = [None] if dtype == torch.float32 else ["float32", "codes", "float16"]
        for encoding in encodings:
            run = lens.run(
                SAMPLE, 3, steps=3, cfg_scale=2.0, record=everything, store=store, encoding=encoding
            )
            expected |= {f"{run.path.name}/{k}": v for k, v in values(run).items()}
        np.savez_compressed(OUT / f"{name}.npz", **expected)
    lens, store = dl.Lens(make_pipe()), OUT / "interrupted.zarr"
    with contextlib.suppress(KeyboardInterrupt):
        lens.run(
            SAMPLE, 3, steps=3, cfg_scale=2.0, record=everything, edit=[(stop, dl.at(layer=1))], store=store
        )
    run = dl.Run(next(p for p in store.iterdir() if p.is_dir()))
    np.savez_compressed(
        OUT / "interrupted.npz", **{f"{run.path.name}/{k}": v for k, v in values(run).items()}
    )
    lens = dl.Lens(make_pipe(config={"in_dim": 48}))  # text alone: no channels for an image
    prompts = dl.Sample(
        prompt=("solve the maze", "circle the disc"), size=(32, 32), num_frames=5, task="two", id="1"
    )
    run = lens.run(
        prompts,
        1,
        steps=2,
        cfg_scale=2.0,
        record=everything[:3],
        store=OUT / "prompts.zarr",
        output_type="floatpoint",
    )
    np.savez_compressed(OUT / "prompts.npz", **{f"{run.path.name}/{k}": v for k, v in values(run).items()})


main()
