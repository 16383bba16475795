"""Models that write into their own memory: into what they are given, into what they returned, into a block's input."""

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import PlanError, StoreError
from dit_lens.plan.plan import Placed

CHANNELS, HIDDEN = 3, 12
SAMPLES = [dl.Sample(prompt=text, size=(4, 6), num_frames=1, id=text) for text in ("a cat", "doggo!!")]


class Block(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.mix, self.in_place = nn.Linear(HIDDEN, HIDDEN), in_place

    def forward(self, h):
        return h.add_(self.mix(h)) if self.in_place else h + self.mix(h)


class Model(nn.Module):
    """A small model with the ways of being written to that a test asks for."""

    def __init__(self, ways=()):
        super().__init__()
        torch.manual_seed(0)
        self.ways = frozenset(ways)
        self.into, self.out = nn.Linear(CHANNELS, HIDDEN), nn.Linear(HIDDEN, CHANNELS)
        self.text = nn.Linear(4, HIDDEN)
        self.layers = nn.ModuleList(Block("block" in ways) for _ in range(2))
        self.returned = None

    def forward(self, x, t, text):
        if "latents" in self.ways:
            x.mul_(0.9)
        h = self.into(x.flatten(2).transpose(1, 2)) + t[:, None, None] / 1000
        if "first row" in self.ways:
            text = text[:1]
        if "last row" in self.ways:
            text = text[-1:]
        h = h + self.text(text)[:, None]
        for layer in self.layers:
            before = h
            h = layer(h) + 0.5 * before if "block" in self.ways else layer(h)
        out = self.out(h).transpose(1, 2).reshape(x.shape)
        if "halves" in self.ways and len(out) % 2 == 0:
            out = out.chunk(2)[0].repeat(2, 1, 1, 1, 1)
        if "centred" in self.ways:
            out = out - out.mean(0, keepdim=True)
        if "output" not in self.ways:
            return out
        if self.returned is None or self.returned.shape != out.shape:
            self.returned = torch.empty_like(out)
        return self.returned.copy_(out)


def lens_of(*ways):
    model = Model(ways)
    return dl.blocks(
        model,
        "layers",
        latent=lambda sample: (CHANNELS, 1, 4, 6),
        grid=lambda size: size[1:],
        condition=lambda sample, branch: {"text": torch.full((1, 4), float(len(sample.prompt)))},
        forward=lambda model, latents, timestep, text: model(latents, timestep, text.to(latents)),
        steps=3,
        cfg_scale=1.0,
    )


PAIRS = [(sample, seed) for sample in SAMPLES for seed in range(2)]


@pytest.mark.parametrize("at_once", [1, 2, 64])
@pytest.mark.parametrize("way", ["latents", "output", "block"])
def test_a_batch_owns_what_it_hands_out(way, at_once):
    lens = lens_of(way)
    singles = [lens.run(*pair, record=[dl.x0, dl.velocity]) for pair in PAIRS]
    batch = lens.batch(PAIRS, at_once=at_once)
    x, steps = batch.noise, []
    for step in range(batch.steps):
        held = x.clone()
        steps.append(batch.step(step, x))
        assert torch.equal(x, held)
        x = steps[-1].latents
    for step, out in enumerate(steps):
        for row, run in enumerate(singles):
            for name, rows in (("x0", out.x0), ("velocity", out.velocity)):
                expected = torch.from_numpy(run[name].isel(step=step).values.copy()).permute(3, 0, 1, 2)
                torch.testing.assert_close(rows[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("at_once", [2, 64])
def test_seeds_that_meet_are_right_where_a_model_writes_into_its_latents(at_once):
    lens = lens_of("latents")
    pairs = [(SAMPLES[0], seed) for seed in range(3)]
    edit = (dl.mean_over_seeds(), dl.at(site="latents", step=1))
    batches = [lens.batch(pairs, edit=[edit], record=[dl.x0], at_once=n).run() for n in (at_once, 3)]
    for run, expected in zip(*batches, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(run["x0"].values.copy()),
            torch.from_numpy(expected["x0"].values.copy()),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("way", ["first row", "last row", "centred", "halves"])
@pytest.mark.parametrize("at_once", [2, 64])
def test_a_model_whose_rows_read_one_another_is_refused(way, at_once):
    lens = lens_of(way)
    if way not in ("centred", "halves"):
        lens.batch([PAIRS[0]])
        lens.batch(PAIRS[:2], at_once=at_once)  # two seeds of one sample: the text is the same
    with pytest.raises(PlanError, match="its model mixes rows"):
        lens.batch(PAIRS, at_once=at_once)


def test_the_pair_beside_is_one_for_which_the_model_is_given_something_else():
    lens = lens_of("first row")
    pairs = [(SAMPLES[0], 0), (SAMPLES[0].with_(id="other"), 1), (SAMPLES[1], 0)]
    lens.batch(pairs[:2])  # nothing that the model reads differs but the noise
    with pytest.raises(PlanError, match="its model mixes rows"):
        lens.batch(pairs)


def test_edits_over_seeds_see_the_seeds_of_equal_samples():
    lens = lens_of()
    pairs = [(SAMPLES[0].with_(), seed) for seed in range(2)] + [
        (SAMPLES[1].with_(), seed) for seed in range(2)
    ]
    arm = [Placed(dl.mean_over_seeds(), dl.at(site="latents", step=1))]
    moved = []
    for rows in (pairs, PAIRS):
        clean, ended = run_arms(lens.batch(rows), [arm])
        moved.append((ended[0] - clean).abs().amax())
    assert moved[0] == moved[1] > 0
    apart = [PAIRS[0], PAIRS[2], PAIRS[1], PAIRS[3]]
    with pytest.raises(PlanError, match=r"custom/a cat do not stand side by side"):
        run_arms(lens.batch(apart), [arm])
    batch = lens.batch(PAIRS)
    with pytest.raises(PlanError, match="rows of one number stand side by side"):
        batch.step(0, batch.noise, edits=[arm] * 4, groups=[0, 1, 0, 1])


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_a_batch_over_seeds_is_found_again_however_many_rows_go_at_once(tmp_path, at_once):
    edit = [(dl.mean_over_seeds(), dl.at(layer=1))]
    pairs = [(SAMPLES[0], seed) for seed in range(3)]
    first = lens_of().batch(pairs, edit=edit, record=[dl.hidden], store=tmp_path).run()
    again = lens_of().batch(pairs, edit=edit, record=[dl.hidden], store=tmp_path, at_once=at_once).run()
    assert [run.path for run in first] == [run.path for run in again]


def test_runs_in_float64_and_with_nan_are_found_again(tmp_path):
    lens = lens_of()
    lens.dits["dit"].double()
    one = lens.run(*PAIRS[0], store=tmp_path)
    again = dl.Lens.of(lens.specimen)
    lens.specimen.checked_stores.clear()
    assert again.run(*PAIRS[0], store=tmp_path).path == one.path
    nan = [(lambda h, at: h * float("nan"), dl.at(layer=1))]
    broken = lens_of()
    runs = broken.batch(PAIRS, edit=nan, store=tmp_path).run()
    broken.specimen.checked_stores.clear()
    assert broken.batch(PAIRS, edit=nan, store=tmp_path, at_once=2).run()[3].path == runs[3].path


def test_what_a_condition_gives_as_numpy_is_compared_by_its_values():
    lens = dl.blocks(
        Model(),
        "layers",
        latent=lambda sample: (CHANNELS, 1, 4, 6),
        grid=lambda size: size[1:],
        condition=lambda sample, branch: {"w": np.array([1.0, float(len(sample.prompt))])},
        forward=lambda model, x, t, w: model(x, t, torch.full((len(x), 4), float(w[0]))),
        steps=2,
        cfg_scale=1.0,
    )
    lens.batch([(SAMPLES[0], 0), (SAMPLES[0].with_(id="other"), 1)])
    with pytest.raises(PlanError, match=r"w \(cond\) differs among them"):
        lens.batch([(SAMPLES[0], 0), (SAMPLES[1], 0)])


@pytest.mark.parametrize("site", ["block", "block_in"])
def test_an_identity_edit_leaves_a_model_that_writes_in_place_alone(site):
    lens = lens_of("block")
    bare = lens.run(*PAIRS[0])
    edited = lens.run(*PAIRS[0], edit=[(lambda h, at: h.clone(), dl.at(site=site))])
    assert bare["latents"].equals(edited["latents"])


def test_a_batch_of_a_model_without_a_decoder_is_written(tmp_path):
    lens = lens_of()
    runs = lens.batch(PAIRS, record=[dl.energy], store=tmp_path).run()
    assert [
        run["energy"].equals(lens.run(*pair, record=[dl.energy])["energy"])
        for run, pair in zip(runs, PAIRS, strict=True)
    ]
    lens.sweep(PAIRS, arms={"none": [(dl.zero(), dl.at(layer=1))]}, record=[dl.energy], store=tmp_path)


def test_a_shard_that_another_program_wrote_anew_is_not_read_wrongly(tmp_path):
    import zarr

    run = lens_of().run(*PAIRS[0], record=[dl.hidden], store=tmp_path)
    right = run["hidden"].values
    array = zarr.open_group(str(run.path), mode="r+")["hidden"]
    array[0] = array[0]
    try:
        assert (dl.open_run(run.path)["hidden"].values == right).all()
    except StoreError as error:
        assert "its chunks in another order" in str(error)
    assert (zarr.open_group(str(run.path), mode="r")["hidden"][:] == right).all()


def test_samples_that_differ_where_a_condition_reads_are_two_to_edits_over_seeds(tmp_path):
    def lens():
        return dl.blocks(
            Model(),
            "layers",
            latent=lambda sample: (CHANNELS, 1, 4, 6),
            grid=lambda size: size[1:],
            condition=lambda sample, branch: {"text": torch.full((1, 4), float(sample.truth.mean()))},
            forward=lambda model, latents, timestep, text: model(latents, timestep, text),
            steps=2,
            cfg_scale=1.0,
        )

    one, other = (SAMPLES[0].with_(truth=np.full((1, 4, 6, 3), value, np.uint8)) for value in (1, 9))
    edit = [(dl.mean_over_seeds(), dl.at(layer=0))]
    alone = lens().batch([(one, 0)], edit=edit).run()[0]["latents"].values
    beside = lens().batch([(one, 0), (other, 0)], edit=edit, store=tmp_path).run()
    np.testing.assert_allclose(beside[0]["latents"].values, alone, atol=1e-5)
    assert beside[0].path != beside[1].path
