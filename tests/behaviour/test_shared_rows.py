"""What several rows go through together is refused where it may differ among them."""

import functools
import io
import itertools
import threading

import pytest
import torch
from torch import nn

import dit_lens as dl
from dit_lens.errors import PlanError
from dit_lens.tasks.sample import Score


def generator():
    while True:
        yield 0.5


def by(source, take=next):
    def edit(h, at):
        return h * float(take(source))

    return edit


MOVING = {
    "an iterator": lambda: by(iter([1.0, 0.5, 0.25] * 9)),
    "a count": lambda: by(itertools.count(1)),
    "a generator": lambda: by(generator()),
    "a file": lambda: by(io.StringIO("1\n" * 9), lambda file: file.readline()),
    "a thread's own": lambda: by(threading.local(), lambda local: local.__dict__.setdefault("k", 1.0)),
}


@pytest.mark.parametrize("kind", MOVING)
def test_what_moves_on_as_it_is_used_is_not_shared_by_rows(lens, sample, kind):
    options = {"steps": 3, "cfg_scale": 1.0}
    placed = dl.at(layer=1)
    with pytest.warns(UserWarning, match="cannot be named"):
        lens.batch([(sample, 0)], edit=[(MOVING[kind](), placed)], **options).run()
    with pytest.raises(PlanError, match="keeps something from call to call"), pytest.warns():
        lens.batch([(sample, 0), (sample, 1)], edit=[(MOVING[kind](), placed)], **options).run()
    with pytest.raises(PlanError, match="keeps something from call to call"):
        lens.sweep([(sample, 0), (sample, 1)], {"arm": [(MOVING[kind](), placed)]}, **options)


def mixing(last, by_seed=False):
    """An edit that mixes in what the step before left, and leaves nothing at the last step."""
    kept = {}

    def edit(h, at):
        key = at.seed if by_seed else None
        before = kept.get(key)
        kept[key] = h.clone()
        if at.step == last:
            kept.clear()
        return h if before is None else 0.5 * h + 0.5 * before

    return edit


def differing(last):
    """A record of the difference to the step before, which leaves nothing at the last step."""
    kept = []

    @dl.keeps("frame", "y", "x")
    def delta(h):
        now = h.float().mean(-1)
        out = now - kept[-1] if kept else now * 0
        kept.append(now)
        if len(kept) == last + 1:
            kept.clear()
        return out

    return delta


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_what_is_kept_for_a_moment_is_not_shared_by_rows_that_take_turns(lens, sample, tmp_path, at_once):
    options = {"steps": 3, "cfg_scale": 1.0, "at_once": at_once}
    placed = dl.at(layer=1)
    pairs, refused = [(sample, 0), (sample, 1)], pytest.raises(PlanError, match="keeps something")
    with refused:
        lens.sweep(pairs, {"arm": [(mixing(2), placed)]}, **options)
    both = mixing(2)
    with refused:
        lens.sweep(pairs[:1], {"one": [(both, placed)], "two": [(both, placed)]}, **options)
    with refused:
        record = [(differing(2), placed)]
        lens.sweep(
            pairs[:1], {"arm": [(dl.zero(), dl.at(layer=0))]}, record=record, store=tmp_path, **options
        )
    with refused:
        edits = [(mixing(2, by_seed=True), dl.at(layer=0)), (dl.mean_over_seeds(), placed)]
        lens.batch(pairs, edit=edits, **options).run()


class Mixing:
    """Its edits mix in what the step before left in it."""

    def __init__(self, last=2):
        self.kept, self.last = {}, last

    def edit(self, h, at):
        before = self.kept.get("h")
        self.kept["h"] = h.clone()
        if at.step == self.last:
            self.kept.clear()
        return h if before is None else 0.5 * h + 0.5 * before

    def half(self, h, at):
        return 0.5 * self.edit(h, at)


def together(kind):
    """Return the edits of two arms that have one state behind them."""
    one, edit = Mixing(), mixing(2)
    return {
        "a bound method": (one.edit, one.edit),
        "two methods": (one.edit, one.half),
        "partials": (functools.partial(one.edit), functools.partial(one.half)),
        "lambdas": (lambda h, at: edit(h, at), lambda h, at: 2 * edit(h, at)),
    }[kind]


@pytest.mark.parametrize("at_once", [1, 64])
@pytest.mark.parametrize("kind", ["a bound method", "two methods", "partials", "lambdas"])
def test_arms_with_one_state_behind_them_are_refused(lens, sample, kind, at_once):
    first, second = together(kind)
    arms = {"one": [(first, dl.at(layer=1))], "two": [(second, dl.at(layer=0))]}
    with pytest.raises(PlanError, match="keeps something"):
        lens.sweep([(sample, 0)], arms, steps=3, cfg_scale=1.0, at_once=at_once)


@pytest.mark.parametrize("at_once", [1, 64])
def test_arms_with_objects_of_their_own_are_what_each_is_alone(lens, sample, at_once):
    options = {"steps": 3, "cfg_scale": 1.0, "at_once": at_once}
    places = {"one": dl.at(layer=1), "two": dl.at(layer=0)}
    both = lens.sweep([(sample, 0)], {n: [(Mixing().edit, p)] for n, p in places.items()}, **options)
    for name, place in places.items():
        alone = lens.sweep([(sample, 0)], {name: [(Mixing().edit, place)]}, **options)
        assert both.distance.sel(arm=name).item() == pytest.approx(
            alone.distance.sel(arm=name).item(), rel=1e-3
        )


def test_what_a_later_row_alone_keeps_is_seen(lens, sample):
    donor = {}

    def edit(h, at):
        if at.seed == 1:
            donor["h"] = h.clone()
        out = donor.get("h", h) if at.seed == 0 else h
        if at.step == 2:
            donor.clear()
        return out

    with pytest.raises(PlanError, match="keeps something"):
        lens.batch([(sample, 0), (sample, 1)], edit=[(edit, dl.at(layer=1))], steps=3, cfg_scale=1.0).run()


def test_what_one_row_alone_keeps_is_its_own(lens, sample):
    options = {"steps": 3, "cfg_scale": 1.0}
    placed = dl.at(layer=1)
    run = lens.run(sample, 0, edit=[(mixing(2), placed)], record=[dl.x0], **options)
    clean = lens.run(sample, 0, record=[dl.x0], **options)
    apart = ((run["x0"] - clean["x0"])[-1] ** 2).mean().item() ** 0.5
    table = lens.sweep([(sample, 0)], {"arm": [(mixing(2), placed)]}, at_once=1, **options)
    assert table.distance.sel(arm="arm").item() == pytest.approx(apart, rel=1e-3)


class MixesManyFrames(nn.Module):
    """Its rows read one another where there are many frames."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, t):
        h = x.flatten(2).mT
        for layer in self.layers:
            h = torch.tanh(layer(h))
        v = h.mT.reshape(x.shape)
        return v if x.shape[2] < 3 else v + 0.3 * x.mean(0, keepdim=True)


def test_a_batch_of_another_shape_is_checked_anew():
    torch.manual_seed(0)
    model = MixesManyFrames().eval().requires_grad_(False)
    lens = dl.blocks(
        model, "layers", latent=lambda s: (4, s.num_frames, 3, 3), grid=lambda size: size[1:], steps=3
    )

    def pairs(frames):
        sample = dl.Sample(prompt="p", size=(3, 3), num_frames=frames, id=str(frames))
        return [(sample, 0), (sample, 1)]

    lens.batch(pairs(2)).run()
    with pytest.raises(PlanError, match="would not be the pipeline's own loop"):
        lens.batch(pairs(4)).run()
    with pytest.raises(PlanError, match="would not be the pipeline's own loop"):
        lens.sweep(pairs(2) + pairs(4), {"arm": [(dl.zero(), dl.at(layer=1))]})


def test_samples_of_one_label_and_two_scorers_are_two_samples(lens, sample):
    lenient = sample.with_(scorer=lambda video: Score(True, 1.0, "lenient"))
    arms = {"arm": [(dl.zero(), dl.at(layer=1))]}
    for other in (sample, sample.with_(scorer=lambda video: Score(False, 0.0, "strict"))):
        with pytest.raises(PlanError, match="Two samples are called custom/0"):
            lens.sweep([(lenient, 0), (other, 1)], arms, steps=2)


class Direction:
    """An edit that makes something once, and may keep a row's value in it."""

    def __init__(self, value):
        self.value = value

    @functools.cached_property
    def unit(self):
        return self.value / self.value.norm()

    def __call__(self, h, at):
        return h + self.unit.to(h)


def test_what_is_made_once_is_made_before_rows_share_it(lens, sample):
    options, pairs, direction = (
        {"steps": 2, "cfg_scale": 1.0},
        [(sample, 0), (sample, 1)],
        Direction(torch.ones(1)),
    )
    with pytest.raises(PlanError, match="is made before: in __init__"):
        lens.batch(pairs, edit=[(direction, dl.at(layer=1))], **options).run()
    direction.unit.mul_(2)
    lens.batch(pairs, edit=[(direction, dl.at(layer=1))], **options).run()
    lens.sweep(pairs, {"arm": [(direction, dl.at(layer=1))]}, **options)
