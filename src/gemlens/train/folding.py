"""From scaled activations back to raw ones: mean and scale move into the weights.

Training saw z = (x - mean) * scale at every site. A decoder row in raw units is w_dec / scale of the site it writes;
its norm, taken over all sites, goes into the feature's activation, so that rows keep norm 1:

    norm    = |w_dec / scale_out|                w_dec'     = w_dec / scale_out / norm
    w_enc'  = w_enc * scale_in * norm            b_enc'     = (b_enc - scale_in * w_enc @ mean_in) * norm
    skip'   = skip * scale_in / scale_out        b_dec'     = b_dec / scale_out + mean_out - mean_in @ skip'
    threshold' = threshold * norm
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.errors import WeightsError
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.train.weights import Weights

__all__ = ["Scaling", "fold"]


class Scaling(NamedTuple):
    """How raw activations of a site are brought to zero mean and unit mean square."""

    mean: Tensor
    """[d]"""
    scale: float

    @classmethod
    def of(cls, sample: Tensor, site: Site) -> Scaling:
        """From [n, d] tokens; the median token sets the scale, which keeps outliers out of it.

        Raises:
            WeightsError: values that are not finite, or all alike.
        """
        x = sample.float()
        mean = x.mean(dim=0)
        scale = float((x - mean).pow(2).mean(dim=1).median().rsqrt())
        if not (0 < scale < float("inf")):
            raise WeightsError(f"activations of {site} are not finite or all alike; there is nothing to learn")
        return cls(mean, scale)

    def apply(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) * self.scale


@torch.no_grad()
def fold(
    weights: Sequence[Weights],
    thresholds: Sequence[Tensor],
    *,
    inputs: Sequence[Scaling],
    outputs: Sequence[Scaling],
    reads: Sequence[Site],
    writes: Sequence[Site],
    info: DictionaryInfo,
    multilayer: bool,
) -> SAE | MultiLayer:
    """The dictionary that does on raw activations what ``weights`` do on scaled ones.

    Args:
        weights: a layer each; so are all others.
        thresholds: [F] on scaled activations.
        multilayer: a CLT, even if of one layer.
    """
    parts = [
        _fold(own, threshold, inputs[index], outputs[index:])
        for index, (own, threshold) in enumerate(zip(weights, thresholds, strict=True))
    ]
    if not multilayer:
        part, threshold = parts[0]
        return SAE(
            DenseRows(part.w_enc), DenseRows(part.w_dec), b_enc=part.b_enc, b_dec=part.b_dec, threshold=threshold,
            skip=part.skip, reads=reads[0], writes=writes[0], info=info,
        )  # fmt: skip
    layers = [
        Layer(
            # The rows of one feature, one for each layer it writes, are side by side.
            DenseRows(part.w_enc), DenseRows(part.w_dec.reshape(-1, len(part.b_dec))), b_enc=part.b_enc,
            b_dec=part.b_dec, threshold=threshold, skip=part.skip, first=index,
        )
        for index, (part, threshold) in enumerate(parts)
    ]  # fmt: skip
    return MultiLayer(layers, reads=reads, writes=writes, info=info)


def _fold(weights: Weights, threshold: Tensor, given: Scaling, outputs: Sequence[Scaling]) -> tuple[Weights, Tensor]:
    """One layer's raw weights and threshold; its own output is the first of ``outputs``."""
    each = len(weights.b_dec)
    raw = torch.cat(
        [part / out.scale for part, out in zip(weights.w_dec.split(each, dim=1), outputs, strict=True)], dim=1
    )
    norm = torch.linalg.vector_norm(raw, dim=1)
    b_dec = weights.b_dec / outputs[0].scale + outputs[0].mean
    skip = None
    if weights.skip is not None:
        skip = weights.skip * (given.scale / outputs[0].scale)
        b_dec = b_dec - given.mean @ skip
    folded = Weights(
        w_enc=weights.w_enc * (given.scale * norm[:, None]),
        b_enc=(weights.b_enc - given.scale * (weights.w_enc @ given.mean)) * norm,
        w_dec=raw / norm[:, None],
        b_dec=b_dec,
        skip=skip,
    )
    return folded, threshold * norm
