"""One interrupt at any line of what installs and takes back leaves nothing: the bare pipeline is what it was."""

import sys

import numpy as np
import pytest

import dit_lens as dl

WATCHED = (
    *("families/patching.py", "families/site.py", "diffsynth/common.py"),
    *("engine/stages.py", "engine/visitor.py", "engine/inputs.py"),
)
STEPS = 2


def lines_of(work):
    """Return each distinct line of the watched files that some work runs, in order."""
    lines = {}

    def trace(frame, event, arg):
        name = frame.f_code.co_filename
        if not name.endswith(WATCHED):
            return None
        if event == "line":
            lines.setdefault((name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return list(lines)


def interrupted_at(line, work):
    """Do some work, interrupted the first time that it comes to a line; say whether it was."""
    left = [1]

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.endswith(WATCHED):
            return None
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == line and left:
            left.clear()
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "batch"])
def test_an_interrupt_at_any_line_leaves_nothing_behind(tiny_pipe, sample, run_bare, left_behind, kind):
    pipe = tiny_pipe(config={"num_layers": 1})
    lens, small = dl.Lens(pipe), sample.with_(num_frames=5)
    expected = run_bare(pipe, small, steps=STEPS)
    edit = [(dl.scale(factor=0.5), dl.at(layer=0))]

    def run():
        lens.run(small, steps=STEPS, cfg_scale=1.0, record=[dl.energy], edit=edit)

    def batch():
        lens.specimen.checked_loops.clear()
        lens.batch([(small, 0)], steps=STEPS, cfg_scale=1.0, record=[dl.energy], edit=edit).run()

    work = {"run": run, "batch": batch}[kind]
    lines = lines_of(work)
    assert len(lines) > 100
    for line in lines:
        interrupted_at(line, work)
        assert left_behind(pipe) == [], line
        assert pipe.scheduler.step.__func__ is type(pipe.scheduler).step, line
    assert np.array_equal(run_bare(pipe, small, steps=STEPS), expected)
    work()


def test_two_threads_that_prepare_batches_of_one_pipeline_leave_it_as_it_was(
    tiny_pipe, sample, run_bare, left_behind
):
    import threading

    pipe = tiny_pipe()
    lens, expected, refused = dl.Lens(pipe), run_bare(pipe, sample), []

    def make(seed):
        for _ in range(3):
            try:
                lens.batch([(sample, seed)], steps=2, cfg_scale=1.0).run()
            except dl.PlanError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("being traced already" in text for text in refused)
    assert left_behind(pipe) == []
    values = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: values.append(run_bare(pipe, sample)))
        thread.start()
        thread.join()
    assert all(np.array_equal(value, expected) for value in values)
