"""The layout of folders is the architecture: arrows point down, no circle, one name a class."""

import ast
import sys
from collections import Counter
from pathlib import Path

import dit_lens

SOURCE = Path(dit_lens.__file__).parent
FLOORS = [
    {"errors", "units", "video"},
    {"plan", "tasks"},
    {"families"},
    {"store", "engine", "records", "attention_records", "edits"},
    {"lens", "models", "analysis", "plot", "controls"},
    {"experiments"},
    {"cli"},
]
"""Rooms, from the ground up. A module imports from its own floor or from one below."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def name_of(file):
    parts = ("dit_lens", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in SOURCE.rglob("*.py")}


def imports_of(module):
    """Return the modules of the library that a module imports, also inside functions; not those for types alone."""
    tree = ast.parse(MODULES[module].read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dit_lens"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES and name not in ("dit_lens", module)}


GRAPH = {module: imports_of(module) for module in MODULES if module != "dit_lens"}


def room_of(module):
    return module.split(".")[1]


def test_every_room_stands_on_a_floor():
    assert {room_of(module) for module in GRAPH} <= FLOOR.keys()


def test_no_arrow_points_up():
    up = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if FLOOR[room_of(other)] > FLOOR[room_of(module)]
    ]
    assert not up


def test_no_import_goes_in_a_circle():
    def reached(module):
        seen, left = set(), [module]
        while left:
            for other in GRAPH[left.pop()]:
                if other not in seen:
                    seen.add(other)
                    left.append(other)
        return seen

    assert not [module for module in GRAPH if module in reached(module)]


def test_few_modules_stand_at_the_top():
    top = [file for file in SOURCE.glob("*.py") if file.name != "__init__.py"]
    assert len(top) <= 12


def test_no_two_classes_have_one_name():
    names = Counter(
        node.name
        for file in MODULES.values()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]


def test_importing_the_plan_and_the_store_needs_no_torch():
    for module, file in MODULES.items():
        top = [
            node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for node in top for alias in node.names} | {
            getattr(node, "module", "") for node in top
        }
        if module.split(".")[1:2] in (["plan"], ["store"]):
            assert not any(str(name).split(".")[0] == "torch" for name in names), module


def test_a_value_passes_few_files_on_its_way_to_a_record(lens, sample):
    lens.run(sample, steps=1, record=[dit_lens.energy])  # what happens once a process does not count
    files, reached = set(), False

    def watch(frame, event, _):
        nonlocal reached
        file = Path(frame.f_code.co_filename)
        if event == "call" and not reached and file.is_relative_to(SOURCE):
            files.add(file)
            reached = frame.f_code.co_name == "energy" and file.name == "records.py"

    sys.setprofile(watch)
    try:
        lens.run(sample, steps=2, record=[dit_lens.energy])
    finally:
        sys.setprofile(None)
    assert reached and len(files) <= 16, sorted(str(file.relative_to(SOURCE)) for file in files)
