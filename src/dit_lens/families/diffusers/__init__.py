"""Any diffusers pipeline whose transformer blocks diffusers' own `TransformerBlockRegistry` knows.

A family is made from the pipeline itself: what it carries where is read off its classes and its configuration.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.diffusers import anatomy, limits, pipeline, schedulers
from dit_lens.families.diffusers.batching import batching, readout
from dit_lens.families.diffusers.decode import decode
from dit_lens.families.diffusers.intercept import intercept
from dit_lens.families.diffusers.latents import tokens
from dit_lens.families.family import Family


def family_for(pipe: Any) -> Family:
    """Return the family of a pipeline.

    Raises:
        PlanError: it has no transformer, or one whose blocks the registry does not know.
    """
    limits.refuse_pipeline(pipe)
    dits = pipeline.transformers(pipe)
    lists = {anatomy.block_lists(dit) for dit in dits.values()}
    if len(lists) > 1:
        raise PlanError(f"{type(pipe).__name__}: its transformers have different block lists, {lists}.")
    blocks = lists.pop()
    branches = partial(pipeline.branches, pipe)
    family = Family(
        name="diffusers",
        experts=pipeline.EXPERTS,
        blocks=blocks,
        sites=anatomy.sites(next(iter(dits.values())), blocks),
        intercept=intercept,
        arguments=partial(pipeline.arguments, pipe),
        branches=branches,
        refuse=lambda pipe, keywords: limits.refuse(pipe, family, keywords),
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
        default_cfg=pipeline.default(pipe, pipeline.scale_argument(pipe), 1.0),
        multiples=pipeline.multiples(pipe),
        silent=("generator",),
        x0=schedulers.x0,
        velocity=schedulers.velocity,
        root=pipeline.root,
        dtype=lambda pipe: next(iter(pipeline.transformers(pipe).values())).dtype,
        batching=batching(branches),
    )
    return replace(family, readout=partial(readout, family, pipe))
