"""What a script says on the command line when it cannot go on."""

import subprocess
import sys
from pathlib import Path

import pytest

from dit_lens.errors import TaskError
from dit_lens.experiments.options import Options
from dit_lens.experiments.script import run_script

ANALYSES = Path(__file__).parents[3] / "analyses"


def start(main, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_script(main, Options)
    return ended.value.code


def test_a_script_ends_with_the_exit_code_of_its_main(monkeypatch):
    assert start(lambda options: int(options.task == "circle"), monkeypatch, "--task", "circle") == 1
    assert start(lambda options: int(options.task == "circle"), monkeypatch, "--task", "maze") == 0


def test_what_a_user_can_mend_is_one_line_without_a_traceback(monkeypatch, capsys):
    def main(options):
        raise TaskError(f"--task {options.task}: give another.")

    assert start(main, monkeypatch) == 1
    assert capsys.readouterr().err == "error: --task maze: give another.\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(ZeroDivisionError):
        run_script(lambda options: 1 // 0, Options)


@pytest.mark.parametrize("script", sorted(p.name for p in ANALYSES.glob("*.py")))
def test_every_script_starts_in_that_way(script):
    assert (ANALYSES / script).read_text().rstrip().endswith("    run_script(main, Options)")


def test_a_script_that_is_given_what_is_not_there_says_so(tmp_path):
    script = [sys.executable, str(ANALYSES / "layer_swap.py"), "--donor-prompt", "go", "--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: --donor-image and --donor-prompt go with")
    assert "Traceback" not in done.stderr
