"""A study on a folder of VBVR-Bench, judged by its official evaluator: the videos of every arm.

Every arm writes `OUT/videos/ARM/SPLIT/TASK/ID.mp4`, the layout that the official evaluators read; `ARM` is a folder that
they can be run on, too. Another noise seed of a sample is written to a folder of its own, `ARM, seed 2`. Beside the arms
stands the static floor: the first frame, held. It is what a video that does nothing gets, and for some measures that is most
of the score.

A study takes four lines: `refuse_unscored` before anything is computed, `write_arm` and `write_floor` for each block, `videos_of`
for what the block keeps, and `benchmark_table.conclude` in the end.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.options import ScoredOptions
from dit_lens.tasks.pairs import Pair, numbers
from dit_lens.tasks.sample import Sample, folder_name
from dit_lens.tasks.vbvr import layout, metadata
from dit_lens.tasks.vbvr.evaluator import FEWEST_FRAMES, Evaluator, find_evaluator
from dit_lens.video import write_video

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch

FLOOR = "first frame held"
"""The arm in which nothing happens."""


def refuse_unscored(options: ScoredOptions, needs_scorer: bool = True) -> None:
    """Refuse samples that nothing would judge, before anything is computed.

    Args:
        options: of the script.
        needs_scorer: whether the study says nothing without right and wrong; others report distances.

    Raises:
        TaskError: samples of a benchmark without its evaluator, or scenes with it; there is no evaluator, or it cannot judge
            samples of this folder, or videos so short.
    """
    if options.score == "own":
        if needs_scorer and not options.draws_scenes:
            raise TaskError(
                "This study is judged by a scorer, and samples of --eval-root or --image have none: add --score vbvr, with a "
                "folder of VBVR-Bench as --eval-root."
            )
        return
    if options.eval_root is None:
        raise TaskError("--score vbvr goes with --eval-root, a folder of VBVR-Bench.")
    if options.text_only:
        raise TaskError(
            "--score vbvr --text-only: the evaluator begins at the first frame; leave --text-only out."
        )
    if options.num_frames is not None:
        refuse_short("--num-frames", [options.num_frames])
    _refuse_without_metadata(options, evaluator_of(options))


def refuse_short(option: str, counts: Sequence[int]) -> None:
    """Refuse videos that some rules of the evaluator would give 0 without a look at them.

    Raises:
        TaskError: it names the option.
    """
    if short := [count for count in counts if count < FEWEST_FRAMES]:
        raise TaskError(
            f"{option} {', '.join(map(str, short))}: some rules of the evaluator give a video of fewer than {FEWEST_FRAMES} "
            f"frames 0 without a look at it; give {FEWEST_FRAMES} or more."
        )


def evaluator_of(options: ScoredOptions) -> Evaluator:
    """Find the evaluator that the options name.

    Raises:
        TaskError: there is none that can be run.
    """
    return find_evaluator(options.evaluator_python, options.evaluator, options.time_limit)


def _refuse_without_metadata(options: ScoredOptions, evaluator: Evaluator) -> None:
    """Refuse a folder of VBVR-Bench with the evaluator of VBVR-Pro-Bench; warn of the reverse."""
    assert options.eval_root is not None
    root = options.eval_root.expanduser()
    entries = layout.find(root, options.split, options.tasks)[: options.samples]
    with_metadata = [e for e in entries if (e.folder / metadata.NAME).exists()]
    if evaluator.reads_metadata and not with_metadata:
        raise TaskError(
            f"{evaluator.package} is the evaluator of VBVR-Pro-Bench, and no sample of {root} has the {metadata.NAME} that it "
            "judges by: give a folder of VBVR-Pro-Bench-Video as --eval-root, or the evaluator of VBVR-Bench as --evaluator."
        )
    if not evaluator.reads_metadata and len(with_metadata) == len(entries):
        warnings.warn(
            f"every sample of {root} has {metadata.NAME}, as in VBVR-Pro-Bench, and {evaluator.package} is the evaluator of "
            "VBVR-Bench, which does not read it: the scores are by the rules of VBVR-Bench",
            stacklevel=3,
        )


def write_arm(
    options: ScoredOptions, arm: str, batch: Batch, latents: Tensor, pairs: Sequence[int] | None = None
) -> list[str]:
    """Write the videos of an arm, each as soon as it is decoded.

    Args:
        options: of the script.
        arm: its name.
        batch: that decodes.
        latents: the last latents of the batch's pairs, [pair, channel, frame, y, x].
        pairs: which of them are written. Default: all.

    Returns:
        What tells each video from another, which a study keeps with its numbers (see `videos_of`).
    """
    samples = numbers(batch.pairs)
    written, seeds = [], dict.fromkeys(samples, 0)
    for pair in range(len(batch.pairs)) if pairs is None else pairs:
        sample, seed = batch.pairs[pair][0], seeds[samples[pair]]
        seeds[samples[pair]] += 1
        frames = batch.decode(latents[pair : pair + 1])[0]
        written.append(_write(video_of(options, arm, seed, _label(sample)), frames, batch.rates))
    return written


def write_floor(options: ScoredOptions, pairs: Sequence[Pair], rates: Mapping[str, float]) -> list[str]:
    """Write the videos in which nothing happens, one for each sample, as long as the sample asks for.

    Args:
        options: of the script.
        pairs: a sample and a noise seed each.
        rates: of the batch that the arms come from; frames per second among them.

    Returns:
        What tells each pair's video from another, as of `write_arm`.

    Raises:
        TaskError: a sample has no first frame.
    """
    written: dict[str, str] = {}
    for sample, _ in pairs:
        if sample.image is None:
            raise TaskError(f"{_label(sample)} has no first frame to hold: leave --text-only out.")
        if _label(sample) not in written:
            frames = np.stack([np.asarray(sample.image.convert("RGB"))] * sample.num_frames)
            path = video_of(options, FLOOR, 0, _label(sample))
            written[_label(sample)] = _write(path, frames, rates)
    return [written[_label(sample)] for sample, _ in pairs]


def videos_of(pairs: Sequence[Pair], written: Mapping[str, Sequence[str]]) -> xr.DataArray:
    """Return what tells the videos of a block from others, [sample, arm, seed], for a study to keep as `video`.

    Args:
        pairs: that were written.
        written: what `write_arm` and `write_floor` returned, by arm.
    """
    text = np.dtypes.StringDType()
    data = xr.Dataset({"video": (("arm", "pair"), np.array(list(written.values()), text))})
    data = data.assign_coords(arm=np.array(list(written), text))
    return by_sample(data, pairs).video.drop_vars("noise_seed").transpose("sample", "arm", "seed")


def video_of(options: ScoredOptions, arm: str, seed: int, label: str) -> Path:
    """Return where a video stands; the floor has one for all seeds."""
    return options.out / "videos" / folder_of_arm(arm, seed) / f"{label}.mp4"


def folder_of_arm(arm: str, seed: int) -> str:
    """Return the folder of an arm's videos with one noise seed of each sample: two arms never share one."""
    return folder_name(arm if seed == 0 or arm == FLOOR else f"{arm}, seed {seed + 1}")


def checksum(path: Path) -> str:
    """Return the hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _label(sample: Sample) -> str:
    return f"{sample.task}/{sample.id}"


def _write(path: Path, frames: Any, rates: Mapping[str, float]) -> str:
    write_video(frames, path, fps=rates.get("video", 16.0))
    return checksum(path)


__all__ = [
    "FLOOR",
    "checksum",
    "evaluator_of",
    "folder_of_arm",
    "refuse_short",
    "refuse_unscored",
    "video_of",
    "videos_of",
    "write_arm",
    "write_floor",
]
