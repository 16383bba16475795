"""When the similarity of two sets of states is not defined, and what to do then."""

from __future__ import annotations

from dit_lens.errors import DitLensError

NOTHING = 1e-12
"""An HSIC of a state with itself this far below its terms is their rounding error, not a similarity."""


def require_tokens(count: int, debiased: bool, caller: str) -> None:
    """Check that there are as many tokens as the estimate needs."""
    if count < (4 if debiased else 2):
        which = "debiased CKA needs 4 tokens or more" if debiased else "CKA needs 2 tokens or more"
        raise DitLensError(f"{caller}: {which}, but there are {count}; select more of frame, y, x.")


def require_varied(varied: bool, self_hsic: float, terms: float, name: str, caller: str) -> None:
    """Check that a state is like itself: HSIC(x, x) is not 0."""
    if not varied:
        raise DitLensError(
            f"{caller}: all tokens of {name} are the same, so nothing tells them apart and CKA is not "
            "defined; leave this state out."
        )
    if not self_hsic > NOTHING * terms:
        raise DitLensError(
            f"{caller}: the HSIC of {name} with itself is {self_hsic:g}, within rounding of 0, so CKA is not "
            "defined: its tokens are equally unlike each other, or its values too large or too small to be "
            "squared twice. Rescale it, compare more tokens, or leave this state out."
        )


def not_finite(name: str, caller: str) -> DitLensError:
    """Return the error for NaN or Inf among the tokens of a state."""
    return DitLensError(
        f"{caller}: there are NaN or Inf in {name}; leave this state out, or select tokens without them."
    )
