import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_lens.errors import StoreError
from dit_lens.store import canonical_json, identity_hash, run_name, versions

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
plain = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_the_order_of_keys_does_not_name_a_run(identity):
    shuffled = dict(reversed(identity.items()))
    assert canonical_json(identity) == canonical_json(shuffled)
    assert re.fullmatch(r"maze-[0-9a-f]{10}", run_name(identity, "maze"))
    assert run_name(identity, "maze") == run_name(shuffled, "maze")


def test_any_difference_gives_another_name():
    base = {"seed": 1, "lora": None, "layers": [1, 2]}
    others = [base | {"seed": 2}, base | {"layers": [2, 1]}, base | {"lora": ""}, base | {"more": None}]
    assert len({run_name(identity, "r") for identity in [base, *others]}) == 5


def test_a_name_does_not_change_between_versions_of_this_code():
    assert run_name({"seed": 7, "prompt": "löse", "sigma": [1.0, 0.5]}, "maze") == "maze-5a152bbcb8"


def test_tuples_and_numpy_are_plain():
    given = {"a": (1, np.int64(2)), "b": np.float32(0.5), "c": np.arange(2)}
    assert canonical_json(given) == '{"a":[1,2],"b":0.5,"c":[0,1]}'


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"pipeline": {"device": Path("/x")}}, r"manifest\.pipeline\.device is a PosixPath"),
        ({"steps": {1: 2}}, r"manifest\.steps has the key 1"),
    ],
)
def test_what_is_not_plain_is_named(bad, where):
    with pytest.raises(StoreError, match=where):
        run_name(bad, "r")


def test_infinities_and_half_surrogates_are_held_as_text():
    identity = {
        "lambda_min_clipped": float("-inf"),
        "a": [float("inf"), float("nan")],
        "prompt": "cat \udc80",
    }
    text = canonical_json(identity)
    assert '"a":["Infinity","NaN"],"lambda_min_clipped":"-Infinity"' in text
    assert run_name(identity, "r") != run_name(identity | {"lambda_min_clipped": float("inf")}, "r")
    assert run_name(identity, "r") != run_name(identity | {"prompt": "cat \udc81"}, "r")


def test_only_the_identity_counts_where_there_is_one():
    assert identity_hash({"identity": {"seed": 1}, "host": "a"}) == identity_hash({"identity": {"seed": 1}})
    assert identity_hash({"seed": 1}) == identity_hash({"identity": {"seed": 1}})


def test_versions_are_of_what_is_installed():
    found = versions(["zarr", "no-such-package"])
    assert set(found) == {"python", "zarr"}
