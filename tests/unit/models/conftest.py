"""A tiny Wan 2.2 on disk, laid out as the hubs have it, of the real classes with random weights.

DiffSynth knows a file by the hash of its keys and shapes: the tiny ones are added to its table, so that all of the
loading, theirs and ours, is the real one.
"""

import shutil

import pytest

from dit_lens.models.organism.modules import WORDS

DIT = {
    "dim": 64,
    "in_dim": 36,
    "ffn_dim": 96,
    "out_dim": 16,
    "text_dim": 32,
    "freq_dim": 64,
    "eps": 1e-6,
    "patch_size": (1, 2, 2),
    "num_heads": 2,
    "num_layers": 3,
    "has_image_input": False,
    "require_clip_embedding": False,
}
TEXT = {"vocab": 20, "dim": 32, "dim_attn": 32, "dim_ffn": 48, "num_heads": 2, "num_layers": 1}
REPO = "Wan-AI/Wan2.2-I2V-A14B"
FULL = "organism-full"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "solve", "the", "maze"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )


def write_weights(root):
    """Write the weights; return the modules that they are of."""
    import torch
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_text_encoder import WanTextEncoder
    from diffsynth.models.wan_video_vae import VideoVAE_
    from safetensors.torch import save_file

    torch.manual_seed(0)
    made = {"dit": WanModel(**DIT), "dit2": WanModel(**DIT)}
    for attribute, folder in (("dit", "high_noise_model"), ("dit2", "low_noise_model")):
        (root / REPO / folder).mkdir(parents=True)
        state = {k: v.contiguous() for k, v in made[attribute].state_dict().items()}
        names = sorted(state)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        for n, half in enumerate(halves, 1):
            file = root / REPO / folder / f"diffusion_pytorch_model-{n:05d}-of-00002.safetensors"
            save_file({k: state[k] for k in half}, file)
    text, vae = WanTextEncoder(**TEXT), VideoVAE_(dim=8, z_dim=16)
    torch.save(text.state_dict(), root / REPO / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(vae.state_dict(), root / REPO / "Wan2.1_VAE.pth")
    return made | {"text_encoder": text, "vae": vae}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return (folder, modules that its files are of)."""
    root = tmp_path_factory.mktemp("models")
    made = write_weights(root)
    write_tokenizer(root / REPO / "google/umt5-xxl")
    return root, made


@pytest.fixture
def registered(checkpoint, monkeypatch):
    """Make DiffSynth know the tiny files; return the folder."""
    from diffsynth.core import hash_model_file
    from diffsynth.core.vram.initialization import skip_model_initialization
    from diffsynth.models import model_loader, wan_video_vae

    class TinyVAE(wan_video_vae.WanVideoVAE):
        def __init__(self):
            with skip_model_initialization():
                super().__init__()
            self.model = wan_video_vae.VideoVAE_(dim=8, z_dim=16)

    monkeypatch.setattr(wan_video_vae, "TinyVAE", TinyVAE, raising=False)
    root, _ = checkpoint
    models = "diffsynth.models."
    classes = {
        "high_noise_model/*": ("wan_video_dit", "wan_video_dit.WanModel", DIT),
        "models_t5*": ("wan_video_text_encoder", "wan_video_text_encoder.WanTextEncoder", TEXT),
        "Wan2.1_VAE*": ("wan_video_vae", "wan_video_vae.TinyVAE", {}),
    }
    table = []
    for pattern, (name, kind, config) in classes.items():
        files = sorted(str(p) for p in (root / REPO).glob(pattern))
        entry = {"model_hash": hash_model_file(files), "model_name": name, "model_class": models + kind}
        table.append({**entry, "extra_kwargs": config})
    converter = "diffsynth.utils.state_dict_converters.wan_video_vae.WanVideoVAEStateDictConverter"
    table[-1]["state_dict_converter"] = converter
    monkeypatch.setattr(model_loader, "MODEL_CONFIGS", table)
    return root


@pytest.fixture
def with_clip(registered, tmp_path, monkeypatch):
    """Make DiffSynth know a tiny Wan 2.1 with CLIP's encoder; return its folder and the two modules."""
    import torch
    from diffsynth.core import hash_model_file
    from diffsynth.core.vram.initialization import skip_model_initialization
    from diffsynth.models import model_loader, wan_video_image_encoder
    from diffsynth.models.wan_video_dit import WanModel
    from safetensors.torch import save_file

    text = {"vocab_size": 8, "text_dim": 8, "text_heads": 1, "text_layers": 1, "max_text_len": 4}
    vision = {"vision_layers": 2, "vision_mlp_ratio": 1, "vision_heads": 4, "embed_dim": 16}

    class TinyCLIP(wan_video_image_encoder.WanImageEncoder):
        def __init__(self):
            with skip_model_initialization():
                super().__init__()
            self.model = wan_video_image_encoder.clip_xlm_roberta_vit_h_14(**vision, **text)

    monkeypatch.setattr(wan_video_image_encoder, "TinyCLIP", TinyCLIP, raising=False)
    repo = tmp_path / "Wan-AI/Wan2.1-I2V-14B-720P"
    shutil.copytree(registered / REPO, repo, ignore=shutil.ignore_patterns("*_noise_model"))
    torch.manual_seed(1)
    config = {**DIT, "has_image_input": True, "require_clip_embedding": True}
    dit, clip = WanModel(**config), TinyCLIP()
    files = repo / "diffusion_pytorch_model.safetensors", repo / CLIP
    save_file({k: v.contiguous() for k, v in dit.state_dict().items()}, files[0])
    torch.save({k.removeprefix("model."): v.half() for k, v in clip.state_dict().items()}, files[1])
    models, encoder = "diffsynth.models.", "wan_video_image_encoder"
    converters = "diffsynth.utils.state_dict_converters."
    table = [
        {
            "model_name": "wan_video_dit",
            "model_class": models + "wan_video_dit.WanModel",
            "extra_kwargs": config,
        },
        {
            "model_name": encoder,
            "model_class": f"{models}{encoder}.TinyCLIP",
            "state_dict_converter": f"{converters}{encoder}.WanImageEncoderStateDictConverter",
        },
    ]
    for file, entry in zip(files, table, strict=True):
        entry["model_hash"] = hash_model_file(str(file))
    monkeypatch.setattr(model_loader, "MODEL_CONFIGS", [*model_loader.MODEL_CONFIGS, *table])
    return tmp_path, dit, clip


RANK = 4
"""Of the LoRA of `write_organisms`."""


def halves(prefix, module):
    return {f"{prefix}.{k}": v.half().contiguous() for k, v in module.state_dict().items()}


def write_organisms(folder, seed=0):
    """Write a file of every organism but the first, at its real size with random weights."""
    import torch
    from safetensors.torch import save_file

    from dit_lens.models import organism

    torch.manual_seed(seed)
    first = organism.pipeline(name="organism-v1")
    words = torch.randn(len(WORDS), organism.TEXT_CHANNELS).half()
    save_file(
        halves("vae", first.vae) | {"text_encoder.table": words}, folder / organism.ORGANISMS[FULL].frozen
    )
    for name, one in organism.ORGANISMS.items():
        if name != "organism-v1":
            pipe = organism.pipeline(None, name=name)
            for attribute, file in one.dits.items():
                save_file(halves("dit", getattr(pipe, attribute)), folder / file)
    layers = [f"blocks.{n}.self_attn.{part}" for n in (0, 15) for part in "qkvo"]
    made = {f"{layer}.lora_A.default.weight": torch.randn(RANK, 128) / 8 for layer in layers}
    made |= {f"{layer}.lora_B.default.weight": torch.randn(128, RANK) / 8 for layer in layers}
    save_file({k: v.half() for k, v in made.items()}, folder / "lora.safetensors")
    return folder


@pytest.fixture(scope="session")
def organisms(tmp_path_factory):
    """Return a folder of stand-ins for the files of all organisms but the first."""
    return write_organisms(tmp_path_factory.mktemp("organisms"))
