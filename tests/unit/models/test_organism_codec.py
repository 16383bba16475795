"""The linear codec has the geometry of Wan's video VAE, and is a projection."""

import numpy as np
import pytest
import torch

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.models import organism
from dit_lens.models.organism import LATENT_CHANNELS
from dit_lens.models.organism.modules import LinearCodec


@pytest.fixture(scope="module")
def videos():
    """One video of every task that has 4 x 4 cells, [sample, rgb, time, height, width] in [-1, 1]."""
    truths = [
        tasks.make(name, 1_000_000).truth for name in ("loop", "choose", "circle", "pattern", "occlude")
    ]
    return torch.from_numpy(np.stack(truths)).float().permute(0, 4, 1, 2, 3) / 127.5 - 1


@pytest.mark.parametrize("time, frames", [(1, 1), (5, 2), (13, 4), (25, 7)])
@pytest.mark.parametrize("height, width", [(64, 64), (32, 96)])
def test_latents_are_8_times_smaller_in_space_and_4_in_time_with_the_first_frame_alone(
    codec, time, frames, height, width
):
    latents = codec.encode(torch.zeros(2, 3, time, height, width))
    assert latents.shape == (2, LATENT_CHANNELS, frames, height // 8, width // 8)
    assert codec.decode(latents).shape == (2, 3, time, height, width)


def test_a_latent_sees_its_own_patch_of_pixels_and_no_other(codec):
    video = torch.zeros(1, 3, 13, 32, 32)
    touched = video.clone()
    touched[0, 1, 6, 17, 9] = 1  # frames 5 to 8 are latent frame 2
    changed = (codec.encode(touched) - codec.encode(video)).abs().sum((0, 1)) > 1e-6
    assert changed.nonzero().tolist() == [[2, 2, 1]]
    first = video.clone()
    first[0, 0, 0, 31, 0] = 1
    changed = (codec.encode(first) - codec.encode(video)).abs().sum((0, 1)) > 1e-6
    assert changed.nonzero().tolist() == [[0, 3, 0]]


def test_decoding_and_encoding_again_changes_nothing(codec, videos):
    latents = codec.encode(videos)  # of unit variance; the basis ships in half precision
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents, atol=0.02, rtol=0)


@pytest.mark.parametrize("name, least", [("organism-v1", 28), ("organism-full", 27)])
def test_what_comes_back_is_close_to_what_went_in(videos, name, least):
    """In decibels. The second codec was fitted to the pictures of thirteen tasks, the first to those of six."""
    codec = organism.pipeline(name=name).vae
    error = (codec.decode(codec.encode(videos)) - videos) / 2  # on a range of 1
    psnr = -10 * torch.log10(error.square().mean((1, 2, 3, 4)))
    assert psnr.min() > least


def test_latents_have_about_unit_variance(codec, videos):
    latents = codec.encode(videos)
    assert 0.5 < latents[:, :, 1:].std() < 2


def test_the_rows_of_a_batch_do_not_touch_each_other(codec, videos):
    whole = codec.encode(videos)
    for row in range(len(videos)):
        torch.testing.assert_close(codec.encode(videos[row : row + 1]), whole[row : row + 1])
    torch.testing.assert_close(codec.encode(list(videos)), whole)


def test_the_pipelines_other_arguments_are_accepted(codec, videos):
    tiling = {"tiled": True, "tile_size": (34, 34), "tile_stride": (18, 16)}
    latents = codec.encode(videos, device="cpu", **tiling)
    assert torch.equal(latents, codec.encode(videos))
    assert torch.equal(codec.decode(latents, device="cpu", **tiling), codec.decode(latents))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_number_type_is_that_of_the_input(codec, dtype):
    video = torch.zeros(1, 3, 5, 16, 16, dtype=dtype)
    latents = codec.encode(video)
    assert latents.dtype == codec.decode(latents).dtype == dtype


def test_it_has_what_the_pipeline_asks_of_a_vae():
    codec = LinearCodec(5)
    assert (codec.upsampling_factor, codec.z_dim, codec.model.z_dim) == (8, 5, 5)
    assert not list(codec.parameters())
    assert {k.partition("_")[0] for k in codec.state_dict()} == {"first", "rest"}


@pytest.mark.parametrize("shape", [(1, 3, 12, 64, 64), (1, 3, 13, 60, 64)])
def test_a_size_that_it_does_not_take_is_named(codec, shape):
    with pytest.raises(TaskError, match=f"{shape[2]} frames of {shape[3]} x 64"):
        codec.encode(torch.zeros(shape))
