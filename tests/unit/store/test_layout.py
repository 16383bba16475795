import pytest

from dit_lens.errors import StoreError
from dit_lens.store import Variable

STATE = ("step", "branch", "layer", "frame", "y", "x", "channel")


def test_a_state_is_cut_along_step_branch_layer_into_rows_of_tokens():
    v = Variable("hidden", STATE, (20, 2, 12, 4, 6, 5, 8), unit="state")
    assert v.unit_dims == ("step", "branch", "layer")
    assert v.unit_shape == (4, 6, 5, 8)
    assert v.chunk_shape == (1, 1, 1, 4, 6, 5, 8)
    assert v.inner_shape == (1, 1, 1, 1, 1, 5, 8)
    assert v.chunk_name(v.key({"layer": 11, "step": 3, "branch": 0})) == "c.3.0.11.0.0.0.0"


def test_a_leading_sample_is_not_cut():
    v = Variable("hidden", ("sample", *STATE), (3, 20, 2, 12, 4, 6, 5, 8), unit="state")
    assert v.unit_shape == (3, 4, 6, 5, 8)
    assert v.inner_shape == (1, 1, 1, 1, 1, 1, 5, 8)
    assert v.chunk_name((3, 0, 11)) == "c.0.3.0.11.0.0.0.0"


def test_a_step_and_a_run_unit_are_one_chunk():
    x0 = Variable("x0", ("step", "frame", "latent_y", "latent_x", "latent_channel"), (9, 2, 4, 4, 16))
    video = Variable("video", ("time", "height", "width", "rgb"), (5, 8, 8, 3), "uint8", "run")
    assert (x0.unit_shape, x0.inner_shape, x0.sharded) == ((2, 4, 4, 16), (1, 2, 4, 4, 16), False)
    assert (video.unit_dims, video.chunk_name(())) == ((), "c.0.0.0.0")


@pytest.mark.parametrize(
    ("encoding", "stored", "compressed"),
    [(None, "float32", True), ("codes", "uint16", False), ("float16", "float16", False)],
)
def test_bfloat16_is_stored_as_what_numpy_has(encoding, stored, compressed):
    v = Variable("h", ("step", "channel"), (2, 3), "bfloat16", encoding=encoding)
    assert (v.stored_dtype, v.value_dtype, v.compressed) == (stored, "uint16", compressed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dims": ("step", "x", "y"), "shape": (2, 3, 4)}, "must keep the order"),
        ({"shape": (2,)}, "2 dims"),
        ({"dims": ("step", "step")}, "must differ"),
        ({"shape": (2, 0)}, "at least 1"),
        ({"unit": "run"}, "'run' has none"),
        ({"dims": ("layer", "y")}, "need 'step'"),
        ({"unit": "frame"}, "is not one of"),
        ({"dtype": "bf16"}, "is not one of"),
        ({"encoding": "codes"}, "takes encoding"),
        ({"dtype": "bfloat16", "encoding": "raw"}, "takes encoding"),
        ({"name": "a/b"}, "folder's name"),
        ({"units": "seconds"}, "time differences"),
        ({"dtype": "bfloat16", "shape": (2, 2**30)}, "2 GiB"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, says):
    good = {"name": "energy", "dims": ("step", "y"), "shape": (2, 3)}
    with pytest.raises(StoreError, match=says) as raised:
        Variable(**good | change)
    assert repr((good | change)["name"]) in str(raised.value)


@pytest.mark.parametrize("index", [{}, {"step": 1, "layer": 0}, {"step": 2}, {"step": -1}, {"layer": 0}])
def test_an_index_must_name_a_unit(index):
    with pytest.raises(StoreError, match=r"energy at \{"):
        Variable("energy", ("step", "y"), (2, 3)).key(index)
