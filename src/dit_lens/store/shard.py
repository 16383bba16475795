"""One unit, one zarr v3 `sharding_indexed` file: inner chunks in C order, where each lies, and a crc32c.

Uncompressed inner chunks that are contiguous in C order make the file *the raw tensor* followed by its index,
so it is written without a copy and read back as bytes; zarr-python's own codec takes three times the CPU
time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numcodecs import blosc

from dit_lens.errors import StoreError
from dit_lens.store.bfloat16 import widen_into

_CLEVEL = 5
BLOSC = {"typesize": 4, "cname": "lz4", "clevel": _CLEVEL, "shuffle": "bitshuffle", "blocksize": 0}
_WIDEN_AT_ONCE = 1 << 19  # codes widened together: few numpy calls, and never a second whole tensor in memory


def raw_buffers(values: np.ndarray, inner_bytes: int, sharded: bool) -> list[Any]:
    """Return what an uncompressed unit's file holds: the values' own memory and, in a shard, the index.

    Args:
        values: C-contiguous, any shape.
        inner_bytes: Size of one inner chunk.
        sharded: Whether the file is a shard or one plain chunk.
    """
    data = values.reshape(-1).view(np.uint8)
    return [data, _contiguous_index(data.nbytes // inner_bytes, inner_bytes)] if sharded else [data]


def compressed_buffers(codes: np.ndarray, inner_size: int, sharded: bool) -> Iterator[bytes]:
    """Yield what a compressed unit's file holds: bfloat16 codes widened to float32, a blosc chunk at a time.

    Args:
        codes: uint16, C-contiguous, any shape.
        inner_size: Number of values in one inner chunk.
        sharded: Whether the file is a shard, which ends with the index, or one plain chunk.
    """
    rows = codes.reshape(-1, inner_size)
    step = min(len(rows), max(1, _WIDEN_AT_ONCE // inner_size))
    wide = np.empty((step, inner_size), np.float32)
    lengths = []
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        widen_into(part, wide[: len(part)])
        for row in wide[: len(part)]:
            chunk = blosc.compress(row, b"lz4", _CLEVEL, blosc.BITSHUFFLE)
            lengths.append(len(chunk))
            yield chunk
    if sharded:
        yield index_bytes(lengths)


def index_bytes(lengths: Sequence[int]) -> bytes:
    """Return the index of chunks that lie end to end: (offset, length) as u64 LE each, then a crc32c."""
    table = np.empty((len(lengths), 2), "<u8")
    table[:, 1] = lengths
    table[:, 0] = np.concatenate(([0], np.cumsum(table[:-1, 1])))
    data = table.tobytes()
    return data + google_crc32c.value(data).to_bytes(4, "little")


def check_contiguous(file: BinaryIO, count: int, inner_bytes: int, label: str) -> None:
    """Refuse a shard whose uncompressed chunks do not lie end to end in order, as `raw_buffers` writes them.

    Raises:
        StoreError: another program has written it anew, and has put its chunks elsewhere.
    """
    expected = _contiguous_index(count, inner_bytes)
    file.seek(count * inner_bytes)
    if file.read() != expected:
        raise StoreError(
            f"{label}: its index is damaged, or another program has written the file anew with its chunks in another order; "
            "read the run with zarr or xarray, or remove its folder and make it again"
        )
    file.seek(0)


@lru_cache(maxsize=64)
def _contiguous_index(count: int, inner_bytes: int) -> bytes:
    return index_bytes([inner_bytes] * count)


def index_size(count: int) -> int:
    """Return the size in bytes of the index of `count` inner chunks."""
    return 16 * count + 4


def read_index(file: BinaryIO, count: int, label: str) -> np.ndarray:
    """Return the index at a shard's end: (chunk, 2) offsets and lengths.

    Raises:
        StoreError: If the file is too short, or the index fails its checksum.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - index_size(count)))
    data = file.read()
    whole = len(data) == index_size(count)
    if not whole or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise StoreError(
            f"{label}: no whole index of {count} chunks at the end of its {size} bytes; the file is damaged"
        )
    return np.frombuffer(data[:-4], "<u8").reshape(count, 2)


def read_compressed(
    path: str, shape: tuple[int, ...], inner_size: int, wanted: Iterable[int] | None
) -> np.ndarray:
    """Read a compressed shard into a new float32 array.

    Args:
        path: The shard's file.
        shape: Shape of the unit.
        inner_size: Number of values in one inner chunk.
        wanted: Numbers of the inner chunks to read, all if None; the rest of the array is left as it comes,
            and since its memory is never touched, it costs nothing.
    """
    out = np.empty((math.prod(shape) // inner_size, inner_size), np.float32)
    with open(path, "rb") as file:
        table = read_index(file, len(out), path)
        for row in range(len(out)) if wanted is None else wanted:
            offset, length = (int(number) for number in table[row])
            file.seek(offset)
            decompress(file.read(length), out[row], path)
    return out.reshape(shape)


def decompress(chunk: bytes, out: np.ndarray, label: str) -> None:
    """Fill `out` from one blosc chunk.

    Raises:
        StoreError: If the chunk is not whole, or holds another number of bytes.
    """
    try:
        blosc.decompress(chunk, out)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{label}: a compressed chunk of {len(chunk)} bytes is damaged ({error})") from error
