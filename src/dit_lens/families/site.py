"""Where in a block a value stands: which module, which end of it, and where in what that end carries.

Blocks return a tensor, a tuple, or an object that holds the tensor; all are read, and replaced, alike.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dit_lens.errors import CaptureError, PlanError
from dit_lens.plan.plan import Carried

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

Item = tuple[int | str, ...]
"""Steps from a module's output (or its arguments) to the tensor: positions, names of fields, keys."""


@dataclass(frozen=True)
class Tokens:
    """How the tokens of one stream stand in a block's hidden state.

    Attributes:
        grid: (frame, y, x) counts.
        before: tokens before them, which are not part of the grid, such as a reference's.
        after: tokens after them, which are not part of the grid either.
    """

    grid: tuple[int, int, int]
    before: int = 0
    after: int = 0

    @property
    def count(self) -> int:
        """Number of tokens of the grid."""
        frame, y, x = self.grid
        return frame * y * x

    @property
    def total(self) -> int:
        """Number of tokens that the hidden state has."""
        return self.before + self.count + self.after

    @property
    def part(self) -> slice:
        """Where the tokens of the grid stand."""
        return slice(self.before, self.before + self.count)


@dataclass(frozen=True)
class Site:
    """Where in a block a value is read.

    Attributes:
        path: submodule below the block; "" is the block itself.
        end: "output" or "input" of that module.
        long_name: what it is, in words.
        item: where the hidden state stands in the output, such as (0, "x"); of an input, the first step is the
            argument's position or name. By default the value itself, or the first of a tuple; the first
            argument.
        heads: dotted path below the block to the number of heads that the value's channels are divided into, such as
            "self_attn.num_heads". Empty where they are not.
        channels: of the value, where they are neither those of a linear layer there nor of the residual stream; 0 else.
    """

    path: str
    end: str = "output"
    long_name: str = ""
    item: Item | None = None
    heads: str = ""
    channels: int = 0

    def carried(self, block: nn.Module, channels: int) -> Carried:
        """Return what the site holds of every token.

        Args:
            block: one of the model's.
            channels: of the residual stream; 0 where that is not known.
        """
        heads = self.head_count(block)
        width = self.channels or self.width(block) or channels
        return Carried(width // heads if heads else width, heads)

    def head_count(self, block: nn.Module) -> int:
        """Return the number of heads that the value's channels are divided into; 0 where they are not.

        Raises:
            PlanError: the block has no such number.
        """
        if not self.heads:
            return 0
        try:
            count = int(attrgetter(self.heads)(block))
        except (AttributeError, TypeError, ValueError):
            raise PlanError(
                f"{type(block).__name__} has no number of heads at {self.heads!r}: say where it is, with Site(heads=...)."
            ) from None
        return count

    def width(self, block: nn.Module) -> int:
        """Return the channels that a linear layer at the site gives, or is given; 0 where there is none."""
        from torch.nn import Linear, Sequential  # the class is known where torch is not installed

        layer = submodule(block, self.path)
        while isinstance(layer, Sequential) and len(layer):
            layer = layer[-1 if self.end == "output" else 0]
        if not isinstance(layer, Linear):
            return 0
        return layer.out_features if self.end == "output" else layer.in_features

    def attach(self, module: nn.Module, visit: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Hook a module, so that `visit` sees the hidden state, and may replace it.

        The hook serves the thread that attaches it: another thread may run the same module bare.

        Args:
            module: the submodule of the block.
            visit: hidden state to what takes its place, or None.
        """
        owner = get_ident()

        # Closures: VRAM management deep-copies modules, and a bound method would then watch a copy.
        def on_output(_: Any, __: Any, output: Any) -> Any:
            if get_ident() != owner:
                return None
            state = pick(output, self.output_steps(output))
            if state is None:
                return None  # the last block of a joint model may drop the text: nothing is captured there
            new = visit(_tensor(state, self))
            return None if new is None else self.into_output(output, new)

        def on_input(target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if get_ident() != owner:
                return None
            inputs = args, kwargs
            new = visit(self.of_inputs(target, inputs))
            return None if new is None else self.into_inputs(target, inputs, new)

        on_output.visit = on_input.visit = visit  # type: ignore[attr-defined]  # by which `unhook` knows them
        if self.end == "input":
            return module.register_forward_pre_hook(on_input, with_kwargs=True)
        return module.register_forward_hook(on_output)

    def detach(self, module: nn.Module, visit: Callable[[Tensor], Tensor | None]) -> None:
        """Remove the hooks by which `attach` lets a function see a module's hidden state, where they are there."""
        unhook(module, visit)

    def of_output(self, output: Any) -> Tensor:
        """Return the hidden state in what the module returned."""
        return _tensor(pick(output, self.output_steps(output)), self)

    def into_output(self, output: Any, new: Any) -> Any:
        """Return what the module returned, with another hidden state."""
        return put(output, self.output_steps(output), new)

    def of_inputs(self, module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        """Return the hidden state in the arguments that the module was given, (positional, by name)."""
        return _tensor(pick(inputs, self.input_steps(module, inputs)), self)

    def into_inputs(
        self, module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], new: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with another hidden state."""
        args, kwargs = put(inputs, self.input_steps(module, inputs), new)
        return args, kwargs

    def output_steps(self, output: Any) -> Item:
        """Return the steps from what the module returned to the hidden state."""
        if self.item is not None:
            return self.item
        return (0,) if isinstance(output, tuple) else ()

    def input_steps(self, module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Item:
        """Return the steps from (args, kwargs) to the hidden state."""
        args, kwargs = inputs
        first, *rest = self.item or (0,)
        if isinstance(first, str) and first not in kwargs:
            # The class's own: what wraps the instance's (nnsight, offloading) may name them otherwise.
            first = list(inspect.signature(type(module).forward).parameters).index(first) - 1
        if isinstance(first, int) and first >= len(args):
            # A position that was given by name: arguments keep their order.
            return 1, list(kwargs)[first - len(args)], *rest
        return (1, first, *rest) if isinstance(first, str) else (0, first, *rest)


def pick(value: Any, item: Item) -> Any:
    """Return what stands at the end of some steps into a value."""
    for key in item:
        value = value[key] if isinstance(key, int) or isinstance(value, Mapping) else getattr(value, key)
    return value


def put(value: Any, item: Item, new: Any) -> Any:
    """Return a value with something else at the end of some steps; the value itself is left as it was."""
    if not item:
        return new
    key, inner = item[0], put(pick(value, item[:1]), item[1:], new)
    if isinstance(value, tuple) and isinstance(key, int):
        parts = [inner if n == key else part for n, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and isinstance(key, str):
        return dataclasses.replace(value, **{key: inner})
    other = copy.copy(value)
    if isinstance(value, Mapping) or isinstance(key, int):
        other[key] = inner
    else:
        setattr(other, key, inner)
    return other


def submodule(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at a dotted path; "" is the module itself."""
    return module.get_submodule(path) if path else module


def _tensor(value: Any, site: Site) -> Tensor:
    if not hasattr(value, "shape"):
        raise CaptureError(
            f"The {site.end} of {site.path or 'the block'} carries a {type(value).__name__} at {site.item}, not a "
            "tensor: say where the hidden state stands, with Site(item=...)."
        )
    tensor: Tensor = value
    return tensor


def unhook(module: nn.Module, visit: Callable[[Tensor], Tensor | None]) -> None:
    """Remove the hooks of a module that serve a function, where they are there."""
    for hooks, *others in (
        (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if getattr(hook, "visit", None) is visit]:
            hooks.pop(key, None)
            for also in others:
                also.pop(key, None)


def blocks_of(dit: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """Return the blocks of a DiT, out of its lists of blocks."""
    return [block for path in paths for block in attrgetter(path)(dit)]


def experts_of(pipe: Any, attributes: Mapping[str, str]) -> dict[str, nn.Module]:
    """Return the experts that a pipeline holds now, by name. One alone is called `dit`.

    Args:
        pipe: the pipeline.
        attributes: expert name to the pipeline's attribute.

    Raises:
        PlanError: the pipeline has none.
    """
    experts = {
        name: dit for name, path in attributes.items() if (dit := getattr(pipe, path, None)) is not None
    }
    if not experts:
        raise PlanError(f"{type(pipe).__name__} holds no model at {', '.join(attributes.values())}.")
    return {"dit": next(iter(experts.values()))} if len(experts) == 1 else experts
