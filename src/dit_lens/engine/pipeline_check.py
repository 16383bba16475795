"""A batch stands in for the pipeline's loop, so it has to be that loop: it is compared with the pipeline's own.

What a batch does not know of (guidance that is rescaled, a mask put back between steps, a schedule that begins
later, a callback) shows in one of the things that are compared. The model runs in the first two steps; in the steps after
them its output is set to a number for each branch, which costs nothing, and shows guidance that changes, masks and calls that
come late. A network that runs beside the DiT at every step (a ControlNet) is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_lens.engine.recorder import same_bits
from dit_lens.errors import PlanError
from dit_lens.families.call import Forward
from dit_lens.families.latents import apart, together
from dit_lens.families.patching import guarded, set_attribute
from dit_lens.plan.content import content
from dit_lens.plan.digests import digest

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.plan.plan import Placed

STEPS = 2
"""Steps in which the model itself runs."""
_ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
LOCAL = 20
"""How many times the tolerance a single position may differ by."""
PER_RUN = ("prompt", "negative_prompt", "seed", "generator", "image", "input_image", "input_images", "sample")
"""Arguments of a pipeline that differ from run to run, and take no part in how its loop goes."""


@dataclass
class Observed:
    """One step of the pipeline's own loop.

    Attributes:
        latents: what its calls started from, by stream.
        branches: that ran.
        timestep: what its scheduler was told.
        velocity: what its scheduler was given, by stream.
    """

    latents: Mapping[str, Tensor]
    branches: set[str] = field(default_factory=set)
    timestep: float = float("nan")
    velocity: dict[str, Tensor] = field(default_factory=dict)


def rounding(dtype: torch.dtype) -> float:
    """Return below what share of a value's size the rounding of a number type stays: as the root of mean squares."""
    return _ROUNDING.get(dtype, 1e-2)


class EnoughError(Exception):
    """Ends the pipeline's call once its steps are seen."""


class Observer:
    """Listens to a pipeline's loop, and changes nothing.

    Args:
        seed: of the run.
        count: number of its steps.
        branches: of guidance, in order.

    Attributes:
        steps: what was seen.
        beside: networks that ran between the model's calls, by name.
    """

    def __init__(self, seed: int, count: int, branches: Sequence[str]) -> None:
        self.seed, self._count, self._branches = seed, count, branches
        self.steps: list[Observed] = []
        self.beside: set[str] = set()
        self._calling = False

    def enter(self, stage: int) -> None:
        """Take no notice: a batch runs one stage."""

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return the latents as they are."""
        return latents

    def call(
        self,
        forward: Forward,
        latents: Mapping[str, Tensor],
        proceed: Callable[[Mapping[str, Tensor]], Any],
        skip: Callable[[], Any],
    ) -> Any:
        """Keep what a step starts from, and let the model run; after the first steps it gives a number a branch."""
        if not self.steps or self.steps[-1].velocity:
            self.steps.append(Observed({stream: x.clone() for stream, x in latents.items()}))
        self.steps[-1].branches |= set(forward.rows)
        if len(self.steps) > STEPS:
            return _filled(skip(), {value_of(b, self._branches): rows for b, rows in forward.rows.items()})
        self._calling = True
        try:
            return proceed(latents)
        finally:
            self._calling = False

    def note(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a network's forward that takes note where it runs between the model's calls."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            if self.steps and not self._calling:
                self.beside.add(name)
            return forward(*args, **kwargs)

        return noted

    def advance(
        self,
        velocity: Tensor,
        timestep: Any,
        latents: Tensor,
        proceed: Callable[[Tensor, Tensor], Tensor],
        stream: str = "video",
    ) -> Tensor:
        """Keep what the scheduler is given, and let it step."""
        step = self.steps[-1]
        step.timestep, step.velocity[stream] = float(timestep), velocity.clone()
        out = proceed(velocity, latents)
        if len(self.steps) == self._count and step.velocity.keys() == step.latents.keys():
            raise EnoughError  # nothing is decoded
        return out


def value_of(branch: str, branches: Sequence[str]) -> float:
    """Return what stands in place of the model's output on a branch: another number for each, so that guidance shows."""
    return 1.0 + (branches.index(branch) if branch in branches else len(branches))


def _filled(output: Any, values: Mapping[float, slice]) -> Any:
    """Return a model's output with a number in place of all values of some rows."""
    if isinstance(output, Tensor):
        for value, rows in values.items():
            output[rows] = value
        return output
    for part in output if isinstance(output, tuple | list) else vars(output).values():
        if isinstance(part, Tensor):
            _filled(part, values)
    return output


@torch.no_grad()
def check_against_pipeline(batch: Batch) -> bool:
    """Compare a row of a batch with the pipeline's own loop, once for a model and arguments.

    Returns:
        Whether the pipeline was run for it.

    Raises:
        PlanError: it differs; the message says in what, at which step, and by how much.
    """
    specimen, request = batch.specimen, batch.requests[0]
    loop = {k: v for k, v in request.keywords.items() if k not in PER_RUN}
    functions = sorted(name for name, value in loop.items() if callable(value) and "callback" in name)
    if functions:
        raise PlanError(f"{functions[0]}=... in a batch: its loop has no callbacks; use lens.run.")
    forwards, firsts, kind = _beside(batch)
    key = digest([content(loop, []), batch.model, request.sample.image is None, _shapes(batch), kind])
    if key in specimen.checked_loops:
        return False
    observed, tolerance = _observe(batch), _tolerance(batch)
    if len(observed) != batch.steps:
        raise _differs(
            "end", len(observed), f"after {batch.steps} steps, the pipeline's after {len(observed)}"
        )
    latents = [_loud(batch.noise[pairs], first) for pairs, first in zip(forwards, firsts, strict=True)]
    x = batch.noise[:1]
    for step, seen in enumerate(observed):
        if seen.branches != set(batch.layout.branches):
            raise _differs(
                "guidance", step, f"of {batch.layout.branches}, the pipeline's of {sorted(seen.branches)}"
            )
        _compare("latents", step, apart(x), seen.latents, tolerance)
        if abs(seen.timestep - batch.timesteps[step]) > 1e-3:
            raise _differs(
                "timestep", step, f"{batch.timesteps[step]:.3f}, the pipeline's {seen.timestep:.3f}"
            )
        if step < STEPS:
            unedited: list[list[Placed]] = [[]]
            results = [
                (batch.step(step, rows, pairs, unedited * len(pairs)), first)
                for rows, pairs, first in zip(latents, forwards, firsts, strict=True)
            ]
        else:
            results = [(batch.step_of_numbers(step, x), 0)]
        for out, n in results:
            _compare("guided velocity", step, apart(out.velocity[n : n + 1]), seen.velocity, tolerance)
            _refuse_other_type(x, out.latents[n : n + 1])
        latents = [out.latents for out, _ in results]
        out, n = results[0]
        x = out.latents[n : n + 1]
    specimen.checked_loops.add(key)
    return True


def warn_of_keeping() -> None:
    """Warn of a model that the check has changed."""
    warnings.warn(
        "Something of yours in the model (a module, a hook, a function in place of one of its own) keeps something from call to "
        "call, and a batch calls the model in another order than the pipeline does, for several rows at once, and first for its "
        "check: its rows need not be the runs of lens.run.",
        stacklevel=4,
    )


LOUD = 4.0
"""By how much the latents of the rows beside the first pair are larger than noise."""


def _loud(latents: Tensor, first: int) -> Tensor:
    """Return latents whose rows beside the first pair's are larger: what one row reads of another then shows."""
    streams = {stream: x.clone() for stream, x in apart(latents).items()}
    for x in streams.values():
        x[[row for row in range(len(x)) if row != first]] *= LOUD
    return together(streams)


def _shapes(batch: Batch) -> list[Any]:
    """Return of what shape everything is that the model is given, for every branch."""
    shapes: list[Any] = [[*x.shape[1:]] for x in apart(batch.noise).values()]
    for branch in batch.layout.branches:
        given = batch.inputs.of_branch(branch, [0])
        shapes.append(
            [[n, [*v.shape] if isinstance(v, Tensor) else str(type(v))] for n, v in sorted(given.items())]
        )
    return shapes


def _beside(batch: Batch) -> tuple[list[list[int]], list[int], list[Any]]:
    """Return the pairs of each forward of the check, where the first pair stands in each, and what these can show.

    The first pair stands after another one and before it, in a forward of two rows and one of three, so that a model whose
    rows read one another shows, as one that takes two halves of its rows for two branches does. The other pair is one for
    which the model is given something else, where there is one; its latents are larger in any case.
    """
    if batch.at_once == 1:
        return [[0]], [0], ["alone"]
    others = {n: batch.inputs.differing(0, n) for n in range(1, len(batch.pairs))}
    other = max(others, key=lambda n: (len(others[n] - {"latents"}), len(others[n])), default=0)
    forwards = [[0, other], [other, 0]] if batch.at_once == 2 else [[other, 0, other], [other, 0]]
    firsts = [0, 1] if batch.at_once == 2 else [1, 1]
    return forwards, firsts, [min(batch.at_once, 3), sorted(others.get(other, ()))]


def _observe(batch: Batch) -> list[Observed]:
    """Run the pipeline, its model in the first steps alone."""
    specimen, request = batch.specimen, batch.requests[0]
    pipe, calling = specimen.pipe, specimen.family.call
    keywords, observer = request.fresh_keywords(), Observer(request.seed, batch.steps, batch.layout.branches)

    def observe() -> None:
        for name, network in specimen.networks_beside().items():
            for part in (network, *network.children()):
                set_attribute(part, "forward", observer.note(name, part.forward))
        undo = calling.intercept(pipe, specimen.family.anatomy, observer)
        try:
            pipe(**keywords)
        finally:
            undo()

    steps: list[Iterator[Any]] = []
    if (bar := keywords.get("progress_bar_cmd")) is not None:
        # DiffSynth's steps go through it: what would come after the last one shows in what is left of them.
        def shown(items: Any) -> Iterator[Any]:
            steps.append(iter(bar(items)))
            return steps[-1]

        keywords["progress_bar_cmd"] = shown
    with specimen.held(keywords):
        try:
            guarded(observe)
        except EnoughError:
            calling.release(pipe)
            if steps and next(steps[-1], None) is not None:
                observer.steps.append(Observed({}))
    if observer.beside:
        raise PlanError(
            f"{', '.join(sorted(observer.beside))} of the {type(pipe).__name__} runs at every step beside the DiT, and a batch "
            "prepares what the model is given once: use lens.run."
        )
    return observer.steps


def _refuse_other_type(before: Tensor, after: Tensor) -> None:
    """Refuse latents whose number type a step changes: pipelines round them in ways of their own, which cannot be seen.

    Raises:
        PlanError: it does.
    """
    for (stream, x), y in zip(apart(before).items(), apart(after).values(), strict=True):
        if x.dtype != y.dtype:
            raise PlanError(
                f"The {stream} latents are {x.dtype} before a step and {y.dtype} after it, and how the pipeline rounds them in "
                "between is not known to a batch: use lens.run, or load the model in float32."
            )


def _tolerance(batch: Batch) -> float:
    """Return by what share of its size a value of a batch may differ: guidance multiplies what rounding changes."""
    return rounding(batch.specimen.dtype) * max(1.0, batch.cfg_scale / 5)


def _compare(
    what: str,
    step: int,
    ours: Mapping[str, Tensor],
    pipelines: Mapping[str, Tensor],
    share: float,
) -> None:
    for stream, expected in pipelines.items():
        got, size = ours[stream], expected.float().square().mean().sqrt()
        if got.shape != expected.shape or got.dtype != expected.dtype:
            told = [f"{x.dtype} {tuple(x.shape)}" for x in (got, expected)]
            raise _differs(what, step, f"{told[0]}, the pipeline's {told[1]}")
        if same_bits(got, expected):
            continue
        difference = (got.float() - expected.float()).abs()
        tolerance = share * max(float(size), 1e-6)
        rms, largest = float(difference.square().mean().sqrt()), float(difference.max())
        if not (rms <= tolerance and largest <= LOCAL * tolerance):  # so NaN differs too
            percent = f"{100 * rms / float(size):.2g}%" if float(size) else f"{rms:.2g}, where all is 0,"
            raise _differs(what, step, f"off by {percent} of the pipeline's own ({stream})")


def _differs(what: str, step: int, how: str) -> PlanError:
    return PlanError(
        f"A batch would not be the pipeline's own loop: at step {step} its {what} is {how}. The pipeline does something between "
        "its calls that batches do not know of (guidance that is rescaled, a mask put back, another schedule), or its model "
        "mixes rows: use lens.run."
    )
