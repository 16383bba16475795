"""Models that are named by where they come from."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.models.organism import DEFAULT, ORGANISMS

MINE = """
import dit_lens as dl

def make():
    return dl.load("organism")

def wrong():
    return 3
"""


def test_a_function_of_ones_own_gives_the_lens(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    assert dl.load(f"{tmp_path}/mine.py:make").info["name"] == DEFAULT
    monkeypatch.syspath_prepend(tmp_path)
    assert dl.load("mine:make").layers == ORGANISMS[DEFAULT].layers
    with pytest.raises(dl.PlanError, match=r"mine:wrong\(\) returned a int"):
        dl.load("mine:wrong")
    with pytest.raises(dl.ModelError, match="no function 'other'"):
        dl.load("mine:other")
    with pytest.raises(dl.PlanError, match="device"):
        dl.load("mine:make", device="cpu")


@pytest.mark.parametrize("name", ["absent.py:make", "absent_module:make"])
def test_what_is_not_there_is_named(name):
    with pytest.raises(dl.ModelError, match="absent"):
        dl.load(name)


def test_a_diffusers_pipeline_is_loaded_from_its_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    dit = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    DiTPipeline(dit, vae, DDIMScheduler()).save_pretrained(tmp_path)
    lens = dl.load(f"diffusers:{tmp_path}", dtype="float32", device="cpu")
    assert isinstance(lens.pipe, diffusers.DiTPipeline) and lens.info["name"] == f"diffusers:{tmp_path}"
    sample = dl.Sample(prompt="", size=(8, 8), num_frames=1)
    run = lens.run(sample, steps=2, cfg_scale=1.0, class_labels=[1], record=[dl.energy])
    assert run["energy"].sizes["layer"] == 2 and np.isfinite(run["energy"].values).all()
    with pytest.raises(dl.ModelError, match="No diffusers pipeline at"):
        dl.load(f"diffusers:{tmp_path / 'nothing'}")
    with pytest.raises(dl.PlanError, match="takes no lora"):
        dl.load(f"diffusers:{tmp_path}", lora="x.safetensors")
