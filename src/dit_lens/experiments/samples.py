"""The samples of a command, the scenes that something is fitted on, their noise seeds, and their folders."""

from __future__ import annotations

import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.experiments.options import Options, StudyOptions
from dit_lens.plan.selectors import at
from dit_lens.tasks.image import read_image
from dit_lens.tasks.pairs import Pair, label
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.vbvr import Bench

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.lens import Lens
    from dit_lens.plan.places import At

RESULTS = ("results.zarr", "summary.json", "manifest.json")
"""What a script comes to; its figures aside."""

TAKEN = ("blocks", "kept", "store.zarr", "clean.zarr", *RESULTS)
"""What stands in `--out` beside the samples of tasks."""


@dataclass(frozen=True)
class Drawn:
    """The samples of a command; those of a benchmark are read when their turn comes.

    Attributes:
        source: the samples as they are.
        changes: fields that are replaced in each.
    """

    source: Sequence[Sample] | Bench
    changes: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples; those of a benchmark that cannot be read are left out."""
        return (sample.with_(**self.changes) for sample in self.source)

    @property
    def left_out(self) -> dict[str, str]:
        """The samples that could not be read so far, or that a benchmark's manifest names in vain, with the reason."""
        if not isinstance(self.source, Bench):
            return {}
        summary = self.source.summary()
        missing = {"/".join(known): "named in the manifest, but not there" for known in summary.missing}
        return {skipped.entry.label: skipped.reason for skipped in summary.skipped} | missing


def draw(options: Options, lens: Lens | None = None) -> Drawn:
    """Return the samples that the options ask for: scenes of a task, one picture, or those of a benchmark.

    Args:
        options: of the script.
        lens: the model that they are for; lengths and sizes of a benchmark are rounded up to what it takes.

    Raises:
        TaskError: no such task, picture or benchmark; or options that contradict each other.
    """
    refuse_contradictions(options)
    if options.eval_root is not None:
        frames, size = (1, 1) if lens is None else lens.family.anatomy.multiples
        bench = Bench(
            options.eval_root,
            options.split,
            options.tasks,
            options.samples,
            frames_multiple=frames,
            size_multiple=size,
            num_frames=options.num_frames,
        )
        return Drawn(bench, options.changes)
    if options.image is not None:
        assert options.prompt is not None
        sample = Sample(
            prompt=options.prompt,
            image=read_image(options.image),
            task="image",
            id=options.image.stem,
            **_frames(options),
        )
        return Drawn([sample], options.changes)
    return Drawn(scenes(options), options.changes)


def refuse_contradictions(options: Options) -> None:
    """Refuse options that do not say which samples there are, before anything is read.

    Raises:
        TaskError: it names the options.
    """
    if options.eval_root is not None and (options.image is not None or options.prompt is not None):
        raise TaskError("--eval-root and --image: the samples come from one of them.")
    if options.eval_root is None and (options.split or options.tasks):
        raise TaskError("--split and --tasks go with --eval-root.")
    if options.image is None and options.prompt is not None:
        raise TaskError("--prompt goes with --image; the prompt of a task is its own.")
    if options.image is not None and options.prompt is None:
        raise TaskError("--image goes with --prompt.")
    if options.image is not None and not options.image.is_file():
        raise TaskError(f"--image {options.image}: there is no such file.")
    if options.samples is not None and options.samples < 1:
        raise TaskError(f"--samples {options.samples}: give at least 1.")
    if options.image is not None and options.samples not in (None, 1):
        raise TaskError(f"--samples {options.samples}: --image is one sample.")


def _frames(options: Options) -> dict[str, Any]:
    return {} if options.num_frames is None else {"num_frames": options.num_frames}


def scenes(options: Options, count: int | None = None, pictures: bool = False) -> list[Sample]:
    """Draw scenes of a task, none of them twice: equal scenes are no independent samples.

    Args:
        options: of the script.
        count: how many. Default: what the options ask for.
        pictures: whether scenes of one picture count as one, whatever is asked of it.

    Raises:
        TaskError: no such task, or it has too few scenes.
    """
    count = options.scene_count if count is None else count
    drawn: dict[Any, Sample] = {}
    for i in range(20 * count + 100):
        sample = tasks.make(options.task, options.scene + i, **_frames(options))
        picture = None if sample.image is None else sample.image.tobytes()
        drawn.setdefault((picture, None if pictures else sample.prompt), sample)
        if len(drawn) == count:
            return list(drawn.values())
    per_sample = max(count // options.scene_count, 1)
    raise TaskError(
        f"--task {options.task} --samples {options.scene_count}: it has so few scenes that only {len(drawn)} exist"
        f"{'' if per_sample == 1 else f', and a sample takes {per_sample}'}; "
        f"ask for --samples {len(drawn) // per_sample}, and for more noise seeds (--seeds)."
    )


def training_samples(options: Options, count: int) -> list[Sample]:
    """Return samples to fit probes and maps on: of training seeds, and of no scene that is evaluated.

    Boards with few layouts (circle, choose, pattern) repeat some of them on both sides of the split.

    Raises:
        TaskError: the samples are no scenes of a task, or the task has too few layouts.
    """
    if not options.draws_scenes:
        raise TaskError("--eval-root and --image: there are no scenes to fit anything on.")
    evaluated = {(s.image.tobytes(), s.prompt) for s in scenes(options) if s.image is not None}
    chosen: list[Sample] = []
    for seed in range(20 * count + 100):
        sample = tasks.make(options.task, seed, **_frames(options))
        if len(chosen) == count:
            break
        if sample.image is None or (sample.image.tobytes(), sample.prompt) not in evaluated:
            chosen.append(sample.with_(**options.changes))
    if len(chosen) < count:
        raise TaskError(
            f"--task {options.task}: it has so few scenes that only {len(chosen)} of {count} to fit on are none of the "
            f"{options.scene_count} that are evaluated; ask for fewer of both."
        )
    return chosen


def noise_seeds(sample: Sample, options: StudyOptions) -> list[int]:
    """Return the noise seeds of a sample: none that another sample has, so that samples are independent."""
    first = zlib.crc32(f"{options.draw}/{sample.task}/{sample.id}".encode()) % (1 << 31)
    return [first + k for k in range(options.seeds)]


def pairs_of(samples: Sequence[Sample], options: StudyOptions) -> list[Pair]:
    """Return every (sample, noise seed), the seeds of a sample side by side."""
    return [(sample, seed) for sample in samples for seed in noise_seeds(sample, options)]


def require_scorer(options: Options) -> None:
    """Refuse samples that no scorer of ours judges, before anything is computed.

    Raises:
        TaskError: they are of a benchmark, or a picture of the user's.
    """
    if not options.draws_scenes:
        raise TaskError(
            "This study is judged by a scorer, and samples of --eval-root or --image have none: give a task, as --task maze."
        )


def given_frames(sample: Sample) -> int:
    """Return how many latent frames, and so how many frames, the model is given of a sample.

    Whether it still makes them is another question: see `Batch.fixed_frames`.
    """
    return int(sample.image is not None)


def at_latents(fixed: int, **where: Any) -> At:
    """Return a place in latents without the frames that a pipeline gives and puts back: noise there ruins the picture.

    Args:
        fixed: how many first frames these are, `Batch.fixed_frames`.
        where: step, ... of the place, as in `dl.at`.
    """
    return at(site="latents", frame=f"{fixed}-" if fixed else None, **where)


def check_counts(option: str, counts: Sequence[int]) -> None:
    """Refuse numbers of which one comes twice, or is 0.

    Raises:
        TaskError: one does, or is.
    """
    if min(counts) < 1:
        raise TaskError(f"{option} {' '.join(map(str, counts))}: give numbers of 1 or more.")
    if len({*counts}) < len(counts):
        raise TaskError(f"{option} {' '.join(map(str, counts))}: give each number once.")


def steps_of(options: Options, lens: Lens) -> int:
    """Return how many steps a run has: those of the options, or the model's own number."""
    return lens.family.call.default_steps if options.steps is None else options.steps


def require_two_steps(options: Options, lens: Lens) -> None:
    """Refuse one step where what holds from step to step is read, before anything is computed.

    Raises:
        TaskError: a run has under 2 steps.
    """
    if (steps := steps_of(options, lens)) < 2:
        raise TaskError(f"--steps {steps}: this study reads what holds from step to step; give 2 or more.")


def require_latent_frames(samples: Iterable[Sample], lens: Lens, least: int) -> None:
    """Refuse videos of too few latent frames, before anything is computed.

    Raises:
        TaskError: it names the first such sample.
    """
    for sample in samples:
        frames = lens.family.anatomy.latent_grid(lens.pipe, sample)[1]
        if frames < least:
            raise TaskError(
                f"{label(sample)}: {sample.num_frames} frames are {frames} latent frames; this study takes {least} at least: "
                "raise --num-frames."
            )


def require_one_length(samples: Sequence[Sample], lens: Lens) -> None:
    """Refuse samples of several lengths where results stand by latent frame, before anything is computed.

    Raises:
        TaskError: they have several numbers of latent frames.
    """
    count_of = Counter(
        (lens.family.anatomy.latent_grid(lens.pipe, sample)[1], sample.num_frames) for sample in samples
    )
    if len({latent for latent, _ in count_of}) > 1:
        lengths = ", ".join(
            f"{frames} ({count} of {len(samples)})" for (_, frames), count in sorted(count_of.items())
        )
        raise TaskError(
            f"Samples of several lengths, in frames: {lengths}. This study compares latent frames: give --num-frames, or one "
            "--tasks at a time."
        )


def batch_of(lens: Lens, pairs: Sequence[Pair], options: StudyOptions, steps: int | None = None) -> Batch:
    """Prepare pairs as the options say.

    Args:
        lens: the model.
        pairs: a sample and a noise seed each.
        options: of the script.
        steps: scheduler steps. Default: those of the options.
    """
    steps = options.steps if steps is None else steps
    return lens.batch(pairs, steps, options.cfg_scale, options.at_once, **options.arguments)


def remove_results(out: Path) -> None:
    """Remove what an earlier command came to, once the next one has something: what is left is never of two commands."""
    for name in RESULTS:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def folder_of(out: Path, sample: Sample) -> Path:
    """Return the folder of a sample's pictures: `OUT/TASK/ID`, of VBVR-Bench `OUT/SPLIT/TASK/ID`. Always inside `out`."""
    first, *rest = sample.subfolder.parts
    return out.joinpath(f"task-{first}" if first in TAKEN else first, *rest)


__all__ = [
    "Drawn",
    "at_latents",
    "batch_of",
    "check_counts",
    "draw",
    "folder_of",
    "given_frames",
    "noise_seeds",
    "pairs_of",
    "refuse_contradictions",
    "remove_results",
    "require_latent_frames",
    "require_one_length",
    "require_scorer",
    "require_two_steps",
    "scenes",
    "steps_of",
    "training_samples",
]
