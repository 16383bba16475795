"""Every way in which writing can fail ends the run at once, says why, frees it, and keeps what was committed."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dit_lens.errors import StoreError
from dit_lens.store import RunWriter, Variable, files, open_run, status, verify
from dit_lens.store.worker import Worker

STEPS, LAYERS = 3, 2
SLOW = 30  # seconds: by then a test hangs


pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture
def tmp_path(in_memory):
    return in_memory


def values_of(name, *key):
    return np.random.default_rng([len(name), *key]).standard_normal((3, 5)).astype(np.float32)


def make_writer(root, **options):
    coords = {"step": range(STEPS), "layer": range(LAYERS), "expert": ("step", ["high"] * STEPS)}
    writer = RunWriter(root, "run", {"seed": 1}, coords, **options)
    writer.declare(Variable("hidden", ("step", "layer", "y", "x"), (STEPS, LAYERS, 3, 5), unit="state"))
    writer.declare(Variable("energy", ("step", "y", "x"), (STEPS, 3, 5)))
    writer.declare(Variable("video", ("time", "height"), (3, 5), unit="run"))
    return writer


def write_step(writer, step):
    for layer in range(LAYERS):
        writer.write("hidden", {"step": step, "layer": layer}, values_of("hidden", step, layer))
    writer.write("energy", {"step": step}, values_of("energy", step))
    writer.commit_step(step, {"sigma": 1.0})


def write_run(root, **options):
    with make_writer(root, **options) as writer:
        for step in sorted(set(range(STEPS)) - writer.committed_steps):
            write_step(writer, step)
            if step % 2:
                writer.flush()
        writer.set_coord("expert", ["high", "low", "low"])
        writer.write("video", {}, values_of("video"))
        writer.set_recorded("energy", {"step": range(STEPS)})
    return writer.path


def check_steps(run, steps):
    dataset = open_run(run)
    for step in steps:
        np.testing.assert_array_equal(dataset.energy[step].values, values_of("energy", step))
        for layer in range(LAYERS):
            np.testing.assert_array_equal(
                dataset.hidden[step, layer].values, values_of("hidden", step, layer)
            )
    for step in set(range(STEPS)) - set(steps):
        for name in {"hidden", "energy"} & set(dataset.data_vars):
            assert dataset[name][step].isnull().all()


def check_whole(run):
    assert status(run).complete and list(verify(run)) == []
    check_steps(run, range(STEPS))
    dataset = open_run(run)
    assert dataset.expert.values.tolist() == ["high", "low", "low"]
    np.testing.assert_array_equal(dataset.video.values, values_of("video"))
    assert not list(run.rglob("*.partial"))


def threads():
    """Return the frames of threads that write: whatever their name, they run this."""
    frames = list(sys._current_frames().values())
    while any(frames):
        if any(frame.f_code is Worker._loop.__code__ for frame in frames):
            return frames
        frames = [frame.f_back for frame in frames if frame.f_back]
    return []


def check_freed(since=None):
    """No thread is left, and it took no longer than it may."""
    assert since is None or time.monotonic() - since < 2
    deadline = time.monotonic() + 2
    while threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert threads() == []


class Failing:
    """A system call that fails at its nth use, and from then on where it lasts."""

    def __init__(self, call, nth, lasts, code=errno.ENOSPC):
        self.call, self.nth, self.lasts, self.code = call, nth, lasts, code
        self.uses = 0

    def __call__(self, *args, **keywords):
        self.uses += 1
        if self.uses == self.nth or (self.lasts and self.uses > self.nth):
            raise OSError(self.code, os.strerror(self.code))
        return self.call(*args, **keywords)


CALLS = {
    "open": (os, "open", errno.EMFILE),
    "writev": (os, "writev", errno.ENOSPC),
    "write": (os, "write", errno.ENOSPC),
    "fsync": (os, "fsync", errno.EIO),
    "syncfs": (files, "_syncfs", errno.EIO),
    "replace": (os, "replace", errno.EACCES),
    "makedirs": (os, "makedirs", errno.ENOSPC),
    "mkdir": (os, "mkdir", errno.ENOSPC),
    "ftruncate": (os, "ftruncate", errno.EIO),
    "close": (os, "close", errno.EIO),
    "stat": (os, "stat", errno.ESTALE),
}


def count_uses(tmp_path, monkeypatch, module, name):
    with monkeypatch.context() as patched:
        call = Failing(getattr(module, name), 0, False)
        patched.setattr(module, name, call)
        write_run(tmp_path / "counted.zarr")
    return call.uses


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("kind", CALLS)
def test_any_call_may_fail_at_any_time(tmp_path, monkeypatch, kind, lasts):
    module, name, code = CALLS[kind]
    uses = count_uses(tmp_path, monkeypatch, module, name)
    assert uses
    failures = 0
    for nth in range(1, uses + 1):
        root = tmp_path / f"{nth}.zarr"
        start = time.monotonic()
        with monkeypatch.context() as patched:
            patched.setattr(module, name, Failing(getattr(module, name), nth, lasts, code))
            try:
                write_run(root)
            except StoreError as error:
                failures += 1
                assert os.strerror(code) in str(error), (nth, error)
            check_freed(start)
        if (root / "run" / "zarr.json").exists() and not status(root / "run").complete:
            check_steps(root / "run", status(root / "run").committed_steps)
        if not (root / "run" / "zarr.json").exists() or not status(root / "run").complete:
            write_run(root)
        check_whole(root / "run")
        shutil.rmtree(root)
    assert failures >= uses - 1 if lasts else failures


@pytest.mark.parametrize("where", ["survey", "raw_buffers"])
def test_an_exception_in_the_thread_ends_the_run(tmp_path, monkeypatch, where):
    from dit_lens.store import committer

    for error in (MemoryError("no memory"), RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)):
        root = tmp_path / f"{type(error).__name__}.zarr"
        start = time.monotonic()
        with monkeypatch.context() as patched:

            def fail(*_, error=error):
                raise error

            writer = make_writer(root)
            write_step(writer, 0)
            writer.flush()
            patched.setattr(committer, where, fail)
            with pytest.raises(StoreError, match=rf"hidden at .*'step': 1.*: {type(error).__name__}"):
                write_step(writer, 1)
                writer.close()
            check_freed(start)
        assert status(root / "run").committed_steps == (0,)
        check_steps(root / "run", [0])
        check_whole(write_run(root))


def test_a_failed_commit_is_told_although_the_model_is_slow(tmp_path, monkeypatch):
    """A commit that falls due while nothing else comes: it fails once, and is not tried again."""
    writer = make_writer(tmp_path)
    call = Failing(os.fsync, 1, True, errno.EIO)
    monkeypatch.setattr(os, "fsync", call)
    monkeypatch.setattr(files, "_syncfs", lambda _: False)
    write_step(writer, 0)
    time.sleep(1)
    check_freed()  # nobody had to ask
    assert call.uses == 1
    with pytest.raises(StoreError, match=r"commit: OSError.*Input/output"):
        write_step(writer, 1)
    again = make_writer(tmp_path, durable=False)  # although the first one was not closed
    assert again.committed_steps == set()
    again.abort()
    with pytest.raises(StoreError, match="commit: OSError"):
        writer.close()


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("what", ["store", "run", "variable", "replaced"])
def test_a_folder_that_is_removed_ends_the_run(tmp_path, what, durable):
    root, start = tmp_path / "s.zarr", time.monotonic()
    writer = make_writer(root, durable=durable)
    write_step(writer, 0)
    writer.flush()
    gone = {"store": root, "run": root / "run", "variable": root / "run" / "hidden", "replaced": root}[what]
    shutil.rmtree(gone)
    if what == "replaced":
        other = make_writer(root, durable=durable)
        write_step(other, 0)
    with pytest.raises(StoreError, match=r"(No such file|removed)"):
        write_step(writer, 1)
        writer.close()
    if what == "replaced":
        other.abort()
        assert status(root / "run").committed_steps == (0,)
    check_freed(start)
    shutil.rmtree(root, ignore_errors=True)
    check_whole(write_run(root, durable=durable))


def test_a_writer_that_nobody_holds_lets_go(tmp_path):
    writer = make_writer(tmp_path)
    write_step(writer, 0)
    life = writer._worker._life
    del writer
    deadline = time.monotonic() + 2
    while life() is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert life() is None
    assert status(tmp_path / "run").committed_steps == (0,)
    check_whole(write_run(tmp_path))


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    writer = make_writer(tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    try:
        writer.abort()
        make_writer(tmp_path).abort()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# ---- locks


def without_flock(monkeypatch, how):
    import fcntl

    if how == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))

        monkeypatch.setattr(fcntl, "flock", refuse)


HOLD = """
import sys, time, os
if sys.argv[2] == "no fcntl":
    sys.modules["fcntl"] = None
from dit_lens.store import RunWriter
writer = RunWriter(sys.argv[1], "run", {"seed": 1}, {"step": range(3), "layer": range(2),
                   "expert": ("step", ["high"] * 3)})
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["no fcntl", "ENOLCK", "ENOTSUP"])
def test_without_flock_a_lock_file_does(tmp_path, monkeypatch, how):
    without_flock(monkeypatch, how)
    writer = make_writer(tmp_path)
    with pytest.raises(StoreError, match=rf"is locked: .*pid {os.getpid()} on"):
        make_writer(tmp_path)
    write_step(writer, 0)
    writer.abort()
    assert not list((tmp_path / "run").glob("*lock*"))
    check_whole(write_run(tmp_path))


def test_the_lock_file_of_another_process_counts_until_it_is_dead(tmp_path, monkeypatch):
    without_flock(monkeypatch, "no fcntl")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "no fcntl"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=rf"is locked: .*pid {process.pid} on .*remove .*lock"):
        make_writer(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    check_whole(write_run(tmp_path))
    (lock,) = [tmp_path / "run" / "journal.jsonl.lock-elsewhere"]
    lock.write_text(json.dumps({"pid": 1, "host": "another", "time": "2026"}))
    shutil.rmtree(tmp_path / "run" / "energy")
    (tmp_path / "run" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="pid 1 on another since 2026"):
        make_writer(tmp_path)


def test_a_run_without_a_store_needs_no_lock(tmp_path, monkeypatch):
    without_flock(monkeypatch, "no fcntl")
    monkeypatch.setattr("dit_lens.store.lock.FileLock.acquire", lambda *_: pytest.fail("locked"))
    check_whole(write_run(tmp_path, durable=False, exclusive=False))


# ---- what a power cut leaves


def test_what_a_complete_run_rests_on_is_durable_before_it_says_so(tmp_path, monkeypatch):
    """Only what was fsynced survives: at the moment when "complete" is, that is everything."""
    durable, names = {}, set()  # content of files by inode; folders whose names are on disk
    fsync, replace = os.fsync, os.replace

    def record(fd):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.isdir(path):
            for name in os.listdir(path):
                names.add(os.path.join(path, name))
        else:
            durable[os.stat(path).st_ino] = Path(path).read_bytes()
        fsync(fd)

    said = []

    def check(source, target):
        replace(source, target)
        if target.endswith("run/zarr.json") and b'"complete"' in Path(target).read_bytes():
            root = tmp_path / "deep" / "er" / "s.zarr"
            for folder, _, inside in os.walk(root):
                for file in (os.path.join(folder, name) for name in inside):
                    ours = durable.get(os.stat(file).st_ino)
                    assert ours == Path(file).read_bytes(), file
                    assert file in names or file == target, file
            for folder in (tmp_path / "deep", tmp_path / "deep" / "er", root, root / "run"):
                assert str(folder) in names, folder
            said.append(target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", check)
    monkeypatch.setattr(files, "_syncfs", lambda _: False)
    path = write_run(tmp_path / "deep" / "er" / "s.zarr")
    assert said and str(path / "zarr.json") in names
    check_whole(path)


def test_a_run_that_need_not_last_waits_for_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync"))
    monkeypatch.setattr(files, "_syncfs", lambda _: pytest.fail("syncfs"))
    check_whole(write_run(tmp_path, durable=False))


@pytest.mark.parametrize("torn", [b"", b"\0" * 90])
def test_metadata_that_a_power_cut_tore_before_any_commit_is_made_anew(tmp_path, torn):
    make_writer(tmp_path).abort()
    (tmp_path / "zarr.json").write_bytes(torn)
    (tmp_path / "run" / "zarr.json").write_bytes(torn)
    (tmp_path / "run" / "expert" / "c.0").write_bytes(torn)
    check_whole(write_run(tmp_path))


def test_a_store_is_never_made_over_something_else(tmp_path):
    path = write_run(tmp_path)
    before = (path / "energy" / "zarr.json").read_bytes()
    with pytest.raises(StoreError, match="is a zarr array"):
        write_run(path / "energy")
    with pytest.raises(StoreError, match="is a run"):
        write_run(path)
    assert (path / "energy" / "zarr.json").read_bytes() == before
    with pytest.raises(StoreError, match="cannot be opened for writing"):
        write_run(path / "zarr.json")
