"""What a model says under several strengths of steering, and how far each takes it from itself.

1. All strengths are one batch, each row with its own; rows draw the same random numbers, so they differ by strength.
2. The answers are read once more, as they are and steered, in a batch each.
3. Of each token of an answer: its surprise to the model without steering, whose mean makes the perplexity, and
   KL(steered || unsteered) of the distributions before it. Both at once show a dose that still reads like language but
   is another model's, and one that only breaks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.records import Provenance
from gemlens.records.edits import Steering
from gemlens.scope.maxima import maxima as known_maxima
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.selected import select
from gemlens.sites import Site, parse_site
from gemlens.study.analysis import provenance_of, text_of
from gemlens.study.directions import steer_direction
from gemlens.study.doses import doses, with_neutral
from gemlens.study.fit_check import check_fit
from gemlens.study.intervene import Features, steer
from gemlens.study.labelled import labelled
from gemlens.study.modes import Mode, Relative, strengths_of
from gemlens.study.places import Active, Positions, in_words

__all__ = ["steer_direction_sweep", "steer_sweep"]


def steer_sweep(
    model: Model,
    dictionary: SAE | MultiLayer,
    features: Features,
    prompt: str,
    strengths: Sequence[float],
    *,
    mode: Mode = "add",
    relative_to: Relative | None = "max",
    maximum: float | Sequence[float] | None = None,
    layer: int | None = None,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    system: str | None = None,
    chat: bool | None = None,
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    top_p: float = 0.95,
    greedy: bool = False,
    seed: int = 0,
) -> Steering:
    """Continue ``prompt`` with features steered by each of several strengths, in one batch.

    Args:
        features, mode, relative_to, maximum, layer, positions, where, bos: as for ``steer``.
        strengths: in any order; the model as it is is always among them, as strength 0 (of mode ``scale``, 1).
        max_new_tokens, temperature, top_p, greedy, seed: how to generate; every strength draws the same numbers.

    Example:
        >>> gemlens.steer_sweep(model, sae, 1234, "I think that", [-1, 0.5, 1, 2])

    Raises:
        InputError: as ``steer``; no strength, an empty or too long prompt.
        MismatchError: a dictionary that does not fit the model.
    """
    warnings = tuple(check_fit(model, dictionary))
    chosen = select(dictionary, [features] if isinstance(features, int) else list(features), layer=layer)
    if not len(chosen):
        raise InputError("no feature was given; name at least one to steer")
    known: tuple[float, ...] = ()
    if relative_to == "max":
        given = known_maxima(chosen.info, chosen.ids) if maximum is None else strengths_of(maximum, len(chosen))
        known = tuple(given.flatten().expand(len(chosen)).tolist())

    def opened(each: Tensor, prompt_tokens: int | None) -> AbstractContextManager[None]:
        return steer(
            model,
            dictionary,
            features,
            each,
            mode=mode,
            relative_to=relative_to,
            maximum=known or None,
            layer=layer,
            positions=positions,
            where=where,
            bos=bos,
            prompt_tokens=prompt_tokens,
        )

    neutral = 1.0 if mode == "scale" else 0.0
    labels, unlabelled = labelled([(dictionary, chosen.ids)])
    text = text_of(model, prompt, system=system, chat=chat, room=max_new_tokens)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "greedy": greedy, "seed": seed}
    return Steering(
        prompt=prompt,
        system=system,
        prompt_text=text.fed,
        model_id=model.name,
        dictionary=dictionary.info,
        features=chosen.ids,
        direction=None,
        site=str(chosen.writes[0]),
        mode=mode,
        relative_to=relative_to,
        maxima=known,
        positions=in_words(positions, where),
        max_new_tokens=max_new_tokens,
        doses=doses(model, text.ids, with_neutral(strengths, neutral), opened, max_new_tokens, neutral, **sampling),
        provenance=_provenance(model, sampling),
        warnings=warnings + unlabelled,
        labels=labels,
    )


def steer_direction_sweep(
    model: Model,
    site: Site | str,
    direction: Tensor,
    prompt: str,
    strengths: Sequence[float],
    *,
    name: str = "a direction",
    mode: Mode = "add",
    relative_to: Relative | None = None,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    system: str | None = None,
    chat: bool | None = None,
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    top_p: float = 0.95,
    greedy: bool = False,
    seed: int = 0,
) -> Steering:
    """The same along a direction [d] of a site, which views call ``name``; otherwise as ``steer_sweep``.

    Raises:
        InputError: as ``steer_direction``; no strength, an empty or too long prompt.
        MismatchError: the model has no such layer.
    """
    site = parse_site(site) if isinstance(site, str) else site

    def opened(each: Tensor, prompt_tokens: int | None) -> AbstractContextManager[None]:
        return steer_direction(
            model,
            site,
            direction,
            each,
            mode=mode,
            relative_to=relative_to,
            positions=positions,
            where=where,
            bos=bos,
            prompt_tokens=prompt_tokens,
        )

    text = text_of(model, prompt, system=system, chat=chat, room=max_new_tokens)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "greedy": greedy, "seed": seed}
    return Steering(
        prompt=prompt,
        system=system,
        prompt_text=text.fed,
        model_id=model.name,
        dictionary=None,
        features=(),
        direction=name,
        site=str(site),
        mode=mode,
        relative_to=relative_to,
        maxima=(),
        positions=in_words(positions, where),
        max_new_tokens=max_new_tokens,
        doses=doses(model, text.ids, with_neutral(strengths, 0.0), opened, max_new_tokens, 0.0, **sampling),
        provenance=_provenance(model, sampling),
        warnings=(),
    )


def _provenance(model: Model, sampling: dict[str, Any]) -> Provenance:
    if sampling["greedy"] or sampling["temperature"] <= 0:
        return provenance_of(model, sampling["seed"])
    return provenance_of(model, sampling["seed"], sampling["temperature"], sampling["top_p"])
