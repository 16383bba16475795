"""The official evaluator, in a process of its own for each video, with a time limit.

It is not part of this package: `pip install lmms-eval "opencv-python-headless<5"`, which may be another Python than
this one, or a clone of https://github.com/Video-Reason/VBVR-EvalKit (VBVR-Bench) or
https://github.com/Video-Reason/VBVR-Pro-Bench. A process for each video, as its rules are a hundred small programs, some of
which take minutes on a video that they were not made for, and OpenCV can take the process down with it.

Its rules read a video of any length, at most 100 frames of it, evenly spaced (`max_frames` of its `base_evaluator.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_lens.errors import TaskError
from dit_lens.tasks.files import check
from dit_lens.tasks.vbvr.files import FILES, read_prompt
from dit_lens.tasks.vbvr.metadata import NAME, read_metadata, require_metadata
from dit_lens.tasks.vbvr.scores import Scored, scored

CHILD = Path(__file__).with_name("child.py")
INSTALL = (
    'Install it with `pip install lmms-eval "opencv-python-headless<5"`; if that is another Python than this '
    "one, name it: score(..., python=...). Or give a clone of VBVR-EvalKit or of VBVR-Pro-Bench: score(..., evaluator=...)."
)
FEWEST_FRAMES = 5
"""Some rules give 0 to a video of fewer frames, without a look at it."""


class _NoAnswerError(Exception):
    """The evaluator's process gave no answer; says why."""


@dataclass(frozen=True)
class Evaluator:
    """The official evaluator, as it is installed.

    Attributes:
        package: its folder.
        code: hash of its code.
        reads_metadata: whether its rules read `metadata.json`, as those of VBVR-Pro-Bench do.
        opencv: version of its OpenCV.
        python: that runs it.
        time_limit: seconds for one video, the start of the process included.
    """

    package: str
    code: str
    reads_metadata: bool
    opencv: str
    python: str
    time_limit: float

    @property
    def benchmark(self) -> str:
        """The benchmark whose rules these are."""
        return "VBVR-Pro-Bench" if self.reads_metadata else "VBVR-Bench"

    def judge(self, root: Path, label: str, video: Path) -> Scored:
        """Judge one video; what goes wrong with it is the `error` of the result.

        Args:
            root: folder of the benchmark.
            label: `split/task/id` of the sample.
            video: to judge.
        """
        split, task, sample = label.split("/")
        name = {"file_split": split, "task_name": task, "video_idx": sample}
        try:
            check(video)
            truth = _truth(root / label, self.reads_metadata)
            info = {**name, "video_path": str(video.absolute()), "no_ssim_fallback": True, **truth}
            reply = _ask(self.python, {"evaluator": self.package, "info": info}, self.time_limit)
            return scored({**reply, **name}, label)
        except (TaskError, _NoAnswerError) as error:
            return scored({**name, "error": str(error)}, label)


def find_evaluator(
    python: str | Path | None = None, evaluator: str | Path | None = None, time_limit: float = 300.0
) -> Evaluator:
    """Find the official evaluator.

    Args:
        python: a Python in which it is installed. Default: this one.
        evaluator: folder of its package (`vbvr_bench`, `vbvr_pro_bench`), or the folder that holds it. Default: where
            that Python finds the package.
        time_limit: seconds for one video.

    Raises:
        TaskError: there is none, or several that judge by other rules; or OpenCV is missing, or 5 or later, with which some
            tasks score 0 in silence.
    """
    python = str(python or sys.executable)
    folder = None if evaluator is None else str(Path(evaluator).expanduser().absolute())
    try:
        reply = _ask(python, {"evaluator": folder}, time_limit)
    except _NoAnswerError as error:
        raise TaskError(
            f"vbvr.score: {python} cannot be asked for the evaluator: {error}. {INSTALL}"
        ) from error
    packages = reply.get("packages") or []
    if not packages:
        where = folder or f"{python} (lmms_eval, vbvr_bench, vbvr_pro_bench)"
        raise TaskError(f"vbvr.score: the official evaluator is not in {where}. {INSTALL}")
    if len({package["reads_metadata"] for package in packages}) > 1:
        listed = " and ".join(package["evaluator"] for package in packages)
        raise TaskError(
            f"vbvr.score: {python} has the evaluators of VBVR-Bench and of VBVR-Pro-Bench, whose scores are no one measure: "
            f"{listed}. Name one: score(..., evaluator=...)."
        )
    if not reply.get("opencv"):
        raise TaskError(
            f"vbvr.score: {python} has no OpenCV, which the evaluator needs ({reply.get('why')}). {INSTALL}"
        )
    if int(str(reply["opencv"]).partition(".")[0]) >= 5:
        raise TaskError(
            f"vbvr.score: {python} has OpenCV {reply['opencv']}, with which some tasks score 0 in silence. "
            f'Run `{python} -m pip install "opencv-python-headless<5"`.'
        )
    first = packages[0]
    return Evaluator(
        first["evaluator"], first["code"], first["reads_metadata"], reply["opencv"], python, time_limit
    )


def _truth(folder: Path, needs_metadata: bool = False) -> dict[str, Any]:
    """Return what the evaluator is told of the ground truth.

    Raises:
        TaskError: a part of the folder is missing; the evaluator would go on without.
    """
    for name in FILES:
        check(folder / name)
    (require_metadata if needs_metadata else read_metadata)(folder)
    at = str(folder.absolute())
    return {
        "gt_path": at,
        "gt_video_path": f"{at}/ground_truth.mp4",
        "gt_first_frame": f"{at}/first_frame.png",
        "gt_final_frame": f"{at}/final_frame.png",
        "prompt_path": f"{at}/prompt.txt",
        "prompt": read_prompt(folder / "prompt.txt"),
        "metafile_path": [f"{at}/{NAME}"],  # of VBVR-Pro-Bench
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
