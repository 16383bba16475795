"""Rows are runs: batches and sweeps write the same stores as `lens.run`."""

import threading

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from dit_lens.errors import PlanError

CLOSE = {"rtol": 0, "atol": 2e-5}  # float32, another order of summation
RECORD = [
    dl.energy,
    (dl.hidden, dl.at(layer=1, step="1-")),
    dl.x0,
    dl.velocity,
    (dl.channel_mean, dl.at(site="q")),
]
EDIT = [
    (dl.scale(factor=0.5), dl.at(layer=2, step=1)),
    (dl.add_noise(scale=0.3), dl.at(site="latents", step=1)),
]


def same_content(run, other):
    assert set(run.names) == set(other.names) and run.complete
    for name in other.names:
        a, b = run[name], other[name]
        assert a.dims == b.dims and a.dtype == b.dtype and a.attrs["long_name"] == b.attrs["long_name"]
        if name != "video":
            assert np.allclose(a.values, b.values, **CLOSE), name
        for coord in b.coords:
            assert np.array_equal(a[coord].values, b[coord].values), coord


@pytest.mark.parametrize("experts", [1, 2])
def test_every_row_of_a_batch_is_a_run_as_lens_run_writes_it(request, sample, tmp_path, experts):
    lens = dl.Lens(request.getfixturevalue("pipe" if experts == 1 else "two_experts"))
    pairs = [(sample, 0), (sample.with_(prompt="circle the disc", id="1"), 0), (sample, 5)]
    options = {"steps": 3, "cfg_scale": 2.0, "record": RECORD, "edit": EDIT}
    runs = lens.batch(pairs, store=tmp_path / "batch", at_once=2, **options).run()
    for (one, seed), run in zip(pairs, runs, strict=True):
        single = lens.run(one, seed, store=tmp_path / "single", **options)
        same_content(run, single)
        assert run.path.name != single.path.name  # equal within tolerance only, so they never share a name
    again = lens.batch(pairs, store=tmp_path / "batch", at_once=2, **options).run()
    assert [r.path for r in again] == [r.path for r in runs]
    assert sorted(dl.open_runs(tmp_path / "batch").children) == sorted(r.path.name for r in runs)


def test_a_batch_without_a_store_gives_runs_that_live_as_long_as_they_are_held(lens, sample):
    runs = lens.batch([(sample, 0), (sample, 1)], steps=2, record=[dl.energy]).run()
    assert [float(r["energy"].sum()) for r in runs] == [float(r["energy"].sum()) for r in runs]
    assert not np.array_equal(runs[0]["energy"].values, runs[1]["energy"].values)


def test_edits_over_seeds_meet_in_whole_runs_also_row_by_row(lens, sample, tmp_path):
    pairs = [(sample, 0), (sample, 1), (sample, 2)]
    options = {
        "steps": 2,
        "cfg_scale": 1.0,
        "record": [dl.energy],
        "edit": [(dl.mean_over_seeds(), dl.at(layer=1, step=0))],
    }
    together, apart = (lens.batch(pairs, at_once=n, store=tmp_path / str(n), **options).run() for n in (3, 1))
    for a, b in zip(together, apart, strict=True):
        assert np.allclose(a["energy"].values, b["energy"].values, **CLOSE)
    layer = together[0]["energy"].sel(step=0, layer=2).values
    assert np.allclose(layer, together[1]["energy"].sel(step=0, layer=2).values, rtol=1e-3)


ARMS = {
    "late": [(dl.zero(), dl.at(site="ffn", layer=1, step=2))],
    "early": [(dl.scale(factor=0.5), dl.at(layer=0, step=0))],
    "noise": [(dl.add_noise(scale=0.5), dl.at(site="latents", step=1))],
}


def test_a_sweep_writes_the_run_of_every_arm_and_pair(lens, sample, tmp_path):
    pairs = [(sample, 0), (sample, 1)]
    table = lens.sweep(pairs, ARMS, steps=3, cfg_scale=1.0, record=RECORD, store=tmp_path / "sweep")
    plain = lens.sweep(pairs, ARMS, steps=3, cfg_scale=1.0)
    assert np.array_equal(table.distance.values, plain.distance.values)
    for name, arm in {"clean": [], **ARMS}.items():
        options = {"steps": 3, "cfg_scale": 1.0, "record": RECORD, "edit": arm}
        # A batch of this arm finds the runs that the sweep has made.
        found = lens.batch(pairs, store=tmp_path / "sweep", verify="always", **options).run()
        for (one, seed), run in zip(pairs, found, strict=True):
            assert "sweep" in run.attrs["manifest"]["batch"]["rows"], name
            same_content(run, lens.run(one, seed, **options))
    assert len(list(dl.open_runs(tmp_path / "sweep").children)) == 8


def test_a_sweep_that_is_interrupted_leaves_no_lock_and_ends_the_next_time(
    lens, sample, tmp_path, monkeypatch
):
    from dit_lens.engine.batch import Batch

    advance, left = Batch.advance, [3]

    def stopped(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("stopped")
        return advance(*args, **options)

    options = {"steps": 3, "cfg_scale": 1.0, "record": [dl.energy], "store": tmp_path}
    lens.batch([(sample, 0)], steps=3, cfg_scale=1.0)  # the loop is compared with the pipeline's, once
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "advance", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            lens.sweep([(sample, 0)], ARMS, **options)
    lens.sweep([(sample, 0)], ARMS, **options)
    runs = [dl.Run(p) for p in tmp_path.iterdir() if p.is_dir()]
    assert len(runs) == 4 and all(run.complete for run in runs)


def test_records_of_a_sweep_need_a_store(lens, sample):
    with pytest.raises(dl.PlanError, match="goes with store"):
        lens.sweep([(sample, 0)], {}, steps=1, record=[dl.energy])


def test_a_run_of_an_ensemble_is_named_by_the_seeds_that_meet(lens, sample, tmp_path):
    options = {
        "steps": 2,
        "record": [dl.x0],
        "edit": [(dl.mean_over_seeds(), dl.at(layer=1))],
        "verify": "never",
    }
    two = lens.batch([(sample, 0), (sample, 1)], store=tmp_path, **options).run()
    four = lens.batch([(sample, k) for k in range(4)], store=tmp_path, **options).run()
    assert not {r.path for r in two} & {r.path for r in four}
    alone = lens.batch([(sample, k) for k in range(4)], **options).run()
    for run, expected in zip(four, alone, strict=True):
        assert np.array_equal(run["x0"].values, expected["x0"].values)


def test_one_edit_over_seeds_twice_at_a_place_meets_twice(lens, sample):
    def pulled(h, at):
        return h + 0.5 * (h.mean(0, keepdim=True) - h)

    pulled.over_seeds = True
    place = dl.at(layer=1)
    edit = [(pulled, place), (dl.add_noise(scale=1.0), place), (pulled, place)]
    pairs = [(sample, k) for k in range(3)]
    together, apart = (lens.batch(pairs, at_once=n, steps=2, edit=edit, record=[dl.x0]).run() for n in (3, 1))
    for a, b in zip(together, apart, strict=True):
        assert np.allclose(a["x0"].values, b["x0"].values, **CLOSE)


def test_arms_that_are_equal_are_one_run_and_records_come_once(lens, sample, tmp_path):
    zero = (dl.zero(), dl.at(site="ffn", layer=1))
    arms = {"none": [], "one": [zero], "same": [zero]}
    records = (record for record in [dl.energy])
    table = lens.sweep([(sample, 0)], arms, steps=2, cfg_scale=1.0, record=records, store=tmp_path)
    assert table.distance.values.ravel().tolist()[:2] == [0, 0]
    assert np.array_equal(*(table.distance.sel(arm=name).values for name in ("one", "same")))
    stored = [dl.store.open_run(path) for path in dl.store.find_runs(tmp_path)]
    assert len(stored) == 2 and all("energy" in run for run in stored)


def test_what_a_sweep_does_not_take_is_refused(lens, sample):
    with pytest.raises(dl.PlanError, match="what it edits are its arms"):
        lens.sweep([(sample, 0)], {}, steps=2, edit=[dl.zero()])
    for name in (1, "", None):
        with pytest.raises(dl.PlanError, match="is no name"):
            lens.sweep([(sample, 0)], {name: []}, steps=2)
    with pytest.raises(dl.PlanError, match="one whole number"):
        lens.sweep([(sample, 1.7)], {}, steps=2)


def test_a_changed_model_is_known_also_where_a_part_has_no_name(tiny_pipe, sample):
    pipe = tiny_pipe()
    lens = dl.Lens(pipe)
    pipe.dit.weird = threading.Lock()
    batch = lens.batch([(sample, 0)], steps=2)
    pipe.text_encoder.table.mul_(2)
    with pytest.raises(dl.PlanError, match="The model has changed"):
        batch.run()


def test_the_answers_of_a_sweep_are_stored_as_they_are(lens, sample, tmp_path):
    samples = [
        sample.with_(id=str(n), scorer=lambda frames, n=n: dl.Score(True, 1.0, f"{n}{frames.sum()}"))
        for n in range(2)
    ]
    pairs = [(one, seed) for one in samples for seed in (0, 1)]
    table = lens.sweep(pairs, {"n": [(dl.zero(), dl.at(layer=1))]}, steps=1, cfg_scale=1.0)
    table.to_zarr(tmp_path / "table", consolidated=False)
    assert (
        xr.open_zarr(tmp_path / "table", consolidated=False).answer.values.tolist()
        == table.answer.values.tolist()
    )


def test_the_noise_of_a_batch_is_a_copy(lens, sample):
    batch = lens.batch([(sample, 0)], steps=1, cfg_scale=1.0)
    batch.noise.mul_(0.5)
    assert np.array_equal(
        batch.run()[0].video, lens.batch([(sample, 0)], steps=1, cfg_scale=1.0).run()[0].video
    )


def test_a_sweep_refuses_an_edit_before_anything_runs(lens, sample, monkeypatch):
    from dit_lens.engine.batch import Batch

    other = sample.with_(num_frames=5, id="short")
    lens.batch([(sample, 0)], steps=2), lens.batch([(other, 0)], steps=2)  # the loops are compared
    monkeypatch.setattr(Batch, "advance", None)
    with pytest.raises(dl.PlanError, match="frame=2"):
        lens.sweep([(sample, 0), (other, 0)], {"n": [(dl.zero(), dl.at(layer=1, step=1, frame=2))]}, steps=2)


@pytest.mark.parametrize("what", ["sample", "argument"])
def test_a_batch_whose_pictures_were_drawn_on_since_it_was_prepared_is_refused(lens, tmp_path, what):
    drawn = dl.tasks.maze(1_000_002)
    ends = {"end_image": drawn.image.copy()} if what == "argument" else {}
    batch = lens.batch([(drawn, 0), (drawn, 1)], steps=2, store=tmp_path, **ends)
    first = batch.run()
    assert batch.run()[0].path == first[0].path
    (ends.get("end_image") or drawn.image).putpixel((3, 3), (1, 2, 3))
    with pytest.raises(PlanError, match=r"A sample or an argument has changed .* call lens.batch again"):
        batch.run()


class Crossing:
    """From the conditional branch into the unconditional one: puts a state aside, and takes it away again."""

    def __init__(self):
        self.aside = []

    def __call__(self, h, at):
        if at.branch == "cond":
            self.aside.append(h.clone())
            return h
        return h + self.aside.pop()


class Skip:
    """From a layer to a later one; the slot is empty before and after."""

    def __init__(self):
        self.slot = None

    def __call__(self, h, at):
        if self.slot is None:
            self.slot = h.clone()
            return h
        held, self.slot = self.slot, None
        return h + held


def difference_record():
    slot = {}

    @dl.keeps("frame", "y", "x")
    def difference(h):
        if "h" in slot:
            return (h - slot.pop("h")).norm(dim=-1)
        slot["h"] = h.clone()
        return h.norm(dim=-1)

    return difference


@pytest.mark.parametrize(
    "plan",
    [
        lambda: {"edit": [(Crossing(), dl.at(layer=0))], "cfg_scale": 3.0},
        lambda: {"edit": [(Skip(), dl.at(layer=[0, 1]))]},
        lambda: {"record": [(difference_record(), dl.at(layer=[0, 1]))]},
    ],
    ids=["branches", "layers", "record"],
)
def test_what_is_put_aside_for_a_moment_crosses_no_rows(lens, plan):
    """Its state is the same before and after a batch; in between, the rows of a batch would swap what they put aside."""
    samples = [dl.tasks.maze(1_000_001), dl.tasks.maze(1_000_002)]
    for sample in samples:
        assert lens.run(sample, steps=2, **plan()).complete
        lens.batch([(sample, 0)], steps=2, **plan()).run()
    with pytest.raises(PlanError, match="keeps something from call to call"):
        lens.batch([(sample, 0) for sample in samples], steps=2, **plan()).run()


def test_single_steps_and_sweeps_refuse_what_is_put_aside(lens):
    pairs = [(dl.tasks.maze(1_000_001), 0), (dl.tasks.maze(1_000_002), 0)]
    batch = lens.batch(pairs, steps=2, cfg_scale=3.0)
    edit = [(Crossing(), dl.at(layer=0))]
    with pytest.raises(PlanError, match="keeps something from call to call"):
        batch.step(0, batch.noise, edits=[dl.Plan.of((), edit).edits] * 2)
    with pytest.raises(PlanError, match="keeps something from call to call"):
        lens.sweep(iter(pairs), {"crossing": edit}, steps=2, cfg_scale=3.0)


def test_one_pair_is_checked_beside_a_row_that_differs(lens, pipe, monkeypatch):
    """A model whose rows read one another is refused, also where all rows of the batch are one pair."""
    norm = pipe.dit.blocks[0].norm2

    def over_all_rows(x):
        return x / x.square().mean().sqrt()

    monkeypatch.setattr(norm, "forward", over_all_rows)
    sample = dl.tasks.maze(1_000_001)
    with pytest.raises(PlanError, match="A batch would not be the pipeline's own loop"):
        lens.sweep([(sample, 0)], {"off": [(dl.zero(), dl.at(layer=1, site="self_attn"))]}, steps=2)


def test_a_scheduler_whose_step_was_replaced_is_refused(lens, pipe, monkeypatch):
    step = pipe.scheduler.step
    monkeypatch.setattr(pipe.scheduler, "step", lambda *args, **kwargs: step(*args, **kwargs))
    with pytest.raises(PlanError, match=r"Scheduler\.step was replaced on the object"):
        lens.batch([(dl.tasks.maze(1_000_001), 0)], steps=2)


def test_a_batch_refuses_an_unknown_way_to_verify(lens):
    with pytest.raises(PlanError, match="verify='nonsense'"):
        lens.batch([(dl.tasks.maze(1_000_001), 0)], steps=2, verify="nonsense")
