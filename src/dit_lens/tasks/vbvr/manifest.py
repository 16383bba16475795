"""What should be there, by `VBVR-Bench.json` at the root of a benchmark.

A list of objects, one for each sample, with paths relative to the root in `first_frame_path`,
`final_frame_path`, `prompt_path` and `ground_truth_video_path` (and the picture itself in base64, so the file
is large). Seen in its readers: `_parse_task_meta` of `lmms_eval/tasks/vbvr/utils.py` in
https://github.com/EvolvingLMMs-Lab/lmms-eval, and README of https://github.com/Video-Reason/VBVR-EvalKit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dit_lens.errors import TaskError
from dit_lens.tasks.files import check

NAME = "VBVR-Bench.json"
PATHS = ("first_frame_path", "final_frame_path", "prompt_path", "ground_truth_video_path")

Known = tuple[str, str, str]
"""Split, task and id."""


def read_manifest(root: Path) -> tuple[list[Known], str]:
    """Return the samples that a manifest names, and a note where there is none that could be used.

    A manifest is a help, so one of another form is left aside with a note.
    """
    path = root / NAME
    if not path.exists():
        return [], f"no {NAME}, so samples that are missing altogether are not noticed"
    try:
        check(path)
        entries = [_known(item) for item in json.loads(path.read_text("utf-8-sig"))]
    except TaskError as error:
        return [], f"manifest not used: {error}"
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        return [], f"manifest not used: {path} has a form that is not known ({type(error).__name__}: {error})"
    return entries, ""


def _known(item: Any) -> Known:
    path = next(item[key] for key in PATHS if item.get(key)) if any(item.get(k) for k in PATHS) else ""
    split, task, sample, _ = path.removeprefix("./").split("/")
    return split, task, sample
