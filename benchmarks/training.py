"""What training is timed on: text, the starter's activations of it, and how well a dictionary reconstructs others.

The text is Python's language reference, which every Python carries: 110,000 tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equality import encoder_of
from gemlens.data.activations import ActivationStore, open_store
from gemlens.data.mix import mixed
from gemlens.errors import GemlensError
from gemlens.lm.gemma import Model
from gemlens.lm.load import load_model
from gemlens.scope.sae import SAE
from gemlens.study.fidelity import rows_of
from gemlens.train.activation import batch_level, token_level, where_above
from gemlens.train.collect import collect_activations
from gemlens.train.config import FitConfig
from gemlens.train.ranks import Alone
from given import SITE

__all__ = [
    "BATCH",
    "L0",
    "LIVE",
    "ROW",
    "STORED",
    "WIDTH",
    "config",
    "fvu",
    "held_out",
    "largest",
    "rows",
    "starter_bfloat16",
    "stored",
]

WIDTH, L0, BATCH = 4096, 50, 1024
ROW = 257
"""Tokens of a row of text, BOS included: four rows make a batch."""
STORED, LIVE, HELD_OUT = 49_152, 8_192, 8_192
FOLDER = Path(__file__).parent / ".activations"

Reconstruct = Callable[[Tensor], Tensor]


def config(activation: str, tokens: int, seed: int) -> FitConfig:
    settings: dict[str, Any] = {"activation": activation}
    return FitConfig(reads=(str(SITE),), width=WIDTH, l0=L0, tokens=tokens, batch=BATCH, seed=seed, **settings)


def starter_bfloat16() -> Model:
    return load_model("starter", device="cpu", dtype="bfloat16")


def rows(model: Model, tokens: int, seed: int) -> NDArray[np.int64]:
    """[n, ROW] ids, BOS first, with so many tokens besides; other passages by each seed."""
    found = rows_of(model, mixed([_text()], seed), length=ROW)
    return np.stack(list(islice(found, tokens // (ROW - 1))))


def stored() -> ActivationStore:
    """The activations that are trained on, in bfloat16; made once, for all sides and repetitions."""
    return replace(_all_stored(), shard_tokens=[STORED])


def held_out() -> Tensor:
    """[HELD_OUT, 640], of the same texts, mixed; no side trains on them."""
    return _all_stored().read(0, STORED, STORED + HELD_OUT, [SITE])[SITE].float()


@torch.no_grad()
def fvu(reconstruct: Reconstruct, x: Tensor) -> float:
    """Fraction of the variance of ``x`` [n, d] that is left unexplained, ``BATCH`` tokens at a time."""
    error = sum(float((part - reconstruct(part)).pow(2).sum()) for part in x.split(BATCH))
    return error / float((x - x.mean(dim=0)).pow(2).sum())


def largest(sae: SAE, activation: str, l0: int = L0) -> Reconstruct:
    """From the ``l0`` largest features of each token (topk), or a token of the batch (batchtopk), as in training.

    The threshold that is saved is a mean over the last 20 batches. After as few as here it lags behind.
    """
    encoder = encoder_of(sae)
    w_dec = torch.cat([block for _, block in sae.decoder.blocks()])

    def reconstruct(x: Tensor) -> Tensor:
        pre = (x @ encoder.w_enc + encoder.b_enc).T
        level = token_level(pre, l0, Alone()) if activation == "topk" else batch_level(pre, l0, 0.0, Alone())
        return where_above(pre, pre - level).T @ w_dec + sae.b_dec

    return reconstruct


def _all_stored() -> ActivationStore:
    text = _text()
    folder = FOLDER / text.stem
    try:
        return open_store(folder)
    except GemlensError:  # there is none yet, or a run was stopped
        whole = {"tokens": STORED + HELD_OUT, "row_length": ROW}
        return collect_activations(starter_bfloat16(), [text], [SITE], folder, **whole)


def _text() -> Path:
    """Named after its content: Pythons differ a little."""
    from pydoc_data.topics import topics

    lines = "".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics))
    path = FOLDER / f"{hashlib.sha256(lines.encode()).hexdigest()[:12]}.jsonl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines, encoding="utf-8")
    return path
