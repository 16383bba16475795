"""Run every experiment that docs/findings.md reports, and put its summary and figures beside the page.

python analyses/all.py                 # all of them, into runs/findings/; finished experiments are not repeated
python analyses/all.py --only noise    # those whose name holds the word
python analyses/all.py --only holm     # none of them: the table of primary outcomes alone, of the summaries that are there

Every command writes `docs/findings/holm.md`: the primary outcomes of the rows on the family of `organism`, and which of them are
off their nulls when all rows are tested together (Holm 1979).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dit_lens.experiments.primary import BAND, holm, outcomes_with_p
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


def study(
    script: str, task: str, samples: int, *options: str | int, figures: Sequence[str] = ()
) -> Experiment:
    """Return an experiment on scenes of a task."""
    return script, ["--task", task, "--samples", str(samples), *map(str, options)], list(figures)


FAMILY: dict[str, Experiment] = {
    **{
        f"full_noise_{kind}_choose": study(
            "noise_sensitivity.py",
            "choose",
            24,
            *("--noise", kind, "--cka-layers", "none", "--stops", "none"),
            figures=["score_by_step"] if kind == "replace" else [],
        )
        for kind in ("replace", "add", "renoise")
    },
    **{
        f"full_commitment_{task}": study(
            "causal_commitment.py", task, 24, "--at", "1-7", figures=["same_answer_by_step"]
        )
        for task in ("latin", "choose")
    },
    "full_early_maze": study("early_selection.py", "maze", 64, figures=["solved_by_step"]),
    **{
        f"full_steps_or_frames_{task}": study("steps_or_frames.py", task, 48, figures=["settled_by_frame"])
        for task in ("latin", "choose")
    },
    "full_steps_or_frames_maze": study("steps_or_frames.py", "maze", 64, figures=["rescued_by_way"]),
    "causal_steps_or_frames_choose": study("steps_or_frames.py", "choose", 48, "--model", "organism-causal"),
    "full_layer_roles": study(
        *("layer_roles.py", "circle", 64, "--vis-steps", "0,5,10,19"),
        figures=["named_minus_others_step_000", "centred_by_layer_and_step"],
    ),
    "full_layer_roles_random": study("layer_roles.py", "circle", 64, "--vis-steps", 0, "--weights", "random"),
    "full_massive_channels_maze": study(
        *("massive_channels.py", "maze", 32, "--layers", "auto", "--vis-steps", "auto"),
        figures=["distance_by_set"],
    ),
    **{
        f"full_revision_{task}": study(
            "revision.py",
            task,
            64,
            "--seeds",
            2,
            figures=["bits_by_step"] if task in ("latin", "choose") else [],
        )
        for task in ("latin", "queens", "tictac", "odd", "arrows", "maze", "choose")
    },
    **{
        f"full_plan_{task}": study(
            "plan_commitment.py", task, 64, "--seeds", 2, figures=["similarity_by_step", "solved_by_length"]
        )
        for task in ("maze", "arrows")
    },
    **{
        f"{model.replace('-', '_')}_cross_step_maze": study(
            *("cross_step_similarity.py", "maze", 24, "--seeds", 2, "--model", model),
            figures=["similarity"] if model == "organism-two-expert" else [],
        )
        for model in ("organism", "organism-two-expert")
    },
    "full_layer_swap_circle": study(
        *("layer_swap.py", "circle", 24, "--layers", "5,8,9,10,12", "--where", "whole"),
        *("--branches", "all", "--orders", 1, "--cfg-scale", 1),
        figures=["leaning_by_layer", "flips_by_layer"],
    ),
    "full_average_maze": study(
        "what_to_average.py", "maze", 48, "--what", "states", "x0", "--until", "0.75,0.5", "--no-placebo"
    ),
    **{
        f"full_scratch_{task}": study("scratch_space.py", task, 32, "--layers", "none", "--at-steps", "none")
        for task in ("latin", "choose")
    },
    "full_causal_map_circle": study(
        *("causal_map.py", "circle", 8, "--layers", "5,9", "--map-steps", 9, "--cfg-scale", 1),
        figures=["cross_heads_by_head"],
    ),
    "full_attribution_circle": study(
        *("attribution.py", "circle", 8, "--cfg-scale", 1, "--sites", "block,self_attn,cross_attn,ffn"),
    ),
    "full_attention_maps_arrows": study(
        *("attention_maps.py", "arrows", 32, "--steps", 8), figures=["word", "frames", "matches_by_layer"]
    ),
    "full_attention_maps_arrows_random": study(
        *("attention_maps.py", "arrows", 16, "--steps", 8, "--weights", "random", "--shown", "truth")
    ),
    "full_head_ablation_arrows": study(
        *("head_ablation.py", "arrows", 16, "--seeds", 2, "--steps", 6, "--layers", "9,13", "--kinds", "zero")
    ),
    "full_surprise_maze": study("surprise.py", "maze", 64, figures=["share_by_step"]),
    "full_surprise_maze_random": study("surprise.py", "maze", 64, "--weights", "random", "--no-invert"),
}
"""By name: what it reports on the family of `organism`."""
CONTROLS = (
    "causal_steps_or_frames_choose",
    "full_layer_roles_random",
    "full_surprise_maze_random",
    "full_attention_maps_arrows_random",
)
"""Those that are a control of another row."""
LEVEL = 0.05
"""Chance that any of the page's primary outcomes is called off its null where none is."""
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
    (options.docs / "holm.md").write_text(table(primary_outcomes(options.docs)))
    return int(failed > 0)


def publish(name: str, out: Path, docs: Path, figures: list[str]) -> None:
    """Copy the summary, and the figures that there are, in few colours: they are drawings."""
    docs.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "summary.json", docs / f"{name}.json")
    for figure in figures:
        if not (out / f"{figure}.png").exists():
            print(f"{name}: no {figure}.png, for its summary has nothing to draw there", flush=True)
            continue
        picture = Image.open(out / f"{figure}.png").convert("RGB").quantize(128, dither=Image.Dither.NONE)
        picture.save(docs / f"{name}_{figure}.png", optimize=True)


def primary_outcomes(docs: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the primary outcomes by row and by what they are; none of a row whose summary has no p, or is missing."""
    outcomes = {}
    for name in (name for name in FAMILY if name not in CONTROLS):
        path = docs / f"{name}.json"
        outcomes[name] = outcomes_with_p(json.loads(path.read_text())) if path.exists() else {}
    return outcomes


def table(outcomes: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the page of the primary outcomes: each with its p, that of all rows together, and whether it is off its null.

    A row without a p counts as one that is not off its null: it makes the correction stricter.
    """
    flat = {(row, what): one for row, those in outcomes.items() for what, one in those.items()}
    untested = [row for row, those in outcomes.items() if not those]
    together = holm({key: one["p"] for key, one in flat.items()} | {(row, ""): 1.0 for row in untested})
    off = sum(together[key] <= LEVEL for key in flat)
    lines = [
        "# Primary outcomes, all rows together",
        "",
        f"Of {len(flat)} primary outcomes of the rows on the family of `organism`, {off} are off their nulls at {LEVEL:g}",
        f"for all of them together (Holm 1979, {len(together)} tests). p inverts the interval of the row, of a curve its band:",
        "it then says whether the outcome is off the null anywhere. The smallest p that the bootstrap's draws tell is 0.0009 of",
        "24 samples, and 0.0003 of 64: there, p is at most that. `analyses/all.py` writes this page.",
        "",
        "| row | primary outcome | value [95%] | null | p | p, all rows | off its null |",
        "|---|---|---|---|---|---|---|",
    ]
    for (row, what), one in flat.items():
        verdict = "**yes**" if together[row, what] <= LEVEL else "no"
        numbers = f"{one['null']:g} | {one['p']:.4f} | {together[row, what]:.4f}"
        told = [f"{name}: {text}" for name, text in one.items() if isinstance(text, str) and name != BAND]
        lines.append(f"| `{row}` | {', '.join([what, *told])} | {value(one)} | {numbers} | {verdict} |")
    if untested:
        names = ", ".join(f"`{row}`" for row in untested)
        lines += [
            "",
            f"Without a test, and counted as not off their nulls: {names}. Dates are estimates and test nothing;",
        ]
        lines += ["for another row `python analyses/all.py --only NAME` makes its summary."]
    return "\n".join(lines) + "\n"


def value(one: dict[str, Any]) -> str:
    """Return an outcome with its interval, or what its band is over."""
    if "low" not in one:
        return f"band over {one[BAND]}"
    return f"{one.get('effect', one.get('mean')):.3g} [{one['low']:.3g}, {one['high']:.3g}]"


if __name__ == "__main__":
    run_script(main, Options)
