"""Read or write a module's input or output, as context managers.

Reading and writing are twins: both take the module and the side, both are gone when the ``with`` ends, also
after an exception. Blocks of transformers 4.57 return tuples, those of 5 return tensors: element 0 is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["StopForward", "read", "write"]

Side = Literal["input", "output"]


class StopForward(Exception):  # not an error: the way out of a forward pass nobody needs the rest of
    """Raised by ``read(..., stop=True)`` once it has what it wants; catch it around the forward call."""


@contextmanager
def read(
    module: nn.Module, side: Side, *, stop: bool = False, keep: Callable[[Tensor], Tensor] | None = None
) -> Iterator[list[Tensor]]:
    """Collect what goes into or out of ``module``, one tensor a call.

    Args:
        stop: raise ``StopForward`` after the first call, so that nothing deeper is computed.
        keep: applied to each tensor before it is kept (a slice, a cast).
    """
    found: list[Tensor] = []

    def hook(value: Any) -> None:
        tensor = _first(value)
        found.append(keep(tensor) if keep else tensor)
        if stop:
            raise StopForward

    handle = _register(module, side, hook)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def write(module: nn.Module, side: Side, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what goes into or out of ``module`` by ``edit`` of it; shape, dtype and device must stay.

    Raises:
        ValueError: from the forward pass, when ``edit`` returns another shape.
    """

    def hook(value: Any) -> Any:
        old = _first(value)
        new = edit(old)
        if new.shape != old.shape:
            raise ValueError(f"an edit returned shape {tuple(new.shape)} for {tuple(old.shape)}")
        new = new.to(old)
        return (new, *value[1:]) if isinstance(value, tuple) else new

    handle = _register(module, side, hook)
    try:
        yield
    finally:
        handle.remove()


def _first(value: Any) -> Tensor:
    tensor = next(iter(value), None) if isinstance(value, tuple) else value
    if not isinstance(tensor, Tensor):
        got = "nothing" if tensor is None else type(tensor).__name__
        raise TypeError(f"expected a tensor from the hooked module, got {got}")
    return tensor


def _register(module: nn.Module, side: Side, hook: Callable[[Any], Any]) -> torch.utils.hooks.RemovableHandle:
    if side == "output":
        return module.register_forward_hook(lambda _module, _inputs, output: hook(output))
    return module.register_forward_pre_hook(lambda _module, inputs: hook(inputs))
