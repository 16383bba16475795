"""How strong each layer of a LoRA is: W + alpha / rank * B A, with alpha from wherever the file has it.

Trainers write alpha in four places: a tensor beside each layer (kohya, musubi), `ss_network_alpha` in the file's
metadata (kohya), `lora_adapter_metadata` there (diffusers), or `adapter_config.json` beside the file (PEFT). A file
with none of them is taken at strength 1, as DiffSynth and diffusers do. What a file says that is no plain LoRA is
refused by its name. No torch here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_lens.errors import ModelError
from dit_lens.models import files

KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "lora_mid": "a LoRA of convolutions (LoCon)",
    "oft_": "OFT",
    "boft_": "BOFT",
    "vera_lambda": "VeRA",
    "glora": "GLoRA",
    ".a1.weight": "GLoRA",
    "ia3_": "IA3",
    "on_input": "IA3",
    "lora_A.bias": "a LoRA with biases",
    "lora_B.bias": "a LoRA with biases",
    "lora_down.bias": "a LoRA with biases",
    "lora_up.bias": "a LoRA with biases",
    "diff_b": "a difference of biases",
    ".diff": "a difference of whole weights",
    "set_weight": "whole weights",
    "lora_embedding": "a LoRA of embeddings",
    "reshape_weight": "a LoRA that widens its layer",
}
"""What a key holds that is no LoRA of a linear layer, by a part of its name."""

CONFIG = "adapter_config.json"
BASES = ("transformer", "unet", "diffusion_model", "base_model", "dit")
"""Prefixes that diffusers gives what it says of the denoiser; others are of text encoders."""
OF_ANOTHER_BASE = ("pissa", "olora", "loftq", "corda")
"""Initialisations that take the adapter's start out of the base weights: added to the original ones they are wrong."""


def refuse_other_kinds(path: Path, keys: list[str]) -> None:
    """Refuse keys that no loader here reads: left out, the LoRA would be another one than was trained.

    Raises:
        ModelError: it names the kind, where it can be told, and some of the keys.
    """
    if not keys:
        return
    kinds = sorted({kind for part, kind in KINDS.items() for key in keys if part in key})
    what = (
        f"It is, or holds, {' and '.join(kinds)}, which is not merged here"
        if kinds
        else "They are of no known kind"
    )
    raise ModelError(
        f"{path}: {len(keys)} keys are not those of a LoRA (lora_A and lora_B, or lora_down and lora_up), such as "
        f"{', '.join(keys[:3])}. {what}: convert the file to a plain LoRA, or merge it into a checkpoint with its trainer."
    )


def strengths(path: Path, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of every layer's B A.

    Args:
        path: the LoRA's file.
        ranks: by layer.
        alphas: by layer, of those that have one of their own in the file.

    Raises:
        ModelError: the file says what cannot be carried out, or contradicts itself.
    """
    config, source = _config(path)
    bare = {layer for layer in ranks if layer not in alphas}
    if config:
        return {n: _by_config(path, source, config, n, r, alphas.get(n)) for n, r in ranks.items()}
    if alphas and bare:
        raise ModelError(
            f"{path}: {len(alphas)} layers have an alpha and {len(bare)} have none, such as {min(bare)}: their strength is "
            "not known. Write an alpha beside each."
        )
    metadata = files.metadata(path)
    if not alphas and "ss_network_alpha" in metadata:
        return {n: _by_kohya(path, metadata, n, r) for n, r in ranks.items()}
    return {n: _number(path, f"alpha of {n}", alphas.get(n, r)) / r for n, r in ranks.items()}


def _by_kohya(path: Path, metadata: Mapping[str, str], layer: str, rank: int) -> float:
    alpha = _number(path, "ss_network_alpha", metadata["ss_network_alpha"])
    said = metadata.get("ss_network_dim")
    if said is not None and _number(path, "ss_network_dim", said) != rank:
        raise ModelError(
            f"{path}: its metadata says ss_network_dim={said}, and {layer} has rank {rank}: which alpha belongs to it is "
            "not known. Write an alpha beside each layer."
        )
    return alpha / rank


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """Return PEFT's configuration of a LoRA and where it stands; empty where there is none."""
    if text := files.metadata(path).get("lora_adapter_metadata"):
        return _of_denoiser(path, _json(path, "lora_adapter_metadata", text)), "lora_adapter_metadata"
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return {}, ""
    others = [p.name for p in path.parent.glob("*.safetensors") if p != path]
    if others and not path.name.startswith("adapter_model"):
        raise ModelError(
            f"{path}: {beside} stands beside it and beside {others[0]}: which of them it belongs to is not known. Give "
            "the LoRA a folder of its own."
        )
    try:
        text = beside.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{beside} cannot be read: {error}") from error
    return _json(beside, "it", text), str(beside)


def _json(path: Path, what: str, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelError(
            f"{path}: {what} is not JSON ({error}), so the LoRA's strength is not known."
        ) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: {what} is no JSON object, so the LoRA's strength is not known.")
    return data


def _of_denoiser(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what diffusers says of the denoiser: its keys have the model's name before them."""
    if "lora_alpha" in data:
        return dict(data)
    for base in BASES:
        entries = {k.removeprefix(f"{base}."): v for k, v in data.items() if k.startswith(f"{base}.")}
        if "lora_alpha" in entries:
            return entries
    raise ModelError(
        f"{path}: lora_adapter_metadata says no lora_alpha of {' or '.join(BASES)}; it holds {', '.join(sorted(data)[:4])}."
    )


def _by_config(
    path: Path, source: str, config: Mapping[str, Any], layer: str, rank: int, file_alpha: float | None
) -> float:
    """Return alpha / rank as PEFT computes it, patterns and rank stabilisation included."""
    _refuse_config(path, source, config)
    r = _number(path, f"r in {source}", _pattern(config.get("rank_pattern"), layer, config.get("r", rank)))
    if r != rank:
        raise ModelError(
            f"{path}: {source} says r={r:g} of {layer}, and it has rank {rank}: one of them is of another LoRA."
        )
    said = _pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", file_alpha))
    alpha = _number(path, f"lora_alpha in {source}", said)
    if file_alpha is not None and not math.isclose(file_alpha, alpha, rel_tol=1e-3):
        raise ModelError(
            f"{path}: {layer} has an alpha of {file_alpha:g} beside it, and {source} says {alpha:g}: remove one."
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _refuse_config(path: Path, source: str, config: Mapping[str, Any]) -> None:
    """Refuse what PEFT does beside adding alpha / rank B A."""
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2]
    if kind.upper() != "LORA":
        raise ModelError(
            f"{path}: {source} says peft_type={kind}, which is not merged here: give a plain LoRA."
        )
    switches = (
        "use_dora",
        "lora_bias",
        "fan_in_fan_out",
        "layer_replication",
        "use_qalora",
        "trainable_token_indices",
    )
    for name in switches:
        if config.get(name):
            raise ModelError(
                f"{path}: {source} says {name}={config[name]}, which is not merged here: give a plain LoRA."
            )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(OF_ANOTHER_BASE):
        raise ModelError(
            f"{path}: {source} says init_lora_weights={start}: it was trained on changed base weights, and is wrong on the "
            "original ones. Convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )


def _pattern(patterns: Any, layer: str, default: Any) -> Any:
    """Return the first pattern's value whose name ends the layer's, as PEFT matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _number(path: Path, what: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ModelError(
            f"{path}: {what} is {value!r}, which is no number, so the LoRA's strength is not known."
        )
    return number
