"""A bare model: torch's own encoder, and diffusers' transformers without their pipelines."""

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl


class Toy(nn.Module):
    """Latents to tokens and back around torch's own encoder; one token of condition stands before them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside = nn.Linear(4, 16), nn.Linear(16, 4)
        self.time = nn.Linear(1, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        for n, block in enumerate(self.encoder.layers):  # copies of one: all would read alike
            block.linear2.weight.data += 0.1 * n

    def forward(self, x, timestep, word):
        tokens = self.inside(x.flatten(2).transpose(1, 2)) + self.time(timestep[:, None] / 1000)[:, None]
        out = self.encoder(torch.cat([word, tokens], 1))[:, 1:]
        return self.outside(out).transpose(1, 2).unflatten(2, x.shape[2:])


def word(sample, branch):
    return {"word": torch.full((1, 1, 16), float(len(sample.prompt) if branch == "cond" else 0))}


def pixels(latents):
    values = latents[:, :3].permute(0, 2, 3, 4, 1)
    return (values.sigmoid() * 255).round().to(torch.uint8).numpy()


SIZE = (4, 2, 3, 5)
SAMPLE = dl.Sample(prompt="a cat", size=(3, 5), num_frames=2)
OTHER = dl.Sample(prompt="a longer cat", size=(3, 5), num_frames=2)


@pytest.fixture
def toy():
    return Toy().eval().requires_grad_(False)


@pytest.fixture
def lens(toy):
    return dl.blocks(
        toy, "encoder.layers", latent=lambda sample: SIZE, grid=lambda size: size[1:], condition=word,
        decode=pixels, before=1, channels=16, sites={"ffn": "linear2"},
    )  # fmt: skip


def by_hand(toy, seed=0, steps=3, cfg_scale=2.0, watch=None):
    """Sample with a loop of its own."""
    x = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(seed))
    for n in range(steps):
        sigma, after = 1 - torch.tensor([n, n + 1]) / steps
        v = {}
        for branch in ("cond", "uncond"):
            handles = [
                block.register_forward_hook(lambda m, a, out, key=(n, branch, k): watch.update({key: out}))
                for k, block in enumerate(toy.encoder.layers)
                if watch is not None
            ]
            v[branch] = toy(x, 1000 * sigma[None], **word(SAMPLE, branch))
            [handle.remove() for handle in handles]
        x = x + (v["uncond"] + cfg_scale * (v["cond"] - v["uncond"])) * (after - sigma)
    return x


def test_a_run_is_the_loop_by_hand_and_every_state_is_labelled(toy, lens):
    states = {}
    expected = pixels(by_hand(toy, watch=states))[0]
    record = [dl.hidden, dl.x0, (dl.energy, dl.at(site="ffn"))]
    run = lens.run(SAMPLE, steps=3, cfg_scale=2.0, record=record, edit=[(lambda h, at: h.clone(), dl.at())])
    assert np.array_equal(run.video, expected)
    assert run["hidden"].shape == (3, 2, 3, *SIZE[1:], 16) and len(states) == 18
    for (step, branch, layer), state in states.items():
        got = run["hidden"].sel(step=step, branch=branch, layer=layer).values.reshape(-1, 16)
        np.testing.assert_allclose(got, state[0, 1:].numpy(), atol=1e-6)
    assert np.array_equal(lens.decode(run["x0"].isel(step=-1)), run.video)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.modules())
    assert "model_fn" not in vars(lens.pipe) and "step" not in vars(lens.pipe.scheduler)


def test_a_batch_is_its_single_runs_and_edits_reach_their_rows(lens):
    pairs = [(SAMPLE, 0), (OTHER, 1)]
    batch = lens.batch(pairs, steps=3, cfg_scale=2.0)
    x = batch.noise
    for step in range(3):
        x = batch.step(step, x).latents
    for row, (sample, seed) in enumerate(pairs):
        run = lens.run(sample, seed=seed, steps=3, cfg_scale=2.0, record=[dl.x0])
        np.testing.assert_allclose(
            x[row].permute(1, 2, 3, 0).numpy(), run["x0"].isel(step=-1).values, atol=1e-5
        )
    clean = lens.run(SAMPLE, steps=3, cfg_scale=2.0, record=[dl.hidden])
    place = dl.at(layer=1, step=1, branch="uncond", frame=1)
    run = lens.run(SAMPLE, steps=3, cfg_scale=2.0, record=[dl.hidden], edit=[(dl.zero(), place)])
    changed = (run["hidden"] != clean["hidden"]).any("channel")
    assert int(changed.sel(step=1, branch="uncond", layer=1).sum()) == 15 and not changed.sel(step=0).any()
    assert not changed.sel(step=1, branch="cond").any() and changed.sel(step=2, layer=0).any()


@pytest.mark.parametrize("form", ["dict", "list", "tuple in a dict"])
def test_a_condition_inside_dicts_and_lists_goes_into_batches(toy, lens, form):
    put, take = {
        "dict": (lambda w: {"w": w, "scale": 1}, lambda c: c["w"]),
        "list": (lambda w: [w, None], lambda c: c[0]),
        "tuple in a dict": (lambda w: {"deep": (w, "kept")}, lambda c: c["deep"][0]),
    }[form]
    nested = dl.blocks(
        toy, "encoder.layers", latent=lambda sample: SIZE, grid=lambda size: size[1:], before=1,
        condition=lambda sample, branch: {"c": put(word(sample, branch)["word"])},
        forward=lambda model, x, t, c: model(x, t, take(c)),
    )  # fmt: skip
    options = {"steps": 3, "cfg_scale": 2.0, "record": [dl.x0, dl.hidden]}
    for run, (sample, seed) in zip(
        nested.batch([(SAMPLE, 0), (OTHER, 0), (SAMPLE, 1)], **options).run(),
        [(SAMPLE, 0), (OTHER, 0), (SAMPLE, 1)],
        strict=True,
    ):
        alone = lens.run(sample, seed, **options)
        for name in ("x0", "hidden"):
            assert np.allclose(run[name], alone[name], atol=1e-5)
    inputs = nested.batch([(SAMPLE, 0), (OTHER, 0)], steps=3, cfg_scale=2.0).inputs
    assert inputs.differing(0, 1) == {"c (cond)"}


def test_a_condition_that_cannot_be_put_together_is_refused(toy):
    def batch(condition):
        lens = dl.blocks(
            toy, "encoder.layers", latent=lambda sample: SIZE, grid=lambda size: size[1:], before=1,
            condition=lambda sample, branch: {"c": condition(sample)},
            forward=lambda model, x, t, c: model(x, t, torch.zeros(len(x), 1, 16)),
        )  # fmt: skip
        return lens.batch([(SAMPLE, 0), (OTHER, 0)], steps=2)

    for condition in (
        lambda sample: {"w": torch.ones(1, len(sample.prompt), 16)},  # of other lengths
        lambda sample: [torch.ones(1, 1, 16)] * len(sample.prompt),
        lambda sample: {"text": sample.prompt},
    ):
        with pytest.raises(dl.PlanError, match=r"cannot go through the model together: c \(cond\) differs"):
            batch(condition)


def test_a_body_sees_the_blocks(lens):
    with lens.trace(SAMPLE, steps=2) as tr:
        tr.record(dl.hidden)
        norms = [].save()
        for call in tr.calls(step=1):
            norms.append(float(call.block(1).output[:, 1:].norm()))
    assert norms == pytest.approx([float(np.linalg.norm(tr.run["hidden"].sel(step=1, layer=1).values))])


def test_what_is_wrong_says_so(toy, lens):
    assert lens.estimate([dl.hidden], SAMPLE, steps=2).bytes > 0
    with pytest.raises(dl.PlanError, match="no list of blocks 'layers'"):
        dl.blocks(toy, "layers", latent=lambda s: SIZE, grid=lambda size: size[1:])
    bare = dl.blocks(toy, "encoder.layers", latent=lambda s: SIZE, grid=lambda size: size[1:], condition=word)
    with pytest.raises(dl.CaptureError, match=r"grid \(2, 3, 5\).*31|does not hold"):
        bare.run(SAMPLE, steps=1, record=[dl.energy])
    with pytest.raises(dl.PlanError, match=r"decode=\.\.\."):
        bare.decode(torch.zeros(2, 3, 5, 4))
    with pytest.raises(dl.PlanError, match=r"channels=\.\.\."):
        bare.estimate([dl.energy], SAMPLE)
    with pytest.raises(dl.PlanError, match=r"takes no \['guidance'\]"):
        bare.run(SAMPLE, guidance=1)
    wrong = dl.blocks(
        toy, "encoder.layers", latent=lambda s: SIZE, grid=lambda size: size[1:], condition=word, before=1,
        forward=lambda model, x, t, word: model(x, t, word)[:, :2],
    )  # fmt: skip
    with pytest.raises(dl.PlanError, match="return the velocity of all"):
        wrong.run(SAMPLE, steps=1)


def test_diffusers_transformers_alone():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).requires_grad_(False)  # fmt: skip
    lens = dl.blocks(
        model, "blocks", latent=lambda sample: (4, 2, 4, 6), grid=lambda size: (size[1], size[2] // 2, size[3] // 2),
        condition=lambda sample, branch: {"text": torch.ones(1, 3, 8) * (branch == "cond")},
        forward=lambda model, x, t, text: model(x, t, text).sample, sites={"ffn": "ffn"},
    )  # fmt: skip
    seen = []
    handle = model.blocks[1].register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    run = lens.run(SAMPLE, steps=2, record=[dl.hidden, (dl.energy, dl.at(site="ffn"))])
    handle.remove()
    for step in range(2):
        got = run["hidden"].isel(step=step, branch=0, layer=1).values.reshape(-1, 24)
        assert np.array_equal(got, seen[step][0].numpy())
    assert run["hidden"].sizes["x"] == 3 and "video" not in run.names
