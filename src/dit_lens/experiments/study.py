"""How a script measures its samples: in blocks, or one by one; results of an earlier command are read, not made again.

Layout of `--out DIR`: `results.zarr` (an xarray Dataset with the numbers of every sample), `summary.json`,
`manifest.json`, figures; `blocks/` and `kept/`, what a repeated study goes on from. Scripts that draw pictures of single runs
write `store.zarr` with the runs, and `TASK/ID/` (of VBVR-Bench `SPLIT/TASK/ID/`) with the pictures and `done.json` of a sample.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from tqdm import tqdm

from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments import keys
from dit_lens.experiments.cache import kept, kept_json, save
from dit_lens.experiments.cost import RefusedError, Runs, announce
from dit_lens.experiments.options import Options, StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, OUTCOMES, headline
from dit_lens.experiments.samples import Drawn, draw, folder_of, remove_results, require_one_length
from dit_lens.experiments.summary import report_failure, write_summary
from dit_lens.experiments.tables import require_one_table, together
from dit_lens.tasks.pairs import by_shape, label, shape_of
from dit_lens.tasks.sample import Sample, folder_name

if TYPE_CHECKING:
    from dit_lens.lens import Lens


Begin = Callable[[list[Sample]], None]
"""Says what a study costs, by the block that is measured first."""


@dataclass(frozen=True)
class Measured:
    """What a study measured.

    Attributes:
        results: all samples together.
        left_out: samples that could not be read or measured, with the reason.
    """

    results: xr.Dataset
    left_out: Mapping[str, str]

    @property
    def exit_code(self) -> int:
        """1 where a sample was left out, else 0."""
        return int(bool(self.left_out))


def study(
    options: StudyOptions,
    name: str,
    lens: Lens,
    measure: Callable[[list[Sample]], xr.Dataset],
    using: xr.Dataset | None = None,
    runs: Runs | None = None,
    drawn: Drawn | None = None,
    least: int = 2,
    one_length: bool = False,
) -> Measured:
    """Measure all samples, a block of one shape at a time; blocks of an earlier command are read, not made again.

    Where a block fails, its samples are measured one by one, so that a sample that fails stops no other; it is reported.

    Args:
        options: of the script.
        name: of the script, part of what a block is known by.
        lens: the model; other weights make other blocks.
        measure: samples to a Dataset with the dimension `sample`. Other code that it reaches makes other blocks.
        using: what was fitted beforehand (see `once`); another fit makes other blocks.
        runs: how many runs the study makes of a pair, to say what it costs before its first block is measured.
        drawn: the samples. Default: those that the options ask for.
        least: how many samples there have to be: 2 for an interval over samples.
        one_length: whether results stand by latent frame, so that samples have to have as many of them.

    Returns:
        The blocks together, also written to `results.zarr`.

    Raises:
        TaskError: no seeds, too few samples, samples of several lengths where they need one, or options that contradict each
            other.
        RefusedError: options that no sample can be measured by.
        DitLensError: no block could be measured, or results of samples of several shapes do not fit together.
    """
    if options.seeds < 1:
        raise TaskError(f"--seeds {options.seeds}: give at least 1.")
    drawn = draw(options, lens) if drawn is None else drawn
    samples = list(drawn)
    if len(samples) < least:
        raise TaskError(
            f"{len(samples)} samples of {options.source}: a study takes at least {least}{', for an interval' * (least > 1)}."
        )
    if one_length:
        require_one_length(samples, lens)
    shapes = by_shape(samples)
    has_batches = lens.family.batching is not None  # without them no step is timed
    begin = announcements(name, lens, shapes, options, runs) if runs and has_batches else {}
    blocks = _Blocks(options, name, measure, keys.maker(name, options, lens, measure, using), begin)
    measured: list[xr.Dataset] = []
    for part in tqdm(parts_of(shapes, options.block), desc=name, unit="block"):
        for data in blocks.get(part):
            measured.append(data)
            require_one_table(measured[0], data, name)
    if not measured:
        raise DitLensError(f"{name}: no block of samples could be measured; the reasons are above.")
    results = together(measured, name)
    present = set(results.sample.values.tolist())
    results = results.sel(sample=[label(s) for s in samples if label(s) in present])
    results.attrs = {"script": name, **{k: str(v) for k, v in options.settings.items()}}
    remove_results(options.out)  # so far, what an earlier command came to stays
    save(results, options.out / "results.zarr")
    return Measured(results, drawn.left_out | blocks.left_out)


def parts_of(shapes: Sequence[Sequence[Sample]], size: int) -> list[list[Sample]]:
    """Return blocks of samples of one shape: first one of every shape, so that what does not fit together shows early."""
    parts = [[list(same[i : i + size]) for i in range(0, len(same), size)] for same in shapes]
    return [same[0] for same in parts] + [part for same in parts for part in same[1:]]


def announcements(
    name: str, lens: Lens, shapes: Sequence[Sequence[Sample]], options: StudyOptions, runs: Runs
) -> dict[object, Begin]:
    """Return, by the shape of samples, what says what they cost; it takes the block of them that is measured first."""
    out: dict[object, Begin] = {}
    for same in shapes:
        first = same[0]
        shape = f"{first.width} x {first.height}, {first.num_frames} frames"
        what = name if len(shapes) == 1 else f"{name}, {shape}"
        out[shape_of(first)] = partial(announce, what, lens, len(same), options, runs)
    return out


class _Blocks:
    """The blocks of a study.

    Args:
        options: of the script.
        name: of the script.
        measure: samples to a Dataset.
        made_by: hash of what makes the blocks.
        begin: by the shape of its samples, called with the first block of a shape before it is measured.
    """

    def __init__(
        self,
        options: StudyOptions,
        name: str,
        measure: Callable[[list[Sample]], xr.Dataset],
        made_by: str,
        begin: Mapping[object, Begin],
    ) -> None:
        self._begin = dict(begin)
        self.folder, self.name, self.measure, self.made_by = options.out / "blocks", name, measure, made_by
        self.left_out: dict[str, str] = {}

    def get(self, part: list[Sample]) -> list[xr.Dataset]:
        """Measure one block, or read it; where it fails, its samples one by one."""
        first = label(part[0])
        stem = self.folder / folder_name(first.replace("/", "-"))
        try:
            return [kept(stem, keys.key(self.made_by, part)[:12], lambda: self._measured(part))]
        except RefusedError:  # no other sample would do
            raise
        except Exception as error:
            if len(part) == 1:
                self.left_out[first] = report_failure(first, error)
                return []
            reason = f"{type(error).__name__}: {error}"
        tqdm.write(f"{first} to {part[-1].id} failed ({reason}): its samples one by one", file=sys.stderr)
        return [data for sample in part for data in self.get([sample])]

    def _measured(self, part: list[Sample]) -> xr.Dataset:
        """Measure one block; before the first of a shape, say what all of it will cost."""
        if (begin := self._begin.pop(shape_of(part[0]), None)) is not None:
            begin(part)
        return self.measure(part)


def once(
    options: StudyOptions,
    name: str,
    lens: Lens,
    samples: Sequence[Sample],
    make: Callable[[], xr.Dataset],
    using: xr.Dataset | None = None,
) -> xr.Dataset:
    """Make a result beside the blocks, such as a fit on training samples; or read it: `OUT/kept/NAME-KEY.zarr`.

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
    key = keys.key(keys.maker(name, options, lens, make, using), samples)[:12]
    return kept(options.out / "kept" / folder_name(name), key, make).assign_attrs(key=key)


def each_sample(
    options: Options, name: str, lens: Lens, analyse: Callable[[Sample, Path], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Analyse every sample; what an earlier command finished is read, not made again.

    A sample that is broken or fails is reported and does not stop the others.

    Args:
        options: of the script.
        name: of the script, part of what results are known by.
        lens: the model; other weights make other results.
        analyse: makes one sample's pictures in its folder, and returns its numbers (plain data). Other code that it reaches
            makes other results.

    Returns:
        The numbers of each sample, with `task` and `id`; and of each that was left out, by `task/id`, the reason.

    Raises:
        DitLensError: no sample could be analysed.
    """
    drawn, made_by = draw(options, lens), keys.maker(name, options, lens, analyse)
    numbers, left_out = [], {}
    for sample in tqdm(drawn, desc=name, unit="sample"):
        folder, key = folder_of(options.out, sample), keys.key(made_by, [sample])
        folder.mkdir(parents=True, exist_ok=True)
        make, settings = partial(_numbers, sample, folder, analyse), {"script": name, **options.settings}
        try:
            numbers.append(kept_json(folder / "done.json", key, make, settings=settings))
        except Exception as error:
            left_out[label(sample)] = report_failure(label(sample), error)
    if not numbers:
        raise DitLensError(f"{name}: no sample could be analysed; the reasons are above.")
    remove_results(options.out)  # so far, what an earlier command came to stays
    return numbers, left_out | drawn.left_out


def _numbers(
    sample: Sample, folder: Path, analyse: Callable[[Sample, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Analyse one sample, once what an earlier command drew of it is gone."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix in (".png", ".mp4", ".gif"):
            path.unlink()
    return {"task": sample.task, "id": sample.id, **analyse(sample, folder)}


def compare(
    measured: Measured,
    along: str,
    title: str,
    options: StudyOptions,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Summarise outcomes [sample, seed, along] by label, each against the last of them; draw; save.

    Args:
        measured: with `solved`, `score` or `distance`.
        along: the dimension to compare along.
        title: of the figures.
        options: of the script.
        more: what else the summary says.
    """
    from dit_lens import analysis, plot

    results = measured.results
    summary: dict[str, Any] = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    for name in [n for n in OUTCOMES if n in results]:
        values = results[name].astype(float)
        bounds = BOUNDS.get(name)
        means = analysis.mean(values, bounds=bounds)
        summary[name] = headline(means)
        last = values.isel({along: -1}, drop=True)
        against = analysis.effect(values, last, bounds=bounds, along=along)
        summary[f"{name}, minus that of {along} {results[along].values[-1]}"] = headline(against)
        figure = plot.curves(means, along, value_label=OUTCOMES[name], title=title, marks=True)
        plot.save(figure, options.out / f"{name}_by_{along}.png")
    write_summary(options, summary | dict(more or {}), measured.left_out, means.attrs)


__all__ = ["Measured", "compare", "each_sample", "once", "study"]
