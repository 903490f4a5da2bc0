"""Which tokens a forward pass is over: their ids, and where in the whole text they stand, with a KV cache too.

A hook sees activations, [batch, q, d], and not what they are of. ``following`` looks at what the model itself is called
with: token ids, the attention mask that says what is padding, and the cache, whose length is where the text goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemlens.lm.gemma import Model

__all__ = ["Follower", "Tokens", "following"]

_UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Tokens:
    """Those of one forward call."""

    ids: Tensor
    """int64 [batch, q]; -1 where the model was called with embeddings."""
    positions: Tensor
    """int64 [batch, q], from 0 for a text's first token; -1 at padding."""
    text: Tensor
    """int64 [batch, all so far], ``ids`` at its end."""
    prompt: Tensor
    """int64 [batch, 1], tokens of the prompt: those of the first call, unless something else was said."""
    more: bool
    """The call keeps a cache: tokens may follow."""

    @property
    def first(self) -> bool:
        """Whether the call is over the beginning of a text."""
        return self.ids.shape[1] == self.text.shape[1]


@dataclass(eq=False)
class Follower:
    now: Tokens | None = None
    """Of the latest call; None before the first."""
    prompt: Tensor | None = None
    """Tokens of the prompt, where they are not those of the first call."""


@contextmanager
def following(
    model: Model, *, prompt: int | None = None, begin: Callable[[Tokens], None] = lambda _tokens: None
) -> Iterator[Follower]:
    """For the time of a ``with``, know what each call of ``model`` is over.

    Args:
        prompt: tokens of the prompt, for a pass over a prompt and an answer that stood before.
        begin: called before each pass with what it will be over.
    """
    follower = Follower(prompt=None if prompt is None else torch.tensor(prompt))
    given: dict[str, Any] = {}

    # A checkpoint with a vision tower makes embeddings and masks before it calls its language model.
    def outer(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.update(_known(args, kwargs))

    def inner(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = given | _known(args, kwargs)
        given.clear()
        follower.now = _tokens(known, kwargs, follower)
        begin(follower.now)

    with ExitStack() as stack:
        whole = model.module.model
        if whole is not model.backbone:
            stack.callback(whole.register_forward_pre_hook(outer, with_kwargs=True).remove)
        stack.callback(model.backbone.register_forward_pre_hook(inner, with_kwargs=True).remove)
        yield follower


def _known(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Ids and mask, where they are given as such."""
    found = {"input_ids": kwargs.get("input_ids", args[0] if args else None)}
    found["attention_mask"] = kwargs.get("attention_mask")
    return {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim == 2}


def _tokens(known: dict[str, Any], kwargs: dict[str, Any], follower: Follower) -> Tokens:
    before, cache = follower.now, kwargs.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    ids = known.get("input_ids")
    if ids is None:
        batch, q = kwargs["inputs_embeds"].shape[:2]
        ids = torch.full((batch, q), _UNKNOWN, device=kwargs["inputs_embeds"].device)
    earlier = ids.new_full((len(ids), past), _UNKNOWN)
    if before is not None and past and before.text.shape == (len(ids), past):
        earlier = before.text
    text = torch.cat([earlier, ids], dim=1)
    mask = known.get("attention_mask")
    if mask is not None and mask.shape == text.shape:
        counted = mask.to(torch.int64).cumsum(1)
        positions = torch.where(mask.bool(), counted - 1, -1)[:, past:]
        length = counted[:, -1:]
    else:
        positions = torch.arange(past, past + ids.shape[1], device=ids.device).expand(ids.shape)
        length = torch.full((len(ids), 1), past + ids.shape[1], device=ids.device)
    if follower.prompt is not None:
        length = follower.prompt.to(length).expand_as(length)
    elif past:  # of a text whose beginning was not seen, all that is in the cache counts as the prompt
        seen = before is not None and earlier is before.text
        length = before.prompt if before is not None and seen else torch.full_like(length, past)
    more = cache is not None or bool(kwargs.get("use_cache"))
    return Tokens(ids, positions, text, length, more)
