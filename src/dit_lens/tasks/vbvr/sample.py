"""One sample of VBVR-Bench: a `Sample` that also knows where it came from, and what was rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dit_lens.errors import TaskError
from dit_lens.tasks.files import BrokenFileError, check
from dit_lens.tasks.image import read_image
from dit_lens.tasks.sample import Frames, Sample
from dit_lens.tasks.vbvr.files import count_frames, read_prompt
from dit_lens.tasks.vbvr.layout import SampleEntry

NOT_FETCHED = ("missing file", "git-LFS pointer")
"""Kinds of broken files that are not here at all."""


@dataclass(frozen=True)
class VbvrSample(Sample):
    """A sample of VBVR-Bench.

    Its `task` is `In-Domain_50/O-39_maze_data-generator`: the split stands in it, as in the benchmark itself.
    So everything that lays out results by task and sample does so by split, task and sample, and
    `task/id` is the label by which scores are joined.

    Attributes:
        folder: of the sample in the benchmark.
        frames_in_truth: frames of the ground-truth video, before rounding; None where there is no such video.
        rounded: what was rounded, as (from, to): `{"num_frames": (80, 81), "height": (1020, 1024)}`.
    """

    folder: Path | None = field(default=None, compare=False)
    frames_in_truth: int | None = None
    rounded: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    ORIGIN: ClassVar[tuple[str, ...]] = ("folder",)

    @property
    def split(self) -> str:
        """Folder of the split."""
        return self.task.partition("/")[0]

    @property
    def task_name(self) -> str:
        """Folder of the task, without the split; what the official evaluator calls it."""
        return self.task.partition("/")[2]

    @property
    def label(self) -> str:
        """`split/task/id`."""
        return f"{self.task}/{self.id}"

    def read_truth(self) -> Frames:
        """Decode the ground-truth video: [time, height, width, rgb].

        It is not held in `truth`: 81 frames of 1024 x 1024 pixels are 255 MB.

        Raises:
            TaskError: the sample has no folder.
        """
        from dit_lens.video import read_video

        if self.folder is None:
            raise TaskError(f"Sample {self.label} has no folder: read it with vbvr(root).")
        return read_video(self.folder / "ground_truth.mp4")


def read_sample(
    entry: SampleEntry, frames_multiple: int = 1, size_multiple: int = 1, num_frames: int | None = None
) -> VbvrSample:
    """Read and check all files of one sample. The final frame is not shown to a model: it may be missing.

    Args:
        entry: which one.
        frames_multiple: frames are rounded up to one more than a multiple of it.
        size_multiple: height and width are rounded up to a multiple of it.
        num_frames: in place of those of the ground-truth video, which then may be missing too.

    Raises:
        BrokenFileError: one of its files cannot be used.
    """
    prompt = read_prompt(entry.folder / "prompt.txt")
    image = read_image(entry.folder / "first_frame.png")
    if (final := entry.folder / "final_frame.png").exists():
        read_image(final)
    frames_in_truth = _frames_in_truth(entry.folder / "ground_truth.mp4", optional=num_frames is not None)
    frames = frames_in_truth if num_frames is None else num_frames
    assert frames is not None
    exact = {"num_frames": frames, "height": image.height, "width": image.width}
    taken = {
        "num_frames": up(frames - 1, frames_multiple) + 1 if num_frames is None else num_frames,
        "height": up(image.height, size_multiple),
        "width": up(image.width, size_multiple),
    }
    return VbvrSample(
        prompt=prompt,
        image=image,
        num_frames=taken["num_frames"],
        size=(taken["height"], taken["width"]),
        task=f"{entry.split}/{entry.task}",
        id=entry.id,
        folder=entry.folder,
        frames_in_truth=frames_in_truth,
        rounded={name: (exact[name], n) for name, n in taken.items() if n != exact[name]},
    )


def _frames_in_truth(video: Path, optional: bool) -> int | None:
    """Count the frames of the ground truth; None where it is optional and was not fetched."""
    try:
        check(video)
    except BrokenFileError as error:
        if optional and error.kind in NOT_FETCHED:
            return None
        raise
    return count_frames(video)


def up(value: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-value // multiple) * multiple
