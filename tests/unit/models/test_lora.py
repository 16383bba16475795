"""LoRAs go where their names say, with the arithmetic that one does by hand; what does not fit is refused."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dit_lens as dl
from dit_lens.models import lora

RANK = 4
TARGETS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.2.ffn.0")


def factors(dit, targets=TARGETS, seed=0):
    """Make random A [rank, in] and B [out, rank] for layers of a model."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in targets:
        out, into = dit.get_submodule(name).weight.shape
        a, b = (torch.randn(s, generator=generator) for s in ((RANK, into), (out, RANK)))
        made[name] = a, b
    return made


FORMATS = {
    "diffsynth": ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "peft": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "comfyui": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
}


def write(path, made, form="diffsynth", alpha=None):
    down, up = FORMATS[form]
    state = {}
    for name, (a, b) in made.items():
        state |= {down.format(name): a, up.format(name): b}
        if alpha is not None:
            state[up.format(name).replace("lora_up.weight", "alpha")] = torch.tensor(alpha)
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("form", FORMATS)
def test_merging_is_merging_by_hand(tiny_pipe, tmp_path, form, alpha):
    pipe = tiny_pipe()
    before = {k: v.clone() for k, v in pipe.dit.state_dict().items()}
    made = factors(pipe.dit)
    found = lora.add(pipe, "dit", write(tmp_path / "lora.safetensors", made, form), alpha)
    assert found["matched"] == len(TARGETS) and found["unmatched"] == 0 and not found["hot"]
    for name, after in pipe.dit.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = before[name]
        if layer in made and name.endswith(".weight"):
            a, b = made[layer]
            expected = expected + alpha * (b @ a)
            assert not torch.equal(after, before[name])
        assert torch.equal(after, expected), name


def test_an_alpha_in_the_file_counts_as_alpha_over_rank(tiny_pipe, tmp_path):
    pipe = tiny_pipe()
    made = factors(pipe.dit, TARGETS[:1])
    before = pipe.dit.blocks[0].self_attn.q.weight.clone()
    found = lora.add(pipe, "dit", write(tmp_path / "lora.safetensors", made, "comfyui", alpha=2.0))
    a, b = made[TARGETS[0]]
    assert torch.allclose(pipe.dit.blocks[0].self_attn.q.weight, before + 2.0 / RANK * (b @ a), atol=1e-5)
    assert found["matched"] == 1 and found["unmatched"] == 0


def test_a_lora_that_matches_nothing_is_refused_with_some_of_its_keys(tiny_pipe, tmp_path):
    pipe = tiny_pipe()
    before = {k: v.clone() for k, v in pipe.dit.state_dict().items()}
    kohya = {f"lora_unet_blocks_0_self_attn_q.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")}
    save_file(kohya, tmp_path / "kohya.safetensors")
    with pytest.raises(dl.ModelError, match=r"none of its 1 LoRA layers.*lora_unet_blocks_0.*kohya's"):
        lora.add(pipe, "dit", tmp_path / "kohya.safetensors")
    other = {f"transformer.x.lora_{end}.weight": torch.zeros(4, 4) for end in "AB"}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(dl.ModelError, match=r"transformer\.x\.lora_A.*another model"):
        lora.add(pipe, "dit", tmp_path / "other.safetensors")
    save_file({"blocks.0.weight": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(dl.ModelError, match="holds no LoRA that DiffSynth's loader reads"):
        lora.add(pipe, "dit", tmp_path / "none.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in pipe.dit.state_dict().items())


def test_a_lora_of_another_shape_is_refused_before_anything_changes(tiny_pipe, tmp_path):
    pipe = tiny_pipe()
    made = factors(pipe.dit)
    made[TARGETS[2]] = torch.zeros(RANK, 7), torch.zeros(96, RANK)
    before = {k: v.clone() for k, v in pipe.dit.state_dict().items()}
    with pytest.raises(dl.ModelError, match=r"blocks\.2\.ffn\.0 is .*another model"):
        lora.add(pipe, "dit", write(tmp_path / "lora.safetensors", made))
    assert all(torch.equal(v, before[k]) for k, v in pipe.dit.state_dict().items())


def test_half_a_lora_layer_is_refused(tiny_pipe, tmp_path):
    save_file({"blocks.0.self_attn.q.lora_B.weight": torch.zeros(64, 4)}, tmp_path / "half.safetensors")
    with pytest.raises(dl.ModelError, match="half of this LoRA layer is missing"):
        lora.add(tiny_pipe(), "dit", tmp_path / "half.safetensors")


def test_layers_that_the_model_does_not_have_are_warned_of_and_counted(tiny_pipe, tmp_path):
    pipe = tiny_pipe()
    state = {"blocks.9.self_attn.q.lora_A.weight": torch.zeros(4, 64)}
    state["blocks.9.self_attn.q.lora_B.weight"] = torch.zeros(64, 4)
    for name, (a, b) in factors(pipe.dit).items():
        state |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.warns(UserWarning, match=r"3 LoRA layers go into dit; 1 match no layer"):
        found = lora.add(pipe, "dit", tmp_path / "lora.safetensors")
    assert (found["matched"], found["unmatched"]) == (3, 1)


@pytest.mark.parametrize(
    "name, content", [("gone.safetensors", None), ("lora.pth", b"x"), ("a.safetensors", b"x")]
)
def test_a_file_that_is_no_lora_is_refused(tiny_pipe, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(dl.ModelError, match=r"No LoRA at|is a \.safetensors file|not a safetensors file"):
        lora.add(tiny_pipe(), "dit", tmp_path / name)


def managed(pipe, onload):
    """Switch DiffSynth's VRAM management on, by its own map of modules."""
    from diffsynth.core.vram.layers import enable_vram_management
    from diffsynth.models.model_loader import ModelPool

    states = {"offload": torch.float32, "onload": onload, "preparing": onload, "computation": torch.float32}
    config = {
        f"{k}_{part}": v for k, dtype in states.items() for part, v in (("dtype", dtype), ("device", "cpu"))
    }
    kinds = ModelPool().fetch_module_map("diffsynth.models.wan_video_dit.WanModel", config)
    pipe.dit = enable_vram_management(pipe.dit, kinds, config)
    pipe.vram_management_enabled = True
    return pipe


@pytest.mark.parametrize("onload", [torch.float32, torch.bfloat16], ids=str)
def test_under_vram_management_a_lora_is_added_in_every_forward(
    tiny_pipe, tmp_path, sample, run_bare, left_behind, monkeypatch, onload
):
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)
    plain, pipe = tiny_pipe(), managed(tiny_pipe(), onload)
    base = run_bare(pipe, sample)
    without = dl.Lens(pipe).fingerprint()
    path = write(tmp_path / "lora.safetensors", factors(plain.dit))
    found = lora.add(pipe, "dit", path, 0.5)
    assert found["hot"] and found["matched"] == 3
    held = [m for m in pipe.dit.modules() if getattr(m, "lora_A_weights", None)]
    assert sorted(m.name for m in held) == sorted(TARGETS)
    lens = dl.Lens(pipe)
    assert lens.fingerprint() != without  # it is no parameter, and changes the model all the same
    expected = run_bare(pipe, sample)
    assert not np.array_equal(expected, base)
    run = lens.run(sample, steps=3, cfg_scale=1.0, record=[dl.hidden])
    assert np.array_equal(run.video, expected) and left_behind(pipe) == []
    lora.add(plain, "dit", path, 0.5)
    merged = dl.Lens(plain).run(sample, steps=3, cfg_scale=1.0, record=[dl.hidden])
    atol = 1e-3 if onload == torch.float32 else 0.3  # weights rest in bfloat16
    assert np.allclose(merged["hidden"].values, run["hidden"].values, rtol=0.05, atol=atol)
    pipe.clear_lora(verbose=0)
    assert dl.Lens(pipe).fingerprint() == without


def test_no_warning_where_everything_fits(tiny_pipe, tmp_path):
    pipe = tiny_pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.add(pipe, "dit", write(tmp_path / "lora.safetensors", factors(pipe.dit)))
