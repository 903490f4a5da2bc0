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
from collections.abc import Callable, Iterable
from contextlib import suppress
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
from gemlens.lm.hooks import StopForward
from gemlens.lm.resume import CleanPass, clean_pass, resume
from gemlens.lm.stream import activation_stream
from gemlens.lm.text import encode_documents
from gemlens.records import Fidelity, LossWith
from gemlens.scope.sae import SAE
from gemlens.study.activity import Activity, activity
from gemlens.study.fit_check import check_fit
from gemlens.study.linear import LinearFit
from gemlens.study.verdict import verdict

__all__ = ["DEAD_TOKENS", "LENGTH", "VARIANCE_ROWS", "activity_on", "fidelity", "rows_of"]

LENGTH = 128
DEAD_TOKENS = 1_000_000
VARIANCE_ROWS, _LOSS_ROWS = 512, 64
_TOGETHER = 16


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
    warnings = check_fit(model, dictionary)
    rows = list(islice(rows_of(model, texts), VARIANCE_ROWS))
    if len(rows) < 2:
        raise InputError(f"the text fills {len(rows)} rows of {LENGTH} tokens; fidelity needs 2, and wants 512")
    tokens = torch.from_numpy(np.stack(rows))
    loss_rows = tokens[:_LOSS_ROWS]
    before_mix = len(tokens) + len(loss_rows)
    total = before_mix + (DEAD_TOKENS // (LENGTH - 1) if mix is not None else 0)
    measured = _reconstruction(model, dictionary, tokens, lambda done: report(done, total))
    losses = _losses(model, dictionary, loss_rows, measured.mean, lambda done: report(len(tokens) + done, total))
    seen = None
    if mix is not None:
        seen = activity_on(model, dictionary, mix, lambda done: report(before_mix + done // (LENGTH - 1), total))
    result = Fidelity(
        dictionary=dictionary.info,
        writes=str(dictionary.writes),
        model_id=model.name,
        tokens_measured=tokens.numel(),
        ce_tokens=loss_rows.numel(),
        ce_clean=float(losses["clean"].mean()),
        spliced=_against_clean(losses, "spliced"),
        zeroed=_against_clean(losses, "zeroed"),
        mean_ablated=_against_clean(losses, "mean"),
        dead=seen.dead if seen else None,
        dead_tokens=seen.tokens if seen else 0,
        verdict=(),
        warnings=tuple(warnings),
        **measured.figures,
    )
    return verdict(result)


def rows_of(model: Model, texts: Iterable[str], length: int = LENGTH) -> Iterable[NDArray[np.int64]]:
    """Documents as rows of ``length`` token ids, BOS first."""
    return pack(texts, partial(encode_documents, model), bos=model.bos, length=length)


def activity_on(
    model: Model, dictionary: SAE, mix: Iterable[str], report: Callable[[int], None] = lambda _done: None
) -> Activity:
    """How often and how strongly each feature fires on the first million tokens of ``mix``."""
    stream = activation_stream(model, rows_of(model, mix), [dictionary.reads])
    return activity(dictionary, (found[dictionary.reads] for found in stream), DEAD_TOKENS, report=report)


class _Measured(NamedTuple):
    figures: dict[str, Any]
    mean: Tensor
    """[d_out], of the site that is written."""


def _reconstruction(model: Model, dictionary: SAE, tokens: Tensor, report: Callable[[int], None]) -> _Measured:
    """Stage 1. Holds the activations of all tokens: 65,536 x d floats."""
    targets, errors, cosines, l0, l0_bos = [], [], [], [], []
    fired = torch.zeros(dictionary.width, dtype=torch.bool)
    linear = LinearFit()
    for part in tokens.split(_TOGETHER):
        found = activations(model, part, [dictionary.reads, dictionary.writes])
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
        fired[features.ids.cpu()] = True
        report(sum(len(chunk) for chunk in l0) // (LENGTH - 1))
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
    model: Model, dictionary: SAE, tokens: Tensor, mean: Tensor, report: Callable[[int], None]
) -> dict[str, Tensor]:
    """Stage 2: for each kind of edit the mean loss of each row, [rows]."""
    losses: dict[str, list[Tensor]] = {name: [] for name in ("clean", "spliced", "zeroed", "mean")}
    for done, row in enumerate(tokens.split(1), 1):
        clean = clean_pass(model, row, min(dictionary.reads.layer, dictionary.writes.layer))
        read = _read_again(model, dictionary, clean)
        recon = dictionary.reconstruct(read[0]).to(clean.entry)[None]
        edits = {"spliced": recon, "zeroed": torch.zeros_like(recon), "mean": mean.to(recon).expand_as(recon)}
        losses["clean"].append(_row_loss(model, clean.residual, row))
        for name, value in edits.items():
            losses[name].append(_row_loss(model, _resume_with(model, dictionary, clean, value), row))
        report(done)
    return {name: torch.stack(values).double() for name, values in losses.items()}


def _read_again(model: Model, dictionary: SAE, clean: CleanPass) -> Tensor:
    """[batch, n, d_in] at the site the dictionary reads, from a clean pass."""
    with reading(model, [dictionary.reads], stop=True) as found, suppress(StopForward):
        resume(model, clean)
    return found[dictionary.reads][0]


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
