"""`Specimen`: a pipeline, its family and its DiTs; all that the engine knows of a model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_lens.errors import PlanError
from dit_lens.families import family_of, unwrap
from dit_lens.families.family import Family
from dit_lens.families.fingerprint import tensor_data
from dit_lens.families.identity import fingerprint, identity, marked, refuse_on_disk
from dit_lens.families.patching import one_interrupt, traced, undisturbed
from dit_lens.families.site import Site, blocks_of, experts_of
from dit_lens.plan import objects
from dit_lens.plan.attributes import is_part
from dit_lens.plan.places import GRID_SITES

if TYPE_CHECKING:
    from dit_lens.plan.plan import Carried
    from dit_lens.plan.text import TextToken


@dataclass(eq=False)
class Specimen:
    """A pipeline under the microscope.

    Attributes:
        pipe: the pipeline.
        family: what the library knows of its architecture.
        info: what is known of the checkpoint, for the manifest.
        envoys: the pipeline as nnsight sees it, while a trace runs.
        checked_loops: arguments with which a batch was found to be the pipeline's own loop.
        checked_stores: stores of which a run was begun again, and was what is stored.
    """

    pipe: Any
    family: Family
    info: Mapping[str, Any] = field(default_factory=dict)
    envoys: Any = None
    checked_loops: set[str] = field(default_factory=set)
    checked_stores: set[Path] = field(default_factory=set)
    _in_memory: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    _checked: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    _carried: weakref.WeakKeyDictionary[nn.Module, Any] = field(default_factory=weakref.WeakKeyDictionary)

    @classmethod
    def of(cls, pipe: Any, family: Family | None = None, info: Mapping[str, Any] | None = None) -> Specimen:
        """Recognise a pipeline, and check every path of its family.

        Raises:
            PlanError: no family knows this pipeline, or a path of the family is not there.
        """
        pipe = unwrap(pipe)
        specimen = cls(pipe, family or family_of(pipe), dict(info or {}))
        specimen.dits  # noqa: B018  (a wrong path names itself here)
        marked(pipe)
        return specimen

    def with_sites(self, sites: Mapping[str, str | Site], stream: str = "video") -> Specimen:
        """Return a specimen of the same pipeline with more sites; see `Lens.with_sites`.

        Raises:
            PlanError: a name is taken, the model has no such stream, or a path is not there.
        """
        anatomy = self.family.anatomy
        if stream not in anatomy.sites:
            raise PlanError(f"This model has no stream {stream!r}, only {', '.join(anatomy.sites)}.")
        taken = [name for name in sites if name in (*anatomy.sites[stream], *GRID_SITES)]
        if taken:
            raise PlanError(f"{stream} has a site {taken[0]!r} already: give yours another name.")
        more = {name: Site(site) if isinstance(site, str) else site for name, site in sites.items()}
        known = {**anatomy.sites, stream: {**anatomy.sites[stream], **more}}
        family = replace(self.family, anatomy=replace(anatomy, sites=known))
        return Specimen.of(self.pipe, family, self.info)

    @property
    def dits(self) -> dict[str, nn.Module]:
        """The experts, as the pipeline holds them now, by name.

        Raises:
            PlanError: the pipeline holds none, or one in which a path of the family is not there.
        """
        experts = experts_of(self.pipe, self.family.anatomy.experts)
        for name, dit in experts.items():
            if dit not in self._checked:
                self.family.anatomy.check(name, dit)
                self._checked.add(dit)
        return experts

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the model's states."""
        dtype = self.family.anatomy.dtype
        number: torch.dtype = self.pipe.torch_dtype if dtype is None else dtype(self.pipe)
        return number

    @property
    def layers(self) -> int:
        """Number of blocks of an expert."""
        return len(self.blocks(next(iter(self.dits.values()))))

    def require_weights(self) -> None:
        """Refuse weights that cannot be told from others, before anything runs.

        Raises:
            PlanError: they rest on disk, and `info` does not say which.
        """
        if "weights" in self.info:
            return
        unknown = [dit for dit in self.dits.values() if dit not in self._in_memory]
        if unknown:
            refuse_on_disk(unknown)
            self._in_memory.update(unknown)

    @property
    def architecture(self) -> str:
        """What two models have to share for states of one to mean something in the other, in words."""
        parts = [
            f"{name} {type(dit).__name__} of {len(self.blocks(dit))} blocks, {self.family.anatomy.channels(dit)} channels"
            for name, dit in self.dits.items()
        ]
        return f"{self.family.name}: {'; '.join(parts)}"

    def blocks(self, dit: nn.Module) -> list[nn.Module]:
        """Return the blocks of an expert, in the order of the layers."""
        return blocks_of(dit, self.family.anatomy.blocks)

    @property
    def sites(self) -> Mapping[str, Mapping[str, Site]]:
        """Stream name to site name to where it is."""
        return self.family.anatomy.sites

    @property
    def carried(self) -> Mapping[tuple[str, str], Carried]:
        """What each site holds of every token, by (stream, site)."""
        dit = next(iter(self.dits.values()))
        if dit not in self._carried:
            block, channels = self.blocks(dit)[0], self.family.anatomy.channels(dit)
            self._carried[dit] = {
                (stream, name): site.carried(block, channels if stream == "video" else 0)
                for stream, sites in self.sites.items()
                for name, site in sites.items()
            }
        return self._carried[dit]

    def text_tokens(self, keywords: Mapping[str, Any]) -> dict[str, tuple[TextToken, ...]]:
        """Return the tokens of the prompt of each branch; nothing where the family does not know them.

        Args:
            keywords: of the pipeline's call.
        """
        words = self.family.call.words
        return {} if words is None else dict(words(self.pipe, keywords))

    @property
    def paths(self) -> dict[str, dict[str, str]]:
        """Streams that a block carries, each with its sites and the path below a block that each stands for."""
        return {
            stream: {name: site.path for name, site in sites.items()} for stream, sites in self.sites.items()
        }

    def networks_beside(self) -> dict[str, nn.Module]:
        """Return what else the pipeline holds as networks: encoders, the codec, control networks."""
        parts = {**vars(self.pipe), **getattr(self.pipe, "_modules", {})}
        own = {id(module) for dit in self.dits.values() for module in dit.modules()}
        return {
            name: part
            for name, part in parts.items()
            if isinstance(part, nn.Module) and not any(id(module) in own for module in part.modules())
        }

    @contextmanager
    def held(self, keywords: dict[str, Any]) -> Iterator[None]:
        """Hold the pipeline for one call of it: its DiTs are marked as being traced, and no progress bar is shown.

        Args:
            keywords: of the call.

        Raises:
            PlanError: a DiT is being traced already.
        """
        with ExitStack() as cleanup:
            cleanup.enter_context(one_interrupt())
            cleanup.enter_context(traced(self.dits.values()))
            cleanup.callback(self.family.call.quiet(self.pipe, keywords))
            yield

    def fingerprint(self) -> str:
        """Hash the DiTs that the pipeline holds now: every value of every tensor, their settings, hooks and classes.

        A LoRA merged in or kept beside the weights, its scale, another checkpoint: each gives another hash.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        return fingerprint(self.dits, self.info)

    def identity(self, unnamed: list[str] | None = None, repeatable: bool = False) -> dict[str, Any]:
        """Return all of the model that makes a result what it is, as plain data; results of others are others.

        Args:
            unnamed: gets a sentence for each part that cannot be named by its content; the data is then equal to no
                other.
            repeatable: whether such a part is left out: to see whether the model is still the same.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        with undisturbed(self.dits.values()):
            data, sentences = identity(
                self.pipe, self.family, self.dits, self.info, str(self.dtype), repeatable
            )
        if unnamed is not None:
            unnamed += sentences
        return data

    def __content__(self, walk: Any) -> dict[str, Any]:
        """Return what a function that reads the specimen is named by; its tensors are hashed where they rest."""

        def checksum(tensor: torch.Tensor) -> Any:
            if tensor.is_meta and "weights" not in self.info:
                return walk.unnamed(tensor, "a tensor whose values rest on disk")
            return tensor_data(tensor)

        def parts(*_: Any) -> list[Any]:
            before, walk.checksum = walk.checksum, walk.checksum or checksum
            try:
                with walk.reading_pipeline(is_part(self.pipe)):
                    pipe = walk.visit(self.pipe, "its pipeline")
                with walk.counting_whole("dit_lens"):
                    family = walk.visit(self.family, "its family")
                more = objects.beyond(walk, self, Specimen, [one.name for one in fields(Specimen)])
                return [family, pipe, walk.visit(dict(self.info)), more]
            finally:
                walk.checksum = before

        return {"@specimen": walk.node(self, parts)}
