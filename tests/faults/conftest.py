"""What tests of interrupts and of a failing writer run on."""

import faulthandler
import os
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def lost_interrupts(monkeypatch):
    """Take no notice of an interrupt that falls where Python lets none out: a callback of the collector, of a weak reference."""
    report = sys.unraisablehook

    def hook(lost):
        if lost.exc_type is None or not issubclass(lost.exc_type, KeyboardInterrupt):
            report(lost)

    monkeypatch.setattr(sys, "unraisablehook", hook)


@pytest.fixture
def no_hang(request, lost_interrupts):
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
