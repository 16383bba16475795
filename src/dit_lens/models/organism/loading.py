"""From an organism's name to a lens. Options are looked at before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError
from dit_lens.models import adapters
from dit_lens.models.organism import pipeline
from dit_lens.models.organism.shipped import checked, identities
from dit_lens.models.organism.table import FOLDER, Organism, whole_name, with_weights

if TYPE_CHECKING:
    from dit_lens.families.family import Family
    from dit_lens.lens import Lens


def load(
    name: str = "organism",
    options: Mapping[str, Any] | None = None,
    *,
    weights: str | Path = "trained",
    lora_alpha: float = 1.0,
    device: str | None = None,
    dtype: Any = None,
    folder: Path = FOLDER,
) -> Lens:
    """Make a lens on an organism; `dit_lens.models.load` says more.

    Args:
        name: one of `NAMES`.
        options: further options of `dit_lens.models.load`; those that are None were not given.
        weights: "trained", "random" or a file, as in `pipeline`. Random weights take no LoRA.
        lora_alpha: factor of the LoRA.
        device: where to run. Default: "cpu".
        dtype: a torch dtype or its name. Default: float32.
        folder: of the files. Default: that of the package.

    Raises:
        PlanError: it does not take an option.
        ModelError: a file is missing, not whole, or does not fit.
    """
    one, kind = with_weights(name, weights)
    name = whole_name(name)
    if kind == "random":
        one = replace(one, loras={}, lora=None)
    given = {k: v for k, v in (options or {}).items() if v is not None}
    _refuse(name, one, kind, given, lora_alpha)
    wanted = {"lora": one.lora} if one.lora else given
    loras = adapters.find(name, one, wanted, lambda file: checked(folder / file))
    info = {"name": name, "weights": identities(one, kind, folder)}

    from dit_lens.lens import Lens

    pipe = pipeline(weights, device or "cpu", dtype, name=name, folder=folder)
    info["loras"] = adapters.add(pipe, one, loras, lora_alpha)
    return Lens(pipe, family=_family(one), info=info)


def _refuse(name: str, one: Organism, weights: str, given: Mapping[str, Any], lora_alpha: float) -> None:
    """Refuse options that an organism does not take."""
    refused = [k for k in given if one.lora or k not in one.loras]
    refused += ["lora_alpha"] * (lora_alpha != 1 and not (one.lora or given.keys() & one.loras.keys()))
    if refused:
        why = "with random weights" if weights == "random" else "ships with the package and"
        raise PlanError(f"{name} {why} takes no {', '.join(refused)}.")


def _family(one: Organism) -> Family:
    """Return Wan's family with the organism's own sampling defaults."""
    from dit_lens.families.diffsynth.wan import WAN

    return replace(WAN, call=replace(WAN.call, default_steps=one.steps, default_cfg=1.0))
