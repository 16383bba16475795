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
third of the steps; one step at a time (a layer x step map). Controls: the run's own states (nothing may change),
states of the same prompt under another noise seed (should not flip), and states that B holds in another layer,
by several random orders in which no layer keeps its own.

Donors and receivers take every step together, the donors first, layer after layer: of states, one step of one
layer (and of the layers that its controls draw) is held at a time, for the 4 clean rows of a scene and seed.

    python analyses/layer_swap.py --samples 64 --cfg-scale 3 --out runs/layer_swap
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Arm, run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed

KINDS = ("disc", "square")
OTHER_SEED = 500_009
"""Added to a noise seed for the control."""
THIRDS = ("first", "middle", "last")
OWN, ANOTHER = "own states", "another layer's states"


@dataclass
class Options(StudyOptions):
    """Swap states between two prompts."""

    task: str = "circle"
    """The task: circle alone has two prompts on one scene."""
    cfg_scale: float | None = 3.0
    """Guidance scale. Over 1 there are two branches, and swapping one is not swapping both."""
    layers: str = "all"
    """Layers to swap: all, auto (5 of them), or a list such as 0,4,9."""
    map_steps: str = "auto"
    """Steps that are swapped alone: all, auto (5 of them), or a list such as 0-9."""
    orders: int = 3
    """Random orders of the layers for the control with another layer's states, drawn by --draw."""
    out: Path = Path("runs/layer_swap")


def main(options: Options) -> int:
    """Run all swaps on every scene, count flips, draw, save."""
    if not options.draws_scenes or options.task != "circle":
        raise TaskError(f"--task {options.source}: a swap needs two prompts on one scene; circle has them.")
    lens = options.load()
    measured = study(options, "layer_swap", lens, lambda part: measure(lens, part, options))
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, scenes: list[dl.Sample], options: Options) -> xr.Dataset:
    """Swap in every scene, layer after layer, and read who answers what."""
    both = {
        s.id: [dl.tasks.circle(int(s.id), kind=k).with_(**options.changes) for k in KINDS] for s in scenes
    }
    pairs = pairs_of(scenes, options)
    # Rows of one scene and seed: A, B, and both again under another noise seed.
    rows = [
        (one, seed + extra) for scene, seed in pairs for extra in (0, OTHER_SEED) for one in both[scene.id]
    ]
    batch = batch_of(lens, rows, options)
    layers = choose(options.layers, lens.layers, "layers")
    steps = choose(options.map_steps, batch.steps, "map-steps")
    orders = derangements(layers, options.orders, options.draw)
    parts = []
    for i, layer in enumerate(layers):
        swaps = swaps_of(layer, [order[i] for order in orders], steps, batch.steps)
        clean, ended = swap(batch, layer, swaps)
        parts.append(judge(batch, clean, ended, swaps))
    names = [name for name, _, _ in swaps]
    by_layer = ["flip", "kept", "own_change"]
    data = xr.concat(
        parts, xr.Variable("layer", layers), data_vars=by_layer, coords="minimal", compat="override"
    )
    return by_sample(table(data, names, steps, orders), pairs)


def derangements(layers: Sequence[int], count: int, seed: int) -> list[list[int]]:
    """Draw different orders of the layers in which no layer keeps its place: `count` of them, or all that exist."""
    rng, orders = np.random.default_rng(seed), []
    for _ in range(1000 * count if len(layers) > 1 else 0):
        order = rng.permutation(layers).tolist()
        if order not in orders and all(a != b for a, b in zip(order, layers, strict=True)):
            orders.append(order)
        if len(orders) == count:
            break
    return orders


def partner(row: int) -> int:
    """Return the row of the other prompt, same scene and seed."""
    return row ^ 1


Swap = tuple[str, Callable[[int], int], tuple[int, dict[str, Any]]]
"""Name of an arm, the row that a row's states come from, and from which layer and to which steps and branches."""


def swaps_of(layer: int, others: Sequence[int], map_steps: Sequence[int], steps: int) -> list[Swap]:
    """Return the arms of one layer; `others` are the layers of the control, one for each order."""
    thirds = zip(THIRDS, np.array_split(np.arange(steps), 3), strict=True)
    return [
        ("conditional branch", partner, (layer, {"branch": "cond"})),
        ("all branches", partner, (layer, {})),
        *(
            (f"{name} third of the steps", partner, (layer, {"step": third.tolist()}))
            for name, third in thirds
            if len(third)
        ),
        ("same prompt, other seed", lambda row: row + 2, (layer, {})),
        (OWN, lambda row: row, (layer, {})),
        *((ANOTHER, partner, (other, {})) for other in others),
        *(("one step", partner, (layer, {"step": step})) for step in map_steps),
    ]


def swap(batch: Batch, layer: int, swaps: Sequence[Swap]) -> tuple[Tensor, Tensor]:
    """Run the arms of one layer: return the latents of the clean rows, and of [arm, row]."""
    held: dict[tuple[str, int], Tensor] = {}

    def hold(_: int, clean: Stepped) -> None:
        held.update({(branch, n): value for (_, branch, n), value in clean.states.items()})

    def arm(source: Callable[[int], int], from_layer: int, where: dict[str, Any]) -> Arm:
        place = dl.at(layer=layer, **where)

        def edits(row: int) -> list[Placed]:
            def put(h: Tensor, at: dl.Spot) -> Tensor:
                return held[str(at.branch), from_layer][source(row)]

            return [Placed(put, place)] if row % 4 < 2 else []

        return edits

    watch = [("block", b, n) for b in batch.layout.branches for n in sorted({f for _, _, (f, _) in swaps})]
    arms = [arm(source, from_layer, where) for _, source, (from_layer, where) in swaps]
    return run_arms(batch, arms, watch, progress=f"swap layer {layer}", clean_first=hold)


def judge(batch: Batch, clean: Tensor, ended: Tensor, swaps: Sequence[Swap]) -> xr.Dataset:
    """Read the answers of the receivers: [pair, direction], and [arm, pair, direction] of the swaps."""
    receivers = [r for r in range(len(batch.pairs)) if r % 4 < 2]

    def solved(latents: Tensor) -> np.ndarray:
        """Return whether a video solves its own prompt, and the other one: [2, pair, direction]."""
        videos = {r: batch.decode(latents[r : r + 1])[0] for r in receivers}
        prompts = {r: batch.pairs[r][0] for r in receivers}
        hits = [[prompts[whose(r)].score(videos[r]).solved for r in receivers] for whose in (int, partner)]
        return np.reshape(hits, (2, -1, len(KINDS)))

    self_swapped = ended[[name for name, _, _ in swaps].index(OWN)]
    change = (self_swapped - clean).float().abs().amax((1, 2, 3, 4))[receivers].cpu().numpy()
    answers = np.array([solved(latents) for latents in ended])
    dims = ("pair", "direction")
    return xr.Dataset(
        {
            "right": (dims, solved(clean)[0]),
            "kept": (("arm", *dims), answers[:, 0]),
            "flip": (("arm", *dims), answers[:, 1]),
            "own_change": (dims, change.reshape(-1, len(KINDS))),
        }
    )


def table(data: xr.Dataset, names: list[str], steps: list[int], orders: list[list[int]]) -> xr.Dataset:
    """Sort outcomes [layer, arm, ...]: arms by name, another layer's by order, one step's by step."""
    arms = [n for n in names if n not in (ANOTHER, "one step")]
    parts = [data[["right", "own_change"]]]
    for dim, wanted, suffix in (
        ("arm", arms, ""),
        ("order", [ANOTHER], "_another_layer"),
        ("step", ["one step"], "_one_step"),
    ):
        chosen = data[["flip", "kept"]].isel(arm=[i for i, n in enumerate(names) if n in wanted])
        parts.append(
            chosen.rename({"arm": dim} if dim != "arm" else {}).rename({n: n + suffix for n in chosen})
        )
    text = np.dtypes.StringDType()
    directions = [f"{b} into {a}" for a, b in (KINDS, KINDS[::-1])]
    merged = xr.merge(parts, compat="override")
    if orders:
        merged["from_layer"] = (("order", "layer"), np.array(orders))
    return merged.assign_coords(
        direction=np.array(directions, text),
        arm=np.array(arms, text),
        step=steps,
        order=np.arange(len(orders)),
    )


def conclude(measured: Measured, options: Options) -> None:
    """Summarise over the scenes that are solved under both prompts; draw; save."""
    results = measured.results
    solved = results.right.all(("seed", "direction"))
    chosen = results.isel(sample=solved.values)
    summary = {
        "scenes": results.sizes["sample"],
        "solved under both prompts": int(solved.sum()),
        "seeds": results.sizes["seed"],
        "own states, largest change of a latent": float(results.own_change.max()),
        "orders of the layers in the control": results.sizes["order"],
    }
    if chosen.sizes["sample"] < 2:
        summary["no flip rates"] = (
            f"{int(solved.sum())} of {results.sizes['sample']} scenes are solved under both prompts, and an interval needs 2: "
            "take more --samples, or more --steps"
        )
        print(summary["no flip rates"])
        return write_summary(options, summary, measured.left_out)
    by_arm, one_step, more = rates(chosen)
    write_summary(options, summary | more, measured.left_out, by_arm.attrs)
    draw(by_arm, one_step, options)
    for line in headline(by_arm.sel(arm="all branches")[["mean", "low", "high"]]):
        print(f"layer {line['layer']}: flips {line['mean']:.2f} [{line['low']:.2f}, {line['high']:.2f}]")


def rates(chosen: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, dict[str, Any]]:
    """Return the flip rates by arm and layer, by layer and step, and all that goes into the summary."""
    flip, keep = (both_kinds(chosen, name).mean("direction") for name in ("flip", "kept"))
    by_arm = analysis.mean(flip, bounds=(0, 1), along=["arm", "layer"])
    by_direction = analysis.mean(chosen.flip.sel(arm="all branches", drop=True), along=["layer", "direction"])
    one_step = chosen.flip_one_step.astype(float).mean("direction")
    one_step = analysis.mean(one_step, bounds=(0, 1), along=["layer", "step"])
    summary: dict[str, Any] = {
        "flips": headline(by_arm),
        "flips by direction, all branches": headline(by_direction),
        "flips, one step": headline(one_step),
        "keeps its own answer": headline(analysis.mean(keep, bounds=(0, 1))),
    }
    if chosen.sizes["order"]:
        by_order = chosen.flip_another_layer.astype(float).mean("direction")
        summary["flips with another layer's states, by order"] = headline(
            analysis.mean(by_order, bounds=(0, 1))
        )
        summary["layers that the states came from, by order"] = chosen.from_layer.values.tolist()
    return by_arm, one_step, summary


def both_kinds(chosen: xr.Dataset, name: str) -> xr.DataArray:
    """Return outcomes by arm, another layer's states among them, as their mean over the orders."""
    plain = chosen[name].astype(float)
    if not chosen.sizes["order"]:
        return plain
    another = chosen[f"{name}_another_layer"].astype(float).mean("order")
    label = np.array([ANOTHER], np.dtypes.StringDType())
    return xr.concat([plain, another.expand_dims(arm=label).rename(name)], "arm")


def draw(by_arm: xr.Dataset, one_step: xr.Dataset, options: Options) -> None:
    """Draw flips by layer, by third of the steps, and the layer x step map."""
    n = by_arm.attrs["n_samples"]
    thirds = by_arm.arm.str.contains("third").values
    others = ~thirds & (by_arm.arm != OWN).values  # of one's own states the summary has the number: 0
    for name, part in (("by_layer", others), ("by_third", thirds)):
        title = f"Swapping a layer between two prompts · {n} scenes"
        figure = plot.curves(
            by_arm.isel(arm=part),
            "layer",
            value_label="flip rate",
            title=title,
            limits=(-0.03, 1.03),
            marks=True,
        )
        plot.save(figure, options.out / f"flips_{name}.png")
    title = f"Swapping one layer at one step · {n} scenes"
    figure = plot.heatmap(one_step["mean"], value_label="flip rate", title=title, limits=(0, 1))
    plot.save(figure, options.out / "flips_one_step.png")


if __name__ == "__main__":
    run_script(main, Options)
