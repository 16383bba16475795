"""Names that are too long or lead outside, folders for a moment, and a reader that has seen enough."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import dit_lens as dl
from dit_lens import cli
from dit_lens.store import find_runs, open_run, run_name
from dit_lens.store.names import inside, short


@pytest.mark.parametrize(
    "task, sample_id", [("../../up", "..//7"), ("/etc", "passwd"), ("t", "長" * 300), ("t", "x" * 999)]
)
def test_a_run_of_any_task_and_id_stays_in_its_store(lens, sample, tmp_path, task, sample_id):
    store = tmp_path / "deep" / "store"
    run = lens.run(sample.with_(task=task, id=sample_id), steps=1, store=store)
    assert run.path.parent == store and len(os.fsencode(run.path.name)) <= 255
    other = lens.run(sample.with_(task=task, id=sample_id + "x"), steps=1, store=store)
    assert other.path != run.path and len(list(find_runs(store))) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"deep"}


def test_a_long_name_keeps_its_hash():
    identity = {"seed": 1}
    assert run_name(identity, "maze").startswith("maze-")
    assert run_name(identity, "y" * 400)[-11:] == run_name(identity, "maze")[-11:]
    assert short("a" * 300) != short("a" * 301) and len(short("a" * 300)) == 255


@pytest.mark.parametrize(
    "parts", [("..", ".."), ("/", "a/../.."), ("a\\..\\..", ""), ("..", "x" * 500), ("\0", ".")]
)
def test_what_is_named_by_a_sample_lies_below_its_folder(tmp_path, parts):
    path = inside(tmp_path / "out", *parts)
    path.mkdir(parents=True)
    assert tmp_path / "out" in path.resolve().parents


def test_a_relative_store_and_a_tilde_mean_one_folder_for_ever(lens, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    relative = lens.run(sample, steps=1, record=[dl.energy], store="s.zarr")
    home = lens.run(sample, steps=1, record=[dl.energy], store="~/s.zarr")
    monkeypatch.chdir("/")
    assert relative.path == home.path == tmp_path / "s.zarr" / relative.path.name
    assert relative["energy"].notnull().all() and not (tmp_path / "~").exists()


def scratches():
    return [p for p in Path(tempfile.gettempdir()).glob(f"dit_lens_*_{os.getpid()}_*/*") if p.is_dir()]


def test_the_folder_of_a_run_without_a_store_goes_with_the_run(lens, sample):
    gc.collect()
    before = len(scratches())
    run = lens.run(sample, steps=1, record=[dl.energy])
    energy = run["energy"]
    assert len(scratches()) == before + 1
    del run
    assert energy.notnull().all()
    del energy
    assert len(scratches()) == before
    with pytest.raises(ZeroDivisionError):
        lens.run(sample, steps=1, edit=[lambda h, at: 1 / 0])
    assert len(scratches()) == before
    most = 0
    for _ in range(12):
        run = lens.run(sample, steps=1)
        run.itself = run  # as a trace and nnsight hold one another
        most = max(most, len(scratches()))
    assert most <= before + 9


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket", "file:///tmp/x"])
def test_a_url_is_no_store(lens, sample, tmp_path, monkeypatch, url, kind):
    monkeypatch.chdir(tmp_path)
    for use in (lambda at: lens.run(sample, steps=1, store=at), dl.open_runs, open_run, cli.info):
        with pytest.raises(dl.StoreError, match="is a URL, and a store is a local folder"):
            use(kind(url))
    assert list(tmp_path.iterdir()) == []


IN_A_POOL = """
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from dit_lens.store import RunWriter, Variable
from dit_lens.store.run import Run
from dit_lens.store.scratch import Scratch

def work(part):
    folder = Scratch()
    with RunWriter(folder.path, "run", {"seed": 1}, {"step": range(1)}) as writer:
        writer.declare(Variable("score", ("step", "part"), (1, 2)))
        writer.write("score", {"step": 0}, np.ones(2, "float32"))
        writer.commit_step(0, {"sigma": 1.0})
    run = Run(writer.path, folder)
    return run if part == "run" else run["score"]

if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        for part in ("run", "array"):
            try:
                pool.submit(work, part).result()
            except Exception as error:
                print(type(error).__name__, error)
"""


def test_a_run_without_a_store_does_not_leave_a_worker(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(IN_A_POOL)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("StoreError") == 2 and done.stdout.count("give store=") == 2, done


HOLD = """
import sys, time
from dit_lens.store.scratch import Scratch
scratch = Scratch()
(scratch.path / "file").write_text("x")
print(scratch.path.parent, flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["exit", signal.SIGTERM, signal.SIGKILL])
def test_scratch_folders_go_with_their_process(end, tmp_path):
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    wait = "exit" if end == "exit" else "wait"
    process = subprocess.Popen([sys.executable, "-c", HOLD, wait], **options)
    folder = Path(process.stdout.readline().strip())
    if end != "exit":
        assert folder.is_dir()
        process.send_signal(end)
    assert process.wait() == (0 if end == "exit" else -end)
    process.stdout.close()
    if end == signal.SIGKILL:  # the next one sees to it
        subprocess.run(
            [sys.executable, "-c", HOLD, "exit"], check=True, **{**options, "stdout": subprocess.DEVNULL}
        )
    assert list(tmp_path.iterdir()) == []


def test_info_into_a_reader_that_has_seen_enough_ends_quietly(tmp_path):
    script = "import sys; from dit_lens.cli import main; sys.argv = ['dit-lens', *sys.argv[1:]]; main()"
    for n in range(200):
        (tmp_path / f"bad{n}").mkdir()
        (tmp_path / f"bad{n}" / "zarr.json").write_text("{")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", script, "info", str(tmp_path)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    os.close(reading)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said and "Broken" not in said


def test_info_names_what_a_run_lacks(lens, sample, tmp_path, capsys):
    from dit_lens import cli
    from dit_lens.errors import StoreError

    run = lens.run(sample, steps=2, record=[dl.energy], store=tmp_path)
    (run.path / "journal.jsonl").write_bytes(b"")
    cli.info(tmp_path)
    said = capsys.readouterr().out
    assert "journal.jsonl was cut" in said and "energy: 0 B, 2 units missing" in said
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "zarr.json").write_text("[]")
    with pytest.raises(StoreError, match="1 of 2 runs are damaged"):
        cli.info(tmp_path)
    assert "bad" in capsys.readouterr().out
    with pytest.raises(StoreError):
        open_run(run.path)
