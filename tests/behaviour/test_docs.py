"""The code in the docs runs as it stands there."""

import importlib
import re
from pathlib import Path

import pytest

import forked

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, least",
    [
        *(("getting-started", 6), ("experiments", 1), ("adding-a-family", 1), ("tasks", 2)),
        *(("attention", 3), ("attribution", 2)),
    ],
)
def test_the_code_of_a_page_runs(tmp_path, name, least):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.S)
    assert len(blocks) >= least
    script = tmp_path / "page.py"  # a file: nnsight compiles the body of a trace from its source
    script.write_text("\n".join(blocks))
    done = forked.run(script, folder=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_model_that_is_not_in_the_list_takes_under_forty_lines():
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "adding-a-family.md").read_text(), re.S)
    assert len(code.splitlines()) < 40


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _resolves(path):
    """Say whether a dotted path leads to a module, or to a name in one."""
    try:
        importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return hasattr(importlib.import_module(module), name)
    return True


def test_what_the_change_log_says_to_write_instead_exists():
    changes = (DOCS.parent / "CHANGELOG.md").read_text()
    rows = [line.split("|") for line in changes.splitlines() if line.startswith("| `")]
    paths = [path for row in rows for path in re.findall(r"`(dit_lens(?:\.\w+)+)", row[2])]
    assert len(paths) > 30
    assert [path for path in paths if not _resolves(path)] == []
