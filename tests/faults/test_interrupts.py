"""Ctrl-C at any moment, once and twice: the run is freed, nothing hangs, and the next try makes it right."""

import ctypes
import random
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import StoreError
from dit_lens.store import RunWriter, Variable, status
from dit_lens.store.reader import load_run
from dit_lens.store.units import load_unit
from dit_lens.store.worker import Worker

STEPS, LAYERS = 6, 2
MOMENTS = 50
SLOW = 60  # seconds: by then a test hangs


pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture
def tmp_path(in_memory):
    return in_memory


def values_of(step, layer):
    return np.full((2, 3), 10 * step + layer, np.float32)


def write(root, lease=None):
    coords = {"step": range(STEPS), "layer": range(LAYERS)}
    with RunWriter(root, "run", {"seed": 1}, coords, durable=False, lease=lease) as writer:
        writer.declare(Variable("h", ("step", "layer", "y", "x"), (STEPS, LAYERS, 2, 3), unit="state"))
        for step in sorted(set(range(STEPS)) - writer.committed_steps):
            for layer in range(LAYERS):
                writer.write("h", {"step": step, "layer": layer}, values_of(step, layer))
            writer.commit_step(step)
            if step % 3 == 2:
                writer.flush()


def leased(root):
    lease = threading.Lock()
    with lease:
        write(root, lease)


def check_committed(run):
    """What was committed is right, whatever came after it."""
    try:
        steps = status(run).committed_steps
    except StoreError:
        return  # it was interrupted before there was a run
    variables, journal = load_run(run).variables, load_run(run).ledger
    for step in steps:
        for layer in range(LAYERS):
            entry, out = journal.units["h", (step, layer)], np.empty((1, 1, 2, 3), np.float32)
            load_unit(str(run / "h"), variables["h"], (step, layer), entry, (slice(None),) * 4, out)
            np.testing.assert_array_equal(out[0, 0], values_of(step, layer))


def a_thread_writes():
    frames = list(sys._current_frames().values())
    while frames:
        if any(frame.f_code is Worker._loop.__code__ for frame in frames):
            return True
        frames = [frame.f_back for frame in frames if frame.f_back]
    return False


def no_thread_is_left():
    deadline = time.monotonic() + 5
    while a_thread_writes() and time.monotonic() < deadline:
        time.sleep(0.002)
    return not a_thread_writes()


def interrupted(work, delay, times):
    """Do some work, and interrupt it after a time, and perhaps again right after; return whether that came through."""
    left, over, came = [times], [], []

    def alarm(*_):
        left[0] -= 1
        if left[0]:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 4e-4))
        if not over:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, alarm)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            work()
            over.append(True)
        except KeyboardInterrupt:
            came.append(True)
            time.sleep(0.001)  # the second one may come only here
            over.append(True)
    except KeyboardInterrupt:
        came.append(True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return bool(came)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.fixture
def alarms(monkeypatch):
    # An interrupt in a finalizer is swallowed; what the test runner would note of it must not be interrupted either.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("work", [write, leased])
@pytest.mark.parametrize("times", [1, 2])
def test_a_writer_is_interrupted_at_random_moments(tmp_path, alarms, times, work):
    random.seed(times)
    took = min(seconds(lambda n=n: work(tmp_path / f"whole{n}")) for n in range(3))
    came = 0
    for moment in range(MOMENTS):
        root = tmp_path / str(moment)
        came += interrupted(lambda root=root: work(root), random.uniform(1e-5, took), times)
        check_committed(root / "run")
        if not (root / "run").exists() or not status_is_complete(root / "run"):
            try:
                work(root)  # at once: nobody holds it
            except StoreError as error:
                assert "is complete" in str(error), error  # its thread completed it since it was looked at
        assert no_thread_is_left()
        assert status(root / "run").complete
        check_committed(root / "run")
    assert came > MOMENTS // 3


def status_is_complete(run):
    try:
        return status(run).complete
    except StoreError:
        return False


class Injector:
    """Raises KeyboardInterrupt before the nth bytecode that runs in some functions, and before the one `gap` later."""

    def __init__(self, codes, moments):
        self.codes, self.moments, self.count = codes, set(moments), 0

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if frame.f_code not in self.codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.opcode

    def opcode(self, frame, event, argument):
        if event == "opcode":
            self.count += 1
            if self.count in self.moments:
                sys.settrace(self.trace)  # it goes on after the exception
                raise KeyboardInterrupt
        return self.opcode


def codes_of(*classes):
    functions = [f for c in classes for f in vars(c).values()]
    functions = [getattr(f, "fget", f) for f in functions]
    return {f.__code__ for f in functions if hasattr(f, "__code__")}


CALLERS = codes_of(RunWriter, Worker) - {
    Worker.leave.__code__
}  # which a finalizer calls, where none is heard


def test_an_interrupt_before_any_bytecode_of_the_writer_frees_the_run(tmp_path):
    """Once, and twice: the second hits what the first one has set going."""
    with Injector(CALLERS, []) as counted:
        leased(tmp_path / "counted")
    random.seed(0)
    moments = [[n] for n in random.sample(range(1, counted.count + 1), 80)]
    # The last calls of all, close, abort and stop, at each of their bytecodes.
    ends = range(counted.count - 120, counted.count + 1)
    moments += [[n] for n in ends] + [[n, n + random.choice((1, 2, 5, 9))] for n in ends]
    moments += [[n, n + random.randrange(1, 40)] for n in random.sample(range(1, counted.count), 80)]
    came = 0
    for number, moment in enumerate(moments):
        root = tmp_path / str(number)
        try:
            with Injector(CALLERS, moment):
                leased(root)
        except KeyboardInterrupt as error:
            came += 1
            check_committed(root / "run")
            if not status_is_complete(root / "run"):
                leased(root)  # while the traceback still holds the first writer
            del error
        assert status(root / "run").complete, moment
        check_committed(root / "run")
    assert came > len(moments) // 3  # the writer does not wait equally long every time
    assert no_thread_is_left()


def test_after_an_interrupt_in_a_call_only_a_new_writer_goes_on(tmp_path):
    coords = {"step": range(STEPS), "layer": range(LAYERS)}
    writer = RunWriter(tmp_path, "run", {}, coords, durable=False)
    writer.declare(Variable("h", ("step", "layer", "y", "x"), (STEPS, LAYERS, 2, 3), unit="state"))
    with pytest.raises(KeyboardInterrupt), Injector({Worker.submit.__code__}, [30]):
        writer.write("h", {"step": 0, "layer": 0}, values_of(0, 0))
        writer.write("h", {"step": 0, "layer": 1}, values_of(0, 1))
    for call in (lambda: writer.commit_step(0), writer.flush, writer.close):
        with pytest.raises(StoreError, match="was interrupted"):
            call()
    assert status(tmp_path / "run").status == "incomplete"
    again = RunWriter(tmp_path, "run", {}, coords, durable=False)
    again.abort()
    writer.abort()
    assert no_thread_is_left()


def test_an_exception_that_another_thread_sends_is_an_interrupt_too(tmp_path):
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    random.seed(3)
    for moment in range(MOMENTS // 2):
        root = tmp_path / str(moment)
        started = threading.Event()
        outcome = []

        def work(root=root, started=started, outcome=outcome):
            try:
                started.set()
                leased(root)
                outcome.append("ended")
            except (
                KeyboardInterrupt,
                StoreError,
            ):  # it may hit the writer's thread, which has the same number later
                outcome.append("interrupted")

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        for _ in range(1 + moment % 2):
            time.sleep(random.uniform(0, 0.004))
            set_exception(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
        thread.join(20)
        assert not thread.is_alive()
        check_committed(root / "run")
        if not status_is_complete(root / "run"):
            leased(root)
        assert status(root / "run").complete


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_is_interrupted_at_random_moments(sample, tmp_path, alarms, times, left_behind, tiny_pipe):
    lens = dl.Lens(tiny_pipe())
    options = {"steps": 2, "record": [dl.energy, dl.hidden]}
    whole = lens.run(sample, store=tmp_path / "whole", **options)
    took = seconds(lambda: lens.run(sample, store=tmp_path / "timed", **options))
    random.seed(10 + times)
    came = 0
    for moment in range(MOMENTS // 2):
        store = tmp_path / str(moment)
        run = partial(lens.run, sample, store=store, **options)
        came += interrupted(run, random.uniform(1e-3, took), times)
        if left_behind(lens.pipe):
            lens = dl.Lens(tiny_pipe())  # the store is tested here, not what stays on a pipeline
        again = lens.run(sample, store=store, **options)
        assert again.complete and again.path.name == whole.path.name
        for name in whole.names:
            np.testing.assert_array_equal(again[name].values, whole[name].values)
        assert no_thread_is_left()
    assert came > MOMENTS // 8


@pytest.mark.parametrize("way", ["run", "batch"])
def test_an_interrupt_in_the_end_of_no_grad_leaves_gradients_on(lens, sample, monkeypatch, way):
    """torch sets them back in Python, where an interrupt can come first."""

    def interrupted(self, *_):
        raise KeyboardInterrupt

    act = (lambda: lens.run(sample, steps=1)) if way == "run" else lens.batch([(sample, 0)], steps=1).run
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.no_grad, "__exit__", interrupted)
        act()
    enabled = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert enabled
