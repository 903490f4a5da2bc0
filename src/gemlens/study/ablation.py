"""What a prompt's predictions lose when features are taken out: each alone, and all together.

All variants are rows of batches: a row scales the activation of each feature by 1 or 0, and the row of ones is the
model as it is, to the bit. KL is of the distribution of the next token, before against after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.following import Tokens
from gemlens.lm.gemma import Model, activations, generate, logits
from gemlens.lm.text import pieces, texts
from gemlens.records.edits import AblatedFeature, Ablation, EditedToken, NextToken
from gemlens.scope.sae import SAE
from gemlens.scope.selected import Selected, select
from gemlens.sites import Site
from gemlens.study.analysis import provenance_of, text_of
from gemlens.study.fit_check import check_fit
from gemlens.study.intervene import steer
from gemlens.study.labelled import labelled
from gemlens.study.places import Active, Places, Positions, in_words

__all__ = ["ablation"]

# Variants read together, and tokens whose logits are held together: 64 x 262,144 are 67 MB.
_ROWS, _TOKENS = 16, 64


def ablation(
    model: Model,
    chosen: Sequence[tuple[SAE, Sequence[int]]],
    prompt: str,
    *,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    system: str | None = None,
    chat: bool | None = None,
    top_k: int = 10,
    max_new_tokens: int = 0,
    temperature: float = 0.7,
    top_p: float = 0.95,
    greedy: bool = False,
    seed: int = 0,
) -> Ablation:
    """Read ``prompt`` with and without some features.

    Args:
        chosen: dictionaries, each with the features to take out of what it writes.
        positions, where, bos: as for ``ablate``.
        top_k: continuations to list, of those likely before and of those likely after.
        max_new_tokens: tokens to generate with and without; 0 reads the prompt only.

    Raises:
        InputError: no feature, one that does not exist, positions that the prompt does not have.
        MismatchError: a dictionary that does not fit the model.
    """
    warnings = tuple(said for dictionary, _ in chosen for said in check_fit(model, dictionary))
    selected = [select(dictionary, features) for dictionary, features in chosen]
    if not any(map(len, selected)):
        raise InputError("no feature was given; name at least one to take out")
    if top_k < 1:
        raise InputError(f"top_k {top_k}: list at least 1 token")
    text = text_of(model, prompt, system=system, chat=chat, room=max_new_tokens)
    known = [(dictionary, part.ids) for (dictionary, _), part in zip(chosen, selected, strict=True)]
    where_to = {"positions": positions, "where": where, "bos": bos}
    count = sum(map(len, selected))
    factors = torch.cat([torch.ones(1, count), torch.zeros(1, count), 1 - torch.eye(count)])
    residuals = _residuals(model, text.ids, known, factors, where_to)
    kl, losses = _measured(model, text.ids, residuals)
    sampled = bool(max_new_tokens) and not greedy and temperature > 0
    options = {"temperature": temperature, "top_p": top_p, "greedy": greedy, "seed": seed}
    before, after = _answers(model, text.ids, known, factors[:2], where_to, max_new_tokens, options)
    places = Places.of(model, [part.info for part in selected], positions, where, bos)
    mask = _edited(model, text.ids, places)
    labels, unlabelled = labelled(known)
    return Ablation(
        prompt=prompt,
        system=system,
        prompt_text=text.fed,
        model_id=model.name,
        dictionaries=tuple(part.info for part in selected),
        positions=in_words(positions, where),
        tokens=_tokens(model, text.ids, mask, kl[1], losses[:2]),
        features=tuple(_features(model, text.ids, selected, mask, kl[2:], losses[2:] - losses[0])),
        next_tokens=_next(model, text.ids, residuals[:2, -1], top_k),
        answer_before=before,
        answer_after=after,
        provenance=provenance_of(model, seed, temperature if sampled else None, top_p if sampled else None),
        warnings=warnings + unlabelled,
        labels=labels,
    )


@contextmanager
def _scaled(
    model: Model, known: Sequence[tuple[SAE, Sequence[int]]], factors: Tensor, where_to: dict[str, Any]
) -> Iterator[None]:
    """Activations times ``factors`` [texts, features of all dictionaries]."""
    with ExitStack() as stack:
        parts = factors.split([len(features) for _, features in known], dim=1)
        for (dictionary, features), part in zip(known, parts, strict=True):
            stack.enter_context(steer(model, dictionary, features, part, mode="scale", **where_to))
        yield


def _residuals(
    model: Model,
    ids: Tensor,
    known: Sequence[tuple[SAE, Sequence[int]]],
    factors: Tensor,
    where_to: dict[str, Any],
) -> Tensor:
    """[variants, n, d_model], the last block's output."""
    last = Site(model.n_layers - 1, "resid_post")
    found = []
    for part in factors.split(_ROWS):
        with _scaled(model, known, part, where_to):
            found.append(activations(model, ids.expand(len(part), -1), [last])[last])
    return torch.cat(found)


@torch.no_grad()
def _measured(model: Model, ids: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """KL(before || after) [variants, n], and the loss of each token that follows [variants, n - 1]; on the CPU."""
    followers = ids[1:].to(model.device)
    divergences: list[Tensor] = []
    losses: list[Tensor] = []
    for start in range(0, len(ids), _TOKENS):
        part = residuals[:, start : start + _TOKENS]
        follow = followers[start : start + _TOKENS, None]
        before = _log_probabilities(model, part[0])
        of_part = []
        for each in part:
            after = _log_probabilities(model, each)
            kl = (before.exp() * (before - after)).sum(-1).clamp(min=0)
            of_part.append((kl, -after[: len(follow)].gather(-1, follow)[:, 0]))
        for total, column in zip((divergences, losses), zip(*of_part, strict=True), strict=True):
            total.append(torch.stack(column))
    return torch.cat(divergences, dim=1).cpu(), torch.cat(losses, dim=1).cpu()


def _log_probabilities(model: Model, residual: Tensor) -> Tensor:
    return logits(model, residual).float().log_softmax(-1)


def _edited(model: Model, ids: Tensor, places: Places) -> Tensor:
    """bool [n], the prompt's tokens that are touched."""
    row = ids[None].to(model.device)
    n = len(ids)
    tokens = Tokens(
        row, torch.arange(n, device=model.device)[None], row, torch.tensor([[n]], device=model.device), True
    )
    mask = places.mask(tokens)
    if places.where is not None:
        site = places.where.feature.reads
        mask = mask & places.where.at(activations(model, row, [site])[site])
    return mask[0].cpu()


def _tokens(model: Model, ids: Tensor, mask: Tensor, kl: Tensor, losses: Tensor) -> tuple[EditedToken, ...]:
    before, after = ([*each.tolist(), None] for each in losses)
    numbers = ids.tolist()
    rows = zip(
        numbers, pieces(model, numbers), texts(model, numbers), mask.tolist(), kl.tolist(), before, after, strict=True
    )
    return tuple(
        EditedToken(position, token, piece, added, token in model.special_ids, edited, *figures)
        for position, (token, piece, added, edited, *figures) in enumerate(rows)
    )


def _features(
    model: Model, ids: Tensor, selected: Sequence[Selected], mask: Tensor, kl: Tensor, changes: Tensor
) -> Iterator[AblatedFeature]:
    sites = [part.reads for part in selected]
    found = activations(model, ids[None], sites)
    row = 0
    for index, part in enumerate(selected):
        acts = part.encode(found[part.reads][0].to(part.device)).cpu() * mask[:, None]
        for column, feature in enumerate(part.ids):
            strongest = float(acts[:, column].max())
            yield AblatedFeature(
                dictionary=index,
                feature_id=feature,
                max_activation=strongest,
                position=int(acts[:, column].argmax()) if strongest > 0 else None,
                active_tokens=int((acts[:, column] > 0).sum()),
                kl=float(kl[row, 1:].mean()) if len(ids) > 1 else 0.0,
                kl_last=float(kl[row, -1]),
                loss_change=float(changes[row].mean()) if len(ids) > 1 else 0.0,
            )
            row += 1


def _next(model: Model, ids: Tensor, ends: Tensor, top_k: int) -> tuple[NextToken, ...]:
    """The likeliest before and after, of the last token's residuals [2, d_model]."""
    before, after = _log_probabilities(model, ends).exp().cpu()
    wanted = {*before.topk(top_k).indices.tolist(), *after.topk(top_k).indices.tolist()}
    order = sorted(wanted, key=lambda token: -float(before[token]))
    names = [texts(model, [*ids.tolist(), token])[-1] or pieces(model, [token])[0] for token in order]
    return tuple(
        NextToken(token, name, float(before[token]), float(after[token]))
        for token, name in zip(order, names, strict=True)
    )


def _answers(
    model: Model,
    ids: Tensor,
    known: Sequence[tuple[SAE, Sequence[int]]],
    factors: Tensor,
    where_to: dict[str, Any],
    new: int,
    options: dict[str, Any],
) -> tuple[str, str]:
    """What the model adds as it is, and edited; both draw the same random numbers."""
    if not new:
        return "", ""
    with _scaled(model, known, factors, where_to):
        both, _ = generate(model, ids.expand(2, -1), [], max_new_tokens=new, alike=True, **options)
    before, after = (_answer(model, row.tolist(), len(ids)) for row in both)
    return before, after


def _answer(model: Model, ids: list[int], n: int) -> str:
    added = zip(ids[n:], texts(model, ids)[n:], strict=True)
    return "".join(text for token, text in added if token not in model.special_ids)
