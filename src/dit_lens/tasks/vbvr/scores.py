"""Scores of the official evaluator: its JSON as a Dataset.

Three programs write three forms:

- `samples` + `summary`: `run_evaluation.py` of https://github.com/Video-Reason/VBVR-EvalKit, and
  `run_evaluation_video.py` of https://github.com/Video-Reason/VBVR-Pro-Bench. An entry has `folder`
  (`In-Domain_50`), `split` (`In_Domain`), `task_name`, `video_file` (`00000.mp4`), `score`, `error` (or null).
  These scores are of the task's own rules only.
- `detailed` + `by_task` + `by_category`: `VBVRBench.evaluate` of the same kit, also vendored by lmms-eval in
  `lmms_eval/tasks/vbvr/vbvr_bench/__init__.py`. An entry has `split` (`In_Domain`), `task_name`, `video_idx`,
  `video_path`, `score`, `details`, and `error` only where there was one. By default these scores are a weighted
  mean over five dimensions, of which the task's own rules are a quarter: another measure than the first.
- `results` + `summary`: `vbvr_aggregate_submission` of `lmms_eval/tasks/vbvr/utils.py` (lmms-eval 0.7.3), with
  `file_split`, `video_idx` and `status`.

All write a score of 0 next to an error; here an error has no score. An `error` inside `details` is another
thing: a task's rules saying why an answer is wrong (`no_marking_found`); that is a true 0.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_lens.errors import TaskError

if TYPE_CHECKING:
    import xarray as xr

SCHEMAS = {"samples": "samples + summary", "detailed": "detailed + by_task", "results": "results + summary"}
FOLDERS = {"In_Domain": "In-Domain_50", "Out_of_Domain": "Out-of-Domain_50"}
"""The evaluator's names of the splits, and the folders' names, which are used here."""

TASK_ONLY, WEIGHTED = "task-specific rules", "weighted over dimensions"


@dataclass(frozen=True)
class Scored:
    """The score of one video, or why there is none.

    Attributes:
        split: folder of the split.
        task: folder of the task.
        id: folder of the sample.
        score: in [0, 1]; NaN where there is an error.
        error: why there is no score; empty where there is one.
        category: the evaluator's group of tasks, where it says.
        dimensions: scores by dimension, where it says.
        frames: of the video that the evaluator read, where it says.
    """

    split: str
    task: str
    id: str
    score: float
    error: str = ""
    category: str = ""
    dimensions: Mapping[str, float] = field(default_factory=dict)
    frames: int | None = None

    @property
    def label(self) -> str:
        """`split/task/id`."""
        return f"{self.split}/{self.task}/{self.id}"


def read_scores(path: str | Path | Sequence[str | Path]) -> xr.Dataset:
    """Read what the official evaluator wrote.

    Args:
        path: its JSON file, or several that together are one evaluation (such as one for each split).

    Returns:
        On `sample`, labelled `split/task/id`, with the coordinates `split`, `task` and `id`: `score` in [0, 1],
        NaN where there is an error; `error`, why there is no score, empty where there is one; `category`; `frames`, how many
        of the video the evaluator read, NaN where it does not say; and `dimensions` [sample, dimension]. `attrs` names the
        form, the measure and the files.

    Raises:
        TaskError: no such file, a form that is not known, several forms (their scores measure different
            things), a sample that comes twice, or a score outside [0, 1].
    """
    paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    if not paths:
        raise TaskError("read_scores: no file given. Give the evaluator's JSON file.")
    scores: list[Scored] = []
    forms: dict[str, Path] = {}
    for one in paths:
        form, entries = _entries(one)
        forms.setdefault(form, one)
        scores += [scored(entry, f"{one}: {form}[{i}]") for i, entry in enumerate(entries)]
    if len(forms) > 1:
        said = ", ".join(f"{p} ({SCHEMAS[form]})" for form, p in forms.items())
        raise TaskError(
            f"read_scores: the files have several forms, whose scores may measure different things: {said}. "
            "Read each form by itself."
        )
    data = as_dataset(scores, ", ".join(map(str, paths)))
    data.attrs |= {"schema": SCHEMAS[next(iter(forms))], "source": [str(p) for p in paths]}
    return data


def _entries(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the form of a file, by the name of its list, and its entries."""
    if not path.is_file():
        raise TaskError(f"read_scores: there is no file {path}. Give the JSON file that the evaluator wrote.")
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise TaskError(
            f"read_scores: {path} is not JSON ({error}). Was the evaluator interrupted? Run it again."
        ) from error
    forms = [name for name in SCHEMAS if isinstance(content, dict) and isinstance(content.get(name), list)]
    if len(forms) > 1:
        raise TaskError(
            f"read_scores: {path} mixes forms, it has {' and '.join(forms)}. Read the original files."
        )
    if not forms:
        has = ", ".join(list(content)[:6]) if isinstance(content, dict) else type(content).__name__
        raise TaskError(
            f"read_scores: {path} has a form that is not known (it has: {has}); expected samples + summary, or "
            "detailed + by_task. Give the file with a score for each video, not that of all models."
        )
    entries = content[forms[0]]
    if any(not isinstance(e, dict) for e in entries):
        raise TaskError(
            f"read_scores: {path}: {forms[0]} holds something other than objects. Run the evaluator again."
        )
    return forms[0], entries


def scored(entry: Mapping[str, Any], where: str) -> Scored:
    """Read one entry of the evaluator's.

    Raises:
        TaskError: it does not say which sample it is, or has a score outside [0, 1].
    """
    task = entry.get("task_name")
    if not isinstance(task, str) or not task:
        raise TaskError(f"read_scores: {where} has no task_name. Run the evaluator again.")
    error = _error(entry)
    score = entry.get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    if not error and not number:
        raise TaskError(
            f"read_scores: {where} ({task}) has the score {score!r}; a score is a number in [0, 1]."
        )
    dimensions = entry.get("dimensions") or {}
    return Scored(
        split=_split(entry, task, where),
        task=task,
        id=_id(entry, task, where),
        score=math.nan if error else float(score),  # type: ignore[arg-type]
        error=error,
        category=str(entry.get("category") or ""),
        dimensions={k: float(v) for k, v in dimensions.items() if isinstance(v, int | float)},
        frames=_frames(entry),
    )


def _error(entry: Mapping[str, Any]) -> str:
    """Return why an entry has no score; empty where it has one."""
    if entry.get("error"):
        return str(entry["error"])
    if entry.get("status", "ok") != "ok":
        return str(entry["status"])
    if _frames(entry) == 0:
        # The evaluator goes on, and gives half marks for what it did not see.
        return "the evaluator read no frames of the video"
    return "the score is not a number" if _is_nan(entry.get("score")) else ""


def _frames(entry: Mapping[str, Any]) -> int | None:
    """Return how many frames of the video the evaluator read, where it says."""
    details = entry.get("details")
    count = details.get("video_frame_count") if isinstance(details, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _is_nan(score: Any) -> bool:
    return score is None or (isinstance(score, float) and math.isnan(score))


def _split(entry: Mapping[str, Any], task: str, where: str) -> str:
    """Return the folder of the split: as said, or as it stands in the video's path, or from its other name."""
    said = entry.get("file_split") or entry.get("folder")
    parts = PurePosixPath(str(entry.get("video_path") or "")).parts
    if not said and len(parts) >= 3 and parts[-2] == task and parts[-3] in FOLDERS.values():
        said = parts[-3]
    said = said or entry.get("split")
    if not said:
        raise TaskError(f"read_scores: {where} ({task}) has no split. Run the evaluator again.")
    return FOLDERS.get(said, str(said))


def _id(entry: Mapping[str, Any], task: str, where: str) -> str:
    """Return the folder of the sample: as it is spelt; a number that was spelt nowhere has five digits."""
    for key in ("video_idx", "video_file", "video_path"):
        value = entry.get(key)
        if isinstance(value, str) and value:
            return PurePosixPath(value).stem
    value = entry.get("video_idx")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).zfill(5)
    raise TaskError(
        f"read_scores: {where} ({task}) has none of video_idx, video_file and video_path: "
        "which sample it is cannot be told."
    )


def as_dataset(scores: Sequence[Scored], source: str) -> xr.Dataset:
    """Turn scores into a Dataset on `sample`.

    Raises:
        TaskError: a sample comes twice.
    """
    import xarray as xr

    twice = [label for label, n in Counter(s.label for s in scores).items() if n > 1]
    if twice:
        raise TaskError(
            f"{source}: {len(twice)} samples are scored more than once, such as {twice[0]}. "
            "Give one evaluation of one model."
        )
    text = np.dtypes.StringDType()
    names = sorted({name for s in scores for name in s.dimensions})
    table = np.array([[s.dimensions.get(n, math.nan) for n in names] for s in scores], float)
    columns = {k: np.array([getattr(s, k) for s in scores], text) for k in ("split", "task", "id")}
    data = xr.Dataset(
        {
            "score": (
                "sample",
                np.array([s.score for s in scores], float),
                {"long_name": "VBVR-Bench score"},
            ),
            "error": ("sample", np.array([s.error for s in scores], text)),
            "category": ("sample", np.array([s.category for s in scores], text)),
            "frames": ("sample", np.array([s.frames for s in scores], float)),
            "dimensions": (("sample", "dimension"), table.reshape(len(scores), len(names))),
        },
        {
            "sample": np.array([s.label for s in scores], text),
            "dimension": np.array(names, text),
            **{k: ("sample", v) for k, v in columns.items()},
        },
    )
    data.attrs["measure"] = ", ".join(measures_of(scores)) or "unknown"
    return data


def measures_of(scores: Iterable[Scored]) -> list[str]:
    """Return what scores measure, as far as they say."""
    return sorted(
        {TASK_ONLY if set(s.dimensions) == {"task_specific"} else WEIGHTED for s in scores if s.dimensions}
    )
