"""Couples: two samples between which something is exchanged, in both directions, from the same noise.

A study over couples counts a couple as one sample, and no sample is in two of them, so that couples are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import Drawn, draw, refuse_contradictions, scenes
from dit_lens.lens import Lens
from dit_lens.models.options import Unset
from dit_lens.tasks.image import read_image
from dit_lens.tasks.pairs import label, shape_of
from dit_lens.tasks.sample import Sample

TWO_PROMPTS = "circle"
"""The task that has two prompts on one scene."""
KINDS = ("disc", "square")
"""What they ask for."""


@dataclass
class CoupleOptions(StudyOptions):
    """Options of a study over couples of samples."""

    donor_image: Unset[Path] = None
    """The other picture, beside --image and of its size. Default: the same."""
    donor_prompt: Unset[str] = None
    """What the model is asked about the other picture. Default: the same."""


@dataclass(frozen=True)
class Couple(Sample):
    """A sample A with another one beside it, B. It is called, and has noise seeds, as A.

    Attributes:
        donor: B, of one shape with A.
    """

    donor: Sample = field(kw_only=True)

    @classmethod
    def of(cls, receiver: Sample, donor: Sample) -> Couple:
        """Return two samples as a couple.

        Raises:
            TaskError: they are of different shapes, so that a state of one does not fit into the other.
        """
        shapes = [shape_of(sample) for sample in (receiver, donor)]
        if shapes[0] != shapes[1]:
            raise TaskError(
                f"{label(receiver)} and {label(donor)} are of different shapes, {shapes[0]} and {shapes[1]} ((height, width), "
                "frames, with a picture): states are exchanged between samples of one shape; resize one."
            )
        return cls(**{one.name: getattr(receiver, one.name) for one in fields(Sample)}, donor=donor)

    @property
    def both(self) -> tuple[Sample, Sample]:
        """A and B."""
        return Sample(**{one.name: getattr(self, one.name) for one in fields(Sample)}), self.donor

    @property
    def is_judged(self) -> bool:
        """Whether both samples have a scorer."""
        return all(sample.scorer is not None for sample in self.both)


@dataclass(frozen=True)
class Coupled(Drawn):
    """The couples of a command.

    Attributes:
        unread: samples that could not be read, with the reason.
        alone: samples for which there is no other of their shape in their task.
    """

    unread: Mapping[str, str] = field(default_factory=dict)
    alone: tuple[str, ...] = ()

    @property
    def left_out(self) -> dict[str, str]:
        """The samples that could not be read, with the reason."""
        return dict(self.unread)


def couples(options: CoupleOptions, lens: Lens | None = None) -> Coupled:
    """Return the couples that the options ask for.

    Two pictures of the user's; of a benchmark, a sample and the next one of its shape in its task's folder; of `circle`, a scene
    with its two prompts; of other tasks, a scene and the next one.

    Raises:
        TaskError: options that contradict each other, pictures of two sizes, or a task with too few scenes.
    """
    check_donor(options)
    if options.image is not None:
        return Coupled([_pictures(options, lens)], {})
    if options.eval_root is not None:
        drawn = draw(options, lens)
        found, alone = neighbours(drawn)
        if not found:
            raise TaskError(
                f"--eval-root {options.eval_root}: no task has two samples of one shape among these {len(alone)}: take more "
                "--samples, or another --split or --tasks."
            )
        return Coupled(found, {}, drawn.left_out, alone)
    if options.task == TWO_PROMPTS:
        asked = [asked_both(int(scene.id), options) for scene in scenes(options, pictures=True)]
        return Coupled([Couple.of(*both) for both in asked], {})
    several = scenes(options, 2 * options.scene_count, pictures=True)
    found, alone = neighbours(scene.with_(**options.changes) for scene in several)
    return Coupled(found, {}, {}, alone)


def check_donor(options: CoupleOptions) -> None:
    """Refuse options that contradict each other, the donor's among them, before anything is loaded.

    Raises:
        TaskError: it names the options.
    """
    refuse_contradictions(options)
    has_donor = options.donor_image is not None or options.donor_prompt is not None
    if has_donor and options.image is None:
        raise TaskError(
            "--donor-image and --donor-prompt go with --image; the donors of a task or a folder are its other samples."
        )
    if options.image is not None and not has_donor:
        raise TaskError(
            "--image goes with --donor-image, --donor-prompt, or both: what it is exchanged with."
        )
    if options.donor_image is not None and options.text_only:
        raise TaskError("--donor-image and --text-only: first frames are left out; give --donor-prompt.")
    if options.donor_image is not None and not options.donor_image.is_file():
        raise TaskError(f"--donor-image {options.donor_image}: there is no such file.")


def neighbours(samples: Iterable[Sample]) -> tuple[list[Couple], tuple[str, ...]]:
    """Couple every sample with the next one of its shape in its task; return the couples, and who is left alone."""
    waiting: dict[object, Sample] = {}
    found = []
    for sample in samples:
        kind = sample.task, sample.size, sample.num_frames, sample.image is None
        if kind in waiting:
            found.append(Couple.of(waiting.pop(kind), sample))
        else:
            waiting[kind] = sample
    return found, tuple(label(sample) for sample in waiting.values())


def asked_both(seed: int, options: CoupleOptions) -> list[Sample]:
    """Return the samples of one scene, a prompt each."""
    frames = {} if options.num_frames is None else {"num_frames": options.num_frames}
    return [tasks.circle(seed, kind=kind, **frames).with_(**options.changes) for kind in KINDS]


def _pictures(options: CoupleOptions, lens: Lens | None) -> Couple:
    """Return the couple of the user's own pictures and prompts."""
    (receiver,) = draw(options, lens)
    prompt = receiver.prompt if options.donor_prompt is None else options.donor_prompt
    donor = receiver.with_(prompt=prompt, id=f"{receiver.id}, the donor")
    if options.donor_image is not None:
        donor = donor.with_(image=read_image(options.donor_image), id=options.donor_image.stem)
    return Couple.of(receiver, donor)


__all__ = ["Couple", "CoupleOptions", "Coupled", "asked_both", "check_donor", "couples", "neighbours"]
