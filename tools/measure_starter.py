"""Measure the dictionaries of a folder on text that the repository ships, and write that into their cards.

    python tools/measure_starter.py [FOLDER]        the starter's own, in starter/, by default

``card.json`` of each SAE and transcoder gets ``public_slice``: the figures of the fidelity protocol on
``tests/texts/slice.txt``, cross-entropies on the first 2,048 tokens of it. ``tests/test_starter_cards.py`` measures them
again. About a minute for four dictionaries on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gemlens.batched import batched
from gemlens.data.corpus import read_documents
from gemlens.files import write
from gemlens.lm.gemma import Model
from gemlens.lm.load import load_model
from gemlens.records import Fidelity
from gemlens.report.card import figures
from gemlens.scope.listing import listing
from gemlens.scope.load import load_sae
from gemlens.scope.sae import SAE
from gemlens.study.fidelity import fidelities

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "starter/src/gemlens_starter"
SLICE = ROOT / "tests/texts/slice.txt"
# Half of them Jane Austen's, half the Bible's. The 8,192 tokens of the protocol would take four times as long.
LOSS_ROWS = 16
# 51 MB for each site that they read or write.
TOGETHER = 6


def measure(model: Model, dictionaries: Sequence[SAE]) -> list[Fidelity]:
    return fidelities(model, dictionaries, read_documents(SLICE), loss_rows=LOSS_ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=STARTER)
    folder = parser.parse_args().folder
    model = load_model("starter", dtype="float32")
    for paths in batched([each.path for each in listing(str(folder))], TOGETHER):
        measured = measure(model, [load_sae(str(folder), path) for path in paths])
        for path, found in zip(paths, measured, strict=True):
            card = folder / path / "card.json"
            told = json.loads(card.read_text("utf-8")) | {"public_slice": figures(found)}
            write(json.dumps(told, indent=2) + "\n", card)
            print(f"{path}: L0 {found.l0:.1f}, FVU {found.fvu:.3f}, {found.spliced.above_clean:.3f} nats above clean")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
