"""Every MLP of a model replaced at once by what transcoders make of its input: what is left of the model.

On the first 8,192 tokens, in rows of 128 with BOS, position 0 neither edited nor counted:

1. a clean pass, which gives the transcoders' errors as well;
2. all replaced, without errors: KL(clean || spliced) in nats a token, agreement on the likeliest token, cross-entropy;
3. all replaced, with these errors: the logits have to be the model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.lm.gemma import Model, activations, logits
from gemlens.records import DictionaryInfo, SetFidelity, series_name
from gemlens.scope.multilayer import MultiLayer
from gemlens.sites import Site
from gemlens.study.fidelity import LOSS_ROWS, above_clean, some_rows
from gemlens.study.fit_check import check_fit
from gemlens.study.outputs import outputs
from gemlens.study.replacement import Transcoders, errors_of, replaced, sites_of

__all__ = ["set_fidelity"]


def set_fidelity(
    model: Model,
    transcoders: Transcoders,
    texts: Iterable[str],
    *,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> SetFidelity:
    """Measure a transcoder for each of some layers, or a CLT, all at once.

    Args:
        texts: documents they were not trained on; 8,192 tokens are used, fewer if there are fewer.
        report: called with rows done and rows to do.

    Raises:
        InputError: less than two rows of 128 tokens, or transcoders that cannot stand in together.
        MismatchError: one of them does not fit the model.
    """
    sites = sites_of(transcoders)  # raises for those that cannot stand in together
    dictionaries = [transcoders] if isinstance(transcoders, MultiLayer) else transcoders
    warnings = [warning for dictionary in dictionaries for warning in check_fit(model, dictionary)]
    rows = some_rows(model, texts, LOSS_ROWS)
    compared: list[_Compared] = []
    for done, row in enumerate(rows.split(1), 1):
        compared.append(_compare(model, transcoders, sites, row))
        report(done, len(rows))
    clean, spliced, kl, agreement, logit_error = (
        torch.stack(column).double() for column in zip(*compared, strict=True)
    )
    infos = [dictionary.info for dictionary in dictionaries]
    return SetFidelity(
        name=_name(infos),
        release=infos[0].release,
        layers=tuple(sorted(part.writes.layer for dictionary in dictionaries for part in outputs(dictionary))),
        model_id=model.name,
        tokens=rows.numel(),
        ce_clean=float(clean.mean()),
        spliced=above_clean(spliced, clean),
        kl=float(kl.mean()),
        kl_standard_error=float(kl.std() / math.sqrt(len(kl))),
        agreement=float(agreement.mean()),
        logit_error=float(logit_error.max()),
        warnings=tuple(warnings),
    )


class _Compared(NamedTuple):
    """Of one row: means over its predictions, of ``logit_error`` the largest."""

    clean: Tensor
    spliced: Tensor
    kl: Tensor
    agreement: Tensor
    logit_error: Tensor


@torch.no_grad()
def _compare(model: Model, transcoders: Transcoders, sites: Sequence[Site], row: Tensor) -> _Compared:
    last = Site(model.n_layers - 1, "resid_post")
    found = activations(model, row, [*sites, last])
    clean = _scores(model, found[last])
    with replaced(model, transcoders):
        spliced = _scores(model, activations(model, row, [last])[last])
    with replaced(model, transcoders, errors=errors_of(transcoders, found)):
        same = _scores(model, activations(model, row, [last])[last])
    next_ids = row[0, 2:].to(clean.device)
    kl = F.kl_div(spliced.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none").sum(dim=-1)
    agree = spliced.argmax(dim=-1) == clean.argmax(dim=-1)
    figures = (
        F.cross_entropy(clean, next_ids),
        F.cross_entropy(spliced, next_ids),
        kl.mean(),
        agree.float().mean(),
        (same - clean).abs().max(),
    )
    return _Compared(*(figure.cpu() for figure in figures))


def _scores(model: Model, residual: Tensor) -> Tensor:
    """Logits of the predictions made at positions 1 to n - 2 of [1, n, d_model]."""
    return logits(model, residual[0, 1:-1]).float()


def _name(infos: Sequence[DictionaryInfo]) -> str:
    names = {series_name(info.path or f"{info.category}/{info.id}") for info in infos}
    return names.pop() if len(names) == 1 else f"{len(infos)} transcoders"
