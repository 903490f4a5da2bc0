"""What the dictionaries themselves say of a circuit's features: the tokens that each raises and lowers, its direction.

A decoder row is part of the residual stream, so the model's head reads it: ``(row * (1 + w_norm)) @ W_U``, minus the
mean over the vocabulary. A feature of a CLT goes by the sum of what it writes to all layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gemlens.lm.gemma import Model
from gemlens.lm.text import texts
from gemlens.records.circuit import Circuit, NodeEvidence
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.sae import SAE
from gemlens.study.replacement import Transcoders

__all__ = ["Known", "evidence_of"]

Known = Mapping[tuple[int, int], NodeEvidence]
"""By layer and number of the feature."""

TOKENS = 10
# Of the vocabulary, times features: what is in memory at once, 64 MB.
_TOGETHER = 1 << 24


@torch.no_grad()
def evidence_of(
    model: Model,
    transcoders: Transcoders,
    circuit: Circuit,
    *,
    labels: Mapping[tuple[int, int], str] | None = None,
) -> dict[tuple[int, int], NodeEvidence]:
    """Top and bottom tokens, label and decoder direction of every feature of a circuit.

    Args:
        labels: what features are called, by layer and number, where somebody knows.
    """
    wanted = sorted({(node.layer or 0, node.feature or 0) for node in circuit.nodes if node.kind == "feature"})
    if not wanted:
        return {}
    rows = _decoders(transcoders, wanted)
    found: dict[tuple[int, int], NodeEvidence] = {}
    head: Any = model.module.lm_head
    norm: Any = model.backbone.norm
    step = max(1, _TOGETHER // len(head.weight))
    for start in range(0, len(wanted), step):
        part = rows[start : start + step].to(head.weight.device)
        effects = (part * (1 + norm.weight.float())).to(head.weight.dtype) @ head.weight.T
        effects = effects.float() - effects.float().mean(dim=1, keepdim=True)
        top, bottom = effects.topk(TOKENS), effects.topk(TOKENS, largest=False)
        for index, key in enumerate(wanted[start : start + step]):
            found[key] = NodeEvidence(
                label=(labels or {}).get(key, ""),
                top_tokens=_pairs(model, top.indices[index], top.values[index]),
                bottom_tokens=_pairs(model, bottom.indices[index], bottom.values[index]),
                decoder=part[index].cpu().numpy(),
            )
    return found


def _pairs(model: Model, ids: Tensor, values: Tensor) -> tuple[tuple[str, float], ...]:
    return tuple((texts(model, [token])[0], value) for token, value in zip(ids.tolist(), values.tolist(), strict=True))


def _decoders(transcoders: Transcoders, wanted: Iterable[tuple[int, int]]) -> Tensor:
    """float32 [wanted, d_model]"""
    if isinstance(transcoders, MultiLayer):
        layers = {site.layer: transcoders.layer(site) for site in transcoders.reads}
        return torch.stack([_of_clt(layers[layer], feature) for layer, feature in wanted])
    by_layer: dict[int, SAE] = {each.reads.layer: each for each in transcoders}
    return torch.cat([by_layer[layer].decoder.rows(torch.tensor([feature])).float() for layer, feature in wanted])


def _of_clt(layer: Layer, feature: int) -> Tensor:
    ids = torch.arange(layer.outputs) + feature * layer.outputs
    return layer.decoder.rows(ids).float().sum(dim=0)
