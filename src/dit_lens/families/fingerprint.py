"""Exact checksums of tensors where they rest: every byte counts, and a CPU and a GPU give the same value.

The bytes of a tensor are taken in the order of its shape (whatever its strides), as rows of `ROW` signed bytes x, the last
filled up with zeros. Every row has `COLUMNS` sums h = sum_i w_i x_i with fixed pseudorandom weights w in [-128, 127]; a
tensor's checksum is the sha256 of its number type, its shape and the sums of all its rows. The sums are exact 32-bit
integers, so that no order of summing matters, and one matrix product of integers makes them on a CPU or a GPU. No row holds
bytes of two tensors, so that nothing can move from one to the next unseen. A tensor of up to `SMALL` bytes is hashed by its
bytes themselves.

For any two rows that differ, at most one value of one weight makes a sum equal; so all sums are equal with a probability
of at most 2^-128 over the weights (multilinear hashing; Carter and Wegman 1979). The weights are public: it is not meant
against someone who looks for a collision. Nothing is kept from call to call: a `.data` write leaves no trace.

What counts for speed, in a model of some hundred small tensors, is the number of calls: tensors of one device and number
type are laid into one buffer by one `torch.cat`, and the buffer is small enough to be in the cache when it is hashed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

ROW = 1 << 14
"""Bytes that are hashed together: 2^14 products of at most 2^14 do not overflow 32 bits."""

COLUMNS = 16
"""Sums of each row."""

BLOCK = 256
"""Rows of a large tensor that go through one product (4 MiB)."""

GATHERED = 64
"""Rows of smaller tensors that go through one product (1 MiB, which stays in a core's cache)."""

FEWEST = 32
"""Rows that a GPU's product of integers takes at least."""

SMALL = 1 << 12
"""Bytes up to which the bytes themselves stand in place of their sums."""

Part = tuple[int, int, int]
"""Position of a tensor, and the first and last row of some sums that belong to it."""


class Checksums:
    """Checksums of tensors, each computed once; one object serves one look at a model.

    Args:
        tensors: hashed together, which is faster than one by one; those that are not plain blocks of numbers are left out.

    Attributes:
        known: checksums by the identity of the tensor, which this object keeps alive.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self.known: dict[int, str] = {}
        self._alive: list[Tensor] = []
        self._add(list({id(t): t for t in tensors if _is_plain(t) and not t.is_meta}.values()))

    def __call__(self, tensor: Tensor) -> Any:
        """Return a block of numbers as plain data: its checksum, or its type and shape where it has no values."""
        if tensor.is_meta:
            return {"@meta": str(tensor.dtype), "shape": list(tensor.shape)}
        if id(tensor) not in self.known:
            self._add([tensor])
        return self.known[id(tensor)]

    def _add(self, tensors: list[Tensor]) -> None:
        self.known.update(zip(map(id, tensors), checksums(tensors), strict=True))
        self._alive += tensors


def checksum(tensor: Tensor) -> str:
    """Return the checksum of one tensor, 32 hex digits."""
    return checksums([tensor])[0]


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[str]:
    """Return the checksums of tensors of numbers, each 32 hex digits.

    Nothing waits for a GPU until all is on its way.
    """
    plain = [t.resolve_conj().resolve_neg() if t.is_complex() or t.is_neg() else t for t in tensors]
    groups: dict[Any, tuple[list[int], list[int]]] = {}  # positions of small and of other tensors
    for n, tensor in enumerate(plain):
        group = groups.setdefault((tensor.device, tensor.dtype), ([], []))
        group[tensor.nbytes > SMALL].append(n)
    small: list[tuple[list[int], Tensor]] = []
    hashed: list[tuple[list[Part], Tensor]] = []
    for few_bytes, others in groups.values():
        if few_bytes:
            small.append((few_bytes, torch.cat([_flat(plain[n]) for n in few_bytes])))
        if others:
            hashed += _hash_group(plain, others)
    bodies: list[list[bytes]] = [[] for _ in plain]
    for positions, body in zip((p for p, _ in small), _fetch([t for _, t in small]), strict=True):
        ends = accumulate((plain[n].nbytes for n in positions), initial=0)
        for n, (start, end) in zip(positions, pairwise(ends), strict=True):
            bodies[n].append(body[start:end])
    width = 4 * COLUMNS
    for parts, body in zip((p for p, _ in hashed), _fetch([t for _, t in hashed]), strict=True):
        for n, start, end in parts:
            bodies[n].append(body[start * width : end * width])
    sha256 = hashlib.sha256
    return [
        sha256(b"".join((_header(tensor.dtype, tensor.shape), *body))).hexdigest()[:32]
        for tensor, body in zip(plain, bodies, strict=True)
    ]


@lru_cache(maxsize=4096)
def _header(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{dtype} {list(shape)} ".encode()


def _is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor is a block of numbers, and nothing else."""
    kind = type(tensor)
    plain = kind is Tensor or kind is torch.nn.Parameter or kind is torch.nn.Buffer
    return plain and tensor.layout is torch.strided and not tensor.is_quantized


def _hash_group(tensors: Sequence[Tensor], positions: list[int]) -> Iterator[tuple[list[Part], Tensor]]:
    """Hash tensors of one device and number type.

    A long stretch of a tensor is hashed where it is; the rest of it, or all of a shorter one, is laid beside others.

    Yields:
        Which rows of some sums belong to which tensor, and the sums, [row, COLUMNS]; a tensor's in the order of its bytes.
    """
    first = tensors[positions[0]]
    gathered = _Gathered(first.device, first.dtype)
    for n in positions:
        tensor = tensors[n]
        start, size = 0, tensor.nbytes
        while size - start >= GATHERED * ROW:
            rows = min(BLOCK, (size - start) // ROW)
            elements = _elements(tensor, start, start + rows * ROW)
            yield [(n, 0, rows)], _hash_rows(elements.view(torch.int8).view(rows, ROW))
            start += rows * ROW
        if start == size:
            continue
        if not gathered.has_room(size - start):
            yield gathered.hash()
        gathered.add(n, _elements(tensor, start, size), size - start)
    if gathered.rows:
        yield gathered.hash()


class _Gathered:
    """Tensors of one device and number type that are hashed together, each in rows of its own."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._bytes = torch.empty(GATHERED * ROW, dtype=torch.int8, device=device)
        self._elements = self._bytes.view(dtype)
        self._zeros = torch.zeros(ROW, dtype=torch.int8, device=device).view(dtype)
        self._fewest = 1 if device.type == "cpu" else FEWEST
        self._members: list[Tensor] = []
        self._parts: list[Part] = []
        self.rows = 0

    def has_room(self, size: int) -> bool:
        """Say whether so many bytes more have room."""
        return self.rows + math.ceil(size / ROW) <= GATHERED

    def add(self, position: int, elements: Tensor, size: int) -> None:
        """Add the elements of a tensor, `size` bytes."""
        rows = math.ceil(size / ROW)
        self._members.append(elements)
        if missing := rows * ROW - size:
            self._members.append(self._zeros[: missing // self._zeros.element_size()])
        self._parts.append((position, self.rows, self.rows + rows))
        self.rows += rows

    def hash(self) -> tuple[list[Part], Tensor]:
        """Return the sums of all that was added, and whose they are; begin anew."""
        used = self.rows * ROW // self._elements.element_size()
        torch.cat(self._members, out=self._elements[:used])
        sums = _hash_rows(self._bytes.view(GATHERED, ROW)[: max(self.rows, self._fewest)])
        parts, self._parts, self._members, self.rows = self._parts, [], [], 0
        return parts, sums


def _hash_rows(rows: Tensor) -> Tensor:
    """Return the sums of rows of bytes times the weights, [row, COLUMNS] int32: exact, in whatever order they are summed."""
    weights = _weights(rows.device)
    try:
        return torch._int_mm(rows, weights)
    except (RuntimeError, NotImplementedError):  # a device without a product of integers
        return (rows.double() @ weights.double()).to(torch.int32)


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 1 else tensor.reshape(-1)


def _elements(tensor: Tensor, start: int, end: int) -> Tensor:
    """Return the elements in a range of a tensor's bytes, in the order of its shape; only this range is copied, if any."""
    if start == 0 and end == tensor.nbytes and tensor.is_contiguous():
        return _flat(tensor)
    first, last = start // tensor.element_size(), end // tensor.element_size()
    if tensor.is_contiguous():
        return tensor.view(-1)[first:last]
    while tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    row = math.prod(tensor.shape[1:])
    above = first // row
    part = tensor[above : math.ceil(last / row)].reshape(-1)
    return part[first - above * row : last - above * row].contiguous()


def _fetch(tensors: list[Tensor]) -> list[bytes]:
    """Bring tensors to the host, as bytes: one transfer a device and type, in place of one a tensor."""
    groups: dict[Any, list[int]] = {}
    for n, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(n)
    fetched: dict[int, bytes] = {}
    for members in groups.values():
        together = torch.cat([tensors[n].reshape(-1) for n in members]).cpu()
        body = together.view(torch.uint8).numpy().tobytes()
        ends = accumulate((tensors[n].nbytes for n in members), initial=0)
        fetched |= {n: body[start:end] for n, (start, end) in zip(members, pairwise(ends), strict=True)}
    return [fetched[n] for n in range(len(tensors))]


@cache
def _weights(device: torch.device) -> Tensor:
    """Return the weights, [ROW, COLUMNS] int8: the same in every version of torch and on every device."""
    stream = hashlib.shake_256(b"dit_lens fingerprint").digest(ROW * COLUMNS)
    with torch.inference_mode(False):
        return torch.frombuffer(bytearray(stream), dtype=torch.int8).view(ROW, COLUMNS).to(device)


__all__ = ["Checksums", "checksum", "checksums"]
