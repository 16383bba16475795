"""LoRAs: checked against the model before they go in, and counted.

DiffSynth's loader takes what it knows from a file and passes over the rest in silence, down to a file that
matches nothing, and the strength that stands in the file's metadata. Here the names that it makes are compared with the
model's first, and DiffSynth then merges matrices that hold the strength.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from dit_lens.errors import ModelError
from dit_lens.models import files, lora_strength

LOG = logging.getLogger("dit_lens")


def check_file(path: Path) -> None:
    """Raise ModelError unless there is a whole safetensors file."""
    if not path.is_file():
        raise ModelError(f"No LoRA at {path}.")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: a LoRA is a .safetensors file; convert it.")
    if why := files.broken(path):
        raise ModelError(f"{path} {why}.")


def add(pipe: Any, attribute: str, path: Path, alpha: float = 1.0) -> dict[str, Any]:
    """Add a LoRA to a model of a DiffSynth pipeline: W + alpha * strength * B A.

    The strength of a layer is what the file says of it, alpha / rank; see `lora_strength`. It is merged into the
    weights; where VRAM management is on, DiffSynth keeps it beside them and adds it in every forward (hot-loading).

    Args:
        pipe: the pipeline.
        attribute: which of its models.
        path: a safetensors file, with keys as DiffSynth writes them (`lora_A.default`, `lora_B.default`), as
            PEFT does (`lora_A`, `lora_B`), or `lora_down` and `lora_up`.
        alpha: factor of the user's, beside the file's own.

    Returns:
        For the manifest: `sha256`, `alpha`, the `strengths` that occur, `matched` and `unmatched` layers, and how it was
        added.

    Raises:
        ModelError: the file is missing or not whole, holds another kind of adapter, does not say how strong it is, or
            fits no layer, or one of another shape.
    """
    check_file(path)
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not math.isfinite(alpha):
        raise ModelError(f"{path}: the factor of a LoRA is one finite number, not {alpha!r}.")
    module = getattr(pipe, attribute)
    shapes = {key: tuple(entry["shape"]) for key, entry in files.header(path).items()}
    named = pipe.lora_loader().get_name_dict(shapes)
    layers = _layers(module)
    matched = [name for name in named if name in layers]
    known = {key for keys in named.values() for key in keys if key}
    unread = sorted(set(shapes) - known)
    if not named:
        lora_strength.refuse_other_kinds(path, [key for key in unread if _is_adapter(key)])
    if not matched:
        raise ModelError(_no_match(path, attribute, shapes, named, layers))
    lora_strength.refuse_other_kinds(path, unread)
    for name in matched:
        _check_shape(path, attribute, name, shapes, named[name], layers[name])
    unmatched = sorted(set(named) - set(matched))
    if unmatched:
        warnings.warn(
            f"{path}: {len(matched)} LoRA layers go into {attribute}; {len(unmatched)} match no layer of it {unmatched[:3]}.",
            stacklevel=2,
        )
    hot = bool(getattr(module, "vram_management_enabled", False))
    state, factors = _scaled(pipe, path, {name: named[name] for name in matched})
    pipe.load_lora(module, state_dict=state, alpha=alpha)
    LOG.info("%s: %d LoRA layers in %s, alpha %g", path.name, len(matched), attribute, alpha)
    return {
        "sha256": files.sha256(path),
        "alpha": alpha,
        "strengths": sorted(set(factors.values())),
        "matched": len(matched),
        "unmatched": len(unmatched),
        "hot": hot,
    }


def _is_adapter(key: str) -> bool:
    return any(part in key for part in lora_strength.KINDS)


def _scaled(pipe: Any, path: Path, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Read layers in DiffSynth's own names, each with its strength in A; and the strengths by layer."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        ranks = {name: file.get_slice(down).get_shape()[0] for name, (_, down, _) in named.items()}
        alphas = {name: file.get_tensor(key) for name, (_, _, key) in named.items() if key}
        if odd := [name for name, value in alphas.items() if value.numel() != 1]:
            raise ModelError(
                f"{path}: the alpha of {odd[0]} has the shape {tuple(alphas[odd[0]].shape)}; it is one number."
            )
        factors = lora_strength.strengths(path, ranks, {n: float(value) for n, value in alphas.items()})
        state = {}
        for name, (up, down, _) in named.items():
            a, b = file.get_tensor(down), file.get_tensor(up)
            a = (
                a if factors[name] == 1 else a.float() * factors[name]
            )  # rounded once, to the pipeline's own type
            state[f"{name}.lora_A.weight"] = a.to(pipe.device, pipe.torch_dtype)
            state[f"{name}.lora_B.weight"] = b.to(pipe.device, pipe.torch_dtype)
    return state, factors


def _layers(module: Any) -> dict[str, tuple[int, ...]]:
    """Return the layers that a LoRA can go into, by name, with the shapes of their weights."""
    if getattr(module, "vram_management_enabled", False):
        hot = [m for m in module.modules() if hasattr(m, "lora_A_weights")]
        return {m.name: (m.out_features, m.in_features) for m in hot}
    return {
        name: tuple(m.weight.shape)
        for name, m in module.named_modules()
        if getattr(m, "weight", None) is not None and m.weight.ndim >= 2
    }


def _check_shape(
    path: Path, attribute: str, name: str, shapes: Mapping[str, Any], keys: Any, layer: tuple[int, ...]
) -> None:
    up, down, _ = keys
    if down not in shapes:
        raise ModelError(f"{path}: {up} has no {down} beside it: half of this LoRA layer is missing.")
    if len(shapes[up]) != 2 or len(shapes[down]) != 2 or len(layer) != 2:
        raise ModelError(
            f"{path}: the LoRA of {name} is {shapes[up]} by {shapes[down]}, and the layer in {attribute} {layer}: a LoRA of "
            "convolutions is not merged here, only one of linear layers."
        )
    product = (shapes[up][0], shapes[down][1])
    if product != layer or shapes[up][1] != shapes[down][0] or 0 in shapes[down]:
        raise ModelError(
            f"{path}: the LoRA of {name} is {shapes[up]} by {shapes[down]}; the layer in {attribute} is {layer}: it was "
            "made for another model."
        )


def _no_match(
    path: Path, attribute: str, shapes: Mapping[str, Any], named: Mapping[str, Any], layers: Mapping[str, Any]
) -> str:
    """Say why a LoRA matches nothing, with some of its keys."""
    some = ", ".join(list(shapes)[:3])
    if not named:
        return (
            f"{path} holds no LoRA that DiffSynth's loader reads (lora_A and lora_B, or lora_down and lora_up); it "
            f"holds {len(shapes)} keys such as {some}."
        )
    kohya = any(key.startswith("lora_unet_") for key in shapes)
    hint = (
        "Names with underscores in place of dots (kohya's) are not read by DiffSynth's loader: convert the file."
        if kohya
        else "It was made for another model, or its names have a prefix that DiffSynth's loader does not know."
    )
    return (
        f"{path}: none of its {len(named)} LoRA layers is in {attribute}. Its keys are such as {some}; the model's "
        f"layers {', '.join(list(layers)[:3])}. {hint}"
    )
