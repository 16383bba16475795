"""What comes of a run: the scorer's words and a distance, as tables by arm, sample and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from dit_lens.errors import PlanError
from dit_lens.tasks.pairs import Pair, label, numbers

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch

ABOUT = {
    "solved": {"long_name": "whether the video holds the right answer"},
    "score": {"long_name": "how near the answer is to the right one, 1 where solved", "units": "1"},
    "answer": {"long_name": "the answer that the scorer read off the video"},
    "distance": {
        "long_name": "root mean squared distance of the last video latents that are generated to the clean run's",
        "units": "1",
    },
}
"""Attributes of the outcomes."""


def outcomes(batch: Batch, latents: Tensor, clean: Tensor) -> xr.Dataset:
    """Judge finished latents.

    Args:
        batch: the pairs, the seeds of a sample side by side.
        latents: [arm, pair, channel, frame, y, x].
        clean: the clean ones, [pair, channel, frame, y, x].

    Returns:
        On [arm, pair]: `solved`, `score`, `answer` where every sample has a scorer; `distance`, the root of the
        mean squared distance to the clean latents, over the frames that are generated: where the pipeline puts a given
        frame back after every step (`Batch.fixed_frames`), nothing could move it.
    """
    columns: dict[str, np.ndarray] = {
        "distance": _distance(batch.generated(latents), batch.generated(clean[None]))
    }
    if all(sample.scorer is not None for sample, _ in batch.pairs):
        scores = [
            [s.score(batch.decode(x[None])[0]) for (s, _), x in zip(batch.pairs, arm, strict=True)]
            for arm in latents
        ]
        for name, kind in (("solved", bool), ("score", float), ("answer", np.dtypes.StringDType())):
            rows = [[getattr(score, name) for score in row] for row in scores]
            columns[name] = np.array(rows, kind).reshape(len(latents), len(batch.pairs))
    return xr.Dataset({name: (("arm", "pair"), values, ABOUT[name]) for name, values in columns.items()})


def _distance(a: Tensor, b: Tensor) -> np.ndarray:
    squared: np.ndarray = (a.float() - b.float()).square().mean((-4, -3, -2, -1)).sqrt().cpu().numpy()
    return squared


def by_sample(data: xr.Dataset, pairs: Sequence[Pair]) -> xr.Dataset:
    """Turn the dimension `pair` into `sample` and `seed`, with their labels and the noise seeds.

    Args:
        data: on `pair`, and any other dimension.
        pairs: what `pair` counts; the seeds of a sample stand side by side, as many for each.

    Raises:
        PlanError: samples have several numbers of seeds.
    """
    samples = {number: sample for number, (sample, _) in zip(numbers(pairs), pairs, strict=True)}
    shape = len(samples), len(pairs) // len(samples)
    if numbers(pairs) != [n for n in range(shape[0]) for _ in range(shape[1])]:
        raise PlanError(
            "Samples have several numbers of noise seeds: give every sample as many as the others."
        )
    variables = {
        name: (
            tuple(x for d in v.dims for x in (("sample", "seed") if d == "pair" else (d,))),
            v.values.reshape([n for d in v.dims for n in (shape if d == "pair" else (v.sizes[d],))]),
            v.attrs,
        )
        for name, v in data.data_vars.items()
    }
    coords = {name: c for name, c in data.coords.items() if "pair" not in c.dims}
    labels = np.array([label(sample) for sample in samples.values()], np.dtypes.StringDType())
    seeds = np.array([seed for _, seed in pairs]).reshape(shape)
    dims = {"sample": labels, "seed": np.arange(shape[1]), "noise_seed": (("sample", "seed"), seeds)}
    return xr.Dataset(variables, {**coords, **dims})


def in_order(data: xr.Dataset) -> xr.Dataset:
    """Return a Dataset whose texts lie in memory in the order of their dimensions: zarr writes others permuted."""
    texts = {
        n: v for n, v in data.variables.items() if v.dtype.kind == "T" and not v.values.flags.c_contiguous
    }
    return data.assign({n: (v.dims, np.ascontiguousarray(v.values), v.attrs) for n, v in texts.items()})


__all__ = ["by_sample", "in_order", "outcomes"]
