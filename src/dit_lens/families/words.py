"""From a tokenizer's ids to the words that they stand for, whatever mark the tokenizer begins or ends a word with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dit_lens.plan.text import TextToken

BEGIN_MARKS = ("▁", "Ġ")
"""By which sentencepiece and byte-pair tokenizers begin a word."""
END_MARK = "</w>"
"""By which CLIP's tokenizer ends one."""
INSIDE_MARK = "##"
"""By which BERT's tokenizer goes on with one."""


def text_tokens(tokenizer: Any, ids: Sequence[int], mask: Sequence[int]) -> tuple[TextToken, ...]:
    """Return the tokens of one prompt.

    Args:
        tokenizer: has `convert_ids_to_tokens` and `all_special_ids`, as those of transformers do.
        ids: of all positions.
        mask: 0 where a position is padding.
    """
    names = [str(name) for name in tokenizer.convert_ids_to_tokens([int(i) for i in ids])]
    special = {int(i) for i in tokenizer.all_special_ids}
    tokens: list[TextToken] = []
    ended = True  # the word before, by an end mark
    marks = (
        any(name.startswith(BEGIN_MARKS) for name in names),
        any(name.endswith(END_MARK) for name in names),
    )
    for name, one, kept in zip(names, ids, mask, strict=True):
        kind = "padding" if not kept else "special" if int(one) in special else "word"
        tokens.append(TextToken(_plain(name), kind, _begins(name, *marks, ended)))  # type: ignore[arg-type]
        ended = name.endswith(END_MARK) or kind != "word"
    return tuple(tokens)


def _begins(name: str, has_begins: bool, has_ends: bool, ended: bool) -> bool:
    if has_begins:
        return name.startswith(BEGIN_MARKS)
    return ended if has_ends else not name.startswith(INSIDE_MARK)


def _plain(name: str) -> str:
    for mark in BEGIN_MARKS:
        name = name.replace(mark, "")
    return name.removesuffix(END_MARK).removeprefix(INSIDE_MARK)
