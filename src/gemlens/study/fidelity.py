"""Does a dictionary say what the model's activations say? Always check before believing a feature.

The protocol, the same everywhere in the project: rows of 128 tokens with BOS, float32, position 0 neither edited
nor counted.

1. On the first 65,536 tokens, without the head: L0, variance explained, cosine, norms; and what the best linear map
   of rank L0 explains of the same tokens (``linear``).
2. On the first 8,192 tokens, taken up again at the site's layer with the clean pass shared: cross-entropy clean,
   with the site replaced by its reconstruction (spliced), by zero and by its mean.
3. If text of the training mix is given: the share of features that never fire on a million tokens of it (dead).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gemlens.data.corpus import pack
from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, logits, reading, writing
from gemlens.lm.resume import CleanPass, clean_pass, resume
from gemlens.lm.stream import activation_stream
from gemlens.lm.text import encode_documents
from gemlens.records import Fidelity, LossWith
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.activity import Activity, activities
from gemlens.study.fit_check import check_fit
from gemlens.study.linear import LinearFit
from gemlens.study.verdict import verdict

__all__ = ["DEAD_TOKENS", "LENGTH", "VARIANCE_ROWS", "fidelities", "fidelity", "rows_of"]

LENGTH = 128
DEAD_TOKENS = 1_000_000
VARIANCE_ROWS, _LOSS_ROWS = 512, 64
_TOGETHER = 16
_EDITS = ("clean", "spliced", "zeroed", "mean")


def fidelity(
    model: Model,
    dictionary: SAE,
    texts: Iterable[str],
    *,
    mix: Iterable[str] | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Fidelity:
    """Measure a dictionary on text, by the project's protocol.

    Args:
        texts: documents the dictionary was not trained on; 65,536 tokens are used, fewer if there are fewer.
        mix: documents of the kind it was trained on, to count dead features over 1,000,000 tokens of.
        report: called with rows done and rows to do.

    Raises:
        InputError: less than two rows of 128 tokens.
        MismatchError: the dictionary does not fit the model.
    """
    return fidelities(model, [dictionary], texts, mix=mix, report=report)[0]


def fidelities(
    model: Model,
    dictionaries: Sequence[SAE],
    texts: Iterable[str],
    *,
    loss_rows: int = _LOSS_ROWS,
    mix: Iterable[str] | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Fidelity]:
    """Measure each as ``fidelity`` would, all of them on the same passes of the model.

    What several read and write is held for all of the text: 168 MB a site for 65,536 tokens of 640 numbers.

    Args:
        loss_rows: of 128 tokens, to take cross-entropies on: 2 or more; the protocol's are 64.
    """
    warnings = [check_fit(model, each) for each in dictionaries]
    tokens = _tokens(model, texts)
    for_loss = tokens[:loss_rows]
    before_mix = len(tokens) + len(for_loss)
    total = before_mix + (DEAD_TOKENS // (LENGTH - 1) if mix is not None else 0)
    measured = _reconstructions(model, dictionaries, tokens, lambda done: report(done, total))
    means = [each.mean for each in measured]
    losses = _losses(model, dictionaries, for_loss, means, lambda done: report(len(tokens) + done, total))
    seen: Sequence[Activity | None] = [None] * len(dictionaries)
    if mix is not None:
        stream = activation_stream(model, rows_of(model, mix), sorted({each.reads for each in dictionaries}))
        seen = activities(
            dictionaries, stream, DEAD_TOKENS, report=lambda done: report(before_mix + done // (LENGTH - 1), total)
        )
    return [
        verdict(
            Fidelity(
                dictionary=dictionary.info,
                writes=str(dictionary.writes),
                model_id=model.name,
                tokens_measured=tokens.numel(),
                ce_tokens=for_loss.numel(),
                ce_clean=float(lost["clean"].mean()),
                spliced=_against_clean(lost, "spliced"),
                zeroed=_against_clean(lost, "zeroed"),
                mean_ablated=_against_clean(lost, "mean"),
                dead=activity.dead if activity else None,
                dead_tokens=activity.tokens if activity else 0,
                verdict=(),
                warnings=tuple(warned),
                **found.figures,
            )
        )
        for dictionary, warned, found, lost, activity in zip(
            dictionaries, warnings, measured, losses, seen, strict=True
        )
    ]


def _tokens(model: Model, texts: Iterable[str]) -> Tensor:
    """[rows, 128] ids, 512 rows at most."""
    rows = list(islice(rows_of(model, texts), VARIANCE_ROWS))
    if len(rows) < 2:
        raise InputError(f"the text fills {len(rows)} rows of {LENGTH} tokens; fidelity needs 2, and wants 512")
    return torch.from_numpy(np.stack(rows))


def rows_of(model: Model, texts: Iterable[str], length: int = LENGTH) -> Iterable[NDArray[np.int64]]:
    """Documents as rows of ``length`` token ids, BOS first."""
    return pack(texts, partial(encode_documents, model), bos=model.bos, length=length)


class _Measured(NamedTuple):
    figures: dict[str, Any]
    mean: Tensor
    """[d_out], of the site that is written."""


def _reconstructions(
    model: Model, dictionaries: Sequence[SAE], tokens: Tensor, report: Callable[[int], None]
) -> list[_Measured]:
    """Stage 1. A single dictionary is measured as the passes go."""
    sites = sorted({site for each in dictionaries for site in (each.reads, each.writes)})
    passes: Iterable[dict[Site, Tensor]] = _passes(model, tokens, sites, report)
    if len(dictionaries) > 1:
        passes = list(passes)
    return [_reconstruction(each, passes) for each in dictionaries]


def _passes(
    model: Model, tokens: Tensor, sites: list[Site], report: Callable[[int], None]
) -> Iterator[dict[Site, Tensor]]:
    done = 0
    for part in tokens.split(_TOGETHER):
        yield activations(model, part, sites)
        done += len(part)
        report(done)


def _reconstruction(dictionary: SAE, passes: Iterable[dict[Site, Tensor]]) -> _Measured:
    """Holds what is written of all tokens: 65,536 x d floats."""
    targets, errors, cosines, l0, l0_bos = [], [], [], [], []
    fired = torch.zeros(dictionary.width, dtype=torch.bool)
    linear = LinearFit()
    for found in passes:
        after_bos = {site: x[:, 1:].flatten(0, 1).float() for site, x in found.items()}
        read, target = after_bos[dictionary.reads], after_bos[dictionary.writes]
        features = dictionary.encode(read)
        recon = dictionary.decode(features).float()
        if dictionary.skip is not None:
            recon = recon + read @ dictionary.skip.float()
        linear.add(read, target)
        targets.append(target)
        errors.append((target - recon).pow(2).sum(dim=1))
        cosines.append(F.cosine_similarity(target, recon, dim=1))
        l0.append(features.l0.float())
        l0_bos.append(dictionary.encode(found[dictionary.reads][:, 0].float()).l0.float())
        fired[features.ids] = True
    target, error = torch.cat(targets).double(), torch.cat(errors).double()
    norm = target.norm(dim=1)
    ordinary = norm <= norm.quantile(0.99)
    deviation = (target - target.mean(dim=0)).pow(2).sum(dim=1)
    deviation_ordinary = (target[ordinary] - target[ordinary].mean(dim=0)).pow(2).sum()
    fvu = float(error.sum() / deviation.sum())
    mean_l0 = float(torch.cat(l0).mean())
    by_rank = linear.explained()
    figures = {
        "l0": mean_l0,
        "l0_at_bos": float(torch.cat(l0_bos).mean()),
        "variance_explained": 1 - fvu,
        "fvu": fvu,
        "variance_explained_trimmed": 1 - float(error[ordinary].sum() / deviation_ordinary),
        "variance_explained_tutorial": 1 - float(error.sum() / target.numel() / target.var()),
        "variance_explained_tutorial_of_mean": 1 - float(deviation.sum() / target.numel() / target.var()),
        "variance_explained_pca": float(by_rank[: round(mean_l0) + 1][-1]),
        "variance_explained_linear": float(by_rank[-1]) if dictionary.is_transcoder else None,
        "cosine": float(torch.cat(cosines).mean()),
        "silent": float((~fired).float().mean()),
        "high_norm_share": float(deviation[~ordinary].sum() / deviation.sum()),
        "norm_max_over_median": float(norm.max() / norm.median()),
    }
    return _Measured(figures, target.mean(dim=0).float())


def _losses(
    model: Model, dictionaries: Sequence[SAE], tokens: Tensor, means: Sequence[Tensor], report: Callable[[int], None]
) -> list[dict[str, Tensor]]:
    """Stage 2: of each dictionary, for each kind of edit the mean loss of each row, [rows]."""
    losses: list[dict[str, list[Tensor]]] = [{name: [] for name in _EDITS} for _ in dictionaries]
    sites = sorted({each.reads for each in dictionaries})
    for done, row in enumerate(tokens.split(1), 1):
        with reading(model, sites) as read:
            clean = clean_pass(model, row, min(each.writes.layer for each in dictionaries))
        loss = _row_loss(model, clean.residual, row)
        for dictionary, mean, lost in zip(dictionaries, means, losses, strict=True):
            recon = dictionary.reconstruct(read[dictionary.reads][0][0]).to(clean.entry)[None]
            edits = {"spliced": recon, "zeroed": torch.zeros_like(recon), "mean": mean.to(recon).expand_as(recon)}
            start = clean.at(dictionary.writes.layer)
            lost["clean"].append(loss)
            for name, value in edits.items():
                lost[name].append(_row_loss(model, _resume_with(model, dictionary, start, value), row))
        report(done)
    return [{name: torch.stack(values).double() for name, values in lost.items()} for lost in losses]


def _resume_with(model: Model, dictionary: SAE, clean: CleanPass, value: Tensor) -> Tensor:
    """The last block's output with ``value`` at the site that is written, position 0 left as it was."""

    def edit(old: Tensor) -> Tensor:
        return torch.cat([old[:, :1], value[:, 1:]], dim=1)

    with writing(model, dictionary.writes, edit):
        return resume(model, clean)


def _row_loss(model: Model, residual: Tensor, row: Tensor) -> Tensor:
    """Mean cross-entropy of the predictions made at positions 1 to n - 2 of [1, n] tokens."""
    scores = logits(model, residual[0, 1:-1]).float()
    return F.cross_entropy(scores, row[0, 2:].to(scores.device)).cpu()


def _against_clean(losses: dict[str, Tensor], name: str) -> LossWith:
    difference = losses[name] - losses["clean"]
    error = float(difference.std() / math.sqrt(len(difference)))
    return LossWith(float(losses[name].mean()), float(difference.mean()), error)
