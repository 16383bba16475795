"""An interrupted run goes on where it stopped, and equals one that was not."""

import os
import textwrap
import time

import numpy as np
import pytest
import torch

import dit_lens as dl
import forked
from loops import Interrupted, interruptible, same

PLAN = {"record": [dl.energy, dl.hidden, dl.x0], "steps": 5}


def count_calls(pipe, work):
    """Count the model's calls, below any tracing."""
    calls, forward = [], type(pipe.dit.blocks[0]).forward

    def counted(self, *args):
        calls.append(self is pipe.dit.blocks[0])
        return forward(self, *args)

    type(pipe.dit.blocks[0]).forward = counted
    try:
        return work(), sum(calls)
    finally:
        type(pipe.dit.blocks[0]).forward = forward


@pytest.mark.parametrize("noisy", [False, True], ids=["clean", "noise on latents"])
@pytest.mark.parametrize("verify", ["first", "never"])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(lens, pipe, sample, tmp_path, step, verify, noisy):
    edits = [(dl.add_noise(scale=0.3), dl.at(site="latents"))] if noisy else []
    guarded = interruptible()
    os.environ["CALLS_LEFT"] = str(step * 2 * 3)
    options = {**PLAN, "record": [*PLAN["record"], guarded], "edit": edits, "store": tmp_path / "store.zarr"}
    options["verify"] = verify
    with pytest.raises(Interrupted):
        lens.run(sample, **options)
    path = next(iter((tmp_path / "store.zarr").glob("custom-*")))
    from dit_lens.store import open_run, status

    found = status(path)
    assert found.committed_steps == tuple(range(step)) and not found.complete
    assert len(found.missing["energy"]) == 5 - step if step else True
    if step:
        assert np.isnan(open_run(path)["energy"].isel(step=slice(step, None)).values).all()
    os.environ["CALLS_LEFT"] = str(-1)
    again, calls = count_calls(pipe, lambda: lens.run(sample, **options))
    again_run = (
        1 if verify == "never" else 2
    )  # the last step, to go on from it; to compare, also the one before
    assert calls == 2 * (5 - max(step - again_run, 0))
    os.environ["CALLS_LEFT"] = str(-1)
    whole = lens.run(sample, **{**options, "store": tmp_path / "other.zarr"})
    assert again.complete and again.path.name == whole.path.name
    same(again, whole)


def test_a_complete_run_is_not_made_again(lens, pipe, sample, tmp_path):
    first = lens.run(sample, store=tmp_path, **PLAN)
    again, calls = count_calls(pipe, lambda: lens.run(sample, store=tmp_path, **PLAN))
    assert calls == 2 and again.path == first.path  # the first run that is taken from a store is begun again
    again, calls = count_calls(pipe, lambda: lens.run(sample, store=tmp_path, **PLAN))
    assert calls == 0 and again.path == first.path
    same(again, first)


def test_what_differs_in_anything_has_another_name(lens, tiny_pipe, sample, tmp_path):
    edit = {"edit": [dl.add_noise(scale=1.0)]}
    changes = [
        {},
        {"seed": 1},
        {"steps": 2},
        {"cfg_scale": 2.0},
        {"record": [dl.energy]},
        edit,
        {"edit": [dl.add_noise(scale=2.0)]},
        {"edit": [(dl.add_noise(scale=1.0), dl.at(step=0))]},
        {"sigma_shift": 3.0},
    ]
    names = [lens.run(sample, store=tmp_path, **{"steps": 1, **c}).path.name for c in changes]
    names.append(lens.run(sample.with_(prompt="go to one goal"), store=tmp_path, steps=1).path.name)
    names.append(dl.Lens(tiny_pipe(seed=1)).run(sample, store=tmp_path, steps=1).path.name)
    assert len(set(names)) == len(names)


def test_changed_weights_change_the_name(tiny_pipe, sample):
    import torch

    lens = dl.Lens(tiny_pipe())
    before = lens.fingerprint()
    with torch.no_grad():
        lens.pipe.dit.blocks[1].ffn[0].weight[0, 0] += 1
    assert lens.fingerprint() != before


SCRIPT = """
    import sys
    import torch
    import numpy as np
    from PIL import Image
    torch.set_num_threads(1)
    import dit_lens as dl
    lens = dl.load("organism")
    sample = dl.tasks.occlude(1_000_000)
    run = lens.run(sample, steps=int(sys.argv[2]), record=[dl.energy, dl.hidden], store=sys.argv[1])
    print("ended", run.path)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_loses_no_committed_step(tmp_path):
    script = tmp_path / "make.py"
    script.write_text(textwrap.dedent(SCRIPT))
    store, other = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    steps = "60"
    process = forked.start(script, store, steps)
    deadline = time.time() + 120
    while time.time() < deadline:
        journals = list(store.glob("*/journal.jsonl"))
        if journals and journals[0].read_text().count('"step": 5') + journals[0].read_text().count(
            '"step":5'
        ):
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    (path,) = store.glob("occlude-*")
    from dit_lens.store import open_run, status

    found = status(path)
    assert not found.complete and 5 <= len(found.committed_steps) < 60
    energy = open_run(path)["energy"]
    assert not np.isnan(energy.isel(step=list(found.committed_steps)).values).any()
    assert np.isnan(energy.isel(step=slice(len(found.committed_steps), None)).values).all()
    assert len(found.missing["energy"]) == 60 - len(found.committed_steps)
    for where in (store, other):
        done = forked.run(script, where, steps, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    (whole,) = other.glob("occlude-*")
    assert whole.name == path.name
    a, b = open_run(path), open_run(whole)
    for name in a.data_vars:
        assert np.array_equal(a[name].values, b[name].values), name


class Counting:
    """An edit that grows with every call; it fails at one of them, which its name does not count."""

    def __init__(self):
        self.calls = 0

    def __call__(self, state, spot):
        if str(self.calls) == os.environ.get("FAILS_AT"):
            raise Interrupted
        self.calls += 1
        return state * (1 + 0.01 * self.calls)


def test_a_run_whose_edit_keeps_state_begins_anew(lens, sample, tmp_path, monkeypatch):
    def run(folder):
        edit = [(Counting(), dl.at(layer=1))]
        return lens.run(sample, store=tmp_path / folder, edit=edit, steps=4)

    whole = run("whole")
    monkeypatch.setenv("FAILS_AT", "5")
    with pytest.raises(Interrupted):
        run("interrupted")
    monkeypatch.delenv("FAILS_AT")
    again = run("interrupted")
    assert again.path.name == whole.path.name
    same(again, whole)


# ---- what the name does not see


@pytest.mark.parametrize("record", [[dl.energy], []], ids=["energy", "nothing"])
@pytest.mark.parametrize("step", [2, 3])
def test_a_run_does_not_go_on_with_another_model(lens, sample, tmp_path, monkeypatch, step, record):
    guarded = interruptible()
    monkeypatch.setenv("CALLS_LEFT", str(step * 2 * 3))
    options = {"record": [*record, guarded], "steps": 5, "store": tmp_path / "store.zarr"}
    with pytest.raises(Interrupted):
        lens.run(sample, **options)
    monkeypatch.setenv("CALLS_LEFT", "-1")
    attention = torch.nn.functional.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *args, **more: 1.5 * attention(*args, **more),
        )
        for _ in range(2):
            with pytest.raises(dl.StoreError, match="is not what this model makes now"):
                lens.run(sample, **options)
    whole = lens.run(sample, **{**options, "store": tmp_path / "other.zarr"})
    same(lens.run(sample, **options), whole)


def test_a_run_whose_edit_draws_without_a_seed_does_not_go_on(lens, sample, tmp_path, monkeypatch):
    guarded = interruptible()

    def noisy(h, at):
        return h + 0.1 * torch.randn_like(h)

    options = {"record": [guarded], "edit": [(noisy, dl.at(layer=1))], "steps": 5, "store": tmp_path}
    monkeypatch.setenv("CALLS_LEFT", str(3 * 2 * 3))
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        lens.run(sample, **options)
    monkeypatch.setenv("CALLS_LEFT", "-1")
    torch.manual_seed(0)
    with pytest.raises(dl.StoreError, match="draws without a seed"):
        lens.run(sample, **options)


def test_a_run_whose_edit_kept_something_is_handed_out_with_a_warning(lens, sample, tmp_path, recwarn):
    log = []

    def logging(h, at):
        log.append(float(h.norm()))
        return h

    options = {"edit": [(logging, dl.at(layer=1))], "steps": 3, "store": tmp_path}
    made = lens.run(sample, **options)
    count = len(log)
    log.clear()
    with pytest.warns(UserWarning, match="kept something on the way"):
        again = dl.Lens(lens.specimen.pipe).run(sample, **options)
    assert again.path == made.path and count == 6 and log == []
