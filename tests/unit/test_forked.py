"""A script in a forked process ends as in a Python of its own: its failure, its exit code, its signal and its words come back."""

import signal

import pytest

import forked

ENDS = {
    "print('said')": 0,
    "raise ValueError('said')": 1,
    "import sys; print('said', file=sys.stderr); sys.exit(3)": 3,
    "import os; print('said', flush=True); os.kill(os.getpid(), 9)": -signal.SIGKILL,
}


@pytest.mark.parametrize("text, code", ENDS.items())
def test_how_a_script_ends_and_what_it_says_come_back(tmp_path, text, code):
    script = tmp_path / "script.py"
    script.write_text(text)
    done = forked.run(script, folder=tmp_path)
    assert done.returncode == code and "said" in done.stdout + done.stderr


def test_a_script_is_main_has_its_arguments_folder_and_environment_and_nothing_of_ours(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nold = [m for m in sys.modules if m.startswith('dit_lens')]\n"
        "print(__name__, sys.argv[1:], os.getcwd(), sorted(os.environ), old, 'torch' in sys.modules)\n"
    )
    done = forked.run(script, "a", 2, folder=tmp_path, cwd=tmp_path, env={"ONLY": "1"})
    assert done.stdout == f"__main__ ['a', '2'] {tmp_path} ['ONLY'] [] True\n", done.stderr


def test_a_script_that_does_not_end_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(TimeoutError, match="runs after"):
        forked.run(script, folder=tmp_path, timeout=0.1)
