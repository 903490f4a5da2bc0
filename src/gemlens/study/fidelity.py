"""Does a dictionary say what the model's activations say? Always check before believing a feature.

The protocol, the same everywhere in the project: rows of 128 tokens with BOS, float32, position 0 neither edited
nor counted.

1. On the first 65,536 tokens, without the head: L0, variance explained, cosine, norms; and what the best linear map
   of rank L0 explains of the same tokens (``reconstruction``, ``linear``).
2. On the first 8,192 tokens, taken up again at the site's layer with the clean pass shared: cross-entropy clean,
   with the site replaced by its reconstruction (spliced), by zero and by its mean (``losses``).
3. If text of the training mix is given: the share of features that never fire on a million tokens of it (dead).

Several dictionaries share every pass over the text; each is measured as it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.data.corpus import pack
from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.stream import activation_stream
from gemlens.lm.text import encode_documents
from gemlens.records import Fidelity, LossWith
from gemlens.scope.sae import SAE
from gemlens.study.activity import Activity, activities, density
from gemlens.study.fit_check import check_fit
from gemlens.study.losses import losses
from gemlens.study.outputs import Dictionary, outputs
from gemlens.study.reconstruction import reconstructions
from gemlens.study.verdict import verdict

__all__ = [
    "DEAD_TOKENS",
    "LENGTH",
    "LOSS_ROWS",
    "VARIANCE_ROWS",
    "above_clean",
    "activities_on",
    "fidelities",
    "fidelity",
    "rows_of",
    "some_rows",
]

LENGTH = 128
DEAD_TOKENS = 1_000_000
VARIANCE_ROWS, LOSS_ROWS = 512, 64


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
    dictionaries: Sequence[Dictionary],
    texts: Iterable[str],
    *,
    loss_rows: int = LOSS_ROWS,
    mix: Iterable[str] | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Fidelity]:
    """Measure several dictionaries on the same text, which the model reads once for all of them.

    Args:
        dictionaries: SAEs and transcoders; CLTs and crosscoders give a record for each layer, of what all their layers
            write there together.
        loss_rows: of 128 tokens, to take cross-entropies on: 2 or more; the protocol's are 64.
        texts, mix, report: as for ``fidelity``.

    Returns:
        One record for each site that each dictionary writes, in order. A dictionary's figures do not depend on the
        others.

    Raises:
        InputError, MismatchError: as ``fidelity``; and no dictionary.
    """
    if not dictionaries:
        raise InputError("no dictionary was given; load one with load_sae, load_transcoder or load_clt")
    warnings = [tuple(check_fit(model, dictionary)) for dictionary in dictionaries for _ in outputs(dictionary)]
    parts = [part for dictionary in dictionaries for part in outputs(dictionary)]
    tokens = some_rows(model, texts, VARIANCE_ROWS)
    for_loss = tokens[:loss_rows]
    before_mix = len(tokens) + len(for_loss) * len(parts)
    total = before_mix + (DEAD_TOKENS // (LENGTH - 1) if mix is not None else 0)
    measured = reconstructions(model, dictionaries, tokens, lambda done: report(done, total))
    means = {part.writes: each.mean for part, each in zip(parts, measured, strict=True)}
    cost = losses(model, dictionaries, for_loss, means, lambda done: report(len(tokens) + done, total))
    seen: Sequence[Activity | None] = [None] * len(parts)
    if mix is not None:
        seen = activities_on(model, dictionaries, mix, lambda done: report(before_mix + done // (LENGTH - 1), total))
    return [
        verdict(
            Fidelity(
                dictionary=part.info,
                writes=str(part.writes),
                model_id=model.name,
                tokens_measured=tokens.numel(),
                ce_tokens=for_loss.numel(),
                ce_clean=float(cost.clean.mean()),
                spliced=above_clean(spliced, cost.clean),
                zeroed=above_clean(cost.zeroed[part.writes], cost.clean),
                mean_ablated=above_clean(cost.mean_ablated[part.writes], cost.clean),
                density=density(*(in_mix.fired, in_mix.tokens) if in_mix else (each.fired, tokens[:, 1:].numel())),
                dead=in_mix.dead if in_mix else None,
                dead_tokens=in_mix.tokens if in_mix else 0,
                verdict=(),
                warnings=said,
                **each.figures,
            )
        )
        for part, each, spliced, in_mix, said in zip(parts, measured, cost.spliced, seen, warnings, strict=True)
    ]


def some_rows(model: Model, texts: Iterable[str], most: int) -> Tensor:
    """[rows, 128] ids, the first ``most`` rows of the text.

    Raises:
        InputError: less than two rows.
    """
    rows = list(islice(rows_of(model, texts), most))
    if len(rows) < 2:
        raise InputError(
            f"the text fills {len(rows)} rows of {LENGTH} tokens; fidelity needs 2, and wants {VARIANCE_ROWS}"
        )
    return torch.from_numpy(np.stack(rows))


def rows_of(model: Model, texts: Iterable[str], length: int = LENGTH) -> Iterable[NDArray[np.int64]]:
    """Documents as rows of ``length`` token ids, BOS first."""
    return pack(texts, partial(encode_documents, model), bos=model.bos, length=length)


def activities_on(
    model: Model,
    dictionaries: Sequence[Dictionary],
    mix: Iterable[str],
    report: Callable[[int], None] = lambda _done: None,
) -> list[Activity]:
    """How often and how strongly the features of each output fire on the first million tokens of ``mix``."""
    sites = sorted({part.reads for dictionary in dictionaries for part in outputs(dictionary)})
    return activities(dictionaries, activation_stream(model, rows_of(model, mix), sites), DEAD_TOKENS, report=report)


def above_clean(losses: Tensor, clean: Tensor) -> LossWith:
    """Of losses by row, [rows] each."""
    difference = losses - clean
    error = float(difference.std() / math.sqrt(len(difference)))
    return LossWith(float(losses.mean()), float(difference.mean()), error)
