"""What one run is asked for: arguments settled, plan checked, name known, before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_lens import records
from dit_lens.engine.number_types import to_codes
from dit_lens.families.call import Stage
from dit_lens.families.specimen import Specimen
from dit_lens.plan.arguments import encoding_of, scale_of, seed_of, steps_of
from dit_lens.plan.places import at
from dit_lens.plan.plan import Layout, Plan
from dit_lens.store import run_name, versions
from dit_lens.tasks.sample import LONGEST_NAME, Sample


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
        body: source of a trace's body.

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
        body: str | None = None,
    ) -> None:
        calling = specimen.family.call
        self.specimen, self.sample, self.seed = specimen, sample, seed_of(seed)
        self.encoding = encoding_of(encoding, str(specimen.dtype).removeprefix("torch."))
        self.loop, self.body = loop, body
        self.steps = steps_of(steps, calling.default_steps)
        self.cfg_scale = scale_of(cfg_scale, calling.default_cfg)
        self.arguments = dict(arguments or {})
        self.keywords = self.fresh_keywords()
        calling.refuse(specimen.pipe, self.keywords)
        self.store = None if store is None else Path(store)
        passes = (Stage(self.steps, calling.branches(self.keywords)), *calling.later(self.keywords))
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
        self.plan = plan
        for stage in self.stages:
            stage.check(over_seeds=self.loop == "batch")
        plan.check_sources(self.specimen.fingerprint)

    @property
    def identity(self) -> dict[str, Any]:
        """All that makes the run what it is."""
        return {
            # Of all stages: what one of them does changes the ones after it.
            "plan": self.stages[0].complete(self.plan).to_json(),
            "sample": sample_content(self.sample),
            "seed": self.seed,
            "arguments": {
                k: _plain(v) for k, v in self.keywords.items() if k not in self.specimen.family.call.silent
            },
            **self._model,
            "encoding": self.encoding,
            "loop": self.loop,
            "body": self.body,
            "versions": versions(),
        }

    @cached_property
    def _model(self) -> dict[str, Any]:
        return self.specimen.identity()

    @property
    def label(self) -> str:
        """Sample and seed, as the names of its runs begin."""
        text = f"{self.sample.task}-{self.sample.id}"
        words = "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
        # A file system takes 255 bytes. The hash tells runs apart, the words are for people.
        return f"{words.encode()[:LONGEST_NAME].decode(errors='ignore')}-seed{self.seed}"


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
        )

    @property
    def plan(self) -> Plan:
        """The plan of this stage, with what is always written: x_s at every step, which a replay starts from."""
        return self.complete(self.request.plan.in_stage(self.layout))

    def complete(self, plan: Plan) -> Plan:
        """Return a plan with x_s at every step. Where it has x_s at some steps, all are written all the same."""
        always = Plan.of([(records.latents, at(stream=stream)) for stream in self.layout.latents])
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
        if not any(edit.place.region for edit in plan.edits):
            return
        # Cells that the grid will not have: at a late step the model would have run in vain.
        specimen = request.specimen
        anatomy = specimen.family.anatomy
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
        return {"identity": self.identity, "plan": str(self.plan), **several}

    @property
    def name(self) -> str:
        """Name of the run."""
        number = self.layout.stage
        return run_name(self.identity, self.request.label + (f"-stage{number}" if number else ""))

    @property
    def path(self) -> Path | None:
        """Where the run stands in its store; None without a store."""
        return None if self.request.store is None else self.request.store / self.name


def sample_content(sample: Sample) -> dict[str, Any]:
    """Return what tells a sample from every other, as plain data."""
    return {
        "task": sample.task,
        "id": sample.id,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "num_frames": sample.num_frames,
        "size": sample.size,
        "image": None if sample.image is None else hashlib.sha256(sample.image.tobytes()).hexdigest(),
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tobytes"):  # images and arrays, by content
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, Tensor):
        return hashlib.sha256(to_codes(value.detach().cpu().contiguous()).tobytes()).hexdigest()
    return repr(value)


__all__ = ["Request", "StageRequest"]
