"""Every script in analyses/ on a tiny random model of every family, as a user would run it on a real one."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.models.options import ModelOptions
from dit_lens.plot import write_video

pytestmark = pytest.mark.slow
spec = importlib.util.spec_from_file_location("tiny_ltx", Path(__file__).parent / "ltx.py")
tiny_ltx = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_ltx)
SCRIPTS = Path(__file__).parents[3] / "analyses"
TASK = "In-Domain_50/O-39_maze_data-generator"
FAMILIES = ("wan", "ltx2", "diffusers", "flux", "blocks")
ON_A_FOLDER = {
    "decode_steps": {},
    "token_maps": {"layers": "0", "vis_steps": "1"},
    "noise_sensitivity": {"cka_layers": "1"},
    "depth_lens": {"layers": "0", "vis_steps": "0", "sheets": 1},
    "step_count": {"counts": (1, 2), "steps": None},
    "emergent": {},
    "cross_step_similarity": {"cka_layers": "1", "steps": 4},
}
ON_A_TASK = {
    "seed_ensemble": {"task": "circle", "ks": (1, 2), "layers": "1"},
    "layer_swap": {"layers": "1", "map_steps": "0", "orders": 0},
    "frame_count": {"task": "circle", "counts": (9, 17)},
}


class Toy(torch.nn.Module):
    """A bare model: latents to tokens and back around blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside, self.time = (torch.nn.Linear(*s) for s in ((4, 16), (16, 4), (1, 16)))
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, x, timestep):
        h = self.inside(x.flatten(2).transpose(1, 2)) + self.time(timestep[:, None] / 1000)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.outside(h).transpose(1, 2).unflatten(2, x.shape[2:])


def decode(latents):
    frames = latents[:, :3].permute(0, 2, 3, 4, 1).sigmoid().mul(255).byte()
    frames = frames.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return torch.cat([frames[:, :1], frames[:, 1:].repeat_interleave(8, 1)], 1).numpy()


def latent(sample):
    return 4, (sample.num_frames - 1) // 8 + 1, sample.height // 8, sample.width // 8


@pytest.fixture(scope="module")
def lenses(two_experts, made):
    """Lenses by family, each made when it is asked for."""

    def make(name):
        if name == "wan":
            return dl.Lens(two_experts)
        if name == "ltx2":
            return dl.Lens(tiny_ltx.make_pipe())
        if name == "blocks":
            toy = Toy().eval().requires_grad_(False)
            return dl.blocks(
                toy, "blocks", latent=latent, grid=lambda size: size[1:], decode=decode, channels=16
            )
        return dl.Lens(made({"diffusers": "wan-image"}.get(name, name)).pipe)

    return make


@pytest.fixture
def bench(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for n in range(2):
        folder = tmp_path / "bench" / TASK / f"{n:05d}"
        folder.mkdir(parents=True)
        for name in ("first_frame", "final_frame"):
            Image.fromarray(np.roll(pixels, n, 0)).save(folder / f"{name}.png")
        write_video(np.stack([pixels] * 9), folder / "ground_truth.mp4")
        (folder / "prompt.txt").write_text("solve the maze\n")
    return tmp_path / "bench"


def run(name, monkeypatch, lens, **options):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    return module.main(module.Options(**options))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ON_A_FOLDER)
def test_a_script_runs_on_a_folder_of_samples(name, family, lenses, bench, tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = {"eval_root": bench, "out": out, "steps": 2, "cfg_scale": 2.0, **ON_A_FOLDER[name]}
    given |= {"clean": out / "clean.zarr"} if name == "emergent" else {}
    given |= {"text_only": family == "flux"}
    if (name, family) == (
        "noise_sensitivity",
        "ltx2",
    ):  # which is given one latent frame: of two, one is left
        given |= {"num_frames": 17}
    if (name, family) == ("noise_sensitivity", "flux"):  # an image has one frame: there is nothing to compare
        with pytest.raises(dl.TaskError, match="generated, and there are 1"):
            run(name, monkeypatch, lenses(family), **given)
        return
    assert run(name, monkeypatch, lenses(family), **given) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["samples left out"] == 0
    assert any(p.stat().st_size > 3000 for p in out.rglob("*.png"))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "flux"])  # a scorer reads a video
@pytest.mark.parametrize("name", ON_A_TASK)
def test_a_script_runs_on_a_task(name, family, lenses, tmp_path, monkeypatch):
    given = {"out": tmp_path, "steps": 2, "cfg_scale": 2.0, "samples": 2, "num_frames": 9}
    given |= {"num_frames": None} if name == "frame_count" else {}
    assert run(name, monkeypatch, lenses(family), **given, **ON_A_TASK[name]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["samples left out"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_swaps_at_every_site_of_a_family_and_of_the_last_layer_everything(
    family, lenses, bench, tmp_path, monkeypatch
):
    lens, out = lenses(family), tmp_path / "out"
    (bench / TASK / "00001" / "prompt.txt").write_text("walk the other way\n")
    sites = ["block", "update", *(name for name in ("self_attn", "cross_attn", "ffn") if name in lens.sites)]
    given = {
        "sites": ",".join(sites),
        "layers": f"0,{lens.layers - 1}",
        "where": "whole,step",
        "map_steps": "0",
        "branches": "all",
    }
    given |= {"text_only": family == "flux", "orders": 0}
    assert (
        run("layer_swap", monkeypatch, lens, eval_root=bench, out=out, steps=2, cfg_scale=2.0, **given) == 0
    )
    results = xr.open_zarr(out / "results.zarr", consolidated=False)
    assert results.site.values.tolist() == sites and (results.own_change < 1e-3).all()
    if family == "blocks":  # it reads neither prompt nor picture: A and B are one
        assert results.leaning.isnull().all() and (results.apart == 0).all()
        return
    assert np.allclose(results.leaning.sel(arm="own states"), -1, atol=1e-3)
    last = results.leaning.sel(site="block", arm="all branches").isel(layer=-1)
    # FLUX's head reads the prompt itself, so there not even the last state is all.
    assert (last < 0.9).all() if family == "flux" else np.allclose(last, 1, atol=1e-3)
    assert (out / "leaning_one_step_update.png").stat().st_size > 3000


INSIDE = {
    "attention_maps": {"layers": "0", "best": 1},
    "head_ablation": {"layers": "0", "best": 1, "random_sets": 1},
}


@pytest.mark.parametrize("family", ["wan", "ltx2", "diffusers"])
@pytest.mark.parametrize("name", INSIDE)
def test_what_looks_into_attention_runs_on_a_folder(name, family, lenses, bench, tmp_path, monkeypatch):
    lens, out = lenses(family), tmp_path / "out"
    given = {"eval_root": bench, "out": out, "steps": 2, "cfg_scale": 2.0, **INSIDE[name]}
    assert run(name, monkeypatch, lens, **given) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["samples"] == 2 and summary["samples left out"] == 0
    assert any(p.stat().st_size > 3000 for p in out.rglob("*.png"))
    if name == "head_ablation":  # of a folder there is no other scene, and nobody judges
        assert summary["kinds"] == ["zero", "token mean", "placebo"] and "score" not in summary
        return
    known = "not measured" not in summary["words"]
    assert known == (family == "wan")  # of the others it is not known which tokens a prompt becomes
    assert "0 samples" in summary["correspondence"]["not measured"]


@pytest.mark.parametrize("family", ["flux", "blocks"])
@pytest.mark.parametrize("name", INSIDE)
def test_a_model_whose_attention_is_not_known_is_refused_before_anything_runs(
    name, family, lenses, bench, tmp_path, monkeypatch
):
    monkeypatch.setattr("dit_lens.engine.batch.Batch.__init__", None)
    with pytest.raises(dl.PlanError, match=r"attentions none|the attentions none are known"):
        run(name, monkeypatch, lenses(family), eval_root=bench, out=tmp_path, **INSIDE[name])
