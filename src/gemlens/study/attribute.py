"""What does each feature do to a number that the model computes: a logit, a loss, another feature?

1. One clean pass over the prompt, read where dictionaries read and write.
2. Each dictionary takes what it writes apart: features, bias, skip, error (``decomposition``).
3. A method says what each part does to the target (``ways``), and what the target is at the method's own baseline.
4. With ``verify``, the features of largest effect are removed from the model one at a time, each at its token.

BOS is left out, and with Gemma Scope 2's dictionaries of ``-it`` models the tokens that open a chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.text import pieces, texts
from gemlens.records import TokenRecord
from gemlens.records.attribution import Attribution, Completeness, FeatureEffects, Removal
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.study.analysis import Text, chat_opening, counted, provenance_of, text_of
from gemlens.study.decomposition import Decomposed, decompose, read_and_written
from gemlens.study.fit_check import check_fit
from gemlens.study.labelled import labelled
from gemlens.study.outputs import Dictionary
from gemlens.study.passes import Passes, passes
from gemlens.study.targets import Target, TargetOf, logit
from gemlens.study.ways import Effects, Method, exact_effects, gradient

__all__ = ["attribute"]


def attribute(
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    prompt: str,
    target: str | TargetOf,
    *,
    method: Method = gradient,
    verify: int = 0,
    system: str | None = None,
    chat: bool | None = None,
) -> Attribution:
    """Say what every active feature at every token does to ``target``.

    Args:
        dictionaries: one or several, of any kinds and layers; each accounts for the target by itself.
        target: the text of one token, whose logit after the prompt is meant, with the space that belongs to it; or one
            of ``gemlens.study.targets``.
        method: one of ``gemlens.study.ways``: ``gradient``, ``integrated_gradients``, ``ablation``, ``direct``;
            ``functools.partial(integrated_gradients, steps=32)``.
        verify: so many features of largest effect are removed, one at a time, to compare.
        system, chat: as for ``analyze``.

    Example:
        >>> model, sae = load_model("starter"), load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
        >>> attribute(model, sae, "The capital of France is", " Paris", verify=10).strongest(5)

    Raises:
        InputError: no dictionary, one that writes only what the target is read before, a target that is not one token
            or not in the prompt, a method that does not fit them.
        MismatchError: a dictionary that does not fit the model.
        WeightsError: the model computes values that are not finite.
    """
    several: list[Dictionary] = [dictionaries] if isinstance(dictionaries, SAE | MultiLayer) else list(dictionaries)
    if not several:
        raise InputError("no dictionary was given; load one with load_sae, load_transcoder or load_clt")
    if verify < 0:
        raise InputError(f"verify {verify}: 0 removes nothing, more removes so many features")
    warnings = tuple(dict.fromkeys(chain.from_iterable(check_fit(model, dictionary) for dictionary in several)))
    text = text_of(model, prompt, system=system, chat=chat)
    goal = (logit(target) if isinstance(target, str) else target)(model, text.ids)
    read = counted(text.ids, model.bos, chat_opening(model, [dictionary.info for dictionary in several]))
    if not read.any():
        raise InputError(
            "the prompt has no token that dictionaries are applied to: BOS, and what opens a chat, are not"
        )
    run = _run(model, several, text.ids, goal)
    known = [decompose(dictionary, run.values, read) for dictionary in several]
    found = method(run, known)
    effects = tuple(chain.from_iterable(map(_effects, known, found)))
    labels, unlabelled = labelled((each.dictionary, s.features.ids.tolist()) for each in known for s in each.sources)
    return Attribution(
        prompt=text.prompt,
        system=text.system,
        prompt_text=text.fed,
        model_id=model.name,
        target=goal.name,
        value=run.clean_target(),
        method=found[0].method,
        tokens=_tokens(model, text, read, known[0]),
        effects=effects,
        completeness=tuple(map(_completeness, known, found)),
        removed=_removed(run, known, effects, verify),
        provenance=provenance_of(model),
        warnings=warnings + unlabelled,
        labels=labels,
    )


def _run(model: Model, dictionaries: Sequence[Dictionary], ids: Tensor, target: Target) -> Passes:
    reads, writes = [], []
    for dictionary in dictionaries:
        read, written = read_and_written(dictionary)
        if min(written) > target.site:
            raise InputError(
                f"{dictionary.info.id} writes {min(written)}, behind {target.site}, where the target is read: it has "
                "no effect on it; take a dictionary that writes before, or a later target"
            )
        reads += read
        writes += written
    return passes(model, ids, target, reads=reads, writes=writes)


def _effects(known: Decomposed, found: Effects) -> list[FeatureEffects]:
    terms = zip(found.features, found.bias, found.skip, found.error, strict=True)
    return [
        FeatureEffects(
            dictionary=source.info,
            writes=tuple(map(str, source.writes)),
            position=source.features.tokens.numpy(),
            feature=source.features.ids.numpy(),
            activation=source.features.values.numpy().astype(np.float32),
            effect=effect.numpy(),
            bias=bias.numpy(),
            skip=skip.numpy(),
            error=error.numpy(),
        )
        for source, (effect, bias, skip, error) in zip(known.sources, terms, strict=True)
    ]


def _completeness(known: Decomposed, found: Effects) -> Completeness:
    def total(parts: Sequence[Tensor]) -> float:
        return float(sum(part.sum() for part in parts))

    return Completeness(
        dictionary=known.dictionary.info,
        baseline=found.baseline,
        features=total(found.features),
        bias=total(found.bias),
        skip=total(found.skip),
        error=total(found.error),
        change=found.change,
    )


def _removed(
    run: Passes, known: Sequence[Decomposed], effects: Sequence[FeatureEffects], limit: int
) -> tuple[Removal, ...]:
    """The entries of largest effect in size, in that order."""
    if not limit:
        return ()
    sources = [source for each in known for source in each.sources]
    layer = np.repeat(np.arange(len(effects)), [len(each.effect) for each in effects])
    entry = np.concatenate([np.arange(len(each.effect)) for each in effects])
    predicted = np.concatenate([each.effect for each in effects])
    chosen = np.argsort(-np.abs(predicted), kind="stable")[:limit]
    actual = np.zeros(len(chosen))
    for index, source in enumerate(sources):
        mine = layer[chosen] == index
        actual[mine] = exact_effects(run, source, torch.from_numpy(entry[chosen[mine]])).numpy()
    return tuple(
        Removal(
            layer=int(layer[at]),
            position=int(effects[layer[at]].position[entry[at]]),
            feature=int(effects[layer[at]].feature[entry[at]]),
            predicted=float(predicted[at]),
            actual=float(lost),
        )
        for at, lost in zip(chosen, actual, strict=True)
    )


def _tokens(model: Model, text: Text, read: Tensor, first: Decomposed) -> tuple[TokenRecord, ...]:
    ids = text.ids.tolist()
    l0 = torch.stack([source.features.l0 for source in first.sources]).sum(dim=0).tolist()
    rows = zip(ids, pieces(model, ids), texts(model, ids), strict=True)
    return tuple(
        TokenRecord(
            position=position,
            token_id=token,
            token=piece,
            text=added,
            is_generated=False,
            is_special=token in model.special_ids,
            l0=l0[position] if read[position] else None,
            features=(),
        )
        for position, (token, piece, added) in enumerate(rows)
    )
