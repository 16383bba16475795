"""What the scripts in `analyses/` share: options, samples, and folders that are not made twice.

Layout of `--out DIR`: `TASK/ID/` (of VBVR-Bench `SPLIT/TASK/ID/`) with the pictures and `done.json` of each
sample, `store.zarr` with the runs, and `results.zarr`, `summary.json`, `manifest.json` over all samples.
"""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from dit_lens import tasks
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.cache import kept_json, save_json
from dit_lens.models.options import ModelOptions
from dit_lens.store import versions
from dit_lens.store.names import inside
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.vbvr import Bench

if TYPE_CHECKING:
    from dit_lens.lens import Lens

FIRST_EVALUATION_SEED = 1_000_000

SELECTING = ("eval_root", "split", "tasks", "max_samples", "out")
"""Options that say which samples there are, and where results go: they change no sample's numbers."""


@dataclass
class Inputs(ModelOptions):
    """Options of all scripts: which model, and samples from a folder of VBVR-Bench in place of a task."""

    eval_root: Path | None = None
    """Folder of VBVR-Bench, or one laid out like it; in place of --task."""
    split: str | None = None
    """Its split, such as In-Domain_50; all unless given."""
    tasks: str | None = None
    """Its tasks, whole names or up to an underscore, such as O-39,G-2; all unless given."""
    max_samples: int | None = None
    """The first so many of --eval-root; all unless given. In decode_steps and token_maps also of --task; 1 unless given."""
    num_frames: int | None = None
    """Frames to generate; the sample's own unless given."""
    text_only: bool = False
    """Leave the first frames out: for models that take none."""
    multiples: tuple[int, int] = field(default=(1, 1), init=False, repr=False)
    """To what frames (one more than a multiple) and sizes of --eval-root are rounded up; the model says it."""

    @property
    def changes(self) -> dict[str, Any]:
        """What samples have in place of what is their own."""
        frames = {} if self.num_frames is None else {"num_frames": self.num_frames}
        return {**frames, "image": None} if self.text_only else frames

    def open(self) -> Lens:
        """Load the model; samples of a benchmark are rounded up to what it takes."""
        lens = self.load()
        self.multiples = lens.family.multiples
        return lens


def benchmark(options: Inputs) -> Bench:
    """Open the folder that was asked for; its samples are read one at a time, broken ones left out.

    Raises:
        TaskError: no such folder, split or task.
    """
    assert options.eval_root is not None
    return Bench(
        options.eval_root,
        options.split,
        options.tasks,
        options.max_samples,
        frames_multiple=options.multiples[0],
        size_multiple=options.multiples[1],
    )


@dataclass
class Options(Inputs):
    """Options that all scripts have."""

    task: str = "maze"
    """A task of the organism's; samples are drawn from it."""
    image: Path | None = None
    """Your own first frame, with --prompt, in place of a task."""
    prompt: str | None = None
    """What the model is asked, with --image."""
    steps: int | None = None
    """Scheduler steps; the model's default unless given."""
    vis_steps: str = "all"
    """Steps to look at: all, auto, or such as 0-19,45-49."""
    layers: str = "auto"
    """Layers to look at, likewise."""
    seed: int = 0
    """Seed of the initial noise."""
    scene: int = FIRST_EVALUATION_SEED
    """Seed of the first scene; from 1,000,000 on none was seen in training."""
    cfg_scale: float | None = None
    """Guidance scale; the model's default unless given. 1 runs the conditional branch alone."""
    out: Path = Path("runs/analysis")
    """Folder to write into."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that makes a sample's result what it is, beside the sample."""
        return {k: v for k, v in self.asked.items() if k not in SELECTING}

    @property
    def asked(self) -> dict[str, Any]:
        """All options, as plain data."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def samples(options: Options) -> Sequence[Sample] | Bench:
    """Return the samples that were asked for; those of a benchmark are read when their turn comes.

    Raises:
        TaskError: no such task or benchmark, a prompt without an image, or an image that is not there.
    """
    if options.eval_root is not None:
        if options.image is not None or options.prompt is not None:
            raise TaskError("--eval-root and --image: the samples come from one of them.")
        return benchmark(options)
    if options.split or options.tasks:
        raise TaskError("--split and --tasks go with --eval-root.")
    frames: dict[str, Any] = {} if options.num_frames is None else {"num_frames": options.num_frames}
    if options.image is None:
        if options.prompt is not None:
            raise TaskError("--prompt goes with --image; the prompt of a task is its own.")
        count = 1 if options.max_samples is None else options.max_samples
        return [tasks.make(options.task, options.scene + i, **frames) for i in range(count)]
    if options.prompt is None:
        raise TaskError("--image goes with --prompt.")
    if not options.image.is_file():
        raise TaskError(f"--image {options.image}: there is no such file.")
    image = Image.open(options.image).convert("RGB")
    return [Sample(prompt=options.prompt, image=image, task="image", id=options.image.stem, **frames)]


def each_sample(
    options: Options, name: str, lens: Lens, analyse: Callable[[Sample, Path], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Analyse every sample; what an earlier command finished is read, not made again.

    A sample that is broken or fails is reported and does not stop the others.

    Args:
        options: of the script.
        name: of the script, for the identity of its results.
        lens: the model, likewise.
        analyse: makes one sample's pictures in its folder, and returns its numbers (plain data).

    Returns:
        The numbers of each sample that is there, with `task` and `id`; and of each that was left out, by
        `task/id`, the reason.
    """
    found, left_out = [], {}
    asked = samples(options)
    for sample in tqdm(asked, desc=name, unit="sample"):
        sample = sample.with_(**options.changes)
        folder = inside(options.out, sample.task, sample.id)
        settings = {"script": name, **options.settings}
        what = [settings, lens.identity(), identity(sample)]
        key = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        make = partial(_numbers, sample, folder, analyse)
        try:
            found.append(kept_json(folder / "done.json", key, make, settings=settings))
        except Exception as error:
            left_out[f"{sample.task}/{sample.id}"] = report_failure(f"{sample.task}/{sample.id}", error)
    return found, left_out | broken(asked)


def _numbers(
    sample: Sample, folder: Path, analyse: Callable[[Sample, Path], dict[str, Any]]
) -> dict[str, Any]:
    return {"task": sample.task, "id": sample.id, **analyse(sample, folder)}


def identity(sample: Sample) -> list[Any]:
    """Return what tells a sample from every other, as plain data: its words, its size and its picture."""
    picture = None if sample.image is None else hashlib.sha256(sample.image.tobytes()).hexdigest()
    return [sample.task, sample.id, sample.prompt, sample.num_frames, sample.size, picture]


def broken(asked: Sequence[Sample] | Bench) -> dict[str, str]:
    """Return the samples of a benchmark that could not be read, or that its manifest names in vain, with the reason."""
    if not isinstance(asked, Bench):
        return {}
    summary = asked.summary()
    missing = {"/".join(known): "named in the manifest, but not there" for known in summary.missing}
    return {s.entry.label: s.reason for s in summary.skipped} | missing


def report_failure(what: str, error: Exception) -> str:
    """Say on stderr that something failed, with the traceback where it is a bug; return the reason in one line."""
    ours = isinstance(error, DitLensError)
    said = str(error) if ours else "\n" + "".join(traceback.format_exception(error))
    tqdm.write(f"{what} failed: {said}", file=sys.stderr)
    return str(error) if ours else f"{type(error).__name__}: {error}"


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """Return a rate with n and its Wilson 95% interval (Wilson 1927, by scipy)."""
    from scipy.stats import binomtest

    n, k = len(hits), int(sum(hits))
    if n == 0:
        return {"n": 0}
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return {"n": n, "rate": k / n, "interval_95": [float(interval.low), float(interval.high)]}


def write_summary(
    out: Path, summary: dict[str, Any], settings: dict[str, Any], left_out: Mapping[str, str] | None = None
) -> None:
    """Write `summary.json` (headline numbers and the command) and `manifest.json` (settings and versions).

    Args:
        out: folder to write into.
        summary: plain data.
        settings: of the script.
        left_out: samples that were not measured, with the reason.
    """
    command = " ".join(["python", *sys.argv])
    left_out = dict(left_out or {})
    counted = {
        "command": command,
        "samples left out": len(left_out),
        **({"left out": left_out} if left_out else {}),
    }
    save_json(counted | summary, out / "summary.json")
    save_json({"command": command, "settings": settings, "versions": versions()}, out / "manifest.json")
