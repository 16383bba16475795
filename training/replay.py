"""A step of a training as one CUDA graph: a small network's kernels take less time than to launch them one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replay:
    """A function that is recorded at its fourth call, and replayed from then on.

    It takes and returns nothing, and every tensor that it reads or writes stays where it is. On a CPU it is called as it is.

    Args:
        step: the function. Nothing in it waits for the device, and all that differs between its calls stands in tensors.
        device: where it runs.
    """

    WARM = 3
    """Calls before the recording, in which code is compiled and state is made."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.device, self.calls = step, device, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Take one step."""
        self.calls += 1
        if self.device.type != "cuda":
            self.step()
        elif self.calls <= self.WARM:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                self.step()
            torch.cuda.current_stream().wait_stream(beside)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.step()
            self.graph.replay()
