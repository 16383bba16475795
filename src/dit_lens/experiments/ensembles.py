"""Ensembles of noise seeds: which layers are averaged, what a user could do with the runs instead, and videos for a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.experiments import benchmark, benchmark_table
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.study import Measured
from dit_lens.experiments.summary import write_summary

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch

SINGLE, MAJORITY, BEST = RIVALS = ("single run", "majority vote", "best of K (oracle)")
"""What a user could do with K runs: take one, let their answers vote, or know which is best."""


def ranges(text: str, layers: int) -> dict[str, str]:
    """Return the ranges of layers to average, by name.

    Args:
        text: first, middle or last (a third of the layers), each (all three thirds), or a list such as 3-6.
        layers: how many there are.
    """
    thirds = dict(zip(("first", "middle", "last"), np.array_split(np.arange(layers), 3), strict=True))
    spelt = {name: f"{part[0]}-{part[-1]}" for name, part in thirds.items() if len(part)}
    if text == "each":
        return {f"{name} third ({part})": part for name, part in spelt.items()}
    return {f"{text} third ({spelt[text]})": spelt[text]} if text in spelt else {text: text}


def rival(runs: xr.Dataset, name: str, k: int, how: str) -> np.ndarray:
    """Return what the first K runs of each sample come to, [sample].

    Args:
        runs: outcomes of runs that each went to its end, [sample, seed], with `answer`.
        name: of the outcome.
        k: how many runs take part.
        how: one of `RIVALS`. A single run is the mean over which of the K it is. A vote takes the run of the most frequent
            answer; of several, the one that came first.
    """
    values = runs[name].isel(seed=slice(0, k)).values.astype(float)
    if how == SINGLE:
        return values.mean(1)
    if how == BEST:
        return values.max(1)
    picked = []
    for answers, row in zip(runs.answer.isel(seed=slice(0, k)).values, values, strict=True):
        most = Counter(answers.tolist()).most_common(1)[0][0]
        picked.append(row[answers.tolist().index(most)])
    return np.array(picked)


def at_cost(clean: xr.DataArray, cost: xr.DataArray, seeds: int) -> xr.DataArray:
    """Return what clean runs come to, on average, at a cost between 1 and K.

    For a share of the samples, drawn by chance, K runs vote; for the others there is a single run.

    Args:
        clean: outcomes, [sample, rival].
        cost: in runs, [average, interval].
        seeds: of the runs that vote, K.
    """
    single, majority = (clean.sel(rival=how, drop=True) for how in (SINGLE, MAJORITY))
    return single + (cost - 1) / max(seeds - 1, 1) * (majority - single)


def write_videos(
    options: ScoredOptions, batch: Batch, arms: Mapping[str, Tensor], clean: Tensor
) -> xr.Dataset:
    """Write the video of each sample's first seed: alone, in every ensemble, and its first frame held.

    Args:
        options: of the script.
        batch: that decodes.
        arms: the last latents of each ensemble by its name, [pair, channel, frame, y, x].
        clean: those of the single runs, likewise.

    Returns:
        `distance` of the first seed's latents to the single run's [sample, ensemble]; `video` [sample, arm], as
        `conclude_videos` takes it.
    """
    import torch

    firsts = list(range(0, len(batch.pairs), options.seeds))
    written = {
        arm: benchmark.write_arm(options, arm, batch, latents, firsts)
        for arm, latents in {SINGLE: clean, **arms}.items()
    }
    judged_pairs = [batch.pairs[pair] for pair in firsts]
    written[benchmark.FLOOR] = benchmark.write_floor(options, judged_pairs, batch.rates)
    judged = outcomes(batch, torch.stack(list(arms.values())), clean)
    out = by_sample(judged[["distance"]], batch.pairs).isel(seed=0, drop=True).rename(arm="ensemble")
    out = out.assign_coords(ensemble=np.array(list(arms), np.dtypes.StringDType()))
    out["video"] = benchmark.videos_of(judged_pairs, written)
    return out.transpose("sample", ...)


def conclude_videos(measured: Measured, options: ScoredOptions, more: Mapping[str, Any]) -> int:
    """Let the official evaluator judge every arm; write the paired table, draw, save.

    Args:
        measured: what `write_videos` returned, of all blocks.
        options: of the script.
        more: what else the summary says.

    Returns:
        The exit code: 1 where a sample was left out, or a video has no score.
    """
    results = measured.results
    report = benchmark_table.conclude(options, results.video, SINGLE)
    moved = analysis.mean(results.distance, bounds=BOUNDS["distance"])
    summary = {
        "samples": results.sizes["sample"],
        **more,
        **report.summary,
        "distance of the latents to the single run's": headline(moved),
    }
    write_summary(options, summary, measured.left_out, moved.attrs)
    return max(measured.exit_code, report.exit_code)


__all__ = [
    "BEST",
    "MAJORITY",
    "RIVALS",
    "SINGLE",
    "at_cost",
    "conclude_videos",
    "ranges",
    "rival",
    "write_videos",
]
