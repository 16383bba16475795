"""The tokens of a prompt, as a model sees them, and the words that they make up. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dit_lens.errors import PlanError

Kind = Literal["word", "special", "padding"]


@dataclass(frozen=True)
class TextToken:
    """One token of a prompt.

    Attributes:
        text: the word, or the part of one, that it stands for.
        kind: `word`; `special` (an end, a beginning); `padding`, which stands for nothing.
        begins: whether a word begins with it.
    """

    text: str
    kind: Kind = "word"
    begins: bool = True


def tokens_of_word(word: str, tokens: Sequence[TextToken]) -> tuple[int, ...]:
    """Return the positions of a word, all of its parts, wherever it stands in a prompt; case and punctuation aside.

    Example:
        >>> parts = [TextToken("solve"), TextToken("ma"), TextToken("ze", begins=False), TextToken("</s>", "special")]
        >>> tokens_of_word("Maze", parts)
        (1, 2)
    """
    found: list[int] = []
    for place in _words(tokens):
        if _plain("".join(tokens[n].text for n in place)) == _plain(word):
            found += place
    return tuple(found)


def positions_of_words(
    words: Sequence[str], text: Mapping[str, Sequence[TextToken]], branches: Sequence[str]
) -> tuple[int, ...]:
    """Return the positions of words in the prompts of some guidance branches.

    Args:
        words: each of one word of the prompt.
        text: by branch, the tokens of its prompt.
        branches: that are asked for.

    Raises:
        PlanError: the tokens are not known, a word is not there, or it stands elsewhere on another branch.
    """
    missing = [branch for branch in branches if branch not in text]
    if missing:
        raise PlanError(
            f"text_token={'/'.join(words)}: which tokens the words of this model's prompt become is not known; give their "
            "positions."
        )
    found = {branch: _positions(words, branch, text[branch], len(branches)) for branch in branches}
    first, *others = found.values()
    if any(other != first for other in others):
        raise PlanError(
            f"text_token={'/'.join(words)}: the words stand at {found}: place one branch at a time, with dl.at(branch=...)."
        )
    return first


def _positions(
    words: Sequence[str], branch: str, tokens: Sequence[TextToken], branches: int
) -> tuple[int, ...]:
    found: set[int] = set()
    for word in words:
        here = tokens_of_word(word, tokens)
        if not here:
            known = " ".join("".join(tokens[n].text for n in place) for place in _words(tokens))
            hint = "; select one branch, as dl.at(branch='cond', ...)" if branches > 1 else ""
            raise PlanError(
                f"text_token={word!r}: the prompt of {branch} has no such word, only {known!r}{hint}."
            )
        found.update(here)
    return tuple(sorted(found))


def _words(tokens: Sequence[TextToken]) -> list[list[int]]:
    """Return the positions of each word's tokens."""
    words: list[list[int]] = []
    after_word = False
    for n, token in enumerate(tokens):
        if token.kind == "word":
            if token.begins or not after_word:
                words.append([])
            words[-1].append(n)
        after_word = token.kind == "word"
    return words


def _plain(word: str) -> str:
    plain = "".join(c for c in word.casefold() if c.isalnum())
    return plain or word.strip()
