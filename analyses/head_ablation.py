"""Which heads does an answer need? Heads of self-attention are taken away, one at a time and several together.

A head's output, before the projection of its attention, is replaced at all steps and on all branches by

- zero: nothing;
- token mean: the mean over its own tokens, so that it no longer tells them apart;
- another scene: what it holds in a clean run of another scene at the same step (scenes of a task alone);
- placebo, the control: a change as large as that to zero, token by token, in a random direction.

Primary: the graded score, zero minus placebo, in the `--best` most harmful heads. Harm is clean minus zero, and these heads are
chosen on every second sample and reported on the others: the worst of many heads looks bad by chance where it was chosen. Without
a scorer the outcome is how far the last latents move.

Then the chosen heads are taken away together, on the samples that did not choose them, beside their placebo and beside
`--random-sets` sets of as many other heads. How far another noise seed is from a run says what a distance means (`--seeds 2`).

    python analyses/head_ablation.py --task arrows --samples 32 --seeds 2 --layers auto --out runs/head_ablation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.errors import TaskError
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.halves import Chosen, choose_heads, measured_samples, report
from dit_lens.experiments.head_edits import (
    ANOTHER_SCENE,
    KINDS,
    PLACEBO,
    ZERO,
    arm_of,
    require_heads,
    run_heads,
)
from dit_lens.experiments.head_findings import CHOSEN, RANDOM, harm, of_outcome, of_sets
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, OUTCOMES, headline, unfold
from dit_lens.experiments.partners import partners
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, draw, pairs_of
from dit_lens.experiments.scratch import other_scene
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks.pairs import by_shape, label

OTHER_SEED = 1_000_003
"""Added to a noise seed for that of the other scene."""
Heads = Sequence[tuple[int, int]]
"""Layer and head of each."""


@dataclass
class Options(StudyOptions):
    """Take heads away, and see what the answer needs."""

    task: str = "arrows"
    """The task."""
    kinds: tuple[Literal["zero", "token mean", "another scene"], ...] = KINDS
    """What takes a head's place; zero and its placebo always do."""
    layers: str = "all"
    """Layers whose heads are taken away: all, auto (5 of them), or a list such as 0,4,9."""
    heads: str = "all"
    """Heads of each layer: all, or a list such as 0,3."""
    at_steps: str = "all"
    """Steps at which heads are edited: all, or a list such as 0-4."""
    best: int = 3
    """How many of the most harmful heads are chosen, and taken away together."""
    random_sets: int = 3
    """How many random sets of as many other heads are taken away, drawn by --draw."""
    out: Path = Path("runs/head_ablation")


def main(options: Options) -> int:
    """Take heads away one at a time, then the most harmful ones together; compare, draw, save."""
    if options.best < 1 or options.random_sets < 1:
        raise TaskError(f"--best {options.best} --random-sets {options.random_sets}: give 1 or more of each.")
    if len(set(options.kinds)) < len(options.kinds):
        raise TaskError(f"--kinds {' '.join(options.kinds)}: give each kind once.")
    lens = options.load()
    heads = heads_of(lens, options)
    if 2 * options.best > len(heads):
        raise TaskError(
            f"--best {options.best}: there are {len(heads)} heads, and as many others are taken away beside the chosen ones; "
            f"take {len(heads) // 2} at most."
        )
    drawn = draw(options, lens)
    measured = study(
        options,
        "head_ablation",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: cost(batch, heads, options),
        drawn=drawn,
    )
    chosen = choose_heads(harm(measured.results), options.best)
    together = None if chosen is None else take_together(lens, list(drawn), chosen, options)
    conclude(measured, chosen, together, options)
    return measured.exit_code


def heads_of(lens: dl.Lens, options: Options) -> Heads:
    """Return the heads that are taken away, by layer and head."""
    numbers = choose(options.heads, require_heads(lens), "heads")
    return [(layer, head) for layer in choose(options.layers, lens.layers, "layers") for head in numbers]


def kinds_of(options: Options) -> list[str]:
    """Return what takes a head's place, the placebo last."""
    asked = {ZERO, *options.kinds} - (set() if options.draws_scenes else {ANOTHER_SCENE})
    return [*(kind for kind in KINDS if kind in asked), PLACEBO]


def cost(batch: Batch, heads: Heads, options: Options) -> float:
    """Return how many whole runs there are of a pair: of single heads, a layer at a time, and of sets for half of the samples."""
    steps, layers = choose(options.at_steps, batch.steps, "at-steps"), {layer for layer, _ in heads}
    kinds = kinds_of(options)
    one = runs_of_arms(batch, [arm_of(ZERO, heads[:1], steps, 1)]) - 1
    clean = len(layers) * (1 + (ANOTHER_SCENE in kinds))
    return clean + one * len(heads) * len(kinds) + (1 + one * (2 + options.random_sets)) / 2


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair clean, and with every head taken away in every way, a layer at a time."""
    pairs = pairs_of(samples, options)
    batch, heads, kinds = batch_of(lens, pairs, options), heads_of(lens, options), kinds_of(options)
    count, held = require_heads(lens), dict[Any, Any]()
    steps = choose(options.at_steps, batch.steps, "at-steps")
    scenes = other_scenes(lens, samples, options) if ANOTHER_SCENE in kinds else None
    layers, numbers = (sorted({place[n] for place in heads}) for n in (0, 1))
    by_layer = []
    for layer in layers:
        arms = [arm_of(kind, [(layer, n)], steps, count, held) for kind in kinds for n in numbers]
        clean, ended = run_heads(batch, scenes, arms, held, [layer])
        judged = outcomes(batch, ended, clean).drop_vars("answer", errors="ignore")
        by_layer.append(unfold(judged, {"kind": kinds, "head": numbers}))
    alone = outcomes(batch, clean[None], clean).isel(arm=0).drop_vars("answer", errors="ignore")
    data = xr.concat(by_layer, xr.Variable("layer", layers))
    data = data.merge(alone.rename({str(name): f"clean_{name}" for name in alone}))
    apart = np.full(len(pairs), np.nan)
    for pair, other in partners(batch)["seed"].items():
        ends = [batch.generated(clean[n : n + 1]).float() for n in (pair, other)]
        apart[pair] = float((ends[0] - ends[1]).square().mean().sqrt())
    data["other_seed_distance"] = "pair", apart
    return by_sample(data, pairs)


def other_scenes(lens: dl.Lens, samples: Sequence[dl.Sample], options: Options) -> Batch:
    """Return another scene of every sample, with other noise, as pairs beside those of the samples."""
    others = {label(sample): other_scene(sample, options.task).with_(**options.changes) for sample in samples}
    pairs = [(others[label(sample)], seed + OTHER_SEED) for sample, seed in pairs_of(samples, options)]
    return batch_of(lens, pairs, options)


# ---- several heads together


def take_together(
    lens: dl.Lens, samples: Sequence[dl.Sample], chosen: Chosen, options: Options
) -> xr.Dataset:
    """Take the chosen heads away together on the samples that did not choose them, and random sets of as many others."""
    half = [sample for sample in samples if label(sample) in chosen.reported_on]
    sets = sets_of(heads_of(lens, options), chosen.heads, options)

    def make() -> xr.Dataset:
        parts = [
            same[i : i + options.block] for same in by_shape(half) for i in range(0, len(same), options.block)
        ]
        return xr.concat([measure_sets(lens, part, sets, options) for part in parts], "sample")

    return once(options, "sets", lens, half, make)


def sets_of(heads: Heads, chosen: Heads, options: Options) -> dict[str, Heads]:
    """Return the sets by name: the chosen heads, and random ones among the others, as many."""
    rng, others = np.random.default_rng(options.draw), [place for place in heads if place not in chosen]
    sets: dict[str, Heads] = {CHOSEN: chosen}
    for n in range(options.random_sets):
        picked = rng.choice(len(others), len(chosen), replace=False)
        sets[f"{RANDOM} {n + 1}"] = [others[i] for i in sorted(picked.tolist())]
    return sets


def measure_sets(
    lens: dl.Lens, samples: list[dl.Sample], sets: dict[str, Heads], options: Options
) -> xr.Dataset:
    """Run every pair with each set of heads at zero, and with the chosen ones' placebo, the last of the sets."""
    pairs = pairs_of(samples, options)
    batch, count = batch_of(lens, pairs, options), require_heads(lens)
    steps = choose(options.at_steps, batch.steps, "at-steps")
    arms = {name: arm_of(ZERO, heads, steps, count) for name, heads in sets.items()}
    arms[PLACEBO] = arm_of(PLACEBO, sets[CHOSEN], steps, count)
    clean, ended = run_heads(batch, None, list(arms.values()), {}, [])
    judged = outcomes(batch, ended, clean).drop_vars("answer", errors="ignore")
    return by_sample(unfold(judged, {"set": list(arms)}), pairs)


# ---- what comes of it


def conclude(
    measured: Measured, chosen: Chosen | None, together: xr.Dataset | None, options: Options
) -> None:
    """Say what the most harmful heads do beside their controls, one at a time and together; draw; save."""
    results = measured.results
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "heads": results.sizes["layer"] * results.sizes["head"],
        "kinds": results.kind.values.tolist(),
    }
    if "clean_solved" in results and not bool(results.clean_solved.any()):
        summary["note"] = "no clean run is solved: what can change is the score and the distance"
    if results.sizes["sample"] < 2:
        summary["not measured"] = "one sample has no interval"
        return write_summary(options, summary, measured.left_out)
    spread = measured_samples(results.other_seed_distance)
    names = [name for name in OUTCOMES if name in results]
    summary |= {
        **{
            f"{name}, clean": headline(
                analysis.mean(results[f"clean_{name}"].astype(float), bounds=BOUNDS[name])
            )
            for name in names
            if name != "distance"
        },
        "distance of another noise seed": headline(analysis.mean(spread, bounds=BOUNDS["distance"]))
        if spread.sizes["sample"] > 1
        else {"not measured": "give --seeds 2 or more"},
        "harm (clean minus zero)" if "score" in results else "harm (distance)": report(
            harm(results), chosen, (-1, 1) if "score" in results else BOUNDS["distance"]
        ),
        **{name: of_outcome(results, name, chosen) for name in names},
    }
    if together is not None:
        summary["together"] = {name: of_sets(results, together, name) for name in names}
    distance = analysis.mean(results.distance, bounds=BOUNDS["distance"])
    write_summary(options, summary, measured.left_out, distance.attrs)
    draw_heads(results, options)


def draw_heads(results: xr.Dataset, options: Options) -> None:
    """Draw what each head does, by layer and head: the score lost, and how far the latents move."""
    title = f"One head at a time · {options.source}"
    if "score" in results:
        clean = results.clean_score
        lost = analysis.effect(
            results.score.sel(kind=ZERO, drop=True), clean, bounds=(0, 1), along=["layer", "head"]
        )
        figure = plot.heatmap(
            lost.transpose("layer", "head"),
            value_label="score, zero minus clean",
            title=title,
            diverging=True,
        )
        plot.save(figure, options.out / "score_by_layer_and_head.png")
    moved = results.distance.mean(("sample", "seed")).transpose("kind", "layer", "head")
    figure = plot.heatmap(moved, value_label=OUTCOMES["distance"], title=title)
    plot.save(figure, options.out / "distance_by_layer_and_head.png")


if __name__ == "__main__":
    run_script(main, Options)
