"""What the scripts in `analyses/` share: options, samples, and folders that are not made twice.

Layout of `--out DIR`: `TASK/ID/` with the pictures and `done.json` of each sample, `store.zarr` with the
runs, and `results.zarr`, `summary.json`, `manifest.json` over all samples.
"""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dit_lens import tasks
from dit_lens.errors import DitLensError, TaskError
from dit_lens.store import versions
from dit_lens.tasks.sample import Sample

FIRST_EVALUATION_SEED = 1_000_000


@dataclass
class Options:
    """Options that all scripts have."""

    model: str = "organism"
    """Which model."""
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
    num_frames: int | None = None
    """Frames to generate; the task's own unless given."""
    max_samples: int = 1
    """How many samples."""
    out: Path = Path("runs/analysis")
    """Folder to write into."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that makes a sample's result what it is."""
        return {
            k: str(v) if isinstance(v, Path) else v
            for k, v in asdict(self).items()
            if k not in ("max_samples", "out")
        }


def samples(options: Options) -> list[Sample]:
    """Return the samples that were asked for.

    Raises:
        TaskError: no such task, a prompt without an image, or an image that is not there.
    """
    frames: dict[str, Any] = {} if options.num_frames is None else {"num_frames": options.num_frames}
    if options.image is None:
        if options.prompt is not None:
            raise TaskError("--prompt goes with --image; the prompt of a task is its own.")
        return [tasks.make(options.task, options.scene + i, **frames) for i in range(options.max_samples)]
    if options.prompt is None:
        raise TaskError("--image goes with --prompt.")
    if not options.image.is_file():
        raise TaskError(f"--image {options.image}: there is no such file.")
    image = Image.open(options.image).convert("RGB")
    return [Sample(prompt=options.prompt, image=image, task="image", id=options.image.stem, **frames)]


def each_sample(
    options: Options, name: str, analyse: Callable[[Sample, Path], dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """Analyse every sample; what an earlier command finished is read, not made again.

    A sample that fails is reported and does not stop the others.

    Args:
        options: of the script.
        name: of the script, for the identity of its results.
        analyse: makes one sample's pictures in its folder, and returns its numbers (plain data).

    Returns:
        The numbers of each sample that is there, with `task` and `id`, and the exit code: 1 where one failed.
    """
    found, failed = [], 0
    for sample in tqdm(samples(options), desc=name, unit="sample"):
        folder = options.out / sample.task / sample.id
        done, settings = folder / "done.json", {"script": name, **options.settings}
        key = hashlib.sha256(
            json.dumps([settings, sample.prompt, sample.num_frames], default=str).encode()
        ).hexdigest()
        if done.exists() and (known := json.loads(done.read_text()))["key"] == key:
            found.append(known["numbers"])
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            numbers = {"task": sample.task, "id": sample.id, **analyse(sample, folder)}
        except DitLensError as error:
            tqdm.write(f"{sample.task}/{sample.id} failed: {error}", file=sys.stderr)
            failed += 1
            continue
        except Exception:
            tqdm.write(f"{sample.task}/{sample.id} failed:\n{traceback.format_exc()}", file=sys.stderr)
            failed += 1
            continue
        done.write_text(
            json.dumps({"key": key, "settings": settings, "numbers": numbers}, indent=1, default=_number)
        )
        found.append(json.loads(done.read_text())["numbers"])
    return found, int(failed > 0)


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """Return a rate with n and its Wilson 95% interval (Wilson 1927, by scipy)."""
    from scipy.stats import binomtest

    n, k = len(hits), int(sum(hits))
    if n == 0:
        return {"n": 0}
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return {"n": n, "rate": k / n, "interval_95": [float(interval.low), float(interval.high)]}


def write_summary(out: Path, summary: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write `summary.json` (headline numbers and the command) and `manifest.json` (settings and versions)."""
    command = " ".join(["python", *sys.argv])
    (out / "summary.json").write_text(
        json.dumps({"command": command, **summary}, indent=1, default=_number) + "\n"
    )
    manifest = {"command": command, "settings": settings, "versions": versions()}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, default=_number) + "\n")


def _number(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
