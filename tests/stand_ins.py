"""What stands in for packages that are not installed here."""

import shutil

JUDGES_MOTION = """
import os
from stand_ins import motion

class Evaluator:
    def evaluate(self, info, task_specific_only=False):
        assert task_specific_only and open(info["gt_video_path"], "rb").read(1) and info["prompt"]
        with open(os.environ["STAND_IN_LOG"], "a") as log:
            log.write(info["video_path"] + "\\n")
        fails = os.environ.get("STAND_IN_FAILS")
        if fails and all(part in info["video_path"] for part in fails.split("|")):
            raise ValueError("no frames")
        frames, score = motion(info["video_path"])
        return {"score": score, "dimensions": {"task_specific": score}, "details": {"video_frame_count": frames}}

TASK_EVALUATOR_MAP = {"G-3_stable_sort_data-generator": Evaluator, "O-39_maze_data-generator": Evaluator}

def get_evaluator(task, device):
    return TASK_EVALUATOR_MAP[task]()

def get_task_category(task):
    return {"G": "Perception", "O": ""}[task[0]]
"""
"""An evaluator that scores how much a video moves, fails where STAND_IN_FAILS says, and knows the category of G tasks alone."""


def evaluator_package(tmp_path, monkeypatch, source, name="vbvr_bench"):
    """Return a folder with a package of the official evaluator's interface, beside an OpenCV that has a version and no more."""
    package = tmp_path / "clone" / name / "evaluators"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(source)
    lib = tmp_path / "lib"
    lib.mkdir(exist_ok=True)
    (lib / "cv2.py").write_text("__version__ = '4.14.0'")
    shutil.copy(__file__, lib / "stand_ins.py")
    monkeypatch.setenv("PYTHONPATH", str(lib))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "judged.txt"))
    return tmp_path / "clone"


def motion(path):
    """Return the number of frames of a video, and how far they are from the first one, in [0, 1]: 0 where it is held.

    Of decoded pixels: an encoder may write the same frames as other bytes.
    """
    import av
    import numpy as np

    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="gray") for frame in file.decode(video=0)]).astype(float)
    return len(frames), float(np.abs(frames - frames[:1]).mean() / 255)
