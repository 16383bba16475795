"""What would make a gradient silently wrong, or zero, is refused, and says what to do."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dit_lens as dl
from dit_lens.errors import DitLensError
from gradients import lens_on, two_rows, weighted
from loops import SAMPLE, Model

METRIC = weighted((2, 2, 4, 4))


@pytest.fixture(scope="module")
def batch():
    return two_rows(lens_on())


def refused(batch, match, metric=METRIC, sites=("block",), **options):
    with pytest.raises(DitLensError, match=match):
        batch.attribute(metric, sites, **options)


@pytest.mark.parametrize(
    ("metric", "match"),
    [
        (lambda x0: float(x0.mean()), "returned float"),
        (lambda x0: x0.mean((1, 2, 3)), r"returned torch.float64 \(2,\)"),
        (lambda x0: (x0 > 0).sum(), "returned torch.int64"),
        (lambda x0: np.float64(x0.detach().mean()), "returned float64"),
        (lambda x0: x0.detach().mean(), "without a gradient"),
        (torch.no_grad()(lambda x0: x0.mean()), "without a gradient"),
        (lambda x0: torch.zeros(()), "without a gradient"),
        (lambda x0: x0.mean() / 0 * 0, "is nan"),
        ("mean", "give a function"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"integrate": 2}, {"until": -1}])
def test_a_metric_without_number_or_gradient(batch, metric, match, options):
    with torch.no_grad():  # as a caller may have it
        refused(batch, match, metric, **options)


def test_a_metric_without_a_slope_where_the_row_is(batch):
    last = batch.noise
    for step in range(batch.steps):
        last = batch.step(step, last).latents

    def root(x0):  # the row's own end: a distance of 0
        return ((x0 - last[1]) ** 2).sum().sqrt()

    refused(batch, "is not finite. The metric has no derivative", root, until=-1)
    gain = batch.attribute(lambda x0: (x0 - last[1]).norm(), until=-1)  # of which torch says 0
    assert "All attributions are 0" in gain.attrs["warning"]


def test_a_metric_that_raises_says_its_own(batch):
    with pytest.raises(KeyError, match="mine"):
        batch.attribute(lambda x0: {}["mine"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sites": ["heads_of_state"]}, "unknown site 'heads_of_state'; there are block"),
        ({"sites": []}, "at least one"),
        ({"sites": ["block", "block"]}, "each site once"),
        ({"sites": ["latents", "block"], "place": dl.at(layer=0)}, "outside the blocks"),
        ({"place": dl.at(step=7)}, "step=7 is out of range"),
        ({"place": dl.at(layer=3)}, "layer=3 is out of range"),
        ({"place": dl.at(branch="third")}, "no branch 'third'"),
        ({"place": dl.at(stream="audio")}, "no stream 'audio'"),
        ({"place": dl.at(frame=0)}, "select frame of the result"),
        ({"place": dl.at(site="block")}, "name the sites by sites="),
        ({"until": 3}, "until=3 is out of range"),
        ({"until": 1}, "comes after it"),
        ({"until": "last"}, "-1 for the last"),
        ({"of": "latents"}, "of='latents'"),
        ({"clean": 2}, "clean=2: give the number of a row of this batch, 0 to 1"),
        ({"corrupt": (SAMPLE, 7)}, "give the number of a row"),
        ({"corrupt": True}, "give the number of a row"),
        ({"corrupt": 0}, "both row 0"),
        ({"edits": [[]]}, "give two"),
        ({"integrate": -1}, "integrate=-1"),
        ({"check": 2.5}, "check=2.5"),
        ({"seed": None}, "seed=None"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_runs(batch, options, match):
    def metric(x0):
        raise AssertionError("it ran")

    refused(batch, match, metric, **options)


def test_rows_of_unequal_grids_make_no_batch():
    lens = lens_on()
    with pytest.raises(dl.PlanError, match=r"one \(height, width, num_frames\)"):
        lens.batch([(SAMPLE, 0), (SAMPLE.with_(num_frames=9), 0)])


def test_edits_over_seeds(batch):
    refused(batch, "sees several seeds", edits=[[], [(dl.mean_over_seeds(), dl.at(layer=0))]])


@pytest.mark.parametrize("options", [{"until": -1}, {"check": 2}])
def test_an_edit_that_keeps_something_would_be_another_at_every_pass(batch, options):
    calls = []

    def counting(h, at):
        calls.append(at.step)
        return h * len(calls)

    refused(batch, "keeps something", edits=[[], [(counting, dl.at(layer=0, step=1))]], **options)


def test_inference_mode_around_it(batch):
    with torch.inference_mode():
        refused(batch, "Leave that block first")


def test_a_batch_that_was_made_in_inference_mode():
    lens = lens_on()
    with torch.inference_mode():
        batch = two_rows(lens)
    refused(batch, "outside of it")


def test_a_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        lens = lens_on()
    refused(two_rows(lens), "The model was made under torch.inference_mode")


class Off(Model):
    """A model that computes without gradients: all of it, its blocks, or its end."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x, t, shift):
        if self.where == "all":
            with torch.no_grad():
                return super().forward(x, t, shift)
        if self.where == "inference":
            with torch.inference_mode():
                return super().forward(x, t, shift)
        return super().forward(x, t, shift).detach()


class OffBlock(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.mlp = inner, inner.mlp

    def forward(self, x):
        with torch.no_grad():
            return self.inner(x)


@pytest.mark.parametrize("options", [{}, {"until": -1}, {"integrate": 2}, {"by_blocks": True}])
@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("all", "under torch.no_grad"),
        ("inference", "under torch.no_grad or in inference mode"),
        ("end", "no gradient comes out"),
    ],
)
def test_a_model_that_computes_without_gradients(where, match, options):
    refused(two_rows(lens_on(model=Off(where))), match, **options)


def test_a_part_of_a_block_that_computes_without_gradients():
    model = Model()
    model.blocks[1] = OffBlock(model.blocks[1])
    refused(two_rows(lens_on(model=model)), r"mlp\(step=0, .*layer=1\).*under torch.no_grad", sites=["mlp"])


@pytest.mark.parametrize("options", [{}, {"until": -1}, {"until": -1, "place": dl.at(layer=0, step=0)}])
def test_a_block_that_computes_without_gradients_is_no_block_without_effect(options):
    model = Model()
    model.blocks[1] = OffBlock(model.blocks[1])
    refused(two_rows(lens_on(model=model)), "no gradient comes", **options)


class Checkpointed(nn.Module):
    """A block that runs again in the backward pass by the model's own doing."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.mlp = inner, inner.mlp

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def test_checkpoints_of_the_models_own():
    model = Model()
    for n, block in enumerate(model.blocks):
        model.blocks[n] = Checkpointed(block)
    batch = two_rows(lens_on(model=model))
    refused(batch, "turn checkpointing off", sites=["mlp"])
    refused(batch, "turn checkpointing off", sites=["mlp"], by_blocks=True)
    plain = two_rows(lens_on())
    for options in ({}, {"until": -1, "by_blocks": True}):  # the block's own value stands outside
        np.testing.assert_allclose(
            batch.attribute(METRIC, **options).block, plain.attribute(METRIC, **options).block, rtol=1e-10
        )


class CheckpointsBlocks(Model):
    """A model that calls its blocks through checkpoints, as trainers have them."""

    def forward(self, x, t, shift):
        h = self.into(x.flatten(2).transpose(1, 2)) + shift + (t / 1000)[:, None, None]
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False)
        return self.out(h).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("by_blocks", [False, True])
@pytest.mark.parametrize("site", ["block", "mlp"])
def test_checkpoints_around_blocks(site, by_blocks):
    batch = two_rows(lens_on(model=CheckpointsBlocks()))
    refused(batch, "turn checkpointing off", sites=[site], by_blocks=by_blocks)


class Reads(nn.Module):
    """What the branch says, whatever the latents are."""

    def forward(self, x, shift):
        return shift.to(x).expand_as(x)


class SaysBlock(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.mlp = inner, Reads()

    def forward(self, x):
        return self.inner(x) + self.mlp(x, torch.tensor(0.7))


def test_a_state_that_does_not_follow_the_latents_is_no_fault():
    model = Model()
    model.blocks[1] = SaysBlock(model.blocks[1])
    edits = [[(dl.scale(factor=2.0), dl.at(site="mlp", layer=1))], []]
    batch = two_rows(lens_on(model=model))
    place = dl.at(layer=1, step=[0, 1])
    for until in (None, -1):
        gain = batch.attribute(METRIC, ["mlp", "block"], place=place, until=until, edits=edits, check=10_000)
        np.testing.assert_allclose(
            gain.estimate, gain.exact, rtol=0.5, atol=0.3 * float(abs(gain.exact).max())
        )
        assert float(abs(gain.mlp).max()) > 0


def test_an_edit_that_cuts_off_is_no_fault_and_a_model_that_does_is_one_under_edits_too():
    zeros = [[], [(dl.zero(), dl.at(layer=1))]]
    gain = two_rows(lens_on()).attribute(METRIC, place=dl.at(step=[0, 1]), until=-1, edits=zeros)
    assert float(abs(gain.block.sel(layer=2)).max()) > 0 == float(abs(gain.block.sel(layer=0)).max())
    model = Model()
    model.blocks[1] = OffBlock(model.blocks[1])
    batch = two_rows(lens_on(model=model))
    refused(batch, "no gradient comes", edits=[[], [(dl.scale(factor=2.0), dl.at(layer=0))]], until=-1)
