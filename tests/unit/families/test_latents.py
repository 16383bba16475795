"""The video's latents take the other streams' rows along, and nothing else."""

import pytest
import torch

from dit_lens.families.latents import Latents, apart, together

VIDEO, SOUND = torch.arange(24.0).reshape(4, 6), torch.arange(8.0).reshape(4, 2)


@pytest.fixture
def both():
    return together({"video": VIDEO, "audio": SOUND})


@pytest.mark.parametrize("rows", [slice(1, 3), [0, 2, 2], [], torch.tensor([3, 0]), slice(0, 0)], ids=str)
def test_picked_rows_keep_their_sound(both, rows):
    out = apart(both[rows])
    assert torch.equal(out["video"], VIDEO[rows]) and torch.equal(out["audio"], SOUND[rows])
    assert type(out["video"]) is type(out["audio"]) is torch.Tensor


def test_rows_are_put_together_with_their_sound(both):
    out = apart(torch.cat([both[2:], both[:1], both[:0]]))
    assert torch.equal(out["video"], VIDEO[[2, 3, 0]]) and torch.equal(out["audio"], SOUND[[2, 3, 0]])
    again = apart(torch.cat([both[:1], both[1:]], dim=0)[[3]])
    assert torch.equal(again["audio"], SOUND[[3]])


@pytest.mark.parametrize(
    "do",
    [
        lambda x: x + 1,
        lambda x: x[0],
        lambda x: x[:, 2:],
        lambda x: x[None],
        lambda x: x.repeat(2, 1),
        lambda x: torch.cat([x, VIDEO]),
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.stack([x, x]),
        lambda x: next(iter(x)),
        lambda x: x.permute(1, 0),
    ],
)
def test_all_else_is_of_the_video_alone(both, do):
    out = do(both)
    assert torch.equal(out, do(VIDEO)) and not isinstance(out, Latents)


def test_one_stream_is_a_plain_tensor_and_what_was_given_stays_as_it_was(both):
    assert together({"video": VIDEO}) is VIDEO and list(apart(VIDEO)) == ["video"]
    assert type(VIDEO) is torch.Tensor and (both.shape, len(both), both.ndim) == ((4, 6), 4, 2)
