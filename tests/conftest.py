"""Tiny pipelines of the real classes, with random weights; what every test of tracing runs on."""

import contextlib
import io
import sys

import numpy as np
import pytest
from PIL import Image

import dit_lens as dl

TINY = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 3}


def make_pipe(experts=1, dtype=None, seed=0, config=None):
    """Make DiffSynth's own WanVideoPipeline with tiny random DiTs, a random codec and a random word table."""
    import torch

    from dit_lens.models import organism

    with contextlib.redirect_stdout(io.StringIO()):
        from diffsynth.models.wan_video_dit import WanModel
    pipe = organism.pipeline(weights=None)
    torch.manual_seed(seed)
    for name in ("dit", "dit2")[:experts]:
        setattr(pipe, name, WanModel(**{**organism.CONFIG, **TINY, **(config or {})}))
    for part in ("first", "rest"):
        basis = getattr(pipe.vae, f"{part}_basis")
        basis.copy_(torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[0]))[0].T)
    pipe.text_encoder.table.normal_()
    pipe.eval().requires_grad_(False)
    return pipe.to(device="cpu", dtype=dtype or torch.float32)


@pytest.fixture(scope="session")
def pipe():
    return make_pipe()


@pytest.fixture(scope="session")
def two_experts():
    return make_pipe(experts=2)


@pytest.fixture
def lens(pipe):
    return dl.Lens(pipe)


@pytest.fixture(scope="session")
def sample():
    pixels = np.random.default_rng(0).integers(0, 255, (48, 32, 3), dtype=np.uint8)
    return dl.Sample(prompt="solve the maze", image=Image.fromarray(pixels), num_frames=9)


def bare(pipe, sample, seed=0, steps=3, cfg_scale=1.0, **extra):
    """Run the pipeline alone; return its frames."""
    from dit_lens.families.diffsynth.wan import WAN

    keywords = WAN.call.arguments(sample, seed, steps, cfg_scale, {"progress_bar_cmd": lambda s: s, **extra})
    return np.stack([np.asarray(f) for f in pipe(**keywords)])


def leftovers(pipe):
    """Name everything that a run could have left behind."""
    found = [f"hook on {n}" for n, m in pipe.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    found += [f"controller on {n}" for n, m in pipe.named_modules() if "forward" in vars(m)]
    found += [f"scheduler.{k}" for k in vars(pipe.scheduler) if k == "step"]
    if pipe.model_fn.__module__ != "diffsynth.pipelines.wan_video":
        found.append("model_fn")
    return found


@pytest.fixture
def run_bare():
    return bare


@pytest.fixture
def left_behind():
    return leftovers


@pytest.fixture
def tiny_pipe():
    return make_pipe


@pytest.fixture(autouse=True)
def gradients_on():
    """Begin every test with gradients on: an interrupt outside of a run, in torch's own lines, can leave them off."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_grad_enabled(True)
