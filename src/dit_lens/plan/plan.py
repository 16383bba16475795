"""A plan: records, edits and their places, as data. It prints, hashes, and is checked before any run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError
from dit_lens.plan.binding import Binding
from dit_lens.plan.digests import digest
from dit_lens.plan.functions import KEEPS, Configured, declares, describe, is_packages_own, restore
from dit_lens.plan.names import record_problem
from dit_lens.plan.places import GRID_DIMS, GRID_SITES, TEXT, At, Ranges, Spot, grid_dim, positions
from dit_lens.plan.text import TextToken, positions_of_words

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Carried:
    """What a site holds of every token.

    Attributes:
        channels: of a value; of each head where it has heads. 0 where that is not known.
        heads: of an attention; 0 where the site does not have them apart.
        is_attention: whether it is an attention itself, its queries and keys, which only records of attention read.
        keys: stream of the keys of such an attention.
    """

    channels: int = 0
    heads: int = 0
    is_attention: bool = False
    keys: str = "video"


@dataclass(frozen=True)
class Layout:
    """What a plan is checked against: the coordinates of one run on one model.

    Attributes:
        sites: stream name to site name to the path below a block, for messages.
        layers: number of blocks.
        steps: number of scheduler steps.
        branches: guidance branches of the run.
        experts: names of the DiTs.
        latents: streams that have latents of their own.
        stage: which pass of the sampling loop this is.
        stages: how many there are.
        carried: what each site holds, by (stream, site), where that is known.
        text: gives, by branch, the tokens of the prompt; nothing where they are not known.
    """

    sites: Mapping[str, Mapping[str, str]]
    layers: int
    steps: int
    branches: tuple[str, ...]
    experts: tuple[str, ...]
    latents: tuple[str, ...] = ("video",)
    stage: int = 0
    stages: int = 1
    carried: Mapping[tuple[str, str], Carried] = field(default_factory=dict)
    text: Callable[[], Mapping[str, Sequence[TextToken]]] = dict

    def having(self, fact: Callable[[Carried], bool], stream: str) -> str:
        """Return the names of a stream's sites of which something is so, for messages."""
        names = [site for (of, site), held in self.carried.items() if of == stream and fact(held)]
        return ", ".join(names) or "none"


@dataclass(frozen=True)
class Placed:
    """One record or edit at its place."""

    function: Callable[..., Any]
    place: At

    @property
    def name(self) -> str:
        """Name of the function, and of what a record writes."""
        inner = self.function.function if isinstance(self.function, Configured) else self.function
        return str(getattr(inner, "__name__", type(inner).__name__)).replace("<lambda>", "lambda")

    @property
    def site(self) -> str:
        """Where the value is read: the place's site, else the function's own, else `block`."""
        return self.place.site or getattr(self.function, "site", None) or "block"

    @property
    def stream(self) -> str:
        """Which of the streams that a block carries is read."""
        return self.place.stream

    @property
    def variable(self) -> str:
        """Name of the variable that a record writes: with the site and the stream where they are not the default."""
        default = getattr(self.function, "site", None) or "block"
        parts = [self.name]
        parts += [self.site] if self.site != default else []
        parts += [self.stream] if self.stream != "video" else []
        return "_".join(parts)

    @property
    def over_seeds(self) -> bool:
        """Whether it is an edit that sees the rows of several seeds together."""
        return declares(self.function, "over_seeds")

    @property
    def reads_x0(self) -> bool:
        """Whether it is an edit that takes x0 of the step before."""
        return declares(self.function, "reads_x0")

    @property
    def on_latents(self) -> bool:
        """Whether the site stands outside the blocks."""
        return self.site in GRID_SITES

    @property
    def kept(self) -> tuple[str, ...]:
        """The dimensions that a record writes beside step, branch, layer and head."""
        dims: tuple[str, ...] = self.function.dims  # type: ignore[attr-defined]  # checked below
        return tuple(name for dim in dims if (name := grid_dim(dim, self.site, self.stream)))

    @property
    def is_whole(self) -> bool:
        """Whether a record keeps all dimensions of the value that it reads."""
        return set(GRID_DIMS) <= set(self.function.dims)  # type: ignore[attr-defined]  # checked below

    @property
    def reads_attention(self) -> bool:
        """Whether it is a record that reads the queries and keys of an attention."""
        return bool(getattr(self.function, "reads_attention", False))

    def held(self, layout: Layout) -> Carried:
        """Return what the site holds."""
        return layout.carried.get((self.stream, self.site), Carried())

    def check_query_places(self, grid: tuple[int, int, int]) -> None:
        """Refuse places whose attention is asked for and that are not on the grid of the tokens that look.

        Raises:
            PlanError: the first such place.
        """
        for place in getattr(self.function, "options", {}).get("places", ()):
            if not all(0 <= n < size for n, size in zip(place, grid, strict=True)):
                raise PlanError(
                    f"record {self}: the place {place} is not on the grid (frame, y, x) = {grid}."
                )

    def text_tokens(self, count: int) -> tuple[int, ...] | None:
        """Return which tokens of the prompt a record of attention keeps; None for all. Words are spelt before.

        Raises:
            PlanError: one is not there, or is still a word.
        """
        chosen = self.place.text_token
        if chosen is None:
            return None
        if self.place.words:
            raise PlanError(f"{self}: the positions of its words are not known here.")
        return positions("text_token", chosen, count)  # type: ignore[arg-type]  # no words

    def spelt(self, layout: Layout) -> Placed:
        """Return it with the positions of the words that its place names.

        Raises:
            PlanError: a word is not in the prompt of each of its branches, or stands elsewhere there.
        """
        if not (words := self.place.words):
            return self
        try:
            found = positions_of_words(words, layout.text(), self.branches(layout))
        except PlanError as error:
            raise PlanError(f"{self}: {error}") from None
        return replace(self, place=replace(self.place, text_token=tuple((n, n) for n in found)))

    def by_head(self, layout: Layout) -> bool:
        """Say whether every head is a place of its own: at a site with heads, and in attention where it is asked for."""
        held = self.held(layout)
        return held.heads > 0 and (not held.is_attention or bool(getattr(self.function, "per_head", False)))

    @property
    def is_state(self) -> bool:
        """Whether a record keeps the full states of blocks, each a unit of its own in the store."""
        return not self.on_latents and self.is_whole

    def bind(self, is_edit: bool, layout: Layout, sigmas: Sequence[float]) -> Binding:
        """Resolve the place on a run.

        Args:
            is_edit: whether the function replaces the value.
            layout: coordinates of the run.
            sigmas: noise level of each step.

        Raises:
            PlanError: no step that the place selects has a noise level in its range, or the function takes x0 of the step
                before and the place selects step 0.
        """
        steps = frozenset(step for step in self.steps(layout) if self.place.holds_sigma(sigmas[step]))
        if not steps:
            raise PlanError(f"{self}: no selected step has its sigma there; they are {list(sigmas)}.")
        if is_edit and self.reads_x0 and 0 in steps:
            raise PlanError(
                f"edit {self}: it takes x0 of the step before, and step 0 has none: select steps from 1 on, as step='1-'."
            )
        outside: tuple[tuple[str | None, int | None], ...] = ((None, None),)
        branches = () if self.on_latents else self.branches(layout)
        layers = () if self.on_latents else self.layers(layout)
        experts = self.place.expert or layout.experts
        return Binding(
            placed=self,
            is_edit=is_edit,
            steps=steps,
            branches=frozenset(branches),
            layers=frozenset(layers),
            experts=frozenset(experts),
            served=frozenset((step, expert) for step in steps for expert in experts),
            places=outside if self.on_latents else tuple((b, n) for b in branches for n in layers),
            over_seeds=is_edit and self.over_seeds,
            reads_x0=is_edit and self.reads_x0,
            heads=self.heads(layout),
            by_head=self.by_head(layout),
            head_count=self.held(layout).heads,
            keys=self.held(layout).keys,
        )

    def steps(self, layout: Layout) -> tuple[int, ...]:
        """Return the selected steps, sigma and expert aside."""
        return positions("step", self.place.step, layout.steps)

    def branches(self, layout: Layout) -> tuple[str, ...]:
        """Return the selected branches."""
        return layout.branches if self.place.branch is None else self.place.branch

    def layers(self, layout: Layout) -> tuple[int, ...]:
        """Return the selected layers."""
        return positions("layer", self.place.layer, layout.layers)

    def heads(self, layout: Layout) -> tuple[int, ...]:
        """Return the selected heads; none where the site has none."""
        count = self.held(layout).heads
        return positions("head", self.place.head, count) if count else ()

    def in_stage(self, layout: Layout) -> bool:
        """Say whether the place is in the stage of a layout.

        Raises:
            PlanError: it names a stage that is not there, or none where it has to.
        """
        place = self.place
        if layout.stages > 1 and place.stage is None and (place.step or place.branch or place.sigma):
            raise PlanError(
                f"{self}: this run has {layout.stages} stages, each with steps and branches of its own: name one, as "
                "dl.at(stage=0, ...)."
            )
        try:
            return layout.stage in positions("stage", place.stage, layout.stages)
        except PlanError as error:
            raise PlanError(f"{self}: {error}") from None

    def check(self, layout: Layout, kind: str) -> None:
        """Refuse what cannot be carried out.

        Raises:
            PlanError: it names the function, the coordinate and the remedy.
        """
        if not callable(self.function):
            raise PlanError(f"{kind} {self.function!r}: this is not a function; give one, such as dl.energy.")
        what = f"{kind} {self.name} {self.place}"
        if getattr(self.function, "is_maker", False):
            raise PlanError(
                f"{what}: this makes a function; call it with its options first, as {self.name}(...)."
            )
        self.in_stage(layout)
        if self.stream not in layout.sites:
            raise PlanError(
                f"{what}: this model has no stream {self.stream!r}, only {', '.join(layout.sites)}."
            )
        known = [*layout.sites[self.stream], *(GRID_SITES if self.stream in layout.latents else ())]
        if self.site not in known:
            raise PlanError(f"{what}: unknown site {self.site!r}; there are {', '.join(known)}.")
        if self.on_latents and (self.place.layer is not None or self.place.branch is not None):
            raise PlanError(
                f"{what}: {self.site} stands outside the blocks, after guidance: drop layer and branch."
            )
        self._check_inside(what, kind, layout)
        try:
            self.steps(layout)
            self.layers(layout)
            self.heads(layout)
            if channels := self.held(layout).channels:
                positions("channel", self.place.channel, channels)
        except PlanError as error:
            raise PlanError(f"{what}: {error}") from None
        for name, selected, present in (
            ("branch", self.place.branch, layout.branches),
            ("expert", self.place.expert, layout.experts),
        ):
            for one in selected or ():
                if one not in present:
                    hint = "; with cfg_scale=1 only cond runs" if name == "branch" else ""
                    raise PlanError(
                        f"{what}: this run has no {name} {one!r}, only {', '.join(present)}{hint}."
                    )
        if kind == "record":
            self._check_record(what, layout)
        elif self.reads_x0:
            self._check_reading(what)

    def _check_inside(self, what: str, kind: str, layout: Layout) -> None:
        """Refuse heads and text tokens where there are none, and what does not go with an attention itself."""
        held = self.held(layout)
        if self.place.head is not None and not held.heads:
            raise PlanError(
                f"{what}: {self.site} does not have its heads apart; the sites of {self.stream} that do: "
                f"{layout.having(lambda one: one.heads > 0, self.stream)}."
            )
        if self.place.text_token is not None and TEXT not in (self.stream, held.is_attention and held.keys):
            raise PlanError(
                f"{what}: {self.site} of {self.stream} holds no tokens of the prompt: name a site of the text, as "
                "dl.at(stream='text', site=...), or record attention to it."
            )
        if held.is_attention and kind == "edit":
            raise PlanError(
                f"{what}: an attention is never held, so it cannot be edited as a whole: edit its queries, keys, values or "
                "heads."
            )
        self._check_keys(what, held)
        if held.is_attention != self.reads_attention:
            reads = "reads an attention" if self.reads_attention else "reads a value"
            raise PlanError(
                f"{what}: it {reads}, and {self.site} is {'one' if held.is_attention else 'none'}; sites that are one: "
                f"{layout.having(lambda one: one.is_attention, self.stream)}. Record those with dl.attention(...)."
            )

    def _check_keys(self, what: str, held: Carried) -> None:
        """Refuse a record of attention to something else than what is looked at there."""
        looks_at = getattr(self.function, "looks_at", None)
        if looks_at is None or not held.is_attention:
            return
        of = {"itself"} if held.keys == self.stream else set()
        of |= {held.keys if held.keys in ("text", "image") else "frames"}
        if of.isdisjoint(looks_at):
            wanted = " or ".join("another stream's frames" if one == "frames" else one for one in looks_at)
            raise PlanError(
                f"{what}: {self.site} of {self.stream} looks at {held.keys}, and this is a record of attention to {wanted}: "
                "place it at another of lens.attentions."
            )

    def _check_reading(self, what: str) -> None:
        """Refuse an edit that takes x0 of the step before where that is not on its grid, or not of one row."""
        if self.site != "latents":
            raise PlanError(
                f"{what}: it takes x0 of the step before, which stands on the latents' grid: place it at site='latents'."
            )
        if self.over_seeds:
            raise PlanError(
                f"{what}: it takes x0 of the step before, so it cannot see several seeds together."
            )

    def _check_record(self, what: str, layout: Layout) -> None:
        dims = getattr(self.function, "dims", None)
        if dims is None:
            raise PlanError(
                f"{what}: declare the dimensions that it keeps, with @dl.keeps('frame', 'y', 'x')."
            )
        reads = () if "channel" in dims or self.reads_attention else ("channel",)
        reads = (*reads, "text_token") if self.reads_attention and "text_token" in dims else reads
        if region := [name for name in self.place.region if name not in reads]:
            raise PlanError(f"{what}: a record reads the whole grid; select {', '.join(region)} afterwards.")
        if self.by_head(layout) and "head" in dims:
            raise PlanError(f"{what}: every head is a place of its own here; declare no dimension 'head'.")
        units = getattr(self.function, "units", "1")
        problem = record_problem(_hashable(dims), str(units), self.variable, tuple(layout.sites))
        if problem:
            raise PlanError(f"{what}: {problem}.")

    def inside(self, grid: tuple[int, int, int]) -> np.ndarray:
        """Return which cells of the grid (frame, y, x) at the site an edit's region selects, as booleans.

        Raises:
            PlanError: a position is not there, or the mask is of another grid.
        """
        try:
            return self.place.inside(grid)
        except PlanError as error:
            raise PlanError(f"edit {self.name} {self.place}: {error}") from None

    def to_json(self, unnamed: list[str] | None = None) -> dict[str, Any]:
        """Return plain data; see `Plan.to_json`."""
        data = describe(self.function, unnamed) | {"at": self.place.to_json()}
        own_name = str(data["function"]).rpartition(":")[2].rpartition(".")[2]
        return data if own_name.strip("<>") == self.name else data | {"name": self.name}

    def __str__(self) -> str:
        return f"{self.function if isinstance(self.function, Configured) else self.name} {self.place}"


Entry = Callable[..., Any] | tuple[Callable[..., Any], At] | Placed


@dataclass(frozen=True)
class Plan:
    """Records and edits with their places."""

    records: tuple[Placed, ...] = ()
    edits: tuple[Placed, ...] = ()

    @classmethod
    def of(cls, record: Iterable[Entry] | Entry = (), edit: Iterable[Entry] | Entry = ()) -> Plan:
        """Make a plan of functions, or (function, place) pairs; a bare function means everywhere."""
        return cls(tuple(_placed(record)), tuple(_placed(edit)))

    def with_record(self, function: Callable[..., Any], place: At | None = None) -> Plan:
        """Return the plan with one more record."""
        return Plan((*self.records, Placed(function, place or At())), self.edits)

    def with_edit(self, function: Callable[..., Any], place: At | None = None) -> Plan:
        """Return the plan with one more edit."""
        return Plan(self.records, (*self.edits, Placed(function, place or At())))

    def state(self) -> str:
        """Return a hash that changes when a function keeps something: a counter in a closure, a list that grows."""
        placed = [*self.records, *self.edits]
        functions = [item.function for item in placed if not is_packages_own(item.function)]
        return digest([describe(function, repeatable=True) for function in functions])

    def refuse_kept(self, before: str) -> None:
        """Refuse functions that have kept something while several rows went through them.

        Args:
            before: what `state` was at the beginning.

        Raises:
            PlanError: the state is another now.
        """
        if self.state() != before:
            raise PlanError(KEEPS)

    def spelt(self, layout: Layout) -> Plan:
        """Return the plan with the positions of all words that its places name; see `Placed.spelt`."""
        records, edits = (tuple(item.spelt(layout) for item in items) for items in (self.records, self.edits))
        return Plan(records, edits)

    def in_stage(self, layout: Layout) -> Plan:
        """Return what of the plan is placed in the stage of a layout.

        Raises:
            PlanError: a place names a stage that is not there, or none where it has to.
        """
        records, edits = (
            tuple(i for i in items if i.in_stage(layout)) for items in (self.records, self.edits)
        )
        return Plan(records, edits)

    def check(self, layout: Layout, over_seeds: bool = False) -> None:
        """Refuse what cannot be carried out on this model.

        Args:
            layout: coordinates of the run.
            over_seeds: whether several seeds are seen together, as in a batch.

        Raises:
            PlanError: the first such thing, with its remedy.
        """
        for edit in self.edits:
            if edit.over_seeds and not over_seeds:
                raise PlanError(f"edit {edit}: it sees several seeds together; run them with lens.batch.")
        for kind, items in (("record", self.records), ("edit", self.edits)):
            for item in items:
                item.check(layout, kind)
        names = [r.variable for r in self.records]
        for record in self.records:
            if names.count(record.variable) > 1:
                raise PlanError(
                    f"Two records write {record.variable!r}: merge their places, or give one function another name."
                )
            if problem := record_problem(_hashable(record.function.dims), "1", "", (), tuple(names)):  # type: ignore[attr-defined]
                raise PlanError(f"record {record}: {problem}.")
        if len({record.place.text_token for record in self.records if "text_token" in record.kept}) > 1:
            raise PlanError(
                "Records keep different text tokens, and a run has one coordinate of them: select the same ones in all, or run "
                "them apart."
            )

    @property
    def reads_text(self) -> bool:
        """Whether something in it has to do with the tokens of the prompt."""
        placed = [*self.records, *self.edits]
        return any(item.stream == TEXT or item.place.text_token is not None for item in placed) or any(
            "text_token" in record.kept for record in self.records
        )

    def check_text(self, layout: Layout, count: int) -> None:
        """Refuse to name the tokens of the prompt where the model is given another number of them.

        Args:
            layout: says which tokens the tokenizer makes.
            count: tokens that the model is given.

        Raises:
            PlanError: they are not as many.
        """
        for branch, tokens in layout.text().items() if self.reads_text else ():
            if len(tokens) != count:
                raise PlanError(
                    f"The prompt of {branch} has {len(tokens)} tokens by the pipeline's tokenizer, and the model is given "
                    f"{count}: which is which is not known, so nothing can be placed at them."
                )

    @property
    def text_tokens(self) -> Ranges | None:
        """Which text tokens its records keep; None where all."""
        kept = [record.place.text_token for record in self.records if "text_token" in record.kept]
        return kept[0] if kept else None  # type: ignore[return-value]  # words are spelt

    def completed(self, always: Iterable[Placed]) -> Plan:
        """Return the plan with records that every run writes, after its own and in place of the same ones.

        Args:
            always: the records, such as x_s at every step.

        Raises:
            PlanError: another function writes an array of the same name.
        """
        always = tuple(always)
        needed = {record.variable: record for record in always}
        others = []
        for record in self.records:
            same = needed.get(record.variable)
            if same is None:
                others.append(record)
            elif describe(record.function) != describe(same.function):
                raise PlanError(
                    f"record {record}: every run writes {record.variable!r} itself; give the function another name."
                )
        return Plan((*others, *always), self.edits)

    def check_grids(self, grids: Mapping[str, tuple[int, int, int]]) -> None:
        """Refuse regions that are not on the grid at their site.

        Args:
            grids: (frame, y, x) by name of the stream, of its tokens; `latent_STREAM` of its latents. A grid that is
                not known is left out.

        Raises:
            PlanError: the first such region.
        """
        for edit in self.edits:
            grid = grids.get(f"latent_{edit.stream}" if edit.on_latents else edit.stream)
            if grid is not None and edit.place.region:
                edit.inside(grid)
        for record in self.records:
            if record.stream in grids and record.reads_attention:
                record.check_query_places(grids[record.stream])
            if TEXT in grids and record.place.text_token is not None:
                try:
                    record.text_tokens(grids[TEXT][2])
                except PlanError as error:
                    raise PlanError(f"record {record}: {error}") from None

    def check_sources(self, fingerprint: Callable[[], str], architecture: str) -> None:
        """Refuse edits with states that another model held: they mean nothing in this one.

        An array says where it is from in its attribute `model_fingerprint`, as `run["hidden"]` does; one
        without it is taken as it is.

        Args:
            fingerprint: gives this model's; asked only where an array names one.
            architecture: this model's, which another model's has to be where an edit takes its states.

        Raises:
            PlanError: it names the edit, both models and the remedy.
        """
        for edit in self.edits:
            options = getattr(edit.function, "options", {})
            for name, value in options.items():
                attrs = getattr(value, "attrs", None)
                of = attrs if isinstance(attrs, Mapping) else {}
                source = of.get("model_fingerprint")
                if options.get("other_model") and of.get("model_architecture", architecture) != architecture:
                    raise PlanError(
                        f"edit {edit}: its {name} is of another architecture ({of['model_architecture']}; this one: "
                        f"{architecture}), in which states mean something else."
                    )
                if source is not None and source != fingerprint() and not options.get("other_model"):
                    raise PlanError(
                        f"edit {edit}: its {name} is of a run of another model (fingerprint {source}; this model: "
                        f"{fingerprint()}): record it with this model. Where the two are meant to be mixed, "
                        "say dl.patch(..., other_model=True)."
                    )

    def to_json(self, unnamed: list[str] | None = None) -> dict[str, Any]:
        """Return plain data: what the manifest holds.

        Args:
            unnamed: gets a sentence for each value in a function that cannot be named by its content.
        """
        records, edits = ([item.to_json(unnamed) for item in items] for items in (self.records, self.edits))
        return {"records": records, "edits": edits}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], allow: Iterable[str] = ()) -> Plan:
        """Read a plan back; its functions are found by name, in this package and in modules that are imported.

        Args:
            data: as `to_json` gives it.
            allow: names of further modules that may be imported.

        Raises:
            PlanError: a function that may not be imported or cannot be, is no record or edit, or has changed.
        """
        read = [
            tuple(Placed(restore(item, allow), At.from_json(item["at"])) for item in data[kind])
            for kind in ("records", "edits")
        ]
        return cls(*read)

    @property
    def hash(self) -> str:
        """Hash of everything in the plan, the functions' code included."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        lines = [f"record {r}" for r in self.records] + [f"edit {e}" for e in self.edits]
        return "Plan:" + "".join(f"\n  {line}" for line in lines) if lines else "Plan: nothing"


def _hashable(dims: Iterable[object]) -> tuple[object, ...]:
    """Return dimensions as data that can be looked up: what is no text, by how it is written."""
    return tuple(dim if isinstance(dim, str) else (repr(dim),) for dim in dims)


def _placed(entries: Iterable[Entry] | Entry) -> Iterable[Placed]:
    if (
        callable(entries)
        or isinstance(entries, Placed)
        or (isinstance(entries, tuple) and len(entries) == 2 and isinstance(entries[1], At))
    ):
        entries = [entries]  # one entry alone
    if not isinstance(entries, Iterable) or isinstance(entries, Mapping | str):
        raise PlanError(f"{entries!r}: give a function, a pair (function, dl.at(...)), or a list of these.")
    for entry in entries:
        if isinstance(entry, Placed):
            yield entry
        elif isinstance(entry, tuple):
            if len(entry) != 2 or not isinstance(entry[1], At):
                raise PlanError(f"{entry!r}: give a function, or a pair (function, dl.at(...)).")
            yield Placed(entry[0], entry[1])
        else:
            yield Placed(entry, At())


__all__ = ["Entry", "Layout", "Placed", "Plan", "Spot"]
