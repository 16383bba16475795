"""Any diffusers pipeline whose transformer blocks diffusers' own `TransformerBlockRegistry` knows.

A family is made from the pipeline itself: what it carries where is read off its classes and its configuration.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.diffusers import anatomy, pipeline, schedulers
from dit_lens.families.diffusers.batching import batching, readout
from dit_lens.families.diffusers.decode import decode
from dit_lens.families.diffusers.intercept import intercept
from dit_lens.families.diffusers.latents import tokens
from dit_lens.families.family import Family

EXPERTS = {"high": "transformer", "low": "transformer_2"}


def family_for(pipe: Any) -> Family:
    """Return the family of a pipeline.

    Raises:
        PlanError: it has no transformer, or one whose blocks the registry does not know.
    """
    held = {path: getattr(pipe, path, None) for path in EXPERTS.values()}
    dits = {path: dit for path, dit in held.items() if dit is not None}
    if not dits:
        raise PlanError(
            f"{type(pipe).__name__} has no transformer (it has {', '.join(sorted(pipe.components))}): not supported."
        )
    lists = {anatomy.block_lists(dit) for dit in dits.values()}
    if len(lists) > 1:
        raise PlanError(f"{type(pipe).__name__}: its transformers have different block lists, {lists}.")
    blocks = lists.pop()
    branches = partial(pipeline.branches, pipe)
    family = Family(
        name="diffusers",
        experts=EXPERTS,
        blocks=blocks,
        sites=anatomy.sites(next(iter(dits.values())), blocks),
        intercept=intercept,
        arguments=partial(pipeline.arguments, pipe),
        branches=branches,
        refuse=lambda pipe, keywords: pipeline.refuse(pipe, dits, keywords),
        latent_grid=pipeline.latent_grid,
        token_grid=partial(tokens, pipe),
        channels=anatomy.width,
        decode=decode,
        outputs=pipeline.outputs,
        readout=None,
        schedule=schedulers.schedule,
        facts=pipeline.facts,
        quiet=pipeline.quiet,
        default_steps=pipeline.default(pipe, "num_inference_steps", 50),
        default_cfg=pipeline.default(pipe, pipeline.guidance(pipe), 1.0),
        multiples=pipeline.multiples(pipe),
        silent=("generator",),
        x0=schedulers.x0,
        velocity=schedulers.velocity,
        root=pipeline.root,
        dtype=lambda pipe: next(iter(dits.values())).dtype,
        batching=batching(branches),
    )
    return replace(family, readout=partial(readout, family, pipe))
