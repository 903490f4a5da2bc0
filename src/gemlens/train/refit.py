"""The best decoder for a given encoder: decoder, bias and skip solved anew by least squares when training is over.

Which features fire, and how strongly, is up to encoder and thresholds alone. Given that, what is written is a linear
regression, whose solution gradient descent only comes near:

    z = [acts, x where there is a skip, 1]        r = y - recon
    minimise over D:  sum_t w_t |r_t - z_t D|^2 + sum_i ridge_i |D_i|^2

D is added to decoder, skip and bias. ``w`` keeps tokens of high norm from dominating, as in training. The ridge weighs
a feature's present row as ``PRIOR`` firings of it: rows of features that hardly ever fired stay as they are. Rows come
back to norm 1, which moves into the encoder and the threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.scope.int8 import Int8Rows
from gemlens.scope.rows import DenseRows, Rows
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.train.config import FitConfig
from gemlens.train.gradients import token_weights

__all__ = ["MOST_FEATURES", "PRIOR", "refit"]

PRIOR = 30.0
MOST_FEATURES = 16_384
"""Sums take width^2 numbers of 8 bytes: 2 GB."""
_SMALL = 1e-5
"""Ridge on the skip, relative to the sums: inputs that are each other's combinations do not fail it."""


@torch.no_grad()
def refit(
    dictionaries: Sequence[SAE],
    stream: Iterable[Mapping[Site, Tensor]],
    tokens: int,
    *,
    norm_limit: float = FitConfig.norm_limit,
) -> list[SAE]:
    """Dictionaries with the same features, and the decoders that reconstruct best with them.

    Args:
        dictionaries: SAEs and transcoders; int8 encoders keep their codes.
        stream: activations by site, [n, d] each, BOS left out, of texts as they were trained on.
        tokens: how many to read; several times as many as there are features.
        norm_limit: tokens beyond so many times the median square norm weigh less.

    Raises:
        InputError: an empty stream, or more than 16,384 features.
    """
    for dictionary in dictionaries:
        if dictionary.width > MOST_FEATURES:
            raise InputError(f"{dictionary.info.id} has {dictionary.width:,} features; refits go up to 16,384")
    sums = [_Sums(dictionary) for dictionary in dictionaries]
    done = 0
    for found in stream:
        for each in sums:
            each.add(found, tokens - done, norm_limit)
        done += len(next(iter(found.values())))
        if done >= tokens:
            break
    if not done:
        raise InputError("there are no activations to refit decoders on; give more text")
    return [each.solved() for each in sums]


class _Sums:
    """Of z z^T and z r^T over tokens, for one dictionary."""

    def __init__(self, dictionary: SAE) -> None:
        self._dictionary = dictionary
        like = dictionary.b_dec.double()
        size = dictionary.width + (0 if dictionary.skip is None else dictionary.d_in) + 1
        self._squares, self._products = like.new_zeros(size, size), like.new_zeros(size, dictionary.d_out)
        self._fired = like.new_zeros(dictionary.width)
        # About nearly the mean, sums of products lose no digits to it.
        self._center: Tensor | None = None

    def add(self, found: Mapping[Site, Tensor], most: int, norm_limit: float) -> None:
        own = self._dictionary
        x, y = (found[site][:most].to(own.b_dec) for site in (own.reads, own.writes))
        features = own.encode(x)
        rest = y - own.decode(features)
        columns = [features.dense()]
        if own.skip is not None:
            rest -= x @ own.skip
            if self._center is None:
                self._center = x.mean(dim=0)
            columns.append(x - self._center)
        z = torch.cat([*columns, x.new_ones(len(x), 1)], dim=1)
        weighted = z * token_weights(y - y.mean(dim=0), norm_limit)[:, None]
        self._squares += weighted.T @ z
        self._products += weighted.T @ rest
        self._fired += (columns[0] > 0).sum(dim=0)

    def solved(self) -> SAE:
        own = self._dictionary
        ridge = _SMALL * self._squares.diagonal()
        # Mean square activation where it fires, once for each firing that the present row is worth.
        ridge[: own.width] = PRIOR * self._squares.diagonal()[: own.width] / self._fired.clamp(min=1)
        # Of a feature that never fired, and of an input that is always the same, nothing is known, nor asked.
        ridge[ridge == 0] = 1
        change = torch.linalg.solve(self._squares + ridge.diag(), self._products).float()
        decoder = torch.cat([block for _, block in own.decoder.blocks()]) + change[: own.width]
        norm = torch.linalg.vector_norm(decoder, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        skip, b_dec = own.skip, own.b_dec + change[-1]
        if own.skip is not None and self._center is not None:
            skip = own.skip + change[own.width : -1]
            b_dec = b_dec - self._center @ change[own.width : -1]
        return SAE(
            _times(own.encoder, norm), DenseRows(decoder / norm[:, None]), b_enc=own.b_enc * norm, b_dec=b_dec,
            threshold=own.threshold * norm, skip=skip, reads=own.reads, writes=own.writes, info=own.info,
        )  # fmt: skip


def _times(rows: Rows, norm: Tensor) -> Rows:
    if isinstance(rows, Int8Rows):
        return Int8Rows(rows.codes, rows.scale * norm, rows.columns)
    return DenseRows(torch.cat([block for _, block in rows.blocks()]) * norm[:, None])
