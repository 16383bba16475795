"""`metadata.json` of a sample: the symbolic ground truth that the evaluator of VBVR-Pro-Bench judges by.

The kit of VBVR-Pro-Bench (https://github.com/Video-Reason/VBVR-Pro-Bench, README, "Download Ground Truth Data") lays its video
setting out as VBVR-Bench is laid out, and adds this file to every sample. Its rules look up grids, positions and answers in
`parameters` and `semantic_ground_truth`. Where these are missing, many rules give 0 or judge by something else, and say
nothing; so a file without them is refused here. Other keys differ from task to task, and are left to the evaluator.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dit_lens.tasks.files import BrokenFileError, check

NAME = "metadata.json"
KEYS = ("parameters", "semantic_ground_truth")
"""What the rules look answers up in; a task has one of them or both."""


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return what the file says; nothing where there is none, as VBVR-Bench needs none.

    Args:
        folder: of the sample.

    Raises:
        BrokenFileError: it is not whole, no JSON, or no object.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    check(path)
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(path, "metadata is not JSON", str(error)) from error
    if not isinstance(content, dict):
        raise BrokenFileError(path, "metadata is no object", f"it is {type(content).__name__}")
    return content


def require_metadata(folder: Path) -> None:
    """Refuse a sample that the evaluator of VBVR-Pro-Bench cannot judge.

    Args:
        folder: of the sample.

    Raises:
        BrokenFileError: there is no file, or it does not hold what the rules look up; names file and key.
    """
    path = folder / NAME
    check(path)
    content = read_metadata(folder)
    for key in KEYS:
        if not isinstance(content.get(key, {}), dict):
            kind = type(content[key]).__name__
            raise BrokenFileError(path, f"metadata has no object under {key!r}", f"{kind} stands there")
    if not any(content.get(key) for key in KEYS):
        has = ", ".join(content) or "nothing"
        raise BrokenFileError(path, f"metadata has neither {' nor '.join(map(repr, KEYS))}", f"it has {has}")


def unread(content: dict[str, Any]) -> set[str]:
    """Return the keys of the file that nothing here reads."""
    return set(content) - set(KEYS)
