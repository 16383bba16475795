"""What of a diffusers pipeline is refused under tracing, each with its reason and its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.diffusers.anatomy import block_lists, sites
from dit_lens.families.diffusers.pipeline import transformers, value_of
from dit_lens.families.diffusers.schedulers import is_flow
from dit_lens.families.family import Anatomy
from dit_lens.families.patching import refuse_compiled

HARMLESS_HOOKS = (
    *("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker"),
    *("layerwise_casting", "peft_autocast_disable"),
)
"""Hooks of diffusers that move or cast weights, and let every block run."""
STRENGTHS = ("strength", "denoise_strength")
"""Arguments that let a pipeline begin later than at pure noise."""


def refuse_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that cannot be traced, whatever its call is.

    Raises:
        PlanError: it says what the pipeline lacks, and the remedy.
    """
    what = type(pipe).__name__
    if not transformers(pipe):
        raise PlanError(
            f"{what} has no transformer (it has {', '.join(sorted(pipe.components))}): not supported."
        )
    if "guider" in pipe.components:
        raise PlanError(
            f"{what} is not supported: its guider ({type(pipe.guider).__name__}) decides which guidance "
            "branches run, and how they "
            "are put together, which is not known here. Write a family (docs/adding-a-family.md), or use dl.blocks for the "
            "transformer alone."
        )
    for dit in transformers(pipe).values():
        if getattr(getattr(dit, "config", None), "attention_type", None) == "nabla":
            raise PlanError(
                f"{type(dit).__name__} with attention_type='nabla' puts its tokens in another order: not "
                "supported. Load a model with "
                "attention_type='regular'."
            )


def refuse(pipe: Any, anatomy: Anatomy, keywords: Mapping[str, Any]) -> None:
    """Refuse what changes what hooks see.

    Args:
        pipe: the pipeline.
        anatomy: of it when the lens was made.
        keywords: of its call.

    Raises:
        PlanError: it names what, and the remedy.
    """
    is_flow(pipe.scheduler)
    if getattr(pipe.scheduler, "order", 1) > 1:
        raise PlanError(
            f"{type(pipe.scheduler).__name__} steps {pipe.scheduler.order} times a step: take one of first order."
        )
    for name in STRENGTHS:
        value = value_of(pipe, keywords, name)
        if isinstance(value, int | float) and value < 1:
            raise PlanError(
                f"{name}={value}: {type(pipe).__name__} would begin at a later step than its schedule's first, "
                "and steps could not be "
                f"labelled. Give {name}=1.0."
            )
    for path, dit in transformers(pipe).items():
        refuse_transformer(path, dit)
        _refuse_another_architecture(path, dit, anatomy)


def refuse_transformer(path: str, dit: Any) -> None:
    """Refuse a transformer whose blocks do not all run at every call, or not as hooks see them.

    Raises:
        PlanError: it names the module and the remedy.
    """
    refuse_compiled(path, dit)
    if getattr(dit, "is_cache_enabled", False):
        raise PlanError(
            f"{path}: a cache is enabled ({type(dit._cache_config).__name__}), which skips blocks at some steps: call "
            f"pipe.{path}.disable_cache() first."
        )
    for below, module in dit.named_modules():
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}):
            if hook not in HARMLESS_HOOKS:
                raise PlanError(
                    f"{f'{path}.{below}'.rstrip('.')} has the diffusers hook {hook!r}, which may skip or "
                    "replace what a block does: "
                    f"take it off with diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.{path}).remove_hook("
                    f"{hook!r}, recurse=True)."
                )
    if getattr(dit, "_parallel_config", None) is not None:
        raise PlanError(f"{path}: context parallelism splits the tokens over processes: load it without.")


def _refuse_another_architecture(path: str, dit: Any, anatomy: Anatomy) -> None:
    lists = block_lists(dit)
    if lists != anatomy.blocks or sites(dit, lists) != anatomy.sites:
        raise PlanError(
            f"pipe.{path} is another architecture ({type(dit).__name__}) than when the lens was made: make a "
            "new one, dl.Lens(pipe)."
        )
