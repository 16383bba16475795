"""What the body of a trace leaves alone: it runs on the model's thread, so what it leaves behind would act in the model.

While the body runs, the model waits at one value, which may be written to. The model has gone on with all values before
that one. A late write into a copy (`copies.py`) would not act; one into a tensor of the model's own, as nnsight's envoys
give them, would reach what still holds it, and not what was made of it. Torch's modes (autocast, number type, device,
attention kernels) are the thread's, so a mode that the body is still in would hold for the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from dit_lens.errors import CaptureError

_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Memory:
    """Memory that is watched, by all tensors that share it, and not held.

    Args:
        tensor: One of them.
        what: Whose value it is, in words.
    """

    def __init__(self, tensor: Tensor, what: str) -> None:
        self.what = what
        self.place = StorageWeakRef(tensor.untyped_storage())
        with torch.inference_mode(False), torch.no_grad():
            self._counter = tensor.detach()
            self._counter.data = tensor.new_empty(0)  # shares torch's count of writes, and holds no memory

    @property
    def writes(self) -> int:
        """Torch's count of writes into it."""
        return self._counter._version

    @property
    def is_gone(self) -> bool:
        """Whether nothing holds it any more."""
        return bool(self.place.expired())


class Handover:
    """Compares what the body gives back with what it was handed.

    The mode of gradients is the one that the body may set as it likes: the model's own is put back.
    """

    def __init__(self) -> None:
        self._visit: Hashable = None
        self._open: list[Memory] = []  # of the model's own value that it waits at
        self._lent: list[Memory] = []  # of the body's copies of that value
        self._past: list[Memory] = []  # of the model's own values before
        self._past_lent: list[Memory] = []  # of the body's copies before, in the running call
        self._watched: list[tuple[Memory, int, bool]] = []  # count of writes, and whether it is lent
        self._modes, self._began = _modes(), False
        # Whether they are on in the body; None where it leaves that to the model.
        self._gradients: bool | None = None
        self._handed = False, False  # whether they were on in the model, and as the body got control

    def serve(self, visit: Hashable, carried: Any, what: str, instead: bool) -> None:
        """Take what a place in the model carries, which the body is given as it is, or has set.

        Args:
            visit: Of a place.
            carried: Any tree of tensors.
            what: The value in words.
            instead: Whether it stands in place of what the model has made.
        """
        if instead or visit != self._visit:
            self._past, self._open, self._visit = self._past + self._open, [], visit
        self._open = self._open + _memories(tree_leaves(carried), what)

    def lend(self, tensor: Tensor, what: str) -> None:
        """Take what the body holds of a value until it goes on."""
        self._lent = self._lent + _memories([tensor], what)

    def forget(self) -> None:
        """Let the body's copies go, which are its own now that their call is over; the model may go on with its own values."""
        self._visit, self._past, self._open = None, self._past + self._open, []
        self._past_lent = []

    def begin(self) -> None:
        """Look at everything as it is when the body gets control."""
        self._past = [memory for memory in self._past if not memory.is_gone]
        self._past_lent = [memory for memory in self._past_lent if not memory.is_gone]
        self._watched = [(m, m.writes, False) for m in self._past] + [
            (m, m.writes, True) for m in self._past_lent
        ]
        self._modes = _modes()
        # Before the body's first value they are off, so that one that sets them on around its loop is seen to.
        of_model = torch.is_grad_enabled()
        usual = of_model and self._began
        self._handed = of_model, usual if self._gradients is None else self._gradients
        self._began = True
        torch.set_grad_enabled(self._handed[1])

    def end(self) -> CaptureError | None:
        """Give control back; return the error that says what the body has left otherwise than it was."""
        of_model, at_first = self._handed
        if torch.is_grad_enabled() != at_first:
            self._gradients = not at_first
        torch.set_grad_enabled(of_model)
        own = {memory.place for memory in self._open}
        acting = own | {memory.place for memory in self._lent}
        self._past_lent, self._lent = self._past_lent + self._lent, []
        for memory, writes, is_lent in self._watched:
            if memory.writes != writes and memory.place not in (acting if is_lent else own):
                return CaptureError(
                    f"{memory.what} was changed in place after the model had gone on, so it would not act, or on a part of the "
                    "model: change it before you ask for a later value, or change a copy, .clone()."
                )
        modes = _modes()
        changed = [name for name in modes if modes[name] != self._modes[name]]
        if changed:
            return CaptureError(
                f"The body asks for a value, or ends, with another {changed[0]} than it was handed, and the model would run with "
                "it: leave the context first, or open it around the `with` block of the trace."
            )
        return None


def _memories(values: Iterable[Any], what: str) -> list[Memory]:
    """Return the memory of those values that are tensors whose writes torch counts."""
    plain = (value for value in values if type(value) in (Tensor, nn.Parameter))
    return [
        Memory(tensor, what)
        for tensor in plain
        if tensor.layout == torch.strided and not tensor.is_inference()
    ]


def _modes() -> dict[str, Any]:
    """Return the modes of torch that change what a model computes, in words."""
    kernels = torch.backends.cuda
    return {
        "autocast": [
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES
        ],
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device or function mode": [id(mode) for mode in _get_current_function_mode_stack()],
        "dispatch mode": [id(mode) for mode in _get_current_dispatch_mode_stack()],
        "choice of attention kernels": (
            kernels.flash_sdp_enabled(),
            kernels.mem_efficient_sdp_enabled(),
            kernels.math_sdp_enabled(),
            kernels.cudnn_sdp_enabled(),
        ),
        "precision of products": torch.get_float32_matmul_precision(),
        "use of deterministic algorithms": torch.get_deterministic_debug_mode(),
    }


__all__ = ["Handover"]
