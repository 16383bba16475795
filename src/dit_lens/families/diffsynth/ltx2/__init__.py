"""LTX-2, LTX-2.3 and LTX-2.5 through DiffSynth's `LTX2AudioVideoPipeline`: video and sound in one DiT.

Its blocks take and return two `TransformerArgs`, one a stream. A token is one latent position of the video, or one
moment of the sound: the sound's grid is (time, 1, 1), its latents are (time, mel band, 1).
"""

from __future__ import annotations

from typing import Any

from dit_lens.families.attention import AttentionSite
from dit_lens.families.attention_sites import sites_of_attention
from dit_lens.families.diffsynth.common import quiet, schedule
from dit_lens.families.diffsynth.ltx2.asked import arguments, branches, latent_grid, later, refuse, sizes
from dit_lens.families.diffsynth.ltx2.batches import BATCHING
from dit_lens.families.diffsynth.ltx2.calls import intercept, look
from dit_lens.families.diffsynth.ltx2.made import decode, decode_audio, ltx_facts, outputs, rates, readout, x0
from dit_lens.families.family import Anatomy, Calling, Codec, Family, Flow
from dit_lens.families.site import Site


def _sites(stream: str, prefix: str, across: tuple[str, str, str]) -> dict[str, Site]:
    """Return the sites of one stream; `across` is the name, module and description of what it reads of the other."""
    name, module, words = across
    return {
        "block": Site(
            "", item=(("video", "audio").index(stream), "x"), long_name="residual stream after the block"
        ),
        "block_in": Site("", "input", "residual stream before the block", (stream, "x")),
        "self_attn": Site(f"{prefix}attn1", long_name="self-attention output, before its gate"),
        "cross_attn": Site(f"{prefix}attn2", long_name="text cross-attention output, before its gate"),
        name: Site(module, long_name=words),
        "ffn": Site(f"{prefix}ff", long_name="feed-forward output, before its gate"),
        "ffn_in": Site(f"{prefix}ff", "input", "feed-forward input, after modulation"),
        "q": Site(f"{prefix}attn1.to_q", long_name="self-attention queries, before norm and rotation"),
        "k": Site(f"{prefix}attn1.to_k", long_name="self-attention keys, before norm and rotation"),
        "v": Site(f"{prefix}attn1.to_v", long_name="self-attention values"),
        **_attention(f"{prefix}attn1", keys=stream)[0],
        **_attention(f"{prefix}attn2", cross=True, keys="text", words="text cross-attention")[0],
        f"{name.removeprefix('from_')}_attention": AttentionSite(
            module,
            long_name=words.partition(",")[0],
            heads=f"{module}.heads",
            part="whole",
            keys=name.removeprefix("from_"),
            like=f"{module}.to_q",
        ),
    }


def _attention(path: str, **words: Any) -> tuple[dict[str, Site], dict[str, Site]]:
    projections = (f"{path}.to_q", f"{path}.to_k", f"{path}.to_v")
    return sites_of_attention(path, f"{path}.heads", projections, f"{path}.to_out", **words)


def _keys(prefix: str) -> dict[str, Site]:
    """Return the sites on the prompt's tokens, as the video's or the sound's attention to them gets them."""
    seen = _attention(f"{prefix}attn2", cross=True, keys="text", words="text cross-attention")[1]
    return {f"{prefix}{name}": site for name, site in seen.items()}


SITES = {
    "video": _sites(
        "video",
        "",
        ("from_audio", "audio_to_video_attn", "what the video reads of the sound, before its gate"),
    ),
    "audio": _sites(
        "audio",
        "audio_",
        ("from_video", "video_to_audio_attn", "what the sound reads of the video, before its gate"),
    ),
    "text": {**_keys(""), **_keys("audio_")},
}

LTX2 = Family(
    name="ltx2",
    anatomy=Anatomy(
        experts={"dit": "dit"},
        blocks=("transformer_blocks",),
        sites=SITES,
        latent_grid=latent_grid,
        token_grid=lambda dit, latent: latent[1:],
        channels=lambda dit: int(dit.inner_dim),
        latents=("video", "audio"),
        multiples=(8, 32),
        more_sizes=sizes,
    ),
    call=Calling(
        arguments=arguments,
        branches=branches,
        refuse=refuse,
        intercept=intercept,
        quiet=quiet,
        default_steps=30,
        default_cfg=3.0,
        later=later,
        facts=ltx_facts,
    ),
    flow=Flow(schedule=schedule, x0=x0, readout=readout),
    codec=Codec(decode=decode, outputs=outputs, decode_audio=decode_audio, rates=rates),
    batching=BATCHING,
)

__all__ = ["LTX2", "SITES", "look"]
