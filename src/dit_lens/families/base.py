"""What the library has to know of an architecture: a `Family` is data, in one small file each.

`trace.py` and `lens.py` never ask which model they hold; all that differs stands in the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dit_lens.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_lens.tasks.sample import Sample


@dataclass(frozen=True)
class Site:
    """Where in a block a value is read.

    Attributes:
        path: submodule below the block; "" is the block itself.
        end: "output" or "input" of that module; the hidden state is its first tensor.
        long_name: what it is, in words.
    """

    path: str
    end: str = "output"
    long_name: str = ""


@dataclass(frozen=True)
class Seen:
    """What one forward of a DiT says of itself.

    Attributes:
        expert: name of the DiT that runs.
        rows: branch name to the rows of the batch that it has.
        grid: (frame, y, x) counts of the video tokens.
        prefix: tokens before them, which are not part of the grid.
        timestep: what the model is told.
    """

    expert: str
    rows: Mapping[str, slice]
    grid: tuple[int, int, int]
    prefix: int
    timestep: float


class Session(Protocol):
    """The run in progress, as a family's interception drives it."""

    def call(self, seen: Seen, latents: Tensor, proceed: Callable[[Tensor], Tensor]) -> Tensor:
        """Serve one forward: may replace the latents, and may skip the computation."""

    def advance(
        self, velocity: Tensor, timestep: Any, latents: Tensor, proceed: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Serve one step of the scheduler."""


def _free(velocity: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    return velocity


@dataclass(frozen=True)
class Batching:
    """How many samples go through one forward, outside the pipeline's own loop.

    Attributes:
        prepare: (pipe, keywords of the pipeline's call) to, by branch, the keywords that the model gets at the
            first step: the pipeline's own units run, its loop does not.
        expert: (pipe, timestep, keywords of the pipeline's call) to the name of the DiT that serves a step.
        load: puts what a step needs on the device: (pipe, expert).
        settle: (latents after a step, keywords of the model) to what the pipeline makes of them before the
            next.
        hold: (velocity, keywords of the model) to what the pipeline lets it move; all of it, unless told.
    """

    prepare: Callable[[Any, Mapping[str, Any]], dict[str, dict[str, Any]]]
    expert: Callable[[Any, float, Mapping[str, Any]], str]
    load: Callable[[Any, str], None]
    settle: Callable[[Tensor, Mapping[str, Any]], Tensor]
    hold: Callable[[Tensor, Mapping[str, Any]], Tensor] = _free


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: of the family.
        experts: expert name to the pipeline's attribute, in the order of use.
        blocks: the DiT's attribute that is its list of blocks.
        sites: site name to where it is; `block` among them.
        intercept: wraps the pipeline's own calls during a run; returns the function that undoes it.
        arguments: (sample, seed, steps, cfg_scale, extra) to the pipeline call's keywords.
        branches: the pipeline call's keywords to the guidance branches that will run.
        refuse: raises PlanError where something asked for changes what hooks see and is not supported.
        latent_grid: (pipe, sample) to the latents' (channel, frame, y, x).
        token_grid: (dit, latent grid) to the tokens' (frame, y, x).
        decode: (pipe, latents [row, channel, frame, y, x]) to frames [row, time, height, width, rgb], uint8.
        readout: (dit, block state, call keywords) to the velocity that the network gives if it ends after
            this block.
        default_steps: number of steps where the user names none.
        default_cfg: guidance scale where the user names none.
        batching: how many samples go through one forward; None where that is not known.
    """

    name: str
    experts: Mapping[str, str]
    blocks: str
    sites: Mapping[str, Site]
    intercept: Callable[[Any, Family, Session], Callable[[], None]]
    arguments: Callable[[Sample, int, int, float, Mapping[str, Any]], dict[str, Any]]
    branches: Callable[[Mapping[str, Any]], tuple[str, ...]]
    refuse: Callable[[Any, Mapping[str, Any]], None]
    latent_grid: Callable[[Any, Sample], tuple[int, int, int, int]]
    token_grid: Callable[[Any, tuple[int, int, int, int]], tuple[int, int, int]]
    decode: Callable[[Any, Tensor], Any]
    readout: Callable[[Any, Tensor, Mapping[str, Any]], Tensor]
    default_steps: int
    default_cfg: float
    batching: Batching | None = None

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

    def block_list(self, dit: nn.Module) -> Sequence[nn.Module]:
        """Return the blocks of a DiT."""
        return list(getattr(dit, self.blocks))

    def _check(self, expert: str, dit: nn.Module) -> None:
        """Check every path of the family once, on the first block, so that a wrong one names itself."""
        blocks = getattr(dit, self.blocks, None)
        if blocks is None or len(blocks) == 0:
            raise PlanError(
                f"Family {self.name}: {type(dit).__name__} ({expert}) has no list of blocks {self.blocks!r}."
            )
        for name, site in self.sites.items():
            try:
                submodule(blocks[0], site.path)
            except AttributeError:
                raise PlanError(
                    f"Family {self.name}: site {name!r} should be {self.blocks}[0].{site.path} of {type(dit).__name__} "
                    f"({expert}), which is not there; the block has {[n for n, _ in blocks[0].named_children()]}."
                ) from None


def submodule(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at a dotted path; "" is the module itself."""
    return module.get_submodule(path) if path else module
