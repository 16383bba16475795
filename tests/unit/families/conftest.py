"""Tiny diffusers pipelines: the real classes, with random weights, text encoders and word lists of their own."""

import functools
import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl

WORDS = ["<pad>", "<eos>", "<unk>", "a", "cat", "sits", "on", "the", "mat", "dog", "runs"]


def tokenizer(length=8):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=length,
    )


def t5():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()


def clip(kind, width=32):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=16, hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=77, projection_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def flow(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def wan_vae():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan_transformer(channels=16, **options):
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16,
        text_dim=32, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **options,
    )  # fmt: skip


def wan(experts=1):
    from diffusers import UniPCMultistepScheduler, WanPipeline

    # What Wan 2.1 and 2.2 ship with; the flow-matching Euler stands in the other pipelines.
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=wan_vae(), scheduler=scheduler,
        transformer=wan_transformer(), transformer_2=wan_transformer() if experts == 2 else None,
        boundary_ratio=0.8 if experts == 2 else None,
    )  # fmt: skip


def wan_image(vision=True):
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        intermediate_size=16, patch_size=16,
    )  # fmt: skip
    return WanImageToVideoPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=wan_vae(), scheduler=flow(shift=7.0),
        transformer=wan_transformer(36, image_dim=4), transformer_2=None,
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        image_processor=CLIPImageProcessor(crop_size=32, size=32),
    )  # fmt: skip


def ltx():
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False), upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1), timestep_conditioning=False, patch_size=1, patch_size_t=1,
        encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32,
    )  # fmt: skip
    return LTXPipeline(flow(), vae, t5(), tokenizer(), transformer)


def ltx_image():
    from diffusers import LTXImageToVideoPipeline

    return LTXImageToVideoPipeline(**ltx().components)


def cogvideox():
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=2, sample_width=4, sample_height=2, sample_frames=5, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return CogVideoXPipeline(tokenizer(), t5(), vae, transformer, scheduler)


def hunyuan():
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
    from transformers import LlamaConfig, LlamaModel

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        act_fn="silu", norm_num_groups=4, scaling_factor=0.476986, spatial_compression_ratio=8,
        temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(llama).eval(), tokenizer=tokenizer(64), transformer=transformer, vae=vae,
        scheduler=flow(shift=7.0), text_encoder_2=clip("CLIPTextModel", 8), tokenizer_2=tokenizer(77),
    )  # fmt: skip


def mochi():
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, out_channels=None, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4,
        activation_fn="swiglu", max_sequence_length=16,
    )  # fmt: skip
    transformer.pos_frequencies.data.zero_()
    vae = AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return MochiPipeline(flow(invert_sigmas=True), vae, t5(), tokenizer(), transformer)


def image_vae(channels):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,), layers_per_block=1,
        latent_channels=channels, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.0609, scaling_factor=1.5035,
    )  # fmt: skip


def flux():
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return FluxPipeline(
        flow(), image_vae(1), clip("CLIPTextModel"), tokenizer(77), t5(), tokenizer(), transformer
    )


def sd3():
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    kind = "CLIPTextModelWithProjection"
    return StableDiffusion3Pipeline(
        transformer,
        flow(),
        image_vae(4),
        clip(kind),
        tokenizer(77),
        clip(kind),
        tokenizer(77),
        t5(),
        tokenizer(),
    )


def pixart():
    from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return PixArtAlphaPipeline(tokenizer(), t5(), image_vae(4), transformer, DDIMScheduler())


def dit():
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    return DiTPipeline(transformer, image_vae(4), DDIMScheduler())


VIDEO = {"prompt": "a cat sits on the mat", "negative_prompt": "dog runs", "size": (32, 48), "num_frames": 5}


def image(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


SHORT = {"max_sequence_length": 8}
TEMPLATE = {"prompt_template": {"template": "{}", "crop_start": 0}}
CASES = {
    "wan": (wan, VIDEO, SHORT),
    "wan2.2": (functools.partial(wan, 2), VIDEO, SHORT),
    "wan-image": (wan_image, {**VIDEO, "image": image(32, 48)}, SHORT),
    "ltx": (ltx, {**VIDEO, "size": (32, 64), "num_frames": 9}, SHORT),
    "ltx-image": (ltx_image, {**VIDEO, "size": (32, 64), "num_frames": 9, "image": image(32, 64)}, SHORT),
    "cogvideox": (cogvideox, {**VIDEO, "size": (16, 32)}, SHORT),
    "hunyuan": (hunyuan, {**VIDEO, "size": (16, 32)}, {**SHORT, **TEMPLATE}),
    "mochi": (mochi, {**VIDEO, "size": (16, 32), "num_frames": 7}, SHORT),
    "flux": (flux, {**VIDEO, "size": (8, 16)}, SHORT),
    "sd3": (sd3, {**VIDEO, "size": (8, 16)}, SHORT),
    "pixart": (pixart, {**VIDEO, "size": (8, 16)}, {**SHORT, "clean_caption": False}),
    "dit": (dit, {**VIDEO, "size": (8, 8)}, {"class_labels": [1]}),
}
"""Name to how the pipeline is made, a sample for it, and the keywords of a run."""


class Case:
    """A tiny pipeline, a sample for it, and how it is run bare.

    Attributes:
        pipe: the pipeline.
        sample: that fits it.
        extra: keywords of a run.
    """

    def __init__(self, name):
        make, sample, self.extra = CASES[name]
        self.name, self.sample = name, dl.Sample(**sample)
        torch.manual_seed(0)
        self.pipe = make()
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        for dit in (self.pipe.transformer, getattr(self.pipe, "transformer_2", None)):
            # Models start with modulations of zero: states would not depend on anything.
            for p in dit.parameters() if dit is not None else ():
                p.normal_(0, 0.2) if float(p.abs().max()) == 0 else None
        self.pipe.set_progress_bar_config(disable=True)
        self.held = int(name == "ltx-image")  # frames that the scheduler does not step
        self.latent = (3, 8, 16) if name.startswith("ltx") else None

    def run(self, lens, steps=3, cfg_scale=3.0, **options):
        return lens.run(self.sample, steps=steps, cfg_scale=cfg_scale, **self.extra, **options)

    def bare(self, steps=3, cfg_scale=3.0, **options):
        """Run the pipeline alone, as its own documentation does; return its frames."""
        keywords = {
            "num_inference_steps": steps,
            "output_type": "np",
            "generator": torch.Generator().manual_seed(0),
        }
        scale = "true_cfg_scale" if self.name in ("flux", "hunyuan") else "guidance_scale"
        if self.name != "dit":
            keywords |= {
                "prompt": self.sample.prompt,
                "height": self.sample.height,
                "width": self.sample.width,
            }
            keywords["negative_prompt"] = self.sample.negative_prompt
        if self.name in ("wan", "wan2.2", "wan-image", "ltx", "ltx-image", "cogvideox", "hunyuan", "mochi"):
            keywords["num_frames"] = self.sample.num_frames
        if self.name.endswith("image"):
            keywords["image"] = self.sample.image
        if self.name == "pixart":
            keywords["use_resolution_binning"] = False
        out = self.pipe(**keywords, **{scale: cfg_scale}, **self.extra, **options)
        frames = out.frames[0] if hasattr(out, "frames") else out.images
        return frames


@pytest.fixture(scope="session")
def made():
    pytest.importorskip("diffusers")
    return functools.cache(Case)


@pytest.fixture(params=CASES)
def case(request, made):
    return made(request.param)


# ---- pipelines whose loops are out of the ordinary

_spec = importlib.util.spec_from_file_location("tiny_pipes", Path(__file__).parent / "pipes.py")
tiny_pipes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_pipes)


@pytest.fixture(scope="session")
def pipes():
    """The module of tiny pipelines, for the keywords and pictures that go with them."""
    pytest.importorskip("diffusers")
    return tiny_pipes


@pytest.fixture(scope="session")
def parts():
    """What pipelines are made of here, and makers of pipelines."""
    pytest.importorskip("diffusers")
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def build(parts):
    """Return a function that makes a tiny pipeline, by the name of its maker and the maker's arguments."""

    def made_by(name, *args, **options):
        with tiny_pipes.seeded():
            return tiny_pipes.quiet(getattr(tiny_pipes.Pipes(parts), name)(*args, **options))

    return made_by


class Watch:
    """What a bare pipeline does, by plain hooks: inputs of its transformer, states of its blocks, its steps.

    Attributes:
        inputs: keywords of every call of the transformer, tensors copied.
        states: output of every block, call by call.
        steps: (timestep, sample, model_output, prev_sample) of every step of the scheduler.
    """

    def __init__(self, pipe, blocks):
        self.pipe, self.inputs, self.states, self.steps = pipe, [], [], []
        self.handles = [pipe.transformer.register_forward_pre_hook(self._call, with_kwargs=True)]
        for layer, block in enumerate(blocks):
            self.handles.append(block.register_forward_hook(functools.partial(self._state, layer)))
        original, names = pipe.scheduler.step, list(inspect.signature(pipe.scheduler.step).parameters)

        @functools.wraps(original)
        def step(*args, **kwargs):
            call = dict(zip(names, args, strict=False)) | kwargs
            before = [call[name].clone() for name in ("sample", "model_output")]
            out = original(*args, **kwargs)
            after = out[0] if isinstance(out, tuple) else out.prev_sample
            self.steps.append((call["timestep"], *before, after.clone()))
            return out

        pipe.scheduler.step = step

    def _call(self, module, args, kwargs):
        self.inputs.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
        self.states.append({})

    def _state(self, layer, module, args, output):
        self.states[-1][layer] = output

    def close(self):
        del self.pipe.scheduler.step
        for handle in self.handles:
            handle.remove()


@pytest.fixture
def watch_bare():
    """Return a function that runs a pipeline bare under a `Watch`, and returns it with the pipeline's output."""

    def run(pipe, blocks=(), **keywords):
        watch = Watch(pipe, blocks)
        try:
            with torch.no_grad():
                out = pipe(**keywords)
        finally:
            watch.close()
        return watch, out

    return run
