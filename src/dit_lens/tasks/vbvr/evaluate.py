"""Running the official evaluator on videos, each in a process of its own with a time limit.

The evaluator is not part of this package: `pip install lmms-eval "opencv-python-headless<5"`, which may be
another Python than this one, or a clone of https://github.com/Video-Reason/VBVR-EvalKit. A process for each
video, as its rules are a hundred small programs, some of which take minutes on a video that they were not
made for, and OpenCV can take the process down with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dit_lens.errors import TaskError
from dit_lens.tasks.files import check
from dit_lens.tasks.vbvr.files import FILES, read_prompt
from dit_lens.tasks.vbvr.layout import by_number
from dit_lens.tasks.vbvr.sample import metadata_problem
from dit_lens.tasks.vbvr.scores import Scored, as_dataset, scored

if TYPE_CHECKING:
    import xarray as xr

CHILD = Path(__file__).with_name("child.py")
INSTALL = (
    'Install it with `pip install lmms-eval "opencv-python-headless<5"`; if that is another Python than this '
    "one, name it: score(..., python=...). Or give a clone of VBVR-EvalKit: score(..., evaluator=...)."
)


class _NoAnswerError(Exception):
    """The evaluator's process gave no answer; says why."""


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
        evaluator: folder of the evaluator's package (`vbvr_bench`), or the folder that holds it. Default:
            where that Python finds the package.

    Returns:
        As `read_scores` returns, on `sample` in the order of numbers.

    Raises:
        TaskError: no evaluator, OpenCV 5 or later (with which some tasks score 0 in silence), or no videos.
    """
    root = Path(root).expanduser()
    jobs = _videos(videos)
    python, request = str(python or sys.executable), _request(evaluator)
    evaluator_versions = _check(python, request, time_limit)
    results = [
        _score_one(root, label, video, python, request, time_limit)
        for label, video in tqdm(jobs.items(), desc="evaluator", unit="video", leave=False)
    ]
    data = as_dataset(results, "vbvr.score")
    data.attrs |= {
        "schema": "dit_lens",
        "evaluator": evaluator_versions["evaluator"],
        "opencv": evaluator_versions["opencv"],
    }
    return data


def require_evaluator(
    python: str | Path | None = None, evaluator: str | Path | None = None, time_limit: float = 300.0
) -> None:
    """Refuse to go on where the official evaluator cannot be run; arguments as those of `score`.

    Raises:
        TaskError: no evaluator, or OpenCV 5 or later.
    """
    _check(str(python or sys.executable), _request(evaluator), time_limit)


def _request(evaluator: str | Path | None) -> dict[str, Any]:
    return {"evaluator": None if evaluator is None else str(Path(evaluator).expanduser().absolute())}


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


def _check(python: str, request: dict[str, Any], time_limit: float) -> dict[str, Any]:
    """Ask the evaluator's Python what it has.

    Raises:
        TaskError: no evaluator, or an OpenCV with which it goes wrong.
    """
    try:
        reply = _ask(python, request, time_limit)
    except _NoAnswerError as error:
        raise TaskError(
            f"vbvr.score: {python} cannot be asked for the evaluator: {error}. {INSTALL}"
        ) from error
    if not reply.get("evaluator"):
        where = request["evaluator"] or f"{python} (lmms_eval, vbvr_bench)"
        raise TaskError(f"vbvr.score: the official evaluator is not in {where}. {INSTALL}")
    if not reply.get("opencv"):
        raise TaskError(
            f"vbvr.score: {python} has no OpenCV, which the evaluator needs ({reply.get('why')}). {INSTALL}"
        )
    if int(str(reply["opencv"]).partition(".")[0]) >= 5:
        raise TaskError(
            f"vbvr.score: {python} has OpenCV {reply['opencv']}, with which some tasks score 0 in silence. "
            f'Run `{python} -m pip install "opencv-python-headless<5"`.'
        )
    return reply


def _score_one(
    root: Path, label: str, video: Path, python: str, request: dict[str, Any], time_limit: float
) -> Scored:
    split, task, sample = label.split("/")
    name = {"file_split": split, "task_name": task, "video_idx": sample}
    try:
        check(video)
        info = {**name, "video_path": str(video.absolute()), **_truth(root / label)}
        reply = _ask(python, {**request, "info": info}, time_limit)
        return scored({**reply, **name}, label)
    except (TaskError, _NoAnswerError) as error:
        return scored({**name, "error": str(error)}, label)


def _truth(folder: Path) -> dict[str, Any]:
    """Return what the evaluator is told of the ground truth.

    Raises:
        TaskError: a part of the folder is missing; the evaluator would go on without.
    """
    for name in FILES:
        check(folder / name)
    if problem := metadata_problem(folder):
        raise TaskError(problem)
    at = str(folder.absolute())
    return {
        "gt_path": at,
        "gt_video_path": f"{at}/ground_truth.mp4",
        "gt_first_frame": f"{at}/first_frame.png",
        "gt_final_frame": f"{at}/final_frame.png",
        "prompt_path": f"{at}/prompt.txt",
        "prompt": read_prompt(folder / "prompt.txt"),
        "metafile_path": [f"{at}/metadata.json"],  # of VBVR-Pro-Bench
    }


def _ask(python: str, request: dict[str, Any], time_limit: float) -> dict[str, Any]:
    """Send a request to the evaluator's Python, and return its answer.

    Raises:
        _NoAnswerError: no answer in time, a crash, or something else than an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        try:
            with log.open("wb") as out:  # a file, as a pipe could be kept open by a grandchild
                done = subprocess.run(
                    [python, str(CHILD), str(answer)],
                    input=json.dumps(request).encode(),
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=time_limit,
                )
        except subprocess.TimeoutExpired:
            raise _NoAnswerError(f"no answer from the evaluator within {time_limit:g} s") from None
        except OSError as error:
            raise _NoAnswerError(str(error)) from error
        said = log.read_text(errors="replace").strip().splitlines()[-1:]
        if done.returncode:
            raise _NoAnswerError(f"the evaluator ended with exit code {done.returncode}: {' '.join(said)}")
        try:
            reply = json.loads(answer.read_text())
        except (OSError, ValueError) as error:
            raise _NoAnswerError(f"the evaluator wrote no answer that can be read ({error})") from error
        if not isinstance(reply, dict):
            raise _NoAnswerError(f"the evaluator answered {str(reply)[:80]!r}, not an object")
        return reply
