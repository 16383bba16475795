"""A tiny LTX-2.3 of DiffSynth's own classes, with random weights."""

import contextlib
import importlib.util
import io
import math
import sys
import zlib
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

HEADS, WIDTH, LAYERS, WORDS = 2, 16, 2, 128


@contextlib.contextmanager
def torchaudio():
    """Let DiffSynth import where torchaudio is not installed: it encodes sounds that are given, which nothing here is."""
    if importlib.util.find_spec("torchaudio") is not None:
        yield
        return
    import diffsynth.models.ltx2_text_encoder  # noqa: F401  # transformers must see that torchaudio is not there

    standin = ModuleType("torchaudio")
    standin.transforms = SimpleNamespace(MelSpectrogram=lambda **_: nn.Identity())
    sys.modules["torchaudio"] = standin
    try:
        yield
    finally:
        del sys.modules["torchaudio"]


class Words:
    """Stands for Gemma's tokenizer: a number for every word, padded on the left."""

    def tokenize_with_weights(self, text):
        words = [(zlib.crc32(w.encode()) % 997 + 1, 1) for w in text.split()[:WORDS]]
        return {"gemma": [(0, 0)] * (WORDS - len(words)) + words}


class Table(nn.Module):
    """Stands for Gemma, 12 billion parameters whatever its settings: two layers of word vectors."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(1000, 8)

    def forward(self, input_ids, attention_mask, output_hidden_states):
        states = self.table(input_ids)
        return SimpleNamespace(hidden_states=(states, states.roll(1, dims=-1)))


def video_vae():
    """Make the real encoder and decoder, narrow inside; 128 latent channels are fixed in the pipeline."""
    from diffsynth.models import ltx2_video_vae as vae

    encoder = vae.LTX2VideoEncoder(out_channels=4, encoder_version="ltx-2.3")
    wide = vae.LTX2VideoEncoder.__init__.__globals__["make_conv_nd"]
    conv = encoder.conv_out.conv if hasattr(encoder.conv_out, "conv") else encoder.conv_out
    encoder.conv_out = wide(
        dims=3,
        in_channels=conv.in_channels,
        out_channels=129,
        kernel_size=3,
        padding=1,
        causal=True,
        spatial_padding_mode=vae.PaddingModeType.ZEROS,
    )
    encoder.per_channel_statistics = vae.PerChannelStatistics(latent_channels=128)
    return encoder, vae.LTX2VideoDecoder(decoder_version="ltx-2.3", base_channels=2)


def audio_vae():
    """Make the real decoder and vocoder; 24 kHz out."""
    from diffsynth.models import ltx2_audio_vae as vae

    decoder = vae.LTX2AudioDecoder(ch_mult=(1, 1, 1), num_res_blocks=0)
    vocoder = vae.LTX2Vocoder(
        upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]]
    )
    return decoder, vocoder


def dit(**more):
    from diffsynth.models.ltx2_dit import LTXModel

    sizes = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH, "cross_attention_dim": HEADS * WIDTH}
    sound = {
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": WIDTH // 2,
        "audio_cross_attention_dim": HEADS * WIDTH // 2,
    }
    own = {"apply_gated_attention": True, "cross_attention_adaln": True, "caption_channels": None}
    return LTXModel(num_layers=LAYERS, **sizes, **sound, **(own | more))


def post_modules():
    from diffsynth.models.ltx2_text_encoder import LTX2TextEncoderPostModules

    return LTX2TextEncoderPostModules(
        separated_audio_video=True,
        embedding_dim_gemma=8,
        num_layers_gemma=2,
        video_attention_heads=HEADS,
        video_attention_head_dim=WIDTH,
        audio_attention_heads=HEADS,
        audio_attention_head_dim=WIDTH // 2,
        num_connector_layers=1,
        apply_gated_attention=True,
    )


def make_pipe(seed=0, **more):
    """Make DiffSynth's own LTX2AudioVideoPipeline; `more` goes to the DiT."""
    with contextlib.redirect_stdout(io.StringIO()), torchaudio():
        from diffsynth.models.ltx2_upsampler import LTX2LatentUpsampler
        from diffsynth.pipelines.ltx2_audio_video import LTX2AudioVideoPipeline
    torch.manual_seed(seed)
    pipe = LTX2AudioVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.tokenizer, pipe.text_encoder, pipe.text_encoder_post_modules = Words(), Table(), post_modules()
    pipe.dit = dit(**more)
    pipe.is_ltx25 = pipe.dit.use_tokenwise_av_ca_scale_shift
    pipe.video_vae_encoder, pipe.video_vae_decoder = video_vae()
    pipe.audio_vae_decoder, pipe.audio_vocoder = audio_vae()
    pipe.upsampler = LTX2LatentUpsampler(mid_channels=32, num_blocks_per_stage=1)
    with torch.no_grad():
        for name, value in pipe.named_parameters():
            # Some are torch.empty; wide enough that every part of the model shows in what comes out.
            fan = value[0].numel() if value.ndim > 1 else 1
            value.normal_(
                1.0 if name.endswith("norm.weight") else 0.0, 0.3 if value.ndim < 2 else 1 / math.sqrt(fan)
            )
        for name, value in pipe.named_buffers():
            if "std" in name:
                value.fill_(1.0)
            elif "mean" in name:
                value.zero_()
    pipe.eval().requires_grad_(False)
    return pipe.to(device="cpu", dtype=torch.float32)
