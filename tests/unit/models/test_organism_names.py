"""Every organism loads by its name, from whole files that fit; what does not is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dit_lens as dl
from dit_lens import tasks
from dit_lens.models import catalog, organism
from dit_lens.models.organism.loading import load
from dit_lens.models.organism.modules import WORDS

PAGE = (Path(__file__).parents[3] / "docs/models.md").read_text()
NEW = [name for name in organism.ORGANISMS if name != "organism-v1"]
TARGET = "blocks.15.self_attn.v"


def files_of(name):
    one = organism.ORGANISMS[name]
    known = one.known_loras[one.lora].values() if one.lora else ()
    return {one.frozen, *one.dits.values(), *known}


def weight(lens):
    return lens.pipe.dit.get_submodule(TARGET).weight


def change(path):
    """Return what a LoRA adds to the weight."""
    state = load_file(path)
    a, b = (state[f"{TARGET}.lora_{part}.default.weight"].float() for part in "AB")
    return b @ a


def test_all_names_are_in_the_catalogue_and_on_the_page():
    assert catalog.NAMES[: len(organism.NAMES)] == organism.NAMES == ("organism", *organism.ORGANISMS)
    assert all(f"`{name}`" in PAGE for name in organism.NAMES)
    assert all(set(one.tasks) <= set(tasks.TASKS) for one in organism.ORGANISMS.values())


@pytest.mark.parametrize("name", organism.ORGANISMS)
def test_what_ships_loads_and_what_does_not_says_what_makes_it(name):
    missing = [file for file in files_of(name) if not (organism.FOLDER / file).exists()]
    if missing:
        with pytest.raises(dl.ModelError, match=r"There is no .*/(" + "|".join(missing) + r").*`make train`"):
            dl.load(name)
    else:
        assert dl.load(name).info["name"] == name


def test_all_that_the_table_names_ships_in_small_files():
    ones = organism.ORGANISMS.values()
    loras = {file for one in ones for files in one.known_loras.values() for file in files.values()}
    named = {file for one in ones for file in (one.frozen, *one.dits.values())} | loras
    sizes = {path.name: path.stat().st_size for path in organism.FOLDER.glob("*.safetensors")}
    assert set(sizes) == named
    assert max(sizes.values()) < 20e6 and sum(sizes.values()) < 60e6


def test_the_lora_that_ships_changes_its_base():
    base, lora = dl.load("organism-base"), dl.load("organism-lora")
    places = [f"blocks.{n}.self_attn.q.weight" for n in range(base.layers)]
    held = [dict(lens.pipe.dit.named_parameters()) for lens in (base, lora)]
    assert not any(torch.equal(held[0][place], held[1][place]) for place in places)
    assert torch.equal(held[0]["head.head.weight"], held[1]["head.head.weight"])


@pytest.mark.parametrize("name", NEW)
def test_a_file_of_each_makes_it(organisms, name):
    one, lens = organism.ORGANISMS[name], load(name, folder=organisms)
    assert type(lens.pipe.dit).__name__ == "WanModel" and lens.layers == 16
    assert len(lens.pipe.tokenizer.words) == len(lens.pipe.text_encoder.table) == len(WORDS)
    for attribute, file in one.dits.items():
        held = getattr(lens.pipe, attribute).state_dict()
        stored = {k.removeprefix("dit."): v for k, v in load_file(organisms / file).items()}
        assert held.keys() == stored.keys()
        assert one.lora or all(torch.equal(held[k], stored[k].float()) for k in held)
    stored = load_file(organisms / one.frozen)
    assert all(torch.equal(v, stored[f"vae.{k}"].float()) for k, v in lens.pipe.vae.state_dict().items())
    assert lens.info["name"] == name
    assert set(lens.info["weights"]) == {one.frozen, *one.dits.values()}
    assert all(value.startswith("sha256:") for value in lens.info["weights"].values())
    assert bool(lens.info["loras"]) == (name == "organism-lora")
    run = lens.run(dl.tasks.maze(1_000_007), record=[dl.energy])
    assert run["energy"].sizes["step"] == (4 if name == "organism-few4" else 20)
    assert list(run["energy"].coords["branch"].values) == ["cond"] and np.isfinite(run["energy"].values).all()


def test_the_default_is_one_of_the_table():
    lens, named = dl.load("organism"), dl.load(organism.DEFAULT)
    assert lens.info == named.info and lens.fingerprint() == named.fingerprint()
    assert organism.ORGANISMS[organism.DEFAULT].tasks == organism.TASKS


def test_two_experts_take_turns_at_the_boundary(organisms):
    lens = load("organism-two-expert", folder=organisms)
    assert not torch.equal(*(d.get_submodule(TARGET).weight for d in (lens.pipe.dit, lens.pipe.dit2)))
    run = lens.run(dl.tasks.circle(1_000_000), steps=8, record=[dl.energy])
    high = run.dataset["timestep"].values >= 875
    assert list(run.dataset["expert"].values) == ["high" if one else "low" for one in high]
    assert 0 < high.sum() < 8


def test_a_lora_goes_into_the_base(organisms):
    base, lora = load("organism-base", folder=organisms), load("organism-lora", folder=organisms)
    file = organisms / "lora.safetensors"
    assert torch.allclose(weight(lora), weight(base) + change(file), atol=1e-6)
    assert not torch.equal(weight(lora), weight(base))
    assert lora.info["loras"]["lora"]["matched"] == 8 and base.info["loras"] == {}
    for given in ("puzzles", file, str(file)):
        same = load("organism-base", {"lora": given}, folder=organisms)
        assert same.fingerprint() == lora.fingerprint()


@pytest.mark.parametrize(("name", "options"), [("organism-lora", {}), ("organism-base", {"lora": "puzzles"})])
def test_the_strength_of_a_lora_is_the_users(organisms, name, options):
    base = load("organism-base", folder=organisms)
    lens = load(name, options, lora_alpha=0.5, folder=organisms)
    half = weight(base) + 0.5 * change(organisms / "lora.safetensors")
    assert torch.allclose(weight(lens), half, atol=1e-6) and lens.info["loras"]["lora"]["alpha"] == 0.5


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("organism-full", {"lora": "puzzles"}, "organism-full ships with the package and takes no lora"),
        ("organism-lora", {"lora": "x.safetensors"}, "organism-lora ships .* takes no lora"),
        ("organism-causal", {"lora_alpha": 0.5}, "organism-causal ships .* takes no lora_alpha"),
        ("organism-base", {"high_noise_lora": "x"}, "organism-base ships .* takes no high_noise_lora"),
        ("organism-base", {"model_root": "x", "lora": "puzzles"}, "takes no model_root"),
        ("organism-base", {"weights": "random", "lora": "puzzles"}, "with random weights takes no lora"),
        (
            "organism-lora",
            {"weights": "random", "lora_alpha": 2.0},
            "with random weights takes no lora_alpha",
        ),
    ],
)
def test_options_that_an_organism_does_not_take_are_refused(name, options, said):
    with pytest.raises(dl.PlanError, match=said):
        dl.load(name, **options)


def test_a_lora_that_is_missing_or_no_lora_is_named(organisms, tmp_path):
    with pytest.raises(dl.ModelError, match=r"No LoRA at .*puzles"):
        load("organism-base", {"lora": "puzles"}, folder=organisms)
    shutil.copy(organisms / "base.safetensors", tmp_path / "lora.safetensors")
    with pytest.raises(dl.ModelError, match="holds no LoRA"):
        load("organism-base", {"lora": tmp_path / "lora.safetensors"}, folder=organisms)


@pytest.mark.parametrize("name", NEW)
def test_every_file_that_is_missing_is_named(organisms, tmp_path, name):
    for file in files_of(name):
        folder = tmp_path / file
        shutil.copytree(organisms, folder, ignore=shutil.ignore_patterns(file))
        with pytest.raises(dl.ModelError, match=rf"There is no {folder}/{file}.*`make train`"):
            load(name, folder=folder)


def without_a_layer(state):
    return {k: v for k, v in state.items() if ".blocks.15." not in k}


def with_a_layer(state):
    last = {k: v for k, v in state.items() if ".blocks.15." in k}
    return state | {k.replace(".15.", ".16."): v.clone() for k, v in last.items()}


def of_another_width(state):
    return state | {"dit.head.head.bias": torch.zeros(7)}


def without_prefix(state):
    return {k.removeprefix("dit."): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            without_a_layer,
            r"dit\.blocks\.15\.\S+ is not there in the file and \(.*\) in the model; 2\d tensors",
        ),
        (with_a_layer, r"dit\.blocks\.16\.\S+ is \(.*\) in the file and not there in the model"),
        (
            of_another_width,
            r"dit\.head\.head\.bias is \(7,\) in the file and \(192,\) in the model; 1 tensors",
        ),
        (without_prefix, r"dit\.\S+ is not there in the file"),
    ],
)
def test_a_file_that_does_not_fit_says_what_and_where(organisms, tmp_path, changed, said):
    shutil.copy(organisms / "frozen.safetensors", tmp_path)
    save_file(changed(load_file(organisms / "full.safetensors")), tmp_path / "full.safetensors")
    with pytest.raises(
        dl.ModelError, match=rf"{tmp_path}/full.safetensors does not fit dit of organism-full: {said}"
    ):
        load("organism-full", folder=tmp_path)


def test_a_codec_or_word_table_that_does_not_fit_is_named(organisms, tmp_path):
    shutil.copy(organisms / "full.safetensors", tmp_path)
    frozen = load_file(organisms / "frozen.safetensors")
    table = frozen["text_encoder.table"]
    for changed, said in (
        (
            {"text_encoder.table": torch.cat([table, table])},
            rf"at most {len(WORDS)} words; it is \[{2 * len(WORDS)}, 32\]",
        ),
        (
            {"text_encoder.table": table[:, :16].contiguous()},
            r"does not fit text_encoder .*table is \(\d+, 16\)",
        ),
        ({"vae.rest_mean": torch.zeros(3)}, r"does not fit vae of .*vae\.rest_mean is \(3,\)"),
    ):
        save_file(frozen | changed, tmp_path / "frozen.safetensors")
        with pytest.raises(dl.ModelError, match=said):
            load("organism-full", folder=tmp_path)
    save_file({k: v for k, v in frozen.items() if "text" not in k}, tmp_path / "frozen.safetensors")
    with pytest.raises(dl.ModelError, match=r"frozen.safetensors: text_encoder.table .*it is not there"):
        load("organism-full", folder=tmp_path)


def test_a_file_that_is_not_whole_is_named(organisms, tmp_path):
    shutil.copy(organisms / "frozen.safetensors", tmp_path)
    whole = (organisms / "full.safetensors").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    for content, said in ((b"", "is empty"), (pointer, "git-LFS pointer"), (whole[:-9], "should have")):
        (tmp_path / "full.safetensors").write_bytes(content)
        with pytest.raises(dl.ModelError, match=rf"full.safetensors .*{said}"):
            load("organism-full", folder=tmp_path)


def test_a_table_of_fewer_words_has_a_tokenizer_of_as_many(organisms, tmp_path):
    shutil.copy(organisms / "full.safetensors", tmp_path)
    frozen = load_file(organisms / "frozen.safetensors")
    frozen["text_encoder.table"] = frozen["text_encoder.table"][:30].contiguous()
    save_file(frozen, tmp_path / "frozen.safetensors")
    assert load("organism-full", folder=tmp_path).pipe.tokenizer.words == WORDS[:30]


@pytest.mark.parametrize("name", organism.NAMES)
def test_untrained_it_has_the_same_shapes_and_needs_no_file(name, tmp_path):
    pipe = organism.pipeline(None, dtype=torch.bfloat16, name=name, folder=tmp_path)
    one = organism.ORGANISMS[organism.DEFAULT if name == "organism" else name]
    assert pipe.dit.patch_embedding.weight.dtype == torch.bfloat16
    assert len(pipe.dit.blocks) == one.layers and len(pipe.tokenizer.words) == len(WORDS)
    assert (pipe.dit2 is not None) == (name == "organism-two-expert")
