"""Processes that draw scenes into shared memory. They import no torch, so each starts in a second and takes little."""

from __future__ import annotations

import os
import queue
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np

from mixes import MIXES, Group


class Request(NamedTuple):
    """What a process is asked for.

    Attributes:
        slot: of the shared memory, to be filled.
        group: number of the group in its mix.
        held_out: draw scenes that are never trained on.
    """

    slot: int
    group: int
    held_out: bool


def view(memory: SharedMemory, slot: int, group: Group, chunk: int, slot_bytes: int) -> np.ndarray:
    """Return a slot as videos [scene, time, height, width, rgb] of uint8."""
    return np.ndarray((chunk, *group.shape), np.uint8, memory.buf, slot * slot_bytes)


def draw(requests: Any, drawn: Any, memory: str, mix: str, chunk: int, slot_bytes: int, seed: int) -> None:
    """Fill slots until there is no further request, or nobody who asks; say each slot's prompts.

    Args:
        requests: queue of `Request`; None ends the process.
        drawn: queue of (request, prompts).
        memory: name of the shared memory.
        mix: name of what is drawn from.
        chunk: scenes that a slot holds.
        slot_bytes: size of a slot.
        seed: of this process.
    """
    os.nice(10)  # the training comes first
    shared, groups, rng = SharedMemory(memory), MIXES[mix], np.random.default_rng(seed)
    parent = os.getppid()
    while (request := _next(requests, parent)) is not None:
        group = groups[request.group]
        videos, prompts = view(shared, request.slot, group, chunk, slot_bytes), []
        for video in videos:
            sample = group.draw(rng, request.held_out)
            video[:] = sample.truth
            prompts.append(sample.prompt)
        del video, videos  # a view would keep the memory open
        drawn.put((request, prompts))
    shared.close()


def _next(requests: Any, parent: int) -> Request | None:
    """Wait for a request; None where the process that asks has ended without a word."""
    while os.getppid() == parent:
        with suppress(queue.Empty):
            request: Request | None = requests.get(timeout=5)
            return request
    return None
