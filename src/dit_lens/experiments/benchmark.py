"""A study on a folder of VBVR-Bench, judged by its official evaluator: videos of every arm, and the paired table of scores.

Every arm writes `OUT/videos/ARM/SPLIT/TASK/ID.mp4`, the layout that the official evaluators read; `ARM` is a folder that
they can be run on, too. Beside the arms stands the static floor: the first frame, held. It is what a video that does nothing
gets, and for some measures that is most of the score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.errors import StoreError, TaskError
from dit_lens.experiments.cache import kept
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.plan.digests import digest
from dit_lens.tasks.sample import Sample, folder_name
from dit_lens.tasks.vbvr.evaluate import require_evaluator, score
from dit_lens.video import write_video

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch

FLOOR = "first frame held"
"""The arm in which nothing happens."""


def refuse_unscored(options: ScoredOptions) -> None:
    """Refuse samples that nothing would judge, before anything is computed.

    Raises:
        TaskError: samples of a benchmark without its evaluator, or scenes with it; or there is no evaluator.
    """
    if options.score == "vbvr" and options.eval_root is None:
        raise TaskError("--score vbvr goes with --eval-root, a folder of VBVR-Bench.")
    if options.score == "own" and not options.draws_scenes:
        raise TaskError(
            "This study is judged by a scorer, and samples of --eval-root or --image have none: add --score vbvr, with a "
            "folder of VBVR-Bench as --eval-root."
        )
    if options.score == "vbvr":
        require_evaluator(options.evaluator_python, options.evaluator)


def write_arm(
    options: ScoredOptions, arm: str, batch: Batch, latents: Tensor, pairs: Sequence[int]
) -> list[str]:
    """Write the videos of an arm; return what tells each from another, which a study keeps with its numbers (see `scores`).

    Args:
        options: of the script.
        arm: its name.
        batch: that decodes.
        latents: the last latents of the pairs, [pair, channel, frame, y, x].
        pairs: which of the batch's pairs are written, one for each sample.
    """
    return [
        _write(options, arm, batch.pairs[pair][0], batch.decode(latents[pair : pair + 1])[0], batch.rates)
        for pair in pairs
    ]


def write_floor(options: ScoredOptions, batch: Batch, pairs: Sequence[int]) -> list[str]:
    """Write the videos in which nothing happens, as `write_arm` does.

    Raises:
        TaskError: a sample has no first frame.
    """
    written = []
    for sample in (batch.pairs[pair][0] for pair in pairs):
        if sample.image is None:
            raise TaskError(f"{sample.task}/{sample.id} has no first frame to hold: leave --text-only out.")
        picture = np.asarray(sample.image.convert("RGB"))
        written.append(_write(options, FLOOR, sample, np.stack([picture] * sample.num_frames), batch.rates))
    return written


def _write(options: ScoredOptions, arm: str, sample: Sample, frames: Any, rates: Mapping[str, float]) -> str:
    path = _video(options, arm, f"{sample.task}/{sample.id}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(frames, path, fps=rates.get("video", 16.0))
    return _checksum(path)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _video(options: ScoredOptions, arm: str, label: str) -> Path:
    return options.out / "videos" / folder_name(arm) / f"{label}.mp4"


def scores(options: ScoredOptions, written: xr.DataArray) -> xr.Dataset:
    """Let the official evaluator judge the videos of every arm; what it has judged is not judged again.

    Args:
        options: of the script.
        written: what `write_arm` returned, on [arm, sample], labelled by the arms' names and by `split/task/id`.

    Returns:
        On [arm, sample], `score` (NaN where there is none) and `error`; on sample `split`, `task` and `category`. The attribute
        `measure` names what the evaluator measures.

    Raises:
        StoreError: a video is missing, or another command has written its own in its place.
        TaskError: the evaluator cannot be run, or its arms are of several measures.
    """
    assert options.eval_root is not None
    judged, arms, labels = [], written.arm.values.tolist(), written.sample.values.tolist()
    for arm in arms:
        videos = {label: _video(options, arm, label) for label in labels}
        files = dict(zip(labels, written.sel(arm=arm).values.tolist(), strict=True))
        lost = [
            path for label, path in videos.items() if not path.exists() or _checksum(path) != files[label]
        ]
        if lost:
            raise StoreError(
                f"{lost[0]} and {len(lost) - 1} more videos are gone, or another command has written its own in their place, and "
                f"the numbers of the study that made them are kept: remove {options.out / 'blocks'}, and run the command again; "
                "give every command an --out of its own."
            )
        how = [str(options.evaluator), str(options.evaluator_python), options.time_limit]

        def judge(videos: Mapping[str, str | Path] = videos) -> xr.Dataset:
            return score(
                options.eval_root or "",
                videos,
                options.time_limit,
                options.evaluator_python,
                options.evaluator,
            )

        judged.append(kept(options.out / "scores" / folder_name(arm), digest([files, how])[:12], judge))
    measures = sorted({data.attrs["measure"] for data in judged if bool(data.score.notnull().any())})
    if len(measures) > 1:
        raise TaskError(f"The arms are scored by several measures, which cannot be compared: {measures}.")
    parts = [data[["score", "error"]].reset_coords(drop=True).sel(sample=list(labels)) for data in judged]
    text = np.dtypes.StringDType()
    out = xr.concat(parts, xr.Variable("arm", np.array(list(arms), text)), join="exact")
    known = [next((c for c in column if c), "") for column in np.array([d.category.values for d in judged]).T]
    split, task = (np.array([label.split("/")[i] for label in labels], text) for i in (0, 1))
    out = out.assign_coords(
        split=("sample", split), task=("sample", task), category=("sample", np.array(known, text))
    )
    return out.assign_attrs(measure=", ".join(measures) or "unknown")


def table(judged: xr.Dataset, baseline: str) -> list[dict[str, Any]]:
    """Compare every arm with one of them, paired: of all samples, of each split and of each category.

    Tasks are what is drawn, not samples: a sample counts within its task's mean, and an interval is over tasks. A sample that one
    of the two arms has no score for is left out of their comparison, and counted.

    Args:
        judged: of `scores`.
        baseline: the arm that the others are compared with.

    Returns:
        A row for each group and arm, as plain data.
    """
    groups = {"all": np.ones(judged.sizes["sample"], bool)}
    for kind in ("split", "category"):
        values = judged[kind].values
        groups |= {f"{kind} {name}": values == name for name in dict.fromkeys(values.tolist()) if name}
    rows = []
    for group, inside in groups.items():
        part = judged.isel(sample=np.flatnonzero(inside))
        base = part.score.sel(arm=baseline)
        for arm in judged.arm.values.tolist():
            values = part.score.sel(arm=arm)
            both = np.flatnonzero((base.notnull() & values.notnull()).values)
            row: dict[str, Any] = {"group": group, "arm": arm, "samples": len(both)}
            row["without a score"] = part.sizes["sample"] - len(both)
            if len(both):
                row |= _compared(*(_by_task(v.isel(sample=both)) for v in (values, base)))
            rows.append(row)
    return rows


def _by_task(values: xr.DataArray) -> xr.DataArray:
    """Return the mean of each task's samples; tasks of two splits are two."""
    names = [f"{s}/{t}" for s, t in zip(values.split.values, values.task.values, strict=True)]
    means = values.reset_coords(drop=True).assign_coords(sample=np.array(names, object))
    return means.groupby("sample").mean()


def _compared(values: xr.DataArray, base: xr.DataArray) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tasks": values.sizes["sample"],
        "score": float(values.mean()),
        "baseline": float(base.mean()),
        "difference": float((values - base).mean()),
    }
    if values.sizes["sample"] > 1:
        found = headline(analysis.effect(values, base, bounds=(0, 1)))
        row |= {"low": found["low"], "high": found["high"]}
    return row


def write_table(options: ScoredOptions, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table beside the summary, as `vbvr.csv`."""
    import pandas as pd

    pd.DataFrame(list(rows)).to_csv(options.out / "vbvr.csv", index=False)


__all__ = ["FLOOR", "refuse_unscored", "scores", "table", "write_arm", "write_floor", "write_table"]
