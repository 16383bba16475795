"""nnsight's view of a pipeline: put on its modules when it is first asked for, taken off when a trace ends.

nnsight replaces each module's `forward` by a controller, and leaves it there. The bare pipeline has to be what it was
after a trace, so the controllers are removed, and a `forward` that a module had of its own is put back.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from nnsight import NNsight
from nnsight.intervention.interleaver import Interleaver

if TYPE_CHECKING:
    from torch import nn

STATE = "__nnsight__"
"""Where nnsight keeps, on a module, who traces it."""

_FORWARDS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
"""The `forward` that a module had of its own (offloading, a user's patch) before nnsight took its place."""


class OwnThread(Interleaver):
    """Serves the thread that traces. Another thread may run the same modules, and runs them bare."""

    @property
    def interleaving(self) -> bool:
        """Whether a trace runs, in this thread."""
        return self._running and threading.get_ident() == self._thread

    @interleaving.setter
    def interleaving(self, running: bool) -> None:
        self._running, self._thread = running, threading.get_ident()


def wrap(root: nn.Module) -> Any:
    """Return a module as nnsight sees it; see `release`."""
    for module in root.modules():
        forward = vars(module).get("forward")
        if forward is not None and not _is_controller(forward):
            _FORWARDS[module] = forward
    return NNsight(root, interleaver=OwnThread())


def release(root: nn.Module) -> None:
    """Take nnsight's controllers off all modules that no model of the user's own, made with nnsight, watches."""
    for module in root.modules():
        state = vars(module).get(STATE)
        if state is None:
            continue
        state.routes = [route for route in state.routes if not _is_ours(route[0]())]
        if state.routes:
            continue
        before = _FORWARDS.pop(module, None)
        if _is_controller(vars(module).get("forward")):
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        module.__dict__.pop(STATE, None)


def _is_ours(interleaver: Any) -> bool:
    """Say whether a route is a trace's of this library, or of a model that is gone."""
    return interleaver is None or isinstance(interleaver, OwnThread)


def _is_controller(forward: Any) -> bool:
    return type(forward).__name__ == "Controller"


__all__ = ["OwnThread", "release", "wrap"]
