"""What the body of a trace holds: one call of a DiT, its blocks, and their sites, each to be read or set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_lens.engine.body import Body, current_body
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.attention import AttentionSite
from dit_lens.families.site import Item, Site, submodule
from dit_lens.plan.places import positions

if TYPE_CHECKING:
    from collections.abc import Hashable

    from dit_lens.engine.stages import Call
    from dit_lens.families.specimen import Specimen
    from dit_lens.plan.plan import Layout, Placed, Plan

EnvoyOf = Callable[[nn.Module], Any]
"""Module to its envoy in the tree of the running trace."""


@dataclass(frozen=True)
class End:
    """One end of a module, and where the hidden state stands in what it carries.

    Attributes:
        module: Of the DiT that runs.
        site: Which end, and where the hidden state stands.
    """

    module: nn.Module
    site: Site

    def steps(self, carried: Any) -> Item:
        """Return the steps from what the end carries to the hidden state."""
        if self.site.end == "output":
            return self.site.output_steps(carried)
        return self.site.input_steps(self.module, carried)

    def pick(self, carried: Any) -> Tensor:
        """Return the hidden state in what the end carries: what is returned, or (positional, by name)."""
        if self.site.end == "output":
            return self.site.of_output(carried)
        return self.site.of_inputs(self.module, carried)

    def put(self, carried: Any, new: Tensor) -> Any:
        """Return what the end carries, with another hidden state."""
        if self.site.end == "output":
            return self.site.into_output(carried, new)
        return self.site.into_inputs(self.module, carried, new)


@dataclass(frozen=True)
class CallPart:
    """A hidden state in one call: of what the body has selected, the rows of one branch or all.

    Attributes:
        call: The call.
        end: Of a module of the DiT that runs.
        what: The value in words.
    """

    call: TracedCall
    end: End
    what: str

    def key(self, carried: Any) -> Hashable:
        """Return what tells it from the other values that the end carries."""
        return self.end.steps(carried)

    def pick(self, carried: Any) -> Tensor:
        """Return it, as the model has it."""
        return self.call.own_rows(self.end.pick(carried), self.what)

    def put(self, carried: Any, new: Tensor) -> Any:
        """Return what the end carries with a copy of another value."""
        self.check(carried, new)
        return self.end.put(carried, self.call.with_rows(self.end.pick(carried), new, self.what))

    def check(self, carried: Any, new: Any) -> None:
        """Refuse another value that is not of the same shape and type.

        Raises:
            PlanError: It is not.
        """
        self.call.check_like(self.pick(carried), new, self.what)


class TracedCall:
    """One call of a DiT in the body of a trace.

    Args:
        specimen: Of the trace.
        call: The call.
        branch: The branch that the loop has selected; None for all that the call carries.
        envoy_of: Module to its nnsight envoy.
        declared: The plan, and the coordinates of the run: the body and the plan do not meet at one place.

    Attributes:
        step: Scheduler step.
        sigma: Its noise level.
        branch: Guidance branch. One batch may carry several: `cond+uncond`, or the one that the loop has selected.
        expert: The DiT that runs.
        stage: Pass of the sampling loop.
    """

    def __init__(
        self,
        specimen: Specimen,
        call: Call,
        branch: str | None,
        envoy_of: EnvoyOf,
        declared: tuple[Plan, Layout],
    ) -> None:
        self._specimen, self._call, self._envoy_of = specimen, call, envoy_of
        self._plan, self._layout = declared
        self.step, self.sigma, self.expert, self.stage = call.step, call.sigma, call.expert, call.stage
        self.branch = branch or call.branch
        self._rows = None if branch is None or len(call.forward.rows) == 1 else call.forward.rows[branch]

    @property
    def dit(self) -> Any:
        """The nnsight envoy of the DiT that runs; it has the rows of all branches that the call carries."""
        return self._envoy_of(self._specimen.dits[self.expert])

    def block(self, layer: int, stream: str = "video") -> TracedBlock:
        """Return a block in this call, to read or set what it holds of a stream.

        Raises:
            PlanError: There is no such layer, or no such stream.
        """
        if stream not in (streams := self._specimen.sites):
            raise PlanError(f"block({layer}, stream={stream!r}): this model has {', '.join(streams)}.")
        if "block" not in streams[stream]:
            raise PlanError(
                f"block({layer}, stream={stream!r}): no block carries it on; it has {', '.join(streams[stream])}, where "
                "tr.record and tr.edit place functions."
            )
        (layer,) = positions("layer", ((layer, layer),), self._specimen.layers)
        return TracedBlock(self, layer, stream)

    def module(self, layer: int) -> nn.Module:
        """Return the block of a layer, of the DiT that runs."""
        return self._specimen.blocks(self._specimen.dits[self.expert])[layer]

    def sites(self, stream: str) -> Any:
        """Return a stream's sites by name."""
        return self._specimen.sites[stream]

    def envoy(self, module: nn.Module) -> Any:
        """Return the nnsight envoy of a module of the DiT."""
        return self._envoy_of(module)

    def read(self, part: CallPart) -> Tensor:
        """Return a copy of a value of this call. Written to before the body goes on, it takes the value's place.

        Raises:
            CaptureError: The model is past it, or the module does not run in this call.
        """
        return self._body(part.what).read(self._location(part.end), part)

    def write(self, part: CallPart, value: Any) -> None:
        """Replace a value of this call; see `read`.

        Raises:
            PlanError: The new value is not of the same shape and type.
        """
        self._body(part.what).write(self._location(part.end), part, value)

    def refuse_placed(self, end: End, what: str, writing: bool) -> None:
        """Refuse to read or set a value where the plan acts at another moment than the body.

        Args:
            end: Of a module of the DiT that runs.
            what: The value in words.
            writing: Whether it is set.

        Raises:
            PlanError: An edit is declared there; or a record of an input, which has read it before the body does.
        """
        is_input = end.site.end == "input"
        edits = self._plan.edits if writing or not is_input else ()
        records = self._plan.records if is_input else ()  # what is read may be written into
        for kind, placed in (*(("edit", e) for e in edits), *(("record", r) for r in records)):
            if self._is_placed(placed, end):
                raise PlanError(
                    f"{what} at {self._call}: the {kind} {placed} is declared at this place, and would see another value than "
                    "the body. Edit in the body alone, or declare all of it; record what the body sets one place later."
                )

    def _is_placed(self, placed: Placed, end: End) -> bool:
        if placed.on_latents:
            return False
        place, site = placed.place, self._specimen.sites[placed.stream][placed.site]
        branches = placed.branches(self._layout)
        modules = (submodule(self.module(layer), site.path) for layer in placed.layers(self._layout))
        return (
            not isinstance(site, AttentionSite)
            and site.end == end.site.end
            and _is_one_item(site.item, end.site.item)
            and placed.in_stage(self._layout)
            and self.step in placed.steps(self._layout)
            and place.holds_sigma(self.sigma)
            and (place.expert is None or self.expert in place.expert)
            and any(branch in branches for branch in self.branch.split("+"))
            and any(module is end.module for module in modules)
        )

    def _body(self, what: str) -> Body:
        """Return the body, which is in this call."""
        body = current_body(f"{what} at {self._call}")
        body.check_current(self._call, what)
        return body

    def _location(self, end: End) -> str:
        return f"{self._envoy_of(end.module).path}.{end.site.end}"

    def own_rows(self, value: Tensor, what: str) -> Tensor:
        """Return the rows of the branch, as a view."""
        return value if self._rows is None else value[self._part(value, what)]

    def with_rows(self, whole: Tensor, value: Tensor, what: str) -> Tensor:
        """Return a copy of a hidden state in which the rows of the branch are others."""
        if self._rows is None:
            return value.clone()
        out = whole.clone()
        out[self._part(whole, what)] = value
        return out

    def check_like(self, current: Tensor, value: Any, what: str) -> None:
        """Refuse a new value that is not of the shape and type of the current one.

        Raises:
            PlanError: It is not.
        """
        if not isinstance(value, Tensor) or value.shape != current.shape or value.dtype != current.dtype:
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PlanError(
                f"{what} at {self._call} was set to {got}; the value is {current.dtype} {tuple(current.shape)} [row, token, "
                "channel]: set it to the same shape and type."
            )

    def _part(self, value: Tensor, what: str) -> slice:
        rows = max(rows.stop for rows in self._call.forward.rows.values())
        if value.ndim == 0 or value.shape[0] != rows or self._rows is None:
            raise CaptureError(
                f"{what} at {self._call} is {tuple(value.shape)}, but the batch of all branches has {rows} rows: the rows of "
                f"{self.branch!r} are unknown. Loop over tr.calls() without branch=, and take the value whole."
            )
        return self._rows

    def __repr__(self) -> str:
        return f"Call({self._call})"


class TracedSite:
    """A module in one call: the hidden state that it is given and returns, [row, token, channel].

    `output` and `input` can be set. What is read is the body's copy: a write into it before the body asks for another place
    is the same as setting it, and reaches nothing else. What else the module is given or returns is there through `envoy`,
    which is nnsight's, and gives the model's own tensors.

    Args:
        call: The call.
        what: The module in words.
        ends: Its ends by name, "output" and "input".
        value: Name of the end that holds the site's own value.
    """

    def __init__(self, call: TracedCall, what: str, ends: dict[str, End], value: str) -> None:
        self._call, self._what, self._ends, self._value = call, what, ends, value

    @property
    def output(self) -> Any:
        """The hidden state that the module returns."""
        return self._get("output")

    @output.setter
    def output(self, value: Any) -> None:
        self._set("output", value)

    @property
    def input(self) -> Any:
        """The hidden state that the module is given."""
        return self._get("input")

    @input.setter
    def input(self, value: Any) -> None:
        self._set("input", value)

    @property
    def value(self) -> Any:
        """The value of the site, which a record placed there gets: `output`, or `input` where the site is one."""
        return self._get(self._value)

    @value.setter
    def value(self, value: Any) -> None:
        self._set(self._value, value)

    @property
    def envoy(self) -> Any:
        """The module's nnsight envoy: all that it is given and returns, of all branches that the call carries."""
        return self._call.envoy(self._ends[self._value].module)

    def _get(self, name: str) -> Any:
        part = self._part(name)
        self._call.refuse_placed(part.end, part.what, writing=False)
        return self._call.read(part)

    def _set(self, name: str, value: Any) -> None:
        part = self._part(name)
        self._call.refuse_placed(part.end, part.what, writing=True)
        self._call.write(part, value)

    def _part(self, name: str) -> CallPart:
        what = f"{self._what}.{name}"
        if name not in self._ends:
            raise PlanError(
                f"{what}: this module carries several states, and which of them it is, is not known: use envoy.{name}."
            )
        return CallPart(self._call, self._ends[name], what)

    def __repr__(self) -> str:
        return f"{self._what} of {self._call!r}"


class TracedBlock(TracedSite):
    """One block in one call: `output` is the residual stream after it, `input` the one before it."""

    def __init__(self, call: TracedCall, layer: int, stream: str) -> None:
        self._layer, self._sites, self._block = layer, call.sites(stream), call.module(layer)
        ends = {
            name: self._end(self._sites[site]) for name, site in (("output", "block"), ("input", "block_in"))
        }
        self._label = f"block({layer})" if stream == "video" else f"block({layer}, stream={stream!r})"
        super().__init__(call, self._label, ends, "output")

    def site(self, name: str) -> TracedSite:
        """Return the submodule that a site stands for.

        Raises:
            PlanError: The block has no such site.
        """
        if name not in self._sites:
            raise PlanError(f"{self._label} has no site {name!r}, only {', '.join(self._sites)}.")
        site = self._sites[name]
        if isinstance(site, AttentionSite):
            raise PlanError(
                f"{self._label}.site({name!r}) stands inside of an attention, where a body cannot read: place a function there, "
                f"as tr.record(f, dl.at(site={name!r})) or tr.edit."
            )
        ends = {site.end: self._end(site)}
        if (other := self._other(site)) is not None:
            ends[other.end] = self._end(other)
        return TracedSite(self._call, f"{self._label}.site({name!r})", ends, site.end)

    def _other(self, site: Site) -> Site | None:
        """Return the other end of a site's module: as another site says it; None where the module carries more than one state."""
        end = "input" if site.end == "output" else "output"
        for one in self._sites.values():
            if (one.path, one.end) == (site.path, end) and not isinstance(one, AttentionSite):
                return one
        return Site(site.path, end) if _is_one_item(site.item, None) else None

    def _end(self, site: Site) -> End:
        return End(submodule(self._block, site.path), site)


def _is_one_item(one: Item | None, other: Item | None) -> bool:
    """Say whether two items are the same state: by itself, or as the first of what a module carries."""
    return one == other or {one, other} <= {None, (), (0,)}


__all__ = ["TracedBlock", "TracedCall", "TracedSite"]
