"""Scores of multiple choice against a plain run: one solution at a time, whole logits, nothing shared.

    python tools/check_choices.py [ITEMS] [--rows 200] [--model starter]

Three numbers, the largest difference of a solution's log-likelihood in nats: against float32 logits whose exponentials
are added in float64, which has to stay below 0.001; against torch's float32 log_softmax, whose own sum of 262,144
exponentials is off by some 4e-5 nats a token; and of that plain run against the first. Exits with 1 beyond 0.001.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

from gemlens.data.items import read_items, sample
from gemlens.lm.load import load_model
from gemlens.study.choice_pass import score_items
from gemlens.study.choice_texts import ids_of, read_texts

MOST = 1e-3


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="?", default="builtin")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    model = load_model(options.model, device="cpu", dtype="float32")
    items = sample(read_items(options.items), options.rows, 0).items
    _, read, _ = read_texts(model, items)
    ours = score_items(model, read)
    exact, plain = [], []
    for item in read:
        for choice, begin in enumerate(item.begins):
            ids = torch.tensor([ids_of(item, choice)])
            scores = model.module(ids, use_cache=False).logits[0, begin - 1 : -1]
            targets = ids[0, begin:, None]
            exact.append(float(scores.double().log_softmax(-1).gather(1, targets).sum()))
            plain.append(float(scores.log_softmax(-1).gather(1, targets).double().sum()))
    found = {
        "against a plain run, softmax in float64": np.abs(ours - exact).max(),
        "against a plain run, softmax in float32": np.abs(ours - plain).max(),
        "of that run, by its softmax alone": np.abs(np.array(exact) - plain).max(),
    }
    for name, apart in found.items():
        print(f"{len(read)} rows, {name}: {apart:.1e} nats")
    sys.exit(int(next(iter(found.values())) > MOST))


if __name__ == "__main__":
    main()
