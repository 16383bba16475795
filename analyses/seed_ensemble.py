"""Does averaging states over noise seeds help? The paper's training-free ensemble, beside fair rivals.

K runs of one sample, each from its own noise; at chosen steps (the first, by default) the states after each
layer of a range are replaced by their mean over the K runs, then all go on (arXiv 2603.16870). Beside it, what a
user could do with the same K runs: take one of them (their mean score), keep the best one (an oracle), or let
the K answers vote.

Since a state after a block is all that the next blocks see, K runs that were averaged after the first layer of
a range hold the same state from there on: averaging a whole range equals averaging at its first layer.

    python analyses/seed_ensemble.py --task maze --samples 64 --out runs/seed_ensemble
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.samples import pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed

RIVALS = ("single run", "majority vote", "best of K (oracle)")


@dataclass
class Options(StudyOptions):
    """Average states over seeds."""

    seeds: int = 0
    """Noise seeds of each sample: 0 takes as many as the largest of --ks. Any other number is refused."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Sizes of the ensemble. One of size K takes the first K seeds of a sample."""
    layers: str = "middle"
    """Layers that are averaged: first, middle or last (a third of them), each (all three thirds), or a list such as 3-6."""
    at_steps: str = "0"
    """Steps at which they are averaged, such as 0 or 0-4."""
    out: Path = Path("runs/seed_ensemble")


def main(options: Options) -> int:
    """Run ensembles of every size, compare, draw, save."""
    if min(options.ks) < 1:
        raise TaskError(f"--ks {options.ks}: an ensemble has at least one run.")
    if options.seeds not in (0, max(options.ks)):
        raise TaskError(
            f"--seeds {options.seeds}: the largest of --ks {options.ks} takes {max(options.ks)} seeds a sample; "
            "leave --seeds out, or change --ks."
        )
    options = replace(options, seeds=max(options.ks))
    lens = options.load()
    measured = study(options, "seed_ensemble", lens, lambda part: measure(lens, part, options))
    conclude(measured, options)
    return measured.exit_code


def ranges(text: str, layers: int) -> dict[str, str]:
    """Return the ranges of layers to average, by name."""
    thirds = dict(zip(("first", "middle", "last"), np.array_split(np.arange(layers), 3), strict=True))
    spelt = {name: f"{part[0]}-{part[-1]}" for name, part in thirds.items() if len(part)}
    if text == "each":
        return {f"{name} third ({part})": part for name, part in spelt.items()}
    return {f"{text} third ({spelt[text]})": spelt[text]} if text in spelt else {text: text}


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the ensembles, and judge what came out, and the single runs."""
    pairs = pairs_of(samples, options)
    batch = lens.batch(pairs, options.steps, options.cfg_scale, options.at_once)
    chosen = ranges(options.layers, lens.layers)
    edits = [
        Placed(dl.mean_over_seeds(), dl.at(layer=text, step=options.at_steps)) for text in chosen.values()
    ]
    arms = [
        lambda pair, k=k, edit=edit: [edit] if pair % options.seeds < k else []
        for edit in edits
        for k in options.ks
    ]
    clean, ended = run_arms(batch, arms, progress="ensembles")
    alone = by_sample(outcomes(batch, clean[None], clean).isel(arm=0), pairs)
    if "answer" not in alone:
        raise TaskError("An ensemble is judged by a scorer: the samples of this task have none.")
    judged = by_sample(outcomes(batch, ended, clean), pairs)
    labels = (("layers", list(chosen)), ("k", list(options.ks)))
    out = {}
    for name in ("solved", "score"):
        # Of an ensemble of K, the first K seeds took part.
        parts = [
            judged[name].isel(arm=i, seed=slice(0, k)).mean("seed")
            for i, k in enumerate(list(options.ks) * len(chosen))
        ]
        values = xr.concat(parts, "arm").values.reshape(len(chosen), len(options.ks), len(samples))
        out[name] = ((*(label for label, _ in labels), "sample"), values)
        rivals = np.array([[rival(alone, name, k, how) for k in options.ks] for how in RIVALS])
        out[f"rival_{name}"] = (("rival", "k", "sample"), rivals)
    text = np.dtypes.StringDType()
    coords = {"layers": np.array(list(chosen), text), "k": list(options.ks), "rival": np.array(RIVALS, text)}
    return xr.Dataset(out, {**coords, "sample": alone.sample}).transpose("sample", ...)


def rival(alone: xr.Dataset, name: str, k: int, how: str) -> np.ndarray:
    """Return what the first K single runs come to, [sample]."""
    values = alone[name].isel(seed=slice(0, k)).values.astype(float)
    if how == "single run":
        return values.mean(1)
    if how == "best of K (oracle)":
        return values.max(1)
    picked = []
    for answers, row in zip(alone.answer.isel(seed=slice(0, k)).values, values, strict=True):
        # The most frequent answer; of several, the one that came first.
        most = Counter(answers.tolist()).most_common(1)[0][0]
        picked.append(row[answers.tolist().index(most)])
    return np.array(picked)


def conclude(measured: Measured, options: Options) -> None:
    """Compare the ensemble with every rival, paired; draw; save."""
    results = measured.results
    summary = {"samples": results.sizes["sample"], "steps averaged": options.at_steps}
    for name in ("solved", "score"):
        summary[f"ensemble, {name}"] = headline(analysis.mean(results[name], bounds=(0, 1)))
        summary[f"rivals, {name}"] = headline(analysis.mean(results[f"rival_{name}"], bounds=(0, 1)))
        for how in RIVALS:
            other = results[f"rival_{name}"].sel(rival=how, drop=True)
            difference = analysis.effect(results[name], other, bounds=(0, 1), along=["layers", "k"])
            summary[f"ensemble minus {how}, {name}"] = headline(difference)
    write_summary(options, summary, measured.left_out, difference.attrs)
    ours = results.solved.assign_coords(layers=[f"ensemble, {n}" for n in results.layers.values]).rename(
        layers="arm"
    )
    both = xr.concat([ours, results.rival_solved.rename(rival="arm").rename("solved")], "arm")
    title = f"Averaging states over K seeds at step {options.at_steps} · {options.source}"
    figure = plot.curves(
        analysis.mean(both, bounds=(0, 1)), "k", value_label="solved (share)", title=title, marks=True
    )
    plot.save(figure, options.out / "solved_by_k.png")


if __name__ == "__main__":
    run_script(main, Options)
