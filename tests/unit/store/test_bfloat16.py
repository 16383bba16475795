import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dit_lens.errors import StoreError
from dit_lens.store import bfloat16

ALL = np.arange(2**16, dtype=np.uint16)


def test_widening_and_narrowing_is_exact_for_every_code():
    np.testing.assert_array_equal(bfloat16.narrow(bfloat16.widen(ALL)), ALL)
    assert bfloat16.widen(np.array([0x3F80, 0xC000, 0x8000], np.uint16)).tolist() == [1.0, -2.0, -0.0]


def test_float16_is_exact_where_it_has_the_bits():
    wide = bfloat16.widen(ALL)
    exact = (np.abs(wide) >= 2.0**-14) & (np.abs(wide) <= 65504)
    np.testing.assert_array_equal(bfloat16.to_float16(ALL[exact]).astype("float32"), wide[exact])
    tiny = np.abs(wide) < 2.0**-14
    assert np.abs(bfloat16.to_float16(ALL[tiny]).astype("float64") - wide[tiny]).max() < 3e-8


def test_float16_keeps_nan_and_inf_and_refuses_what_is_out_of_range():
    kept = bfloat16.to_float16(np.array([0x7F80, 0xFF80, 0x7FC1, 0x7F81], np.uint16))
    assert np.isinf(kept[:2]).all() and np.isnan(kept[2:]).all()
    with pytest.raises(StoreError, match=r"6\.554e\+04 does not fit float16.*'codes'"):
        bfloat16.to_float16(np.array([0x3F80, 0x4780], np.uint16))


@given(arrays(np.uint16, st.integers(0, 40)))
def test_survey_of_codes_counts_as_numpy_does(codes):
    wide = bfloat16.widen(codes)
    expected = (google_crc32c.value(codes.tobytes()), int(np.isnan(wide).sum()), int(np.isinf(wide).sum()))
    assert bfloat16.survey(codes, bfloat16=True) == expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_survey_of_floats_runs_over_many_blocks(dtype):
    values = np.zeros((3, 700_001), dtype)
    values[0, 0], values[1, 5], values[2, -1] = np.nan, -np.inf, np.inf
    assert bfloat16.survey(values, bfloat16=False) == (google_crc32c.value(values.tobytes()), 1, 2)


def test_survey_of_integers_has_nothing_to_count():
    assert bfloat16.survey(np.full(4, 0x7F80, np.uint16), bfloat16=False)[1:] == (0, 0)


@given(st.integers(1, 30), st.booleans())
def test_widening_into_an_array_is_widening(size, strided):
    codes = ALL[::2183][:size]
    out = np.zeros((size, 2), np.float32)[:, 0] if strided else np.zeros(size, np.float32)
    bfloat16.widen_into(codes[: len(out)], out[: len(codes)])
    assert out[: len(codes)].tobytes() == bfloat16.widen(codes).tobytes()
