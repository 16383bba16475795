"""`import dit_lens` is light, complete, and reads stores where there is no torch."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.store import RunWriter, Variable

HEAVY = ["torch", "diffsynth", "nnsight", "matplotlib", "sklearn", "numpy", "xarray", "zarr"]
NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "diffsynth", "nnsight"):
            raise ModuleNotFoundError(f"no {name} here", name=name)
sys.meta_path.insert(0, NoTorch())
"""


def run(code, *arguments):
    """Run code in a fresh Python, and return what it printed, from JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_takes_less_than_half_a_second_and_loads_nothing_heavy():
    code = f"""
import json, sys, time
start = time.perf_counter()
import dit_lens
took = time.perf_counter() - start
print(json.dumps([took, [m for m in {HEAVY} if m in sys.modules]]))
"""
    tries = [run(code) for _ in range(5)]
    assert min(took for took, _ in tries) < 0.5
    assert all(loaded == [] for _, loaded in tries)


@pytest.mark.parametrize("name", dl.__all__)
def test_every_public_name_resolves(name):
    assert getattr(dl, name) is not None
    assert name in dir(dl)


def test_every_name_comes_from_where_the_face_says():
    for name, module in dl._HOME.items():
        home = getattr(dl, name)
        assert getattr(home, "__name__", name) == name
        assert module.startswith("dit_lens.")


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING stand for what `__getattr__` finds."""
    tree = ast.parse(Path(dl.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == dl._HOME | dict.fromkeys(dl._ROOMS, "dit_lens")


def test_a_name_that_is_not_there_says_so():
    with pytest.raises(AttributeError, match="module 'dit_lens' has no attribute 'activation_cache'"):
        _ = dl.activation_cache


def test_the_errors_are_one_family():
    for error in (dl.CaptureError, dl.PlanError, dl.StoreError, dl.TaskError):
        assert issubclass(error, dl.DitLensError)


@pytest.fixture
def store(tmp_path):
    """A store of one run: the energy of 3 steps on 2 x 2 tokens."""
    values = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    coords = {"step": np.arange(3), "frame": np.arange(1), "y": np.arange(2), "x": np.arange(2)}
    with RunWriter(tmp_path / "runs", "run-a", {"identity": {"seed": 0}}, coords, durable=False) as writer:
        writer.declare(Variable("energy", ("step", "frame", "y", "x"), values.shape))
        for step in range(3):
            writer.write("energy", {"step": step}, values[step])
            writer.commit_step(step, {"sigma": 1.0})
    return tmp_path / "runs"


def test_a_store_opens_where_importing_torch_raises(store):
    code = """
import json, sys
import dit_lens as dl
runs = dl.open_runs(sys.argv[1])
one = dl.open_run(sys.argv[1] + "/run-a")
out = [runs["run-a"]["energy"].sel(step=2).values.tolist(), one["energy"].sel(step=2, x=1).values.tolist()]
print(json.dumps([*out, "torch" in sys.modules]))
"""
    tree, one, torch = run(NO_TORCH + code, str(store))
    assert tree == [[[8, 9], [10, 11]]]
    assert one == [[9, 11]]
    assert not torch


def test_samples_places_analyses_and_pictures_need_no_torch():
    code = """
import json
import dit_lens as dl
sample = dl.tasks.maze(seed=1_000_007)
solved = sample.score(sample.truth).solved
plan = dl.Plan.of(edit=[(len, dl.at(layer="0-4"))])
names = [room.__name__ for room in (dl.analysis, dl.plot, dl.store, dl.tasks)]
try:
    dl.energy
except ImportError as error:
    said = str(error)
print(json.dumps([solved, str(plan), names, said]))
"""
    solved, plan, names, said = run(NO_TORCH + code)
    assert solved
    assert plan == "Plan:\n  edit len at(layer=0-4)"
    assert names == ["dit_lens.analysis", "dit_lens.plot", "dit_lens.store", "dit_lens.tasks"]
    assert said == 'dl.energy needs torch, which this Python does not have: pip install "dit-lens[trace]"'
