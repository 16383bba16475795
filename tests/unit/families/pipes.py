"""More tiny diffusers pipelines of the real classes: the ones whose loops are out of the ordinary."""

import contextlib
import inspect

import torch
from PIL import Image

SHORT = {"max_sequence_length": 8}


class Pipes:
    """Makes pipelines out of the parts of `conftest.py`.

    Attributes:
        parts: the module that holds them.
    """

    def __init__(self, parts):
        self.parts = parts

    # ---- videos

    def ti2v(self):
        """Make Wan 2.2 TI2V-5B, image to video: the first frame is given, its tokens are told timestep 0."""
        from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

        p = self.parts
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        )  # fmt: skip
        return WanImageToVideoPipeline(
            tokenizer=p.tokenizer(), text_encoder=p.t5(), vae=vae, scheduler=p.flow(shift=5.0),
            transformer=p.wan_transformer(), expand_timesteps=True,
        )  # fmt: skip

    def wan_video(self):
        from diffusers import WanVideoToVideoPipeline

        p = self.parts
        return WanVideoToVideoPipeline(
            p.tokenizer(), p.t5(), p.wan_transformer(), p.wan_vae(), p.flow(shift=3.0)
        )

    def vace(self):
        from diffusers import WanVACEPipeline, WanVACETransformer3DModel

        p = self.parts
        transformer = WanVACETransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32, vace_layers=[0, 2],
            vace_in_channels=96,
        )  # fmt: skip
        return WanVACEPipeline(p.tokenizer(), p.t5(), p.wan_vae(), p.flow(shift=3.0), transformer)

    def hunyuan_image(self, kind):
        """Make HunyuanVideo, image to video; its multimodal text encoder is left out, and embeddings are given."""
        from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel

        whole = self.parts.hunyuan()
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=9 if kind == "latent_concat" else 4, out_channels=4, num_attention_heads=2,
            attention_head_dim=10, num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1,
            patch_size_t=1, guidance_embeds=False, text_embed_dim=16, pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4), image_condition_type=kind,
        )  # fmt: skip
        return HunyuanVideoImageToVideoPipeline(
            None, None, transformer, whole.vae, whole.scheduler, whole.text_encoder_2, whole.tokenizer_2, None
        )

    def kandinsky(self, visual_cond=True):
        """Make Kandinsky 5: its Qwen encoder is a table of words, the rest is its own."""
        from diffusers import Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

        p = self.parts
        transformer = Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=24, ff_dim=32,
            num_text_blocks=1, num_visual_blocks=2, axes_dims=(2, 2, 4), visual_cond=visual_cond,
        )  # fmt: skip
        pipe = Kandinsky5T2VPipeline(
            transformer, p.hunyuan().vae, None, None, p.clip("CLIPTextModel", 8), p.tokenizer(77), p.flow()
        )
        words, table = p.tokenizer(), torch.nn.Embedding(16, 16).requires_grad_(False)

        def encode(prompt, **rest):
            ids = words(prompt, return_tensors="pt").input_ids
            return table(ids), torch.tensor([0, ids.shape[1]], dtype=torch.int32)

        pipe._encode_prompt_qwen = encode
        return pipe

    # ---- images

    def qwen(self):
        """Make Qwen-Image without its text encoder: embeddings are given."""
        from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

        transformer = QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        )  # fmt: skip
        vae = AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        )  # fmt: skip
        return QwenImagePipeline(self.parts.flow(), vae, None, None, transformer)

    def flux_like(self, name, channels=4, **options):
        """Make one of the pipelines of the Flux family, by class name."""
        import diffusers

        whole = self.parts.flux()
        transformer = diffusers.FluxTransformer2DModel(
            **{**whole.transformer.config, "in_channels": channels, "out_channels": 4, **options}
        )
        kind = getattr(diffusers, name)
        known = inspect.signature(kind.__init__).parameters
        taken = {part: value for part, value in whole.components.items() if part in known}
        return kind(**{**taken, "transformer": transformer})

    def bria(self):
        from diffusers import BriaPipeline, BriaTransformer2DModel

        p = self.parts
        transformer = BriaTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[0, 4, 4],
        )  # fmt: skip
        return BriaPipeline(
            transformer=transformer, scheduler=p.flow(), vae=p.image_vae(1), text_encoder=p.t5(),
            tokenizer=p.tokenizer(),
        )  # fmt: skip

    def chroma(self):
        from diffusers import ChromaPipeline, ChromaTransformer2DModel

        p = self.parts
        transformer = ChromaTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32,
            approximator_layers=1, approximator_num_channels=16,
        )  # fmt: skip
        return ChromaPipeline(p.flow(), p.image_vae(1), p.t5(), p.tokenizer(), transformer)

    def z_image(self):
        from diffusers import ZImagePipeline, ZImageTransformer2DModel

        p = self.parts
        transformer = ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 6, 6],
        )  # fmt: skip
        return ZImagePipeline(p.flow(), p.image_vae(4), None, None, transformer)

    def hunyuan_still(self):
        from diffusers import HunyuanImagePipeline, HunyuanImageTransformer2DModel

        p = self.parts
        transformer = HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, text_embed_dim=16, rope_axes_dim=(4, 4),
        )  # fmt: skip
        return HunyuanImagePipeline(p.flow(), None, None, None, None, None, transformer)


def embeddings(seed, tokens, channels):
    return torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(seed))


def hunyuan_keywords(guided=True):
    """Return the embeddings of HunyuanVideo, image to video."""
    out = {"prompt": None, "negative_prompt": None}
    for prefix, seed in (("", 1), ("negative_", 2))[: 1 + guided]:
        out[f"{prefix}prompt_embeds"] = embeddings(seed, 6, 16)
        out[f"{prefix}pooled_prompt_embeds"] = embeddings(seed + 10, 1, 8)[:, 0]
        out[f"{prefix}prompt_attention_mask"] = torch.ones(1, 6)
    return out


def qwen_keywords(guided=True):
    """Return the embeddings of Qwen-Image."""
    out = {"prompt": None, "negative_prompt": None}
    for prefix, seed in (("", 1), ("negative_", 2))[: 1 + guided]:
        out[f"{prefix}prompt_embeds"] = embeddings(seed, 5, 16)
        out[f"{prefix}prompt_embeds_mask"] = torch.ones(1, 5, dtype=torch.long)
    return out


@contextlib.contextmanager
def seeded():
    """Make weights that are the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def quiet(pipe):
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gray(size, level=90):
    return Image.new("RGB", (size[1], size[0]), (level, 200, 30))
