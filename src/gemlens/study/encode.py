"""Sparse features of activations that another tool saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gemlens import __version__
from gemlens.data.saved import Saved
from gemlens.errors import InputError, MismatchError
from gemlens.records.encoded import EncodedPart, Encoding
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE

__all__ = ["encode_saved", "encoding_of"]


def encoding_of(sae: SAE, saved: Saved, *, top_k: int | None = None, skip: int = 0) -> Encoding:
    """What ``encode_saved`` will find, before anything is read.

    Raises:
        MismatchError: the activations have another width than the dictionary reads.
        InputError: numbers out of range.
    """
    if saved.shape[-1] != sae.d_in:
        raise MismatchError(
            f"{saved.path} has shape {list(saved.shape)}; {sae.info.id} reads {sae.reads} as {sae.d_in} numbers a "
            "token: choose the dictionary of that model and site"
        )
    if top_k is not None and top_k < 1:
        raise InputError(f"top-k {top_k}: keep at least 1 feature a token")
    if skip and not (len(saved.shape) == 3 and 0 <= skip < saved.shape[1]):
        raise InputError(f"skip {skip}: leaves out the first tokens of each sequence of [n, sequence, d], not all")
    name = "/".join(filter(None, [sae.info.release, sae.info.category, sae.info.id]))
    shape = (*saved.shape[:-1], sae.width)
    return Encoding(name, str(sae.reads), shape, saved.path.name, __version__, top_k, skip)


@torch.no_grad()
def encode_saved(
    sae: SAE,
    saved: Saved,
    *,
    top_k: int | None = None,
    skip: int = 0,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[EncodedPart]:
    """Yield the features of all tokens, a few thousand at a time.

    Args:
        top_k: keep only the strongest of each token.
        skip: tokens at the start of each sequence that count as if nothing fired there: 1 for a BOS.
        report: called with tokens done and to do.

    Raises:
        What ``encoding_of`` raises.
        WeightsError: values that are not finite.
    """
    encoding_of(sae, saved, top_k=top_k, skip=skip)
    done, device = 0, sae.b_enc.device
    for part in saved.parts():
        features = sae.encode(part.to(device))
        keep = torch.ones(len(features.ids), dtype=torch.bool, device=device)
        if skip:
            keep &= (features.tokens + done) % saved.shape[1] >= skip
        if top_k is not None:
            keep &= _ranks(features) < top_k
        l0 = torch.bincount(features.tokens[keep], minlength=len(features))
        indptr = torch.cat([l0.new_zeros(1), l0.cumsum(0)])
        yield EncodedPart(
            done,
            indptr.cpu().numpy(),
            features.ids[keep].to("cpu", torch.int32).numpy(),
            features.values[keep].to("cpu", torch.float32).numpy(),
        )
        done += len(features)
        report(done, saved.tokens)


def _ranks(features: Features) -> Tensor:
    """int64 [nnz], how many features of the same token are stronger; of equals the lower id comes first."""
    order = features.values.argsort(descending=True, stable=True)
    order = order[features.tokens[order].argsort(stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - features.indptr[features.tokens]
    return ranks
