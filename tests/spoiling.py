"""What tests of scorers need to spoil right videos."""

import numpy as np

from dit_lens.tasks import canvas as cv
from dit_lens.tasks import trail, walks
from dit_lens.tasks.canvas import CELL


def painted(video, draw, frames=slice(None)):
    """Return a video with something drawn on some of its frames."""
    out = video.copy()
    for t in range(len(video))[frames]:
        canvas = out[t].astype(np.float32) / 255
        draw(canvas)
        out[t] = cv.to_frames([canvas])[0]
    return out


def walked_path(sample):
    """Return the cells that the right video walks."""
    edges = trail.read_trail(sample.truth[-1], sample.size[0] // CELL)
    return trail.follow(edges, trail.read_agent(sample.truth[0], sample.size[0] // CELL))


def board_of(sample):
    """Return the board without agent and trail."""
    known, size = sample.scorer.keywords, sample.size[0] // CELL
    if "things" in known:
        return walks.board(size, known["things"])
    return trail.board(size, known.get("walls", []), known.get("goals") or [known["goal"]])
