"""Scripts in processes of their own, forked from one that has imported what is slow: torch and DiffSynth, and nothing of ours.

Their import takes seconds of CPU in each new Python. Where the start of Python itself is tested (what is imported,
the seed of hashes, what is left at exit), a test starts one.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

SLOW = ["torch", "diffsynth.pipelines.wan_video", "nnsight", "xarray", "zarr", "sklearn.linear_model"]
SLOW += ["scipy.stats", "matplotlib.figure", "tyro"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(SLOW)


def start(script, *arguments, cwd=None, env=None, out=os.devnull, err=os.devnull) -> BaseProcess:
    """Start a script in a process of its own.

    Args:
        script: a file.
        arguments: of the command line.
        cwd: folder to run in. Default: this one.
        env: the environment. Default: the one that stands here.
        out: file that stdout goes to.
        err: file that stderr goes to.
    """
    space = dict(os.environ if env is None else env)
    command = [os.path.abspath(script), *map(str, arguments)]
    process = CONTEXT.Process(target=_main, args=(command, cwd or os.getcwd(), space, (out, err)))
    process.start()
    return process


def run(script, *arguments, folder, timeout=240, **options) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own to its end; what it says is kept in a folder, and returned.

    Raises:
        TimeoutError: it has not ended; it is killed.
    """
    out, err = (Path(folder) / name for name in ("stdout.txt", "stderr.txt"))
    process = start(script, *arguments, out=out, err=err, **options)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{script} runs after {timeout} s.")
    return subprocess.CompletedProcess(
        [script, *arguments], process.exitcode, out.read_text(), err.read_text()
    )


def _main(command, cwd, space, files):
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(space)
    os.chdir(cwd)
    assert "dit_lens" not in sys.modules
    sys.argv = command
    sys.path[:0] = [os.path.dirname(command[0]), *filter(None, space.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(command[0], run_name="__main__")
