"""Texts that begin alike, read together: what they share is computed once.

    shared   Question: How do I chill a drink?  Answer: Put it in the
    branch 0                                                          freezer for an hour
    branch 1                                                          oven for an hour

All tokens of a fork stand in one row. A token attends to what is shared and to its own branch, and has the position
that it has in its own text, so that every branch is computed as if it stood alone. Forks of like length share a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemlens.lm.gemma import Model, check_finite, module_at
from gemlens.lm.hooks import StopForward, read
from gemlens.sites import Site

__all__ = ["Fork", "flat_places", "fork", "read_forks"]

_SHARED, _PADDING = -1, -2


@dataclass(frozen=True, eq=False)
class Fork:
    """One or more texts with a common beginning."""

    ids: NDArray[np.int64]
    """[n]: the shared tokens, then those of each branch."""
    positions: NDArray[np.int64]
    """[n], where each stands in its own text."""
    branches: NDArray[np.int64]
    """[n], the branch of each; -1 for shared tokens."""
    paths: tuple[NDArray[np.int64], ...]
    """For each text, where its tokens stand in ``ids``."""

    def __len__(self) -> int:
        return len(self.ids)


def fork(texts: Sequence[Sequence[int]]) -> Fork:
    """Join texts of token ids at their common beginning; none of them may be empty.

    The last token of a text is always in its own branch, so that no text is a part of another.
    """
    shared = 0
    most = min(map(len, texts)) - 1
    while shared < most and len({text[shared] for text in texts}) == 1:
        shared += 1
    common = np.arange(shared)
    ids, positions, branches, paths = [np.array(texts[0][:shared], dtype=np.int64)], [common], [0 * common - 1], []
    start = shared
    for branch, text in enumerate(texts):
        own = len(text) - shared
        ids.append(np.array(text[shared:], dtype=np.int64))
        positions.append(np.arange(shared, len(text)))
        branches.append(np.full(own, branch))
        paths.append(np.concatenate([common, np.arange(start, start + own)]))
        start += own
    return Fork(np.concatenate(ids), np.concatenate(positions), np.concatenate(branches), tuple(paths))


@torch.no_grad()
def read_forks(
    model: Model, forks: Sequence[Fork], wanted: Mapping[Site, Sequence[NDArray[np.int64]]]
) -> dict[Site, Tensor]:
    """Activations at some tokens of each fork, from one pass that ends at the deepest site.

    Args:
        wanted: for each site, for each fork, places in its ``ids``.

    Returns:
        For each site [places of all forks, d], one fork after the other, in the order asked for.

    Raises:
        MismatchError: the model lacks a layer.
        WeightsError: the activations are not finite.
    """
    longest = max(map(len, forks))
    ids = _rows([each.ids for each in forks], longest, 0)
    positions = _rows([each.positions for each in forks], longest, 0)
    branches = _rows([each.branches for each in forks], longest, _PADDING)
    ordered = sorted(wanted)
    with ExitStack() as stack:
        found = {}
        for site in ordered:
            places = flat_places(forks, wanted[site]).to(model.device)
            found[site] = stack.enter_context(
                read(*module_at(model, site), stop=site == ordered[-1], keep=partial(_at, places))
            )
        with suppress(StopForward):
            model.backbone(
                input_ids=ids.to(model.device),
                position_ids=positions.to(model.device),
                attention_mask=_masks(model, positions, branches),
                use_cache=False,
            )
    result = {site: tensors[0] for site, tensors in found.items()}
    check_finite(model, result)
    return result


def _at(places: Tensor, x: Tensor) -> Tensor:
    return x.flatten(0, 1)[places]


def flat_places(forks: Sequence[Fork], places: Sequence[NDArray[np.int64]]) -> Tensor:
    """Where places in each of some forks stand when ``read_forks`` passes them, in [forks x longest]."""
    longest = max(map(len, forks))
    return torch.from_numpy(np.concatenate([each + row * longest for row, each in enumerate(places)]))


def _rows(rows: Sequence[NDArray[np.int64]], length: int, filling: int) -> Tensor:
    out = np.full((len(rows), length), filling, dtype=np.int64)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(out)


def _masks(model: Model, positions: Tensor, branches: Tensor) -> dict[str, Tensor]:
    """By kind of layer, [batch, 1, n, n]: what each token attends to; at least itself, padding too."""
    n = positions.shape[1]
    mine, other = branches[:, :, None], branches[:, None, :]
    # Within a branch, and from branches to what is shared before them, a row's order is that of the texts.
    sees = ((other == _SHARED) | (other == mine)) & torch.ones(n, n, dtype=torch.bool).tril()
    window = getattr(model.config, "sliding_window", None) or model.context
    near = sees & (positions[:, :, None] - positions[:, None, :] < window)
    kinds = {"full_attention": sees, "sliding_attention": near | torch.eye(n, dtype=torch.bool)}
    return {kind: _as_asked(model, mask[:, None].to(model.device)) for kind, mask in kinds.items()}


def _as_asked(model: Model, mask: Tensor) -> Tensor:
    """SDPA takes truth values, eager attention adds its mask to the scores."""
    if model.config._attn_implementation == "sdpa":
        return mask
    out = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    return out.masked_fill_(~mask, torch.finfo(model.dtype).min)
