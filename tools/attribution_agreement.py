"""Hold attributions against the model: predicted and actual change of a logit difference, over pairs of sentences.

    python tools/attribution_agreement.py FILE [--pairs 100] [--top 10] [--id ID]

FILE is JSON, an object a line or a list of them: ``clean_prefix``, ``clean_answer``, ``patch_answer``. The target of
each is the logit of the first answer minus that of the second; the features of largest effect by each method are
removed from the starter one at a time, each at its token, and Pearson's correlation is taken over all of them together,
once of the ``--top`` of each pair, once of all features that are active. No pair is left out: one that cannot be read
is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemlens.errors import GemlensError, InputError
from gemlens.lm.gemma import Model
from gemlens.lm.load import load_model
from gemlens.scope.load import load_sae
from gemlens.scope.sae import SAE
from gemlens.scope.starter import STARTER_DICTIONARY
from gemlens.study.attribute import attribute
from gemlens.study.targets import difference
from gemlens.study.ways import Method, gradient, integrated_gradients

METHODS: dict[str, Method] = {"gradient x activation": gradient, "integrated gradients": integrated_gradients}
ALL = 1 << 30


class Pair(NamedTuple):
    prompt: str
    answer: str
    other: str


class Agreement(NamedTuple):
    """Pearson's correlation of predicted and actual changes, and of how many."""

    of_top: float
    n_top: int
    of_all: float
    n_all: int


def read_pairs(path: Path, limit: int) -> list[Pair]:
    """The first ``limit`` of a file.

    Raises:
        InputError: not such a file.
    """
    try:
        text = path.read_text("utf-8").strip()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        return [Pair(row["clean_prefix"], row["clean_answer"], row["patch_answer"]) for row in rows[:limit]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read as pairs ({error!r}); see the head of this script") from error


def agreement(model: Model, sae: SAE, pairs: Sequence[Pair], method: Method, *, top: int = 10) -> Agreement:
    """Over all of ``pairs``."""
    found = []
    for pair in pairs:
        goal = difference(pair.answer, pair.other)
        removed = attribute(model, sae, pair.prompt, goal, method=method, verify=ALL, chat=False).removed
        found.append(np.array([(each.predicted, each.actual) for each in removed]))  # of largest effect first
    some, every = np.concatenate([each[:top] for each in found]), np.concatenate(found)
    return Agreement(_pearson(some), len(some), _pearson(every), len(every))


def _pearson(pairs: np.ndarray) -> float:
    return float(np.corrcoef(pairs.T)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--id", default=STARTER_DICTIONARY, help="a dictionary of the starter")
    options = parser.parse_args()
    pairs = read_pairs(options.file, options.pairs)
    model, sae = load_model("starter", dtype="float32"), load_sae("starter", options.id)
    for name, method in METHODS.items():
        found = agreement(model, sae, pairs, method, top=options.top)
        print(
            f"{options.id}, {name}: {found.of_top:.3f} over the top {options.top} of each of {len(pairs)} pairs "
            f"({found.n_top:,} features removed), {found.of_all:.3f} over all {found.n_all:,}",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except GemlensError as error:
        sys.exit(f"error: {error}")
