"""Are the states of a layer alike from step to step, and do the steps fall into blocks?

In clean runs the states of one layer at every two steps are compared by debiased linear CKA: a matrix of steps, for each layer.
Two readings of it, each with an interval over samples:

- the similarity of neighbouring steps;
- the block score of every border: how much more alike steps on one side of it are than steps across, beyond what the distance
  of their noise levels makes (`dit_lens.analysis.block_score`). It is 0 of noise, and nearly 0 of a steady drift. Which border is
  highest is found by `analysis.peak`, with an interval that spans all borders where none stands out. Of a model with two experts
  the border between them is known beforehand: its score minus that of the borders beside it, which a drift has too, is the
  primary outcome, and the figures mark the border.

References: the states at the same step of another seed, and of another scene. Where two steps of one run are less alike than
two runs are, a step matters more than the noise, or than the scene.

Memory. The states of all steps are held until a run has ended, by the tokens of --cka-tokens alone: pairs x layers x steps x
tokens x channels, and of the first seed of each sample a second draw of one layer's tokens, for the error by their draw; the
whole states of one step; and while a layer is compared steps x tokens^2 in float64. At 14B with 50 steps, 2,048 tokens, 5 layers,
bfloat16, --block 1 and --seeds 1 that is 6.3, 1.7 and 1.7 GB. These are sums of sizes, not a measured run. What is over --memory
is refused before the first block; of samples of several shapes the one that takes most counts.

    python analyses/cross_step_similarity.py --model organism-two-expert --task maze --out runs/cross_step_similarity
    ... --pipe-arg switch_DiT_boundary=0.9    # does the border follow the change of experts?
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.cka_sampled import kernel_cka, kernel_matrix, unit_kernel
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.compared_tokens import (
    counted,
    error_of_tokens,
    firsts,
    refuse_few_tokens,
    tokens_of,
    told_of_tokens,
)
from dit_lens.experiments.cost import spoken_bytes
from dit_lens.experiments.crossings import place_of
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.partners import partners, told_missing
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, draw, pairs_of, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks.pairs import by_shape, label

LEAST = 4
"""Steps that are compared, at least: a border has two on either side."""


@dataclass
class Options(StudyOptions):
    """Compare the states of every two steps."""

    cka_layers: str = "auto"
    """Layers whose states are compared: all, auto (5 of them), or a list such as 0,4,9."""
    cka_steps: str = "all"
    """Steps that are compared: all, auto (10 of them), or a list such as 0-4,19."""
    cka_tokens: int = 2048
    """Tokens of a state that are compared, at most: drawn by --draw, the same ones everywhere."""
    memory: float = 12.0
    """GB that the states of a block and the kernels of a layer may take; what takes more is refused."""
    out: Path = Path("runs/cross_step_similarity")

    AROUND: ClassVar[tuple[str, ...]] = ("memory",)


def main(options: Options) -> int:
    """Check the memory, run, compare, draw, save."""
    refuse_few_tokens(options.cka_tokens)
    lens = options.load()
    layers_and_steps(lens, steps_of(options, lens), options)
    require_room(lens, options)
    measured = study(
        options,
        "cross_step_similarity",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: 1.0,
    )
    conclude(measured, options)
    return measured.exit_code


def require_room(lens: dl.Lens, options: Options) -> None:
    """Refuse blocks that take more memory than there is to be, of whatever shape.

    Raises:
        TaskError: a block of one shape does.
    """
    blocks = [same[: options.block] for same in by_shape(list(draw(options, lens)))]
    most = max(
        (int(once(options, "room", lens, part, lambda part=part: room_of(lens, part, options)).bytes), n)
        for n, part in enumerate(blocks)
    )
    if most[0] > options.memory * 1e9:
        sample = blocks[most[1]][0]
        raise TaskError(
            f"The states of a block and the kernels of a layer take {spoken_bytes(most[0])}, of samples as {label(sample)}, and "
            f"--memory is {options.memory:g} GB: raise it, or take a smaller --block, or fewer --cka-tokens, --cka-layers, "
            "--cka-steps."
        )


def room_of(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Return how many bytes a block takes at most, by the state of one row at one step."""
    batch = batch_of(lens, pairs_of(samples, options), options)
    layers, steps, tokens = chosen(lens, batch, options)
    place = ("block", batch.layout.branches[0], layers[0])
    state = batch.step(0, batch.noise[:1], rows=[0], watch=[place]).states[place]
    rows = len(batch.pairs) * len(layers) + len(firsts(batch))  # with their second draw of one layer's tokens
    held = rows * len(steps) * len(tokens) * state.shape[-1] * state.element_size()
    now = len(batch.pairs) * len(layers) * state.nbytes
    return xr.Dataset({"bytes": held + now + 8 * (len(steps) + 2) * len(tokens) ** 2})


def chosen(lens: dl.Lens, batch: Batch, options: Options) -> tuple[list[int], list[int], list[int]]:
    """Return the layers, the steps and the tokens that are compared."""
    tokens = tokens_of(batch, options.cka_tokens, options.draw)
    return *layers_and_steps(lens, batch.steps, options), tokens


def layers_and_steps(lens: dl.Lens, count: int, options: Options) -> tuple[list[int], list[int]]:
    """Return the layers and the steps that are compared, of runs of so many steps.

    Raises:
        TaskError: fewer than 4 steps.
        PlanError: there is no such layer or step.
    """
    layers = choose(options.cka_layers, lens.layers, "cka-layers")
    steps = choose(options.cka_steps, count, "cka-steps", auto=10)
    if len(steps) < LEAST:
        raise TaskError(
            f"{count} steps, --cka-steps {options.cka_steps}: {LEAST} steps are compared at least; raise --steps."
        )
    return layers, steps


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair, and compare its states of every two steps, and with those of other runs."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    layers, steps, tokens = chosen(lens, batch, options)
    watch = [("block", batch.layout.branches[0], layer) for layer in layers]
    others = tokens_of(batch, options.cka_tokens, options.draw + 1)
    held: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    redrawn: dict[int, list[Tensor]] = {pair: [] for pair in firsts(batch) if others != tokens}
    for step, _, now in clean_steps(batch, watch):
        for place in watch if step in steps else ():
            for pair, state in enumerate(now.states[place]):
                held[place[2], pair].append(state.flatten(0, -2)[tokens])
        for pair, states in redrawn.items() if step in steps else ():
            states.append(now.states[watch[len(watch) // 2]][pair].flatten(0, -2)[others])
    data = compare(batch, held, layers)
    again = np.full_like(data["similar"][1][:, 0], np.nan)
    for pair, states in redrawn.items():
        again[pair] = kernel_matrix(states, list(range(len(others))))
    data["similar_again"] = ("pair", "step", "other_step"), again
    data["tokens"] = counted(batch, tokens)
    text = np.dtypes.StringDType()
    coords = {
        "layer": layers,
        "step": steps,
        "other_step": steps,
        "sigma": ("step", [batch.sigmas[s] for s in steps]),
        "expert": ("step", np.array([batch.expert(s) for s in steps], text)),
    }
    return by_sample(xr.Dataset(data, coords), pairs)


def compare(batch: Batch, held: dict[tuple[int, int], list[Tensor]], layers: list[int]) -> dict[str, Any]:
    """Return the similarity of every two steps, and of two runs at each step, by pair.

    Args:
        batch: the pairs.
        held: states [token, channel] of all steps, by layer and pair.
        layers: whose states these are.
    """
    pairs, steps, every = len(batch.pairs), len(held[layers[0], 0]), list(range(len(held[layers[0], 0][0])))
    similar = np.zeros((pairs, len(layers), steps, steps), np.float32)
    apart = {name: np.full((pairs, len(layers), steps), np.nan, np.float32) for name in ("seed", "sample")}
    for j, layer in enumerate(layers):
        for pair in range(pairs):
            similar[pair, j] = kernel_matrix(held[layer, pair], every)
        for name, others in partners(batch).items():
            for pair, other in others.items():
                both = zip(held[layer, pair], held[layer, other], strict=True)
                apart[name][pair, j] = [
                    kernel_cka(unit_kernel(x, every), unit_kernel(y, every)) for x, y in both
                ]
    matrix = "pair", "layer", "step", "other_step"
    alone = {f"similar_{name}": (matrix[:-1], values) for name, values in apart.items()}
    return {"similar": (matrix, similar), **alone}


# ---- what it comes to


def conclude(measured: Measured, options: Options) -> None:
    """Summarise neighbouring steps, blocks and references; draw; save."""
    results = measured.results
    near = neighbours(results)
    by_layer = analysis.mean(near.mean("step"), along="layer")
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "tokens of a state": told_of_tokens(results.tokens),
        "error of a similarity by the tokens drawn": error_of_tokens(*drawn_twice(results)),
        "similarity of neighbouring steps": headline(analysis.mean(near.mean(("step", "layer")))),
        "similarity of neighbouring steps, by layer": headline(by_layer),
        **of_blocks(results, options),
        **of_references(results, near),
    }
    write_summary(options, summary, measured.left_out, by_layer.attrs)
    figure = plot.heatmap(
        results.similar.mean(("sample", "seed")),
        value_label="CKA of the states",
        title=f"States of two steps, by layer · {options.source}, {results.sizes['sample']} samples",
        borders=changes(results),
    )
    plot.save(figure, options.out / "similarity.png")
    lines = {"the next step": 1 - near.mean("layer")}
    lines |= {f"another {name}": 1 - v.isel(step=slice(-1)) for name, v in references(results).items()}
    means = [
        analysis.mean(v.rename("dissimilarity").clip(min=0), along="step", bounds=BOUNDS["distance"])
        for v in lines.values()
    ]
    both = xr.concat(
        means,
        xr.Variable("run", list(lines)),
        combine_attrs="drop_conflicts",
        coords="minimal",
        compat="override",
    )
    figure = plot.curves(
        both.assign_attrs(n_samples=min(v.sizes["sample"] for v in lines.values())),
        "step",
        value_label="1 − CKA, mean over layers",
        title=f"How far the states move in a step · {options.source}",
    )
    plot.save(figure, options.out / "to_the_next_step.png")


def neighbours(results: xr.Dataset) -> xr.DataArray:
    """Return the similarity of each step and the next that was compared, [sample, seed, layer, step]."""
    first = xr.DataArray(np.arange(results.sizes["step"] - 1), dims="step")
    found = results.similar.isel(step=first, other_step=first + 1)
    return found.drop_vars("other_step").transpose("sample", "seed", "layer", "step")


def drawn_twice(results: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the similarity of two steps in the middle layer, of one draw of tokens and of another."""
    middle = results.similar.isel(layer=results.sizes["layer"] // 2, drop=True)
    return middle.where(results.step != results.other_step), results.similar_again


def changes(results: xr.Dataset) -> list[int]:
    """Return the numbers of the compared steps that another expert serves than the step before."""
    experts = results.expert.values.tolist()
    return [n for n in range(1, len(experts)) if experts[n] != experts[n - 1]]


def of_blocks(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Return the block score of every border, the highest, and that of the change of experts; draw it."""
    score = analysis.block_score(results.similar, position="sigma")
    score = score.assign_coords(sigma=("border", results.sigma.sel(step=score.border.values).values))
    score.border.attrs["long_name"] = "first step after the border"
    mean = score.mean("layer")
    curve = analysis.mean(mean, along="border")
    out: dict[str, Any] = {"block score, by border": headline(curve)}
    if mean.sizes["border"] > 1:
        top = analysis.peak(mean, "border")
        out["block score is highest at border"] = place_of(top, mean)
    steps = [int(results.step[n]) for n in changes(results)]
    out["change of experts, first step after"] = steps
    if len(steps) == 1 and steps[0] in score.border.values:
        out |= of_experts(score, int(score.border.values.tolist().index(steps[0])))
    figure = plot.curves(
        analysis.mean(score, along=("layer", "border")),
        "border",
        value_label="block score (CKA beyond that of the distance in σ)",
        title=f"Borders between kinds of steps · {options.source}",
    )
    plot.save(figure, options.out / "block_score.png")
    return out


def of_experts(score: xr.DataArray, number: int) -> dict[str, Any]:
    """Return the block score of the border between two experts, and by how much it is over the mean of the borders beside it."""
    known = score.isel(border=number, drop=True)
    out = {
        "block score of the change of experts": headline(analysis.mean(known.mean("layer"))),
        "block score of the change of experts, by layer": headline(analysis.mean(known, along="layer")),
    }
    if 0 < number < score.sizes["border"] - 1:
        beside = score.isel(border=[number - 1, number + 1]).mean("border")
        over = partial(analysis.effect, known.mean("layer"), beside.mean("layer"))
        out["block score of the change of experts, minus the borders beside it"] = primary_outcome(over)
    return out


def references(results: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the similarity of two runs at the same step, [sample, seed, step]: of one sample, of two samples.

    A sample that has no other beside it in its block is left out; of fewer than 2 samples there is no reference.
    """
    found = {name: results[f"similar_{name}"].mean("layer").dropna("sample") for name in ("seed", "sample")}
    return {name: values for name, values in found.items() if values.sizes["sample"] > 1}


def of_references(results: xr.Dataset, near: xr.DataArray) -> dict[str, Any]:
    """Return how alike two runs are at the same step, and neighbouring steps beside that."""
    out: dict[str, Any] = {}
    beside = references(results)
    for name, values in beside.items():
        what = f"two runs at one step, another {name}"
        alike = values.mean("step")
        out[f"similarity of {what}"] = headline(analysis.mean(alike))
        out[f"similarity of {what}, samples"] = alike.sizes["sample"]
        own = near.mean(("step", "layer")).sel(sample=alike.sample)
        over = partial(analysis.effect, own, alike)
        out[f"neighbouring steps minus {what}"] = (
            primary_outcome(over) if name == "seed" else headline(over())
        )
    return out | told_missing(beside)


if __name__ == "__main__":
    run_script(main, Options)
