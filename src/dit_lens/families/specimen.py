"""`Specimen`: a pipeline, its family and its DiTs; all that the engine knows of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_lens.errors import PlanError
from dit_lens.families import family_of, unwrap
from dit_lens.families.family import Family

if TYPE_CHECKING:
    from dit_lens.families.site import Site


@dataclass(eq=False)
class Specimen:
    """A pipeline under the microscope.

    Attributes:
        pipe: the pipeline.
        family: what the library knows of its architecture.
        info: what is known of the checkpoint, for the manifest.
        checked_loops: arguments with which a batch was found to be the pipeline's own loop.
    """

    pipe: Any
    family: Family
    info: Mapping[str, Any] = field(default_factory=dict)
    checked_loops: set[str] = field(default_factory=set)
    _fingerprint: tuple[Any, str] | None = None

    @classmethod
    def of(cls, pipe: Any, family: Family | None = None, info: Mapping[str, Any] | None = None) -> Specimen:
        """Recognise a pipeline, and check every path of its family.

        Raises:
            PlanError: no family knows this pipeline, or a path of the family is not there.
        """
        pipe = unwrap(pipe)
        specimen = cls(pipe, family or family_of(pipe), dict(info or {}))
        specimen.dits  # noqa: B018  (a wrong path names itself here)
        return specimen

    @property
    def dits(self) -> dict[str, nn.Module]:
        """The experts, as the pipeline holds them now, by name."""
        return self.family.anatomy.dits(self.pipe)

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the model's states."""
        return self.family.anatomy.dtype(self.pipe)

    @property
    def layers(self) -> int:
        """Number of blocks of an expert."""
        return len(self.family.anatomy.block_list(next(iter(self.dits.values()))))

    @property
    def sites(self) -> Mapping[str, Mapping[str, Site]]:
        """Stream name to site name to where it is."""
        return self.family.anatomy.sites

    @property
    def paths(self) -> dict[str, dict[str, str]]:
        """Streams that a block carries, each with its sites and the path below a block that each stands for."""
        return {
            stream: {name: site.path for name, site in sites.items()} for stream, sites in self.sites.items()
        }

    def fingerprint(self) -> str:
        """Hash the experts' parameters: names, shapes, types and some of the values of each.

        A LoRA merged in, one that is kept beside the weights, or another checkpoint gives another hash. Cheap: at most
        256 values a tensor are read, none of weights that rest on disk.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        # _version counts in-place changes: nothing is read again while the weights stand.
        tensors = [item for expert, dit in self.dits.items() for item in _tensors(expert, dit)]
        key = tuple((p.data_ptr(), p._version) for _, p in tensors)
        if "weights" not in self.info and any(p.is_meta for _, p in tensors):
            raise PlanError(
                "The weights rest on disk, where they cannot be told from others: load them by dl.load, or say what they are by "
                "Lens(pipe, info={'weights': ...})."
            )
        if self._fingerprint is None or self._fingerprint[0] != key:
            digest = hashlib.sha256()
            for name, p in tensors:
                digest.update(f"{name}{tuple(p.shape)}{p.dtype}".encode())
                if not p.is_meta:
                    flat = p.detach().flatten()
                    digest.update(flat[:: max(1, flat.numel() // 256)].float().cpu().numpy().tobytes())
            self._fingerprint = key, digest.hexdigest()[:16]
        return self._fingerprint[1]

    def identity(self) -> dict[str, Any]:
        """Return all of the model that makes a result what it is, as plain data; results of others are others."""
        model = {"family": self.family.name, "fingerprint": self.fingerprint(), **self.info}
        return {"model": model, "dtype": str(self.dtype), **self.family.call.facts(self.pipe)}


def _tensors(expert: str, dit: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through what a model computes with: parameters, and tensors that its modules keep in lists (LoRAs)."""
    yield from ((f"{expert}.{name}", p) for name, p in dit.named_parameters())
    for path, module in dit.named_modules():
        for name, kept in vars(module).items():
            if isinstance(kept, list):
                for n, tensor in enumerate(kept):
                    if isinstance(tensor, Tensor):
                        yield f"{expert}.{path}.{name}[{n}]", tensor
