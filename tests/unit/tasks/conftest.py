"""The codec that ships, as the scorers' tests need it: what a perfect model would return."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def through_codec(codec):
    """Encode and decode a video; rounded down to uint8, as DiffSynth's pipelines do."""

    @torch.no_grad()
    def through(video):
        pixels = torch.from_numpy(video).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        decoded = codec.decode(codec.encode(pixels))[0].permute(1, 2, 3, 0)
        return ((decoded + 1) * 127.5).clip(0, 255).to(torch.uint8).numpy()

    return through


@pytest.fixture
def walls_of():
    """Read the walls off a board's picture: the edges between cells whose border is dark there."""

    def read(frame, size):
        from dit_lens.tasks.canvas import CELL
        from dit_lens.tasks.trail import grid_edges

        walls = set()
        for a, b in grid_edges(size):
            y, x = ((i + j + 1) * CELL // 2 for i, j in zip(a, b, strict=True))
            if frame[y, x].astype(int).sum() < 250:
                walls.add((a, b))
        return walls

    return read


def noise(like, seed=0):
    return np.random.default_rng(seed).integers(0, 256, like.shape, np.uint8)


@pytest.fixture(name="noise")
def noise_fixture():
    return noise
