"""Do ablations go as attribution graphs predict? Country capitals, on the starter: python tools/verify_circuits.py DATA

DATA holds country_capital_city.json: prompt templates and samples. For each of the first prompts the graph of the
likeliest next tokens is made, its most influential features are ablated one at a time, and the changes of the targets'
logits are held against what the graph predicts: with attention patterns, norm scales and errors frozen, and in the
model itself. Prints the correlation of each prompt, and over all of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from gemlens.lm.load import load_model
from gemlens.scope.load import load_transcoder
from gemlens.study.circuit.intervene import verify
from gemlens.study.circuit.targets import salient
from gemlens.study.circuit.trace import circuit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with country_capital_city.json")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=20, help="ablated for each prompt")
    options = parser.parse_args()
    given = json.loads((options.data / "country_capital_city.json").read_text("utf-8"))
    template = given["prompt_templates"][1]
    model = load_model("starter", device="cpu")
    layers = range(model.n_layers)
    transcoders = [load_transcoder("starter", f"transcoder_all/layer_{n}_width_2k_l0_small_affine") for n in layers]
    pairs = []
    for sample in given["samples"][: options.prompts]:
        prompt = template.format(sample["subject"])
        graph = circuit(model, transcoders, prompt, targets=salient(most=5))
        found = verify(model, transcoders, graph, options.nodes)
        pairs += [
            each for node in found.nodes for each in zip(node.predicted, node.constrained, node.free, strict=True)
        ]
        print(
            f"{prompt:40} {len(graph.features):5} features, constrained {found.constrained_correlation:.3f}, "
            f"free {found.free_correlation:.3f}",
            flush=True,
        )
    together = np.corrcoef(np.array(pairs).T)
    print(f"all {len(pairs)} changes: constrained {together[0, 1]:.3f}, free {together[0, 2]:.3f}")


if __name__ == "__main__":
    main()
