"""Measure the dictionaries of a folder on text that the repository ships, and write that into their cards.

    python tools/measure_starter.py [FOLDER]        of starter/ by default

``card.json`` of each SAE and transcoder gets ``public_slice``: its figures by the fidelity protocol on 20,000 tokens,
``tests/texts/slice.txt``, with the cross-entropies of the first 1,024. The suite takes them again
(``tests/test_starter_dictionaries.py``), and so this is to be run whenever dictionaries, text or protocol change.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemlens.batched import batched
from gemlens.data.corpus import read_documents
from gemlens.files import write
from gemlens.lm.gemma import Model
from gemlens.lm.load import load_model
from gemlens.report.card import figures
from gemlens.scope.listing import listing
from gemlens.scope.load import load_sae
from gemlens.scope.sae import SAE
from gemlens.study.fidelity import fidelities

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "starter/src/gemlens_starter"
SLICE = ROOT / "tests/texts/slice.txt"
# Some of both books. The 64 rows of the protocol would take the suite minutes.
LOSS_ROWS = 8
# 50 MB for each site that they read or write.
TOGETHER = 6


def measure(model: Model, dictionaries: Sequence[SAE]) -> list[dict[str, Any]]:
    """The figures of each that stand in its card under ``public_slice``."""
    return [figures(found) for found in fidelities(model, dictionaries, read_documents(SLICE), loss_rows=LOSS_ROWS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=STARTER)
    folder = parser.parse_args().folder
    model = load_model("starter", dtype="float32")
    for paths in batched([each.path for each in listing(str(folder))], TOGETHER):
        measured = measure(model, [load_sae(str(folder), path) for path in paths])
        for path, found in zip(paths, measured, strict=True):
            card = folder / path / "card.json"
            told = json.loads(card.read_text("utf-8")) | {"public_slice": found}
            write(json.dumps(told, indent=2) + "\n", card)
            short = "L0 {l0:.1f}, FVU {fvu:.3f}, {ce_above_clean:.3f} nats above clean".format_map(found)
            print(f"{path}: {short}", flush=True)


if __name__ == "__main__":
    main()
