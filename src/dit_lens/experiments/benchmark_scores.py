"""The official evaluator's scores of a study's videos; what was judged is not judged again.

A score stands in `OUT/scores/ARM/SPLIT/TASK/ID.json` as soon as it is there, under a key of the video, the ground truth and the
evaluator's code. A video that got no score is judged again by the next command: what is missing may have been installed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

from dit_lens.errors import StoreError, TaskError
from dit_lens.experiments.benchmark import checksum, evaluator_of, folder_of_arm, video_of
from dit_lens.experiments.cache import kept_json
from dit_lens.experiments.options import ScoredOptions
from dit_lens.plan.digests import digest
from dit_lens.tasks.vbvr.evaluator import Evaluator
from dit_lens.tasks.vbvr.files import FILES
from dit_lens.tasks.vbvr.metadata import NAME as METADATA
from dit_lens.tasks.vbvr.scores import Scored, as_dataset, measures_of

Place = tuple[str, int, str]
"""Arm, number of the noise seed, label of the sample."""


class _NoScoreError(Exception):
    """A video got no score, so nothing is kept."""

    def __init__(self, scored: Scored) -> None:
        self.scored = scored
        super().__init__(scored.error)


def scores(options: ScoredOptions, written: xr.DataArray) -> xr.Dataset:
    """Let the official evaluator judge the videos of every arm.

    Args:
        options: of the script.
        written: of `videos_of`, for all blocks, [sample, arm, seed], labelled by `split/task/id` and the arms' names.

    Returns:
        On [arm, seed, sample], `score` (NaN where there is none), `error` and `frames`, how many the evaluator read; on sample
        `split`, `task` and `category`. The attributes name the `measure`, the `benchmark` whose rules it is, and the `evaluator`.

    Raises:
        StoreError: a video is missing, or another command has written its own in its place.
        TaskError: the evaluator cannot be run, or its arms are of several measures.
    """
    evaluator = evaluator_of(options)
    arms, labels = written.arm.values.tolist(), written.sample.values.tolist()
    files: dict[Place, str] = {
        (arm, seed, label): file
        for arm, seeds in zip(arms, written.transpose("arm", "seed", "sample").values.tolist(), strict=True)
        for seed, column in enumerate(seeds)
        for label, file in zip(labels, column, strict=True)
    }
    _refuse_lost(options, files)
    judged = _judge_all(options, evaluator, files)
    parts = [
        xr.concat(
            [
                as_dataset([judged[arm, seed, label] for label in labels], f"arm {arm!r}")
                for seed in range(written.sizes["seed"])
            ],
            "seed",
            data_vars="all",
            coords="minimal",
            compat="override",
            combine_attrs="drop",
        )[["score", "error", "frames"]]
        for arm in arms
    ]
    text = np.dtypes.StringDType()
    out = xr.concat(parts, xr.Variable("arm", np.array(arms, text)), join="exact").drop_vars("id")
    known = {label: scored.category for (_, _, label), scored in judged.items() if scored.category}
    category = np.array([known.get(label, "") for label in labels], text)
    out = out.assign_coords(category=("sample", category))
    about = {"benchmark": evaluator.benchmark, "evaluator": evaluator.package, "opencv": evaluator.opencv}
    return out.assign_attrs(measure=_measure(judged), **about)


def _refuse_lost(options: ScoredOptions, files: Mapping[Place, str]) -> None:
    """Refuse to judge videos that are not those of the study's numbers."""
    lost = []
    for place, file in files.items():
        path = video_of(options, *place)
        if not path.exists() or checksum(path) != file:
            lost.append(path)
    if lost:
        raise StoreError(
            f"{lost[0]} and {len(lost) - 1} more videos are gone, or another command has written its own in their place, and "
            f"the numbers of the study that made them are kept: remove {options.out / 'blocks'}, and run the command again; "
            "give every command an --out of its own."
        )


def _judge_all(
    options: ScoredOptions, evaluator: Evaluator, files: Mapping[Place, str]
) -> dict[Place, Scored]:
    """Judge every video once, also one that stands for several seeds."""
    assert options.eval_root is not None
    root = options.eval_root.expanduser()
    truths = {label: _truth(root / label) for label in dict.fromkeys(label for *_, label in files)}
    paths = {place: video_of(options, *place) for place in files}
    tqdm.write(
        f"{evaluator.benchmark}: {len(set(paths.values())):,} videos, each in a process of the evaluator's own; what "
        f"{options.out / 'scores'} has of them is not judged again.",
        file=sys.stderr,
    )
    judged: dict[Path, Scored] = {}
    for place in tqdm(files, desc="evaluator", unit="video", leave=False):
        path, (arm, seed, label) = paths[place], place
        if path in judged:
            continue
        key = digest([files[place], truths[label], evaluator.code, evaluator.opencv])[:16]
        kept = options.out / "scores" / folder_of_arm(arm, seed) / f"{label}.json"
        judged[path] = _judge(evaluator, root, label, path, kept, key)
    return {place: judged[paths[place]] for place in files}


def _judge(evaluator: Evaluator, root: Path, label: str, video: Path, kept: Path, key: str) -> Scored:
    """Judge a video, or read its score."""

    def make() -> dict[str, object]:
        scored = evaluator.judge(root, label, video)
        if scored.error:
            raise _NoScoreError(scored)
        return asdict(scored)

    try:
        return Scored(**kept_json(kept, key, make))
    except _NoScoreError as failure:
        return failure.scored


def _truth(folder: Path) -> list[str]:
    """Return the hashes of a sample's files, which a score depends on."""
    files = [folder / name for name in (*FILES, METADATA)]
    return [checksum(path) if path.is_file() else "" for path in files]


def _measure(judged: Mapping[Place, Scored]) -> str:
    """Name what all scores measure.

    Raises:
        TaskError: they are of several measures.
    """
    measures = measures_of(scored for scored in judged.values() if not scored.error)
    if len(measures) > 1:
        raise TaskError(f"The videos are scored by several measures, which cannot be compared: {measures}.")
    return measures[0] if measures else "unknown"


__all__ = ["scores"]
