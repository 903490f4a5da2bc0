"""Answers under several strengths in one batch, and what the model as it is makes of each of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, generate, logits
from gemlens.lm.text import pieces, texts
from gemlens.records.edits import Dose, SteeredToken
from gemlens.sites import Site

__all__ = ["Opened", "doses", "with_neutral"]

Opened = Callable[[Tensor, int | None], AbstractContextManager[None]]
"""A steering by strengths [texts, 1]; the number is of the prompt's tokens, where they are not those of the first
call."""


def with_neutral(strengths: Sequence[float], neutral: float) -> list[float]:
    """Ascending, with the strength that changes nothing.

    Raises:
        InputError: there is none.
    """
    if not len(strengths):
        raise InputError("no strength was given; name some, as [-1, 0.5, 1]")
    return sorted({float(each) for each in strengths} | {neutral})


def doses(
    model: Model, prompt: Tensor, strengths: Sequence[float], opened: Opened, new: int, neutral: float, **sampling: Any
) -> tuple[Dose, ...]:
    """Continue a prompt, int64 [n], by at most ``new`` tokens under each strength.

    Raises:
        InputError: no token is to be generated; what ``opened`` raises.
    """
    if new < 1:
        raise InputError(f"max_new_tokens {new}: steering shows in what is generated; take 1 or more")
    each, n = torch.tensor(strengths)[:, None], len(prompt)
    with opened(each, None):
        ids, _ = generate(model, prompt.expand(len(each), -1), [], max_new_tokens=new, alike=True, **sampling)
    losses, divergences = _measured(model, ids, n, each, opened)
    ends = _ends(model)
    found = []
    for row, strength in enumerate(strengths):
        answer = ids[row, n:].tolist()
        length = next((index + 1 for index, token in enumerate(answer) if token in ends), len(answer))
        whole = ids[row, : n + length].tolist()
        columns = zip(
            whole[n:],
            pieces(model, whole)[n:],
            texts(model, whole)[n:],
            losses[row].tolist(),
            # To the bit the same, but for a last place of rounding where the batch is of another size.
            [0.0] * length if strength == neutral else divergences[row].tolist(),
            strict=False,
        )
        found.append(Dose(strength, tuple(SteeredToken(*column) for column in columns)))
    return tuple(found)


@torch.no_grad()
def _measured(model: Model, ids: Tensor, n: int, strengths: Tensor, opened: Opened) -> tuple[Tensor, Tensor]:
    """Of each token of each answer, its surprise to the model as it is, and KL(steered || unsteered) before it."""
    last = Site(model.n_layers - 1, "resid_post")
    plain = activations(model, ids, [last])[last][:, n - 1 : -1]
    with opened(strengths, n):
        steered = activations(model, ids, [last])[last][:, n - 1 : -1]
    losses, divergences = [], []
    for row in range(len(ids)):  # the logits of all would be gigabytes
        before, after = (logits(model, each[row]).float().log_softmax(-1) for each in (plain, steered))
        losses.append(-before.gather(-1, ids[row, n:, None])[:, 0])
        divergences.append((after.exp() * (after - before)).sum(-1).clamp(min=0))
    return torch.stack(losses).cpu(), torch.stack(divergences).cpu()


def _ends(model: Model) -> set[int]:
    """Tokens that end a text."""
    ends = model.module.generation_config.eos_token_id
    return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}
