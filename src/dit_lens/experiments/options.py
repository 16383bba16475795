"""Options of the scripts in `analyses/`: one set, each option with one name, one meaning and one default.

`Options` is what every script takes. `StudyOptions` adds what a study over many samples takes, `PictureOptions` what a
script takes that draws pictures of single runs. A script extends one of these two.
"""

from __future__ import annotations

import ast
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from dit_lens.errors import TaskError
from dit_lens.models.options import ModelOptions, Unset
from dit_lens.tasks.canvas import EVAL_SEED

Count = Annotated[int | None, tyro.conf.arg(aliases=("--max-samples",), help_behavior_hint="")]
"""How many samples; `--max-samples` is another name of the option."""


OWN_ARGUMENTS = frozenset(
    (
        *("steps", "num_inference_steps", "cfg_scale", "guidance_scale", "seed", "generator", "num_frames"),
        *(
            "prompt",
            "image",
            "input_image",
            "height",
            "width",
            "at_once",
            "record",
            "edit",
            "store",
            "encoding",
            "verify",
        ),
    )
)
"""Arguments that scripts give themselves."""


@dataclass
class Options(ModelOptions):
    """Which model, which samples, how they are generated, and where results go."""

    task: str = "maze"
    """A task of the organism's; samples are scenes of it."""
    samples: Count = None
    """How many samples: scenes of --task (default: 64), or the first of --eval-root (default: all)."""
    scene: int = EVAL_SEED
    """Seed of the first scene of --task. The organism was trained on seeds below 1,000,000."""
    image: Unset[Path] = None
    """Your own first frame, in place of --task. Takes --prompt."""
    prompt: Unset[str] = None
    """What the model is asked about --image."""
    eval_root: Unset[Path] = None
    """Folder of VBVR-Bench, or one laid out like it, in place of --task."""
    split: Unset[str] = None
    """Split of --eval-root, such as In-Domain_50. Default: all."""
    tasks: Unset[str] = None
    """Tasks of --eval-root, whole names or up to an underscore, such as O-39,G-2. Default: all."""
    num_frames: Unset[int] = None
    """Frames to generate. Default: the sample's own number."""
    text_only: bool = False
    """Leave the first frames out, for a model that takes none."""
    steps: Unset[int] = None
    """Scheduler steps. Default: the model's own number."""
    cfg_scale: Unset[float] = None
    """Guidance scale; 1 runs the conditional branch alone. Default: the model's own scale."""
    pipe_arg: tuple[str, ...] = ()
    """Other arguments of the pipeline's own call, as NAME=VALUE: sigma_shift=5, switch_DiT_boundary=0.875."""
    out: Path = Path("runs/analysis")
    """Folder that the results go to."""

    DEFAULT_SAMPLES: ClassVar[int] = 64
    """How many scenes of a task there are by default."""

    AROUND: ClassVar[tuple[str, ...]] = (
        *("samples", "scene", "image", "prompt", "eval_root", "split", "tasks", "out"),
    )
    """Options that say which samples there are and where results go: they change no sample's numbers.

    A class adds its own; `settings` leaves out those of all its bases.
    """

    @property
    def draws_scenes(self) -> bool:
        """Whether samples are scenes of `task`."""
        return self.eval_root is None and self.image is None

    @property
    def scene_count(self) -> int:
        """How many scenes of `task` are drawn."""
        return self.DEFAULT_SAMPLES if self.samples is None else self.samples

    @property
    def source(self) -> str:
        """Where the samples come from, for titles: the task, or the name of the folder or of the picture."""
        if self.eval_root is not None:
            return self.eval_root.resolve().name
        return self.task if self.image is None else self.image.stem

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of samples that the options replace."""
        frames = {} if self.num_frames is None else {"num_frames": self.num_frames}
        return {**frames, "image": None} if self.text_only else frames

    @property
    def arguments(self) -> dict[str, Any]:
        """The other arguments of the pipeline's call; a value that reads as Python's is that, and text otherwise.

        Raises:
            TaskError: one is not NAME=VALUE, comes twice, or has an option of its own.
        """
        out: dict[str, Any] = {}
        for spelt in self.pipe_arg:
            name, is_given, value = spelt.partition("=")
            if not is_given or not name.isidentifier():
                raise TaskError(f"--pipe-arg {spelt}: give NAME=VALUE, such as sigma_shift=5.")
            if name in OWN_ARGUMENTS or name in out:
                reason = (
                    "it comes twice" if name in out else "it has an option of its own, or is the sample's"
                )
                raise TaskError(f"--pipe-arg {spelt}: {reason}.")
            try:
                out[name] = ast.literal_eval(
                    value.title() if value.lower() in ("true", "false", "none") else value
                )
            except (ValueError, SyntaxError):
                out[name] = value
        return out

    @property
    def as_data(self) -> dict[str, Any]:
        """All options, as plain data."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @property
    def settings(self) -> dict[str, Any]:
        """The options that make a sample's numbers what they are, as plain data."""
        around = {name for kind in type(self).__mro__ for name in vars(kind).get("AROUND", ())}
        around |= set() if self.draws_scenes else {"task"}
        return {name: value for name, value in self.as_data.items() if name not in around}

    def __content__(self, walk: Any) -> dict[str, Any]:
        """Return what a function that reads the options is named by: their settings, and what the class computes of them."""
        return {"@options": [walk.visit(type(self)), walk.visit(self.settings)]}


@dataclass
class StudyOptions(Options):
    """Options of a study: many samples, with noise seeds of their own."""

    seeds: int = 1
    """Noise seeds of each sample."""
    draw: int = 0
    """Seed of everything that is random: noise seeds of the samples, orders of a control."""
    block: int = 8
    """Samples that are measured and stored together. A repeated command goes on after the last block."""
    at_once: int = 64
    """Rows (a sample and a seed each) that go through the model in one forward, at most."""

    paper: bool = False
    """The paper's settings (arXiv 2603.16870) for every option that has them and is left at its default."""

    PAPER: ClassVar[dict[str, Any]] = {}
    """The paper's settings, by option."""

    # Rows beside a row change no more than the order in which floats are summed.
    AROUND: ClassVar[tuple[str, ...]] = ("block", "at_once", "paper")

    def __post_init__(self) -> None:
        """Refuse blocks and forwards of nothing.

        Raises:
            TaskError: it names the option.
        """
        if self.block < 1 or self.at_once < 1:
            raise TaskError(f"--block {self.block} --at-once {self.at_once}: give at least 1 of each.")
        if self.paper and not self.PAPER:
            raise TaskError("--paper: this study has no settings of the paper's.")

    def with_preset(self) -> Self:
        """Return the options with the paper's settings in place of defaults, where `paper` asks for them."""
        if not self.paper:
            return self
        defaults = {field.name: field.default for field in fields(self)}
        return replace(self, **{n: v for n, v in self.PAPER.items() if getattr(self, n) == defaults[n]})


@dataclass
class ScoredOptions(StudyOptions):
    """Options of a study that is judged by right and wrong, of scenes or of a benchmark."""

    score: Literal["own", "vbvr"] = "own"
    """Who judges: the task's own scorer, or VBVR-Bench's official evaluator (with --eval-root)."""
    evaluator: Unset[Path] = None
    """Folder of the official evaluator, a clone of VBVR-EvalKit. Default: where its Python finds it."""
    evaluator_python: Unset[Path] = None
    """A Python in which the evaluator is installed. Default: this one."""
    time_limit: float = 300.0
    """Seconds that the evaluator may take for one video."""

    AROUND: ClassVar[tuple[str, ...]] = ("evaluator", "evaluator_python", "time_limit")


@dataclass
class PictureOptions(Options):
    """Options of a script that draws pictures of single runs, a sample at a time."""

    samples: Count = None
    """How many samples: scenes of --task (default: 1), or the first of --eval-root (default: all)."""
    seed: int = 0
    """Seed of the initial noise of every sample, as in lens.run(sample, seed)."""
    vis_steps: str = "all"
    """Steps to look at: all, auto (5 of them), or a list such as 0-19,45-49."""

    DEFAULT_SAMPLES: ClassVar[int] = 1


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
