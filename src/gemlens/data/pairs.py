"""Two sets of texts as items of two choices, so that what is tested on right and wrong is tested on them."""

from __future__ import annotations

import random
from pathlib import Path

from gemlens.data.corpus import documents, read_documents
from gemlens.data.items import Items
from gemlens.errors import InputError
from gemlens.records.choices import Item, Skipped

__all__ = ["read_pairs"]


def read_pairs(a: Path, b: Path, *, paired: bool = False, seed: int = 0) -> Items:
    """Pair the texts of two files.

    Args:
        a, b: ``.txt`` files of one text a line; ``.jsonl`` and ``.parquet`` with one under ``text`` a row.
        paired: line by line. Otherwise at random, by the seed; what is left of the longer file is left out and listed.

    Raises:
        NotFoundError, InputError: no such file, another kind, an empty one, or files of different length with
            ``paired``.
    """
    first, second = _texts(a), _texts(b)
    if paired and len(first) != len(second):
        raise InputError(
            f"{a} has {len(first)} texts and {b} {len(second)}; without --paired they are paired at random"
        )
    left, right = list(range(len(first))), list(range(len(second)))
    if not paired:
        draw = random.Random(seed)
        draw.shuffle(left)
        draw.shuffle(right)
    items, skipped = [], []
    for index, (i, j) in enumerate(zip(left, right, strict=False)):
        texts = (first[i], second[j])
        if texts[0] == texts[1]:
            skipped.append(Skipped(index, "both texts are equal"))
        else:
            items.append(Item(index, f"{a.name} {i + 1} and {b.name} {j + 1}", texts, 0, ("", ""), texts))
    for name, rest in ((a.name, left[len(right) :]), (b.name, right[len(left) :])):
        skipped += [Skipped(each, f"text {each + 1} of {name} has no partner") for each in sorted(rest)]
    if not items:
        raise InputError(f"{a} and {b} make no pair of different texts")
    return Items(f"{a.name} against {b.name}", items, skipped)


def _texts(path: Path) -> list[str]:
    (source,) = documents([path]) if not path.is_dir() else [None]
    if not isinstance(source, Path):
        raise InputError(
            f"{path} is no file of texts; name a .txt file of one a line, or .jsonl or .parquet with 'text'"
        )
    found = list(read_documents(source))
    if source.suffix.lower() == ".txt":
        found = [line.rstrip("\r") for text in found for line in text.split("\n")]
    kept = [text for text in found if text.strip()]
    if not kept:
        raise InputError(f"{path} holds no text; write one a line")
    return kept
