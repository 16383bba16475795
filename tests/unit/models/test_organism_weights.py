"""Weights of a file of one's own: another seed of training, a checkpoint."""

import shutil

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file

import dit_lens as dl
from dit_lens.models import organism
from dit_lens.models.options import ModelOptions


@pytest.fixture
def other(tmp_path):
    """A file of weights that are not those of any organism that ships."""
    values = load_file(organism.FOLDER / "full.safetensors")
    values["dit.head.head.bias"] = values["dit.head.head.bias"] + 1
    save_file(values, tmp_path / "full.100.safetensors")
    return tmp_path / "full.100.safetensors"


def test_the_dit_is_that_of_the_file_and_the_rest_as_before(other):
    mine, shipped = dl.load("organism", weights=other), dl.load("organism")
    assert torch.equal(mine.pipe.dit.head.head.bias, load_file(other)["dit.head.head.bias"].float())
    assert torch.equal(mine.pipe.vae.first_basis, shipped.pipe.vae.first_basis)
    assert set(mine.info["weights"]) == {"frozen.safetensors", "dit"}
    assert mine.fingerprint() != shipped.fingerprint()


def test_the_name_of_a_run_knows_the_file_and_not_where_it_stands(other, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(other, tmp_path / "elsewhere" / "anything.safetensors")
    here, there, shipped = (dl.load("organism", weights=w) for w in (other, moved, "trained"))
    assert here.fingerprint() == there.fingerprint() != shipped.fingerprint()
    assert here.info == there.info


def test_a_relative_path_is_read_from_where_the_user_stands(other, monkeypatch):
    monkeypatch.chdir(other.parent)
    lens = dl.load("organism", weights=other.name)
    monkeypatch.chdir("/")
    assert lens.run(dl.tasks.choose(1_000_001), steps=1).video.shape[0] == 13


def test_the_first_organism_takes_a_file_too(tmp_path):
    mine = shutil.copy(organism.FOLDER / "v1.safetensors", tmp_path / "v1.safetensors")
    info = dl.load("organism-v1", weights=mine).info
    assert set(info["weights"]) == {"v1.safetensors", "dit"}


@pytest.mark.parametrize("name", ["organism-two-expert", "organism-lora"])
def test_an_organism_of_several_files_takes_none(other, name):
    with pytest.raises(dl.PlanError, match=f"{name} takes no weights=.*one DiT and no LoRA"):
        dl.load(name, weights=other)


def test_a_file_that_is_missing_or_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(dl.ModelError, match=r"There is no .*gone\.safetensors"):
        dl.load("organism", weights=tmp_path / "gone.safetensors")
    with pytest.raises(dl.ModelError, match=r"v1\.safetensors does not fit dit of organism-full"):
        dl.load("organism", weights=organism.FOLDER / "v1.safetensors")


def test_scripts_take_a_file(other):
    options = tyro.cli(ModelOptions, args=["--weights", str(other)])
    assert "dit" in options.load().info["weights"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1])
def test_what_is_no_real_number_is_no_weight(other, tmp_path, value):
    values = load_file(other)
    values["dit.head.head.bias"] = torch.full_like(values["dit.head.head.bias"], value)
    if value == 1:
        values["dit.head.head.bias"] = values["dit.head.head.bias"].to(torch.int8)
    save_file(values, tmp_path / "odd.safetensors")
    with pytest.raises(dl.ModelError, match=r"odd\.safetensors: dit\.head\.head\.bias holds something other"):
        dl.load("organism", weights=tmp_path / "odd.safetensors")


def test_a_factor_of_no_lora_is_refused():
    with pytest.raises(dl.PlanError, match="takes no lora_alpha"):
        dl.load("organism-base", lora_alpha=0.5)
