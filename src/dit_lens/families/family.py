"""What the library has to know of an architecture: a `Family` is five parts, in one small module each.

The engine never asks which model it holds; all that differs stands in the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError
from dit_lens.families.call import Listener, Schedule, Sizes, Stage
from dit_lens.families.site import Site, Tokens, blocks_of, experts_of, submodule

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from dit_lens.plan.text import TextToken
    from dit_lens.tasks.sample import Sample

Keywords = Mapping[str, Any]
"""Keywords of the pipeline's own call."""


@dataclass(frozen=True)
class Anatomy:
    """Where in a pipeline the model is, and where in the model the values stand.

    Attributes:
        experts: expert name to the pipeline's attribute, in the order of use.
        blocks: the DiT's lists of blocks, as dotted paths. Layers are numbered through them.
        sites: stream name to site name to where it is. `block` is among each stream's.
        latent_grid: (pipe, sample) to the latents' (channel, frame, y, x).
        token_grid: (dit, latent grid) to the tokens' (frame, y, x).
        channels: DiT to the number of channels of its hidden state.
        latents: streams that have latents of their own.
        before: tokens before the video's grid, where they are as many in every call; a capture counts them.
        after: tokens after it.
        multiples: frames are one more than a multiple of the first, height and width multiples of the second.
        root: pipeline to one module that has the experts as submodules under the same names, for nnsight.
        dtype: pipeline to the number type of its states. Default: its attribute `torch_dtype`.
        more_sizes: (pipe, keywords, stage) to sizes by stream, of a pipeline with other streams or stages than one
            of video. None where `latent_grid`, `token_grid` and `channels` say all.
    """

    experts: Mapping[str, str]
    blocks: tuple[str, ...]
    sites: Mapping[str, Mapping[str, Site]]
    latent_grid: Callable[[Any, Sample], tuple[int, int, int, int]]
    token_grid: Callable[[Any, tuple[int, int, int, int]], tuple[int, int, int]]
    channels: Callable[[Any], int]
    latents: tuple[str, ...] = ("video",)
    before: int = 0
    after: int = 0
    multiples: tuple[int, int] = (1, 1)
    root: Callable[[Any], nn.Module] = field(default=lambda pipe: pipe)
    dtype: Callable[[Any], torch.dtype] | None = None
    more_sizes: Callable[[Any, Keywords, int], Mapping[str, Sizes]] | None = None

    def dits(self, pipe: Any) -> dict[str, nn.Module]:
        """Return the experts that a pipeline holds now, by name. One alone is called `dit`.

        Raises:
            PlanError: the pipeline has none.
        """
        return experts_of(pipe, self.experts)

    def sizes(self, pipe: Any, sample: Sample, keywords: Keywords, stage: int = 0) -> Mapping[str, Sizes]:
        """Return the sizes that a stage of a run will have, by stream."""
        if self.more_sizes is not None:
            return self.more_sizes(pipe, keywords, stage)
        latent, dit = self.latent_grid(pipe, sample), next(iter(self.dits(pipe).values()))
        return {"video": Sizes(latent, self.token_grid(dit, latent), self.channels(dit))}

    def block_list(self, dit: nn.Module) -> Sequence[nn.Module]:
        """Return the blocks of a DiT."""
        return blocks_of(dit, self.blocks)

    def locate(self, dit: nn.Module, layer: int) -> tuple[str, int]:
        """Return the path of the list that a layer stands in, and its place there."""
        places = [(path, n) for path in self.blocks for n in range(len(self._list(dit, path)))]
        return places[layer]

    def _list(self, dit: nn.Module, path: str) -> Sequence[nn.Module]:
        return list(attrgetter(path)(dit))

    def check(self, expert: str, dit: nn.Module) -> None:
        """Check every path, so that a wrong one names itself.

        Raises:
            PlanError: a list of blocks or a site is not there.
        """
        what = f"{type(dit).__name__} ({expert})"
        for path in self.blocks:
            try:
                blocks = self._list(dit, path)
            except (AttributeError, TypeError):
                blocks = []
            if not blocks:
                raise PlanError(f"{what} has no list of blocks {path!r}.")
            for name, site in [item for sites in self.sites.values() for item in sites.items()]:
                try:
                    submodule(blocks[0], site.path)
                except AttributeError:
                    raise PlanError(
                        f"{what}: site {name!r} should be {path}[0].{site.path}, which is not there; the block has "
                        f"{[n for n, _ in blocks[0].named_children()]}."
                    ) from None


@dataclass(frozen=True)
class Calling:
    """How the pipeline is called, and what its calls say.

    Attributes:
        arguments: (sample, seed, steps, cfg_scale, extra) to the keywords of the pipeline's call.
        branches: keywords to the guidance branches of the first stage.
        refuse: raises PlanError where something asked for changes what hooks see and is not supported.
        intercept: wraps the pipeline's own calls during a run; returns the function that undoes it.
        quiet: (pipe, keywords) keeps the pipeline's progress bar away; may add keywords; returns what undoes it.
        default_steps: number of steps where the user names none.
        default_cfg: guidance scale where the user names none.
        later: keywords to the stages after the first. None where there is one stage.
        silent: keywords that do not change results.
        facts: pipeline to what of it changes results beside its components and arguments, as plain data.
        release: what the pipeline does to its models when a call is over; a call that was cut short has to.
        words: (pipe, keywords) to the tokens of each branch's prompt, as the blocks are given them, padding too. None where
            that is not known.
    """

    arguments: Callable[[Sample, int, int, float, Keywords], dict[str, Any]]
    branches: Callable[[Keywords], tuple[str, ...]]
    refuse: Callable[[Any, Keywords], None]
    intercept: Callable[[Any, Anatomy, Listener], Callable[[], None]]
    quiet: Callable[[Any, dict[str, Any]], Callable[[], None]]
    default_steps: int
    default_cfg: float
    later: Callable[[Keywords], tuple[Stage, ...]] | None = None
    silent: tuple[str, ...] = ()
    facts: Callable[[Any], dict[str, Any]] = field(default=lambda pipe: {})
    release: Callable[[Any], None] = field(default=lambda pipe: None)
    words: Callable[[Any, Keywords], Mapping[str, tuple[TextToken, ...]]] | None = None


def flow_x0(scheduler: Any, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
    """Return x0 = x_s - sigma v (flow matching), computed as the scheduler's own last step does."""
    return latents + velocity * (0 - scheduler.sigmas[step])


def flow_velocity(scheduler: Any, latents: Tensor, x0: Tensor, step: int) -> Tensor:
    """Return the velocity that stands for x0: v = (x_s - x0) / sigma."""
    return (latents - x0) / scheduler.sigmas[step]


def classifier_free(
    pipe: Any, keywords: Keywords, velocities: Mapping[str, Tensor], timestep: float
) -> Tensor:
    """Return v_uncond + cfg_scale (v_cond - v_uncond): classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""
    if len(velocities) == 1:
        return next(iter(velocities.values()))
    uncond = velocities["uncond"]
    return uncond + keywords["cfg_scale"] * (velocities["cond"] - uncond)


@dataclass(frozen=True)
class Flow:
    """What a step does to the latents.

    Attributes:
        schedule: scheduler to its noise levels, once its steps are set.
        x0: (scheduler, latents, velocity, step) to x0.
        velocity: (scheduler, latents, x0, step) to the velocity that stands for it.
        guide: (pipe, keywords, velocities by branch, timestep) to the velocity after guidance.
        is_flow: pipe to whether its scheduler takes the model's output for the velocity of x_s = (1 - sigma) x_0 + sigma x_1.
        readout: (dit, block state [row, token, channel], prepared keywords of `Batching` with `latents` and `timestep`)
            to the velocity that the network gives if it ends after this block. None where that is not known.
    """

    schedule: Callable[[Any], Schedule]
    x0: Callable[[Any, Tensor, Tensor, int], Tensor] = flow_x0
    velocity: Callable[[Any, Tensor, Tensor, int], Tensor] = flow_velocity
    guide: Callable[[Any, Keywords, Mapping[str, Tensor], float], Tensor] = classifier_free
    is_flow: Callable[[Any], bool] = field(default=lambda pipe: True)
    readout: Callable[[Any, Tensor, Keywords], Tensor] | None = None


@dataclass(frozen=True)
class Codec:
    """From latents to pictures and sound, and back.

    Attributes:
        decode: (pipe, latents [row, channel, frame, y, x]) to frames [row, time, height, width, rgb], uint8.
        outputs: (pipeline's output, keywords) to what is kept of it: `video`, frames [time, height, width, rgb] of
            uint8 or images. Empty where the output is not decoded.
        encode: (pipe, frames [time, height, width, rgb], uint8) to latents [row, channel, frame, y, x]. None where
            that is not known.
        decode_audio: (pipe, audio latents [row, channel, frame, y, x]) to waveforms [row, speaker, audio_time],
            float32. None where there is no sound.
        rates: (pipe, keywords) to the positions per second of outputs, by name; none where that is not known.
        decoded: keywords to whether the pipeline decodes at all.
        check: (pipe) refuses a codec by which `decode` cannot decode, before anything is run for it.
    """

    decode: Callable[[Any, Tensor], Any]
    outputs: Callable[[Any, Keywords], dict[str, np.ndarray]]
    encode: Callable[[Any, Any], Tensor] | None = None
    decode_audio: Callable[[Any, Tensor], Any] | None = None
    rates: Callable[[Any, Keywords], Mapping[str, float]] = field(default=lambda pipe, keywords: {})
    decoded: Callable[[Keywords], bool] = field(default=lambda keywords: True)
    check: Callable[[Any], None] = field(default=lambda pipe: None)


def _advance(scheduler: Any, velocity: Tensor, step: int, latents: Tensor) -> Tensor:
    after: Tensor = scheduler.step(velocity, scheduler.timesteps[step], latents)
    return after


def _unblended(
    scheduler: Any, timestep: Any, velocity: Tensor, latents: Tensor, prepared: Keywords, stream: str
) -> Tensor:
    return velocity


@dataclass(frozen=True)
class Prepared:
    """What the model is given on one branch, at the first step of the pipeline's own loop.

    Attributes:
        keywords: of the model, with its `latents`.
        streams: stream name to how its tokens stand.
    """

    keywords: dict[str, Any]
    streams: Mapping[str, Tokens]


@dataclass(frozen=True)
class Batching:
    """How many samples go through one forward, outside the pipeline's own loop.

    Attributes:
        prepare: (pipe, keywords of the pipeline's call) to, by branch, what the model gets at the first step: the
            pipeline's own units run, its loop does not.
        model: (pipe, DiT, prepared keywords with the scheduler's `timestep`, latents by stream) to the velocities
            by stream, of one branch.
        expert: (pipe, timestep, keywords of the pipeline's call) to the name of the DiT that serves a step.
        load: puts what a step needs on the device: (pipe, expert).
        settle: (latents after a step, prepared keywords) to what the pipeline makes of them before the next.
        blend: (scheduler, timestep, guided velocity, latents, prepared keywords, stream) to the velocity that the
            pipeline steps with.
        advance: (scheduler, velocity, step, latents) to the latents of the next step.
        refuse_moved: (pipe, latents, edited velocity, step, prepared keywords) refuses what would move a frame that the
            pipeline holds.
        place: (scheduler, step) lets a scheduler that counts its steps stand where it does before a step of the loop.
        most: rows that the model takes at once. None where any number goes.
    """

    prepare: Callable[[Any, Keywords], dict[str, Prepared]]
    model: Callable[[Any, Any, Keywords, Mapping[str, Tensor]], Mapping[str, Tensor]]
    expert: Callable[[Any, float, Keywords], str] = field(default=lambda pipe, timestep, keywords: "dit")
    load: Callable[[Any, str], None] = field(default=lambda pipe, expert: None)
    settle: Callable[[Tensor, Keywords], Tensor] = field(default=lambda latents, prepared: latents)
    blend: Callable[[Any, Any, Tensor, Tensor, Keywords, str], Tensor] = _unblended
    advance: Callable[[Any, Tensor, int, Tensor], Tensor] = _advance
    refuse_moved: Callable[[Any, Tensor, Tensor, int, Keywords], None] = field(
        default=lambda pipe, latents, velocity, step, prepared: None
    )
    place: Callable[[Any, int], None] = field(default=lambda scheduler, step: None)
    most: int | None = None


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: of the family.
        anatomy: where the values stand.
        call: how the pipeline is called, and what its calls say.
        flow: what a step does to the latents.
        codec: from latents to pictures and sound, and back.
        batching: how many samples go through one forward. None where that is not known.
    """

    name: str
    anatomy: Anatomy
    call: Calling
    flow: Flow
    codec: Codec
    batching: Batching | None = None


__all__ = ["Anatomy", "Batching", "Calling", "Codec", "Family", "Flow", "Keywords", "Prepared"]
