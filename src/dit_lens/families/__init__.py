"""Families: what the library knows of each architecture, one small file each."""

from __future__ import annotations

from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.family import Family


def family_of(pipe: Any) -> Family:
    """Return the family that knows a pipeline, by the name of its class.

    Raises:
        PlanError: none does.
    """
    names = [c.__name__ for c in type(pipe).__mro__]
    if "WanVideoPipeline" in names:
        from dit_lens.families.diffsynth.wan import wan_for

        return wan_for(pipe)
    if "LTX2AudioVideoPipeline" in names:
        from dit_lens.families.diffsynth.ltx2 import LTX2

        return LTX2
    if "DiffusionPipeline" in names:
        from dit_lens.families.diffusers import family_for

        return family_for(pipe)
    raise PlanError(f"No family knows {names[0]}: pass Lens(pipe, family=...); see docs/adding-a-family.md.")


def unwrap(pipe: Any) -> Any:
    """Return the pipeline, loaded, that nnsight's `DiffusionModel` holds; anything else is returned as it is."""
    if "DiffusionModel" not in [c.__name__ for c in type(pipe).__mro__]:
        return pipe
    pipe.dispatch()  # it stands on the meta device until it is used
    return pipe.pipeline


__all__ = ["family_of", "unwrap"]
