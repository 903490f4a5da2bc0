"""Labels: 16,384 downloaded from a local copy of Neuronpedia's export, and one million searched.

The copy has one to three explanations a feature, 23,000 in all, and a row of facts for each; download is the whole
command, a process of its own. The million are made of 4,000 words of a Zipf distribution and lie in 61 dictionaries.
Each query is asked of all of them and of one dictionary's. They are kept in ``benchmarks/.labels`` once they are made.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from timing import Aim, Case, Work

FEATURES, MILLION, PLACES = 16_384, 1_000_000, 61
GEMLENS = [sys.executable, "-m", "gemlens.app.cli"]
NAMES = ["--sae-release", "gemma-scope-2b-pt-res-canonical", "--sae-id", "layer_20/width_16k/canonical"]
_KEEP: list[Any] = []
"""Folders and servers, for as long as the process lives."""


def _words(vocabulary: int, seed: int = 0) -> Callable[[int], list[str]]:
    """Draw words as frequent as ranks have it: the first is in every other label."""
    draw = random.Random(vocabulary)
    letters = "bcdfghklmnprstvw"
    known = ["".join(draw.choice(letters) + draw.choice("aeiou") for _ in range(3)) + str(n) for n in range(4000)]
    weights = [1 / rank for rank in range(1, 4001)]
    drawn = random.Random(seed)
    return lambda count: drawn.choices(known, weights, k=count)


def _folder() -> Path:
    folder = tempfile.TemporaryDirectory()
    _KEEP.append(folder)
    return Path(folder.name)


def _download(seed: int) -> Work:
    from fake_neuronpedia import FakeNeuronpedia, explanation, feature

    server, draw, words = FakeNeuronpedia(), random.Random(seed), _words(seed)
    _KEEP.append(server.__enter__())
    rows = [
        explanation(index, " ".join(words(8)), embedding=[draw.random() for _ in range(256)], typeName=f"kind-{n}")
        for index in range(FEATURES)
        for n in range(1 + (draw.random() < 0.3) + (draw.random() < 0.1))
    ]
    server.publish("explanations", rows)
    server.publish("features", [feature(index, pos_str=words(10), neg_str=words(10)) for index in range(FEATURES)])

    def run(_: object) -> None:
        environment = os.environ | server.environment | {"GEMLENS_DATA": str(_folder())}
        subprocess.run([*GEMLENS, "labels", "download", *NAMES], env=environment, check=True, capture_output=True)

    return Work(run, [None] * 3, "once", in_children=True)


def _store() -> Any:
    """Made once, in two minutes, and kept for the next processes."""
    from gemlens.records.labels import Label
    from gemlens.scope.labels import LabelStore

    path = Path(__file__).parents[1] / ".labels" / "million.sqlite"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        new, words = path.with_suffix(".new"), _words(0)
        new.unlink(missing_ok=True)
        with LabelStore(new) as store:
            for place in range(PLACES):
                store.add(
                    Label(f"place/{place}", feature, " ".join(words(8)), "neuronpedia", "kind", "model")
                    for feature in range(MILLION // PLACES + 1)
                )
            # Into the one file, which is then renamed.
            store.sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        new.replace(path)
    return LabelStore(path)


def _search(queries: Callable[[Callable[[int], list[str]], list[str]], list[str]]) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        store, words = _store(), _words(0, seed)
        ranked = [word for word, _ in Counter(words(100_000)).most_common()]
        asked = [(query, places) for query in queries(words, ranked) for places in (None, ["place/7"])]
        return Work(lambda each: store.search(each[0], dictionaries=each[1]), asked, (ranked[9], None))

    return side


def _case(name: str, side: Callable[[int], Work], seconds: float) -> Case:
    return Case(name, {"gemlens": side}, {"gemlens": Aim(seconds=seconds)})


CASES = [
    _case("16,384 features' labels from a local copy", _download, 10.0),
    _case("one of the ten commonest words among 1 M labels", _search(lambda _, ranked: ranked[:10]), 0.05),
    _case("two of them", _search(lambda _, ranked: [f"{a} {b}" for a, b in pairwise(ranked[:10])]), 0.05),
    _case("three words as they come", _search(lambda words, _: [" ".join(words(3)) for _ in range(20)]), 0.05),
    _case("one of the rarest", _search(lambda _, ranked: ranked[-10:]), 0.05),
]
