"""Logit lenses: which tokens a feature speaks for, and what each layer of a model would predict.

A feature's lens is what its decoder row adds to the logits, through the final norm's weight and the head, above what it
adds to every token alike (``lm.lens``). Of a CLT's features the rows for all layers that they write are added up: all
of them are added to the residual stream. Those of a crosscoder each stand for the stream as a whole: the last is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, logits
from gemlens.lm.lens import feature_logits, residual_rows
from gemlens.lm.text import pieces, texts
from gemlens.records import TokenRecord
from gemlens.records.lens import FeatureLens, FeatureTokens, ResidualLens, TokenLogit
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.selected import select
from gemlens.sites import Site
from gemlens.study.analysis import provenance_of, text_of
from gemlens.study.fit_check import check_fit
from gemlens.study.labelled import labelled

__all__ = ["lens", "residual_lens"]

# Rows of logits, each of 262,144 tokens of float32, that are held at a time.
_TOGETHER = 64


def lens(
    model: Model,
    dictionary: SAE | MultiLayer,
    features: Sequence[int],
    *,
    top_k: int = 10,
    layer: int | None = None,
    shipped: Mapping[int, Sequence[int]] | None = None,
) -> FeatureLens:
    """Find the tokens that features speak for and against.

    Args:
        top_k: tokens to list, of each end.
        layer: of a CLT or crosscoder, the layer that the features read.
        shipped: by feature, the ids of top tokens that came with the dictionary, to compare.

    Example:
        >>> model, sae = load_model("starter"), load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
        >>> [token.text for token in lens(model, sae, [7]).features[0].top]

    Raises:
        InputError: a feature that does not exist, none at all, ``top_k`` out of range, or a dictionary of what an MLP
            is fed.
        MismatchError: the dictionary does not fit the model.
    """
    warnings = tuple(check_fit(model, dictionary))
    vocabulary = model.config.vocab_size
    if not 1 <= top_k <= vocabulary:
        raise InputError(f"top_k {top_k}: list 1 to {vocabulary} tokens")
    if not features:
        raise InputError("no feature was given; name some by their numbers")
    chosen = select(dictionary, features, layer=layer)
    sites = chosen.writes if isinstance(dictionary, SAE) or dictionary.is_transcoder else chosen.writes[-1:]
    rows = torch.stack([residual_rows(model, site, chosen.rows[site]).float() for site in sites]).sum(dim=0)
    found = []
    for ids, part in zip(_parts(chosen.ids), rows.split(_TOGETHER), strict=True):
        scores = feature_logits(model, part.to(model.device))
        ends = [scores.topk(top_k, dim=1, largest=largest) for largest in (True, False)]
        for index, feature in enumerate(ids):
            top, bottom = (_tokens(model, end.indices[index], end.values[index]) for end in ends)
            theirs = (shipped or {}).get(feature)
            found.append(FeatureTokens(feature, top, bottom, tuple(map(int, theirs)) if theirs is not None else None))
    info = dictionary.info
    if isinstance(dictionary, MultiLayer):
        info = replace(
            info, site=str(chosen.reads), layer=chosen.reads.layer, width=dictionary.layer(chosen.reads).encoder.width
        )
    labels, unlabelled = labelled([(dictionary, chosen.ids)])
    return FeatureLens(
        model_id=model.name,
        dictionary=info,
        writes=tuple(map(str, sites)),
        features=tuple(found),
        provenance=provenance_of(model),
        warnings=warnings + unlabelled,
        labels=labels,
    )


def _parts(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[start : start + _TOGETHER] for start in range(0, len(ids), _TOGETHER)]


def _tokens(model: Model, ids: Tensor, scores: Tensor) -> tuple[TokenLogit, ...]:
    return tuple(
        TokenLogit(token, _text(model, token), score)
        for token, score in zip(ids.tolist(), scores.tolist(), strict=True)
    )


def _text(model: Model, token: int) -> str:
    return str(model.tokenizer.decode([token], clean_up_tokenization_spaces=False)) or pieces(model, [token])[0]


def residual_lens(
    model: Model, prompt: str, *, top_k: int = 5, system: str | None = None, chat: bool | None = None
) -> ResidualLens:
    """Read every layer's residual stream as if it were the last one's.

    Args:
        top_k: tokens to list for each layer and position.
        system, chat: as for ``analyze``.

    Raises:
        InputError: as for ``analyze``, and ``top_k`` out of range.
        WeightsError: the model computes values that are not finite.
    """
    vocabulary = model.config.vocab_size
    if not 1 <= top_k <= vocabulary:
        raise InputError(f"top_k {top_k}: list 1 to {vocabulary} tokens")
    text = text_of(model, prompt, system=system, chat=chat)
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    found = activations(model, text.ids[None], sites)
    likeliest = torch.cat([logits(model, part).argmax(dim=-1) for part in found[sites[-1]][0].split(_TOGETHER)])
    layers = [_predictions(model, found[site][0], likeliest, top_k) for site in sites]
    ids, probability, final, rank = (torch.stack(each).cpu().numpy() for each in zip(*layers, strict=True))
    return ResidualLens(
        prompt=text.prompt,
        system=text.system,
        prompt_text=text.fed,
        model_id=model.name,
        tokens=_records(model, text.ids.tolist()),
        token_ids=ids,
        probability=probability.astype(np.float32),
        final=final.astype(np.float32),
        rank=rank,
        texts={token: _text(model, token) for token in np.unique(ids).tolist()},
        provenance=provenance_of(model),
    )


@torch.no_grad()
def _predictions(
    model: Model, residual: Tensor, likeliest: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and probabilities [n, top_k] after one layer; probability and rank [n] of ``likeliest``."""
    parts = []
    for state, token in zip(residual.split(_TOGETHER), likeliest.split(_TOGETHER), strict=True):
        scores = logits(model, state).float()
        top = scores.topk(top_k, dim=-1)
        total = scores.logsumexp(dim=-1, keepdim=True)
        own = scores.gather(1, token[:, None])
        parts.append((top.indices, (top.values - total).exp(), (own - total).exp()[:, 0], (scores > own).sum(dim=1)))
    ids, probability, final, rank = (torch.cat(each) for each in zip(*parts, strict=True))
    return ids, probability, final, rank


def _records(model: Model, ids: list[int]) -> tuple[TokenRecord, ...]:
    rows = zip(ids, pieces(model, ids), texts(model, ids), strict=True)
    return tuple(
        TokenRecord(
            position, token, piece, added, False, token in model.special_ids, None if token == model.bos else 0, ()
        )
        for position, (token, piece, added) in enumerate(rows)
    )
