"""Which guidance branch a call, or a half of a merged batch, is: told by the text that the model is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.diffusers.merged import known_order

Branches = dict[str, slice]
"""Branch to the rows of the batch that it has."""


class Prompts:
    """The embeddings that a pipeline makes of its prompt and of its negative prompt.

    Pipelines encode both in one call of `encode_prompt`, or the prompt first and the negative prompt second.
    """

    def __init__(self) -> None:
        self.embeddings: dict[str, Tensor] = {}
        self.calls = 0

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return `encode_prompt`, watched."""
        together = "negative_prompt" in inspect.signature(original).parameters

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            texts = _texts(out)
            if together:
                self.embeddings = dict(zip(("cond", "uncond"), texts, strict=False))
            elif self.calls < 2 and texts:
                self.embeddings["cond" if self.calls == 0 else "uncond"] = texts[0]
            else:
                self.embeddings = {}  # more texts than two: which is which is not known
            self.calls += 1
            return out

        return encode_prompt

    def branch_of(self, text: Any) -> str | None:
        """Return the branch whose text this is; None where that is not known, or both have the same."""
        matches = [name for name, known in self.embeddings.items() if _same(text, known)]
        return matches[0] if len(matches) == 1 else None


def _texts(output: Any) -> list[Tensor]:
    """Return the [row, token, channel] embeddings among what `encode_prompt` returns: the prompt's come first."""
    values = output if isinstance(output, tuple | list) else (output,)
    texts = [v for v in values if isinstance(v, Tensor) and v.ndim == 3 and v.is_floating_point()]
    return [text for text in texts if text.shape[-1] == texts[0].shape[-1]]


def _same(text: Any, known: Tensor) -> bool:
    return isinstance(text, Tensor) and text.shape == known.shape and torch.equal(text, known.to(text))


def halves(pipe: Any, prompts: Prompts, text: Any, count: int) -> Branches:
    """Return the branches of a merged batch of 2 * count rows.

    Raises:
        PlanError: the order is not known, or what is known of it does not agree.
    """
    parts = slice(0, count), slice(count, 2 * count)
    listed = known_order(pipe)
    first, second = (prompts.branch_of(text[part]) if isinstance(text, Tensor) else None for part in parts)
    if first is None and second is not None:
        first = "cond" if second == "uncond" else "uncond"
    told = None if first is None else (first, "cond" if first == "uncond" else "uncond")
    if (listed and told and listed != told) or (second is not None and first == second):
        raise PlanError(
            f"{type(pipe).__name__} merges the guidance branches into one batch: its rows are known as "
            f"{listed}, and the text that "
            f"they are given says {(first, second)}. Run it with cfg_scale=1."
        )
    order = told or listed
    if order is None:
        raise PlanError(
            f"{type(pipe).__name__} merges the guidance branches into one batch, in an order that is not known here, and the "
            "text that its rows are given does not tell them: run it with cfg_scale=1, or add it to "
            "dit_lens.families.diffusers.merged."
        )
    return dict(zip(order, parts, strict=True))


def single(pipe: Any, prompts: Prompts, text: Any, context: str | None, served: set[str]) -> str:
    """Return the branch of a call that carries one.

    Args:
        pipe: the pipeline.
        prompts: what it has made of its prompts.
        text: the embeddings that the model is given.
        context: the name that the pipeline gives the call; None where it gives none.
        served: branches that ran in this step.

    Raises:
        PlanError: the branch is not known.
    """
    told = prompts.branch_of(text)
    if context is not None:
        if told is not None and context in ("cond", "uncond") and told != context:
            raise PlanError(
                f"{type(pipe).__name__} calls a forward {context!r} and gives it the text of {told!r}: which branch it is is not "
                "known. Run it with cfg_scale=1."
            )
        return context
    branch = told or "cond"
    if told is None and branch in served:
        same = (
            " (the prompt and the negative prompt may be encoded alike)"
            if len(prompts.embeddings) == 2
            else ""
        )
        raise PlanError(
            f"{type(pipe).__name__} runs its model more than once a step without naming the guidance branch, and the text that "
            f"the model is given does not tell it{same}: run it with cfg_scale=1 (one branch), or write a family "
            "(docs/adding-a-family.md)."
        )
    return branch


__all__ = ["Branches", "Prompts", "halves", "single"]
