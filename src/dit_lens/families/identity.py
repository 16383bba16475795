"""What a pipeline is, as plain data: all of it that makes a result what it is, and nothing that a run leaves behind.

Every component counts, whole: text and image encoders, DiTs, codec, adapters, tokenizers, scheduler. Of their modules
count all parameters and buffers (`fingerprint`), plain attributes (an adapter's scale, an eps, a flag), hooks and methods
that the user has put there, and classes by version or code. The pipeline is read as it is *now*, anew each time.

Not seen: what the user has put in place of a function in a library's own module or class; weights that a pipeline will read
from disk later (`info={"weights": ...}` names them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_lens.errors import PlanError
from dit_lens.families.fingerprint import Gathering, joint_checksums, tensor_data
from dit_lens.plan import attributes, classes, modules
from dit_lens.plan.content import Walk
from dit_lens.plan.digests import digest

if TYPE_CHECKING:
    from dit_lens.families.family import Family


def identity(
    pipe: Any,
    family: Family,
    dits: Mapping[str, nn.Module],
    info: Mapping[str, Any],
    dtype: str,
    repeatable: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Return what a pipeline is, and a sentence for each part of it that cannot be named.

    Args:
        pipe: the pipeline.
        family: that reads it.
        dits: the DiTs that it holds now, by expert.
        info: what is known of the checkpoint.
        dtype: number type of its states.
        repeatable: whether what cannot be named is left out.

    Returns:
        Plain data with `model` (family, fingerprint of the DiTs, `info`), `components` (a hash each), `numerics`, and
        the facts of the family; and the sentences.

    Raises:
        PlanError: weights rest on disk, and `info` does not say which.
    """
    held, given = marked(pipe)
    if isinstance(pipe, nn.Module) and (hooks := modules.hooks(Walk([]), vars(pipe))):
        held["hooks"] = hooks
    look = _Look(info, repeatable)
    for name, part in (*dits.items(), *sorted(held.items())):
        look.at(part, name, given=name in given)
    with look.walk.counting_whole("dit_lens"):
        # Sites, grids and readouts say what is read where; of this package's functions their names count.
        look.at(family, "family")
    described = look.described()
    experts = dict(zip(dits, described, strict=False))
    parts = [*sorted(held), "the family"]
    components = {name: _short(data) for name, data in zip(parts, described[len(dits) :], strict=True)}
    walk = look.walk
    return {
        "model": {"family": family.name, "fingerprint": digest(experts)[:16], **walk.visit(dict(info))},
        "components": {"class": _short(classes.describe(walk, type(pipe))), **components},
        "numerics": {
            **numerics(),
            "hooks": walk.whole(hooks_of_all_modules()),
            "modes": [walk.visit(mode, "a mode of torch's") for mode in modes()],
        },
        "dtype": dtype,
        **family.call.facts(pipe),
    }, look.sentences


def fingerprint(dits: Mapping[str, nn.Module], info: Mapping[str, Any]) -> str:
    """Return the short hash of DiTs: all their tensors, attributes, hooks and classes.

    Raises:
        PlanError: weights rest on disk, and `info` does not say which.
    """
    look = _Look(info)
    for name, dit in dits.items():
        look.at(dit, name)
    return digest(dict(zip(dits, look.described(), strict=True)))[:16]


class _Look:
    """One look at the parts of a pipeline: each has data of its own, with a checksum of all tensors that it holds.

    Args:
        info: what is known of the checkpoint.
        repeatable: whether what cannot be named is left out.

    Attributes:
        sentences: one for each part that cannot be named.
        walk: the way through the parts.
    """

    def __init__(self, info: Mapping[str, Any], repeatable: bool = False) -> None:
        self.sentences: list[str] = []
        self.walk = Walk(
            self.sentences, checksum=tensor_data, exact=True, of_pipeline=True, repeatable=repeatable
        )
        self._weights_named = "weights" in info
        self._parts: list[tuple[Any, Any, Gathering]] = []

    def at(self, part: Any, name: str, given: bool = False) -> None:
        """Look at a part; of one that the user has given to the pipeline nothing is left out."""
        self.walk.gathering = gathering = Gathering()
        with self.walk.at(name), self.walk.reading_pipeline(not given):
            data = self.walk.whole(part)
        self._parts.append((part, data, gathering))
        self.walk.gathering = None

    def described(self) -> list[Any]:
        """Return the data of the parts, in the order in which they were looked at.

        Raises:
            PlanError: weights rest on disk, and `info` does not say which.
        """
        if not self._weights_named and any(gathering.meta for _, _, gathering in self._parts):
            refuse_on_disk([part for part, _, _ in self._parts if isinstance(part, nn.Module)])
        with_tensors = [gathering for _, _, gathering in self._parts if gathering.tensors]
        checksums = dict(zip(map(id, with_tensors), joint_checksums(with_tensors), strict=True))
        return [
            [data, checksums[id(gathering)]] if gathering.tensors else data
            for _, data, gathering in self._parts
        ]


def numerics() -> dict[str, Any]:
    """Return torch's settings of how it computes, which change results in their last digits."""
    backends = torch.backends
    return {
        "float32_matmul": _setting(torch.get_float32_matmul_precision),
        "settings": {name: _setting(partial(attrgetter(name), backends)) for name in SETTINGS},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "half_math": _setting(backends.cuda.fp16_bf16_reduction_math_sdp_allowed),
        "fast_path": _setting(backends.mha.get_fastpath_enabled),
        "keeps_denormals": bool(torch.full((), 1e-40) * 1.0 != 0),
        "priority": _setting(torch._C._get_sdp_priority_order),
        "attention": [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ],
        "default_dtype": str(torch.get_default_dtype()),
        "autocast": {
            device: str(torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
            if torch.is_autocast_enabled(device)
        },
    }


SETTINGS = (
    *("cuda.matmul.allow_tf32", "cuda.matmul.allow_bf16_reduced_precision_reduction"),
    *("cuda.matmul.allow_fp16_reduced_precision_reduction", "cuda.matmul.allow_fp16_accumulation"),
    *("cudnn.allow_tf32", "cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic", "mkldnn.enabled"),
    *(
        "fp32_precision",
        "cuda.matmul.fp32_precision",
        "cudnn.conv.fp32_precision",
        "cudnn.rnn.fp32_precision",
    ),
    *("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision"),
)
"""Below `torch.backends`. Torch tells precision by old names or by new ones, and none of it by both."""


def _setting(read: Callable[[], Any]) -> str:
    try:
        return str(read())
    except (AttributeError, RuntimeError) as error:
        return type(error).__name__


def hooks_of_all_modules() -> list[Any]:
    """Return the hooks that torch calls at every module, each with how it is called."""
    state = vars(torch.nn.modules.module)
    return [
        [hook, [key in state.get(f"{name}_{flag}", ()) for flag in ("with_kwargs", "always_called")]]
        for name in ("_global_forward_pre_hooks", "_global_forward_hooks")
        for key, hook in state[name].items()
    ]


def modes() -> list[Any]:
    """Return what changes torch's functions while a block of the user's runs, such as a `TorchFunctionMode`."""
    modes: list[Any] = torch.overrides._get_current_function_mode_stack()
    return [*modes, *torch.utils._python_dispatch._get_current_dispatch_mode_stack()]


def held_by(pipe: Any) -> dict[str, Any]:
    """Return all that a pipeline holds, by name, but for its hooks; what its own call writes is left out."""
    held = attributes.plain(Walk([], of_pipeline=True), pipe)
    if isinstance(pipe, nn.Module):
        held |= {**pipe._modules, **pipe._parameters, **pipe._buffers}
    return held


def marked(pipe: Any) -> tuple[dict[str, Any], set[str]]:
    """Take note of what a pipeline holds; return it by name, and the names of what the user has given it, which is no part."""
    held = held_by(pipe)
    given = {name for name in held if is_given_to(pipe, name)}
    attributes.mark_parts(pipe, [part for name, part in held.items() if name not in given])
    return held, given


def is_given_to(pipe: Any, name: str) -> bool:
    """Say whether an attribute of a pipeline is one that the user has given it, and neither its class nor its configuration."""
    kind = type(pipe)
    if not classes.is_built_on_models(kind) or name in getattr(pipe, "_modules", ()):
        return False
    return classes.is_given(kind, name) and name not in (getattr(pipe, "config", None) or ())


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
