"""Run every experiment that docs/findings.md reports, and put its summary and figures beside the page.

python analyses/all.py                 # all of them, into runs/findings/; finished experiments are not repeated
python analyses/all.py --only noise    # those whose name holds the word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dit_lens.experiments.script import run_script

HERE = Path(os.path.relpath(Path(__file__).parent))  # as the summaries name their command
Experiment = tuple[str, list[str], list[str]]
"""The script, its options, and the figures that the page shows."""
FIRST: dict[str, Experiment] = {
    **{
        # occlude has 24 scenes: more samples would be the same ones again.
        f"emergent_{task}": (
            "emergent.py",
            [
                "--task",
                task,
                *(["--samples", "24", "--seeds", "5"] if task == "occlude" else ["--samples", "128"]),
            ],
            figures,
        )
        for task, figures in {
            "maze": ["solved_by_step", "off_path_by_step", "commitment"],
            "loop": ["candidates_by_step"],
            "choose": ["candidates_by_step", "probe_goal_by_step", "commitment"],
            "circle": ["probe_objects_by_step"],
            "pattern": [],
            "occlude": ["hidden_ball_by_step", "probe_colour_by_step", "probe_lane_by_step"],
        }.items()
    },
    "step_count_maze": (
        "step_count.py",
        ["--task", "maze", "--samples", "128"],
        ["solved_by_steps", "solved_by_length"],
    ),
    "step_count_circle": ("step_count.py", ["--task", "circle", "--samples", "128"], []),
    "frame_count_maze": ("frame_count.py", ["--task", "maze", "--samples", "64"], ["solved_by_frames"]),
    "noise_maze": (
        "noise_sensitivity.py",
        ["--task", "maze", "--samples", "40"],
        ["score_by_step", "score_by_frame", "score_by_stop", "dissimilarity"],
    ),
    "noise_choose": (
        "noise_sensitivity.py",
        ["--task", "choose", "--samples", "64", "--cka-layers", "none"],
        [],
    ),
    "depth_maze": ("depth_lens.py", ["--task", "maze", "--samples", "64"], ["solved", "distance"]),
    "depth_circle": ("depth_lens.py", ["--task", "circle", "--samples", "64"], ["solved"]),
    "ensemble_maze": (
        "seed_ensemble.py",
        ["--task", "maze", "--samples", "24", "--layers", "each"],
        ["solved_by_k"],
    ),
    "layer_swap": (
        "layer_swap.py",
        ["--samples", "24"],
        ["flips_by_layer", "flips_by_third", "flips_one_step"],
    ),
}
"""By name: what the page reports on the first organism."""
FAMILY: dict[str, Experiment] = {
    **{
        f"full_noise_{kind}_choose": (
            "noise_sensitivity.py",
            [
                "--noise",
                kind,
                "--task",
                "choose",
                "--samples",
                "24",
                "--cka-layers",
                "none",
                "--stops",
                "none",
            ],
            ["score_by_step"] if kind == "replace" else [],
        )
        for kind in ("replace", "add", "renoise")
    },
    **{
        f"full_commitment_{task}": (
            "causal_commitment.py",
            ["--task", task, "--samples", "24"],
            ["same_answer_by_step"],
        )
        for task in ("latin", "choose")
    },
    "full_early_maze": ("early_selection.py", ["--task", "maze", "--samples", "64"], ["solved_by_step"]),
    **{
        f"full_steps_or_frames_{task}": (
            "steps_or_frames.py",
            ["--task", task, "--samples", "48"],
            ["settled_by_frame"],
        )
        for task in ("latin", "choose")
    },
    "full_steps_or_frames_maze": (
        "steps_or_frames.py",
        ["--task", "maze", "--samples", "64"],
        ["rescued_by_way"],
    ),
    "causal_steps_or_frames_choose": (
        "steps_or_frames.py",
        ["--task", "choose", "--samples", "48", "--model", "organism-causal"],
        [],
    ),
}
"""By name: what it reports on the family of `organism`."""
MODELS = {**dict.fromkeys(FIRST, "organism-v1"), **dict.fromkeys(FAMILY, "organism")}
"""The model of each, unless its options name one."""


@dataclass
class Options:
    """Which experiments, and where."""

    only: str = ""
    """Part of the names of those to run."""
    runs: Path = Path("runs/findings")
    docs: Path = Path("docs/findings")


def main(options: Options) -> int:
    """Run, and copy what the page needs."""
    failed = 0
    for name, (script, arguments, figures) in {**FIRST, **FAMILY}.items():
        if options.only not in name:
            continue
        out, start = options.runs / name, time.time()
        arguments = arguments if "--model" in arguments else [*arguments, "--model", MODELS[name]]
        command = [sys.executable, str(HERE / script), *arguments, "--out", str(out)]
        command += ["--clean", str(options.runs / "clean.zarr")] if script == "emergent.py" else []
        print(f"{name}: python analyses/{script} {' '.join(arguments)}", flush=True)
        code = subprocess.run(command).returncode
        print(f"{name}: {'failed' if code else 'done'} after {time.time() - start:.0f} s", flush=True)
        failed += code != 0
        if not code:
            publish(name, out, options.docs, figures)
    return int(failed > 0)


def publish(name: str, out: Path, docs: Path, figures: list[str]) -> None:
    """Copy the summary, and the figures in few colours: they are drawings."""
    docs.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "summary.json", docs / f"{name}.json")
    for figure in figures:
        picture = Image.open(out / f"{figure}.png").convert("RGB").quantize(128, dither=Image.Dither.NONE)
        picture.save(docs / f"{name}_{figure}.png", optimize=True)


if __name__ == "__main__":
    run_script(main, Options)
