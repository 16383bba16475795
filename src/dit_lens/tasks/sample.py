"""A sample: what a model is asked to do and, where it is known, how the result is judged.

A `Sample` is frozen data. It knows nothing of any model: it runs on the organism as on a 14B model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dit_lens.errors import TaskError

Frames = NDArray[np.uint8]
"""A video: [time, height, width, rgb], 0-255."""


@dataclass(frozen=True)
class Score:
    """What a scorer read off a video.

    Attributes:
        solved: whether the answer is right, entirely.
        score: how near it is, in [0, 1]; 1 where solved.
        answer: the answer that was read, as a short string; two videos give the same answer exactly where
            these are equal, whether right or wrong.
    """

    solved: bool
    score: float
    answer: str


@dataclass(frozen=True)
class Sample:
    """One prompt, its first frame, and (where known) the right answer.

    Attributes:
        prompt: what the model is asked; a tuple of prompts is a batch that shares everything else.
        image: first frame, a `PIL.Image` in RGB, or None for text-to-video.
        num_frames: frames to generate, the first included.
        negative_prompt: prompt of the unconditional branch.
        size: (height, width) in pixels; from the image unless given.
        task: name of the task, for file names and grouping.
        id: name of the sample within its task.
        truth: a right video [time, height, width, rgb], where known.
        scorer: `f(video) -> Score`, where known.
    """

    prompt: str | tuple[str, ...]
    image: Image.Image | None = None
    num_frames: int = 81
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    task: str = "custom"
    id: str = "0"
    truth: Frames | None = field(default=None, repr=False, compare=False)
    scorer: Callable[[Frames], Score] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise TaskError(
                f"Sample {self.task}/{self.id}: num_frames is {self.num_frames}; give at least 1."
            )
        if self.size is None:
            if self.image is None:
                raise TaskError(
                    f"Sample {self.task}/{self.id} has neither an image nor a size: "
                    "pass size=(height, width)."
                )
            object.__setattr__(self, "size", (self.image.height, self.image.width))

    @property
    def height(self) -> int:
        """Height in pixels."""
        assert self.size is not None
        return self.size[0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        assert self.size is not None
        return self.size[1]

    def score(self, video: Frames | Sequence[Image.Image]) -> Score:
        """Judge a video.

        Args:
            video: [time, height, width, rgb] as uint8, or a list of images.

        Raises:
            TaskError: the sample has no scorer, or the video has another size than the sample.
        """
        if self.scorer is None:
            raise TaskError(
                f"Sample {self.task}/{self.id} has no scorer: give one with sample.with_(scorer=f)."
            )
        frames = as_frames(video)
        if frames.shape[1:3] != self.size:
            raise TaskError(
                f"Sample {self.task}/{self.id} is {self.size} pixels (height, width), the video "
                f"{frames.shape[1:3]}: score the video that was generated for it."
            )
        return self.scorer(frames)

    def with_(self, **changes: Any) -> Sample:
        """Return a copy with some fields changed; the size follows a new image where it was the old one's."""
        image, old = changes.get("image"), self.image
        if image is not None and old is not None and self.size == (old.height, old.width):
            changes = {"size": None, **changes}
        return replace(self, **changes)


def as_frames(video: Any) -> Frames:
    """Turn a list of images, or an array, into a video [time, height, width, rgb] of uint8.

    Raises:
        TaskError: not a video of that shape, images of several sizes, or float values (whose range would
            have to be guessed).
    """
    if isinstance(video, Sequence):
        images = [np.asarray(f.convert("RGB") if isinstance(f, Image.Image) else f) for f in video]
        if len({i.shape for i in images}) > 1:
            raise TaskError(
                f"The frames have several shapes, {sorted({i.shape for i in images})}: give one size."
            )
        video = np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)
    frames = np.asarray(video)
    if frames.ndim != 4 or len(frames) == 0 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise TaskError(
            "A video is uint8 with dimensions [time, height, width, rgb], at least one frame; "
            f"this is {frames.dtype} with shape {frames.shape}."
        )
    return frames
