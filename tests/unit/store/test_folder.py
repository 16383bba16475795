import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xarray as xr

from dit_lens.errors import StoreError
from dit_lens.store import Variable, open_run, open_runs, status, verify


def test_resuming_goes_on_and_equals_a_run_in_one_go(kit, run):
    other = kit.root.parent / "other.zarr"
    writer = kit.make_writer(other)
    kit.write_step(writer, 0)
    kit.write_step(writer, 2)
    writer.abort()
    leftover = writer.path / "hidden" / "c.1.0.0.0.0.0.0.partial"
    leftover.write_bytes(b"torn")
    (writer.path / "hidden" / "c.1.0.0.0.0.0.0").write_bytes(b"never committed")
    again = kit.make_writer(other, manifest=kit.manifest | {"host": "elsewhere"})
    assert again.committed_steps == {0, 2}
    assert not leftover.exists()
    again.abort()
    path = kit.write_run(other)
    assert status(path).complete and list(verify(path)) == []
    xr.testing.assert_identical(open_run(path).load().drop_attrs(), open_run(run).load().drop_attrs())


def test_many_writers_may_begin_a_store_at_once(kit):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: kit.write_run(kit.root, steps=[0], name=f"run-{n}"), range(8)))
    assert len(open_runs(kit.root).children) == 8
    assert {path.name for path in kit.root.iterdir() if path.is_file()} == {"zarr.json"}


def test_a_name_that_is_taken_is_refused(kit, run):
    before = (run / "journal.jsonl").read_bytes()
    with pytest.raises(StoreError, match="is complete: read it with open_run"):
        kit.make_writer(kit.root)
    assert (run / "journal.jsonl").read_bytes() == before
    kit.make_writer(kit.root, name="run-2").abort()
    with pytest.raises(StoreError, match="another manifest"):
        kit.make_writer(kit.root, name="run-2", manifest={"identity": {"seed": 8}})
    held = kit.make_writer(kit.root, name="run-2")
    with pytest.raises(StoreError, match="is locked"):
        kit.make_writer(kit.root, name="run-2")
    kit.write_step(held, 0)
    held.abort()
    with pytest.raises(StoreError, match=r"layer of .* is declared already, and differs in shape"):
        kit.make_writer(kit.root, name="run-2", coords=kit.coords() | {"layer": [0, 1]})
    meta = kit.root / "run-2" / "zarr.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"attributes": {"dit_lens_layout": 9}}))
    with pytest.raises(StoreError, match=r"layout 9.*knows layout 1"):
        kit.make_writer(kit.root, name="run-2")
    with pytest.raises(StoreError, match="without '/'"):
        kit.make_writer(kit.root, name="a/b")


@pytest.mark.parametrize("durable", [True, False])
def test_a_writer_killed_in_mid_run_is_resumed(kit, run, durable):
    other = kit.root.parent / "killed.zarr"
    script = (
        "import conftest as kit, os, sys\n"
        f"writer = kit.make_writer({str(other)!r}, durable={durable})\n"
        "for step in range(3):\n    kit.write_step(writer, step)\n"
        "    writer.flush()\n    print(step, flush=True)\n"
        "while True:\n    writer._committer.write_unit(kit.variables()[0], (3, 0, 0),"
        " kit.values_of(kit.variables()[0], (3, 0, 0)))\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(3)] == ["0", "1", "2"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert status(other / "run-1").committed_steps == (0, 1, 2)
    path = kit.write_run(other)
    assert status(path).complete and list(verify(path)) == []
    xr.testing.assert_identical(open_run(path).load().drop_attrs(), open_run(run).load().drop_attrs())


def test_where_nothing_is_committed_the_run_is_as_it_is_asked_for_now(kit):
    dead = kit.make_writer(kit.root, manifest=kit.manifest | {"batch": {"rows": ["a", "b", "c"]}})
    dead.declare(Variable("of_the_dead", ("step",), (4,)))
    dead.flush()
    (dead.path / "energy" / "c.0.0.0.0.0.0").write_bytes(b"never committed")
    dead.abort()
    path = kit.write_run(kit.root, manifest=kit.manifest | {"batch": {"rows": ["a"]}}, steps=[1])
    assert xr.open_zarr(path).attrs["manifest"]["batch"] == {"rows": ["a"]}
    assert not (path / "of_the_dead").exists() and not (path / "energy" / "c.0.0.0.0.0.0").exists()


def test_what_an_interrupted_writer_committed_is_given_up_where_that_is_asked_for(kit):
    writer = kit.make_writer(kit.root, manifest=kit.manifest | {"host": "a"})
    kit.write_step(writer, 0)
    kit.write_step(writer, 2)
    writer.abort()
    again = kit.make_writer(kit.root, manifest=kit.manifest | {"host": "b"}, anew=True)
    assert again.committed_steps == set() and status(again.path).committed_steps == ()
    kit.write_step(again, 1)
    again.close()
    assert status(again.path).committed_steps == (1,) and list(verify(again.path)) == []
    assert xr.open_zarr(again.path).attrs["manifest"]["host"] == "b"
    assert not (again.path / "energy" / "c.0.0.0.0.0.0").exists()
    with pytest.raises(StoreError, match="is complete"):
        kit.make_writer(kit.root, anew=True)
