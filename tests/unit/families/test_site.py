"""Hidden states are found, and replaced, in whatever a block takes and returns."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

import dit_lens as dl
from dit_lens.families.site import Site, pick, put

Pair = namedtuple("Pair", "text image")


@dataclass(frozen=True)
class Args:
    x: torch.Tensor
    scale: float = 1.0


class Block(torch.nn.Module):
    """Returns what it is told to, made of its first argument plus one."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, hidden, other=None):
        h = hidden.x if isinstance(hidden, Args) else hidden
        return self.wrap(h + 1)


SHAPES = [
    (lambda h: h, None, lambda out: out),
    (lambda h: (h, "rest"), None, lambda out: out[0]),
    (lambda h: ("rest", h), (1,), lambda out: out[1]),
    (lambda h: [h, "rest"], (0,), lambda out: out[0]),
    (lambda h: (Args(h, 2.0), "rest"), (0, "x"), lambda out: out[0].x),
    (lambda h: Pair("rest", h), (1,), lambda out: out.image),
    (lambda h: {"sample": h, "rest": 0}, ("sample",), lambda out: out["sample"]),
]


@pytest.mark.parametrize("wrap, item, read", SHAPES)
def test_an_output_is_read_and_replaced_and_the_rest_stays(wrap, item, read):
    block, seen = Block(wrap), []
    before = block(torch.zeros(2))
    with_hook = Site("", item=item).attach(block, lambda h: seen.append(h.clone()) or h * 10)
    after = block(torch.zeros(2))
    with_hook.remove()
    assert torch.equal(seen[0], torch.ones(2)) and torch.equal(read(after), torch.full((2,), 10.0))
    assert type(after) is type(before)
    if isinstance(after, tuple | list):
        assert [v for v in after if isinstance(v, str)] == [v for v in before if isinstance(v, str)]
    assert torch.equal(read(block(torch.zeros(2))), torch.ones(2))


@pytest.mark.parametrize("item", [None, (0,), ("hidden",)])
@pytest.mark.parametrize("by_name", [False, True])
def test_an_argument_is_found_by_position_or_by_name_however_it_was_given(item, by_name):
    block = Block(lambda h: h)
    handle = Site("", "input", item=item).attach(block, lambda h: h + 5)
    given = {"hidden": torch.zeros(2)} if by_name else {}
    assert torch.equal(block(*([] if by_name else [torch.zeros(2)]), **given), torch.full((2,), 6.0))
    handle.remove()
    assert torch.equal(block(torch.zeros(2)), torch.ones(2))


def test_an_argument_may_hold_the_state():
    block = Block(lambda h: h)
    Site("", "input", item=("hidden", "x")).attach(block, lambda h: h + 5)
    given = Args(torch.zeros(2))
    assert torch.equal(block(given), torch.full((2,), 6.0)) and torch.equal(given.x, torch.zeros(2))


def test_nothing_is_replaced_where_the_visit_returns_none():
    block = Block(lambda h: (h, 1))
    Site("").attach(block, lambda h: None)
    assert torch.equal(block(torch.zeros(2))[0], torch.ones(2))


def test_put_leaves_the_value_as_it_was():
    value = {"a": [Args(torch.zeros(1)), 2]}
    new = put(value, ("a", 0, "x"), 7)
    assert pick(new, ("a", 0, "x")) == 7 and new["a"][1] == 2
    assert torch.equal(value["a"][0].x, torch.zeros(1))


def test_a_place_that_holds_no_tensor_says_so():
    block = Block(lambda h: ("rest", h))
    Site("").attach(block, lambda h: h)
    with pytest.raises(dl.DitLensError, match=r"carries a str.*Site\(item=...\)"):
        block(torch.zeros(2))
