"""Loading by name: `load("organism")`, `load("wan2.2", model_root=...)`. Files are checked before anything heavy is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens.errors import ModelError, PlanError, needing
from dit_lens.models import adapters, catalog, files
from dit_lens.models.catalog import NAMES, Model, Part
from dit_lens.models.organism import table as organisms

if TYPE_CHECKING:
    from dit_lens.lens import Lens


def load(
    name: str = "organism",
    *,
    model_root: str | Path | None = None,
    lora: str | Path | None = None,
    high_noise_lora: str | Path | None = None,
    low_noise_lora: str | Path | None = None,
    lora_alpha: float = 1.0,
    weights: str | Path = "trained",
    device: str | None = None,
    dtype: Any = None,
    vram_limit: float | None = None,
    offload: str | Mapping[str, Any] | None = None,
) -> Lens:
    """Load a model and put it under the microscope; docs/models.md lists the names and the files.

    Args:
        name: "organism" or another of the small trained models that ship with the package; one of `catalog.MODELS`;
            "diffusers:REPOSITORY_OR_FOLDER"; or "FILE.py:FUNCTION", a function of yours that returns a lens.
        model_root: folder that holds repositories as the hubs name them (`ROOT/Wan-AI/...`). Without one,
            DiffSynth downloads what is not in its own folder.
        lora: a LoRA file for a model with one DiT; or the name of a LoRA that docs/models.md lists for the model, such as
            "vbvr" or "puzzles", which goes into every DiT that it has a file for.
        high_noise_lora: a LoRA file for the high-noise DiT of a model with two.
        low_noise_lora: a LoRA file for the low-noise DiT of a model with two.
        lora_alpha: factor of the LoRAs.
        weights: "trained"; "shuffled", a control: the numbers of every weight of the DiTs in a random order
            (`dl.controls.shuffle_weights`); or, for an organism alone, "random", a control: DiTs of the same architecture
            drawn from a fixed seed, with the trained codec and words; or a safetensors file of its DiT: another seed of
            training, a checkpoint.
        device: where to run. Default: "cpu" for an organism; for others "cuda", or "cpu" on a machine without it.
        dtype: a torch dtype or its name. Default: float32 for an organism, bfloat16 for others.
        vram_limit: GiB of the device's memory to use; more stays in the host's memory.
        offload: where weights rest that are not in use: "cpu", "disk", or DiffSynth's VRAM configuration.

    Returns:
        The lens; `lens.info` says what was loaded.

    Raises:
        PlanError: no model has this name, or it does not take an option.
        ModelError: a file is missing or broken, or a LoRA does not fit.
    """
    lora_options = {"lora": lora, "high_noise_lora": high_noise_lora, "low_noise_lora": low_noise_lora}
    options = {"model_root": model_root, "vram_limit": vram_limit, "offload": offload, **lora_options}
    if weights == "shuffled":
        from dit_lens.models.shuffled import shuffle_weights

        if offload is not None or vram_limit is not None:
            raise PlanError(
                "weights='shuffled' goes without offload and vram_limit, which move weights about."
            )
        rest: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        lens = load(name, **rest, lora_alpha=lora_alpha, device=device, dtype=dtype)
        shuffle_weights(lens)
        return type(lens)(lens.pipe, lens.family, {**lens.info, "shuffled": True})
    if name in organisms.NAMES:
        from dit_lens.models.organism import loading as organism

        with needing(f"dl.load({name!r})"):
            return organism.load(
                name, options, weights=weights, lora_alpha=lora_alpha, device=device, dtype=dtype
            )
    if weights != "trained":
        raise PlanError(
            f"{name} takes no weights={weights!r}: trained or shuffled; only the organisms take more."
        )
    if ":" in name:
        from dit_lens.models import custom

        more = [k for k, v in options.items() if v is not None] + ["lora_alpha"] * (lora_alpha != 1)
        with needing(f"dl.load({name!r})"):
            return custom.load(name, device, dtype, more)
    model = catalog.find(name)
    root = None if model_root is None else Path(model_root)
    loras = adapters.find(name, model, lora_options, lambda part: _known(name, root, part))
    parts = (*model.parts, model.tokenizer)
    files_of_parts = None if root is None else files.find_all(name, root, parts)
    _check_packages(name, model)

    from dit_lens.lens import Lens
    from dit_lens.models import loading

    dtype, device = loading.number_type(dtype), device or loading.default_device()
    config, limit = loading.vram(offload, vram_limit, device, dtype)
    *files_of_weights, (tokenizer,) = loading.download(parts) if files_of_parts is None else files_of_parts
    pipe = loading.build(model, files_of_weights, tokenizer, device, dtype, config, limit)
    info = {
        "name": name,
        "weights": {
            f"{p.role} {f.name}": files.identity(f)
            for p, fs in zip(model.parts, files_of_weights, strict=True)
            for f in fs
        },
        "loras": adapters.add(pipe, model, loras, lora_alpha),
        "vram": {k: str(v) for k, v in config.items() if k.endswith("dtype")},
    }
    return Lens(pipe, info=info)


def _check_packages(name: str, model: Model) -> None:
    """Raise ModelError where a package that the model needs is not installed; none is imported."""
    missing = [p for p in ("torch", "diffsynth", *model.needs) if not _is_installed(p)]
    if missing:
        raise ModelError(
            f"{name} needs {', '.join(missing)}, which this Python does not have: "
            f'pip install "dit-lens[trace]" {" ".join(model.needs)}'.rstrip()
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _known(name: str, root: Path | None, part: Part) -> Path:
    if root is None:
        raise PlanError(f"{name}: a LoRA by name is looked for in model_root; pass it, or the LoRA's file.")
    return files.find_all(name, root, [part])[0][0]


__all__ = ["NAMES", "load"]
