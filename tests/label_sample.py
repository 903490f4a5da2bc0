"""Dictionaries, labels and passages for the tests of labels: no model, no evidence file."""

from __future__ import annotations

import random

from gemlens.records.labels import Context, Label
from gemlens.scope.label_names import Named

KEY = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
OTHER = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_38"
SMALL = Named("here/small", "here", "small", path="small", width=24)
WORDS = "the a sea ship port tide wind boat wave sail mast crew deck storm shore".split()  # noqa: SIM905
MARKUP = "<script>alert(1)</script> [red]bold[/red] \x1b[31m \x00 \u202e &amp; \"quoted\", 'cell';\n=1+1"


def label(feature: int = 7, text: str = "months of the year", **more: object) -> Label:
    return Label(**{"dictionary": KEY, "feature": feature, "text": text, "source": "me", **more})  # type: ignore[arg-type]


class Passages:
    """Feature f fires on the word ``word{f}``; odd ones also on ``also{f}``. Feature 0 never fires."""

    def __init__(self, width: int = 24, firing: int = 12) -> None:
        self.width, self._firing = width, firing

    def firing(self, feature: int) -> list[Context]:
        draw = random.Random(feature)
        if not feature:
            return []
        found = []
        for index in range(self._firing):
            own = f" word{feature}" if index % 2 == 0 or feature % 2 == 0 else f" also{feature}"
            tokens = [" " + word for word in draw.choices(WORDS, k=10)] + [" harbour"]
            tokens.insert(draw.randrange(10), own)
            values = [0.0 if token != own else 10.0 - index / 2 for token in tokens]
            found.append(Context(tuple(tokens), tuple(values)))
        return found

    def silent(self, feature: int, count: int) -> list[Context]:
        draw = random.Random(1000 + feature)
        return [
            Context(tuple(" " + word for word in draw.choices(WORDS, k=12)), (0.0,) * 12) for _ in range(min(count, 30))
        ]

    def promoted(self, feature: int) -> tuple[str, ...]:
        return (f" next{feature}",)
