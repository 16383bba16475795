"""VBVR-Bench, and the video setting of VBVR-Pro-Bench: a folder per task and sample, official scores, the evaluator itself.

`vbvr(root)` is a lazy sequence of samples; `vbvr.score` runs the evaluator on videos, `vbvr.read_scores` reads
what it wrote, `vbvr.join` joins scores to results or runs. It needs neither torch nor ffprobe; the evaluator
is somebody else's package, and runs in a process of its own.
"""

from __future__ import annotations

from dit_lens.tasks.files import BrokenFileError
from dit_lens.tasks.vbvr.bench import Bench, Skipped, Summary
from dit_lens.tasks.vbvr.evaluate import score
from dit_lens.tasks.vbvr.evaluator import Evaluator, find_evaluator
from dit_lens.tasks.vbvr.join import join
from dit_lens.tasks.vbvr.layout import SampleEntry
from dit_lens.tasks.vbvr.sample import VbvrSample
from dit_lens.tasks.vbvr.scores import read_scores

vbvr = Bench

__all__ = [
    "Bench",
    "BrokenFileError",
    "Evaluator",
    "SampleEntry",
    "Skipped",
    "Summary",
    "VbvrSample",
    "find_evaluator",
    "join",
    "read_scores",
    "score",
    "vbvr",
]
