"""Edits of single heads: what takes the place of a head's output before the projection of its attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dit_lens import controls, edits
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Arm, run_arms
from dit_lens.errors import PlanError
from dit_lens.plan.functions import options
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.engine.visitor import Place
    from dit_lens.lens import Lens

ZERO, TOKEN_MEAN, ANOTHER_SCENE, PLACEBO = "zero", "token mean", "another scene", "placebo"
KINDS = (ZERO, TOKEN_MEAN, ANOTHER_SCENE)
"""What takes a head's place: nothing, the mean over its tokens, what it holds in a clean run of another scene at that step."""
SITE = "heads"

Held = dict["Place", Tensor]
"""What other scenes' clean rows hold at the running step, by (site, branch, layer): [row, frame, y, x, channel of all heads]."""


def require_heads(lens: Lens) -> int:
    """Return the number of heads of the video's self-attention.

    Raises:
        PlanError: the model's heads are not known; it names what is, and the remedy.
    """
    held = lens.specimen.carried.get(("video", SITE))
    if held is None or not held.heads:
        known = ", ".join(lens.attentions.get("video", [])) or "none"
        raise PlanError(
            f"This study edits single heads, the site {SITE!r}, which is not known of this model ({lens.family.name}; sites "
            f"{', '.join(lens.sites)}; attentions {known}): take another model, or name it by "
            f"lens.with_sites({{{SITE!r}: dl.Site(PATH, 'input', heads=...)}})."
        )
    return held.heads


@options
def of_another_scene(h: Tensor, spot: Spot, *, held: Held, row: int, heads: int) -> Tensor:
    """Replace a head's output [frame, y, x, channel] by what it is in a row of another scene at the same step and branch."""
    assert spot.layer is not None and spot.head is not None
    state = held[SITE, str(spot.branch), spot.layer][row]
    return state.unflatten(-1, (heads, -1))[..., spot.head, :]


def edit_of(kind: str, heads: int, held: Held, row: int) -> Any:
    """Return the edit of a kind; the placebo is that of zeros, of equal norm in a random direction at every token."""
    if kind == ANOTHER_SCENE:
        return of_another_scene(held=held, row=row, heads=heads)
    return {
        ZERO: edits.zero(),
        TOKEN_MEAN: edits.ablate(to="token_mean"),
        PLACEBO: controls.placebo(edits.zero()),
    }[kind]


def arm_of(
    kind: str, chosen: Sequence[tuple[int, int]], steps: Sequence[int], heads: int, held: Held | None = None
) -> Arm:
    """Return an arm: some heads, (layer, head), edited together at some steps and on all branches."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in chosen:
        by_layer.setdefault(layer, []).append(head)

    def edits_of(row: int) -> list[Placed]:
        edit = edit_of(kind, heads, {} if held is None else held, row)
        return [
            Placed(edit, at(site=SITE, layer=layer, head=sorted(numbers), step=list(steps)))
            for layer, numbers in by_layer.items()
        ]

    return edits_of


def run_heads(
    batch: Batch,
    beside: Batch | None,
    arms: Sequence[Arm],
    held: Held,
    layers: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Run arms of heads, with another scene of every pair beside them, a step at a time, where one is asked for.

    Args:
        batch: the pairs.
        beside: another scene of each pair; None where no arm takes it.
        arms: of `arm_of`.
        held: what these arms read, filled at every step with the heads of some layers.
        layers: whose heads are held.

    Returns:
        The last latents of the clean runs, [pair, channel, frame, y, x], and of the arms, [arm, pair, ...].
    """
    before: list[Tensor] = (
        [] if beside is None else [beside.noise]
    )  # what the other scenes' next step starts from

    def advance(step: int, _: Stepped) -> None:
        if beside is not None:
            watch = [(SITE, branch, n) for branch in beside.layout.branches for n in layers]
            now = beside.step(step, before.pop(), watch=watch)
            held.update(now.states)
            before.append(now.latents)

    try:
        return run_arms(batch, arms, clean_first=advance, progress="heads")
    finally:
        held.clear()  # the batch knows the edits as long as it lives


__all__ = [
    "ANOTHER_SCENE",
    "KINDS",
    "PLACEBO",
    "SITE",
    "TOKEN_MEAN",
    "ZERO",
    "Held",
    "arm_of",
    "require_heads",
    "run_heads",
]
