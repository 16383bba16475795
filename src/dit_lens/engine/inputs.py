"""What the model is given beside latents and timestep, for every pair of a batch: prepared once, by the pipeline itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from dit_lens.errors import PlanError
from dit_lens.families.family import Batching, Prepared
from dit_lens.families.latents import apart
from dit_lens.families.patching import guarded
from dit_lens.families.site import Tokens

if TYPE_CHECKING:
    from dit_lens.engine.request import Request
    from dit_lens.families.specimen import Specimen


@dataclass
class PerPair:
    """A tensor that the model is given, one row a pair: a keyword, or what stands in one (a dict, a list, a tuple)."""

    rows: Tensor


@dataclass
class ModelInputs:
    """What the model is given, for every pair.

    Attributes:
        noise: what step 0 starts from, [row, channel, frame, y, x].
        keywords: by branch.
        streams_of: by branch, how the tokens of each stream stand.
    """

    noise: Tensor
    keywords: dict[str, dict[str, Any]]
    streams_of: dict[str, Mapping[str, Tokens]]

    @classmethod
    def of(cls, specimen: Specimen, requests: Sequence[Request]) -> ModelInputs:
        """Let the pipeline prepare every request.

        Raises:
            PlanError: the samples cannot go through the model together.
        """
        assert specimen.family.batching is not None
        prepared = [_prepare(specimen, specimen.family.batching, dict(r.keywords)) for r in requests]
        branches = requests[0].stages[0].layout.branches
        keywords = {b: _stack(b, [p[b].keywords for p in prepared]) for b in branches}
        starts: list[Tensor] = [keywords[branch].pop("latents") for branch in branches]
        # Every branch starts from the same.
        return cls(starts[0], keywords, {b: prepared[0][b].streams for b in branches})

    @property
    def streams(self) -> Mapping[str, Tokens]:
        """How the tokens of each stream stand, in the first branch."""
        return next(iter(self.streams_of.values()))

    def of_branch(self, branch: str, pairs: Sequence[int] | None = None) -> dict[str, Any]:
        """Return what the model is given on a branch.

        Args:
            branch: of guidance.
            pairs: which of the batch's pairs each row is. Default: row n is pair n.
        """

        def rows(value: Any) -> Any:
            if not isinstance(value, PerPair):
                return value
            return value.rows if pairs is None else value.rows[torch.tensor(pairs, device=value.rows.device)]

        return {name: tree_map(rows, value) for name, value in self.keywords[branch].items()}

    def differing(self, pair: int, other: int) -> set[str]:
        """Return the names of what the model is given otherwise for two pairs, latents among it."""
        names = set()
        if not torch.equal(apart(self.noise)["video"][pair], apart(self.noise)["video"][other]):
            names.add("latents")
        for branch, keywords in self.keywords.items():
            for name, value in keywords.items():
                per_pair = [leaf.rows for leaf in tree_leaves(value) if isinstance(leaf, PerPair)]
                if not all(torch.equal(rows[pair], rows[other]) for rows in per_pair):
                    names.add(f"{name} ({branch})")
        return names


def _prepare(specimen: Specimen, batching: Batching, keywords: dict[str, Any]) -> dict[str, Prepared]:
    with specimen.held(keywords):
        return guarded(lambda: batching.prepare(specimen.pipe, keywords))


def _stack(branch: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the keywords of several calls together: tensors of one row become rows, the rest must be equal.

    Raises:
        PlanError: it is not, or a keyword comes with some calls alone.
    """
    out: dict[str, Any] = {}
    some = set[str]().union(*calls) - set(calls[0]).intersection(*calls)
    if some:
        raise PlanError(
            f"The samples cannot go through the model together: {', '.join(sorted(some))} ({branch}) comes with some of them, as "
            "an image does: give those with an image apart."
        )
    for name in calls[0]:
        if name in ("dit", "timestep"):
            continue  # these belong to a step
        leaves, trees = zip(*(tree_flatten(call[name]) for call in calls), strict=True)
        if any(tree != trees[0] for tree in trees):
            raise _differs(name, branch)
        together = [_together(name, branch, values) for values in zip(*leaves, strict=True)]
        out[name] = together[0].rows if name == "latents" else tree_unflatten(together, trees[0])
    return out


def _together(name: str, branch: str, values: Sequence[Any]) -> Any:
    """Return one value for all pairs, or the rows of each; a keyword's, or what stands at one place in it."""
    first = values[0]
    shapes = {getattr(value, "shape", None) for value in values}
    if isinstance(first, Tensor) and first.ndim and len(first) == 1 and len(shapes) == 1:
        return PerPair(torch.cat([*values]))
    if not all(value is first or _equal(value, first) for value in values):
        raise _differs(name, branch)
    return first


def _differs(name: str, branch: str) -> PlanError:
    return PlanError(
        f"The samples cannot go through the model together: {name} ({branch}) differs among them. What is each sample's own is a "
        "tensor with one row, or such tensors in dicts, lists and tuples."
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(value, b[name]) for name, value in a.items())
    if hasattr(a, "shape") or hasattr(b, "shape"):
        return (
            type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        )
    try:
        return bool(a == b)
    except (RuntimeError, ValueError):  # an object that holds several tensors
        return False
