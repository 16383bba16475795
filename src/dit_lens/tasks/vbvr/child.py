"""What runs in the evaluator's own process: find it, judge one video, write the result to a file.

Run as a script, by a Python that may lack `dit_lens` and be older: standard library and the evaluator only.
It reads a request (JSON) from stdin and writes the result to the file named in its first argument, as the
evaluators print to stdout. lmms-eval is not imported, only found: its `tasks/__init__` imports torch and much
more, of which `vbvr_bench` needs nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
from typing import Any

NAMES = ("vbvr_pro_bench", "vbvr_bench")
"""Packages in a clone: of VBVR-Pro-Bench, and of VBVR-EvalKit and the first versions of VBVR-Pro-Bench."""
INSTALLED = (
    ("lmms_eval", os.path.join("tasks", "vbvr", "vbvr_bench")),
    ("vbvr_bench", ""),
    ("vbvr_pro_bench", ""),
)


def find(folder: str | None) -> list[str]:
    """Return the folders of the evaluators' packages; of a clone, the first alone."""
    if folder:
        places = [folder, *(os.path.join(folder, name) for name in NAMES)]
    else:
        specs = [(importlib.util.find_spec(name), below) for name, below in INSTALLED]
        places = [
            os.path.join(place, below).rstrip(os.sep)
            for spec, below in specs
            if spec is not None
            for place in spec.submodule_search_locations or ()
        ]
    packages = [
        os.path.abspath(p) for p in places if os.path.isfile(os.path.join(p, "evaluators", "__init__.py"))
    ]
    return packages[:1] if folder else packages


def describe(package: str) -> dict[str, Any]:
    """Say which code a package is, and whether its rules read the metadata of a sample, as those of VBVR-Pro-Bench do."""
    digest, reads_metadata = hashlib.sha256(), False
    for place, folders, files in os.walk(package):
        folders.sort()
        for name in sorted(name for name in files if name.endswith(".py")):
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                code = file.read()
            digest.update(os.path.relpath(path, package).encode() + b"\0" + code + b"\0")
            reads_metadata |= b"metafile_path" in code
    return {"evaluator": package, "code": digest.hexdigest(), "reads_metadata": reads_metadata}


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Say which evaluators and which OpenCV there are."""
    packages = [describe(package) for package in find(request["evaluator"])]
    try:
        import cv2

        opencv, why = cv2.__version__, ""
    except Exception as error:  # also a shared library that is missing
        opencv, why = "", str(error)
    return {"packages": packages, "opencv": opencv, "why": why}


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Judge one video."""
    folder = request["evaluator"]
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
