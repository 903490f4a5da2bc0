"""Run the upper blocks again from an edited activation, sharing the lower ones.

A clean pass remembers what every block from ``layer`` on was called with (masks, rotary embeddings, positions);
calling the blocks again with the same arguments is the same computation, whatever transformers' version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gemlens.lm.gemma import Model, module_at
from gemlens.sites import Site

__all__ = ["CleanPass", "clean_pass", "replay", "resume"]


@dataclass(frozen=True, eq=False)
class CleanPass:
    """A forward pass that can be taken up again at block ``layer``."""

    layer: int
    entry: Tensor
    """[batch, n, d_model], what block ``layer`` was fed."""
    residual: Tensor
    """[batch, n, d_model], the last block's output."""
    arguments: list[dict[str, Any]] = field(repr=False)
    """Keyword arguments of each block from ``layer`` on."""


@torch.no_grad()
def clean_pass(model: Model, tokens: Tensor, layer: int) -> CleanPass:
    """Run [batch, n] token ids through all blocks, without the head.

    Raises:
        MismatchError: the model has no such layer.
    """
    module_at(model, Site(layer, "resid_post"))  # raises for a layer that the model lacks
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    with _remembering(model.blocks[layer:], calls) as last:
        model.backbone(input_ids=tokens.to(model.device), use_cache=False)
    return CleanPass(layer, calls[0][0], last[0], [arguments for _, arguments in calls])


@torch.no_grad()
def resume(model: Model, clean: CleanPass, hidden: Tensor | None = None, *, skip: int = 0) -> Tensor:
    """[batch, n, d_model] output of the last block.

    Args:
        hidden: fed to the first block that is run; the clean pass's own by default. A clean pass of batch 1 serves
            any batch.
        skip: leave out so many blocks from ``clean.layer`` on (1 with an edited output of that block).

    Raises:
        ValueError: blocks are to be skipped, but what they would have put out is not given.
    """
    if skip and hidden is None:
        raise ValueError(f"skip {skip} leaves out blocks: give the hidden state that comes out of them")
    return replay(model, clean, clean.entry if hidden is None else hidden, skip=skip)


def replay(model: Model, clean: CleanPass, hidden: Tensor, *, skip: int = 0) -> Tensor:
    """``resume`` where gradients are wanted: they flow from its result to ``hidden``, if the caller has them on."""
    state = hidden
    for block, arguments in zip(model.blocks[clean.layer + skip :], clean.arguments[skip:], strict=True):
        state = _hidden(block(state, **arguments))
    return state


@contextmanager
def _remembering(blocks: nn.ModuleList, calls: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[list[Tensor]]:
    last: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        calls.append((args[0] if args else kwargs.pop("hidden_states"), kwargs))

    with ExitStack() as stack:
        for block in blocks:
            handle = block.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        handle = blocks[-1].register_forward_hook(lambda _module, _inputs, output: last.append(_hidden(output)))
        stack.callback(handle.remove)
        yield last


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
