"""What tests of interrupts and of a failing writer run on."""

import faulthandler
import gc
import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def no_callbacks():
    """Let the collector call nobody: Python does not let an interrupt out of a callback, such as hypothesis' own."""
    held = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = held


@pytest.fixture
def no_hang(request, no_callbacks):
    """End the process, with every thread's stack, where a test would take more than its module's `SLOW` seconds."""
    faulthandler.dump_traceback_later(request.module.SLOW, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def in_memory(tmp_path_factory):
    """A folder in memory, where there is one: what is tested is not how fast a disk is."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("on_disk")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
