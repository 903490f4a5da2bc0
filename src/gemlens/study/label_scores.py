"""How well a label holds: does it tell the passages on which its feature fires from others?

    detection   a language model reads the label and passages, and says for each whether the feature fires on it
    fuzzing     it reads passages with tokens marked, and says whether those are the ones on which the feature fires
    words       no model: how many of the label's words, endings aside, a passage holds
    tokens      no model: how many of the feature's top tokens a passage holds; the top tokens are taken from every
                second passage and held against the others, so that they do not predict themselves

Detection and fuzzing: Paulo et al. 2024 (arXiv:2410.13928). Each is an area under the ROC curve, 0.5 being chance; of
yes and no answers that is the mean of the shares of right answers on both kinds.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

from gemlens.errors import InputError
from gemlens.records.labels import Context, Reply, Score
from gemlens.study.auc import auc, interval
from gemlens.study.contexts import marked

__all__ = ["Ask", "by_tokens", "by_words", "detection", "fuzzing", "stem", "top_tokens"]

Ask = Callable[[list[dict[str, str]]], Reply]
"""Messages (``role``, ``content``) to a language model's answer."""

_TOGETHER = 8
_LEAST = 2
_WORD = re.compile(r"[^\W_]+")
# Words of labels that say nothing of what a passage holds.
_EMPTY = """
a an and are as at be by for from has have in is it its not of on or such that the their them these this to was were
which with within without about into than then related relating references reference referring mentions mention terms
term words word phrases phrase specific various context contexts text texts token tokens concept concepts associated
indicating indicates instances including like other often used particularly
"""
_ENDINGS = ("ations", "ation", "ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "e", "y")

_DETECT = """A feature of a language model is described as: {label}

Below are {count} passages. For each, say whether the feature fires somewhere in it: 1 if the description fits \
something in the passage, 0 if not. About half of them fit. Answer with a JSON list of {count} numbers and nothing else.

{passages}"""
_FUZZ = """A feature of a language model is described as: {label}

Below are {count} passages with tokens marked by << and >>. For each, say whether the marked tokens are the ones on \
which the feature fires: 1 if the description fits the marked tokens, 0 if other tokens were marked. Answer with a \
JSON list of {count} numbers and nothing else.

{passages}"""


def detection(
    label: str, firing: Sequence[Context], silent: Sequence[Context], ask: Ask, *, model: str, seed: int = 0
) -> Score:
    """Raises InputError if the model refuses, or does not answer as asked twice; NetworkError passes."""
    shown = [(each.text, 1) for each in firing] + [(each.text, 0) for each in silent]
    return _judged("detection", _DETECT, label, shown, ask, model, seed)


def fuzzing(label: str, firing: Sequence[Context], ask: Ask, *, model: str, seed: int = 0) -> Score:
    """Half of the passages marked rightly, half at as many other tokens; raises as ``detection`` does."""
    draw = random.Random(seed)
    shown = []
    for index, each in enumerate(firing):
        fires = [place for place, value in enumerate(each.activations) if value > 0]
        others = [place for place, value in enumerate(each.activations) if value <= 0 and each.tokens[place].strip()]
        right = index % 2 == 0 or not others
        places = fires if right else draw.sample(others, min(len(fires), len(others)))
        shown.append((marked(each, set(places)), int(right)))
    return _judged("fuzzing", _FUZZ, label, shown, ask, model, seed)


def by_words(label: str, firing: Sequence[Context], silent: Sequence[Context]) -> Score:
    wanted = {stem(word) for word in _words(label)} - {stem(word) for word in _EMPTY.split()}

    def count(context: Context) -> float:
        return len(wanted & {stem(word) for word in _words(context.text)})

    return _score("words", list(map(count, firing)), list(map(count, silent)))


def by_tokens(firing: Sequence[Context], silent: Sequence[Context]) -> Score:
    learned, held_out = firing[::2], firing[1::2]
    weights = dict(top_tokens(learned, 10))

    def most(context: Context) -> float:
        return max((weights.get(_name(token), 0.0) for token in context.tokens), default=0.0)

    return _score("tokens", list(map(most, held_out)), list(map(most, silent)))


def top_tokens(contexts: Sequence[Context], limit: int) -> list[tuple[str, float]]:
    """Tokens on which the feature fires, case and spaces aside, with their share of all its activation."""
    total: dict[str, float] = {}
    for context in contexts:
        for token, value in zip(context.tokens, context.activations, strict=True):
            if value > 0 and _name(token):
                total[_name(token)] = total.get(_name(token), 0.0) + value
    whole = sum(total.values()) or 1.0
    ranked = sorted(total.items(), key=lambda each: (-each[1], each[0]))
    return [(token, weight / whole) for token, weight in ranked[:limit]]


def stem(word: str) -> str:
    """A word without its ending, roughly: ``travelling`` and ``travels`` meet at ``travel``."""
    word = word.casefold()
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _score(method: str, firing: list[float], silent: list[float], model: str | None = None) -> Score:
    if len(firing) < _LEAST or len(silent) < _LEAST:
        raise InputError(f"{len(firing)} firing and {len(silent)} other passages are too few to score a label by")
    area = auc(firing, silent)
    low, high = interval(area, len(firing), len(silent))
    return Score(method, area, low, high, len(firing), len(silent), model)


def _judged(
    method: str, prompt: str, label: str, shown: list[tuple[str, int]], ask: Ask, model: str, seed: int
) -> Score:
    random.Random(seed).shuffle(shown)
    answers: list[tuple[float, int]] = []
    for start in range(0, len(shown), _TOGETHER):
        part = shown[start : start + _TOGETHER]
        passages = "\n\n".join(f"Passage {index}:\n{text}" for index, (text, _) in enumerate(part, 1))
        message = {"role": "user", "content": prompt.format(label=label, count=len(part), passages=passages)}
        said = _verdicts([message], len(part), ask)
        answers += [(verdict, truth) for verdict, (_, truth) in zip(said, part, strict=True)]
    firing, silent = ([verdict for verdict, truth in answers if truth == kind] for kind in (1, 0))
    return _score(method, firing, silent, model)


def _verdicts(messages: list[dict[str, str]], count: int, ask: Ask) -> list[float]:
    for _ in range(2):
        reply = ask(messages)
        if reply.refused:
            raise InputError("the model refused to judge")
        for found in re.findall(r"\[[^\[\]]*\]", reply.text)[::-1]:
            try:
                said = json.loads(found)
            except ValueError:
                continue
            if len(said) == count and all(each in (0, 1) for each in said):
                return [float(each) for each in said]
        again = f"Answer with a JSON list of exactly {count} numbers, each 0 or 1, and nothing else."
        messages = [*messages, {"role": "assistant", "content": reply.text}, {"role": "user", "content": again}]
    raise InputError(f"the model did not answer with {count} numbers")


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if len(word) > 1 or not word.isascii()]


def _name(token: str) -> str:
    return token.strip().casefold()
