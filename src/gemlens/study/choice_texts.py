"""Items as the model reads them: token ids, where the scored tokens begin, and which tokens are wanted.

The whole string of context and continuation is tokenised at once, BOS before it once. Where the context's own tokens
are its beginning, the rest is scored. A tokenizer may join the end of a context and what follows into one token; that
token is then scored, and the item is counted: nothing is fed that the tokenizer would not make of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError
from gemlens.lm.forks import Fork, fork
from gemlens.lm.gemma import Model
from gemlens.lm.text import encode_documents, pieces
from gemlens.records.choices import Item, Skipped

__all__ = ["Read", "ids_of", "read_texts", "scored_pairs", "wanted_tokens"]

_TOGETHER = 512


@dataclass(frozen=True, eq=False)
class Read:
    """One item in tokens."""

    fork: Fork
    begins: tuple[int, ...]
    """For each choice, the place in its text of the first scored token."""
    joined: bool
    """A token spans the end of a context."""

    def scored(self, choice: int) -> NDArray[np.int64]:
        """Where the scored tokens of a choice stand in the fork."""
        return self.fork.paths[choice][self.begins[choice] :]


def read_texts(model: Model, items: Sequence[Item]) -> tuple[list[Item], list[Read], list[Skipped]]:
    """Tokenise; an item with a choice that is too long for the model, or that adds no token, is left out and said.

    Raises:
        InputError: a token that the model has no embedding for.
    """
    kept, read, skipped = [], [], []
    for start in range(0, len(items), _TOGETHER):
        part = items[start : start + _TOGETHER]
        wholes = iter(_ids(model, [c + t for item in part for c, t in _pairs(item)]))
        contexts = iter(_ids(model, [c for item in part for c, _ in _pairs(item)]))
        for item in part:
            texts = [next(wholes) for _ in item.choices]
            before = [next(contexts) for _ in item.choices]
            if (longest := max(map(len, texts))) > model.context:
                skipped.append(
                    Skipped(item.id, f"a choice of {longest} tokens, the context of {model.name} holds {model.context}")
                )
                continue
            begins = tuple(_common(whole, own) for whole, own in zip(texts, before, strict=True))
            if any(begin >= len(text) for begin, text in zip(begins, texts, strict=True)):
                skipped.append(Skipped(item.id, "a choice that adds no token to its context"))
                continue
            kept.append(item)
            joined = any(begin < len(own) for begin, own in zip(begins, before, strict=True))
            read.append(Read(fork(texts), begins, joined))
    return kept, read, skipped


def scored_pairs(read: Read) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """What the head is asked.

    Returns:
        Places in the fork whose logits are used, each once; and for each scored token of each choice: its index among
        these, its id, its choice.
    """
    before = [path[begin - 1 : -1] for path, begin in zip(read.fork.paths, read.begins, strict=True)]
    places = np.unique(np.concatenate(before))
    targets = [read.fork.ids[read.scored(choice)] for choice in range(len(before))]
    choices = np.repeat(np.arange(len(before)), [len(each) for each in before])
    return places, np.searchsorted(places, np.concatenate(before)), np.concatenate(targets), choices


def wanted_tokens(read: Read, *, last: bool) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Places in the fork that dictionaries see, each once, and for each choice its own as indices among them."""
    own = [read.scored(choice)[-1:] if last else read.scored(choice) for choice in range(len(read.begins))]
    places = np.unique(np.concatenate(own))
    return places, [np.searchsorted(places, each) for each in own]


def ids_of(read: Read, choice: int) -> list[int]:
    """A choice's whole text as token ids, BOS first."""
    ids: list[int] = read.fork.ids[read.fork.paths[choice]].tolist()
    return ids


def _pairs(item: Item) -> list[tuple[str, str]]:
    return list(zip(item.contexts, item.continuations, strict=True))


def _ids(model: Model, texts: list[str]) -> list[list[int]]:
    unique = list(dict.fromkeys(texts))
    known = model.config.vocab_size
    found = {text: [model.bos, *ids] for text, ids in zip(unique, encode_documents(model, unique), strict=True)}
    for ids in found.values():
        if beyond := [token for token in ids if token >= known]:
            raise InputError(
                f"an item holds {pieces(model, beyond)[0]!r}, for which {model.name} has no embedding; leave it out"
            )
    return [found[text] for text in texts]


def _common(whole: list[int], context: list[int]) -> int:
    """How many tokens of the context begin the whole text; 1, BOS, at least."""
    common = 0
    while common < min(len(whole), len(context)) and whole[common] == context[common]:
        common += 1
    return max(common, 1)
