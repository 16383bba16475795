"""From files to a pipeline, by DiffSynth's own loader: this imports torch and diffsynth."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffsynth.core import ModelConfig

from dit_lens.errors import ModelError, PlanError
from dit_lens.models.catalog import Model, Part

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
Offload = str | Mapping[str, Any] | None


def number_type(dtype: Any) -> torch.dtype:
    """Return the torch dtype of a dtype or of its name. Default: bfloat16.

    Raises:
        PlanError: there is none of that name.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.bfloat16
    if dtype not in DTYPES:
        raise PlanError(f"dtype={dtype!r}: one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def default_device() -> str:
    """Return "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def vram(
    offload: Offload, vram_limit: float | None, device: str, dtype: torch.dtype
) -> tuple[dict[str, Any], float | None]:
    """Return DiffSynth's VRAM configuration of a model, and the limit in GiB.

    Raises:
        PlanError: it is not one that DiffSynth has, or the device has no such management.
    """
    if offload is None and vram_limit is None:
        return {}, None
    offload = "cpu" if offload is None else offload
    kind = torch.device(device).type
    backend: Any = getattr(torch, kind, None)
    if not hasattr(backend, "empty_cache") or (
        vram_limit is not None and not hasattr(backend, "mem_get_info")
    ):
        raise PlanError(
            f"offload and vram_limit move weights between a device's memory and the host's; device={device!r} has none of "
            "its own: leave them out."
        )
    if not isinstance(offload, str):
        unknown = set(offload) - set(ModelConfig().vram_config())
        if unknown:
            raise PlanError(f"offload: {sorted(unknown)}; it takes {', '.join(ModelConfig().vram_config())}.")
        return {k: DTYPES.get(v, v) if isinstance(v, str) else v for k, v in offload.items()}, vram_limit
    if offload not in ("cpu", "disk"):
        raise PlanError(
            f"offload={offload!r}: 'cpu', 'disk', or DiffSynth's VRAM configuration as a mapping."
        )
    rest = {"offload_dtype": dtype, "offload_device": "cpu"}
    if offload == "disk":
        rest = {"offload_dtype": "disk", "offload_device": "disk"}
    dtypes = {f"{state}_dtype": dtype for state in ("onload", "preparing", "computation")}
    config = {
        **rest,
        **dtypes,
        "onload_device": "cpu",
        "preparing_device": device,
        "computation_device": device,
    }
    if vram_limit is None and hasattr(backend, "mem_get_info"):
        vram_limit = backend.mem_get_info(device)[1] / 2**30 - 2  # what DiffSynth's examples leave free
    return config, vram_limit


def download(parts: Sequence[Part]) -> list[list[Path]]:
    """Return the files of every part, downloaded by DiffSynth's own means where they are missing.

    Raises:
        ModelError: a download gave nothing.
    """
    files_of_parts = []
    for part in parts:
        repo, pattern = part.also[0] if part.also else (part.repo, part.pattern)
        config = ModelConfig(model_id=repo, origin_file_pattern=pattern)
        config.download_if_necessary()
        paths = [config.path] if isinstance(config.path, str) else list(config.path)
        if not paths:
            raise ModelError(
                f"{part.role}: nothing came of {pattern} from {repo}; DiffSynth looked in {config.local_model_path}. Check the "
                "network and DIFFSYNTH_SKIP_DOWNLOAD, or pass model_root=."
            )
        files_of_parts.append(sorted(Path(p) for p in paths))
    return files_of_parts


def build(
    model: Model,
    parts: Sequence[Sequence[Path]],
    tokenizer: Path,
    device: str,
    dtype: torch.dtype,
    config: Mapping[str, Any],
    vram_limit: float | None,
) -> Any:
    """Make a pipeline of its files."""
    module, name = model.pipeline.rsplit(".", 1)
    pipeline = getattr(importlib.import_module(module), name)
    configs = [
        ModelConfig(path=str(paths[0]) if len(paths) == 1 else [str(p) for p in paths], **config)
        for paths in parts
    ]
    pipe = pipeline.from_pretrained(
        torch_dtype=dtype,
        device=device,
        model_configs=configs,
        tokenizer_config=ModelConfig(path=str(tokenizer)),
        vram_limit=vram_limit,
    )
    return pipe.eval().requires_grad_(False)
