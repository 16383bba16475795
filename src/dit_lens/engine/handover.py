"""What the body of a trace leaves alone: it runs on the model's thread, so what it leaves behind would act in the model.

While the body runs, the model waits at one value, which may be written to. The model has gone on with all values before
that one: a write there would reach what still holds them, and not what was made of them. Torch's modes (autocast, number
type, device, attention kernels) are the thread's, so a mode that the body is still in would hold for the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from dit_lens.errors import CaptureError

_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Handover:
    """Compares what the body gives back with what it was handed.

    The mode of gradients is the one that the body may set as it likes: the model's own is put back.
    """

    def __init__(self) -> None:
        self._visit: Hashable = None
        self._open: list[tuple[weakref.ref[Tensor], str]] = []  # of the value that the model waits at
        self._past: list[tuple[weakref.ref[Tensor], str]] = []
        self._watched: list[tuple[weakref.ref[Tensor], int, str]] = []
        self._modes, self._began = _modes(), False
        # Whether they are on in the body; None where it leaves that to the model.
        self._gradients: bool | None = None
        self._handed = False, False  # whether they were on in the model, and as the body got control

    def serve(self, visit: Hashable, carried: Any, what: str, instead: bool) -> None:
        """Take what a place in the model carries, which the body is given or has set.

        Args:
            visit: Of a place.
            carried: Any tree of tensors.
            what: The value in words.
            instead: Whether it stands in place of what the model has made.
        """
        if visit != self._visit:
            self._past, self._open, self._visit = self._past + self._open, [], visit
        tensors = [(weakref.ref(leaf), what) for leaf in tree_leaves(carried) if isinstance(leaf, Tensor)]
        self._open = tensors if instead else self._open + tensors

    def forget(self) -> None:
        """Let all values go: the call that they are of is over."""
        self._visit, self._open, self._past = None, [], []

    def begin(self) -> None:
        """Look at everything as it is when the body gets control."""
        storages = {_storage(tensor) for ref, _ in self._open if (tensor := ref()) is not None}
        self._watched = [
            (ref, tensor._version, what)
            for ref, what in self._past
            if (tensor := ref()) is not None
            and not tensor.is_inference()
            and _storage(tensor) not in storages
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
        for ref, version, what in self._watched:
            if (tensor := ref()) is not None and tensor._version != version:
                return CaptureError(
                    f"{what} was changed in place after the model had gone on, so it would act on a part of the model: change it "
                    "before you ask for a later value, or change a copy, .clone()."
                )
        modes = _modes()
        changed = [name for name in modes if modes[name] != self._modes[name]]
        if changed:
            return CaptureError(
                f"The body asks for a value, or ends, with another {changed[0]} than it was handed, and the model would run with "
                "it: leave the context first, or open it around the `with` block of the trace."
            )
        return None


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else id(tensor)


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
