"""Any diffusers pipeline whose transformer blocks diffusers' own `TransformerBlockRegistry` knows.

A family is made from the pipeline itself: what it carries where is read off its classes and its configuration.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.diffusers import anatomy, limits, pipeline, schedulers
from dit_lens.families.diffusers.batching import batching, readout
from dit_lens.families.diffusers.decode import decode, refuse_unknown
from dit_lens.families.diffusers.guidance import guide
from dit_lens.families.diffusers.intercept import intercept
from dit_lens.families.diffusers.latents import tokens
from dit_lens.families.family import Anatomy, Calling, Codec, Family, Flow


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
    anatomy_of_pipe = Anatomy(
        experts=pipeline.EXPERTS,
        blocks=blocks,
        sites=anatomy.sites(next(iter(dits.values())), blocks),
        latent_grid=pipeline.latent_grid,
        token_grid=partial(tokens, pipe),
        channels=anatomy.width,
        multiples=pipeline.multiples(pipe),
        root=pipeline.root,
        dtype=lambda pipe: next(iter(pipeline.transformers(pipe).values())).dtype,
    )
    return Family(
        name="diffusers",
        anatomy=anatomy_of_pipe,
        call=Calling(
            arguments=partial(pipeline.arguments, pipe),
            branches=branches,
            refuse=lambda pipe, keywords: limits.refuse(pipe, anatomy_of_pipe, keywords),
            intercept=intercept,
            quiet=pipeline.quiet,
            default_steps=pipeline.default(pipe, "num_inference_steps", 50),
            default_cfg=pipeline.default(pipe, pipeline.scale_argument(pipe), 1.0),
            silent=("generator",),
            facts=pipeline.facts,
            release=lambda pipe: pipe.maybe_free_model_hooks(),
        ),
        flow=Flow(
            schedule=schedulers.schedule,
            x0=schedulers.x0,
            velocity=schedulers.velocity,
            is_flow=lambda pipe: schedulers.is_plain_flow(pipe.scheduler),
            guide=guide,
            readout=partial(readout, anatomy_of_pipe, pipe),
        ),
        codec=Codec(decode=decode, outputs=pipeline.outputs, decoded=pipeline.decoded, check=refuse_unknown),
        batching=batching(anatomy_of_pipe, branches),
    )
