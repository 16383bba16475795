"""A key changes with whatever changes the result, and with nothing else."""

import ast
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import dit_lens as dl
import forked
from dit_lens.experiments import keys
from dit_lens.experiments.options import StudyOptions

ROOT = Path(__file__).parents[3]

HELPERS = '''
"""Helpers of the user's."""
LIMIT = 3
UNRELATED = 5

def inner(x):
    """Say something."""
    return min(x, LIMIT)  # a comment

def unrelated():
    return UNRELATED
'''
SCRIPT = '''
"""A script."""
import numpy as np
import helpers
from helpers import inner
from dataclasses import dataclass

TABLE = {"a": [1, 2]}

@dataclass
class Part:
    """A part."""
    x: int = 1

    def double(self):
        """Double it."""
        return 2 * self.x

def other():
    return 1

def measure(samples, scale=2):
    """Measure."""
    def local(x):
        """Inside."""
        from helpers import inner as late
        return late(x)

    return Part().double() + helpers.inner(scale) + local(1) + TABLE["a"][0] + np.pi
'''


def hash_of(folder, script=SCRIPT, helpers=HELPERS):
    """Hash `measure` as a fresh process sees it."""
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(script)
    (folder / "helpers.py").write_text(helpers)
    spaces = {}
    for name in ("helpers", "script"):
        module = type(sys)(name)
        module.__file__ = str(folder / f"{name}.py")
        sys.modules[name] = module
        exec(compile((folder / f"{name}.py").read_text(), module.__file__, "exec"), vars(module))
        spaces[name] = module
    try:
        return keys.reachable(spaces["script"].measure)
    finally:
        for name in spaces:
            del sys.modules[name]


def changed(text, old, new):
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"""Measure."""', '"""Measure otherwise, in more words."""'),
        ('    """Measure."""\n', ""),
        ('        """Inside."""\n', "\n\n\n"),
        ('    """A part."""\n', ""),
        ("def other():\n    return 1", "def other():\n    return 2"),
        ("import helpers\n", "import helpers  # a comment\n\n"),
    ],
)
def test_docstrings_comments_and_code_that_is_not_reached_keep_a_key(tmp_path, old, new):
    assert hash_of(tmp_path) == hash_of(tmp_path, changed(SCRIPT, old, new))


@pytest.mark.parametrize(
    "old, new",
    [
        ("scale=2", "scale=3"),
        ('TABLE = {"a": [1, 2]}', 'TABLE = {"a": [1, 3]}'),
        ("x: int = 1", "x: int = 2"),
        ("return 2 * self.x", "return 3 * self.x"),
        ("return late(x)", "return late(x) + 1"),
        ("np.pi", "np.e"),
    ],
)
def test_what_a_measurement_reaches_in_its_own_file_changes_a_key(tmp_path, old, new):
    assert hash_of(tmp_path) != hash_of(tmp_path, changed(SCRIPT, old, new))


def test_a_file_beside_the_script_counts_where_it_is_reached(tmp_path):
    first = hash_of(tmp_path)
    assert first != hash_of(tmp_path, helpers=changed(HELPERS, "LIMIT = 3", "LIMIT = 4"))
    assert first != hash_of(tmp_path, helpers=changed(HELPERS, "min(x, LIMIT)", "max(x, LIMIT)"))
    assert first == hash_of(tmp_path, helpers=changed(HELPERS, "UNRELATED = 5", "UNRELATED = 6"))
    assert first == hash_of(tmp_path, helpers=changed(HELPERS, '"""Say something."""', '"""Say."""'))


def test_what_only_a_late_import_reaches_counts(tmp_path):
    script = changed(SCRIPT, "helpers.inner(scale) + ", "")
    script = changed(script, "import helpers\nfrom helpers import inner\n", "")
    first = hash_of(tmp_path, script)
    assert first != hash_of(tmp_path, script, changed(HELPERS, "LIMIT = 3", "LIMIT = 4"))


def test_what_a_function_closes_over_counts_by_content():
    def with_(value):
        return lambda samples: value

    values = [
        *(1, 2, True, "1", (1, 2), [1, 2], {"a": 1}, {"a": 2}, {1, 2}, None, Path("a")),
        *(np.arange(3), np.arange(3.0), torch.arange(3), torch.arange(3).to(torch.bfloat16)),
        *(torch.nn.Linear(2, 2), xr.Dataset({"x": ("n", [1, 2])}), xr.Dataset({"x": ("n", [1, 3])})),
        *(
            functools.partial(max, 1),
            functools.partial(max, 2),
            dl.at(layer=1),
            dl.at(layer=2),
            dl.scale(factor=2.0),
        ),
        *(np.random.default_rng(0), np.random.default_rng(1), np.array(["a"], np.dtypes.StringDType())),
    ]
    hashes = [keys.reachable(with_(value)) for value in values]
    assert len(set(hashes)) == len(values)
    assert hashes == [keys.reachable(with_(value)) for value in values]
    layer = torch.nn.Linear(2, 2)
    before = keys.reachable(with_(layer))
    layer.weight.data[0, 0] += 1
    assert keys.reachable(with_(layer)) != before


def test_what_nothing_names_is_not_used_again_and_says_so(tmp_path):
    lines = (line for line in "ab")
    with pytest.warns(UserWarning, match=r"generator.*not used again"):
        first = keys.reachable(lambda samples: next(lines))
    with pytest.warns(UserWarning):
        assert keys.reachable(lambda samples: next(lines)) != first


def test_samples_count_by_all_that_a_model_and_a_scorer_see(sample):
    pixels = np.zeros((32, 32), np.uint8)
    one, other = (Image.fromarray(pixels, "P") for _ in range(2))
    one.putpalette([0, 0, 0]), other.putpalette([255, 0, 0])
    samples = [
        sample,
        sample.with_(negative_prompt="blurry"),
        sample.with_(image=one),
        sample.with_(image=other),
        sample.with_(image=Image.fromarray(pixels + 1)),
        sample.with_(truth=np.zeros((2, 48, 32, 3), np.uint8)),
        sample.with_(scorer=lambda video: dl.Score(True, 1.0, "a")),
        sample.with_(scorer=lambda video: dl.Score(True, 0.5, "a")),
        sample.with_(num_frames=13),
    ]
    assert len({keys.key("", [s]) for s in samples}) == len(samples)
    # A model sees RGB: black is black, whichever palette says so.
    black = sample.with_(image=Image.fromarray(pixels))
    assert keys.key("", [black]) == keys.key("", [sample.with_(image=one)])
    assert keys.key("", [dl.tasks.circle(7)]) == keys.key("", [dl.tasks.circle(7)])


def test_options_count_by_their_settings_alone(lens):
    def key(**options):
        return keys.maker("s", StudyOptions(**options), lens, test_options_count_by_their_settings_alone)

    assert key() == key(samples=3, scene=5, out=Path("elsewhere"), block=2, at_once=1)
    assert len({key(), key(draw=1), key(seeds=2), key(steps=3), key(text_only=True), key(num_frames=9)}) == 6


ASK = """
import importlib.util, sys
from dit_lens.experiments import keys
for name in ("noise_sensitivity", "emergent"):
    spec = importlib.util.spec_from_file_location(name, f"analyses/{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(keys.reachable(module.measure))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the library and the scripts, to be changed."""
    root = tmp_path_factory.mktemp("copy")
    for part in ("src", "analyses"):
        shutil.copytree(
            ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    return root


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Ask for the keys in a process that imports a copy; with a seed of hashes, in a Python of its own."""
    folder = tmp_path_factory.mktemp("asked")
    script = folder / "ask.py"
    script.write_text(ASK)

    def answer(root, seed=None):
        space = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        if seed is None:
            done = forked.run(script, folder=folder, cwd=root, env=space)
        else:
            command, space = [sys.executable, str(script)], space | {"PYTHONHASHSEED": seed}
            done = subprocess.run(command, cwd=root, env=space, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.split()

    return answer


@pytest.fixture(scope="module")
def unchanged(copy, ask):
    return ask(copy)


@pytest.mark.slow
def test_a_key_is_the_same_in_every_process_and_place(copy, unchanged, ask):
    assert ask(copy, seed="7") == unchanged == ask(ROOT)


SAME = [
    # Comments and docstrings, wherever they are.
    ("src/dit_lens/plot/curves.py", '"""Outcomes', '"""All outcomes'),
    ("src/dit_lens/analysis/cka_sampled.py", "\ndef kernel_cka(", "\n# A comment.\n\n\ndef kernel_cka("),
    ("src/dit_lens/engine/batch.py", "\nclass Batch", "\n# A comment.\n\n\nclass Batch"),
    ("src/dit_lens/engine/batch.py", '"""Number of steps."""', '"""The number of steps."""'),
    (
        "src/dit_lens/experiments/noise_arms.py",
        '        """Return an arm: noise in the latents, at a place, of a share of the variance."""\n',
        "",
    ),
    # Code that the measurement cannot reach.
    ("src/dit_lens/plot/curves.py", "\ndef curves(", "\ndef unused():\n    return 1\n\n\ndef curves("),
    ("analyses/noise_sensitivity.py", '"effect of noise after a step"', '"effect"'),
]
OTHER = [
    ("src/dit_lens/engine/batch.py", "at_once: int = 64", "at_once: int = 63"),
    ("src/dit_lens/engine/outcomes.py", "(-4, -3, -2, -1)", "(-3, -2, -1)"),
    ("src/dit_lens/analysis/cka_sampled.py", "kernel / norm**0.5", "kernel / norm"),
    ("src/dit_lens/experiments/noise_arms.py", '"same energy")', '"equal energy")'),
]


@pytest.fixture
def edit(copy):
    """Change files of the copy; they are as before when the test ends."""
    before = {}

    def change(file, old, new):
        text = (copy / file).read_text()
        before.setdefault(file, text)
        (copy / file).write_text(changed(text, old, new))

    yield change
    for file, text in before.items():
        (copy / file).write_text(text)


@pytest.mark.slow
def test_comments_docstrings_and_code_out_of_reach_keep_every_block(copy, unchanged, edit, ask):
    for change in SAME:
        edit(*change)
    assert ask(copy)[0] == unchanged[0]


@pytest.mark.slow
@pytest.mark.parametrize("change", OTHER, ids=[file for file, *_ in OTHER])
def test_what_a_measurement_reaches_in_the_library_makes_new_blocks(copy, unchanged, edit, ask, change):
    edit(*change)
    assert ask(copy)[0] != unchanged[0]


def test_what_counts_whole_uses_nothing_of_the_library_that_does_not():
    library = Path(dl.__file__).parent
    files = [f for f in library.rglob("*.py") if _counts_whole(f.relative_to(library).with_suffix("").parts)]
    assert len(files) > 50
    others = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dit_lens."):
                others |= {node.module} if not _counts_whole(node.module.split(".")[1:]) else set()
    assert others <= {"dit_lens.errors", "dit_lens.units"}  # texts alone


def _counts_whole(parts):
    return any(".".join(parts[: n + 1]) in keys.WHOLE for n in range(len(parts)))


def test_a_library_function_that_holds_a_measurement_does_not_hide_it():
    def placed(factor):
        return keys.reachable(dl.scale(factor=factor)), keys.reachable(functools.partial(dl.hidden, factor))

    assert len({*placed(1.0), *placed(2.0)}) == 4


def test_a_study_that_has_run_has_the_key_that_it_had_before(lens, sample):
    key = functools.partial(keys.maker, "s", StudyOptions(), lens, lambda part: lens.run(part[0], 0, steps=2))
    before = key()
    lens.run(sample, 0, steps=2)
    assert key() == before


def test_a_measurement_that_reads_another_model_counts_its_weights(pipe, two_experts):
    first, other = dl.Lens(pipe), dl.Lens(two_experts)
    key = functools.partial(keys.maker, "s", StudyOptions(), first, lambda part: other.decode(part))
    before = key()
    weight = two_experts.dit2.blocks[0].ffn[0].weight
    value = weight[0, 0].item()
    weight.data[0, 0] += 1
    assert key() != before
    weight.data[0, 0] = value
    assert key() == before


def test_the_order_in_which_a_store_lists_variables_does_not_matter(tmp_path):
    data = xr.Dataset({"a": ("n", [1, 2]), "b": ("n", [3, 4])}, {"n": [0, 1]})

    def hashed(held):
        return keys.reachable(lambda samples: held)

    def opened(held, name):
        held.to_zarr(tmp_path / name)
        return xr.open_zarr(tmp_path / name)

    one, other, third = (
        opened(held, str(n)) for n, held in enumerate((data, data[["b", "a"]], data.rename(a="b", b="a")))
    )
    assert hashed(one) == hashed(other[["b", "a"]]) == hashed(other) != hashed(third)
