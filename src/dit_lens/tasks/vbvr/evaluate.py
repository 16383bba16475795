"""Many videos judged by the official evaluator, as a Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dit_lens.errors import TaskError
from dit_lens.tasks.vbvr.evaluator import find_evaluator
from dit_lens.tasks.vbvr.layout import by_number
from dit_lens.tasks.vbvr.scores import as_dataset

if TYPE_CHECKING:
    import xarray as xr


def score(
    root: str | Path,
    videos: str | Path | Mapping[str, str | Path],
    time_limit: float = 300.0,
    python: str | Path | None = None,
    evaluator: str | Path | None = None,
) -> xr.Dataset:
    """Judge videos with the official evaluator, by the rules of each task.

    What goes wrong with one video is the `error` of that sample, never a score of 0, and does not stop the
    others. To score what a model believed along its steps, decode x0 of each step to a video and call this
    once for a step; `xr.concat(of_each_step, "step")` then is the score on (step, sample).

    Args:
        root: the folder of the benchmark, which holds the ground truth.
        videos: a folder laid out as `In-Domain_50/<task>/00000.mp4`; or videos by label,
            `{"In-Domain_50/<task>/00000": "somewhere/x0.mp4"}`, where a label is `f"{sample.task}/{sample.id}"`.
        time_limit: seconds for one video, the start of the process included.
        python: a Python in which the evaluator is installed. Default: this one.
        evaluator: folder of the evaluator's package (`vbvr_bench`, `vbvr_pro_bench`), or the folder that holds it.
            Default: where that Python finds the package.

    Returns:
        As `read_scores` returns, on `sample` in the order of numbers. `attrs` also has `benchmark`, whose rules judged.

    Raises:
        TaskError: no evaluator, OpenCV 5 or later (with which some tasks score 0 in silence), or no videos.
    """
    root = Path(root).expanduser()
    jobs = _videos(videos)
    official = find_evaluator(python, evaluator, time_limit)
    results = [
        official.judge(root, label, video)
        for label, video in tqdm(jobs.items(), desc="evaluator", unit="video", leave=False)
    ]
    data = as_dataset(results, "vbvr.score")
    data.attrs |= {
        "schema": "dit_lens",
        "benchmark": official.benchmark,
        "evaluator": official.package,
        "opencv": official.opencv,
    }
    return data


def _videos(videos: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    """Return the videos by label, in the order of numbers.

    Raises:
        TaskError: there are none, or a label is not split/task/id.
    """
    if isinstance(videos, Mapping):
        paths = {label: Path(path).expanduser() for label, path in videos.items()}
    else:
        folder = Path(videos).expanduser()
        below = [p.relative_to(folder) for p in folder.glob("*/*/*.mp4")]
        paths = {
            p.with_suffix("").as_posix(): folder / p
            for p in below
            if not any(part.startswith(".") for part in p.parts)
        }
    for label in paths:
        if len(label.split("/")) != 3:
            raise TaskError(
                f"vbvr.score: the label {label!r} is not split/task/id, such as "
                "'In-Domain_50/O-39_maze_data-generator/00000'."
            )
    if not paths:
        said = "none given" if isinstance(videos, Mapping) else f"none in {videos}"
        raise TaskError(f"vbvr.score: no videos, {said}. Lay them out as In-Domain_50/<task>/00000.mp4.")
    return dict(sorted(paths.items(), key=lambda item: by_number(item[0])))
