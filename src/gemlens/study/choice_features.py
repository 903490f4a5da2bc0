"""From activations at wanted tokens to the features of each text, one dictionary at a time.

last   features of the last token (a text's own end; what comes before it, through attention only)
mean   each feature's mean over the scored tokens, silence counted as 0
max    its largest activation on any of them
all    every scored token on its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gemlens.errors import InputError
from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Pooling
from gemlens.scope.sae import SAE
from gemlens.sites import Site

__all__ = ["POOLINGS", "Source", "encode_texts", "largest", "pooled", "stacked", "streamed"]

Combine = Callable[[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]


class Source(NamedTuple):
    """A dictionary that is loaded when its turn comes."""

    site: Site
    load: Callable[[], SAE]
    name: str
    """Tells it from every other: release, path, revision."""

    @classmethod
    def of(cls, sae: SAE) -> Source:
        """One that is in memory."""
        info = sae.info
        return cls(sae.reads, lambda: sae, f"{info.release}/{info.category}/{info.id} @ {info.revision}")


def streamed(sources: Sequence[Source]) -> Iterator[SAE]:
    """The dictionaries in order; while one is used the next is loaded, so two are in memory at most.

    Raises:
        InputError: one reads another site than its name says.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(sources[0].load) if sources else None
        for index, source in enumerate(sources):
            assert coming is not None
            sae = coming.result()
            coming = thread.submit(sources[index + 1].load) if index + 1 < len(sources) else None
            if sae.reads != source.site:
                raise InputError(f"{sae.info.id} reads {sae.reads}, its name says {source.site}; rename its folder")
            yield sae
            del sae


def encode_texts(sae: SAE, activations: Tensor, of_text: Sequence[NDArray[np.int64]], token: Pooling) -> ActiveFeatures:
    """Features of each text (of each of its tokens with ``all``).

    Args:
        activations: [rows, d], each token once, whichever texts share it.
        of_text: for each text, its rows.
    """
    found = sae.encode(activations.to(sae.b_enc.device))
    features = ActiveFeatures(
        found.indptr.cpu().numpy(), found.ids.cpu().numpy(), found.values.float().cpu().numpy().astype(np.float32)
    )
    return POOLINGS[token](features, of_text)


def _added(_group: NDArray[np.int64], values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.add.reduceat(values, starts)


def pooled(features: ActiveFeatures, groups: Sequence[NDArray[np.int64]], combine: Combine = _added) -> ActiveFeatures:
    """One row a group of rows, in which a feature has what ``combine`` makes of its activations.

    Args:
        combine: of the group of each entry, values sorted by group and feature, and where each feature of a group
            begins, one value a feature.
    """
    rows = np.concatenate([*groups, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    group_of = np.repeat(np.arange(len(groups)), [len(each) for each in groups])
    lengths = np.diff(features.indptr)[rows]
    entry_group = np.repeat(group_of, lengths)
    # Of each row asked for, the places of its entries.
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    entries = np.repeat(features.indptr[rows], lengths) + inside
    ids, values = features.ids[entries], features.values[entries].astype(np.float64)
    order = np.lexsort((ids, entry_group))
    ids, values, entry_group = ids[order], values[order], entry_group[order]
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (ids[1:] != ids[:-1]) | (entry_group[1:] != entry_group[:-1])
    starts = new.nonzero()[0]
    made = combine(entry_group[starts], values, starts) if len(starts) else values
    counts = np.bincount(entry_group[starts], minlength=len(groups))
    return ActiveFeatures(np.cumsum([0, *counts]), ids[starts].astype(np.int64), made.astype(np.float32))


def largest(features: ActiveFeatures, groups: Sequence[NDArray[np.int64]]) -> ActiveFeatures:
    return pooled(features, groups, lambda _, values, starts: np.maximum.reduceat(values, starts))


def _mean(features: ActiveFeatures, groups: Sequence[NDArray[np.int64]]) -> ActiveFeatures:
    lengths = np.array([len(each) for each in groups])
    return pooled(features, groups, lambda group, values, starts: np.add.reduceat(values, starts) / lengths[group])


def _every(features: ActiveFeatures, groups: Sequence[NDArray[np.int64]]) -> ActiveFeatures:
    return pooled(features, [row[None] for group in groups for row in group])


POOLINGS: dict[Pooling, Callable[[ActiveFeatures, Sequence[NDArray[np.int64]]], ActiveFeatures]] = {
    "last": pooled,
    "mean": _mean,
    "max": largest,
    "all": _every,
}


def stacked(parts: Sequence[ActiveFeatures]) -> ActiveFeatures:
    """Rows of several, one after the other."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return ActiveFeatures(
        np.concatenate([*indptr, starts[-1:]]).astype(np.int64),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
    )
