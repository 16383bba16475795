"""What the library has to know of an architecture: a `Family` is data, in one small file each.

`trace.py` and `lens.py` never ask which model they hold; all that differs stands in the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from dit_lens.errors import PlanError
from dit_lens.families.site import Site, submodule

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from dit_lens.tasks.sample import Sample


@dataclass(frozen=True)
class Tokens:
    """How the tokens of one stream stand in a block's hidden state.

    Attributes:
        grid: (frame, y, x) counts.
        before: tokens before them, which are not part of the grid, such as a reference's.
        after: tokens after them, likewise.
    """

    grid: tuple[int, int, int]
    before: int = 0
    after: int = 0

    @property
    def count(self) -> int:
        """Number of tokens of the grid."""
        frame, y, x = self.grid
        return frame * y * x

    @property
    def total(self) -> int:
        """Number of tokens that the hidden state has."""
        return self.before + self.count + self.after

    @property
    def part(self) -> slice:
        """Where the tokens of the grid stand."""
        return slice(self.before, self.before + self.count)


@dataclass(frozen=True)
class Sizes:
    """What a stream will be in a run, before it runs.

    Attributes:
        latent: (channel, frame, y, x) of its latents.
        tokens: (frame, y, x) counts in a block.
        channels: of a hidden state.
    """

    latent: tuple[int, int, int, int]
    tokens: tuple[int, int, int]
    channels: int


@dataclass(frozen=True)
class Seen:
    """What one forward of a DiT says of itself.

    Attributes:
        expert: name of the DiT that runs.
        rows: branch name to the rows of the batch that it has.
        streams: stream name to how its tokens stand; `video` among them.
        timestep: what the model is told.
    """

    expert: str
    rows: Mapping[str, slice]
    streams: Mapping[str, Tokens]
    timestep: float


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a run, as its scheduler has them.

    Attributes:
        sigmas: noise level of each step, in [0, 1].
        timesteps: what the model is told at each step.
        state: what the scheduler keeps from step to step, in words, so that steps cannot be replayed from
            stored latents; empty where it keeps nothing.
    """

    sigmas: list[float]
    timesteps: list[float]
    state: str = ""


@dataclass(frozen=True)
class Stage:
    """One pass of the sampling loop.

    Attributes:
        steps: scheduler steps that it has.
        branches: guidance branches that it runs.
    """

    steps: int
    branches: tuple[str, ...]


class Session(Protocol):
    """The run in progress, as a family's interception drives it.

    Latents are [row, channel, frame, y, x]; a family whose pipeline has them otherwise rearranges them.

    Attributes:
        seed: of the run.
    """

    @property
    def seed(self) -> int: ...  # noqa: D102

    def enter(self, stage: int) -> None:
        """Say which stage the calls that come belong to; pipelines with one stage need not."""

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return what the running step starts from, edits included, in place of what the pipeline has."""

    def call(
        self,
        seen: Seen,
        latents: Mapping[str, Tensor],
        proceed: Callable[[Mapping[str, Tensor]], Any],
        skip: Callable[[], Any],
    ) -> Any:
        """Serve one forward: may replace the latents (by stream), and may skip the computation."""

    def advance(
        self,
        velocity: Tensor,
        timestep: Any,
        latents: Tensor,
        proceed: Callable[[Tensor, Tensor], Tensor],
        stream: str = "video",
    ) -> Tensor:
        """Serve one step of the scheduler, for one stream."""


def _advance(scheduler: Any, velocity: Tensor, step: int, latents: Tensor) -> Tensor:
    after: Tensor = scheduler.step(velocity, scheduler.timesteps[step], latents)
    return after


def _unblended(
    scheduler: Any, timestep: Any, velocity: Tensor, latents: Tensor, keywords: Mapping[str, Any], stream: str
) -> Tensor:
    return velocity


@dataclass(frozen=True)
class Batching:
    """How many samples go through one forward, outside the pipeline's own loop.

    Attributes:
        prepare: (pipe, keywords of the pipeline's call) to, by branch, the keywords that the model gets at the
            first step: the pipeline's own units run, its loop does not.
        model: (pipe, DiT, prepared keywords with the scheduler's `timestep`, latents by stream) to the velocities
            by stream, of one branch.
        expert: (pipe, timestep, keywords of the pipeline's call) to the name of the DiT that serves a step.
        load: puts what a step needs on the device: (pipe, expert).
        settle: (latents after a step, keywords of the model) to what the pipeline makes of them before the
            next; the same unless told.
        blend: (scheduler, timestep, guided velocity, latents, keywords of the model, stream) to the velocity that
            the pipeline steps with; the same unless told.
        advance: (scheduler, velocity, step, latents) to the latents of the next step; the scheduler's own step
            unless told.
        most: rows that the model takes at once, at most; any number unless told.
        guide: (pipe, keywords of the pipeline's call, velocities by branch, timestep of the scheduler) to the
            velocity that the pipeline makes of them. Default: uncond + cfg_scale * (cond - uncond).
    """

    prepare: Callable[[Any, Mapping[str, Any]], dict[str, dict[str, Any]]]
    model: Callable[[Any, Any, Mapping[str, Any], Mapping[str, Tensor]], Mapping[str, Tensor]]
    expert: Callable[[Any, float, Mapping[str, Any]], str] = field(
        default=lambda pipe, timestep, given: "dit"
    )
    load: Callable[[Any, str], None] = field(default=lambda pipe, expert: None)
    settle: Callable[[Tensor, Mapping[str, Any]], Tensor] = field(default=lambda latents, given: latents)
    blend: Callable[[Any, Any, Tensor, Tensor, Mapping[str, Any], str], Tensor] = _unblended
    advance: Callable[[Any, Tensor, int, Tensor], Tensor] = _advance
    most: int | None = None
    guide: Callable[[Any, Mapping[str, Any], Mapping[str, Tensor], float], Tensor] | None = None


def flow_x0(scheduler: Any, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
    """Return x0 = x_s - sigma v (flow matching), computed as the scheduler's own last step does."""
    return latents + velocity * (0 - scheduler.sigmas[step])


def flow_velocity(scheduler: Any, latents: Tensor, x0: Tensor, step: int) -> Tensor:
    """Return the velocity that stands for x0: v = (x_s - x0) / sigma."""
    return (latents - x0) / scheduler.sigmas[step]


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: of the family.
        experts: expert name to the pipeline's attribute, in the order of use.
        blocks: the DiT's lists of blocks, as dotted paths; layers are numbered through them.
        sites: stream name to site name to where it is; `block` among each stream's.
        intercept: wraps the pipeline's own calls during a run; returns the function that undoes it.
        arguments: (sample, seed, steps, cfg_scale, extra) to the pipeline call's keywords.
        branches: the pipeline call's keywords to the guidance branches that will run.
        refuse: raises PlanError where something asked for changes what hooks see and is not supported.
        latent_grid: (pipe, sample) to the latents' (channel, frame, y, x).
        token_grid: (dit, latent grid) to the tokens' (frame, y, x).
        channels: DiT to the number of channels of its hidden state.
        decode: (pipe, latents [row, channel, frame, y, x]) to frames [row, time, height, width, rgb], uint8.
        outputs: (pipeline's output, its call's keywords) to what is kept of it: `video`, frames [time, height,
            width, rgb] of uint8 or images; empty where the output is not decoded.
        readout: (dit, block state, the prepared keywords of `batching` with `latents` and `timestep`) to the
            velocity that the network gives if it ends after this block; None where that is not known.
        schedule: scheduler to its noise levels, once its steps are set.
        facts: pipeline to what of it changes results, as plain data, for the manifest.
        quiet: (pipe, keywords) keeps the pipeline's progress bar away; may add keywords; returns what undoes it.
        default_steps: number of steps where the user names none.
        default_cfg: guidance scale where the user names none.
        multiples: frames are one more than a multiple of the first, height and width multiples of the second.
        silent: keywords of the pipeline's call that do not change results.
        x0: (scheduler, latents, velocity, step) to x0.
        velocity: (scheduler, latents, x0, step) to the velocity that stands for it.
        latents: streams that have latents of their own.
        root: pipeline to one module that has the experts as submodules under the same names, for nnsight.
        dtype: pipeline to the number type of its states.
        batching: how many samples go through one forward; None where that is not known.
        encode: (pipe, frames [time, height, width, rgb], uint8) to latents [row, channel, frame, y, x]; None where
            that is not known.
        later: the pipeline call's keywords to the stages that come after the first.
        decode_audio: (pipe, audio latents [row, channel, frame, y, x]) to waveforms [row, speaker, audio_time],
            float32; None where there is no sound.
        more_sizes: (pipe, keywords, stage) to sizes by stream, of a pipeline with other streams or stages than one
            of video; None where `latent_grid`, `token_grid` and `channels` say all.
        rates: (pipe, keywords) to the positions per second of outputs, by name; none where that is not known.
    """

    name: str
    experts: Mapping[str, str]
    blocks: tuple[str, ...]
    sites: Mapping[str, Mapping[str, Site]]
    intercept: Callable[[Any, Family, Session], Callable[[], None]]
    arguments: Callable[[Sample, int, int, float, Mapping[str, Any]], dict[str, Any]]
    branches: Callable[[Mapping[str, Any]], tuple[str, ...]]
    refuse: Callable[[Any, Mapping[str, Any]], None]
    latent_grid: Callable[[Any, Sample], tuple[int, int, int, int]]
    token_grid: Callable[[Any, tuple[int, int, int, int]], tuple[int, int, int]]
    channels: Callable[[Any], int]
    decode: Callable[[Any, Tensor], Any]
    outputs: Callable[[Any, Mapping[str, Any]], dict[str, np.ndarray]]
    readout: Callable[[Any, Tensor, Mapping[str, Any]], Tensor] | None
    schedule: Callable[[Any], Schedule]
    facts: Callable[[Any], dict[str, Any]]
    quiet: Callable[[Any, dict[str, Any]], Callable[[], None]]
    default_steps: int
    default_cfg: float
    multiples: tuple[int, int] = (1, 1)
    silent: tuple[str, ...] = ()
    x0: Callable[[Any, Tensor, Tensor, int], Tensor] = flow_x0
    velocity: Callable[[Any, Tensor, Tensor, int], Tensor] = flow_velocity
    latents: tuple[str, ...] = ("video",)
    root: Callable[[Any], nn.Module] = field(default=lambda pipe: pipe)
    dtype: Callable[[Any], torch.dtype] = field(default=lambda pipe: pipe.torch_dtype)
    batching: Batching | None = None
    encode: Callable[[Any, Any], Tensor] | None = None
    later: Callable[[Mapping[str, Any]], tuple[Stage, ...]] = field(default=lambda keywords: ())
    decode_audio: Callable[[Any, Tensor], Any] | None = None
    more_sizes: Callable[[Any, Mapping[str, Any], int], Mapping[str, Sizes]] | None = None
    rates: Callable[[Any, Mapping[str, Any]], Mapping[str, float]] = field(default=lambda pipe, keywords: {})

    def dits(self, pipe: Any) -> dict[str, nn.Module]:
        """Return the experts that a pipeline holds, by name: one is called `dit`.

        Raises:
            PlanError: the pipeline has none, or an attribute of the family is not there.
        """
        found = {name: getattr(pipe, path, None) for name, path in self.experts.items()}
        held = {name: dit for name, dit in found.items() if dit is not None}
        if not held:
            paths = ", ".join(self.experts.values())
            raise PlanError(f"Family {self.name}: {type(pipe).__name__} holds no model at {paths}.")
        if len(held) == 1:
            held = {"dit": next(iter(held.values()))}
        for name, dit in held.items():
            self._check(name, dit)
        return held

    def sizes(
        self, pipe: Any, sample: Sample, keywords: Mapping[str, Any], stage: int = 0
    ) -> Mapping[str, Sizes]:
        """Return the sizes that a stage of a run will have, by stream."""
        if self.more_sizes is not None:
            return self.more_sizes(pipe, keywords, stage)
        latent, dit = self.latent_grid(pipe, sample), next(iter(self.dits(pipe).values()))
        return {"video": Sizes(latent, self.token_grid(dit, latent), self.channels(dit))}

    def block_list(self, dit: nn.Module) -> Sequence[nn.Module]:
        """Return the blocks of a DiT."""
        return [block for path in self.blocks for block in self._list(dit, path)]

    def locate(self, dit: nn.Module, layer: int) -> tuple[str, int]:
        """Return the path of the list that a layer stands in, and its place there."""
        places = [(path, n) for path in self.blocks for n in range(len(self._list(dit, path)))]
        return places[layer]

    def _list(self, dit: nn.Module, path: str) -> Sequence[nn.Module]:
        return list(attrgetter(path)(dit))

    def _check(self, expert: str, dit: nn.Module) -> None:
        """Check every path of the family once, so that a wrong one names itself."""
        what = f"Family {self.name}: {type(dit).__name__} ({expert})"
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


__all__ = [
    "Batching",
    "Family",
    "Schedule",
    "Seen",
    "Session",
    "Site",
    "Sizes",
    "Stage",
    "Tokens",
    "submodule",
]
