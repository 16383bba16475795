"""Scenes for training: drawn by processes, encoded where the training runs, kept there in a ring and used a few times each."""

from __future__ import annotations

import multiprocessing
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import drawing
from dit_lens.models.organism.modules import LENGTH, LinearCodec, TextEncoder, Tokenizer
from mixes import MIXES, Group


class Batch(NamedTuple):
    """Scenes of one group.

    Attributes:
        latents: [row, channel, frame, y, x].
        context: embedded prompts, [row, token, channel].
    """

    latents: Tensor
    context: Tensor


class Ring:
    """The latest scenes of one group, on the device.

    Args:
        size: scenes that it holds; older ones make room.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.drawn = size, 0
        self.held = torch.zeros((), device=device)  # on the device, where batches are picked
        self.latents: Tensor | None = None
        self.prompts: Tensor | None = None

    def put(self, latents: Tensor, prompts: Tensor) -> None:
        """Take scenes [scene, channel, frame, y, x] and the number of each one's prompt, [scene]."""
        if self.latents is None or self.prompts is None:
            self.latents = latents.new_empty(self.size, *latents.shape[1:])
            self.prompts = prompts.new_empty(self.size)
        at = (self.drawn + torch.arange(len(latents), device=latents.device)) % self.size
        self.latents[at], self.prompts[at] = latents, prompts
        self.drawn += len(latents)
        self.held.fill_(min(self.drawn, self.size))


class Words:
    """Embedded prompts by number; number 0 is the empty one.

    Args:
        text: the word table, on the device.
    """

    MOST = 4096
    """Prompts that the table has room for; it stays where it is."""

    def __init__(self, text: TextEncoder) -> None:
        self.text, self.tokenizer = text, Tokenizer()
        self.known: dict[str, int] = {}
        self.table = text.table.new_zeros(self.MOST, LENGTH, text.table.shape[1])
        self.numbers([""])

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of prompts, [prompt, token, channel]."""
        numbers = self.numbers(prompts)
        return self.table[numbers.to(self.table.device)]

    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """Return the numbers of prompts, [prompt], on the CPU.

        Raises:
            RuntimeError: the table is full.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            first = len(self.known)
            if first + len(new) > self.MOST:
                raise RuntimeError(f"There are more than {self.MOST} prompts.")
            self.known.update({prompt: first + n for n, prompt in enumerate(new)})
            ids, mask = (t.to(self.text.table.device) for t in self.tokenizer(new))
            self.table[first : first + len(new)] = self.text(ids, mask)
        return torch.tensor([self.known[prompt] for prompt in prompts])


class Feed:
    """Scenes of one mix, as a context.

    Args:
        mix: name of the mix.
        codec: encodes them, on the device.
        text: the word table, on the device.
        workers: processes that draw.
        held: scenes that the ring of each group holds.
        fill: scenes of each group before the first batch.
        chunk: scenes that a process draws at a time.
        seed: of the drawing.
        held_out: scenes of each group that no training sees.
    """

    HELD_OUT = 256
    """Scenes of each group that no training sees, for the loss on them."""

    def __init__(
        self,
        mix: str,
        codec: LinearCodec,
        text: TextEncoder,
        *,
        workers: int,
        held: int,
        fill: int,
        chunk: int,
        seed: int,
        held_out: int = HELD_OUT,
    ) -> None:
        self.groups, self.codec, self.words = MIXES[mix], codec, Words(text)
        self.fill, self.chunk = fill, chunk
        self.device = codec.first_basis.device
        self.rng = np.random.default_rng(seed)
        self.rings = {group.name: Ring(held, self.device) for group in self.groups}
        self.held_out = {group.name: Ring(held_out, self.device) for group in self.groups}
        # Every scene is used as often as any other: a group's scenes are drawn as fast as its time is spent.
        pace = np.array([group.time / group.tokens for group in self.groups])
        self.pace = pace / pace.sum()
        self.to_draw = self._to_draw()
        self.slot_bytes = chunk * max(int(np.prod(group.shape)) for group in self.groups)
        self.slots = 6 * workers
        self.memory = SharedMemory(create=True, size=self.slots * self.slot_bytes)
        context = multiprocessing.get_context("spawn")
        self.requests, self.drawn = context.Queue(), context.Queue()
        shared = (self.requests, self.drawn, self.memory.name, mix, chunk, self.slot_bytes)
        self.processes = [
            context.Process(target=drawing.draw, args=(*shared, 1000 * seed + n), daemon=True)
            for n in range(workers)
        ]
        self.copied: deque[tuple[Any, int]] = deque()

    def __enter__(self) -> Feed:
        if self.device.type == "cuda":  # from registered memory copies do not wait
            whole = np.ndarray((self.memory.size,), np.uint8, self.memory.buf)
            torch.cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, 0)
        for process in self.processes:
            process.start()
        for slot in range(self.slots):
            self._ask(slot)
        while any(ring.drawn < self.fill for ring in self.rings.values()) or any(
            ring.drawn < ring.size for ring in self.held_out.values()
        ):
            self._take(timeout=60)
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.terminate()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.memory.unlink()

    def take(self) -> None:
        """Put what was drawn meanwhile into the rings."""
        while self._take():
            pass

    def batch(self, group: Group, rows: int, dropout: float = 0.1) -> Batch:
        """Return scenes of a group, picked on the device; some prompts are emptied.

        Args:
            group: which.
            rows: how many.
            dropout: share of the prompts that are emptied.
        """
        return self._pick(self.rings[group.name], rows, dropout, None)

    def held_out_batch(self, group: Group, rows: int, first: int = 0) -> Batch:
        """Return the scenes of a group that no training sees, from one on, always the same."""
        at = torch.arange(first, first + rows, device=self.device) % self.held_out[group.name].size
        return self._pick(self.held_out[group.name], rows, 0.0, at)

    def _pick(self, ring: Ring, rows: int, dropout: float, at: Tensor | None) -> Batch:
        assert ring.latents is not None and ring.prompts is not None
        at = (torch.rand(rows, device=self.device) * ring.held).long() if at is None else at
        stays = torch.rand(rows, device=self.device) >= dropout
        return Batch(ring.latents[at].float(), self.words.table[ring.prompts[at] * stays])

    def _to_draw(self) -> Iterator[tuple[int, bool]]:
        """Go through the groups to draw: first those that are never trained on."""
        for n, group in enumerate(self.groups):
            for _ in range(-(-self.held_out[group.name].size // self.chunk)):
                yield n, True
        while True:
            starved = [n for n, g in enumerate(self.groups) if self.rings[g.name].drawn < self.fill]
            yield (
                int(self.rng.choice(starved) if starved else self.rng.choice(len(self.pace), p=self.pace)),
                False,
            )

    def _ask(self, slot: int) -> None:
        """Ask for a slot to be filled."""
        self.requests.put(drawing.Request(slot, *next(self.to_draw)))

    def _take(self, timeout: float = 0) -> bool:
        """Encode what a process has drawn and put it into its ring; say whether there was something.

        It runs between the steps, in their thread: one beside them would contend for the interpreter.

        Args:
            timeout: seconds to wait for it.

        Raises:
            RuntimeError: a process has ended.
        """
        if not all(process.is_alive() for process in self.processes):
            raise RuntimeError("A process that draws scenes has ended.")
        while self.copied and (self.copied[0][0] is None or self.copied[0][0].query()):
            self._ask(self.copied.popleft()[1])
        try:
            request, prompts = self.drawn.get(timeout > 0, timeout)
        except queue.Empty:
            return False
        group = self.groups[request.group]
        pixels = drawing.view(self.memory, request.slot, group, self.chunk, self.slot_bytes)
        videos, numbers = torch.from_numpy(pixels), self.words.numbers(prompts)
        copied = None
        if self.device.type == "cuda":
            videos, numbers = (t.to(self.device, non_blocking=True) for t in (videos, numbers.pin_memory()))
            copied = torch.cuda.Event()
            copied.record()
        with torch.no_grad():
            latents = encode(self.codec, videos)
        self.copied.append((copied, request.slot))
        rings = self.held_out if request.held_out else self.rings
        rings[group.name].put(latents, numbers)
        return True


def encode(codec: LinearCodec, videos: Tensor) -> Tensor:
    """Return the latents [scene, channel, frame, y, x], in float16, of videos [scene, time, height, width, rgb] of uint8."""
    return codec.encode(videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).half()
