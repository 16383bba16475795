"""In which layer does the answer stand? Swap one layer's states between two prompts on one scene.

The paper's latent swapping (arXiv 2603.16870). Scene and noise are the same, the prompts differ ("circle the
disc" / "circle the square"). While run A is made, layer k's states are replaced by those that run B holds at
the same step; the answer flips if A's video shows B's answer. Both directions, over the scenes that are solved
under both prompts.

What a flip says: from layer k on, everything is B's, unless the latents say otherwise; so a flip means that no later
layer undid it, and the rate rises with depth. At the last layer, on every branch and step, the velocity is B's own:
that flip is an identity, as is the control with another seed, which shows only that the donor holds the same
answer. Where the rate rises along the layers says by which layer the answer is settled.

Arms, for each layer: all steps, on the conditional branch alone and on every branch; the first, middle and last
third of the steps; one step at a time (a layer x step map). Controls: states of the same prompt under another
noise seed (should not flip), and states that B holds in another layer, by a random order of the layers.

    python analyses/layer_swap.py --samples 64 --cfg-scale 3 --out runs/layer_swap
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot, report, study
from dit_lens.batch import Batch
from dit_lens.errors import TaskError
from dit_lens.plan import Placed
from dit_lens.sweep import Now, sweep

KINDS = ("disc", "square")
OTHER_SEED = 500_009
"""Added to a noise seed for the control."""


@dataclass
class Options(study.Options):
    """Swap states between two prompts."""

    task: str = "circle"
    cfg_scale: float | None = 3.0
    """Over 1, so that there are two branches, and swapping one is not swapping both."""
    layers: str = "all"
    """Layers to swap: all, auto (5 of them), or such as 0,4,9."""
    map_steps: str = "auto"
    """Steps that are swapped alone: all, auto (5 of them), or such as 0-9."""
    out: Path = Path("runs/layer_swap")


def main(options: Options) -> int:
    """Run all swaps on every scene, count flips, draw, save."""
    if options.task != "circle":
        raise TaskError(f"--task {options.task}: a swap needs two prompts on one scene; circle has them.")
    lens = dl.load(options.model)
    results, code = study.study(options, "layer_swap", lens, lambda part: measure(lens, part, options))
    conclude(results, options)
    return code


def measure(lens: dl.Lens, scenes: list[dl.Sample], options: Options) -> xr.Dataset:
    """Make both clean runs of every scene, keep their states, and swap."""
    both = [
        [dl.tasks.circle(int(s.id), kind=kind, num_frames=s.num_frames) for kind in KINDS] for s in scenes
    ]
    seeds = [
        (pair, seed)
        for pair, scene in zip(both, scenes, strict=True)
        for seed in study.noise_seeds(scene, options)
    ]
    # Rows of one scene and seed: A, B, and both again under another noise seed.
    rows = [(s, seed + extra) for pair, seed in seeds for extra in (0, OTHER_SEED) for s in pair]
    batch = lens.batch(rows, options.steps, options.cfg_scale, options.at_once)
    layers = report.choose(options.layers, lens.layers, "layers")
    steps = report.choose(options.map_steps, batch.steps, "map-steps")
    states = clean_states(batch)
    arms, names = make_arms(states, layers, steps, batch.steps)
    clean, ended = sweep(batch, arms, progress="swap")

    shape = (len(scenes), options.seeds, len(KINDS))
    target = [r for r in range(len(rows)) if r % 4 < 2]
    right = np.array([rows[r][0].score(batch.decode(clean[r : r + 1])[0]).solved for r in target]).reshape(
        shape
    )
    flip, kept = np.zeros((2, len(arms), *shape), bool)
    for a, latents in enumerate(ended):
        videos = [batch.decode(latents[r : r + 1])[0] for r in target]
        pairs = list(zip(target, videos, strict=True))
        flip[a] = np.reshape([rows[partner(r)][0].score(v).solved for r, v in pairs], shape)
        kept[a] = np.reshape([rows[r][0].score(v).solved for r, v in pairs], shape)
    return table(flip, kept, right, names, layers, steps, scenes, options)


def clean_states(batch: Batch) -> dict[tuple[str, int], Tensor]:
    """Return the states of all clean runs by (branch, layer): [step, row, frame, y, x, channel]."""
    watch = [("block", b, layer) for b in batch.layout.branches for layer in range(batch.layout.layers)]
    seen: dict[tuple[str, int], list[Tensor]] = {(b, layer): [] for _, b, layer in watch}

    def look(now: Now) -> None:
        for (_, branch, layer), value in now.clean.states.items():
            seen[branch, layer].append(value)

    sweep(batch, [], watch, look)
    return {place: torch.stack(values) for place, values in seen.items()}


def partner(row: int) -> int:
    """Return the row of the other prompt, same scene and seed."""
    return row ^ 1


def make_arms(
    states: dict[tuple[str, int], Tensor], layers: Sequence[int], map_steps: Sequence[int], steps: int
) -> tuple[list[Callable[[int], list[Placed]]], list[tuple[str, int, int]]]:
    """Return the arms, and (arm, layer, step; -1 where it is no single one) of each."""
    thirds = np.array_split(np.arange(steps), 3)
    # Every layer gets the next one's in a random order, never its own.
    shuffled = np.random.default_rng(0).permutation(layers).tolist()
    following = dict(zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True))
    arms, names = [], []
    for layer in layers:
        whole = {
            "conditional branch": (partner, layer, {"branch": "cond"}),
            "all branches": (partner, layer, {}),
            **{
                f"{name} third of the steps": (partner, layer, {"step": third.tolist()})
                for name, third in zip(("first", "middle", "last"), thirds, strict=True)
                if len(third)
            },
            "same prompt, other seed": (lambda row: row + 2, layer, {}),
        }
        if len(layers) > 1:
            whole["another layer's states"] = (partner, following[layer], {})
        for name, (source, from_layer, where) in whole.items():
            arms.append(arm(states, source, from_layer, dl.at(layer=layer, **where)))
            names.append((name, layer, -1))
        for step in map_steps:
            arms.append(arm(states, partner, layer, dl.at(layer=layer, step=step)))
            names.append(("one step", layer, step))
    return arms, names


def arm(
    states: dict[tuple[str, int], Tensor], source: Callable[[int], int], layer: int, place: dl.At
) -> Callable[[int], list[Placed]]:
    """Return an arm that puts a layer's states of the source row in a place; on the rows of the first seed alone."""

    def edits(row: int) -> list[Placed]:
        def swap(h: Tensor, at: dl.Spot) -> Tensor:
            return states[str(at.branch), layer][at.step, source(row)]

        return [Placed(swap, place)] if row % 4 < 2 else []

    return edits


def table(
    flip: np.ndarray,
    kept: np.ndarray,
    right: np.ndarray,
    names: list[tuple[str, int, int]],
    layers: Sequence[int],
    steps: Sequence[int],
    scenes: list[dl.Sample],
    options: Options,
) -> xr.Dataset:
    """Sort outcomes [arm, sample, seed, direction] by arm and layer, and by layer and step."""
    arms = list(dict.fromkeys(name for name, _, step in names if step < 0))
    by_arm = [[names.index((name, layer, -1)) for layer in layers] for name in arms]
    by_step = [[names.index(("one step", layer, step)) for step in steps] for layer in layers]
    own = ("sample", "seed", "direction")
    variables = {"right": (own, right)}
    for name, values in (("flip", flip), ("kept", kept)):
        variables[name] = (("arm", "layer", *own), values[by_arm])
        variables[f"{name}_one_step"] = (("layer", "step", *own), values[by_step])
    text = np.dtypes.StringDType()
    directions = [f"{b} into {a}" for a, b in (KINDS, KINDS[::-1])]
    coords = {
        "sample": np.array([f"{s.task}/{s.id}" for s in scenes], text),
        "seed": np.arange(options.seeds),
        "direction": np.array(directions, text),
        "arm": np.array(arms, text),
        "layer": list(layers),
        "step": list(steps),
    }
    return xr.Dataset(variables, coords).transpose("sample", "seed", ...)


def conclude(results: xr.Dataset, options: Options) -> None:
    """Summarise over the scenes that are solved under both prompts; draw; save."""
    solved = results.right.all(("seed", "direction"))
    chosen = results.isel(sample=solved.values)
    flip = chosen.flip.astype(float)
    by_arm = analysis.mean(flip.mean("direction"), along=["arm", "layer"])
    by_direction = analysis.mean(flip.sel(arm="all branches", drop=True), along=["layer", "direction"])
    one_step = analysis.mean(chosen.flip_one_step.astype(float).mean("direction"), along=["layer", "step"])
    kept = analysis.mean(chosen.kept.astype(float).mean("direction"))
    summary = {
        "scenes": results.sizes["sample"],
        "solved under both prompts": int(solved.sum()),
        "seeds": results.sizes["seed"],
        "flips": study.headline(by_arm),
        "flips by direction, all branches": study.headline(by_direction),
        "flips, one step": study.headline(one_step),
        "keeps its own answer": study.headline(kept),
    }
    study.finish(options, summary, by_arm.attrs)
    n = chosen.sizes["sample"]
    parts = by_arm.arm.str.contains("third").values
    for name, part in (("by_layer", ~parts), ("by_third", parts)):
        title = f"Swapping a layer between two prompts · {n} scenes"
        figure = plot.curves(
            by_arm.isel(arm=part), "layer", value_label="flip rate", title=title, limits=(-0.03, 1.03)
        )
        plot.save(figure, options.out / f"flips_{name}.png")
    title = f"Swapping one layer at one step · {n} scenes"
    figure = plot.heatmap(one_step["mean"], value_label="flip rate", title=title, limits=(0, 1))
    plot.save(figure, options.out / "flips_one_step.png")
    for line in study.headline(by_arm.sel(arm="all branches")[["mean", "low", "high"]]):
        print(f"layer {line['layer']}: flips {line['mean']:.2f} [{line['low']:.2f}, {line['high']:.2f}]")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
