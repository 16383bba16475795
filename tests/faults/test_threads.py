"""Two traces of one transformer: the second is refused, the first is unharmed, the bare pipeline is what it was."""

import copy
import threading

import numpy as np
import pytest

import dit_lens as dl


@pytest.fixture
def shared(pipe):
    """Another pipeline, with the same transformer."""
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    other._modules = dict(pipe._modules)
    return other


def in_thread(function):
    """Run a function in a thread; return what it returned, or the error that it raised."""
    out = []

    def work():
        try:
            out.append(function())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "the thread hangs"
    return out[0]


def traced(lens, sample, meanwhile=None):
    with lens.trace(sample, steps=2) as tr:
        tr.record(dl.hidden)
        values = [].save()
        others = [].save()
        for call in tr.calls(branch="cond"):
            values.append(call.block(1).output.clone())
            if meanwhile is not None and call.step == 0:
                others.append(meanwhile())
            values.append(call.block(2).output.clone())
    return tr.run, values, others


@pytest.fixture
def expected(lens, sample):
    return traced(lens, sample)


def is_same(one, other):
    runs = np.array_equal(one[0]["hidden"].values, other[0]["hidden"].values)
    return runs and all(np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_a_trace_in_a_thread(lens, pipe, sample, expected, left_behind):
    assert is_same(in_thread(lambda: traced(lens, sample)), expected)
    assert left_behind(pipe) == []


@pytest.mark.parametrize("second", ["run", "trace"])
@pytest.mark.parametrize("threaded", [True, False])
def test_a_second_one_is_refused_and_the_first_is_unharmed(
    lens, pipe, shared, sample, expected, run_bare, left_behind, second, threaded
):
    before = run_bare(pipe, sample)

    def meanwhile():
        other = dl.Lens(shared)
        with pytest.raises(dl.PlanError, match="is being traced already"):
            other.run(sample, steps=2) if second == "run" else traced(other, sample)
        return "refused"

    first = traced(lens, sample, (lambda: in_thread(meanwhile)) if threaded else meanwhile)
    assert first[2] == ["refused"] and is_same(first, expected)
    assert left_behind(pipe) == []
    assert np.array_equal(run_bare(pipe, sample), before)
    assert is_same(traced(dl.Lens(shared), sample), expected)  # now it may


def test_a_run_while_a_run_goes_on_is_refused(lens, shared, sample):
    refusals = []

    def again():
        return dl.Lens(shared).run(sample, steps=1)

    def meanwhile(h, at):
        with pytest.raises(dl.PlanError, match="is being traced already"):
            again()
        refusals.append(in_thread(again))
        return h

    run = lens.run(sample, steps=1, edit=[(meanwhile, dl.at(layer=0, branch="cond"))])
    assert run.complete and [type(refusal) for refusal in refusals] == [dl.PlanError]


def test_a_bare_pipeline_in_another_thread_is_neither_recorded_nor_changed(
    lens, pipe, shared, sample, expected, run_bare
):
    before = run_bare(pipe, sample, steps=2, cfg_scale=5.0)
    first = traced(lens, sample, lambda: in_thread(lambda: run_bare(shared, sample, steps=2, cfg_scale=5.0)))
    assert is_same(first, expected)
    assert np.array_equal(first[2][0], before)


def test_two_threads_at_once_end_and_leave_nothing(lens, pipe, shared, sample, run_bare, left_behind):
    before = run_bare(pipe, sample)
    start, out = threading.Barrier(2), []

    def work(one):
        start.wait()
        try:
            out.append(traced(one, sample)[0].complete)
        except dl.PlanError as error:
            out.append(str(error))

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(one,)) for one in (lens, dl.Lens(shared))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a thread hangs"
    assert len(out) == 6 and out.count(True) >= 3
    assert all(entry is True or "is being traced already" in entry for entry in out)
    assert left_behind(pipe) == [] and left_behind(shared) == []
    assert np.array_equal(run_bare(pipe, sample), before)


def test_two_transformers_are_traced_at_once(lens, tiny_pipe, sample, expected):
    other = dl.Lens(tiny_pipe())
    first = traced(lens, sample, lambda: in_thread(lambda: traced(other, sample)))
    assert is_same(first, expected) and is_same(first[2][0], expected)
    nested = traced(lens, sample, lambda: traced(other, sample))
    assert is_same(nested, expected) and is_same(nested[2][0], expected)


def test_run_trace_run_and_bare_agree(lens, pipe, sample, run_bare, left_behind):
    before = run_bare(pipe, sample)
    first = lens.run(sample, steps=2, record=[dl.hidden])
    with lens.trace(sample, steps=2, record=[dl.hidden]) as tr:
        for call in tr.calls():
            call.block(0).output.sum()
    second = lens.run(sample, steps=2, record=[dl.hidden])
    for run in (tr.run, second):
        assert np.array_equal(run["hidden"].values, first["hidden"].values)
        assert np.array_equal(run.video, first.video)
    assert left_behind(pipe) == [] and np.array_equal(run_bare(pipe, sample), before)


def test_a_run_is_not_named_while_another_thread_has_its_own_things_in_the_pipeline(
    lens, pipe, sample, tmp_path
):
    """What that thread has put in place of the pipeline's functions would be in the name, or missing in it."""
    before = lens.identity()
    seen = []

    def meanwhile(h, at):
        def look():
            for act in (lens.identity, lambda: lens.batch([(sample, 0)], steps=1)):
                try:
                    seen.append(act())
                except dl.PlanError as error:
                    seen.append(str(error))

        in_thread(look)
        return h

    lens.run(sample, steps=1, edit=[(meanwhile, dl.at(layer=0, branch="cond"))], store=tmp_path)
    assert len(seen) == 2
    assert all("is being traced already" in text for text in seen)
    assert lens.identity() == before
