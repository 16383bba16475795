"""A LoRA goes in as strong as its file says, wherever it says so; what is no plain LoRA is refused by name."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import dit_lens as dl
from dit_lens.models import lora

LAYERS = {"blocks.0.self_attn.q": 4, "blocks.1.self_attn.k": 2}
"""Layers of the tiny model, and the rank of the LoRA of each."""


def state(form="peft", ranks=LAYERS, prefix=""):
    generator = torch.Generator().manual_seed(0)
    ends = {"peft": ("lora_A.weight", "lora_B.weight"), "kohya": ("lora_down.weight", "lora_up.weight")}[form]
    out = {}
    for name, rank in ranks.items():
        out[f"{prefix}{name}.{ends[0]}"] = torch.randn(rank, 64, generator=generator)
        out[f"{prefix}{name}.{ends[1]}"] = torch.randn(64, rank, generator=generator)
    return out


def strengths(pipe, path):
    """Merge a file, and measure how strong each layer went in: the factor of its B A."""
    before = {name: pipe.dit.get_submodule(name).weight.clone() for name in LAYERS}
    info = lora.add(pipe, "dit", path)
    tensors = {k: v for k, v in state().items()}
    measured = {}
    for name in LAYERS:
        product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        change = pipe.dit.get_submodule(name).weight - before[name]
        factor = float((change * product).sum() / (product**2).sum())
        assert torch.allclose(change, factor * product, atol=1e-4), name
        measured[name] = factor
    assert {round(v, 3) for v in info["strengths"]} == {round(v, 3) for v in measured.values()}
    return list(measured.values())


def diffusers(**config):
    plain = {f"transformer.{k}": v for k, v in config.items()}
    return {
        "lora_adapter_metadata": json.dumps({**plain, "text_encoder.r": 9, "text_encoder.lora_alpha": 99})
    }


BY_RANK = {"rank_pattern": {"k": 2}, "r": 4}
CASES = {
    "nothing said": ({}, {}, [1, 1]),
    "kohya": ({}, {"ss_network_alpha": "1.0"}, [1 / 4, 1 / 2]),
    "alpha beside each": ({"blocks.0.self_attn.q": 1, "blocks.1.self_attn.k": 3}, {}, [1 / 4, 3 / 2]),
    "alpha beside each before kohya": (
        {"blocks.0.self_attn.q": 1, "blocks.1.self_attn.k": 3},
        {"ss_network_alpha": "16", "ss_network_dim": "16"},
        [1 / 4, 3 / 2],
    ),
    "alpha of 0": ({"blocks.0.self_attn.q": 0, "blocks.1.self_attn.k": 2}, {}, [0, 1]),
    "diffusers": ({}, diffusers(lora_alpha=8, **BY_RANK), [2, 4]),
    "alpha pattern": ({}, diffusers(lora_alpha=8, alpha_pattern={"self_attn.k": 1}, **BY_RANK), [2, 1 / 2]),
    "regular pattern": (
        {},
        diffusers(lora_alpha=8, alpha_pattern={r"blocks\.\d+\.self_attn\.[qk]": 2}, **BY_RANK),
        [1 / 2, 1],
    ),
    "a pattern that only looks alike": (
        {},
        diffusers(lora_alpha=8, alpha_pattern={"attn.k": 1}, **BY_RANK),
        [2, 4],
    ),
    "rank stabilised": ({}, diffusers(lora_alpha=8, use_rslora=True, **BY_RANK), [4, 8 / math.sqrt(2)]),
    "both say the same": (
        {"blocks.0.self_attn.q": 8, "blocks.1.self_attn.k": 8},
        diffusers(lora_alpha=8, **BY_RANK),
        [2, 4],
    ),
    "no prefix": ({}, {"lora_adapter_metadata": json.dumps({"lora_alpha": 2, **BY_RANK})}, [1 / 2, 1]),
}


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("case", CASES)
def test_every_layer_goes_in_as_strong_as_the_file_says(tiny_pipe, tmp_path, case, form):
    alphas, metadata, expected = CASES[case]
    tensors = state(form) | {f"{name}.alpha": torch.tensor(float(a)) for name, a in alphas.items()}
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    assert strengths(tiny_pipe(), tmp_path / "lora.safetensors") == pytest.approx(
        expected, rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "mine.safetensors"])
def test_the_configuration_beside_a_file_counts(tiny_pipe, tmp_path, name):
    save_file(state(), tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "lora_alpha": 2, **BY_RANK})
    )
    assert strengths(tiny_pipe(), tmp_path / name) == pytest.approx([1 / 2, 1], rel=1e-3)


def test_the_factor_of_the_user_comes_on_top(tiny_pipe, tmp_path):
    save_file(state(), tmp_path / "lora.safetensors", {"ss_network_alpha": "2"})
    pipe = tiny_pipe()
    before = pipe.dit.blocks[0].self_attn.q.weight.clone()
    info = lora.add(pipe, "dit", tmp_path / "lora.safetensors", 0.5)
    a, b = (state()[f"blocks.0.self_attn.q.lora_{end}.weight"] for end in "AB")
    assert torch.allclose(pipe.dit.blocks[0].self_attn.q.weight, before + 0.5 * 2 / 4 * (b @ a), atol=1e-5)
    assert (info["alpha"], info["strengths"]) == (0.5, [0.5, 1.0])


def test_a_bfloat16_model_gets_the_product_of_what_was_rounded_once(tiny_pipe, tmp_path):
    save_file(state(), tmp_path / "lora.safetensors", {"ss_network_alpha": "0.3"})
    pipe = tiny_pipe(dtype=torch.bfloat16)
    pipe.torch_dtype = torch.bfloat16
    before = pipe.dit.blocks[0].self_attn.q.weight.float().clone()
    lora.add(pipe, "dit", tmp_path / "lora.safetensors")
    a, b = (state()[f"blocks.0.self_attn.q.lora_{end}.weight"] for end in "AB")
    change = pipe.dit.blocks[0].self_attn.q.weight.float() - before
    assert torch.allclose(change, 0.3 / 4 * (b @ a), atol=0.01)


# ---- refused

WHOLE = {"peft_type": "LORA", "lora_alpha": 4, **BY_RANK}
REFUSED = {
    "no number": ({}, {"ss_network_alpha": "None"}, "ss_network_alpha is 'None', which is no number"),
    "another rank": (
        {},
        {"ss_network_alpha": "4", "ss_network_dim": "16"},
        "ss_network_dim=16, and blocks.* has rank",
    ),
    "half the alphas": (
        {"blocks.0.self_attn.q.alpha": torch.tensor(1.0)},
        {},
        "1 layers have an alpha and 1 have none",
    ),
    "alpha of NaN": (
        {f"{name}.alpha": torch.tensor(float("nan")) for name in LAYERS},
        {},
        "alpha of blocks.* is nan, which is no number",
    ),
    "alpha of several": (
        {f"{name}.alpha": torch.ones(2) for name in LAYERS},
        {},
        r"alpha of .* has the shape \(2,\)",
    ),
    "two alphas": (
        {f"{name}.alpha": torch.tensor(1.0) for name in LAYERS},
        diffusers(**WHOLE),
        "has an alpha of 1 beside it, and lora_adapter_metadata says 4",
    ),
    "not JSON": ({}, {"lora_adapter_metadata": "{"}, "lora_adapter_metadata is not JSON"),
    "of a text encoder alone": (
        {},
        {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 4})},
        "says no lora_alpha of transformer",
    ),
    "a rank that is not the file's": ({}, diffusers(lora_alpha=4, r=4), "says r=4 of blocks.1.*has rank 2"),
    "DoRA said": ({}, diffusers(**WHOLE, use_dora=True), "use_dora=True, which is not merged here"),
    "biases said": ({}, diffusers(**WHOLE, lora_bias=True), "lora_bias=True"),
    "PiSSA": ({}, diffusers(**WHOLE, init_lora_weights="pissa_niter_4"), "trained on changed base weights"),
    "LoHa said": (
        {},
        diffusers(**{**WHOLE, "peft_type": "LOHA"}),
        "peft_type=LOHA, which is not merged here",
    ),
    "DoRA": ({"blocks.0.self_attn.q.dora_scale": torch.ones(64)}, {}, "DoRA, which is not merged here"),
    "PEFT's DoRA": ({"blocks.0.self_attn.q.lora_magnitude_vector.weight": torch.ones(64)}, {}, "DoRA"),
    "LoKr": ({"blocks.0.self_attn.q.lokr_w1": torch.ones(4, 4)}, {}, "LoKr"),
    "LoHa": ({"blocks.0.self_attn.q.hada_w1_a": torch.ones(4, 4)}, {}, "LoHa"),
    "LoCon": ({"blocks.0.self_attn.q.lora_mid.weight": torch.ones(4, 4, 3, 3)}, {}, "convolutions"),
    "biases": ({"blocks.0.self_attn.q.lora_B.bias": torch.ones(64)}, {}, "biases"),
    "a difference": ({"blocks.0.norm.diff": torch.ones(64)}, {}, "a difference of whole weights"),
    "a difference of biases": ({"blocks.0.self_attn.q.diff_b": torch.ones(64)}, {}, "a difference of biases"),
    "unknown": (
        {"blocks.0.self_attn.q.magic": torch.ones(64)},
        {},
        r"such as blocks\.0\.self_attn\.q\.magic.*no known kind",
    ),
    "a convolution": (
        {
            "patch_embedding.lora_A.weight": torch.ones(4, 100, 1, 2, 2),
            "patch_embedding.lora_B.weight": torch.ones(64, 4, 1, 1, 1),
        },
        {},
        "of convolutions is not merged here",
    ),
    "a layer twice": (
        {f"diffusion_model.{k}": v + 1 for k, v in state().items()},
        {},
        "4 keys are not those of a LoRA",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_name_and_nothing_changes(tiny_pipe, tmp_path, case):
    more, metadata, words = REFUSED[case]
    save_file(state() | more, tmp_path / "lora.safetensors", metadata)
    pipe = tiny_pipe()
    before = {k: v.clone() for k, v in pipe.dit.state_dict().items()}
    with pytest.raises(dl.ModelError, match=rf"lora\.safetensors: .*{words}"):
        lora.add(pipe, "dit", tmp_path / "lora.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in pipe.dit.state_dict().items())


@pytest.mark.parametrize(
    "keys, words",
    [
        (("lokr_w1", "lokr_w2"), "LoKr"),
        (("hada_w1_a", "hada_w1_b"), "LoHa"),
        (("oft_blocks",), "OFT"),
        (("diff",), "a difference of whole weights"),
        (("weight",), "holds no LoRA that DiffSynth's loader reads"),
    ],
)
def test_a_file_of_another_kind_alone_is_named(tiny_pipe, tmp_path, keys, words):
    save_file(
        {f"blocks.0.self_attn.q.{key}": torch.ones(4, 4) for key in keys}, tmp_path / "lora.safetensors"
    )
    with pytest.raises(dl.ModelError, match=words):
        lora.add(tiny_pipe(), "dit", tmp_path / "lora.safetensors")


def test_a_configuration_that_may_be_another_files_is_refused(tiny_pipe, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state(), tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(WHOLE))
    with pytest.raises(dl.ModelError, match=r"beside it and beside b\.safetensors.*folder of its own"):
        lora.add(tiny_pipe(), "dit", tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(dl.ModelError, match=r"adapter_config\.json: it is no JSON object"):
        lora.add(tiny_pipe(), "dit", tmp_path / "a.safetensors")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), True, "1", None])
def test_the_factor_is_a_number(tiny_pipe, tmp_path, alpha):
    save_file(state(), tmp_path / "lora.safetensors")
    with pytest.raises(dl.ModelError, match="one finite number"):
        lora.add(tiny_pipe(), "dit", tmp_path / "lora.safetensors", alpha)
