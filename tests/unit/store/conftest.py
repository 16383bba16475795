"""One small run, as the tests of writer, reader and status need it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from dit_lens.store import RunWriter, Variable

STEPS, BRANCHES, LAYERS = 4, ["cond", "uncond"], [0, 1, 2]
GRID = (2, 3, 4)
STATE_DIMS = ("step", "branch", "layer", "frame", "y", "x", "channel")
STATE_SHAPE = (STEPS, 2, 3, *GRID, 5)
MANIFEST = {"identity": {"seed": 7, "plan": ["energy"]}, "host": "here"}


def coords():
    return {
        "step": np.arange(STEPS),
        "sigma": ("step", np.linspace(1, 0.25, STEPS)),
        "expert": ("step", ["high"] * STEPS),
        "branch": BRANCHES,
        "layer": LAYERS,
    }


def variables():
    return [
        Variable("hidden", STATE_DIMS, STATE_SHAPE, "float32", "state", long_name="residual stream"),
        Variable("bf16", STATE_DIMS, STATE_SHAPE, "bfloat16", "state"),
        Variable("codes", STATE_DIMS, STATE_SHAPE, "bfloat16", "state", encoding="codes"),
        Variable("half", STATE_DIMS, STATE_SHAPE, "bfloat16", "state", encoding="float16"),
        Variable("energy", STATE_DIMS[:-1], STATE_SHAPE[:-1]),
        Variable("energy_bf16", STATE_DIMS[:-1], STATE_SHAPE[:-1], "bfloat16"),
        Variable("answer", ("step", "frame"), (STEPS, 2), "int32"),
        Variable("video", ("time", "height", "width", "rgb"), (3, 8, 8, 3), "uint8", "run"),
    ]


def values_of(variable, key):
    """The values of a unit: the same in every process and attempt."""
    rng = np.random.default_rng([len(variable.name), *key])
    if variable.dtype == "bfloat16":
        values = rng.standard_normal(variable.unit_shape).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return (rng.standard_normal(variable.unit_shape) * 9).astype(variable.value_dtype)


def write_step(writer, step):
    for variable in variables():
        if variable.unit == "step":
            writer.write(variable.name, {"step": step}, values_of(variable, (step,)))
        elif variable.unit == "state":
            for branch in range(2):
                for layer in range(3):
                    at = {"step": step, "branch": branch, "layer": layer}
                    writer.write(variable.name, at, values_of(variable, (step, branch, layer)))
    writer.commit_step(step, {"sigma": 1 - step / STEPS})


def make_writer(root, **change):
    given = {"root": root, "name": "run-1", "manifest": MANIFEST, "coords": coords(), "durable": False}
    writer = RunWriter(**given | change)
    for variable in variables():
        writer.declare(variable)
    return writer


def write_run(root, steps=range(STEPS), **change):
    with make_writer(root, **change) as writer:
        for step in steps:
            if step not in writer.committed_steps:
                write_step(writer, step)
        writer.write("video", {}, values_of(variables()[-1], ()))
    return writer.path


def expected(name):
    """The whole of a variable, as it was written."""
    variable = next(v for v in variables() if v.name == name)
    out = np.empty(variable.shape, variable.value_dtype)
    sizes = [variable.shape[variable.dims.index(dim)] for dim in variable.unit_dims]
    for key in np.ndindex(*sizes):
        out[key] = values_of(variable, key)
    return out


@dataclass
class Kit:
    """What the test files share, since they cannot import one another."""

    root: Path
    make_writer = staticmethod(make_writer)
    write_step = staticmethod(write_step)
    write_run = staticmethod(write_run)
    expected = staticmethod(expected)
    coords = staticmethod(coords)
    manifest: dict = field(default_factory=lambda: MANIFEST)
    steps: int = STEPS


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path / "s.zarr")


@pytest.fixture
def run(kit):
    """A complete run."""
    return kit.write_run(kit.root)


@pytest.fixture
def partial_run(kit):
    """A run that was aborted after two of four steps."""
    writer = kit.make_writer(kit.root)
    kit.write_step(writer, 0)
    kit.write_step(writer, 2)
    writer.abort()
    return writer.path
