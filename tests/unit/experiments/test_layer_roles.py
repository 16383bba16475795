"""Layer roles: what is planted on an object is found there, files of masks are what scenes say, bad input is refused first."""

import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.experiments.clean_states import look_at_states
from dit_lens.experiments.masks import masks_of, regions_of
from dit_lens.experiments.object_contrasts import CONTRASTS
from dit_lens.models.options import ModelOptions
from scripts import script

pytestmark = pytest.mark.slow
SMALL = {"samples": 3, "block": 2, "steps": 2, "layers": "2,5,8"}


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


@pytest.fixture(scope="module")
def roles():
    return script("layer_roles")


def go(roles, out, monkeypatch, organism, **changes):
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    assert roles.main(roles.Options(**{**SMALL, "out": out, **changes})) == 0
    return json.loads((out / "summary.json").read_text()), xr.open_zarr(
        out / "results.zarr", consolidated=False
    ).load()


def test_states_that_are_looked_at_are_those_of_single_runs(organism):
    pairs = [(dl.tasks.circle(1_000_000 + i), i) for i in range(3)]
    seen = {}
    batch = organism.batch(pairs, steps=3, at_once=2)
    look_at_states(batch, [0, 2], [1, 8], lambda row, at, tokens: seen.update({(row, at): tokens.numpy()}))
    assert len(seen) == 3 * 2 * 2
    run = organism.run(*pairs[2], steps=3, record=[(dl.hidden, dl.at(layer=[1, 8]))])
    for i, step in enumerate((0, 2)):
        for j, layer in enumerate((1, 8)):
            state = run["hidden"].sel(step=step, branch="cond", layer=layer).values.reshape(64, -1)
            np.testing.assert_allclose(seen[2, (i, 0, j)], state, atol=2e-4)


def test_the_study_leaves_numbers_and_figures_and_is_not_made_twice(roles, tmp_path, monkeypatch, organism):
    summary, results = go(roles, tmp_path, monkeypatch, organism)
    found = summary["centred, named minus others, step 0"]
    assert found["samples"] == 3 and [row["layer"] for row in found["by layer"]] == [2, 5, 8]
    assert set(summary["named minus others, centred, all channels"]) == set(CONTRASTS)
    assert set(results.object.values.tolist()) == {"named", "others", "rings"}
    for picture in ("centred_by_layer_and_step", "named_minus_others", "named_minus_others_step_001"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr("dit_lens.engine.batch.Batch.step", refuse)
    assert go(roles, tmp_path, monkeypatch, organism)[1].identical(results)


def test_under_the_other_prompt_the_roles_swap_exactly(roles, organism):
    """A scene under its other prompt is the sample of that prompt: what is named in one is among the others in the other."""
    options = roles.Options(**SMALL)
    disc, square = (
        roles.measure(
            organism, [dl.tasks.circle(1_000_004, kind=kind)], options, ["named", "others", "rings"], {}
        ).sel(masks="own", drop=True)
        for kind in ("disc", "square")
    )
    for here, there in (("named", "others"), ("others", "named")):
        np.testing.assert_allclose(
            disc.centred.sel(prompt="other", object=here),
            square.centred.sel(prompt="own", object=there),
            rtol=1e-4,
        )


def test_energy_planted_on_the_named_object_is_found_from_its_layer_on_and_nothing_before(
    roles, monkeypatch, organism
):
    options, scene = roles.Options(**SMALL), dl.tasks.circle(1_000_004)
    names = ["named", "others", "rings"]

    def measured():
        return (
            roles.measure(organism, [scene], options, names, {}).sel(prompt="own", masks="own").isel(step=0)
        )

    plain = measured()
    on_it = regions_of(masks_of(scene), names, (4, 4, 4), options.threshold)[0]
    batch_of = roles.batch_of

    def with_edit(lens, pairs, options):
        batch_of(lens, pairs, options)
        edit = [(dl.scale(factor=3.0), dl.at(site="block", layer=5, mask=on_it))]
        return lens.batch(pairs, options.steps, options.cfg_scale, edit=edit)

    monkeypatch.setattr(roles, "batch_of", with_edit)
    planted = measured()
    times = (planted.raw / plain.raw).sel(channels="all").isel(sample=0, seed=0, branch=0)
    np.testing.assert_allclose(times.sel(layer=2), 1, rtol=1e-5)
    np.testing.assert_allclose(times.sel(layer=5, object="named"), 3, rtol=1e-4)
    np.testing.assert_allclose(times.sel(layer=5, object="others"), 1, rtol=1e-4)


def test_a_task_whose_prompt_names_nothing_says_so_and_compares_with_another_scene(
    roles, tmp_path, monkeypatch, organism
):
    summary, results = go(roles, tmp_path, monkeypatch, organism, task="choose", steps=1, layers="8")
    assert summary["centred, named minus others, step 0"] == {"not measured": "no prompt names an object"}
    assert results.sizes["prompt"] == 1
    elsewhere = summary["centred, on an object minus on the masks of another scene"]["step 0"]
    assert set(elsewhere) == {"agent", "goals", "trail", "walls"}
    assert elsewhere["trail"]["samples"] >= 2


def write_masks(folder, samples, ending=".npy"):
    for sample in samples:
        numbers = np.zeros((sample.num_frames, *sample.size), np.uint8)
        for number, name in ((1, "named"), (2, "others"), (3, "rings")):
            numbers[sample.masks[name]] = number
        path = folder / sample.subfolder.with_suffix(ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".npy":
            np.save(path, numbers)
        else:
            Image.fromarray(numbers[0]).save(path)


def test_files_of_masks_give_what_the_scenes_give_and_count_by_what_is_in_them(
    roles, tmp_path, monkeypatch, organism
):
    samples = [dl.tasks.circle(1_000_000 + i) for i in range(2)]
    write_masks(tmp_path / "masks", samples)
    small = {"samples": 2, "steps": 1, "layers": "8"}
    summary, results = go(roles, tmp_path / "a", monkeypatch, organism, masks=tmp_path / "masks", **small)
    assert results.masks.values.tolist() == ["own", "moved"]
    assert set(summary["named minus others, centred, all channels"]) == {"own prompt", "masks moved"}
    own = roles.measure(
        organism, samples, roles.Options(**{**SMALL, **small}), ["named", "others", "rings"], {}
    )
    files = results.centred.sel(object=["named", "others", "object 3"]).isel(prompt=0)
    scenes = own.centred.sel(masks=["own", "moved"]).isel(prompt=0).transpose(*files.dims)
    np.testing.assert_allclose(files, scenes, rtol=1e-4)
    # The same files in another folder are the same result; another file of one name is another.
    blocks = set((tmp_path / "a" / "blocks").iterdir())
    (tmp_path / "masks").rename(tmp_path / "moved")
    go(roles, tmp_path / "a", monkeypatch, organism, masks=tmp_path / "moved", **small)
    assert set((tmp_path / "a" / "blocks").iterdir()) == blocks
    path = tmp_path / "moved" / samples[0].subfolder.with_suffix(".npy")
    np.save(path, np.load(path)[:1])
    _, changed = go(roles, tmp_path / "a", monkeypatch, organism, masks=tmp_path / "moved", **small)
    assert not np.allclose(changed.tokens.isel(sample=0), results.tokens.isel(sample=0))
    np.testing.assert_array_equal(changed.tokens.isel(sample=1), results.tokens.isel(sample=1))


def test_samples_of_two_tasks_may_have_one_id(roles, tmp_path, organism):
    samples = [make(1_000_000) for make in (dl.tasks.circle, dl.tasks.choose)]
    for sample, row in zip(samples, (0, 32), strict=True):
        numbers = np.zeros(sample.size, np.uint8)
        numbers[row : row + 32] = 1
        path = tmp_path / sample.subfolder.with_suffix(".npy")
        path.parent.mkdir()
        np.save(path, numbers)
    options = roles.Options(**SMALL, masks=tmp_path)
    both, alone = (roles.measure(organism, part, options, ["named"], {}) for part in (samples, samples[:1]))
    np.testing.assert_allclose(both.centred.isel(sample=[0]), alone.centred, rtol=1e-4)
    assert not np.allclose(both.centred.isel(sample=1), alone.centred.isel(sample=0), rtol=1e-2)


def test_a_picture_of_0_and_255_shows_the_named_object(tmp_path):
    sample = dl.tasks.circle(1_000_000)
    path = tmp_path / sample.subfolder.with_suffix(".png")
    path.parent.mkdir(parents=True)
    Image.fromarray(sample.masks["named"][0].astype(np.uint8) * 255).save(path)
    (name,) = masks_of(sample, tmp_path)
    assert name == "named"
    np.testing.assert_array_equal(masks_of(sample, tmp_path)[name][0], sample.masks["named"][0])


@pytest.mark.parametrize(
    "values, said",
    [
        (np.zeros((8, 8), np.uint8), r"\(1, 64, 64\) or \(13, 64, 64\)"),
        (np.zeros((64, 64, 3), np.uint8), "has colours"),
        (np.zeros((64, 64), np.uint8), "shows no object"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_anything_is_computed(
    values, said, roles, tmp_path, monkeypatch, organism
):
    write_masks(tmp_path / "masks", [dl.tasks.circle(1_000_000 + i) for i in range(3)], ".png")
    Image.fromarray(values).save(tmp_path / "masks" / "circle" / "1000001.png")
    monkeypatch.setattr("dit_lens.engine.batch.Batch.__init__", None)
    with pytest.raises(dl.TaskError, match=said):
        go(roles, tmp_path / "out", monkeypatch, organism, masks=tmp_path / "masks")


def test_what_cannot_be_measured_is_refused_before_the_model_is_loaded(roles, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", None)
    for changes, said in (
        ({"k": 0}, "k of 1 or more"),
        ({"threshold": 0.0}, "a share over 0"),
        ({"eval_root": tmp_path}, "give --masks DIR"),
        ({"eval_root": tmp_path, "masks": tmp_path / "nowhere"}, "there is no such folder"),
    ):
        with pytest.raises(dl.TaskError, match=said):
            roles.main(roles.Options(**changes))


def test_a_missing_file_of_masks_is_named(roles, tmp_path, monkeypatch, organism):
    write_masks(tmp_path / "masks", [dl.tasks.circle(1_000_000)])
    with pytest.raises(dl.TaskError, match=r"there is no .*1000001\.png or .*1000001\.npy"):
        go(roles, tmp_path / "out", monkeypatch, organism, masks=tmp_path / "masks")


def planted(roles, effect, samples=16):
    """Results of a study by hand: noise, and on the named object more from layer 3 on, at step 0."""
    rng, layers = np.random.default_rng(0), np.arange(6)
    dims = ("sample", "seed", "prompt", "step", "layer", "channels", "masks", "object")
    text = np.dtypes.StringDType()
    coords = {
        "sample": np.arange(samples),
        "seed": [0],
        "prompt": np.array(["own", "other"], text),
        "step": [0, 5],
        "layer": layers,
        "channels": np.array(["all", "without the largest"], text),
        "masks": np.array(["own", "moved", "another scene"], text),
        "object": np.array(["named", "others"], text),
    }
    values = rng.normal(1, 0.1, [len(coords[d]) for d in dims])
    values[:, :, 0, 0, 3:, :, 0, 0] += effect
    values[:, :, 1, 0, 3:, :, 0, 1] += effect  # under the other prompt on the others
    array = xr.DataArray(values, coords, dims)
    return xr.Dataset(
        {"raw": array * 0 + rng.normal(1, 0.1, array.shape), "centred": array, "variance": array}
    )


def test_a_planted_role_is_dated_in_its_measure_and_its_contrasts_alone(roles):
    results = planted(roles, 0.5)
    first = {
        name: roles.at_step(values, 0)["first layer off 0"]
        for name, values in roles.contrasts(results, "centred", "all").items()
    }
    assert first == {
        "own prompt": 3,
        "other prompt": 3,
        "by the prompt alone": 3,
        "masks of another scene": None,
        "masks moved": None,
    }
    other = roles.contrasts(results, "centred", "all")["other prompt"].sel(step=0, layer=4)
    assert float(other.mean()) == pytest.approx(-0.5, abs=0.1)
    assert roles.at_step(roles.contrasts(results, "raw", "all")["own prompt"], 0)["first layer off 0"] is None
    null = roles.contrasts(planted(roles, 0.0), "centred", "all")["own prompt"]
    assert roles.at_step(null, 0)["first layer off 0"] is None


def test_samples_without_tokens_of_both_are_left_out_and_too_few_say_so(roles):
    results = planted(roles, 0.5, samples=4)
    results.centred[1, ..., 0] = np.nan
    assert roles.at_step(roles.contrasts(results, "centred", "all")["own prompt"], 0)["samples"] == 3
    results.centred[2:, ..., 0] = np.nan
    said = roles.at_step(roles.contrasts(results, "centred", "all")["own prompt"], 0)
    assert said == {"not measured": "1 samples have tokens of both, and an interval needs 2"}
