"""What is not installed is named with the command that installs it; stores, samples and pictures need none of it."""

import json
import subprocess
import sys

import pytest

import dit_lens as dl
from dit_lens.errors import EXTRAS, needing

WITHOUT = """
import json, sys
class Without:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Without())
import dit_lens as dl
said = {{}}
def attempt(name, work):
    try:
        work()
        said[name] = ""
    except dl.DitLensError as error:
        said[name] = [str(error), isinstance(error, ImportError)]
"""


def run(packages, code, *arguments):
    """Run code in a fresh Python that lacks some packages; return what it said."""
    program = WITHOUT.format(packages=packages) + code + "\nprint(json.dumps(said))"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TRACE = 'needs torch, which this Python does not have: pip install "dit-lens[trace]"'
NEED_TORCH = {
    "Lens",
    "attention",
    "blocks",
    "controls",
    *dl._FROM["dit_lens.records"],
    *dl._FROM["dit_lens.edits"],
}


def test_without_torch_every_public_name_is_there_or_says_what_to_install():
    said = run(["torch"], "for name in dl.__all__:\n    attempt(name, lambda: getattr(dl, name))")
    assert {name for name in said if said[name]} == NEED_TORCH
    assert all(said[name] == [f"dl.{name} {TRACE}", True] for name in NEED_TORCH)


def test_without_torch_loading_says_what_to_install(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ndef make(): pass\n")
    names = ["organism", "wan2.2", "diffusers:x/y", f"{tmp_path}/mine.py:make", "mine:make"]
    code = """
sys.path.insert(0, sys.argv[1])
for name in json.loads(sys.argv[2]):
    attempt(name, lambda: dl.load(name))
"""
    said = run(["torch", "diffsynth"], code, str(tmp_path), json.dumps(names))
    assert all(
        'pip install "dit-lens[trace]"' in said[name][0] and "torch" in said[name][0] for name in names
    )


def test_without_nnsight_a_trace_says_so_and_a_run_works():
    code = """
lens = dl.load("organism")
sample = dl.tasks.maze(seed=1_000_007)
attempt("run", lambda: lens.run(sample, steps=1))
attempt("trace", lambda: lens.trace(sample))
attempt("nnsight", lambda: lens.nnsight)
"""
    said = run(["nnsight"], code)
    command = 'needs nnsight, which this Python does not have: pip install "dit-lens[trace]"'
    assert said == {
        "run": "",
        "trace": [f"lens.trace {command}", True],
        "nnsight": [f"lens.nnsight {command}", True],
    }


def test_without_diffusers_loading_says_so():
    said = run(["diffusers"], 'attempt("load", lambda: dl.load("diffusers:x/y"))')
    assert said["load"] == [
        "dl.load('diffusers:x/y') needs diffusers, which this Python does not have: "
        'pip install "dit-lens[diffusers]"',
        True,
    ]


def test_without_posix_locks_stores_are_read(lens, sample, tmp_path):
    run_ = lens.run(sample, steps=1, record=[dl.energy], store=tmp_path / "store")
    code = """
run = dl.open_run(sys.argv[1])
said["mean"] = float(run["energy"].mean())
said["names"] = len(dl.open_runs(sys.argv[2]).leaves)
"""
    said = run(["fcntl", "torch"], code, str(run_.path), str(tmp_path / "store"))
    assert said["mean"] == pytest.approx(float(run_["energy"].mean())) and said["names"] == 1


def test_an_import_that_fails_for_another_reason_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        with needing("dl.x"):
            import no_such_package  # noqa: F401
    with pytest.raises(ImportError, match="libcuda"):
        with needing("dl.x"):
            raise ImportError("libcuda.so: cannot open shared object file", name="torch")
    assert set(EXTRAS.values()) == {"trace", "diffusers"}
