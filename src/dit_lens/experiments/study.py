"""What the causal experiments share: options, blocks of samples that are not made twice, results over all.

Layout of `--out DIR`: `results.zarr` (an xarray Dataset with all per-sample numbers), `summary.json`,
`manifest.json`, figures; and `blocks/` and `kept/`, what a repeated command goes on from.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from dit_lens import tasks
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments import harness as experiment
from dit_lens.experiments.cache import hash_code, kept, save
from dit_lens.experiments.harness import FIRST_EVALUATION_SEED
from dit_lens.store import versions
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch
    from dit_lens.lens import Lens

ELSEWHERE = (*experiment.SELECTING, "samples", "clean", "block", "at_once", "sheets", "memory", "left_out")
"""Options that do not change a block's numbers, except for the order in which floats are summed."""


OUTCOMES = {"solved": "solved (share)", "score": "score", "distance": "RMS distance of the latents"}
"""What `outcomes` gives as numbers, and how figures call it."""

BOUNDS = {"solved": (0.0, 1.0), "score": (0.0, 1.0)}
"""Lowest and highest value of those that have them: where all samples agree, an interval is had from these."""


@dataclass
class Options(experiment.Inputs):
    """Options of every causal experiment."""

    task: str = "maze"
    """A task of the organism's; samples are drawn from it."""
    samples: int = 64
    """How many samples of --task."""
    seeds: int = 1
    """Noise seeds a sample."""
    steps: int | None = None
    """Scheduler steps; the model's default unless given."""
    cfg_scale: float | None = None
    """Guidance scale; the model's default unless given. 1 runs the conditional branch alone."""
    scene: int = FIRST_EVALUATION_SEED
    """Seed of the first scene; from 1,000,000 on for evaluation (no maze of these was trained on; see the card)."""
    seed: int = 0
    """Another number, another draw of all noise."""
    block: int = 8
    """Samples that are measured, and kept, together; a repeated command goes on after the last such block."""
    at_once: int = 64
    """Rows in one forward, at most."""
    out: Path = Path("runs/study")
    """Folder to write into."""
    left_out: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """Samples that were not measured, with the reason; the summary counts them."""

    def __post_init__(self) -> None:
        if self.eval_root is not None:
            self.task = self.eval_root.resolve().name  # for titles

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that makes a block's numbers what they are."""
        given = {k: v for k, v in asdict(self).items() if k not in ELSEWHERE}
        return {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}


def noise_seeds(sample: Sample, options: Options) -> list[int]:
    """Return the noise seeds of a sample: none that another sample has, so that samples are independent."""
    first = zlib.crc32(f"{options.seed}/{sample.task}/{sample.id}".encode()) % (1 << 31)
    return [first + k for k in range(options.seeds)]


def pairs_of(samples: Sequence[Sample], options: Options) -> list[tuple[Sample, int]]:
    """Return every (sample, noise seed), the seeds of a sample side by side."""
    return [(sample, seed) for sample in samples for seed in noise_seeds(sample, options)]


def samples_of(options: Options) -> list[Sample]:
    """Return the samples of a study; those of a benchmark that cannot be read are noted in `options.left_out`.

    Raises:
        TaskError: no such task or benchmark, or too few samples or seeds.
    """
    if options.samples < 2 or options.seeds < 1 or options.block < 1:
        raise TaskError(
            f"--samples {options.samples} --seeds {options.seeds} --block {options.block}: at "
            "least 2 samples, so that there is an interval, and 1 of the others."
        )
    if options.eval_root is not None:
        bench = experiment.benchmark(options)
        found = [sample.with_(**options.changes) for sample in bench]
        options.left_out |= experiment.broken(bench)
        if len(found) < 2:
            raise TaskError(
                f"--eval-root {options.eval_root}: {len(found)} samples; at least 2, for an interval."
            )
        return found
    if options.split or options.tasks or options.max_samples:
        raise TaskError(
            "--split, --tasks and --max-samples go with --eval-root; with --task there is --samples."
        )
    frames: dict[str, Any] = {} if options.num_frames is None else {"num_frames": options.num_frames}
    return [sample.with_(**options.changes) for sample in _scenes(options, frames)]


def _scenes(options: Options, frames: dict[str, Any]) -> list[Sample]:
    """Draw scenes of a task, none of them twice: equal scenes are no independent samples."""
    found: dict[Any, Sample] = {}
    for i in range(20 * options.samples + 100):
        sample = tasks.make(options.task, options.scene + i, **frames)
        picture = None if sample.image is None else sample.image.tobytes()
        found.setdefault((picture, sample.prompt), sample)
        if len(found) == options.samples:
            return list(found.values())
    raise TaskError(
        f"--task {options.task} --samples {options.samples}: it has so few scenes that only {len(found)} are there; ask "
        f"for --samples {len(found)}, and for more noise seeds (--seeds)."
    )


def training_samples(options: Options, count: int) -> list[Sample]:
    """Return samples to fit probes and maps on: of training seeds, and of no scene that is evaluated.

    Boards with few layouts (circle, choose, pattern) repeat some of them on both sides of the split.

    Raises:
        TaskError: the samples are of a benchmark, or the task has too few layouts.
    """
    if options.eval_root is not None:
        raise TaskError("--eval-root: a benchmark has no scenes to fit anything on.")
    evaluated = {(s.image.tobytes(), s.prompt) for s in samples_of(options) if s.image is not None}
    frames: dict[str, Any] = {} if options.num_frames is None else {"num_frames": options.num_frames}
    found: list[Sample] = []
    for seed in range(20 * count + 100):
        sample = tasks.make(options.task, seed, **frames)
        if len(found) == count:
            break
        if sample.image is None or (sample.image.tobytes(), sample.prompt) not in evaluated:
            found.append(sample)
    if len(found) < count:
        raise TaskError(
            f"--task {options.task}: it has so few scenes that only {len(found)} of {count} to fit on are none of the "
            f"{options.samples} that are evaluated; ask for fewer of both."
        )
    return found


def outcomes(batch: Batch, latents: Tensor, clean: Tensor) -> xr.Dataset:
    """Judge finished latents.

    Args:
        batch: whose pairs they are, the seeds of a sample side by side.
        latents: [arm, pair, channel, frame, y, x].
        clean: the clean ones, [pair, channel, frame, y, x].

    Returns:
        On [arm, pair]: `solved`, `score`, `answer` where samples have a scorer; `distance`, the root of the
        mean squared distance to the clean latents.
    """
    found: dict[str, np.ndarray] = {"distance": _distance(latents, clean[None])}
    scored = all(sample.scorer is not None for sample, _ in batch.pairs)
    if scored:
        scores = [
            [s.score(batch.decode(x[None])[0]) for (s, _), x in zip(batch.pairs, arm, strict=True)]
            for arm in latents
        ]
        for name, kind in (("solved", bool), ("score", float), ("answer", np.dtypes.StringDType())):
            found[name] = np.array([[getattr(score, name) for score in row] for row in scores], kind)
    return xr.Dataset({name: (("arm", "pair"), values) for name, values in found.items()})


def arms_as(found: xr.Dataset, arms: slice, dim: str, labels: Sequence[Any], prefix: str) -> xr.Dataset:
    """Give some of the arms a dimension of their own, with labels, and their variables a prefix."""
    part = found.isel(arm=arms).rename({"arm": dim, **{str(n): f"{prefix}_{n}" for n in found}})
    text = all(isinstance(label, str) for label in labels)
    return part.assign_coords({dim: np.array(labels, np.dtypes.StringDType() if text else None)})


def headline(data: xr.Dataset) -> Any:
    """Return what `analysis.mean` or `analysis.effect` found as plain data: a dict, or a list of them by label."""
    centre = "effect" if "effect" in data else "mean"
    names = [str(n) for n in (centre, "low", "high", "band_low", "band_high") if n in data]
    if not data[centre].ndim:
        return {name: float(data[name]) for name in names}
    dim = str(data[centre].dims[0])
    labels = data[dim].values.tolist() if dim in data.coords else range(data.sizes[dim])
    parts = [(label, headline(data.isel({dim: i}))) for i, label in enumerate(labels)]
    if data[centre].ndim == 1:
        return [{dim: label, **part} for label, part in parts]
    return {f"{dim} {label}": part for label, part in parts}


def _distance(a: Tensor, b: Tensor) -> np.ndarray:
    squared: np.ndarray = (a.float() - b.float()).square().mean((-4, -3, -2, -1)).sqrt().cpu().numpy()
    return squared


def by_sample(data: xr.Dataset, samples: Sequence[Sample], options: Options) -> xr.Dataset:
    """Turn the dimension `pair` into `sample` and `seed`, with their labels."""
    names = [f"{s.task}/{s.id}" for s in samples]
    shape = (len(samples), options.seeds)
    out = {
        name: (
            tuple(x for d in v.dims for x in (("sample", "seed") if d == "pair" else (d,))),
            v.values.reshape([n for d in v.dims for n in (shape if d == "pair" else (v.sizes[d],))]),
            v.attrs,
        )
        for name, v in data.data_vars.items()
    }
    coords = {name: c for name, c in data.coords.items() if "pair" not in c.dims}
    seeds = np.array([noise_seeds(s, options) for s in samples])
    own = {"sample": np.array(names, np.dtypes.StringDType()), "seed": np.arange(options.seeds)}
    return xr.Dataset(out, {**coords, **own, "noise_seed": (("sample", "seed"), seeds)})


def study(
    options: Options,
    name: str,
    lens: Lens,
    measure: Callable[[list[Sample]], xr.Dataset],
    using: xr.Dataset | None = None,
) -> tuple[xr.Dataset, int]:
    """Measure all samples, a block of one shape at a time; what an earlier command measured is read, not made again.

    Where a block fails its samples are measured one by one, so that one that fails stops no other; it is reported.

    Args:
        options: of the script.
        name: of the script, part of what a block is known by.
        lens: the model; other weights make other blocks.
        measure: samples to a Dataset with the dimension `sample`.
        using: what was fitted beforehand (see `once`); another fit makes other blocks.

    Returns:
        The blocks together, also written to `results.zarr`, and the exit code: 1 where a sample was left out.

    Raises:
        DitLensError: no block could be measured, or results of samples of several shapes do not fit together.
    """
    samples = samples_of(options)
    made_with = [hash_code(measure), "" if using is None else using.attrs["key"]]
    shapes: dict[object, list[Sample]] = {}
    for sample in samples:
        shapes.setdefault((sample.size, sample.num_frames), []).append(sample)
    parts = [
        same[i : i + options.block] for same in shapes.values() for i in range(0, len(same), options.block)
    ]
    found = []
    for part in tqdm(parts, desc=name, unit="block"):
        found += _block(options, name, lens, measure, part, made_with)
    if not found:
        raise DitLensError(f"{name}: no block of samples could be measured; the reasons are above.")
    results = _together(found, name)
    there = set(results.sample.values.tolist())
    results = results.sel(sample=[n for s in samples if (n := f"{s.task}/{s.id}") in there])
    results.attrs = {"script": name, **{k: str(v) for k, v in options.settings.items()}}
    save(results, options.out / "results.zarr")
    return results, int(bool(options.left_out))


def _block(
    options: Options,
    name: str,
    lens: Lens,
    measure: Callable[[list[Sample]], xr.Dataset],
    part: list[Sample],
    made_with: list[str],
) -> list[xr.Dataset]:
    """Measure one block, or read it; where it fails, its samples one by one."""
    label = f"{part[0].task}/{part[0].id}"
    file = label.replace("/", "-")
    key = _key(name, options, lens, part, made_with)
    try:
        return [kept(options.out / "blocks" / file, key, lambda: measure(part))]
    except Exception as error:
        if len(part) == 1:
            options.left_out[label] = experiment.report_failure(label, error)
            return []
        said = f"{type(error).__name__}: {error}"
    tqdm.write(f"{label} to {part[-1].id} failed ({said}): its samples one by one", file=sys.stderr)
    return [d for s in part for d in _block(options, name, lens, measure, [s], made_with)]


def once(
    options: Options,
    name: str,
    lens: Lens,
    samples: Sequence[Sample],
    make: Callable[[], xr.Dataset],
    using: xr.Dataset | None = None,
) -> xr.Dataset:
    """Make something beside the blocks, such as what is fitted on training samples; or read it: `OUT/kept/NAME-KEY.zarr`.

    Args:
        options: of the script.
        name: of what is made.
        lens: the model.
        samples: what it is made of.
        make: makes it.
        using: what it is made with, from another `once`.

    Returns:
        What was made; `attrs["key"]` tells it from what other settings, models or code make.
    """
    made_with = [hash_code(make), "" if using is None else using.attrs["key"]]
    key = _key(name, options, lens, samples, made_with)
    return kept(options.out / "kept" / name.replace("/", "-"), key, make).assign_attrs(key=key)


def _together(found: Sequence[xr.Dataset], name: str) -> xr.Dataset:
    try:
        return xr.concat(
            found, "sample", data_vars="minimal", coords="minimal", compat="override", join="exact"
        )
    except ValueError as error:
        raise DitLensError(
            f"{name}: samples of several numbers of frames do not fit into one table ({error}). Give --num-frames, or "
            "one --tasks at a time; what is measured is kept."
        ) from error


def compare(
    results: xr.Dataset, along: str, title: str, options: Options, more: Mapping[str, Any] | None = None
) -> None:
    """Summarise outcomes [sample, seed, along] by label, each against the last of them; draw; save.

    Args:
        results: with `solved`, `score` or `distance`.
        along: the dimension to compare along.
        title: of the figures.
        options: of the script.
        more: what else the summary says.
    """
    from dit_lens import analysis, plot

    summary: dict[str, Any] = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    for name in [n for n in OUTCOMES if n in results]:
        values = results[name].astype(float)
        bounds = BOUNDS.get(name)
        found = analysis.mean(values, bounds=bounds)
        summary[name] = headline(found)
        last = values.isel({along: -1}, drop=True)
        against = analysis.effect(values, last, bounds=bounds, along=along)
        summary[f"{name}, minus that of {along} {results[along].values[-1]}"] = headline(against)
        figure = plot.curves(found, along, value_label=OUTCOMES[name], title=title, marks=True)
        plot.save(figure, options.out / f"{name}_by_{along}.png")
    finish(options, summary | dict(more or {}), found.attrs)


def finish(options: Options, summary: dict[str, Any], bootstrap: dict[str, Any] | None = None) -> None:
    """Write `summary.json` and `manifest.json`."""
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k != "left_out"}
    experiment.write_summary(options.out, summary, {**asked, "bootstrap": bootstrap or {}}, options.left_out)


def _key(name: str, options: Options, lens: Lens, part: Sequence[Sample], made_with: Sequence[str]) -> str:
    """Hash all that makes a block's numbers: settings, model, samples, code, library versions."""
    samples = [experiment.identity(s) for s in part]
    what = [name, options.settings, lens.identity(), samples, made_with, versions()]
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:12]
