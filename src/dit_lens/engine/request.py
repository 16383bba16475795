"""What one run is asked for: arguments settled, plan checked, name known, before anything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from dit_lens import records
from dit_lens.errors import PlanError
from dit_lens.families.call import Stage
from dit_lens.families.specimen import Specimen
from dit_lens.plan.attributes import naming_run_of
from dit_lens.plan.content import content
from dit_lens.plan.places import At, is_several, is_truth, whole_number
from dit_lens.plan.plan import Layout, Plan
from dit_lens.store import run_name, versions
from dit_lens.store.names import absolute
from dit_lens.tasks.pairs import counted_by_content
from dit_lens.tasks.sample import LONGEST_NAME, Sample

MOST_SEEDS = 1 << 63
VERIFY = ("first", "always", "never")
"""Which of the runs that a store hands out are begun again, and compared."""
_SIZES = {"num_frames", "height", "width"}
ENCODINGS = ("float32", "codes", "float16")
"""How bfloat16 states are stored; docs/store-layout.md, "Number types"."""


class Request:
    """One run to be made.

    Args:
        specimen: the model.
        sample: what to generate.
        seed: of the initial noise.
        plan: records and edits.
        steps: scheduler steps. Default: the family's.
        cfg_scale: guidance scale. Default: the family's.
        store: folder of runs. Default: none.
        encoding: how bfloat16 states are stored.
        arguments: other keywords of the pipeline's call.
        loop: who drives the steps: the pipeline, or a batch, whose runs are equal within float tolerance only.
        body: what a trace's body does and reads.
        unnamed: what of the body cannot be named, in sentences.
        together: the seeds that edits over seeds see together with this one, in their order; none without such edits.

    Attributes:
        keywords: of the pipeline's call.
        stages: one for each pass of the sampling loop. Each writes a run of its own.

    Raises:
        PlanError: something asked for cannot be carried out.
    """

    def __init__(
        self,
        specimen: Specimen,
        sample: Sample,
        seed: int,
        plan: Plan,
        *,
        steps: int | None = None,
        cfg_scale: float | None = None,
        store: str | Path | None = None,
        encoding: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        loop: str = "pipeline",
        body: Mapping[str, Any] | None = None,
        unnamed: Sequence[str] = (),
        together: Sequence[int] = (),
    ) -> None:
        calling = specimen.family.call
        self.specimen, self.sample, self.seed = specimen, sample_of(sample), seed_of(seed)
        self.encoding = encoding_of(encoding, str(specimen.dtype).removeprefix("torch."))
        self.loop, self.body, self._unnamed = loop, body, unnamed
        self.together = [seed_of(s) for s in together]
        self._identity: tuple[Plan, dict[str, Any]] | None = None
        self.steps = steps_of(steps, calling.default_steps)
        self.cfg_scale = scale_of(cfg_scale, calling.default_cfg)
        self.arguments = dict(arguments or {})
        if "seed" in self.arguments:
            raise PlanError(
                "seed= among the pipeline's arguments: the seed stands beside its sample, as (sample, seed)."
            )
        self.keywords = self.fresh_keywords()
        calling.refuse(specimen.pipe, self.keywords)
        self.text = cache(partial(specimen.text_tokens, self.keywords))
        specimen.require_weights()
        self.store = None if store is None else absolute(store)
        later = () if calling.later is None else calling.later(self.keywords)
        passes = (Stage(self.steps, calling.branches(self.keywords)), *later)
        self.stages = [StageRequest(self, number, passes) for number in range(len(passes))]
        self.declare(plan)

    def fresh_keywords(self) -> dict[str, Any]:
        """Return the keywords of one call of the pipeline. A call uses its generator up."""
        arguments = self.specimen.family.call.arguments
        return arguments(self.sample, self.seed, self.steps, self.cfg_scale, self.arguments)

    def declare(self, plan: Plan) -> None:
        """Take a plan: the first one, and what the body of a trace has added to it.

        Raises:
            PlanError: it cannot be carried out.
        """
        self.plan = plan.spelt(self.stages[0].layout)
        for stage in self.stages:
            stage.check(over_seeds=self.loop == "batch")
        plan.check_sources(self.specimen.fingerprint, self.specimen.architecture)

    @property
    def identity(self) -> dict[str, Any]:
        """All that makes the run what it is. What cannot be named makes it equal to no other, with a warning."""
        if self._identity is None or self._identity[0] is not self.plan:
            with naming_run_of(self.specimen.pipe):
                self._identity = self.plan, self._describe()
        return self._identity[1]

    def _describe(self) -> dict[str, Any]:
        unnamed = [*self._unnamed]
        silent = self.specimen.family.call.silent
        model, sentences = self.model
        identity = {
            # Of all stages: what one of them does changes the ones after it.
            "plan": self.stages[0].complete(self.plan).to_json(unnamed),
            "sample": sample_content(self.sample, unnamed),
            "seed": self.seed,
            "arguments": {
                name: content(value, unnamed, f"argument {name}")
                for name, value in self.keywords.items()
                if name not in silent
            },
            **model,
            "encoding": self.encoding,
            "loop": self.loop,
            "body": self.body,
            "versions": versions(),
        }
        if self.together:
            identity["seeds together"] = self.together
        warn_unnamed([*unnamed, *sentences])
        return identity

    @cached_property
    def model(self) -> tuple[dict[str, Any], list[str]]:
        """What the model is, and what of it cannot be named: read once a run, before anything of it is wrapped."""
        unnamed: list[str] = []
        return self.specimen.identity(unnamed), unnamed

    @property
    def label(self) -> str:
        """Sample and seed, as the names of its runs begin."""
        text = f"{self.sample.task}-{self.sample.id}"
        words = "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
        # A file system takes 255 bytes. The hash tells runs apart, the words are for people.
        return f"{words.encode()[:LONGEST_NAME].decode(errors='ignore')}-seed{self.seed}"


def name_anew(requests: Iterable[Request], specimen: Specimen) -> tuple[dict[str, Any], list[str]]:
    """Let requests be named by what there is now. The model is read once for all of them.

    Returns:
        What the model is, and what of it cannot be named.
    """
    unnamed: list[str] = []
    model = specimen.identity(unnamed), unnamed
    for request in requests:
        request.model, request._identity = model, None
    return model


class StageRequest:
    """One pass of the sampling loop of a request.

    Attributes:
        layout: coordinates of the stage.
    """

    def __init__(self, request: Request, number: int, passes: tuple[Stage, ...]) -> None:
        specimen, stage = request.specimen, passes[number]
        self.request = request
        self.layout = Layout(
            specimen.paths,
            specimen.layers,
            stage.steps,
            stage.branches,
            tuple(specimen.dits),
            specimen.family.anatomy.latents,
            number,
            len(passes),
            specimen.carried,
            request.text,
        )

    @property
    def plan(self) -> Plan:
        """The plan of this stage, with what is always written: x_s at every step, which a replay starts from."""
        return self.complete(self.request.plan.in_stage(self.layout))

    def complete(self, plan: Plan) -> Plan:
        """Return a plan with x_s at every step. Where it has x_s at some steps, all are written all the same."""
        always = Plan.of([(records.latents, At(stream=stream)) for stream in self.layout.latents])
        return plan.completed(always.records)

    def check(self, over_seeds: bool) -> None:
        """Refuse what cannot be carried out in this stage.

        Args:
            over_seeds: whether several seeds are seen together, as in a batch.

        Raises:
            PlanError: the first such thing, with its remedy.
        """
        plan, request = self.plan, self.request
        plan.check(self.layout, over_seeds)
        specimen = request.specimen
        anatomy = specimen.family.anatomy
        if not any(edit.place.region for edit in plan.edits):
            return
        if anatomy.more_sizes is None and _SIZES & request.arguments.keys():
            return  # these stand in place of the sample's: the first call shows the grid
        # Cells that the grid will not have: at a late step the model would have run in vain.
        sizes = anatomy.sizes(specimen.pipe, request.sample, request.keywords, self.layout.stage)
        tokens = {stream: size.tokens for stream, size in sizes.items()}
        latents = {f"latent_{stream}": size.latent[1:] for stream, size in sizes.items()}
        plan.check_grids({**tokens, **latents})

    @property
    def identity(self) -> dict[str, Any]:
        """All that makes this stage's run what it is."""
        number = self.layout.stage
        return self.request.identity | ({"stage": number} if number else {})

    @property
    def manifest(self) -> dict[str, Any]:
        """All that makes this run what it is, under `identity`; the rest may differ between tries."""
        stages = self.request.stages
        several = {"stages": [stage.name for stage in stages]} if len(stages) > 1 else {}
        text = self.layout.text() if self.plan.reads_text else {}
        words = {branch: [[one.text, one.kind] for one in tokens] for branch, tokens in text.items()}
        known = {"text_tokens": words} if words else {}
        architecture = self.request.specimen.architecture
        return {
            "identity": self.identity,
            "plan": str(self.plan),
            "architecture": architecture,
            **several,
            **known,
        }

    @property
    def name(self) -> str:
        """Name of the run."""
        number = self.layout.stage
        return run_name(self.identity, self.request.label + (f"-stage{number}" if number else ""))

    @property
    def path(self) -> Path | None:
        """Where the run stands in its store; None without a store."""
        return None if self.request.store is None else self.request.store / self.name


def seeds_together(plan: Plan, pairs: Sequence[tuple[Sample, int]]) -> list[list[int]]:
    """Return, for each pair, the seeds of its sample that the edits over seeds of a plan see; none without such edits."""
    if not any(edit.over_seeds for edit in plan.edits):
        return [[] for _ in pairs]
    samples = counted_by_content([sample for sample, _ in pairs])
    seeds: dict[int, list[int]] = {}
    for sample, (_, seed) in zip(samples, pairs, strict=True):
        if seed not in seeds.setdefault(sample, []):
            seeds[sample].append(seed)
    return [seeds[sample] for sample in samples]


def sample_of(sample: Any) -> Sample:
    """Return a sample.

    Raises:
        PlanError: it is none.
    """
    if isinstance(sample, Sample):
        return sample
    several = " For several, call lens.run once for each, or lens.batch." if is_several(sample) else ""
    raise PlanError(
        f"sample is a {type(sample).__name__}: give one dl.Sample, such as dl.tasks.maze(7).{several}"
    )


def seed_of(seed: Any) -> int:
    """Return a seed as a Python int.

    Raises:
        PlanError: it is not one whole number from 0 to 2**63 - 1.
    """
    number = whole_number(seed)
    if number is None or not 0 <= number < MOST_SEEDS:
        several = (
            " For several seeds, call lens.run once for each, or lens.batch." if is_several(seed) else ""
        )
        raise PlanError(f"seed={seed!r}: give one whole number from 0 to 2**63 - 1.{several}")
    return number


def steps_of(steps: Any, default: int) -> int:
    """Return a number of scheduler steps as a Python int.

    Args:
        steps: as the user gave them; None for the default.
        default: of the family.

    Raises:
        PlanError: it is not a whole number of at least 1.
    """
    number = default if steps is None else whole_number(steps)
    if number is None or number < 1:
        raise PlanError(f"steps={steps!r}: give a whole number; a run has at least one step.")
    return number


def scale_of(cfg_scale: Any, default: float) -> float:
    """Return a guidance scale as a Python float.

    Args:
        cfg_scale: as the user gave it; None for the default.
        default: of the family.

    Raises:
        PlanError: it is not one finite number.
    """
    if cfg_scale is None:
        return float(default)
    number = math.nan
    if not is_truth(cfg_scale) and not isinstance(cfg_scale, str | bytes) and not is_several(cfg_scale):
        try:
            number = float(cfg_scale)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise PlanError(
            f"cfg_scale={cfg_scale!r}: give one finite number; 1 runs the conditional branch alone."
        )
    return number


def encoding_of(encoding: Any, dtype: str) -> str | None:
    """Return how bfloat16 states are stored, checked against the model's number type.

    Args:
        encoding: as the user gave it; None for the default.
        dtype: name of the model's number type, such as "bfloat16".

    Returns:
        One of `ENCODINGS`; None where the model holds no bfloat16.

    Raises:
        PlanError: there is no such encoding, or the model's states are not bfloat16 and would be stored otherwise.
    """
    if encoding is not None and encoding not in ENCODINGS:
        raise PlanError(f"encoding={encoding!r}: one of {', '.join(ENCODINGS)}.")
    if dtype == "bfloat16":
        return encoding or "float32"
    if encoding not in (None, dtype):
        raise PlanError(
            f"encoding={encoding!r} is for bfloat16 states, and those of this model are {dtype}, which are stored as they "
            "are: leave it out."
        )
    return None


def verify_of(verify: Any) -> str:
    """Return which runs of a store are checked.

    Raises:
        PlanError: it is none of `VERIFY`.
    """
    if verify not in VERIFY:
        raise PlanError(f"verify={verify!r}: it is one of {', '.join(VERIFY)}.")
    return str(verify)


def sample_content(sample: Sample, unnamed: list[str]) -> dict[str, Any]:
    """Return what tells a sample from every other, as plain data."""
    return {
        "task": sample.task,
        "id": sample.id,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "num_frames": sample.num_frames,
        "size": sample.size,
        "image": content(sample.image, unnamed, "the sample's image"),
    }


def warn_unnamed(sentences: Sequence[str]) -> None:
    """Warn that a run is not found again, since not all that makes it can be named."""
    distinct = list(dict.fromkeys(sentences))
    if distinct:
        more = [f"and {len(distinct) - 3} more"] if len(distinct) > 3 else []
        warnings.warn(
            "This run gets a name of its own, and is not found again in a store, since not all that makes it can be "
            f"named: {'; '.join([*distinct[:3], *more])}.",
            UserWarning,
            stacklevel=2,
        )


__all__ = ["Request", "StageRequest", "encoding_of", "scale_of", "seed_of", "steps_of", "verify_of"]
