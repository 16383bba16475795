"""Seeds, numbers, prompts and names of every kind: taken as what they are, or refused with what is taken."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.engine.request import encoding_of, scale_of, seed_of, steps_of
from dit_lens.tasks.sample import folder_name


def shown(value):
    """Return what a value is called in a test's name: the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


# ---- numbers

WHOLE = [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)]
NOT_WHOLE = [True, False, np.True_, torch.tensor(True), 1.5, 1.0, np.float32(1), "1", b"1", 1j, float("nan")]
SEVERAL = [[0, 1], (0,), {0}, range(3), np.array([1]), np.arange(3), torch.arange(2)]


@pytest.mark.parametrize("seed", WHOLE, ids=shown)
def test_whole_numbers_of_any_library_are_one_number(seed):
    for read in (seed_of(seed), steps_of(seed, 20)):
        assert read == 1 and type(read) is int


@pytest.mark.parametrize("value", NOT_WHOLE + SEVERAL + [-1, None, 2**63, "", object()], ids=shown)
def test_a_seed_is_one_whole_number(value):
    with pytest.raises(dl.PlanError, match=r"seed=.*give one whole number from 0 to 2\*\*63 - 1") as raised:
        seed_of(value)
    assert ("lens.batch" in str(raised.value)) == any(value is several for several in SEVERAL)


SAMPLE = dl.Sample(prompt="a cat", size=(8, 8), num_frames=1)


@pytest.mark.parametrize("value", ["a cat", None, (SAMPLE, 0), [SAMPLE, SAMPLE], np.zeros((1, 2))], ids=type)
def test_a_sample_is_one_sample(value, lens):
    for ask in (lens.run, lens.trace):
        with pytest.raises(dl.PlanError, match=r"sample is a .*give one dl\.Sample") as raised:
            ask(value, 0)
        assert ("lens.batch" in str(raised.value)) == (not isinstance(value, str) and value is not None)


@pytest.mark.parametrize("value", NOT_WHOLE + SEVERAL + [0, -3, object()], ids=shown)
def test_steps_are_a_whole_number(value):
    with pytest.raises(dl.PlanError, match=r"steps=.*a run has at least one step"):
        steps_of(value, 20)


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int64(3), np.array(3.0), torch.tensor(3.0)], ids=shown
)
def test_a_scale_of_any_library_is_one_number(value):
    assert scale_of(value, 1) == 3.0 and type(scale_of(value, 1)) is float


@pytest.mark.parametrize(
    "value",
    [True, np.False_, "3", [3], (1, 2), np.ones(1), float("nan"), float("inf"), 1j, object()],
    ids=shown,
)
def test_a_scale_is_one_finite_number(value):
    with pytest.raises(dl.PlanError, match=r"cfg_scale=.*give one finite number"):
        scale_of(value, 1.0)


def test_what_is_left_out_is_the_default_of_the_family():
    assert (steps_of(None, 20), scale_of(None, 5)) == (20, 5.0)


def test_equal_numbers_of_other_types_are_one_run(lens, sample, tmp_path):
    runs = [
        lens.run(sample, np.int64(1), steps=np.int64(2), cfg_scale=np.float32(3), store=tmp_path),
        lens.run(sample, 1, steps=2, cfg_scale=3, store=tmp_path),
        lens.run(sample, torch.tensor(1), steps=np.array(2), cfg_scale=3.0, store=tmp_path),
    ]
    assert len({run.path for run in runs}) == 1
    assert runs[0].attrs["manifest"]["identity"]["seed"] == 1


@pytest.mark.parametrize(
    "options", [{"seed": [0, 1]}, {"seed": True}, {"steps": 1.5}, {"cfg_scale": "3"}], ids=str
)
def test_a_run_and_a_trace_refuse_before_anything_runs(lens, sample, left_behind, options):
    with pytest.raises(dl.PlanError, match="give"):
        lens.run(sample, **options)
    with pytest.raises(dl.PlanError, match="give"):
        with lens.trace(sample, **options) as tr:
            tr.record(dl.energy)
    assert left_behind(lens.pipe) == []


# ---- encodings


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_encoding_is_one_that_the_states_can_have(dtype):
    with pytest.raises(dl.PlanError, match="encoding='zip': one of float32, codes, float16"):
        encoding_of("zip", dtype)
    with pytest.raises(dl.PlanError, match="one of"):
        encoding_of("", dtype)
    if dtype == "bfloat16":
        assert [encoding_of(e, dtype) for e in (None, "float32", "codes", "float16")] == [
            "float32",
            "float32",
            "codes",
            "float16",
        ]
    else:
        assert encoding_of(None, dtype) is None and encoding_of(dtype, dtype) is None
        with pytest.raises(dl.PlanError, match=f"those of this model are {dtype}.*leave it out"):
            encoding_of("codes", dtype)


def test_an_encoding_is_refused_before_the_run(lens, sample, tmp_path):
    for encoding in ("zip", "codes"):
        with pytest.raises(dl.PlanError, match=f"encoding='{encoding}'"):
            lens.run(sample, encoding=encoding, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


# ---- states for edits


@pytest.mark.parametrize(
    "make", [dl.patch, dl.steer, dl.replace, lambda v: dl.ablate(to="mean", reference=v)]
)
def test_states_are_an_array_and_not_what_holds_it(lens, sample, make):
    run = lens.run(sample, steps=1, record=(dl.hidden, dl.at(layer=0)))
    for value in (run, run.dataset, xr.DataTree(run.dataset)):
        with pytest.raises(dl.PlanError, match=r'holds several arrays; give one, such as run\["hidden"\]'):
            make(value)


@pytest.mark.parametrize("value", ["hidden", {"hidden": 1}, len, None], ids=shown)
def test_what_is_no_array_is_refused_when_the_edit_is_made_or_carried_out(lens, sample, value):
    makers = [
        dl.patch,
        dl.steer,
        *([lambda v: dl.ablate(to="mean", reference=v)] if value is not None else []),
    ]
    for make in makers:
        with pytest.raises(dl.PlanError, match=r'is no array; give one, such as run\["hidden"\]'):
            make(value)
    with pytest.raises(dl.PlanError, match=r"replace at .* is neither a number nor an array"):
        lens.run(sample, steps=1, edit=(dl.replace(value), dl.at(layer=0)))


# ---- texts


def test_any_prompt_that_is_text_is_a_run(lens, sample, tmp_path):
    prompts = ["", "solve " * 20_000, "左\N{PILE OF POO}", "a\nb\0c", "💥" * 1000]
    runs = [lens.run(sample.with_(prompt=p), steps=1, store=tmp_path) for p in prompts]
    assert len({run.path for run in runs}) == len(prompts)
    assert [run.attrs["manifest"]["identity"]["sample"]["prompt"] for run in runs] == prompts


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"prompt": "a\ud800"}, "prompt=.*half of a surrogate pair"),
        ({"prompt": ("a", "\udfff")}, "prompt=.*half of a surrogate pair"),
        ({"prompt": "a", "negative_prompt": "\udc80"}, "negative_prompt=.*half of a surrogate pair"),
        ({"prompt": "a", "id": "\ud800"}, "id=.*half of a surrogate pair"),
        ({"prompt": None}, "prompt=None: give a text"),
        ({"prompt": ()}, "give a text, or a tuple of at least one"),
        ({"prompt": ("a", 1)}, "prompt=1: give a text"),
        ({"prompt": b"a"}, "give a text"),
        ({"prompt": "a", "negative_prompt": None}, "negative_prompt=None: give a text"),
        ({"prompt": "a", "task": ""}, "task='': give a name"),
        ({"prompt": "a", "task": " "}, "task=' ': give a name"),
        ({"prompt": "a", "id": ""}, "id='': give a name"),
        ({"prompt": "a", "id": "a\0b"}, "id=.*give a name"),
        ({"prompt": "a", "id": 7}, "id=7: give a text"),
        ({"prompt": "a", "num_frames": 5.0}, "num_frames is 5.0; give a whole number"),
        ({"prompt": "a", "num_frames": True}, "num_frames is True; give a whole number"),
        ({"prompt": "a", "size": (32, 32.5)}, r"size is \(32, 32.5\); give \(height, width\)"),
        ({"prompt": "a", "size": (32,)}, r"give \(height, width\)"),
        ({"prompt": "a", "size": (0, 32)}, r"give \(height, width\)"),
        ({"prompt": "a", "size": 32}, r"give \(height, width\)"),
        ({"prompt": "a", "size": "ab"}, r"give \(height, width\)"),
    ],
)
def test_what_is_no_sample_is_refused_when_it_is_made(fields, words):
    with pytest.raises(dl.TaskError, match=words):
        dl.Sample(**{"size": (32, 32), **fields})


def test_a_sample_holds_plain_values(lens, tmp_path):
    given = dl.Sample(["a", "b"], num_frames=np.int64(5), size=np.array([32, 48]))
    assert (given.prompt, given.num_frames, given.size) == (("a", "b"), 5, (32, 48))
    assert json.dumps([given.num_frames, given.size]) == "[5, [32, 48]]"
    assert given == dl.Sample(("a", "b"), num_frames=5, size=(32, 48))


NAMES = [
    "..",
    ".",
    "a/../../b",
    "/etc/passwd",
    "a" * 300,
    "左" * 300,
    "C:\\x",
    "a\nb",
    "x?*",
    ".hidden",
    "maze.",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_any_name_stands_inside_its_store(lens, sample, tmp_path, name):
    run = lens.run(sample.with_(id=name, task=name), steps=1, store=tmp_path / "store")
    assert run.path.parent == tmp_path / "store" and run.path.resolve().is_relative_to(tmp_path / "store")
    assert len(run.path.name.encode()) <= 200 and run.complete
    assert run.attrs["manifest"]["identity"]["sample"]["id"] == name
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_of_a_sample_stands_inside_whatever_it_is_put_into(tmp_path, name):
    sample = dl.Sample("a", size=(8, 8), task=name, id=name)
    folder = tmp_path / sample.subfolder
    folder.mkdir(parents=True)
    assert folder.resolve().is_relative_to(tmp_path.resolve()) and folder.resolve() == folder
    assert all(len(part.encode()) < 128 for part in sample.subfolder.parts)


def test_names_that_a_folder_can_have_stay_and_others_never_meet():
    assert dl.Sample("a", size=(8, 8), task="In-Domain_50/G-3_x", id="00007").subfolder == Path(
        "In-Domain_50/G-3_x/00007"
    )
    assert folder_name("Größe 7") == "Größe 7"
    odd = [*NAMES, "a_b", "a b", "", "_", "...", "a" * 301, "a\tb"]
    assert len({folder_name(name) for name in odd}) == len(odd)


def test_what_goes_through_the_steps_for_the_pipeline_names_the_run(lens, pipe, sample, tmp_path):
    """DiffSynth calls `progress_bar_cmd` at every step: it can change the model there and put it back in the end."""
    bias = pipe.dit.blocks[0].ffn[2].bias

    def steering(strength):
        def steps(timesteps):
            before = bias.detach().clone()
            for n, timestep in enumerate(timesteps):
                bias.data.copy_(before + strength * n)
                yield timestep
            bias.data.copy_(before)

        return steps

    runs = [
        lens.run(sample, steps=2, store=tmp_path, record=[dl.x0], **bar)
        for bar in ({}, {"progress_bar_cmd": steering(0.0)}, {"progress_bar_cmd": steering(0.5)})
    ]
    assert len({run.path for run in runs}) == 3
    x0 = [run["x0"].values for run in runs]
    assert np.array_equal(x0[0], x0[1]) and not np.array_equal(x0[1], x0[2])


def test_latents_of_any_kind_are_decoded_and_other_things_refused(lens, sample):
    run = lens.run(sample, steps=2, record=[dl.x0])
    x0 = run["x0"].isel(step=1)
    right = lens.decode(x0)
    for same in (x0.values, torch.from_numpy(x0.values.copy())):
        np.testing.assert_array_equal(lens.decode(same), right)
    for other, words in ((run, "this is a Run"), ("x0", "this is a str"), (x0.values[0], r"these are \(")):
        with pytest.raises(dl.PlanError, match=words):
            lens.decode(other)
