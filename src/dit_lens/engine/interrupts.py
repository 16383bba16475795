"""Ctrl-C while a run goes on: the first ends it, and no other comes in between while it is cleaned up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 5.0
"""Seconds after the first Ctrl-C from which another one counts again: cleaning up hangs."""


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt in the block, and hold back those that follow at once.

    Does nothing outside the main thread, inside of another such block, and where the user handles Ctrl-C.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    last = -PATIENCE

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE:
            last = now
            raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupt)
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


__all__ = ["one_interrupt"]
