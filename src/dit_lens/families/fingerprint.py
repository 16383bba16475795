"""Exact checksums of tensors where they rest: every byte counts, and a CPU and a GPU give the same value.

The bytes of a tensor are taken in the order of its shape (whatever its strides), as rows of `ROW` signed bytes x, the last
filled up with zeros. Every row has `COLUMNS` sums h = sum_i w_i x_i with fixed pseudorandom weights w in [-128, 127]; a
tensor's checksum is the sha256 of its number type, its shape and the sums of all its rows. The sums are exact 32-bit
integers, so that no order of summing matters, and one matrix product of integers makes them on a CPU or a GPU. A CPU without
instructions for such a product takes many times as long for it; there, products of floats make the same sums, part by part,
each so short that a float holds it exactly (`_by_floats`).

For any two rows that differ, at most one value of one weight makes a sum equal; so all sums are equal with a probability
of at most 2^-128 over the weights (multilinear hashing; Carter and Wegman 1979). The weights are public: it is not meant
against someone who looks for a collision. Nothing is kept from call to call: a `.data` write leaves no trace.

A model of some hundred small tensors takes as many calls. So the tensors of a model have one checksum (`Gathering`): those
of one number type are laid end to end, a mebibyte at a time, which is hashed while it is in the cache. The number type and
shape of every tensor, in order, stand before the sums, and say where each of them ends.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from dit_lens.plan.arrays import is_freed, tensor_types

ROW = 1 << 14
"""Bytes that are hashed together: 2^14 products of at most 2^14 do not overflow 32 bits."""

COLUMNS = 16
"""Sums of each row."""

BLOCK = 256
"""Rows of a tensor that go through one product (4 MiB)."""

CHUNK = 64 * ROW
"""Bytes of small tensors that are laid end to end (1 MiB); a tensor of as many bytes is hashed where it rests."""

PART = 1 << 10
"""Bytes whose sum a float holds exactly: 2^10 products of at most 2^14 are at most 2^24."""

FEWEST = 32
"""Rows that a GPU's product of integers takes at least."""

_PRECISION = attrgetter("fp32_precision", "mkldnn.matmul.fp32_precision")
_TYPES = tensor_types()


class Gathering:
    """Tensors that are hashed together, in the order in which they were taken.

    Attributes:
        tensors: that were taken; None stands for a parameter that a module does not have.
        meta: whether a tensor without values was refused.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor | None] = []
        self.meta = False

    def take(self, tensors: Iterable[Tensor | None]) -> int | None:
        """Take tensors, and return the position of the first; take none and return None where one is no block of numbers."""
        position = len(self.tensors)
        strided = torch.strided
        for t in tensors:
            if t is not None and (
                type(t) not in _TYPES
                or t.layout is not strided
                or t.is_meta
                or t.is_quantized
                or t.is_nested
                or is_freed(t)
            ):
                self.meta |= t.is_meta
                del self.tensors[position:]
                return None
            self.tensors.append(t)
        return position


@torch.no_grad()
def joint_checksums(gatherings: Sequence[Gathering]) -> list[str]:
    """Return the checksum of the tensors of each gathering, 64 hex digits.

    Nothing waits for a GPU until all is on its way.
    """
    large = {id(t): t for one in gatherings for t in one.tensors if t is not None and t.nbytes >= CHUNK}
    sums: list[Tensor] = []
    ends = [0]
    for one in gatherings:
        sums += _chunks([t for t in one.tensors if t is not None and t.nbytes < CHUNK])
        ends.append(len(sums))
    large_sums = dict(zip(large, checksums(list(large.values())), strict=True))
    bodies = _fetch(sums)
    names = []
    for one, (start, end) in zip(gatherings, pairwise(ends), strict=True):
        table = tuple([None if t is None else (t.dtype, t.shape) for t in one.tensors])
        apart = [large_sums[id(t)] for t in one.tensors if id(t) in large_sums] if large_sums else []
        text = f"{_table(table)} {' '.join(apart)} ".encode()
        names.append(hashlib.sha256(text + b"".join(bodies[start:end])).hexdigest())
    return names


def checksum(tensor: Tensor) -> str:
    """Return the checksum of one tensor, 32 hex digits."""
    return checksums([tensor])[0]


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[str]:
    """Return the checksums of tensors of numbers, each 32 hex digits.

    Nothing waits for a GPU until all is on its way.
    """
    sums: list[Tensor] = []
    ends = [0]
    for tensor in tensors:
        sums += _blocks(_resolved(tensor))
        ends.append(len(sums))
    bodies = _fetch(sums)
    names = []
    for tensor, (start, end) in zip(tensors, pairwise(ends), strict=True):
        text = f"{tensor.dtype} {list(tensor.shape)} ".encode()
        names.append(hashlib.sha256(text + b"".join(bodies[start:end])).hexdigest()[:32])
    return names


def tensor_data(tensor: Tensor) -> Any:
    """Return a block of numbers as plain data: its checksum, or its type and shape where it has no values."""
    if tensor.is_meta:
        return {"@meta": str(tensor.dtype), "shape": list(tensor.shape)}
    return checksum(tensor)


@lru_cache(maxsize=64)
def _table(table: tuple[tuple[torch.dtype, torch.Size] | None, ...]) -> str:
    """Return the hash of number types and shapes; it is slow to write them out."""
    text = repr([None if one is None else (str(one[0]), tuple(one[1])) for one in table])
    return hashlib.sha256(text.encode()).hexdigest()


def _resolved(tensor: Tensor) -> Tensor:
    """Return a tensor whose numbers stand in memory as they are."""
    return tensor.resolve_conj().resolve_neg() if tensor.is_complex() or tensor.is_neg() else tensor


def _chunks(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Hash small tensors laid end to end, those of each number type by themselves.

    Where a chunk ends depends on shapes and number types alone, not on where the tensors rest.

    Yields:
        The sums of one chunk, [row, COLUMNS].
    """
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for members in by_type.values():
        start = size = 0
        for n, tensor in enumerate(members):
            if size + tensor.nbytes > CHUNK:
                yield _hash_chunk(members[start:n], size)
                start, size = n, 0
            size += tensor.nbytes
        if size:
            yield _hash_chunk(members[start:], size)


def _hash_chunk(tensors: list[Tensor], size: int) -> Tensor:
    """Return the sums of tensors of one number type that have `size` bytes together, [row, COLUMNS]."""
    device = tensors[0].device
    if any([t.device != device or t.is_neg() or t.is_conj() for t in tensors]):
        tensors = [_resolved(t.to(device)) for t in tensors]
    rows = math.ceil(size / ROW)
    padded = rows if device.type == "cpu" else max(rows, FEWEST)
    if missing := padded * ROW - size:
        tensors.append(_zeros(device)[:missing].view(tensors[0].dtype))
    flat = torch._C._nn.flatten_dense_tensors(tensors).view(torch.int8)
    return _hash_rows(flat.view(padded, ROW))[:rows]


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Hash a tensor where it rests.

    Yields:
        The sums of some of its rows, [row, COLUMNS], in order.
    """
    size, step = tensor.nbytes, BLOCK * ROW
    whole = size // ROW * ROW
    for start in range(0, whole, step):
        end = min(whole, start + step)
        if end - start < FEWEST * ROW:  # the last rows, with the rest
            whole = start
            break
        yield _hash_rows(_bytes(tensor, start, end).view(-1, ROW))
    if size > whole:
        yield _hash_chunk([_bytes(tensor, whole, size)], size - whole)


def _hash_rows(rows: Tensor) -> Tensor:
    """Return the sums of rows of bytes times the weights, [row, COLUMNS] int32: exact, in whatever order they are summed."""
    if rows.device.type == "cpu":
        return _by_floats(rows) if _floats_are_exact() and _floats_are_quicker() else _by_integers(rows)
    try:
        return _by_integers(rows)
    except (RuntimeError, NotImplementedError):  # a device without a product of integers
        return _hash_rows(rows.cpu()).to(rows.device)


def _by_integers(rows: Tensor) -> Tensor:
    return torch._int_mm(rows, _weights(rows.device))


def _by_floats(rows: Tensor) -> Tensor:
    """Do the same on a CPU, by a product of floats for each `PART` bytes of a row."""
    with torch.autocast("cpu", enabled=False):
        parts = rows.view(len(rows), -1, PART).transpose(0, 1).to(torch.float32)
        return torch.bmm(parts, _float_weights()).sum(0, dtype=torch.float64).to(torch.int32)


def _floats_are_exact() -> bool:
    """Say whether torch multiplies floats on a CPU as they are, and not rounded to fewer digits first."""
    return {*_PRECISION(torch.backends)} <= {"none", "ieee"}


@cache
def _floats_are_quicker() -> bool:
    """Try both ways on this CPU."""
    rows = _weights(torch.device("cpu")).view(COLUMNS, ROW).repeat(4, 1)
    integers, floats = _by_integers(rows), _by_floats(rows)
    return torch.equal(integers, floats) and _seconds(_by_floats, rows) < _seconds(_by_integers, rows)


def _seconds(product: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    """Return the shortest time of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(rows)
        times.append(time.perf_counter() - start)
    return min(times)


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


def _fetch(tensors: list[Tensor]) -> list[bytes]:
    """Bring sums to the host, as bytes: one transfer a device, in place of one a tensor."""
    groups: dict[torch.device, list[int]] = {}
    for n, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, []).append(n)
    fetched: dict[int, bytes] = {}
    for members in groups.values():
        body = torch.cat([tensors[n] for n in members]).cpu().numpy().tobytes()
        ends = accumulate((tensors[n].nbytes for n in members), initial=0)
        fetched |= {n: body[start:end] for n, (start, end) in zip(members, pairwise(ends), strict=True)}
    return [fetched[n] for n in range(len(tensors))]


@cache
def _weights(device: torch.device) -> Tensor:
    """Return the weights, [ROW, COLUMNS] int8: the same in every version of torch and on every device."""
    stream = hashlib.shake_256(b"dit_lens fingerprint").digest(ROW * COLUMNS)
    with torch.inference_mode(False):
        return torch.frombuffer(bytearray(stream), dtype=torch.int8).view(ROW, COLUMNS).to(device)


@cache
def _float_weights() -> Tensor:
    """Return the weights by parts of a row, [part, PART, COLUMNS] float32."""
    with torch.inference_mode(False):
        return _weights(torch.device("cpu")).view(-1, PART, COLUMNS).to(torch.float32)


@cache
def _zeros(device: torch.device) -> Tensor:
    """Return as many zeros as are ever missing at the end of a chunk."""
    with torch.inference_mode(False):
        return torch.zeros(FEWEST * ROW, dtype=torch.int8, device=device)


__all__ = ["Gathering", "checksum", "checksums", "joint_checksums", "tensor_data"]
