"""Our shards against zarr-python: what we write it reads, what it writes we read."""

import json
import math

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dit_lens.errors import StoreError
from dit_lens.store import Variable, files, metadata, shard
from dit_lens.store.bfloat16 import widen

DIMS = ("step", "layer", "frame", "y", "x", "channel")
shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


def write(folder, variable, key, values):
    """One unit of a lone array in `folder`, the way the writer does it."""
    size = math.prod(variable.inner_shape)
    if variable.compressed:
        buffers = shard.compressed_buffers(values, size, variable.sharded)
    else:
        buffers = shard.raw_buffers(values, size * values.itemsize, variable.sharded)
    files.write_file(
        str(folder / "zarr.json"), metadata.array_bytes(metadata.array_json(variable, {})), False
    )
    nbytes = files.write_partial(str(folder / variable.chunk_name(key)), buffers)
    files.publish([str(folder / variable.chunk_name(key))], durable=False)
    return nbytes


def state(shape, dtype, encoding=None):
    dims = ("step", "layer", *DIMS[len(DIMS) - len(shape) :])
    return Variable("h", dims, (2, 3, *shape), dtype, "state", encoding=encoding)


@settings(deadline=None, max_examples=30)
@given(
    data=st.data(), shape=shapes, dtype=st.sampled_from(["float32", "float16", "float64", "uint8", "int64"])
)
def test_raw_shards_read_equal_in_zarr(tmp_path_factory, data, shape, dtype):
    folder, variable = tmp_path_factory.mktemp("shard"), state(shape, dtype)
    values = data.draw(arrays(dtype, shape))
    nbytes = write(folder, variable, (1, 2), values)
    rows = math.prod(shape[:-2])
    assert nbytes == values.nbytes + 16 * rows + 4
    assert (folder / variable.chunk_name((1, 2))).read_bytes()[: values.nbytes] == values.tobytes()
    seen = zarr.open_array(folder, mode="r")[1, 2]
    assert seen.tobytes() == values.tobytes()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), shape=shapes)
def test_compressed_shards_read_equal_in_zarr_and_by_us(tmp_path_factory, data, shape):
    folder, variable = tmp_path_factory.mktemp("shard"), state(shape, "bfloat16")
    codes = data.draw(arrays(np.uint16, shape))
    write(folder, variable, (0, 1), codes)
    seen = zarr.open_array(folder, mode="r")[0, 1]
    assert seen.tobytes() == widen(codes).tobytes()
    size = math.prod(variable.inner_shape)
    ours = shard.read_compressed(str(folder / variable.chunk_name((0, 1))), shape, size, None)
    assert ours.tobytes() == widen(codes).tobytes()


@pytest.mark.parametrize("encoding", ["float32", "codes"])
def test_zarr_reads_single_tokens(tmp_path, encoding):
    variable = state((4, 6, 5, 8), "bfloat16", encoding)
    codes = np.random.default_rng(0).integers(0, 2**15, (4, 6, 5, 8), np.uint16)
    write(tmp_path, variable, (1, 0), codes)
    seen = zarr.open_array(tmp_path, mode="r")[1, 0, 3, 2, 1]
    np.testing.assert_array_equal(seen, codes[3, 2, 1] if encoding == "codes" else widen(codes)[3, 2, 1])


def test_many_chunks_and_more_buffers_than_the_kernel_takes(tmp_path):
    variable = state((700, 2, 3, 1), "bfloat16")
    codes = np.random.default_rng(0).integers(0, 2**16, variable.unit_shape, np.uint16)
    write(tmp_path, variable, (0, 0), codes)
    assert zarr.open_array(tmp_path, mode="r")[0, 0].tobytes() == widen(codes).tobytes()


def test_we_read_what_zarr_wrote(tmp_path):
    variable = state((2, 3, 4, 5), "bfloat16")
    files.write_file(
        str(tmp_path / "zarr.json"), json.dumps(metadata.array_json(variable, {})).encode(), False
    )
    values = widen(np.random.default_rng(0).integers(0, 2**15, (2, 3, 4, 5), np.uint16))
    zarr.open_array(tmp_path, mode="r+")[1, 2] = values
    path = str(tmp_path / variable.chunk_name((1, 2)))
    assert shard.read_compressed(path, values.shape, 20, None).tobytes() == values.tobytes()
    some = shard.read_compressed(path, values.shape, 20, [5])
    assert some[1, 2].tobytes() == values[1, 2].tobytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b[:2]])
def test_a_damaged_index_is_named(tmp_path, damage):
    variable = state((2, 3, 4, 5), "bfloat16")
    write(tmp_path, variable, (0, 0), np.ones((2, 3, 4, 5), np.uint16))
    path = tmp_path / variable.chunk_name((0, 0))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"c\.0\.0\.0\.0\.0\.0: no whole index of 6 chunks"):
        shard.read_compressed(str(path), (2, 3, 4, 5), 20, None)


def test_a_damaged_chunk_is_named(tmp_path):
    variable = state((2, 3, 4, 5), "bfloat16")
    write(tmp_path, variable, (0, 0), np.ones((2, 3, 4, 5), np.uint16))
    path = tmp_path / variable.chunk_name((0, 0))
    path.write_bytes(bytes(12) + path.read_bytes()[12:])
    with pytest.raises(StoreError, match=r"a compressed chunk of .* is damaged"):
        shard.read_compressed(str(path), (2, 3, 4, 5), 20, None)
