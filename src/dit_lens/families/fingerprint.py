"""Exact checksums of tensors where they rest: every byte counts, and a CPU and a GPU give the same value.

The bytes of a tensor are taken as 32-bit words, in the order of its shape (whatever its strides). Every chunk of `CHUNK`
words x is hashed twice, h = sum_i w_i x_i mod 2^64 with fixed odd 64-bit weights w; a tensor's checksum is the sha256 of
its number type, shape and the hashes of its chunks. A change of one word of a chunk always changes h, since w_i is odd;
other changes go unseen with probability 2^-32 for each of the two hashes (multilinear hashing, Carter and Wegman 1979;
Lemire and Kaser 2014). Integers wrap around in the same way everywhere, and no order of summing matters.

Nothing is cached from call to call: a `.data` write leaves no trace. It is not meant against someone who looks for a
collision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dit_lens.plan.arrays import tensor_bytes, tensor_parts

CHUNK = 1 << 15
"""32-bit words that are hashed together: they and their weights fit a core's cache."""

SMALL = 1 << 14
"""Bytes below which sha256 of the bytes themselves is faster."""

PIECE = CHUNK * 4 * 64
"""Bytes of a tensor that are copied at a time, where they cannot be read in place: 8 MiB."""

PARALLEL = 1 << 22
"""Bytes from which on a tensor on the CPU is hashed by several threads."""


class Checksums:
    """Checksums of tensors, each computed once; one object serves one look at a model.

    Args:
        tensors: hashed together, which is faster than one by one.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._known: dict[Any, str] = {}
        self._alive: list[Tensor] = []
        self._add([t for t in tensors if _is_plain(t) and not t.is_meta])

    def __call__(self, tensor: Tensor) -> Any:
        """Return a tensor as plain data: type, shape and checksum; of one in several parts, those of its parts."""
        if tensor.is_meta:
            return {"@meta": str(tensor.dtype), "shape": list(tensor.shape)}
        if not _is_plain(tensor):
            return self._in_parts(tensor)
        key = _place(tensor)
        if key not in self._known:
            self._add([tensor])
        return self._known[key]

    def _add(self, tensors: list[Tensor]) -> None:
        distinct = {_place(t): t for t in tensors}
        self._known.update(zip(distinct, checksums(list(distinct.values())), strict=True))
        self._alive += distinct.values()

    def _in_parts(self, tensor: Tensor) -> Any:
        from dit_lens.plan.content import Walk

        parts = tensor_parts(tensor)
        if parts is None:
            raise TypeError(f"a tensor of the kind {type(tensor).__name__} ({tensor.layout})")
        sentences: list[str] = []
        data = {name: Walk(sentences, checksum=self).visit(part) for name, part in parts.items()}
        return {"@tensor": type(tensor).__qualname__, "shape": list(tensor.shape), "dtype": str(tensor.dtype), **data}


def checksum(tensor: Tensor) -> str:
    """Return the checksum of one tensor, 32 hex digits."""
    return checksums([tensor])[0]


@torch.no_grad()
def checksums(tensors: list[Tensor]) -> list[str]:
    """Return the checksums of tensors of numbers, each 32 hex digits.

    Nothing waits for a GPU until all is on its way.
    """
    hashed = [_hashes(t.detach()) for t in tensors]
    rows = _fetch([h for h in hashed if isinstance(h, Tensor)])
    bodies = [next(rows) if isinstance(h, Tensor) else h for h in hashed]
    return [
        hashlib.sha256(f"{t.dtype} {list(t.shape)} ".encode() + b).hexdigest()[:32]
        for t, b in zip(tensors, bodies, strict=True)
    ]


def _is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor is a block of numbers, and nothing else."""
    kind = type(tensor)
    plain = kind is Tensor or kind is torch.nn.Parameter or kind is torch.nn.Buffer
    return plain and tensor.layout is torch.strided and not tensor.is_quantized


def _place(tensor: Tensor) -> Any:
    """Return what two tensors share that are one: where their numbers are, and how they stand there."""
    where = (tensor.device.type, tensor.device.index, tensor.data_ptr(), tensor.is_conj(), tensor.is_neg())
    return (*where, tensor.dtype, tensor.shape, tensor.stride())


def _hashes(tensor: Tensor) -> bytes | Tensor:
    """Return the bytes of a small tensor on the CPU; else the hashes of the chunks, [chunk, 2] or [device chunk, 2]."""
    size = tensor.numel() * tensor.element_size()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if size <= SMALL and tensor.device.type == "cpu":
        return memoryview(tensor_bytes(tensor.reshape(-1))).tobytes()
    if size <= SMALL:
        return tensor.reshape(-1).view(torch.uint8)  # fetched with the others
    hashes = torch.empty(math.ceil(size / (4 * CHUNK)), 2, dtype=torch.int64, device=tensor.device)
    if tensor.device.type == "cpu":
        _hash_on_cpu(tensor, hashes, size)
    else:
        _hash_on_device(tensor, hashes, size)
    return hashes


def _fetch(hashed: list[Tensor]) -> Iterator[bytes]:
    """Bring hashes to the host: one transfer a device and type, in place of one a tensor."""
    groups: dict[Any, list[int]] = {}
    for n, hashes in enumerate(hashed):
        groups.setdefault((hashes.device, hashes.dtype), []).append(n)
    fetched: dict[int, bytes] = {}
    for (_, dtype), members in groups.items():
        together = torch.cat([hashed[n].reshape(-1) for n in members]).cpu().view(torch.uint8).numpy().tobytes()
        width = torch.empty(0, dtype=dtype).element_size()
        ends = [0]
        for n in members:
            ends.append(ends[-1] + hashed[n].numel() * width)
        fetched |= {n: together[a:b] for n, (a, b) in zip(members, pairwise(ends), strict=True)}
    return (fetched[n] for n in range(len(hashed)))


def _hash_on_cpu(tensor: Tensor, hashes: Tensor, size: int) -> None:
    weights, step = _weights(torch.device("cpu")), CHUNK * 4

    def work(start: int, end: int) -> None:
        wide = torch.empty(CHUNK, dtype=torch.int64, device="cpu")
        with torch.no_grad():
            for begin in range(start, end, PIECE):
                for n, words in enumerate(_words(tensor, begin, min(end, begin + PIECE)).split(CHUNK)):
                    part = wide[: len(words)].copy_(words)
                    torch.mv(weights[:, : len(words)], part, out=hashes[begin // step + n])

    threads = min(torch.get_num_threads(), size // PARALLEL)
    if threads < 2:
        return work(0, size)
    share = math.ceil(size / threads / step) * step
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: work(start, min(size, start + share)), range(0, size, share)))


def _hash_on_device(tensor: Tensor, hashes: Tensor, size: int) -> None:
    weights = _weights(tensor.device)
    for begin in range(0, size, PIECE):
        words = _words(tensor, begin, min(size, begin + PIECE)).to(torch.int64)
        if pad := -len(words) % CHUNK:
            words = torch.nn.functional.pad(words, (0, pad))
        rows = words.view(-1, CHUNK)
        first = begin // (4 * CHUNK)
        for n in range(2):
            hashes[first : first + len(rows), n] = (rows * weights[n]).sum(1)


def _words(tensor: Tensor, start: int, end: int) -> Tensor:
    """Return a range of a tensor's bytes as 32-bit words; the last word is filled up with zeros."""
    flat = _flat(tensor, start // tensor.element_size(), math.ceil(end / tensor.element_size()))
    data = flat.view(torch.uint8)
    if pad := -len(data) % 4:
        data = torch.nn.functional.pad(data, (0, pad))
    elif data.storage_offset() % 4:
        data = data.clone()
    return data.view(torch.int32)


def _flat(tensor: Tensor, start: int, end: int) -> Tensor:
    """Return a range of a tensor's values in the order of its shape; only this range is copied, if any."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:end]
    while tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    row = math.prod(tensor.shape[1:])
    first = start // row
    part = tensor[first : math.ceil(end / row)].reshape(-1)
    return part[start - first * row : end - first * row].contiguous()


@cache
def _weights(device: torch.device) -> Tensor:
    """Return the weights of both hashes, [2, CHUNK], the same in every version of torch and on every device."""
    stream = hashlib.shake_256(b"dit_lens fingerprint").digest(2 * CHUNK * 8)
    with torch.inference_mode(False):
        words = torch.frombuffer(bytearray(stream), dtype=torch.int64) | 1
        return words.view(2, CHUNK).to(device)


__all__ = ["Checksums", "checksum", "checksums"]
