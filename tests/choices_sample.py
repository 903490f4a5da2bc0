"""Short items, dictionaries and a record of multiple choice, made on the tiny model."""

from __future__ import annotations

import random
from functools import cache

from gemlens.lm.gemma import Model
from gemlens.records.choices import Choices, Item
from gemlens.scope.sae import SAE
from gemlens.study.choices import choices
from tiny import random_sae, random_transcoders, tiny_gemma

WORDS = ["the", "and", "ten", "in", "cat", "hot", "ice", "pan", "dry"]


def items(n: int = 24, *, most: int = 2, seed: int = 0) -> list[Item]:
    """Questions of nonsense; every other pair ends in one token, lengths differ."""
    draw = random.Random(seed)
    found = []
    for index in range(n):
        count = 2 if most == 2 else draw.randint(2, most)
        end = draw.choice(WORDS)
        choices_ = []
        for k in range(count):
            words = draw.choices(WORDS, k=draw.randint(1, 4))
            choices_.append(" ".join([*words, str(k), end if index % 2 else draw.choice(WORDS)]))
        question = " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
        context = f"Question: {question}\nAnswer:"
        after = tuple(f" {each}" for each in choices_)
        found.append(Item(index, question, tuple(choices_), draw.randrange(count), (context,) * count, after))
    return found


def dictionaries(model: Model) -> list[SAE]:
    saes = [random_sae(model, f"resid_post.{layer}", seed=layer, id=f"layer_{layer}") for layer in (1, 4)]
    return [*saes, random_transcoders(model)[3]]


@cache
def record(token: str = "last", most: int = 2) -> Choices:
    """Everything in it: examples, lens, cause."""
    model = tiny_gemma()
    return choices(
        model, dictionaries(model), items(most=most), dataset="nonsense", token=token, cause=2, draws=3, lens_items=8
    )
