"""Causal self-attention: its arithmetic, that nothing comes from later frames, and tracing of all of it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.models import organism
from dit_lens.models.organism.causal import CausalSelfAttention, frame_of_tokens, make_causal
from dit_lens.models.organism.loading import load

GRIDS = [(1, 4, 4), (4, 4, 4), (4, 6, 6), (5, 1, 3), (7, 4, 5), (10, 12, 12)]
SAMPLE = dl.tasks.maze(1_000_007)


@pytest.fixture(scope="module")
def causal(organisms):
    return load("organism-causal", folder=organisms)


def rotations(dit, grid):
    """Return what DiffSynth gives its blocks."""
    f, y, x = grid
    parts = [
        dit.freqs[0][:f].view(f, 1, 1, -1).expand(f, y, x, -1),
        dit.freqs[1][:y].view(1, y, 1, -1).expand(f, y, x, -1),
        dit.freqs[2][:x].view(1, 1, x, -1).expand(f, y, x, -1),
    ]
    return torch.cat(parts, -1).reshape(f * y * x, 1, -1)


def reference(attention, x, freqs, frame):
    """Attend by hand, in double precision: softmax over what is not later, nothing else."""
    heads = attention.num_heads

    def rotated(t):
        pairs = torch.view_as_complex(t.double().unflatten(-1, (heads, -1, 2)))
        return torch.view_as_real(pairs * freqs).flatten(-2)

    q = rotated(attention.norm_q(attention.q(x)))
    k = rotated(attention.norm_k(attention.k(x)))
    v = attention.v(x).double().unflatten(-1, (heads, -1))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = scores.masked_fill(frame[None, :] > frame[:, None], -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(
        -2
    ) @ attention.o.weight.double().T + (attention.o.bias.double())


@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_softmax_over_the_own_and_earlier_frames(causal, grid):
    attention, freqs = causal.pipe.dit.blocks[3].self_attn, rotations(causal.pipe.dit, grid)
    frame = torch.arange(grid[0]).repeat_interleave(grid[1] * grid[2])
    assert torch.equal(frame_of_tokens(freqs), frame)
    x = torch.randn(
        1 if len(frame) > 1000 else 2, len(frame), 128, generator=torch.Generator().manual_seed(0)
    )
    assert isinstance(attention, CausalSelfAttention)
    assert torch.allclose(
        attention(x, freqs).double(), reference(attention, x, freqs, frame), rtol=0, atol=2e-6
    )


def test_one_frame_is_diffsynths_own_attention(causal):
    attention, freqs = causal.pipe.dit.blocks[0].self_attn, rotations(causal.pipe.dit, (1, 4, 6))
    x = torch.randn(2, 24, 128, generator=torch.Generator().manual_seed(0))
    from diffsynth.models.wan_video_dit import SelfAttention

    plain = SelfAttention(attention.dim, attention.num_heads, attention.norm_q.eps)
    plain.load_state_dict(attention.state_dict())
    own = plain(x, freqs)
    assert torch.allclose(attention(x, freqs), own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [4, 10])
def test_later_frames_change_nothing_before_them(causal, frames):
    pipe, generator = causal.pipe, torch.Generator().manual_seed(0)

    def velocity(latents):
        y = torch.ones(1, 52, frames, 8, 8)
        return pipe.model_fn(
            dit=pipe.dit, latents=latents, timestep=torch.tensor([500.0]), y=y, context=torch.ones(1, 8, 32)
        )

    latents = torch.randn(1, 48, frames, 8, 8, generator=generator)
    clean = velocity(latents)
    for first in (1, frames // 2, frames - 1):
        changed = latents.clone()
        changed[:, :, first:] += torch.randn(changed[:, :, first:].shape, generator=generator)
        found = velocity(changed)
        assert torch.equal(found[:, :, :first], clean[:, :, :first])
        assert not torch.isclose(found[:, :, first:], clean[:, :, first:], atol=1e-4).all()
        earlier = latents.clone()
        earlier[:, :, first - 1] += 1
        assert not torch.allclose(velocity(earlier)[:, :, first:], clean[:, :, first:], atol=1e-4)


def test_weights_stay_when_attention_is_replaced_and_gradients_pass():
    pipe = organism.pipeline(None, name="organism-full")
    before = {k: v.clone() for k, v in pipe.dit.state_dict().items()}
    make_causal(pipe.dit)
    assert list(pipe.dit.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in pipe.dit.state_dict().items())
    attention = pipe.dit.blocks[0].self_attn.train().requires_grad_(True)
    attention(torch.randn(1, 32, 128), rotations(pipe.dit, (2, 4, 4))).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in attention.named_parameters()
        if n != "k.bias"
    )


def test_every_site_is_read_and_edited(causal, left_behind):
    sites = [*causal.sites, "latents", "velocity", "x0"]
    record = [(dl.hidden, dl.at(site=site)) for site in causal.sites] + [dl.x0]
    plain = causal.run(SAMPLE, steps=2, record=record)
    assert plain["hidden_self_attn"].sizes["layer"] == 16 and plain["hidden"].sizes["frame"] == 4
    for site in sites:
        edit = [(dl.add_noise(scale=1.0), dl.at(site=site, step=1))]
        edited = causal.run(SAMPLE, steps=2, record=[dl.x0], edit=edit)
        assert np.array_equal(edited["x0"].sel(step=0), plain["x0"].sel(step=0)), site
        assert not np.allclose(edited["x0"].sel(step=1), plain["x0"].sel(step=1), atol=1e-4), site
    assert left_behind(causal.pipe) == []


def test_an_edit_of_a_late_frame_stays_there(causal):
    record = [(dl.hidden, dl.at(site="block"))]
    plain = causal.run(SAMPLE, steps=1, record=record)["hidden"]
    edit = [(dl.add_noise(scale=1.0), dl.at(site="block", layer=2, frame=2))]
    edited = causal.run(SAMPLE, steps=1, record=record, edit=edit)["hidden"]
    assert np.array_equal(edited.sel(frame=[0, 1]), plain.sel(frame=[0, 1]))
    later = {"frame": [2, 3], "layer": 15}
    assert not np.allclose(edited.sel(**later), plain.sel(**later), atol=1e-3)


def test_a_trace_reads_what_a_run_records(causal):
    run = causal.run(SAMPLE, steps=2, record=[(dl.hidden, dl.at(site="self_attn"))])
    with causal.trace(SAMPLE, steps=2) as tr:
        seen = {}.save()
        for call in tr.calls():
            seen[call.step] = call.block(5).site("self_attn").output.clone()
    for step, value in seen.items():
        expected = run["hidden_self_attn"].sel(step=step, branch="cond", layer=5).values
        assert np.array_equal(value[0].numpy(), expected.reshape(-1, 128))


def test_rows_of_a_batch_are_their_single_runs(causal):
    batch = causal.batch([(SAMPLE, 0), (SAMPLE, 7)], steps=2, cfg_scale=2.0)
    x = batch.noise
    for step in range(2):
        x = batch.step(step, x).latents
    for row, seed in enumerate((0, 7)):
        run = causal.run(SAMPLE, seed, steps=2, cfg_scale=2.0, record=[dl.x0])
        expected = torch.from_numpy(np.array(run["x0"].sel(step=1).values)).permute(3, 0, 1, 2)
        assert torch.allclose(x[row], expected, rtol=0, atol=1e-4)


def test_it_runs_in_bfloat16(organisms):
    lens = load("organism-causal", dtype="bfloat16", folder=organisms)
    run = lens.run(SAMPLE, steps=2, record=[dl.hidden])
    assert run.complete and np.isfinite(np.array(run["hidden"].values, np.float32)).all()


def test_it_is_another_model_than_one_of_equal_weights(organisms, causal, tmp_path):
    shutil.copy(organisms / "frozen.safetensors", tmp_path)
    shutil.copy(organisms / "causal.safetensors", tmp_path / "full.safetensors")
    whole = load("organism-full", folder=tmp_path)
    held = whole.pipe.dit.state_dict()
    assert all(torch.equal(v, held[k]) for k, v in causal.pipe.dit.state_dict().items())
    assert whole.fingerprint() != causal.fingerprint()
    runs = [lens.run(SAMPLE, steps=1, record=[dl.x0])["x0"].values for lens in (whole, causal)]
    assert not np.allclose(*runs, atol=1e-3)


def test_a_run_has_one_name_in_every_process(organisms, tmp_path):
    code = f"""
import dit_lens as dl
from pathlib import Path
from dit_lens.models.organism.loading import load
lens = load("organism-causal", folder=Path({str(organisms)!r}))
print(lens.fingerprint(), lens.run(dl.tasks.maze(1_000_007), steps=1, store={str(tmp_path)!r}).path.name)
"""
    said = set()
    for seed in ("0", "3"):
        env = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-2000:]
        said.add(tuple(out.stdout.split()[-2:]))
    assert len(said) == 1
