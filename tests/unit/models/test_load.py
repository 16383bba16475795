"""A model is loaded by its name, from a folder laid out as the hubs have it, by DiffSynth's own loader."""

import contextlib
import importlib.util
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dit_lens as dl
from dit_lens.models import catalog, loading
from dit_lens.models.options import ModelOptions
from dit_lens.models.organism import DEFAULT

REPO = "Wan-AI/Wan2.2-I2V-A14B"
TARGET = "blocks.1.self_attn.q"


def load(root, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return dl.load("wan2.2", model_root=root, **{"device": "cpu", "dtype": "float32", **options})


def make_lora(path, scale=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    a, b = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), torch.full((64, 4), float(scale))
    save_file({f"{TARGET}.lora_A.default.weight": a, f"{TARGET}.lora_B.default.weight": b}, path)
    return path, b @ a


@pytest.fixture(scope="module")
def sample():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return dl.Sample(prompt="solve the maze", image=Image.fromarray(pixels), num_frames=5)


@pytest.fixture
def cache_of_cpu(monkeypatch):
    # DiffSynth empties the device's cache after it has moved models; torch.cpu has none.
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)


def test_a_folder_gives_the_weights_that_are_in_it(registered, checkpoint, sample):
    lens = load(registered)
    _, made = checkpoint
    for attribute, module in made.items():
        held = getattr(lens.pipe, attribute)
        held = held.model if attribute == "vae" else held
        state = module.state_dict()
        assert set(held.state_dict()) == set(state)
        assert all(torch.equal(v, state[k]) for k, v in held.state_dict().items()), attribute
    assert lens.pipe.tokenizer.tokenizer("solve the maze")["input_ids"] == [2, 3, 4]
    assert lens.dtype == torch.float32 and str(lens.pipe.device) == "cpu"
    run = lens.run(sample, steps=4, record=[dl.energy])
    assert set(run.dataset["expert"].values) == {"high", "low"} and run.complete
    model = run.attrs["manifest"]["identity"]["model"]
    assert model["name"] == "wan2.2" and len(model["weights"]) == 6
    assert all(v.startswith("sha256:") for v in model["weights"].values())


def test_a_model_with_clip_loads_its_encoder(with_clip, sample, tmp_path):
    root, dit, clip = with_clip
    path, change = make_lora(tmp_path / "lora.safetensors")
    with contextlib.redirect_stdout(io.StringIO()):
        lens = dl.load("wan2.1", model_root=root, lora=path, device="cpu", dtype="float32")
    held = lens.pipe.image_encoder.state_dict()
    assert held and all(torch.equal(v, clip.state_dict()[k].half().float()) for k, v in held.items())
    assert torch.equal(lens.pipe.dit.get_submodule(TARGET).weight, dit.get_submodule(TARGET).weight + change)
    run = lens.run(sample, steps=2, cfg_scale=2.0, record=[dl.hidden])
    assert run.complete and list(run["hidden"].coords["branch"].values) == ["cond", "uncond"]
    assert set(lens.info["loras"]) == {"lora"} and lens.info["loras"]["lora"]["matched"] == 1


def test_loras_go_into_their_experts_and_into_the_manifest(registered, tmp_path):
    (high, by_high), (low, by_low) = (
        make_lora(tmp_path / "h.safetensors"),
        make_lora(tmp_path / "l.safetensors", -2),
    )
    plain = load(registered)
    lens = load(registered, high_noise_lora=high, low_noise_lora=low, lora_alpha=0.5)
    for attribute, change in (("dit", by_high), ("dit2", by_low)):
        before = getattr(plain.pipe, attribute).get_submodule(TARGET).weight
        after = getattr(lens.pipe, attribute).get_submodule(TARGET).weight
        assert torch.equal(after, before + 0.5 * change)
    found = lens.info["loras"]
    assert found["high_noise_lora"]["matched"] == found["low_noise_lora"]["matched"] == 1
    assert found["high_noise_lora"]["sha256"] != found["low_noise_lora"]["sha256"]
    assert found["high_noise_lora"]["alpha"] == 0.5


def test_a_lora_that_the_model_is_known_to_have_is_found_by_name(registered, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(registered, root)
    files = catalog.MODELS["wan2.2"].known_loras["vbvr"]
    with pytest.raises(dl.ModelError, match=r"hf download Video-Reason/VBVR-Wan2\.2-diffsynth"):
        load(root, lora="vbvr")
    for part in files.values():
        make_lora(root / part.repo / part.pattern)
    assert set(load(root, lora="vbvr").info["loras"]) == {"high_noise_lora", "low_noise_lora"}


def test_options_that_a_model_does_not_take_are_refused(tmp_path):
    with pytest.raises(
        dl.PlanError, match=r"takes high_noise_lora and low_noise_lora, not lora='x.safetensors'"
    ):
        dl.load("wan2.2", model_root=tmp_path, lora="x.safetensors")
    with pytest.raises(dl.PlanError, match=r"wan2\.1 takes lora, not high_noise_lora"):
        dl.load("wan2.1", model_root=tmp_path, high_noise_lora="x.safetensors")
    with pytest.raises(dl.PlanError, match=r"No model is called 'wan2\.3'.*Did you mean 'wan2\.2'"):
        dl.load("wan2.3")
    with pytest.raises(dl.PlanError, match=r"organism-v1 ships .* takes no lora"):
        dl.load("organism-v1", lora="x.safetensors")
    with pytest.raises(dl.ModelError, match=r"No LoRA at .*gone\.safetensors"):
        dl.load("wan2.1", model_root=tmp_path, lora=tmp_path / "gone.safetensors")
    with pytest.raises(dl.PlanError, match="by name is looked for in model_root"):
        dl.load("wan2.1", lora="vbvr")


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloading_changes_nothing_but_where_weights_rest(registered, sample, cache_of_cpu, offload):
    plain, lens = load(registered), load(registered, offload=offload)
    assert lens.pipe.vram_management_enabled and not plain.pipe.vram_management_enabled
    record = [(dl.hidden, dl.at(site=site)) for site in ("block", "q", "ffn")]
    expected = plain.run(sample, steps=4, cfg_scale=2.0, record=record)
    run = lens.run(sample, steps=4, cfg_scale=2.0, record=record)
    for name in ("hidden", "hidden_q", "hidden_ffn"):
        assert np.array_equal(run[name].values, expected[name].values)
    assert np.array_equal(run.video, expected.video)
    edited = lens.run(sample, steps=4, cfg_scale=2.0, edit=[(dl.zero(), dl.at(site="self_attn", layer=1))])
    assert not np.array_equal(edited.video, run.video)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_loras_are_hot_loaded_where_weights_are_offloaded(registered, sample, cache_of_cpu, tmp_path, where):
    options = {"high_noise_lora": make_lora(tmp_path / "h.safetensors")[0], "lora_alpha": 0.5}
    merged, hot = load(registered, **options), load(registered, offload=where, **options)
    assert (
        hot.info["loras"]["high_noise_lora"]["hot"] and hot.info["loras"]["high_noise_lora"]["matched"] == 1
    )
    runs = [lens.run(sample, steps=4, record=[dl.hidden]) for lens in (merged, hot)]
    assert np.allclose(runs[0]["hidden"].values, runs[1]["hidden"].values, rtol=1e-3, atol=1e-3)
    plain = load(registered).run(sample, steps=4, record=[dl.hidden])
    assert not np.allclose(plain["hidden"].values, runs[0]["hidden"].values, rtol=1e-3, atol=1e-3)


def test_weights_on_disk_are_told_apart_by_what_loaded_them(registered, sample, cache_of_cpu):
    pipe = load(registered, offload="disk").pipe
    with pytest.raises(dl.PlanError, match=r"rest on disk.*dl\.load"):
        dl.Lens(pipe).run(sample, steps=1)
    assert dl.Lens(pipe, info={"weights": "mine"}).run(sample, steps=1).complete


def test_diffsynths_own_configuration_is_passed_on(registered, sample, cache_of_cpu):
    config = {
        f"{state}_{what}": value
        for state in ("offload", "onload", "preparing", "computation")
        for what, value in (("device", "cpu"), ("dtype", "float32" if state == "computation" else "bfloat16"))
    }
    lens = load(registered, offload=config)
    layer = lens.pipe.dit.blocks[0].self_attn.q
    assert layer.onload_dtype == torch.bfloat16 and layer.computation_dtype == torch.float32
    assert lens.run(sample, steps=2, record=[dl.energy]).complete
    assert lens.info["vram"]["onload_dtype"] == "torch.bfloat16"


def test_memory_options_that_the_device_or_diffsynth_does_not_have_are_refused(registered, monkeypatch):
    with pytest.raises(dl.PlanError, match=r"device='cpu' has none of its own"):
        load(registered, vram_limit=8)
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)
    with pytest.raises(dl.PlanError, match="'cpu', 'disk', or DiffSynth's"):
        load(registered, offload="tape")
    with pytest.raises(dl.PlanError, match=r"offload: \['onlod_dtype'\]"):
        load(registered, offload={"onlod_dtype": torch.float32})
    with pytest.raises(dl.PlanError, match="dtype='half': one of float32"):
        load(registered, dtype="half")


def test_an_accelerator_keeps_two_gib_free_unless_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 24 * 2**30))
    config, limit = loading.vram("cpu", None, "cuda", torch.bfloat16)
    assert limit == 22 and config["offload_device"] == "cpu" and config["computation_device"] == "cuda"
    assert loading.vram("disk", 8.0, "cuda", torch.bfloat16)[1] == 8.0
    assert loading.vram(None, None, "cuda", torch.bfloat16) == ({}, None)


def test_without_a_folder_diffsynth_downloads_each_part(registered, monkeypatch):
    from diffsynth.core import ModelConfig

    asked = []

    def download(self):
        asked.append((self.model_id, self.origin_file_pattern))
        part = next(p for p in (*model.parts, model.tokenizer) if asked[-1] in ((p.repo, p.pattern), *p.also))
        found = sorted(str(p) for p in (registered / part.repo).glob(part.pattern.rstrip("/")))
        self.path = found if len(found) > 1 else found[0]

    model = catalog.MODELS["wan2.2"]
    monkeypatch.setattr(
        ModelConfig, "download_if_necessary", lambda self: None if self.path else download(self)
    )
    lens = load(None)
    assert lens.info["weights"] == load(registered).info["weights"]
    assert ("DiffSynth-Studio/Wan-Series-Converted-Safetensors", "Wan2.1_VAE.safetensors") in asked
    assert (REPO, "high_noise_model/diffusion_pytorch_model*.safetensors") in asked


def test_a_package_that_is_not_installed_is_named_before_anything_is_imported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchaudio" else object())
    with pytest.raises(dl.ModelError, match=r"ltx2\.3 needs torchaudio.*pip install"):
        dl.load("ltx2.3")


def test_a_download_that_gives_nothing_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "true")
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", str(tmp_path))
    with pytest.raises(
        dl.ModelError, match=r"nothing came of high_noise_model/.*from Wan-AI/Wan2\.2-I2V-A14B"
    ):
        load(None)


def test_runs_that_differ_in_what_was_loaded_or_how_share_no_name(registered, sample, cache_of_cpu, tmp_path):
    (one, _), (two, _) = make_lora(tmp_path / "1.safetensors"), make_lora(tmp_path / "2.safetensors", 0.9)
    other = tmp_path / "root"
    shutil.copytree(registered, other)
    vae = other / REPO / "Wan2.1_VAE.pth"
    state = torch.load(vae)
    state["conv1.bias"][0] += 1  # in the codec: the DiTs are the same
    torch.save(state, vae)
    lenses = [
        load(registered),
        load(other),
        load(registered, high_noise_lora=one),
        load(registered, high_noise_lora=one, lora_alpha=0.5),
        load(registered, high_noise_lora=two),
        load(registered, low_noise_lora=one),
        load(registered, dtype="bfloat16"),
        load(registered, offload="cpu"),
    ]

    def name(lens, **more):
        from dit_lens.engine.request import Request
        from dit_lens.plan.plan import Plan

        request = Request(lens.specimen, sample, 0, Plan.of([]), steps=2, cfg_scale=1.0, arguments=more)
        return request.stages[0].name

    names = [name(lens) for lens in lenses]
    names += [name(lenses[0], sigma_shift=3.0), name(lenses[0], switch_DiT_boundary=0.5)]
    lenses[0].pipe.scheduler = type(lenses[0].pipe.scheduler)("Z-Image")
    names.append(name(lenses[0]))
    assert len(set(names)) == len(names)
    assert name(load(registered)) == names[0]  # and the same again does


def test_the_attention_function_is_in_the_name(registered, sample, monkeypatch, tmp_path):
    from diffsynth.models import wan_video_dit

    lens = load(registered)
    before = lens.run(sample, steps=1, store=tmp_path).path.name
    monkeypatch.setattr(wan_video_dit, "flash_attn_interface", None, raising=False)
    monkeypatch.setattr(wan_video_dit, "FLASH_ATTN_3_AVAILABLE", True)
    from dit_lens.engine.request import Request
    from dit_lens.plan.plan import Plan

    request = Request(lens.specimen, sample, 0, Plan.of([]), steps=1)
    assert request.identity["attention"] == "flash_attn_3" and request.stages[0].name != before


def test_the_command_lines_options_load_what_they_say(registered, tmp_path):
    import tyro

    path, _ = make_lora(tmp_path / "h.safetensors")
    given = {"model": "wan2.2", "model-root": registered, "high-noise-lora": path, "lora-alpha": 0.5}
    given |= {"device": "cpu", "dtype": "float32"}
    options = tyro.cli(ModelOptions, args=[str(x) for k, v in given.items() for x in (f"--{k}", v)])
    with contextlib.redirect_stdout(io.StringIO()):
        lens = options.load()
    assert lens.info["loras"]["high_noise_lora"]["alpha"] == 0.5
    assert tyro.cli(ModelOptions, args=[]) == ModelOptions()
    assert ModelOptions().load().info["name"] == DEFAULT
