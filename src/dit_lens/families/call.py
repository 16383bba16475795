"""What the calls of a pipeline say of themselves while a run lasts, and who listens to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dit_lens.families.site import Tokens

if TYPE_CHECKING:
    from torch import Tensor


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
class Forward:
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
            stored latents. Empty where it keeps nothing.
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


class Listener(Protocol):
    """The run in progress, as a family's interception tells it what happens.

    Latents are [row, channel, frame, y, x]; a family whose pipeline has them otherwise rearranges them.
    """

    @property
    def seed(self) -> int:
        """Seed of the run: noise that the pipeline draws without a generator comes from it."""

    def enter(self, stage: int) -> None:
        """Say which stage the next calls belong to. Pipelines with one stage need not say it."""

    def start(self, latents: Tensor, stream: str = "video") -> Tensor:
        """Return what the running step starts from, edits included, in place of what the pipeline has."""

    def call(
        self,
        forward: Forward,
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
