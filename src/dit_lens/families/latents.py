"""Latents of several streams as one tensor: the video's, which take the others' rows along.

Who works with batches picks rows, puts them together and hands them back; the sound of every row has to come too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Latents(Tensor):
    """Video latents [row, channel, frame, y, x] with those of other streams beside them.

    Rows that are picked (`x[2:4]`, `x[[0, 2]]`) or put together (`torch.cat`) keep the other streams. All else
    (arithmetic, a single row, other dimensions) is of the video alone, and a plain tensor.

    Attributes:
        others: stream name to its latents, of the same rows.
    """

    others: dict[str, Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the same to every stream where rows stay rows, else to the video alone."""
        kwargs = kwargs or {}
        out = func(*_of(args, "video"), **_of(kwargs, "video"))
        if not _keeps_rows(func, args, kwargs):
            return out
        first = args[0] if isinstance(args[0], Latents) else args[0][0]
        return together({"video": out, **{s: func(*_of(args, s), **_of(kwargs, s)) for s in first.others}})


def together(streams: Mapping[str, Tensor]) -> Tensor:
    """Return the latents of a run's streams as one value; the video's own where there is no other."""
    video, others = streams["video"], {name: x for name, x in streams.items() if name != "video"}
    if not others:
        return video
    out = video.as_subclass(Latents)
    out.others = others
    return out


def apart(latents: Tensor) -> dict[str, Tensor]:
    """Return plain latents by stream."""
    others = latents.others if isinstance(latents, Latents) else {}
    return {"video": _of(latents, "video"), **others}


def _of(value: Any, stream: str) -> Any:
    """Return arguments with one stream in place of all."""

    def pick(x: Any) -> Any:
        if not isinstance(x, Latents):
            return x
        with torch._C.DisableTorchFunctionSubclass():
            return x.as_subclass(Tensor) if stream == "video" else x.others[stream]

    return tree_map(pick, value)


def _keeps_rows(func: Any, args: Any, kwargs: Any) -> bool:
    if func is torch.cat:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        return dim == 0 and all(isinstance(x, Latents) for x in args[0])
    picks = func is Tensor.__getitem__ and isinstance(args[0], Latents)
    return picks and (
        isinstance(args[1], slice | list) or (isinstance(args[1], Tensor) and args[1].ndim == 1)
    )
