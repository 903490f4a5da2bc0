"""What is known of a circuit's features: the tokens that each raises and lowers, its direction, label and examples.

A decoder row is part of the residual stream, so the model's head reads it (``lm.lens``). A feature of a CLT goes by the
sum of what it writes to all layers. Labels and examples are there where the store and the evidence on this machine
have them, of transcoders only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from gemlens.errors import GemlensError
from gemlens.lm.gemma import Model
from gemlens.lm.lens import feature_logits
from gemlens.lm.text import texts
from gemlens.records import DictionaryInfo
from gemlens.records.circuit import Circuit, NodeEvidence
from gemlens.records.feature import FeaturePage
from gemlens.scope.labels import labels_for
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.sae import SAE
from gemlens.study.glance import pages_at_hand
from gemlens.study.replacement import Transcoders

__all__ = ["Known", "evidence_of"]

Known = Mapping[tuple[int, int], NodeEvidence]
"""By layer and number of the feature."""
Examples = tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]

TOKENS = 10
EXAMPLES = 4
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
    """What is known of every feature of a circuit, by layer and number.

    Args:
        labels: what features are called, where somebody knows better than the store.
    """
    wanted = sorted({(node.layer or 0, node.feature or 0) for node in circuit.nodes if node.kind == "feature"})
    if not wanted:
        return {}
    rows = _decoders(transcoders, wanted).to(model.device)
    known = {} if isinstance(transcoders, MultiLayer) else _stored(transcoders, wanted)
    found: dict[tuple[int, int], NodeEvidence] = {}
    step = max(1, _TOGETHER // model.config.vocab_size)
    for start in range(0, len(wanted), step):
        effects = feature_logits(model, rows[start : start + step])
        top, bottom = effects.topk(TOKENS), effects.topk(TOKENS, largest=False)
        for index, key in enumerate(wanted[start : start + step]):
            label, examples = known.get(key, ("", ()))
            found[key] = NodeEvidence(
                label=(labels or {}).get(key, label),
                top_tokens=_pairs(model, top.indices[index], top.values[index]),
                bottom_tokens=_pairs(model, bottom.indices[index], bottom.values[index]),
                examples=examples,
                decoder=rows[start + index].cpu().numpy(),
            )
    return found


def _stored(
    transcoders: Sequence[SAE], wanted: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], tuple[str, Examples]]:
    """Label and examples by layer and feature."""
    found = {}
    for info in {each.reads.layer: each.info for each in transcoders}.values():
        features = [feature for layer, feature in wanted if layer == info.layer]
        names, pages = _labels(info, features), pages_at_hand(info, features, per_level=EXAMPLES)
        for feature in features:
            examples = _examples(pages[feature]) if feature in pages else ()
            found[info.layer, feature] = (names.get(feature, ""), examples)
    return found


def _labels(info: DictionaryInfo, features: Sequence[int]) -> dict[int, str]:
    with suppress(GemlensError):  # a help beside the circuit itself
        return {feature: label.shown for feature, label in labels_for(info, features).items()}
    return {}


def _examples(page: FeaturePage) -> Examples:
    """The strongest, each with what stands around it."""
    strongest = [example for level in page.levels for example in level.examples][:EXAMPLES]
    return tuple(
        (tuple(token.text for token in each.tokens), tuple(token.activation or 0.0 for token in each.tokens))
        for each in strongest
    )


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
