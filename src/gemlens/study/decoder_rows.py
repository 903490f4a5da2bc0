"""What each feature's decoder row says by itself, without any text: tokens it promotes, neurons and features near it.

1. Logits: the row through the final norm's weight and the head, centred over the vocabulary (``lm.lens``). Of what is
   written in an MLP's input there is no logit lens.
2. Basis: the largest entries of the unit row.
3. Neurons of the same layer's MLP whose output weights (columns of ``down_proj``) are nearest by cosine.
4. Neighbours: features of the dictionary whose rows are nearest by cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.lens import feature_logits, residual_rows
from gemlens.scope.sae import SAE

__all__ = ["NEIGHBOUR_WIDTH", "Extremes", "directions", "extremes", "nearest_rows", "top_logits"]

NEIGHBOUR_WIDTH = 1 << 17
"""Above, comparing all features with all would be most of the work."""
_ROWS = 256
"""Rows whose logits are held: 256 x 262,144 of float32 are 268 MB."""
_RUN = 512
_COMPARED = 1 << 25
"""Cosines that are held at a time."""


@dataclass(frozen=True)
class Extremes:
    """Of each row the k largest and smallest numbers, and where they stand; k fewer where a row is shorter."""

    top: Tensor
    top_at: Tensor
    bottom: Tensor
    bottom_at: Tensor


def directions(
    model: Model,
    sae: SAE,
    *,
    logits: int = 10,
    near: int = 5,
    entries: int = 3,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Tensor]:
    """``top_tokens … bottom_logits`` [width, logits], ``neighbours`` [width, near], ``basis`` and ``neurons`` [width,
    entries] with their weights, as evidence files hold them (``scope.examples``, ``scope.statistics``).

    Logits are left out where there is no lens, neurons where rows are not as long as the model is wide, and neighbours
    of more than ``NEIGHBOUR_WIDTH`` features are -1.

    Args:
        report: called with features done and features to do.
    """
    rows = torch.cat([block.float() for _, block in sae.decoder.blocks()]).to(model.device)
    unit = F.normalize(rows, dim=1)
    found = top_logits(model, sae, rows, logits, report) if logits else {}
    largest = unit.abs().topk(min(entries, unit.shape[1]), dim=1).indices
    found |= {"basis": largest, "basis_weight": unit.gather(1, largest)}
    if sae.writes.layer < model.n_layers and unit.shape[1] == model.config.hidden_size:
        mlp: Any = model.blocks[sae.writes.layer].mlp
        outputs = F.normalize(mlp.down_proj.weight.float().T, dim=1)
        ids, cosines = nearest_rows(unit, outputs, entries, signed=False)
        found |= {"neurons": ids, "neuron_cosine": cosines}
    ids, cosines = _neighbours(unit, near)
    found |= {"neighbours": ids, "neighbour_cosine": cosines}
    return {name: tensor if tensor.is_floating_point() else tensor.to(torch.int32) for name, tensor in found.items()}


def top_logits(
    model: Model, sae: SAE, rows: Tensor, k: int, report: Callable[[int, int], None] = lambda _done, _total: None
) -> dict[str, Tensor]:
    """``top_tokens``, ``top_logits``, ``bottom_tokens`` and ``bottom_logits`` [n, k] of decoder rows; nothing where
    what they are written to has no logit lens."""
    if sae.writes.name != "attn_out" and rows.shape[1] != model.config.hidden_size:
        return {}
    parts = []
    for start in range(0, len(rows), _ROWS):
        try:
            written = residual_rows(model, sae.writes, rows[start : start + _ROWS])
        except InputError:
            return {}
        parts.append(extremes(feature_logits(model, written), k))
        report(min(start + _ROWS, len(rows)), len(rows))
    return {
        "top_tokens": torch.cat([part.top_at for part in parts]),
        "top_logits": torch.cat([part.top for part in parts]),
        "bottom_tokens": torch.cat([part.bottom_at for part in parts]),
        "bottom_logits": torch.cat([part.bottom for part in parts]),
    }


def extremes(rows: Tensor, k: int) -> Extremes:
    """The ``k`` largest and smallest of each row of [n, m], largest and smallest first.

    torch's ``topk`` is slow on long rows. The k largest lie in the k runs with the largest maxima, so that only so
    many short runs are sorted.
    """
    k = min(k, rows.shape[1])
    return Extremes(*_largest(rows, k, torch.amax, largest=True), *_largest(rows, k, torch.amin, largest=False))


def _largest(rows: Tensor, k: int, outermost: Callable[..., Tensor], *, largest: bool) -> tuple[Tensor, Tensor]:
    runs = rows.shape[1] // _RUN
    if runs <= k:
        found = rows.topk(k, dim=1, largest=largest)
        return found.values, found.indices
    whole = rows[:, : runs * _RUN].unflatten(1, (runs, _RUN))
    chosen = outermost(whole, dim=2).topk(k, dim=1, largest=largest).indices
    picked = whole.gather(1, chosen[:, :, None].expand(-1, -1, _RUN)).flatten(1)
    at = (chosen[:, :, None] * _RUN + torch.arange(_RUN, device=rows.device)).flatten(1)
    rest = torch.arange(runs * _RUN, rows.shape[1], device=rows.device).expand(len(rows), -1)
    picked, at = torch.cat([picked, rows[:, runs * _RUN :]], dim=1), torch.cat([at, rest], dim=1)
    found = picked.topk(k, dim=1, largest=largest)
    return found.values, at.gather(1, found.indices)


def nearest_rows(
    unit: Tensor, others: Tensor, k: int, *, signed: bool = True, but_itself: bool = False
) -> tuple[Tensor, Tensor]:
    """Of each unit row [n, d], the ``k`` of ``others`` [m, d] at the largest cosine, int64 and float32 [n, k].

    Args:
        signed: False ranks by absolute cosine, and still gives it with its sign.
        but_itself: ``others`` are the rows themselves, and a row is no neighbour of its own.
    """
    k = min(k, len(others) - but_itself)
    ids, cosines = [], []
    together = max(1, _COMPARED // len(others))
    for start in range(0, len(unit), together):
        cosine = unit[start : start + together] @ others.T
        if but_itself:
            own = torch.arange(len(cosine), device=cosine.device)
            cosine[own, own + start] = -torch.inf
        found = (cosine if signed else cosine.abs()).topk(k, dim=1).indices
        ids.append(found)
        cosines.append(cosine.gather(1, found))
    return torch.cat(ids), torch.cat(cosines)


def _neighbours(unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    width = len(unit)
    if width <= NEIGHBOUR_WIDTH:
        return nearest_rows(unit, unit, k, but_itself=True)
    return torch.full((width, k), -1, device=unit.device), torch.zeros(width, k, device=unit.device)
