"""A sample: what a model is asked to do and, where it is known, how the result is judged.

A `Sample` is frozen data. It knows nothing of any model: it runs on the organism as on a 14B model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.plan.places import whole_number
from dit_lens.tasks.image import as_rgb
from dit_lens.tasks.scene import Answer, Masks, Scene

LONGEST_NAME = 100
"""Bytes of a folder's name; file systems take 255."""

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
        frames: whether each frame is right, where the scorer reads each by itself; else None.
    """

    solved: bool
    score: float
    answer: str
    frames: tuple[bool, ...] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Sample:
    """One prompt, its first frame, and (where known) the right answer.

    Attributes:
        prompt: what the model is asked; a tuple of prompts is a batch that shares everything else.
        image: first frame: a picture of any mode, an array or a file (see `image.as_rgb`); kept as a `PIL.Image` in RGB.
            None for text-to-video.
        num_frames: frames to generate, the first included.
        negative_prompt: prompt of the unconditional branch.
        size: (height, width) in pixels. Default: the image's.
        task: name of the task, for file names and grouping.
        id: name of the sample within its task.
        truth: a right video [time, height, width, rgb], where known.
        scorer: `f(video) -> Score`, where known.
        scene: how it was made, where known.
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
    scene: Scene | None = field(default=None, repr=False, compare=False)

    ORIGIN: ClassVar[tuple[str, ...]] = ()
    """Attributes that say where a sample is from, and not what it is."""

    def __post_init__(self) -> None:
        self._settle_words()
        what = f"Sample {self.task}/{self.id}"
        image = None if self.image is None else as_rgb(self.image, what)
        object.__setattr__(self, "image", image)
        frames = whole_number(self.num_frames)
        if frames is None or frames < 1:
            raise TaskError(f"{what}: num_frames is {self.num_frames!r}; give a whole number of at least 1.")
        object.__setattr__(self, "num_frames", frames)
        if self.size is None and image is None:
            raise TaskError(f"{what} has neither an image nor a size: pass size=(height, width).")
        size = (image.height, image.width) if self.size is None and image is not None else self.size
        object.__setattr__(self, "size", _settle_size(size, what))

    def _settle_words(self) -> None:
        """Check the texts: what cannot be written into a file cannot name a run."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not isinstance(prompts, list | tuple) or not prompts:
            raise TaskError(
                f"prompt={self.prompt!r}: give a text, or a tuple of at least one for a batch of prompts."
            )
        if not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", tuple(prompts))
        texts = {"task": self.task, "id": self.id, "negative_prompt": self.negative_prompt}
        for name, text in [*texts.items(), *(("prompt", text) for text in prompts)]:
            if not isinstance(text, str):
                raise TaskError(f"{name}={text!r}: give a text.")
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise TaskError(
                    f"{name}={text[:60]!r} holds half of a surrogate pair, which is no character: decode the text anew, as "
                    "bytes.decode('utf-8', 'replace') does."
                )
        for name in ("task", "id"):
            if not texts[name].strip() or "\0" in texts[name]:
                raise TaskError(f"{name}={texts[name]!r}: give a name of at least one visible character.")

    @property
    def subfolder(self) -> Path:
        """Where what is made of the sample goes: `TASK/ID`, relative, and inside whatever folder it is put into.

        Parts that no folder can be called are spelt otherwise, and end in a hash of their own name.
        """
        return Path(*(folder_name(part) for part in (*self.task.split("/"), self.id)))

    def __content__(self, walk: Any) -> dict[str, Any]:
        """Return what names the sample: all that it holds, but not where it was read from."""
        held = {name: value for name, value in vars(self).items() if name not in self.ORIGIN}
        return {"@sample": walk.node(self, lambda *_: [walk.visit(type(self)), walk.visit(held)])}

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

    @property
    def masks(self) -> Masks:
        """Where each object of the scene is seen in the right video: name to [time, height, width] of bool.

        Raises:
            TaskError: the scene is not known.
        """
        return self._known_scene().masks()

    @property
    def answers(self) -> list[Answer]:
        """Every right answer, each as training shows it (of `choose` the walk along the row first).

        Raises:
            TaskError: the scene is not known, or its answers cannot be enumerated.
        """
        scene = self._known_scene()
        if scene.answers is None:
            raise TaskError(f"Sample {self.task}/{self.id}: its right answers are too many to be enumerated.")
        return scene.answers()

    @property
    def split(self) -> str:
        """`train` or `eval`: the side that the layout of the scene belongs to, whatever seed drew it.

        Raises:
            TaskError: the scene is not known, or the layouts of its task are not split.
        """
        split = self._known_scene().split
        if split is None:
            raise TaskError(
                f"Task {self.task!r} does not split its layouts: scenes of evaluation may have been trained on."
            )
        return split

    def _known_scene(self) -> Scene:
        if self.scene is None:
            raise TaskError(f"Sample {self.task}/{self.id} does not say how its scene was made.")
        return self.scene

    def score(self, video: Frames | Sequence[Image.Image]) -> Score:
        """Judge a video.

        Args:
            video: [time, height, width, rgb] as uint8, or a list of images.

        Raises:
            TaskError: the sample has no scorer, the video has another size than the sample, or what the scorer returned is no
                `Score` as that says.
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
        score = self.scorer(frames)
        if problem := _score_problem(score):
            raise TaskError(
                f"Sample {self.task}/{self.id}: its scorer {getattr(self.scorer, '__qualname__', self.scorer)!r} returned "
                f"{score!r:.200}: {problem}."
            )
        return score

    def with_(self, **changes: Any) -> Sample:
        """Return a copy with some fields changed; the size follows a new image where it was the old one's."""
        image, old = changes.get("image"), self.image
        if image is not None and old is not None and self.size == (old.height, old.width):
            changes = {"size": None, **changes}
        return replace(self, **changes)


def _score_problem(score: Any) -> str:
    """Say what a scorer should have returned; "" where it did."""
    if not isinstance(score, Score):
        return "return a dl.Score(solved, score, answer)"
    if not isinstance(score.solved, bool | np.bool_):
        return f"solved is {score.solved!r}; give True or False"
    if not isinstance(score.score, Real) or not 0 <= score.score <= 1:
        return f"score is {score.score!r}; give a number in [0, 1]"
    if not isinstance(score.answer, str):
        return f"answer is {score.answer!r}; give a string"
    return ""


def of_truth(
    task: str, name: str, prompt: str, truth: Frames, scorer: Callable[[Frames], Score], scene: Scene
) -> Sample:
    """Return the sample whose question is the first frame of a right video.

    Args:
        task: name of the task.
        name: of the sample.
        prompt: what is asked.
        truth: the right video, [time, height, width, rgb].
        scorer: judges a video.
        scene: how it was made.

    Raises:
        TaskError: the video has one frame, which would be question and answer at once.
    """
    if len(truth) < 2:
        raise TaskError(
            f"{task}: num_frames is 1, and the first frame asks what the last one answers: give 2 or more."
        )
    image = Image.fromarray(truth[0])
    return Sample(prompt, image, len(truth), task=task, id=name, truth=truth, scorer=scorer, scene=scene)


def _settle_size(size: Any, what: str) -> tuple[int, int]:
    """Return a size as two Python ints.

    Raises:
        TaskError: it is not (height, width) in pixels.
    """
    sides = (
        [whole_number(n) for n in size] if isinstance(size, Iterable) and not isinstance(size, str) else []
    )
    if len(sides) != 2 or sides[0] is None or sides[1] is None or min(sides[0], sides[1]) < 1:
        raise TaskError(f"{what}: size is {size!r}; give (height, width) in whole pixels.")
    return sides[0], sides[1]


def folder_name(text: str) -> str:
    """Return a text as the name of one folder, on every system; two texts never share a name.

    Letters, digits, and most marks stay. A text that is changed or cut gets a hash at its end.

    Example:
        >>> folder_name("00007"), folder_name("..")
        ('00007', '_-5ec1f7e7')
    """
    plain = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in text)
    plain = plain.strip(" .") or "_"
    cut = plain.encode()[:LONGEST_NAME].decode(errors="ignore")
    return (
        cut
        if cut == text
        else f"{cut}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    )


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
