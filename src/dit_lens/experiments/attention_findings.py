"""What the study of attention maps comes to, as plain data: words, frames, matches between frames, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.frame_shares import SHARES, frame_shares
from dit_lens.experiments.halves import beside, choose_heads, measured_samples, report
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.prompted import EVERYWHERE, ON_IT, REGIONS, WORDS

WORD, OTHER_WORDS = WORDS[:2]


def more_than_other_words(results: xr.Dataset) -> xr.DataArray:
    """Return the AUC of the object's word on it, minus that of the other words, [sample, seed, layer, head], mean over steps."""
    on_it = results.word_auc.sel(region=ON_IT, drop=True).mean("step")
    return on_it.sel(word=WORD, drop=True) - on_it.sel(word=OTHER_WORDS, drop=True)


def of_words(results: xr.Dataset, best: int) -> dict[str, Any]:
    """Say how much each group of words gets, and which heads find the object that a word names."""
    everywhere = results.word_mass.sel(region=EVERYWHERE, drop=True)
    if everywhere.isnull().all():
        return {
            "not measured": "which tokens the words of the prompt become, or the attention to them, is not known"
        }
    values = measured_samples(more_than_other_words(results))
    chosen = choose_heads(values, best)
    lift = (results.word_mass / everywhere.where(everywhere > 0)).mean("step")
    auc = results.word_auc.mean("step")

    def lines(of: xr.DataArray, regions: Sequence[str]) -> dict[str, xr.DataArray]:
        return {
            f"{word}, {region}": of.sel(word=word, region=region, drop=True)
            for word in WORDS
            for region in regions
        }

    return {
        "share of attention": headline(
            analysis.mean(everywhere.mean(("step", "layer", "head")), bounds=(0, 1))
        ),
        "AUC on the object, its word minus other words": report(values, chosen, (-1, 1)),
        "AUC in the chosen heads": beside(chosen, lines(auc, REGIONS[1:]), (0, 1)),
        "lift in the chosen heads": beside(chosen, lines(lift, (ON_IT,)), BOUNDS["distance"]),
    }


def even_spread(results: xr.Dataset) -> xr.Dataset:
    """Return the shares of attention that is spread evenly over the frames."""
    count = results.sizes["frame"]
    return frame_shares(xr.DataArray(np.full((count, count), 1 / count), dims=("frame", "key_frame")))


def of_frames(results: xr.Dataset) -> dict[str, Any]:
    """Say which shares of attention stay in a frame, go back and go ahead, by layer, beside an even spread."""
    even, out = even_spread(results), {}
    for share in SHARES:
        bounds = (0.0, 1.0) if share != "distance" else (0.0, results.sizes["frame"] - 1.0)
        values = results.frame_share.sel(share=share, drop=True).mean(("step", "head"))
        out[share] = {
            "even spread": float(even[share]),
            "all layers": headline(analysis.mean(values.mean("layer"), bounds=bounds)),
            "by layer": headline(analysis.mean(values, bounds=bounds, along="layer")),
        }
    future = float(results.frame_share.sel(share="future").max())
    return {**out, "largest future share of any head, layer and step": future}


def rates(results: xr.Dataset, name: str, which: str, apart: int | None = None) -> xr.DataArray:
    """Return how many of the pairs of places and frames are hits, [sample, seed, ...], of the runs that follow the tracks.

    Args:
        results: of the study.
        name: `hits` of the model, or those of `same_place` or `chance`.
        which: pairs are counted.
        apart: distance in frames. Default: all together.
    """
    both = results[[name, "points"]].sel(which=which, drop=True)
    both = both.sum("apart") if apart is None else both.sel(apart=apart, drop=True)
    hits = both[name].mean("step") if "step" in both[name].dims else both[name]
    return (hits / both.points.where(both.points > 0)).where(results.follows)


def of_matches(results: xr.Dataset, best: int, radius: float) -> dict[str, Any]:
    """Say which heads follow moving objects from frame to frame, beside chance and the place that does not move."""
    count = {"runs": results.follows.size, "runs that follow the tracks": int(results.follows.sum())}
    over_chance = rates(results, "hits", "moved") - rates(results, "chance", "moved")
    values = measured_samples(over_chance)
    if values.sizes["sample"] < 2:
        reason = f"{values.sizes['sample']} samples in which an object moves by over {radius} tokens and a run follows it"
        return {**count, "not measured": f"{reason}; an interval needs 2"}
    chosen = choose_heads(values, best)
    lines = {
        "all pairs, minus the same place": rates(results, "hits", "all")
        - rates(results, "same_place", "all"),
    }
    lines |= {
        f"moved objects, {apart} frames apart, minus chance": rates(results, "hits", "moved", apart)
        - rates(results, "chance", "moved", apart)
        for apart in results.apart.values.tolist()
    }
    return {
        **count,
        "radius in tokens": radius,
        "PCK by chance, moved objects": float(rates(results, "chance", "moved").mean()),
        "PCK of the same place, all pairs": float(rates(results, "same_place", "all").mean()),
        "PCK of the chosen heads, moved objects": beside(
            chosen, {"model": rates(results, "hits", "moved")}, (0, 1)
        ),
        "PCK of moved objects, minus chance": report(values, chosen, (-1, 1)),
        "PCK in the chosen heads, differences": beside(chosen, lines, (-1, 1)),
    }


def of_separation(results: xr.Dataset, best: int) -> dict[str, Any]:
    """Say which heads' outputs tell frames apart, beside tokens that are drawn alike in all frames."""
    frame, y, x = results.grid.values.reshape(-1, 3)[0].tolist()
    values = measured_samples(results.separation.mean("step"))
    return {
        "tokens drawn alike in all frames": (frame - 1) / (frame * y * x - 1),
        "variance between frames over total": report(values, choose_heads(values, best), (0, 1)),
    }


__all__ = ["more_than_other_words", "of_frames", "of_matches", "of_separation", "of_words", "rates"]
