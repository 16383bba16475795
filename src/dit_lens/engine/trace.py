"""The tracing context: an nnsight trace that knows steps and branches, and takes declared records and edits.

Limits: the body must start on a line of its own, in a file or a notebook cell (nnsight compiles it from its
source), and must ask for values in the order in which the model makes them. What needs no free-form code is
cheaper as `lens.run(record=..., edit=...)`, which does not touch nnsight.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from nnsight.intervention.interleaver import EarlyStopException
from nnsight.intervention.tracer import InterleavingTracer
from nnsight.tracing.tracer import ExitTracingException, dec, inc, push_result, skip_context, skippable
from nnsight.tracing.util import clean_traceback

from dit_lens.engine import runner
from dit_lens.engine.body import LOCATION, Body
from dit_lens.engine.envoys import release, wrap
from dit_lens.engine.request import Request
from dit_lens.engine.source import capture
from dit_lens.engine.stages import Call
from dit_lens.engine.traced import TracedBlock, TracedCall, TracedSite
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.patching import one_interrupt, refuse_marked, traced
from dit_lens.families.specimen import Specimen
from dit_lens.plan.places import At, Selector
from dit_lens.plan.plan import Layout, Placed, Plan
from dit_lens.plan.selectors import at
from dit_lens.plan.source import describe_source
from dit_lens.store.run import Run
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from types import CodeType, FrameType, TracebackType

    from torch import nn


def open_trace(specimen: Specimen, sample: Sample, seed: int, **options: Any) -> Trace:
    """Return a tracing context; see `Lens.trace`."""
    spare: dict[str, Any] = {
        k: options.pop(k, d)
        for k, d in (("steps", None), ("cfg_scale", None), ("store", None), ("encoding", None))
    }
    plan = Plan.of(options.pop("record", ()), options.pop("edit", ()))
    progress = bool(options.pop("progress", False))
    options.pop("verify", None)  # a trace takes no run out of a store: it always runs

    def request(body: Mapping[str, Any], unnamed: Sequence[str]) -> Request:
        return Request(specimen, sample, seed, plan, arguments=options, body=body, unnamed=unnamed, **spare)

    request({}, ())  # what cannot be carried out is refused here, before the body
    return Trace(specimen, request, plan, progress)


class Trace(InterleavingTracer):
    """The object behind `with lens.trace(...) as tr`.

    Args:
        specimen: What is traced.
        request: Makes the request out of what the body does and reads, and of what of that cannot be named.
        plan: What is declared before the body.
        progress: Whether the pipeline's progress bar is shown.
    """

    envoy: Any  # nnsight's view of the pipeline; it is made when the trace is sure to be the only one

    def __init__(
        self,
        specimen: Specimen,
        request: Callable[[Mapping[str, Any], Sequence[str]], Request],
        plan: Plan,
        progress: bool,
    ) -> None:
        super().__init__(
            None, "__call__"
        )  # nnsight's envoy is made when the trace is sure to be the only one
        self.specimen, self._make, self._plan, self._progress = specimen, request, plan, progress
        self._request: Request | None = None
        self._body: Body | None = None
        self._calls: list[Call] = []  # all that the model has begun
        self._peeked: Call | None = None  # the call that ended a loop, and belongs to the next one
        self._stopped = False
        self._run: Run | None = None

    # ---- for the body

    def record(self, function: Callable[..., Any], place: At | None = None) -> None:
        """Record a function at a place, from the first step on.

        Raises:
            PlanError: It cannot be carried out, or the model is running already.
        """
        self._declare(self._plan.with_record(function, place), "record")

    def edit(self, function: Callable[..., Any], place: At | None = None) -> None:
        """Edit with a function at a place, from the first step on.

        Raises:
            PlanError: It cannot be carried out, or the model is running already.
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
            step: As in `at`.
            branch: One branch; where one batch carries several, its rows alone. Default: "all".
            expert: One expert. Default: "all".
            stage: One stage, where there are several. Default: all.

        Yields:
            The calls; `call.block(6).output` is that block's value in this call, to read or to set.

        Raises:
            PlanError: The run has no such calls.
            CaptureError: Some of them are past.
        """
        body = self._need_body()
        place = Placed(_never, at(step=step, branch=branch, expert=expert, stage=stage))
        branch, expert = _one("branch", place.place.branch), _one("expert", place.place.expert)
        selected = {
            (layout.stage, step)
            for layout in (stage.layout for stage in self._need_request().stages)
            if place.in_stage(layout)
            for step in _steps(place, layout)
        }

        def is_selected(call: Call) -> bool:
            in_branch = branch is None or branch in call.forward.rows
            return (call.stage, call.step) in selected and in_branch and expert in (None, call.expert)

        self._refuse_past(is_selected)
        while (call := self._next(body)) is not None:
            if (call.stage, call.step) > max(selected):
                self._peeked = call
                break
            if is_selected(call):
                body.call = call
                layout = self._need_request().stages[call.stage].layout
                begun = len(self._calls)
                yield TracedCall(self.specimen, call, branch, self._envoy_of, (self._plan, layout))
                self._refuse_past(is_selected, begun)
        body.call = None

    @property
    def run(self) -> Run:
        """The run, with all that was recorded; there once the body has ended."""
        if self._run is None:
            stopped = self._stopped and self._body is None
            why = "the body stopped the model" if stopped else "its body runs beside the model"
            raise CaptureError(f"tr.run is there after the `with` block, once the run is complete: {why}.")
        return self._run

    def __content__(self, walk: Any) -> dict[str, Any]:
        """Return what names the trace where its body, or another one, reads it as a part of something else."""
        if self.info is not None and self.info.frame is not None:
            return {"@trace": "the one that runs"}
        if self._run is None:
            return dict(walk.unnamed(self, "a trace that is not over"))
        return {"@trace": walk.visit(self._run)}

    def _refuse_past(self, is_selected: Callable[[Call], bool], begun: int = 0) -> None:
        """Raise CaptureError where the model is past a call that a loop selects, but for the first `begun`."""
        body = self._need_body()
        if self._peeked is not body.running:
            self._peeked = None  # the body has waited for something else meanwhile
        past = next(
            (call for call in self._calls[begun:] if call is not self._peeked and is_selected(call)), None
        )
        if past is not None:
            raise CaptureError(
                f"tr.calls selects {past}, and the model is past it: the body has been through it, or was busy elsewhere. "
                "Name the steps that are still to come, or do it all in one loop: two at once take each other's calls."
            )

    def _next(self, body: Body) -> Call | None:
        call, self._peeked = self._peeked, None
        return call or body.next_call()

    # ---- for nnsight

    def __enter__(self) -> Self:
        """Skip the body, which runs beside the model when the block ends.

        Raises:
            PlanError: This trace has run, or another one runs with the model, or the body cannot run as it is written.
        """
        if self._request is not None:
            raise PlanError("This trace has run: call lens.trace again for another run.")
        refuse_marked([*self.specimen.dits.values()])  # before the source: a trace in a body has none to find
        capture(self)
        if skippable(self.node):
            skip_context(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Run the body, now that it is skipped; other errors pass."""
        if isinstance(error, ExitTracingException):
            sys.settrace(error.displaced)  # a debugger's, or coverage's
        elif error is not None:
            return False
        inc()
        try:
            self.execute(self.info.code)
        except BaseException as raised:
            _forget_skip(raised)
            with suppress(TypeError):  # an interrupt may come between two lines, where nnsight finds none
                raised.__traceback__ = clean_traceback(raised.__traceback__)
            raise
        finally:
            dec()
            self.info.frame, self.envoy = None, None  # they hold the model
        return True

    def execute(self, code: CodeType) -> None:
        """Run the body beside the pipeline.

        Raises:
            PlanError: The model is being traced already.
            CaptureError: The body has asked for a value that its call did not make.
        """
        specimen, frame = self.specimen, self.info.frame
        self._request = self._make(*self._identity())
        self._request.model  # noqa: B018  (it is read before nnsight wraps the modules)
        dits = specimen.dits.values()
        with one_interrupt(), traced(dits):
            root = specimen.family.anatomy.root(specimen.pipe)
            try:
                specimen.envoys = self.envoy = wrap(root)
                paths = [self._envoy_of(dit).path for dit in dits]
                before = dict(frame.f_locals)
                self._body = Body(code, frame.f_globals, dict(before), paths)
                self._interleave(self._request, self._body)
                push_result(frame, variables := self._body.lcls.writes())
                _warn_unsaved(frame, before, variables)
            finally:
                self._body, self._calls, self._peeked = None, [], None  # they hold what the run was made with
                specimen.envoys = None
                _surely(lambda: release(root))

    def _identity(self) -> tuple[dict[str, Any], list[str]]:
        """Return what the body does, with the values that it reads, and what of that cannot be named."""
        frame, unnamed = self.info.frame, list[str]()
        names = [name for name, value in (frame.f_globals | frame.f_locals).items() if value is self]
        text = "\n".join(ast.unparse(statement) for statement in self.node.body)
        return describe_source(text, frame.f_globals, frame.f_locals, unnamed, apart=names), unnamed

    def _interleave(self, request: Request, body: Body) -> None:
        """Run the pipeline; the body runs whenever the model reaches what it waits for."""
        interleaver = self.envoy.interleaver
        interleaver.mediators = [body]
        self._stopped = True
        try:
            with interleaver:
                run = runner.run(request, self._progress, self._watch, lambda: self._plan)
                interleaver.handle("result", run)
                self._run, self._stopped = run, False
                if request.store is not None:
                    run.dataset  # noqa: B018  (opened now: another trace of this name may take its place)
            interleaver.check_dangling_mediators()
        except EarlyStopException:  # the body has stopped before the model began
            pass
        except (RuntimeError, NotImplementedError) as error:
            if "not require grad" not in str(error):
                raise
            raise CaptureError(
                "A backward pass in the body reached no gradient: the pipeline runs under torch.no_grad, so what its modules "
                "return carries none. For the gradient of a metric with respect to a block's state use batch.attribute(metric, "
                "...), or batch.step(..., gradients=True)."
            ) from error
        finally:
            interleaver.cancel()

    def _watch(self, call: Call | None) -> None:
        body = self._need_body()
        body.begin_call(call)
        if call is not None:
            self._calls.append(call)
        self.envoy.interleaver.handle(LOCATION, call)

    def _envoy_of(self, module: nn.Module) -> Any:
        """Return the envoy of a module, which may stand in the pipeline under several names."""
        envoy = None if self.envoy is None else self.envoy.interleaver.envoys.get(id(module))
        if envoy is None:
            raise CaptureError(
                f"This {type(module).__name__} is not a part of the pipeline that is traced: the trace is over, or the "
                "module was put in after it began."
            )
        return envoy

    def _need_request(self) -> Request:
        if self._request is None:
            raise CaptureError("This is for the body of the `with` block.")
        return self._request

    def _need_body(self) -> Body:
        if self._body is None:
            raise CaptureError("This is for the body of the `with` block.")
        return self._body

    def _declare(self, plan: Plan, kind: str) -> None:
        request, body = self._need_request(), self._need_body()
        if self._calls:
            now = "the run has ended" if body.ended else f"step {self._calls[-1].step} is running"
            raise PlanError(f"tr.{kind} comes before the first loop over tr.calls: {now}.")
        request.declare(plan)
        self._plan = plan

    # ---- of nnsight, what calls replace

    @property
    def iter(self) -> Any:
        """Refuse nnsight's loop over visits: it knows no steps and branches."""
        raise PlanError("tr.iter counts visits of modules: loop over tr.calls(step=..., branch=...).")

    def all(self) -> Any:
        """Refuse nnsight's loop over visits; see `iter`."""
        raise PlanError("tr.all counts visits of modules: loop over tr.calls().")

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse nnsight's batches: the pipeline makes its own."""
        raise PlanError("tr.invoke is not for pipelines: give the sample to lens.trace, one trace a sample.")


def _never() -> None:
    raise AssertionError("a trace runs its own job")


def _one(name: str, names: tuple[str, ...] | None) -> str | None:
    """Return the one name that `calls` goes through; None for all."""
    if names is not None and len(names) > 1:
        raise PlanError(f"calls({name}={names}): give one, or 'all', and look at call.{name}.")
    return None if names is None else names[0]


def _steps(place: Placed, layout: Layout) -> tuple[int, ...]:
    """Return the steps of a stage that `calls` goes through."""
    for name, names, known in (
        ("branch", place.place.branch, layout.branches),
        ("expert", place.place.expert, layout.experts),
    ):
        if names is not None and not set(names) <= set(known):
            raise PlanError(f"calls({name}={names[0]!r}): this run has {', '.join(known)}.")
    return place.steps(layout)


def _warn_unsaved(frame: FrameType, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Warn of variables that the body has set, and that still have the value that they had before the `with` block.

    Args:
        frame: Where the block stands, with what was saved.
        before: Its variables when the body began.
        after: Those that the body has set.
    """
    now = frame.f_locals
    names = sorted(
        name
        for name, value in after.items()
        if name in before and value is not before[name] and value is not now[name]
    )
    if names:
        warnings.warn(
            "The body of the trace sets variables that stood before it, and they keep their old values after the `with` block: "
            f"{', '.join(names)}. Call {names[0]}.save() in the body once it is set, or fill a list or a dict from before it.",
            stacklevel=4,
        )


def _forget_skip(error: BaseException) -> None:
    """Take nnsight's way to skip the body out of what Python says an error came from."""
    while error.__context__ is not None:
        if isinstance(error.__context__, ExitTracingException):
            error.__context__ = None
            return
        error = error.__context__


def _surely(cleaning: Callable[[], None]) -> None:
    """Clean up, to the end also where an interrupt comes in between; cleaning twice does no harm."""
    try:
        cleaning()
    except KeyboardInterrupt:
        cleaning()
        raise


__all__ = ["Trace", "TracedBlock", "TracedCall", "TracedSite", "open_trace"]
