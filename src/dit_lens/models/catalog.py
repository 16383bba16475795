"""Which files make which model: data, as the hubs and DiffSynth's own examples have them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from dit_lens.errors import PlanError
from dit_lens.models.organism import table as organism


@dataclass(frozen=True)
class Part:
    """Files that belong together: one model's weights, or a tokenizer's folder.

    Attributes:
        role: what they are, in words.
        repo: their repository at the hubs.
        pattern: their path there; may hold a `*`; one that ends in "/", or is empty, is a folder.
        also: (repository, pattern) of the same in another form; DiffSynth downloads the first of these.
    """

    role: str
    repo: str
    pattern: str
    also: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Model:
    """What a pipeline is made of.

    Attributes:
        pipeline: its class, as a dotted path; it has DiffSynth's `from_pretrained`.
        parts: what it loads, experts in the order of use.
        tokenizer: the folder of its tokenizer.
        loras: `load`'s LoRA options, with the pipeline's attribute that each goes into.
        known_loras: LoRAs that have a name: option to file, by that name.
        needs: packages that DiffSynth's pipeline imports and does not bring along.
    """

    pipeline: str
    parts: tuple[Part, ...]
    tokenizer: Part
    loras: Mapping[str, str] = field(default_factory=lambda: {"lora": "dit"})
    known_loras: Mapping[str, Mapping[str, Part]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


CONVERTED = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
"""DiffSynth loads Wan's `.pth` files from here, as safetensors, when it downloads."""
SHARDS = "diffusion_pytorch_model*.safetensors"


def _wan(repo: str, *dits: tuple[str, str], vae: str = "Wan2.1_VAE", clip: bool = False) -> tuple[Part, ...]:
    """Return the parts of a Wan repository: (role, folder) of its DiTs, the codec, the text encoder, CLIP."""
    others = {"text encoder": "models_t5_umt5-xxl-enc-bf16", "video VAE": vae}
    if clip:
        others["CLIP image encoder"] = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"
    weights = tuple(Part(role, repo, folder + SHARDS) for role, folder in dits or [("DiT", "")])
    return weights + tuple(
        Part(role, repo, f"{name}.pth", ((CONVERTED, f"{name}.safetensors"),))
        for role, name in others.items()
    )


def _vbvr(base: str, **files: str) -> dict[str, dict[str, Part]]:
    """Return the LoRA that was trained on the VBVR data set (arXiv 2602.20159) for a model, as `load` names it."""
    name = f"VBVR-{base}-diffsynth"
    return {
        "vbvr": {
            option: Part("VBVR LoRA", f"Video-Reason/{name}", file, ((f"VBVR/{name}", file),))
            for option, file in files.items()
        }
    }


WAN = "diffsynth.pipelines.wan_video.WanVideoPipeline"
UMT5 = Part("tokenizer", "Wan-AI/Wan2.1-T2V-1.3B", "google/umt5-xxl/")
TWO = {"high_noise_lora": "dit", "low_noise_lora": "dit2"}
EXPERTS = (("high-noise DiT", "high_noise_model/"), ("low-noise DiT", "low_noise_model/"))


def _tokenizer(repo: str) -> Part:
    """Return Wan's tokenizer, from the model's own repository or from the one that DiffSynth takes it from."""
    return Part(UMT5.role, repo, UMT5.pattern, ((UMT5.repo, UMT5.pattern),))


GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"
LTX = "DiffSynth-Studio/LTX-2.3-Repackage"

MODELS: dict[str, Model] = {
    "wan2.2": Model(
        WAN,
        _wan("Wan-AI/Wan2.2-I2V-A14B", *EXPERTS),
        _tokenizer("Wan-AI/Wan2.2-I2V-A14B"),
        TWO,
        _vbvr(
            "Wan2.2",
            high_noise_lora="high_noise_lora.safetensors",
            low_noise_lora="low_noise_lora.safetensors",
        ),
    ),
    "wan2.1": Model(
        WAN,
        _wan("Wan-AI/Wan2.1-I2V-14B-720P", clip=True),
        _tokenizer("Wan-AI/Wan2.1-I2V-14B-720P"),
        known_loras=_vbvr("Wan2.1", lora="lora.safetensors"),
    ),
    "wan2.1-i2v-480p": Model(
        WAN, _wan("Wan-AI/Wan2.1-I2V-14B-480P", clip=True), _tokenizer("Wan-AI/Wan2.1-I2V-14B-480P")
    ),
    "wan2.1-t2v": Model(WAN, _wan("Wan-AI/Wan2.1-T2V-14B"), _tokenizer("Wan-AI/Wan2.1-T2V-14B")),
    "wan2.1-t2v-1.3b": Model(WAN, _wan("Wan-AI/Wan2.1-T2V-1.3B"), UMT5),
    "wan2.2-t2v": Model(
        WAN, _wan("Wan-AI/Wan2.2-T2V-A14B", *EXPERTS), _tokenizer("Wan-AI/Wan2.2-T2V-A14B"), TWO
    ),
    "wan2.2-ti2v-5b": Model(
        WAN, _wan("Wan-AI/Wan2.2-TI2V-5B", vae="Wan2.2_VAE"), _tokenizer("Wan-AI/Wan2.2-TI2V-5B")
    ),
    "ltx2.3": Model(
        "diffsynth.pipelines.ltx2_audio_video.LTX2AudioVideoPipeline",
        (
            Part("text encoder", GEMMA, "model-*.safetensors"),
            *(
                Part(name.replace("_", " "), LTX, f"{name}.safetensors")
                for name in (
                    *("transformer", "text_encoder_post_modules", "video_vae_encoder", "video_vae_decoder"),
                    *("audio_vae_encoder", "audio_vae_decoder", "audio_vocoder"),
                )
            ),
        ),
        Part("tokenizer", GEMMA, ""),
        known_loras=_vbvr("LTX2.3", lora="lora.safetensors"),
        needs=("torchaudio",),
    ),
}
"""By the name that `load` takes. `wan2.2`, `wan2.1` and `ltx2.3` are the models of *Demystifying Video Reasoning*."""

NAMES = (*organism.NAMES, *MODELS)


def find(name: str) -> Model:
    """Return a model by its name.

    Raises:
        PlanError: there is none.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, NAMES, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise PlanError(
            f"No model is called {name!r}, only {', '.join(NAMES)}; for your own pipeline: dl.Lens(pipe).{hint}"
        )
    return MODELS[name]
