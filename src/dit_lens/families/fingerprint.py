"""Exact checksums of tensors where they rest: every byte counts, and a CPU and a GPU give the same value.

The bytes of a tensor are taken in the order of its shape (whatever its strides), as rows of `ROW` signed bytes x, the last
filled up with zeros. Every row has `COLUMNS` sums h = sum_i w_i x_i with fixed pseudorandom weights w in [-128, 127]; a
tensor's checksum is the sha256 of its number type, its shape and the sums of all its rows. The sums are exact 32-bit
integers, so that no order of summing matters, and one matrix product of integers makes them on a CPU or a GPU.

For any two rows that differ, at most one value of one weight makes a sum equal; so all sums are equal with a probability
of at most 2^-128 over the weights (multilinear hashing; Carter and Wegman 1979). The weights are public: it is not meant
against someone who looks for a collision. Nothing is kept from call to call: a `.data` write leaves no trace.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

ROW = 1 << 15
"""Bytes that are hashed together: 2^15 products of at most 2^14 do not overflow 32 bits."""

COLUMNS = 16
"""Sums of each row."""

BLOCK = 128
"""Rows that go through one product (4 MiB)."""

SMALL = 1 << 12
"""Bytes up to which the bytes themselves stand in place of their sums."""


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
        """Return a block of numbers as plain data: its checksum, or its type and shape where it has no values."""
        if tensor.is_meta:
            return {"@meta": str(tensor.dtype), "shape": list(tensor.shape)}
        key = _place(tensor)
        if key not in self._known:
            self._add([tensor])
        return self._known[key]

    def _add(self, tensors: list[Tensor]) -> None:
        distinct = {_place(t): t for t in tensors}
        self._known.update(zip(distinct, checksums(list(distinct.values())), strict=True))
        self._alive += distinct.values()


def checksum(tensor: Tensor) -> str:
    """Return the checksum of one tensor, 32 hex digits."""
    return checksums([tensor])[0]


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[str]:
    """Return the checksums of tensors of numbers, each 32 hex digits.

    Nothing waits for a GPU until all is on its way.
    """
    plain = [
        t.detach().resolve_conj().resolve_neg() if t.is_complex() or t.is_neg() else t.detach()
        for t in tensors
    ]
    sizes = [_size(t) for t in plain]
    parts: list[tuple[int, Tensor]] = []  # position of a tensor, and its bytes or some of its hashes
    by_device: dict[torch.device, list[int]] = {}
    for n, tensor in enumerate(plain):
        if sizes[n] <= SMALL:
            parts.append((n, tensor.reshape(-1).view(torch.int8)))
            continue
        if sizes[n] >= BLOCK * ROW:
            parts += [(n, hashes) for hashes in _whole_blocks(tensor)]
        by_device.setdefault(tensor.device, []).append(n)
    for members in by_device.values():
        parts += [(members[n], hashes) for n, hashes in _rest([plain[m] for m in members])]
    bodies: list[list[bytes]] = [[] for _ in plain]
    for (n, _), body in zip(parts, _fetch([hashes for _, hashes in parts]), strict=True):
        bodies[n].append(body)
    return [_name(tensor, b"".join(body)) for tensor, body in zip(plain, bodies, strict=True)]


def _name(tensor: Tensor, body: bytes) -> str:
    return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode() + body).hexdigest()[:32]


def _is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor is a block of numbers, and nothing else."""
    kind = type(tensor)
    plain = kind is Tensor or kind is torch.nn.Parameter or kind is torch.nn.Buffer
    return plain and tensor.layout is torch.strided and not tensor.is_quantized


def _place(tensor: Tensor) -> Any:
    """Return what two tensors share that are one: where their numbers are, and how they stand there."""
    where = (tensor.device.type, tensor.device.index, tensor.data_ptr(), tensor.is_conj(), tensor.is_neg())
    return (*where, tensor.dtype, tensor.shape, tensor.stride())


def _whole_blocks(tensor: Tensor) -> list[Tensor]:
    """Return the hashes of the rows of a tensor that make whole blocks, [row, COLUMNS] a block."""
    step = BLOCK * ROW
    return [
        _hash_rows(_bytes(tensor, n, n + step).view(BLOCK, ROW))
        for n in range(0, _size(tensor) - step + 1, step)
    ]


def _rest(tensors: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Hash what stands after the whole blocks of tensors of one device, many of them together in one buffer.

    Yields:
        Position of a tensor, and the hashes of some of its rows, [row, COLUMNS]; in order.
    """
    buffer = torch.empty(BLOCK, ROW, dtype=torch.int8, device=tensors[0].device)
    flat = buffer.view(-1)
    used, owners = 0, list[tuple[int, slice]]()

    def flush() -> Iterator[tuple[int, Tensor]]:
        hashes = _hash_rows(buffer[:used] if used > BLOCK // 2 else buffer)
        yield from ((owner, hashes[rows]) for owner, rows in owners)

    for n, tensor in enumerate(tensors):
        start, end = _size(tensor) // (BLOCK * ROW) * BLOCK * ROW, _size(tensor)
        while start < end:
            if used == BLOCK:
                yield from flush()
                used, owners = 0, []
            stop = min(end, start + (BLOCK - used) * ROW)
            part, size, rows = _bytes(tensor, start, stop), stop - start, -((start - stop) // ROW)
            flat.narrow(0, used * ROW, size).copy_(part)
            if size % ROW:
                flat.narrow(0, used * ROW + size, rows * ROW - size).zero_()
            owners.append((n, slice(used, used + rows)))
            used, start = used + rows, start + rows * ROW
    if used:
        yield from flush()


def _hash_rows(rows: Tensor) -> Tensor:
    """Return the sums of rows of bytes times the weights, [row, COLUMNS] int32: exact, in whatever order they are summed."""
    weights = _weights(rows.device)
    try:
        return torch._int_mm(rows, weights)
    except (RuntimeError, NotImplementedError):  # a device without a product of integers
        return (rows.double() @ weights.double()).to(torch.int32)


def _bytes(tensor: Tensor, start: int, end: int) -> Tensor:
    """Return a range of a tensor's bytes, in the order of its shape; only this range is copied, if any."""
    width = tensor.element_size()
    first, last = start // width, math.ceil(end / width)
    if tensor.is_contiguous():
        return tensor.view(-1)[first:last].view(torch.int8)
    while tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    row = math.prod(tensor.shape[1:])
    above = first // row
    part = tensor[above : math.ceil(last / row)].reshape(-1)
    return part[first - above * row : last - above * row].contiguous().view(torch.int8)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _fetch(hashes: list[Tensor]) -> Iterator[bytes]:
    """Bring hashes to the host: one transfer a device and type, in place of one a tensor."""
    groups: dict[Any, list[int]] = {}
    for n, part in enumerate(hashes):
        groups.setdefault((part.device, part.dtype), []).append(n)
    fetched: dict[int, bytes] = {}
    for members in groups.values():
        together = (
            torch.cat([hashes[n].reshape(-1) for n in members]).cpu().view(torch.uint8).numpy().tobytes()
        )
        ends = list(accumulate((_size(hashes[n]) for n in members), initial=0))
        fetched |= {n: together[a:b] for n, (a, b) in zip(members, pairwise(ends), strict=True)}
    return (fetched[n] for n in range(len(hashes)))


@cache
def _weights(device: torch.device) -> Tensor:
    """Return the weights, [ROW, COLUMNS] int8: the same in every version of torch and on every device."""
    stream = hashlib.shake_256(b"dit_lens fingerprint").digest(ROW * COLUMNS)
    with torch.inference_mode(False):
        return torch.frombuffer(bytearray(stream), dtype=torch.int8).view(ROW, COLUMNS).to(device)


__all__ = ["Checksums", "checksum", "checksums"]
