"""The sites in an attention, by the names that all families share."""

from __future__ import annotations

from dit_lens.families.attention import AttentionSite
from dit_lens.families.site import Site


def sites_of_attention(
    path: str,
    heads: str,
    projections: tuple[str, str, str],
    out: str,
    *,
    cross: bool = False,
    keys: str = "video",
    words: str = "self-attention",
    number: int = 0,
    plain: str = "",
) -> tuple[dict[str, Site], dict[str, Site]]:
    """Return the sites in one attention, by name: those on the tokens that look, and those on the tokens that are looked at.

    Args:
        path: below a block, of the module in which torch's attention function is called.
        heads: path to the number of heads.
        projections: paths to the linear layers of queries, keys and values.
        out: path to the linear layer that the heads go into.
        cross: whether it looks at another stream: the names say so (`cross_q`, ...).
        keys: that stream.
        words: what it is.
        number: which call of the attention function it is inside of the module.
        plain: see `AttentionSite`.
    """
    name, begin = ("cross", "cross_") if cross else ("attn", "")

    def site(part: str, of: str, like: str) -> AttentionSite:
        return AttentionSite(
            path,
            long_name=f"{words}{of}",
            heads=heads,
            part=part,
            number=number,
            keys=keys,
            like=like,
            plain=plain,
        )

    looking: dict[str, Site] = {
        f"{name}_q": site("query", " queries, as attention gets them", projections[0])
    }
    seen: dict[str, Site] = {
        f"{name}_k": site("key", " keys, as attention gets them", projections[1]),
        f"{name}_v": site("value", " values, as attention gets them", projections[2]),
    }
    looking |= {} if cross else seen
    looking[f"{begin}attention"] = site("whole", "", projections[0])
    looking[f"{begin}heads"] = Site(out, "input", f"{words} heads, before their projection", heads=heads)
    return looking, seen if cross else {}


def sites_of_image(
    path: str, heads: str, projections: tuple[str, str, str], number: int
) -> tuple[dict[str, Site], dict[str, Site]]:
    """Return the sites of the attention to an image's tokens, where a cross-attention has one of its own beside the prompt's.

    Args:
        path: see `sites_of_attention`.
        heads: see `sites_of_attention`.
        projections: see `sites_of_attention`.
        number: which call of the attention function it is inside of the module.
    """

    def site(part: str, words: str, like: str) -> AttentionSite:
        return AttentionSite(
            path, long_name=words, heads=heads, part=part, number=number, keys="image", like=like
        )

    return {"image_attention": site("whole", "cross-attention to the image", projections[0])}, {
        "image_k": site("key", "keys of the image's tokens, as attention gets them", projections[1]),
        "image_v": site("value", "values of the image's tokens, as attention gets them", projections[2]),
    }


__all__ = ["sites_of_attention", "sites_of_image"]
