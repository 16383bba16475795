"""The models that `real_size.py` measures: DiffSynth's own pipelines and DiTs, random weights, small parts around them.

Each says beside its builder what plain hooks must know to label what they see, without the library.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltx_parts import Gemma, Sound, Tokenizer, Video, torchaudio

WAN_A14B: dict[str, Any] = {
    **{"has_image_input": False, "require_clip_embedding": False, "patch_size": (1, 2, 2), "eps": 1e-6},
    **{"in_dim": 36, "out_dim": 16, "dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "text_dim": 4096},
    **{"num_heads": 40, "num_layers": 40},
}
"""Each of the two experts of Wan 2.2-I2V-A14B, as DiffSynth's table of models has it."""

LTX_23: dict[str, Any] = {
    **{"num_layers": 48, "num_attention_heads": 32, "attention_head_dim": 128, "cross_attention_dim": 4096},
    **{"audio_num_attention_heads": 32, "audio_attention_head_dim": 64, "audio_cross_attention_dim": 2048},
    **{"apply_gated_attention": True, "cross_attention_adaln": True, "caption_channels": None},
}
"""LTX-2.3: the defaults of DiffSynth's `LTXModel` and what its table of models has beside them."""


@dataclass(frozen=True)
class Size:
    """How large a model is built, and where.

    Attributes:
        layers: blocks of each DiT.
        frames: of the video; `height` and `width` in pixels.
        device: where it stands, as torch names it.
        dtype: number type of everything.
    """

    layers: int
    frames: int
    height: int
    width: int
    device: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Model:
    """A model, the sizes to measure it at, and how plain hooks read it.

    Attributes:
        build: size to the pipeline.
        full: layers, frames, height and width as published.
        small: the same, to run without a GPU.
        blocks: attribute of a DiT that lists its blocks.
        experts: expert to the attribute of the pipeline.
        branch: keywords of `model_fn` to the guidance branch.
        states: a block's output to the hidden state [row, token, channel] of each stream.
    """

    title: str
    build: Callable[[Size], Any]
    full: tuple[int, int, int, int]
    small: tuple[int, int, int, int]
    blocks: str
    experts: Mapping[str, str]
    branch: Callable[[Mapping[str, Any]], str]
    states: Callable[[Any], dict[str, Tensor]]


def wan(size: Size) -> Any:
    """Build Wan 2.2-I2V-A14B's pipeline; text encoder and codec are the organism's."""
    with contextlib.redirect_stdout(io.StringIO()):
        from diffsynth.models.wan_video_dit import WanModel
        from diffsynth.pipelines.wan_video import WanVideoPipeline

    from dit_lens.models.organism.modules import LinearCodec, TextEncoder, Tokenizer

    pipe = WanVideoPipeline(device=size.device, torch_dtype=size.dtype)
    pipe.tokenizer, pipe.text_encoder = Tokenizer(), TextEncoder(WAN_A14B["text_dim"])
    pipe.vae = LinearCodec(WAN_A14B["out_dim"])
    for name in ("dit", "dit2"):
        setattr(pipe, name, random_weights(WanModel, {**WAN_A14B, "num_layers": size.layers}, size))
    for part in (pipe.text_encoder, pipe.vae):
        part.to(device=size.device, dtype=size.dtype)
    pipe.text_encoder.table.normal_()
    for part in ("first", "rest"):
        getattr(pipe.vae, f"{part}_basis").normal_(std=0.1)
    return pipe.eval().requires_grad_(False)


def ltx(size: Size) -> Any:
    """Build LTX-2.3's pipeline; text encoder, codecs and vocoder are stand-ins of the same geometry."""
    with contextlib.redirect_stdout(io.StringIO()), torchaudio():
        from diffsynth.models.ltx2_dit import LTXModel
        from diffsynth.pipelines.ltx2_audio_video import LTX2AudioVideoPipeline

    pipe = LTX2AudioVideoPipeline(device=size.device, torch_dtype=size.dtype)
    # 1,024 tokens of text, as published, cost a CPU more than the video's few.
    pipe.tokenizer = Tokenizer(1024 if size.device.startswith("cuda") else 64)
    gemma = Gemma(LTX_23["cross_attention_dim"], LTX_23["audio_cross_attention_dim"])
    pipe.text_encoder = pipe.text_encoder_post_modules = gemma
    pipe.video_vae_encoder = pipe.video_vae_decoder = Video()
    pipe.audio_vae_decoder, pipe.audio_vocoder = torch.nn.Identity(), Sound()
    pipe.dit = random_weights(LTXModel, {**LTX_23, "num_layers": size.layers}, size)
    return pipe.to(device=size.device, dtype=size.dtype).eval().requires_grad_(False)


def random_weights(kind: Any, config: dict[str, Any], size: Size) -> Any:
    """Make a model with random weights on the device, without a copy of it in memory."""
    from diffsynth.core.vram.initialization import skip_model_initialization

    with skip_model_initialization():
        model = kind(**config)
    generator = torch.Generator(size.device).manual_seed(0)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            values = torch.empty(p.shape, dtype=size.dtype, device=size.device)
            values.normal_(std=p.shape[-1] ** -0.5, generator=generator)
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    return model


MODELS = {
    "wan2.2": Model(
        title="Wan 2.2-I2V-A14B",
        build=wan,
        full=(40, 81, 480, 832),
        small=(2, 9, 64, 96),
        blocks="blocks",
        experts={"high": "dit", "low": "dit2"},
        branch=lambda keywords: "cond" if keywords["positive"] else "uncond",
        states=lambda output: {"video": output},
    ),
    "ltx2.3": Model(
        title="LTX-2.3",
        build=ltx,
        full=(48, 121, 512, 768),
        small=(2, 9, 64, 96),
        blocks="transformer_blocks",
        experts={"dit": "dit"},
        branch=lambda keywords: "cond" if "prompt" in keywords else "uncond",
        states=lambda output: {"video": output[0].x, "audio": output[1].x},
    ),
}
