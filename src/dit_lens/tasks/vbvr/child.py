"""What runs in the evaluator's own process: find it, judge one video, write the result to a file.

Run as a script, by a Python that may lack `dit_lens` and be older: standard library and the evaluator only.
It reads a request (JSON) from stdin and writes the result to the file named in its first argument, as the
evaluators print to stdout. lmms-eval is not imported, only found: its `tasks/__init__` imports torch and much
more, of which `vbvr_bench` needs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

WHERE = (
    ("lmms_eval", os.path.join("tasks", "vbvr", "vbvr_bench")),
    ("vbvr_bench", ""),
    ("vbvr_pro_bench", ""),
)


def find(folder: str | None) -> str | None:
    """Return the folder of the evaluator's package, or None."""
    if folder:
        places = [folder, *(os.path.join(folder, name) for name in ("vbvr_bench", "vbvr_pro_bench"))]
    else:
        specs = [(importlib.util.find_spec(name), below) for name, below in WHERE]
        places = [
            os.path.join(place, below).rstrip(os.sep)
            for spec, below in specs
            if spec is not None
            for place in spec.submodule_search_locations or ()
        ]
    packages = [p for p in places if os.path.isfile(os.path.join(p, "evaluators", "__init__.py"))]
    return os.path.abspath(packages[0]) if packages else None


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Say which evaluator and which OpenCV there are."""
    folder = find(request["evaluator"])
    try:
        import cv2

        opencv, why = cv2.__version__, ""
    except Exception as error:  # also a shared library that is missing
        opencv, why = "", str(error)
    return {"evaluator": folder, "opencv": opencv, "why": why}


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Judge one video."""
    folder = find(request["evaluator"])
    assert folder, "check comes first"
    sys.path.insert(0, os.path.dirname(folder))
    evaluators = importlib.import_module(os.path.basename(folder) + ".evaluators")
    task = request["info"]["task_name"]
    if task not in evaluators.TASK_EVALUATOR_MAP:
        return {"error": "the evaluator knows no task " + task}
    # As the official run does: the task's own rules alone, on whatever device, as they are NumPy and OpenCV.
    verdict = evaluators.get_evaluator(task, "cpu").evaluate(request["info"], task_specific_only=True)
    details = {k: v for k, v in (verdict.get("details") or {}).items() if k == "video_frame_count"}
    fields = {k: verdict.get(k) for k in ("score", "dimensions", "error")}
    return {**fields, "details": details, "category": evaluators.get_task_category(task)}


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose modules must not stand in for others of the same name
    request = json.load(sys.stdin)
    answer = judge(request) if request.get("info") else check(request)
    with open(sys.argv[1], "w") as file:
        json.dump(answer, file, default=lambda x: x.item() if hasattr(x, "item") else str(x))
