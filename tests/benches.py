"""Small folders of VBVR-Bench, and scripts run on them."""

import numpy as np
from PIL import Image

from dit_lens.models.options import ModelOptions
from dit_lens.plot import write_video
from scripts import script

IN, OUT = "In-Domain_50", "Out-of-Domain_50"
SORT, MAZE = "G-3_stable_sort_data-generator", "O-39_maze_data-generator"


def write_sample(folder, height, width, frames):
    """Write the files of a sample."""
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "first_frame.png")
    Image.fromarray(pixels).save(folder / "final_frame.png")
    write_video(np.stack([pixels] * frames), folder / "ground_truth.mp4")
    (folder / "prompt.txt").write_text("solve the maze\n")


def run(name, monkeypatch, lens, **options):
    """Run a script with a model that is loaded once for all; return its exit code."""
    module = script(name)
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    return module.main(module.Options(**options))
