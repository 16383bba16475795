"""Any `nn.Module` with a list of blocks: what it lacks of a pipeline (noise, steps, guidance) stands here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_lens.errors import PlanError
from dit_lens.families.call import Forward
from dit_lens.families.diffsynth import common as diffsynth
from dit_lens.families.early_exit import ending_in
from dit_lens.families.family import Anatomy, Batching, Calling, Codec, Family, Flow, Prepared
from dit_lens.families.site import Site, Tokens
from dit_lens.families.specimen import Specimen
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    import numpy as np

Latent = tuple[int, int, int, int]
"""(channel, frame, y, x)."""


def specimen_of_blocks(
    model: nn.Module,
    blocks: str | tuple[str, ...],
    *,
    latent: Callable[[Sample], Latent],
    grid: Callable[[Latent], tuple[int, int, int]],
    condition: Callable[[Sample, str], Mapping[str, Any]] = lambda sample, branch: {},
    forward: Callable[..., Tensor] = lambda model, latents, timestep, **conditions: model(
        latents, timestep, **conditions
    ),
    decode: Callable[[Tensor], np.ndarray] | None = None,
    sites: Mapping[str, str | Site] | None = None,
    before: int = 0,
    after: int = 0,
    channels: int | None = None,
    steps: int = 50,
    cfg_scale: float = 1.0,
) -> Specimen:
    """Return a specimen of a bare model, sampled by flow matching with Euler's steps.

    Args:
        model: predicts the velocity x_1 - x_0 from x_s.
        blocks: dotted path of its list of blocks, or several in the order in which they run. A block returns
            its hidden state [row, token, channel], or a tuple that begins with it, and the model goes on with what it
            returns: where a block writes into its input instead, edits of it have no effect.
        latent: sample to the latents' (channel, frame, y, x).
        grid: latents' (channel, frame, y, x) to the tokens' (frame, y, x).
        condition: (sample, branch) to what the model is given beside the latents; tensors [1, ...], so that
            samples can be put together, also inside dicts, lists and tuples. The branch is `cond` or `uncond`.
        forward: (model, latents [row, channel, frame, y, x], timestep [row], **condition) to the velocity, of the
            latents' shape. The timestep is 1000 sigma.
        decode: latents [row, channel, frame, y, x] to frames [row, time, height, width, rgb] of uint8.
        sites: further sites: name to path below a block (its output), or to a `Site`.
        before: tokens before those of the grid.
        after: tokens after them.
        channels: of the hidden state, for `lens.estimate`.
        steps: number of steps where the user names none.
        cfg_scale: guidance scale where the user names none.
    """

    def tokens(size: Latent) -> Tokens:
        return Tokens(grid(size), before, after)

    bare = Bare(model, latent, condition, forward, decode)
    anatomy = Anatomy(
        experts={"dit": "dit"},
        blocks=(blocks,) if isinstance(blocks, str) else blocks,
        sites={"video": _sites(sites or {})},
        latent_grid=lambda pipe, sample: latent(sample),
        token_grid=lambda dit, size: grid(size),
        channels=lambda dit: channels or 0,
        dtype=lambda pipe: pipe.torch_dtype,
        before=before,
        after=after,
    )
    family = Family(
        name="blocks",
        anatomy=anatomy,
        call=Calling(
            arguments=_arguments,
            branches=_branches,
            refuse=lambda pipe, keywords: None,
            intercept=diffsynth.interceptor(lambda pipe, call: _look(call, tokens)),
            quiet=lambda pipe, keywords: lambda: None,
            default_steps=steps,
            default_cfg=cfg_scale,
            facts=lambda pipe: {"device": str(pipe.device)},
        ),
        flow=Flow(
            schedule=diffsynth.schedule,
            readout=partial(_readout, anatomy, bare, before, after),
        ),
        codec=Codec(
            decode=lambda pipe, latents: _known(decode, "decode", "decode")(latents),
            outputs=lambda output, keywords: {} if output is None else {"video": output},
            decoded=lambda keywords: decode is not None,
        ),
        batching=Batching(partial(_prepare, tokens), diffsynth.run_model),
    )
    return Specimen.of(bare, family)


@torch.no_grad()
def _readout(
    anatomy: Anatomy,
    bare: Bare,
    before: int,
    after: int,
    dit: nn.Module,
    state: Tensor,
    keywords: Mapping[str, Any],
) -> Tensor:
    """Return the velocity that the model gives if it ends after a block; see `Flow.readout`."""
    with ending_in(anatomy, anatomy.block_list(dit), state, before, after):
        return bare.model_fn(**{**keywords, "dit": dit})


class Euler:
    """The scheduler: straight paths, sigma from 1 to 0 in even steps, shifted towards the noise where asked."""

    def __init__(self) -> None:
        self.sigmas = self.timesteps = torch.zeros(0)

    def set_timesteps(self, steps: int, shift: float) -> None:
        """Set the noise levels of a run."""
        even = 1 - torch.arange(steps) / steps
        self.sigmas = shift * even / (1 + (shift - 1) * even)
        self.timesteps = 1000 * self.sigmas

    def step(self, velocity: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the latents of the next step."""
        step = int((self.timesteps - timestep.cpu()).abs().argmin())
        after = self.sigmas[step + 1] if step + 1 < len(self.sigmas) else torch.zeros(())
        return latents + velocity * (after - self.sigmas[step])


class Bare(nn.Module):
    """A bare model with the loop that it lacks."""

    def __init__(
        self,
        model: nn.Module,
        latent: Callable[[Sample], Latent],
        condition: Callable[[Sample, str], Mapping[str, Any]],
        forward: Callable[..., Tensor],
        decode: Callable[[Tensor], np.ndarray] | None,
    ) -> None:
        super().__init__()
        self.dit, self.scheduler = model, Euler()
        self.latent, self.condition, self.velocity, self.decode = latent, condition, forward, decode

    @torch.no_grad()
    def __call__(self, sample: Sample, seed: int, steps: int, cfg_scale: float, shift: float = 1.0) -> Any:
        """Generate a sample; frames [time, height, width, rgb], or None where there is no decoder."""
        x = self.start(sample, seed, steps, shift)
        for t in self.scheduler.timesteps:
            told = t[None].to(x)
            v = {
                branch: self.model_fn(
                    dit=self.dit, latents=x, timestep=told, branch=branch, **self.condition(sample, branch)
                )
                for branch in _branches({"cfg_scale": cfg_scale})
            }
            velocity = v["cond"]
            if "uncond" in v:
                velocity = v["uncond"] + cfg_scale * (v["cond"] - v["uncond"])
            x = self.scheduler.step(velocity, t, x)
        return None if self.decode is None else self.decode(x)[0]

    def start(self, sample: Sample, seed: int, steps: int, shift: float = 1.0) -> Tensor:
        """Set the noise levels, and return the noise."""
        self.scheduler.set_timesteps(steps, shift)
        noise = torch.randn(1, *self.latent(sample), generator=torch.Generator().manual_seed(seed))
        return noise.to(self.device, self.torch_dtype)

    def model_fn(
        self, *, dit: nn.Module, latents: Tensor, timestep: Tensor, branch: str, **conditions: Any
    ) -> Tensor:
        """Run the model once, on one branch."""
        out = self.velocity(dit, latents, timestep.expand(len(latents)), **conditions)
        if out.shape != latents.shape:
            raise PlanError(
                f"blocks(forward=...) returned {tuple(out.shape)} for latents {tuple(latents.shape)} [row, channel, frame, "
                "y, x]: return the velocity of all of them."
            )
        return out

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.dit.parameters()).device

    @property
    def torch_dtype(self) -> torch.dtype:
        """Number type of the model."""
        return next(self.dit.parameters()).dtype


def _look(call: Mapping[str, Any], tokens: Callable[[Latent], Tokens]) -> Forward:
    rows, *size = call["latents"].shape
    return Forward(
        "dit", {call["branch"]: slice(0, rows)}, {"video": tokens(tuple(size))}, float(call["timestep"][0])
    )


def _arguments(
    sample: Sample, seed: int, steps: int, cfg_scale: float, extra: Mapping[str, Any]
) -> dict[str, Any]:
    if unknown := set(extra) - {"shift"}:
        raise PlanError(
            f"A bare model takes no {sorted(unknown)}: only shift=..., which moves steps to the noise."
        )
    return {"sample": sample, "seed": seed, "steps": steps, "cfg_scale": cfg_scale, **extra}


def _branches(keywords: Mapping[str, Any]) -> tuple[str, ...]:
    return ("cond",) if keywords["cfg_scale"] == 1 else ("cond", "uncond")


def _prepare(
    tokens: Callable[[Latent], Tokens], pipe: Bare, keywords: Mapping[str, Any]
) -> dict[str, Prepared]:
    sample = keywords["sample"]
    noise = pipe.start(sample, keywords["seed"], keywords["steps"], keywords.get("shift", 1.0))
    _, channel, frame, y, x = noise.shape
    streams = {"video": tokens((channel, frame, y, x))}
    return {
        b: Prepared({"latents": noise, "branch": b, **pipe.condition(sample, b)}, streams)
        for b in _branches(keywords)
    }


def _sites(more: Mapping[str, str | Site]) -> dict[str, Site]:
    ends = {
        "block": Site("", long_name="residual stream after the block"),
        "block_in": Site("", "input", long_name="residual stream before the block"),
    }
    return ends | {name: site if isinstance(site, Site) else Site(site) for name, site in more.items()}


def _known(value: Any, name: str, use: str) -> Any:
    if value is None:
        raise PlanError(f"lens.{use} of a bare model: say how, with dl.blocks(..., {name}=...).")
    return value


__all__ = ["Bare", "specimen_of_blocks"]
