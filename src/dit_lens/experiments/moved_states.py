"""How far noise after a step moves latents and states, beside how far runs are apart by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.cka_sampled import kernel_cka, unit_kernel
from dit_lens.engine.batch import Batch
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Now
from dit_lens.experiments.compared_tokens import (
    counted,
    error_of_tokens,
    firsts,
    tokens_of,
    told_of_tokens,
)
from dit_lens.experiments.crossings import place_of
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.partners import partners, told_missing


class MovedStates:
    """How far noise after a step moves latents and states, beside how far runs are apart by themselves.

    Args:
        batch: the pairs.
        layers: whose states are compared.
        after: number of arms with noise after a step, which come first.
        tokens: of a state that are compared, at most.
        draw: seed of the draw of tokens.
    """

    def __init__(self, batch: Batch, layers: Sequence[int], after: int, tokens: int, draw: int) -> None:
        self.batch, self.layers, self.arms = batch, layers, after
        self.watch = [("block", batch.layout.branches[0], layer) for layer in layers]
        self.tokens = tokens_of(batch, tokens, draw) if layers else []
        self.others = tokens_of(batch, tokens, draw + 1) if layers else []
        self.firsts = firsts(batch) if self.tokens != self.others else []
        pairs, shape = len(batch.pairs), (batch.steps, len(layers))
        self.latents = np.zeros((pairs, after), np.float32)
        self.states = np.full((pairs, after, *shape), np.nan, np.float32)
        self.again = np.full((pairs, after, *shape), np.nan, np.float32)
        self.partners = partners(batch)
        self.apart = {name: np.full((pairs, *shape), np.nan, np.float32) for name in ("seed", "sample")}

    def look(self, now: Now) -> None:
        """Compare the edited rows of a forward with their clean ones."""
        rows = [(i, arm, pair) for i, (arm, pair) in enumerate(now.rows) if arm < self.arms]
        sigma = self.batch.sigmas[now.step]
        for i, arm, pair in rows:
            if arm + 1 == now.step:  # what the step starts from is x0 + sigma v
                starts = [x.x0[n] + sigma * x.velocity[n] for x, n in ((now.clean, pair), (now.edited, i))]
                off = self.batch.generated(starts[1] - starts[0])
                self.latents[pair, arm] = float(off.float().square().mean().sqrt())
        for j, place in enumerate(self.watch):
            for pair in {pair for _, _, pair in rows}:
                draws = [(self.states, self.tokens)]
                if pair in self.firsts:
                    draws.append((self.again, self.others))
                for values, tokens in draws:
                    clean = unit_kernel(now.clean.states[place][pair], tokens)
                    for i, arm, _ in (row for row in rows if row[2] == pair):
                        edited = unit_kernel(now.edited.states[place][i], tokens)
                        values[pair, arm, now.step, j] = 1 - kernel_cka(clean, edited)

    def compare_clean(self, step: int, clean: Stepped) -> None:
        """Compare each clean run with another seed of its sample, and with another sample, where the batch has one."""
        for j, place in enumerate(self.watch):
            kernels = [unit_kernel(state, self.tokens) for state in clean.states[place]]
            for name, others in self.partners.items():
                for pair, other in others.items():
                    self.apart[name][pair, step, j] = 1 - kernel_cka(kernels[pair], kernels[other])

    def dataset(self) -> xr.Dataset:
        """Return what was measured, by pair."""
        steps, curve = ("step", "layer"), ("pair", "after_step", "step", "layer")
        return xr.Dataset(
            {
                "moved": (("pair", "after_step"), self.latents),
                "dissimilarity": (curve, self.states),
                "dissimilarity_again": (curve, self.again),
                **{f"dissimilarity_{n}": (("pair", *steps), values) for n, values in self.apart.items()},
                "tokens": counted(self.batch, self.tokens),
            },
            {
                "step": np.arange(self.batch.steps),
                "layer": np.array(self.layers, int),
            },
        )


def of_states(results: xr.Dataset) -> dict[str, Any]:
    """Say after which step noise moves the states most, beside how far runs are apart by themselves.

    The sensitivity at a step is the mean dissimilarity over all later steps and the layers that were compared.
    """
    if not results.sizes["layer"]:
        return {}
    inner = ("step", "layer")
    sensitivity = results.dissimilarity.mean(inner).clip(min=0)  # 1 - 1 may round to below 0
    curve = analysis.mean(sensitivity, along="after_step", bounds=BOUNDS["distance"])
    found: dict[str, Any] = {"sensitivity of the states": headline(curve)}
    if sensitivity.sizes["after_step"] > 1:
        top = analysis.peak(sensitivity, "after_step")
        found["sensitivity peaks after step"] = place_of(top, sensitivity)
    beside = references(results)
    for name, values in beside.items():
        found[f"dissimilarity of two runs, another {name}"] = headline(
            analysis.mean(values, bounds=BOUNDS["distance"])
        )
        found[f"dissimilarity of two runs, another {name}, samples"] = values.sizes["sample"]
    found |= told_missing(beside)
    found["tokens of a state"] = told_of_tokens(results.tokens)
    error = error_of_tokens(results.dissimilarity, results.dissimilarity_again)
    found["error of a dissimilarity by the tokens drawn"] = error
    return found


def references(results: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return how far apart two runs are over the steps after each, [sample, seed, after_step]: of a sample, of two samples.

    A sample that has no other beside it in its block is left out.
    """
    out = {}
    for name in ("seed", "sample"):
        values = results[f"dissimilarity_{name}"].mean("layer")
        later = values.where(results.step > results.after_step).mean("step").dropna("sample").clip(min=0)
        if later.sizes["sample"] > 1:
            out[name] = later
    return out


__all__ = ["MovedStates", "of_states", "references"]
