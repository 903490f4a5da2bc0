"""Change what features do, and see what comes of it: ablate, steer, patch, each for the time of a ``with``.

    with gemlens.ablate(model, sae, 1234):
        model.module(tokens).logits

What is written is ``x + (new - old) @ w_dec``: the dictionary's error stays. A transcoder's feature is read where its
dictionary reads and edited where it writes, one of a CLT or crosscoder at every layer that it writes. Contexts nest, in
order; inside ``generate`` positions count over the whole text.

Templeton et al. 2024 (transformer-circuits.pub/2024/scaling-monosemanticity) for steering by features, Marks et al.
2024 (arXiv:2403.19647) for edits that keep the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.scope.maxima import maxima
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.selected import Selected, select
from gemlens.study.edits import Edit, Fixed, Now, Write, editing, unedited
from gemlens.study.fit_check import check_fit
from gemlens.study.modes import Mode, Relative, brief, how, strengths_of, write
from gemlens.study.places import Active, Places, Positions

__all__ = ["ablate", "patch", "steer"]

Features = int | Sequence[int]


@contextmanager
def ablate(
    model: Model,
    dictionary: SAE | MultiLayer,
    features: Features,
    *,
    layer: int | None = None,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    prompt_tokens: int | None = None,
) -> Iterator[None]:
    """Take features out of what the model computes: ``x - activation @ w_dec``.

    Args:
        features: one or several; all are read before any is written.
        layer: of a CLT or crosscoder, the layer that the features read.
        positions: the tokens at which to edit, counted over the whole text: a number, several, a slice, ``last``,
            ``generated``, or a function; None for all. Negative ones count back from the prompt's end.
        where: only where a feature is active, see ``active``.
        bos: edit BOS, and the opening of a chat, too.
        prompt_tokens: of a text that is a prompt with its answer, how many are the prompt's.

    Raises:
        InputError: no such feature, layer or position; from the forward pass, positions that the text does not have.
        MismatchError: a dictionary that does not fit the model.
    """
    chosen = _chosen(model, dictionary, features, layer)
    places = Places.of(model, [chosen.info], positions, where, bos)
    edit = _edit(model, chosen, places, f"ablate {_named(chosen)}", torch.zeros(1, 1, 1), "set", None)
    with editing(model, edit, prompt=prompt_tokens):
        yield


@contextmanager
def steer(
    model: Model,
    dictionary: SAE | MultiLayer,
    features: Features,
    strength: float | Sequence[float] | Tensor,
    *,
    mode: Mode = "add",
    relative_to: Relative | None = None,
    maximum: float | Sequence[float] | None = None,
    layer: int | None = None,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    prompt_tokens: int | None = None,
) -> Iterator[None]:
    """Raise, lower or set the activations of features.

    Args:
        features, layer, positions, where, bos, prompt_tokens: as for ``ablate``.
        strength: for all features, one for each, or a tensor [texts, 1 or features] with others for each text of a
            batch. What it is counted in follows from ``relative_to``.
        mode: ``add`` to the activation; ``set`` it; ``scale`` it (0 ablates, 1 does nothing); ``orthogonal``: take the
            decoder row's direction out of what passes the site, whatever put it there, and add the strength.
        relative_to: None: in activations. ``max``: in the largest activation that the feature is known to have, from
            the file beside the dictionary or from ``maximum``. ``norm``: in the norm of what passes the site at each
            token.
        maximum: the largest activation, for all features or for each.

    Example:
        >>> with gemlens.steer(model, sae, 1234, 0.5, relative_to="max", positions=generated):
        ...     generate(model, tokens, [], max_new_tokens=40)

    Raises:
        InputError: as ``ablate``; a strength that is not finite, no such mode, or no known maximum.
        MismatchError: a dictionary that does not fit the model.
    """
    how(mode, relative_to)
    named = [] if isinstance(features, int) else list(features)
    if twice := [each for each in named if named.count(each) > 1]:
        raise InputError(f"feature {twice[0]} is to be steered twice at one place; name it once")
    chosen = _chosen(model, dictionary, features, layer)
    given = strengths_of(strength, len(chosen))
    if relative_to == "max":
        given = given * _maxima(chosen, maximum)
    elif maximum is not None:
        raise InputError("a maximum is only used by a strength relative to it; give relative_to='max' too")
    places = Places.of(model, [chosen.info], positions, where, bos)
    said = f"steer {_named(chosen)} ({mode} {brief(strength, relative_to)})"
    with editing(model, _edit(model, chosen, places, said, given, mode, relative_to), prompt=prompt_tokens):
        yield


@contextmanager
def patch(
    model: Model,
    dictionary: SAE | MultiLayer,
    features: Features,
    prompt: str | Tensor,
    *,
    take: int | None = None,
    layer: int | None = None,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    system: str | None = None,
    chat: bool | None = None,
) -> Iterator[None]:
    """Give features the activations that they have on another prompt.

    Args:
        features, layer, positions, where, bos: as for ``ablate``.
        prompt: the other text, or its token ids [n], BOS included; it is read without any edit.
        take: use the activation at this token of it (negative from its end) everywhere; None takes each position's
            own, so both prompts must have as many tokens. What is generated after them is left alone.
        system, chat: how to read the other text.

    Raises:
        InputError: as ``ablate``; from the forward pass, prompts of different lengths.
        MismatchError: a dictionary that does not fit the model.
    """
    chosen = _chosen(model, dictionary, features, layer)
    if isinstance(prompt, str):
        ids = encode_prompt(model, prompt_text(model, prompt, system=system, chat=chat))[0]
    else:
        ids = prompt
    if take is not None and not -len(ids) <= take < len(ids):
        raise InputError(f"take {take}: the other prompt has {len(ids)} tokens, 0 to {len(ids) - 1}")
    with unedited(model):
        values = chosen.encode(activations(model, ids[None], [chosen.reads])[chosen.reads].to(chosen.device))[0]
    taken = _Taken(values.to(model.device), take)
    edit = Edit(
        said=f"patch {_named(chosen)}",
        writes={site: taken.write(rows.to(model.device)) for site, rows in chosen.rows.items()},
        places=Places.of(model, [chosen.info], positions, where, bos),
        reads=chosen.reads,
        keep=_reader(model, chosen),
        fixed=_fixed(chosen, [None] * len(chosen)),
    )
    with editing(model, edit):
        yield


class _Taken:
    """Activations [n, k] of another prompt, for the tokens of this one."""

    def __init__(self, values: Tensor, take: int | None) -> None:
        self._values, self._take = values, take

    def write(self, rows: Tensor) -> Write:
        n = len(self._values)

        def written(x: Tensor, now: Now) -> Tensor:
            if self._take is not None:
                change, mask = self._values[self._take] - now.kept, now.mask
            else:
                if now.tokens.first and (here := int(now.tokens.prompt.max())) != n:
                    raise InputError(
                        f"the prompts have {here} and {n} tokens, so no token has a counterpart; give take, the token "
                        "of the other prompt whose activation to use"
                    )
                at = now.tokens.positions.to(x.device)
                change = self._values[at.clamp(0, n - 1)] - now.kept
                mask = now.mask & (at < n)
            return x + (change * mask[..., None]) @ rows

        return written


def _edit(
    model: Model, chosen: Selected, places: Places, said: str, strength: Tensor, mode: Mode, relative_to: str | None
) -> Edit:
    """Of strengths [batch or 1, 1, k or 1] in activations, or in norms."""
    needs_activation = how(mode, relative_to).needs_activation
    counted = strength.to(model.device)
    values: list[float | None] = [None] * len(chosen)
    if mode == "set" and relative_to is None and len(strength) == 1:
        values = strength.expand(1, 1, len(chosen)).flatten().tolist()
    return Edit(
        said=said,
        writes={site: write(rows.to(model.device), counted, mode, relative_to) for site, rows in chosen.rows.items()},
        places=places,
        reads=chosen.reads if needs_activation else None,
        keep=_reader(model, chosen),
        fixed=_fixed(chosen, values) if mode == "set" else (),
    )


def _chosen(model: Model, dictionary: SAE | MultiLayer, features: Features, layer: int | None) -> Selected:
    check_fit(model, dictionary)
    return select(dictionary, [features] if isinstance(features, int) else list(features), layer=layer)


def _reader(model: Model, chosen: Selected) -> Callable[[Tensor], Tensor]:
    """From what passes the site that is read to activations [batch, q, k], on the model's device."""
    return lambda x: chosen.encode(x.to(chosen.device)).to(model.device)


def _maxima(chosen: Selected, maximum: float | Sequence[float] | None) -> Tensor:
    """[1, 1, k or 1]"""
    if maximum is None:
        return maxima(chosen.info, chosen.ids)[None, None]
    found = strengths_of(maximum, len(chosen))
    if (found <= 0).any():
        raise InputError(f"maximum {maximum}: the largest activation of a feature is above 0")
    return found


def _fixed(chosen: Selected, values: Sequence[float | None]) -> list[Fixed]:
    rows = chosen.rows[chosen.writes[0]]
    return [Fixed(chosen.named(each), rows[i], values[i]) for i, each in enumerate(chosen.ids)]


def _named(chosen: Selected) -> str:
    """For messages: the first features by number."""
    if len(chosen) == 1:
        return chosen.named(chosen.ids[0])
    shown = ", ".join(map(str, chosen.ids[:5])) + (" …" if len(chosen) > 5 else "")
    return f"features {shown or '(none)'} of {chosen.path} at {chosen.reads}"
