"""What a feature sees, token by token, on the items where right and wrong differ most by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gemlens.lm.gemma import Model
from gemlens.lm.text import texts
from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Example, ExampleToken, FeatureTest, LayerTests
from gemlens.scope.sae import SAE
from gemlens.study.choice_pass import Wanted, run_items
from gemlens.study.choice_tests import Sides
from gemlens.study.choice_texts import Read, ids_of

__all__ = ["examples_of", "shown_features"]

FEATURES, ITEMS = 3, 3


def shown_features(tests: LayerTests) -> list[FeatureTest]:
    """The confirmed ones first."""
    return sorted(tests.features, key=lambda test: (not test.confirmed, test.p))[:FEATURES]


def examples_of(
    model: Model,
    sae: SAE,
    dictionary: int,
    shown: Sequence[FeatureTest],
    features: ActiveFeatures,
    items: Sequence[Read],
    sides: Sides,
) -> list[Example]:
    """Of each feature the items with the largest difference of its sign.

    Args:
        features: of the dictionary, one row a text.
    """
    picked: list[tuple[int, int]] = []
    for test in shown:
        column = features.column(test.feature_id).astype(np.float64)
        difference = sides.contrasts(column)[sides.gold] * (1 if test.z >= 0 else -1)
        best = np.argsort(-difference, kind="stable")[:ITEMS]
        picked += [(test.feature_id, int(index)) for index in best if difference[index] > 0]
    if not picked:
        return []
    wanted_items = sorted({index for _, index in picked})
    read = [items[index] for index in wanted_items]
    # Every token but BOS, which no dictionary was trained on.
    places = [np.arange(1, len(item.fork)) for item in read]
    starts = np.cumsum([0, *map(len, places)])
    passed = run_items(model, read, [sae.reads], Wanted(places, []), scored=False)
    found = sae.encode(passed.activations[sae.reads].to(sae.b_enc.device))
    ids = [test.feature_id for test in shown]
    dense = found.select(torch.tensor(ids)).float().cpu().numpy()
    made = []
    for feature, index in picked:
        k = wanted_items.index(index)
        values = dense[starts[k] : starts[k + 1], ids.index(feature)]
        made.append(Example(dictionary, feature, index, tuple(_tokens(model, read[k], values))))
    return made


def _tokens(model: Model, item: Read, values: np.ndarray) -> list[tuple[ExampleToken, ...]]:
    """For each choice its tokens, BOS left out."""
    rows = []
    for choice, path in enumerate(item.fork.paths):
        added = texts(model, ids_of(item, choice))
        rows.append(
            tuple(
                ExampleToken(added[place], float(values[at - 1]), place >= item.begins[choice])
                for place, at in enumerate(path.tolist())
                if place
            )
        )
    return rows
