"""Passages on which a feature fires, and passages on which it does not, from a dictionary's evidence.

A passage is what stands around one token, BOS and padding left out; of a sequence only the one around its strongest
activation is taken, so that passages are independent of one another. Silent ones are drawn from sequences in which the
feature has no activation on file: where the evidence holds fewer activations than there were, it may fire weakly in
some of them, which makes a score a little worse than it is.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

from gemlens.records.labels import Context

__all__ = ["Contexts", "FileContexts", "marked", "spread"]

_BEFORE, _AFTER = 20, 12


class Contexts(Protocol):
    """Where passages come from."""

    @property
    def width(self) -> int:
        """Features."""

    def firing(self, feature: int) -> list[Context]:
        """Those on file, strongest first; none for a feature that never fired."""

    def silent(self, feature: int, count: int) -> list[Context]:
        """So many on which it does not fire, the same ones each time; fewer if there are fewer."""

    def promoted(self, feature: int) -> tuple[str, ...]:
        """Tokens that it makes likelier, most first; none where the evidence does not say."""


class _Examples(Protocol):
    """The part of ``scope.examples.Examples`` that is needed."""

    width: int
    sequences: int

    def feature(self, index: int) -> Any: ...

    def token_rows(self, sequences: Sequence[int]) -> Mapping[int, Any]: ...


class _Vocabulary(Protocol):
    """The part of ``lm.vocabulary.Vocabulary`` that is needed."""

    @property
    def special(self) -> frozenset[int]: ...

    def texts(self, ids: Sequence[int]) -> list[str]: ...


class FileContexts:
    """Passages of an ``examples.safetensors``, as text by a vocabulary; may be asked from several threads."""

    def __init__(self, examples: _Examples, vocabulary: _Vocabulary) -> None:
        self._examples, self._vocabulary = examples, vocabulary
        self._lock = Lock()

    @property
    def width(self) -> int:
        return self._examples.width

    def firing(self, feature: int, limit: int = 128) -> list[Context]:
        with self._lock:
            return self._firing(feature, limit)

    def silent(self, feature: int, count: int) -> list[Context]:
        with self._lock:
            return self._silent(feature, count)

    def promoted(self, feature: int) -> tuple[str, ...]:
        with self._lock:
            ids = [token for token, _ in self._examples.feature(feature).top]
            return tuple(text for token in ids for text in self._vocabulary.texts([token]))

    def _firing(self, feature: int, limit: int) -> list[Context]:
        found = self._examples.feature(feature)
        by_sequence: dict[int, dict[int, float]] = {}
        for sequence, position, value in zip(
            found.seq_ids.tolist(), found.positions.tolist(), found.activations.tolist(), strict=True
        ):
            if sequence in by_sequence or len(by_sequence) < limit:
                by_sequence.setdefault(sequence, {})[position] = value
        rows = self._examples.token_rows(list(by_sequence)) if by_sequence else {}
        contexts = [self._context(rows[sequence].tolist(), values) for sequence, values in by_sequence.items()]
        return [context for context in contexts if any(context.activations)]

    def _silent(self, feature: int, count: int) -> list[Context]:
        taken = set(self._examples.feature(feature).seq_ids.tolist())
        draw, there = random.Random(feature), self._examples.sequences
        free = [
            sequence for sequence in draw.sample(range(there), min(count + len(taken), there)) if sequence not in taken
        ][:count]
        rows = self._examples.token_rows(free) if free else {}
        found = []
        for sequence in free:
            ids = rows[sequence].tolist()
            places = [place for place, token in enumerate(ids) if token not in self._vocabulary.special]
            if places:
                found.append(self._context(ids, {draw.choice(places): 0.0}))
        return found

    def _context(self, ids: list[int], values: Mapping[int, float]) -> Context:
        """Around the strongest of ``values`` (position -> activation)."""
        peak = max(values, key=values.__getitem__)
        kept = [
            place
            for place in range(max(0, peak - _BEFORE), min(len(ids), peak + _AFTER))
            if ids[place] not in self._vocabulary.special
        ]
        texts = self._vocabulary.texts([ids[place] for place in kept])
        return Context(tuple(texts), tuple(values.get(place, 0.0) for place in kept))


def spread(contexts: Sequence[Context], count: int) -> list[Context]:
    """``count`` of them, evenly from the strongest to the weakest."""
    if len(contexts) <= count:
        return list(contexts)
    return [contexts[index * len(contexts) // count] for index in range(count)]


def marked(context: Context, places: Collection[int] | None = None) -> str:
    """A passage with ``<<`` and ``>>`` around the tokens at ``places``: those on which it fires unless given."""
    if places is None:
        places = [place for place, value in enumerate(context.activations) if value > 0]
    shown = (f"<<{token}>>" if place in places else token for place, token in enumerate(context.tokens))
    return "".join(shown).replace(">><<", "")
