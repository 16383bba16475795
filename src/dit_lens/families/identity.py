"""What a pipeline is, as plain data: all of it that makes a result what it is, and nothing that a run leaves behind.

Every component counts, whole: text and image encoders, DiTs, codec, adapters, tokenizers, scheduler. Of their modules
count all parameters and buffers (`fingerprint`), plain attributes (an adapter's scale, an eps, a flag), hooks and methods
that the user has put there, and classes by version or code. The pipeline is read as it is *now*, anew each time.

Not seen: what the user has put in place of a function in a library's own module or class; weights that a pipeline will read
from disk later (`info={"weights": ...}` names them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_lens.errors import PlanError
from dit_lens.families.fingerprint import Checksums
from dit_lens.plan import classes, objects
from dit_lens.plan.content import Walk, digest

if TYPE_CHECKING:
    from dit_lens.families.family import Family


def identity(
    pipe: Any, family: Family, dits: Mapping[str, nn.Module], info: Mapping[str, Any], dtype: str
) -> tuple[dict[str, Any], list[str]]:
    """Return what a pipeline is, and a sentence for each part of it that cannot be named.

    Args:
        pipe: the pipeline.
        family: that reads it.
        dits: the DiTs that it holds now, by expert.
        info: what is known of the checkpoint.
        dtype: number type of its states.

    Returns:
        Plain data with `model` (family, fingerprint of the DiTs, `info`), `components` (a hash each), `numerics`, and
        the facts of the family; and the sentences.

    Raises:
        PlanError: weights rest on disk, and `info` does not say which.
    """
    held = _components(pipe)
    modules = [part for part in (*dits.values(), *held.values()) if isinstance(part, nn.Module)]
    if "weights" not in info:
        refuse_on_disk(modules)
    sentences: list[str] = []
    walk = Walk(sentences, checksum=Checksums(_tensors(modules)))
    experts = {name: walk.visit(dit, name) for name, dit in dits.items()}
    components = {name: _short(walk.visit(part, name)) for name, part in sorted(held.items())}
    return {
        "model": {"family": family.name, "fingerprint": digest(experts)[:16], **walk.visit(dict(info))},
        "components": {"class": _short(classes.describe(walk, type(pipe))), **components},
        "numerics": numerics(),
        "dtype": dtype,
        **family.call.facts(pipe),
    }, sentences


def fingerprint(dits: Mapping[str, nn.Module], info: Mapping[str, Any]) -> str:
    """Return the short hash of DiTs: all their tensors, attributes, hooks and classes.

    Raises:
        PlanError: weights rest on disk, and `info` does not say which.
    """
    if "weights" not in info:
        refuse_on_disk(list(dits.values()))
    walk = Walk([], checksum=Checksums(_tensors(list(dits.values()))))
    return digest({name: walk.visit(dit, name) for name, dit in dits.items()})[:16]


def numerics() -> dict[str, Any]:
    """Return torch's settings of how it computes, which change results in their last digits."""
    backends = torch.backends
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cudnn_tf32": backends.cudnn.allow_tf32,
        "reduced_precision": backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
    }


def _components(pipe: Any) -> dict[str, Any]:
    """Return all that a pipeline holds, by name; what its own call writes is left out."""
    walk = Walk([])
    held = objects.attributes(walk, pipe)
    if isinstance(pipe, nn.Module):
        held |= {**pipe._modules, **pipe._parameters, **pipe._buffers}
        if hooks := objects.hooks(walk, vars(pipe)):
            held["hooks"] = hooks
    return held


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    seen: set[nn.Module] = set()
    left = modules[::-1]
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        held = vars(module)
        for part in ("_parameters", "_buffers"):
            yield from (tensor for tensor in held[part].values() if tensor is not None)
        left += [child for child in held["_modules"].values() if child is not None]


def refuse_on_disk(modules: list[nn.Module]) -> None:
    """Raise PlanError where weights are not in memory, unless a hook holds them (offloading by accelerate)."""
    for module in modules:
        for name, part in module.named_modules():
            tensors = [*part._parameters.values(), *part._buffers.values()]
            on_disk = any(tensor is not None and tensor.is_meta for tensor in tensors)
            if on_disk and getattr(getattr(part, "_hf_hook", None), "weights_map", None) is None:
                raise PlanError(
                    f"{type(module).__name__}.{name}: the weights rest on disk, where they cannot be told from others: load "
                    "them by dl.load, or say what they are by Lens(pipe, info={'weights': ...})."
                )


def _short(data: Any) -> Any:
    """Return data that is short as it is, the hash of what is long."""
    plain = data is None or isinstance(data, bool | int | float | str)
    return data if plain and len(str(data)) <= 64 else digest(data)[:32]


__all__ = ["fingerprint", "identity", "numerics", "refuse_on_disk"]
