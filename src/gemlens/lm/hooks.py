"""Read or write a module's input, its output, or what an RMS norm holds in between, as context managers.

Reading and writing are twins: both take the module and the side, both are gone when the ``with`` ends, also
after an exception. Blocks of transformers 4.57 return tuples, those of 5 return tensors: element 0 is meant.

``normalized`` is the value of a norm before its scale by ``1 + weight``. torch has no hook there: for the time of the
``with`` the norm's own method that divides by the root mean square is followed by ours. It computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from gemlens.sites import Side

__all__ = ["StopForward", "read", "replaced", "write"]


class StopForward(Exception):  # not an error: the way out of a forward pass nobody needs the rest of
    """Raised by ``read(..., stop=True)`` once it has what it wants; catch it around the forward call."""


@contextmanager
def read(
    module: nn.Module, side: Side, *, stop: bool = False, keep: Callable[[Tensor], Tensor] | None = None
) -> Iterator[list[Tensor]]:
    """Collect what passes one side of ``module``, one tensor a call.

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
    """Replace what passes one side of ``module`` by ``edit`` of it; shape, dtype and device must stay.

    Raises:
        ValueError: from the forward pass, when ``edit`` returns another shape.
    """

    def hook(value: Any) -> Any:
        new = replaced(_first(value), edit)
        return (new, *value[1:]) if isinstance(value, tuple) else new

    handle = _register(module, side, hook)
    try:
        yield
    finally:
        handle.remove()


def replaced(old: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """``edit`` of ``old``, in its dtype and on its device.

    Raises:
        ValueError: another shape.
    """
    new = edit(old)
    if new.shape != old.shape:
        raise ValueError(f"an edit returned shape {tuple(new.shape)} for {tuple(old.shape)}")
    return new.to(old)


def _first(value: Any) -> Tensor:
    tensor = next(iter(value), None) if isinstance(value, tuple) else value
    if not isinstance(tensor, Tensor):
        got = "nothing" if tensor is None else type(tensor).__name__
        raise TypeError(f"expected a tensor from the hooked module, got {got}")
    return tensor


class _Handle(Protocol):
    def remove(self) -> None: ...


def _register(module: nn.Module, side: Side, hook: Callable[[Any], Any]) -> _Handle:
    if side == "output":
        return module.register_forward_hook(lambda _module, _inputs, output: hook(output))
    if side == "input":
        return module.register_forward_pre_hook(lambda _module, inputs: hook(inputs))
    return _InsideNorm(module, hook)


class _InsideNorm:
    """A hook between the two steps of Hugging Face's ``Gemma2RMSNorm`` and ``Gemma3RMSNorm``, until removed."""

    def __init__(self, norm: nn.Module, hook: Callable[[Any], Any]) -> None:
        self._norm = norm
        # An outer hook's, which lies in the instance, or None where it is still the class's own method.
        self._outer = vars(norm).get("_norm")
        normalize: Callable[[Tensor], Tensor] = norm._norm

        def with_hook(x: Tensor) -> Tensor:
            value = normalize(x)
            changed = hook(value)
            return value if changed is None else changed

        norm._norm = with_hook  # type: ignore[assignment]

    def remove(self) -> None:
        if self._outer is None:
            del self._norm._norm
        else:
            self._norm._norm = self._outer
