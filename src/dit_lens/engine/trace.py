"""The tracing context: an nnsight trace that knows steps and branches, and takes declared records and edits.

Limits: the body must start on a line of its own, in a file or a notebook cell (nnsight compiles it from its
source), and must ask for values in the order in which the model makes them. What needs no free-form code is
cheaper as `lens.run(record=..., edit=...)`, which does not touch nnsight.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.tracer import InterleavingTracer

from dit_lens.engine import runner
from dit_lens.engine.envoys import envoys_of, release
from dit_lens.engine.request import Request
from dit_lens.engine.stages import Call
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.specimen import Specimen
from dit_lens.plan.places import At, Selector, at, positions
from dit_lens.plan.plan import Layout, Placed, Plan
from dit_lens.store.run import Run
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from types import CodeType

LOCATION = "dit_lens.call"
"""Where the body waits for the next call of a DiT, in nnsight's terms."""


def open_trace(specimen: Specimen, sample: Sample, seed: int, **options: Any) -> Trace:
    """Return a tracing context; see `Lens.trace`."""
    spare: dict[str, Any] = {
        k: options.pop(k, d)
        for k, d in (("steps", None), ("cfg_scale", None), ("store", None), ("encoding", None))
    }
    plan = Plan.of(options.pop("record", ()), options.pop("edit", ()))
    progress = bool(options.pop("progress", False))

    def request(body: str) -> Request:
        return Request(specimen, sample, seed, plan, arguments=options, body=body, **spare)

    request("")  # what cannot be carried out is refused here, before the body
    envoy = envoys_of(specimen)
    return envoy.trace(
        fn=_never, tracer_cls=Trace, specimen=specimen, request=request, plan=plan, progress=progress
    )


def _never() -> None:
    raise AssertionError("a trace runs its own job")


class Trace(InterleavingTracer):
    """The object behind `with lens.trace(...) as tr`."""

    def __init__(
        self,
        envoy: Any,
        fn: Any,
        *args: Any,
        specimen: Specimen,
        request: Callable[[str], Request],
        plan: Plan,
        progress: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(envoy, fn, *args, **kwargs)
        self.specimen, self._make, self._plan, self._progress = specimen, request, plan, progress
        self._request: Request | None = None
        self._running: Call | None = None
        self._peeked: Call | None = None
        self._asked = 0
        self._ended = False
        self._run: Run | None = None

    # ---- for the body

    def record(self, function: Callable[..., Any], place: At | None = None) -> None:
        """Record a function at a place, from the first step on.

        Raises:
            PlanError: it cannot be carried out, or the model is running already.
        """
        self._declare(self._plan.with_record(function, place), "record")

    def edit(self, function: Callable[..., Any], place: At | None = None) -> None:
        """Edit with a function at a place, from the first step on.

        Raises:
            PlanError: it cannot be carried out, or the model is running already.
        """
        self._declare(self._plan.with_edit(function, place), "edit")

    def calls(
        self,
        step: Selector = None,
        branch: str | None = None,
        expert: str | None = None,
        stage: int | None = None,
    ) -> Iterator[TracedCall]:
        """Go through the calls of the DiT that are selected, in the order in which they run.

        Args:
            step: as in `at`.
            branch: one branch; all unless given.
            expert: one expert; all unless given.
            stage: one stage; all unless given, where there are several.

        Yields:
            The calls; `call.block(6).output` is that block's value in this call, to read or to set.
        """
        place = Placed(_never, at(step=step, branch=branch, expert=expert, stage=stage))
        selected = {
            (layout.stage, step)
            for layout in (stage.layout for stage in self._need_request().stages)
            if place.in_stage(layout)
            for step in _steps(place, layout)
        }
        while (call := self._next()) is not None:
            if (call.stage, call.step) > max(selected):
                self._peeked = call  # it belongs to the next loop
                return
            here = (call.stage, call.step) in selected and (branch is None or branch in call.forward.rows)
            if here and expert in (None, call.expert):
                yield TracedCall(self, call)

    @property
    def run(self) -> Run:
        """The run, with all that was recorded; there once the body has ended."""
        if self._run is None:
            raise CaptureError("tr.run is there after the `with` block: its body runs beside the model.")
        return self._run

    # ---- for nnsight

    def execute(self, code: CodeType) -> None:
        """Run the body beside the pipeline."""
        self._request = self._make(ast.unparse(self.node))
        self.fn, self.args, self.kwargs = self._generate, (None,), dict[str, Any]()
        try:
            super().execute(code)
        finally:
            release(self.specimen)

    def _generate(self, _: None) -> Any:
        self._run = runner.run(self._need_request(), self._progress, self._watch, lambda: self._plan)
        return None

    def _watch(self, call: Call | None) -> None:
        self._running = call
        self._ended = call is None
        self.envoy.interleaver.handle(LOCATION, call)

    def _next(self) -> Call | None:
        call, self._peeked = self._peeked, None
        if call is not None or self._ended:
            return call
        # Pinned to the call after the last one that was served: while it is being served, nnsight would hand
        # out the same visit again. Relaxed after it: in a call, the next visit of each module.
        mediator = Mediator.current("tr.calls()")
        mediator.iteration = self._asked
        self._asked += 1
        call = Mediator.value(LOCATION)
        mediator.iteration = None
        return call

    def _need_request(self) -> Request:
        if self._request is None:
            raise CaptureError("This is for the body of the `with` block.")
        return self._request

    def _declare(self, plan: Plan, kind: str) -> None:
        request = self._need_request()
        if self._running is not None:
            raise PlanError(
                f"tr.{kind} comes before the first loop over tr.calls: step {self._running.step} is running."
            )
        request.declare(plan)
        self._plan = plan

    def check_current(self, call: Call, what: str) -> None:
        """Refuse a value that would come from a later call than the one asked for.

        Raises:
            CaptureError: the call is over.
        """
        if self._running is not call:
            raise CaptureError(
                f"{what} at {call}: the model is past it ({'the run has ended' if self._ended else self._running}). Ask for "
                "values in the order in which the model makes them, lower layers first."
            )


class TracedCall:
    """One call of a DiT in the body of a trace.

    Attributes:
        step: scheduler step.
        sigma: its noise level.
        branch: guidance branch.
        expert: the DiT that runs.
        stage: pass of the sampling loop.
    """

    def __init__(self, trace: Trace, call: Call) -> None:
        self._trace, self._call = trace, call
        self.step, self.sigma, self.branch, self.expert = call.step, call.sigma, call.branch, call.expert
        self.stage = call.stage

    @property
    def dit(self) -> Any:
        """The nnsight envoy of the DiT that runs."""
        specimen = self._trace.specimen
        dit, experts = specimen.dits[self.expert], specimen.family.anatomy.experts
        path = next(p for p in experts.values() if getattr(specimen.pipe, p, None) is dit)
        return getattr(envoys_of(specimen), path)

    def block(self, layer: int, stream: str = "video") -> TracedBlock:
        """Return a block in this call, to read or set what it holds of a stream.

        Raises:
            PlanError: there is no such layer, or no such stream.
        """
        if stream not in (known := self._trace.specimen.sites):
            raise PlanError(f"block({layer}, stream={stream!r}): this model has {', '.join(known)}.")
        (layer,) = positions("layer", ((layer, layer),), self._trace.specimen.layers)
        return TracedBlock(self._trace, self._call, self._envoy(layer), layer, stream)

    def _envoy(self, layer: int) -> Any:
        specimen = self._trace.specimen
        path, place = specimen.family.anatomy.locate(specimen.dits[self.expert], layer)
        return below(self.dit, path)[place]

    def __repr__(self) -> str:
        return f"Call({self._call})"


class TracedBlock:
    """One block in one call: a stream's hidden state as the model has it, [row, token, channel].

    What else the block is given or returns is there through `envoy`, which is nnsight's.
    """

    def __init__(self, trace: Trace, call: Call, envoy: Any, layer: int, stream: str) -> None:
        self._trace, self._call, self.envoy, self._layer = trace, call, envoy, layer
        self._sites = trace.specimen.sites[stream]

    @property
    def output(self) -> Any:
        """The hidden state that the block returns."""
        return self._sites["block"].of_output(self._value("output"))

    @output.setter
    def output(self, value: Any) -> None:
        whole = self._value("output")
        self.envoy.output = self._sites["block"].into_output(whole, value)
        self._check("output")

    @property
    def input(self) -> Any:
        """The hidden state that the block is given."""
        return self._sites["block_in"].of_inputs(self.envoy._module, self._value("inputs"))

    @input.setter
    def input(self, value: Any) -> None:
        given = self._value("inputs")
        self.envoy.inputs = self._sites["block_in"].into_inputs(self.envoy._module, given, value)
        self._check("inputs")

    def site(self, name: str) -> Any:
        """Return the nnsight envoy of the submodule that a site stands for."""
        if name not in self._sites:
            raise PlanError(f"block {self._layer} has no site {name!r}, only {', '.join(self._sites)}.")
        return below(self.envoy, self._sites[name].path)

    def _value(self, end: str) -> Any:
        self._check(end)
        value = getattr(self.envoy, end)
        self._check(end)  # nnsight would have waited for the next call where this one is past
        return value

    def _check(self, end: str) -> None:
        self._trace.check_current(self._call, f"block({self._layer}).{end}")


def _steps(place: Placed, layout: Layout) -> tuple[int, ...]:
    """Return the steps of a stage that `calls` goes through."""
    for name, given, known in (
        ("branch", place.place.branch, layout.branches),
        ("expert", place.place.expert, layout.experts),
    ):
        if given is not None and not set(given) <= set(known):
            raise PlanError(f"calls({name}={given[0]!r}): this run has {', '.join(known)}.")
    return place.steps(layout)


def below(envoy: Any, path: str) -> Any:
    """Return the envoy at a dotted path; "" is the envoy itself."""
    for part in path.split(".") if path else []:
        envoy = getattr(envoy, part)
    return envoy


__all__ = ["Trace", "TracedBlock", "TracedCall", "open_trace"]
