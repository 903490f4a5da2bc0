"""Which features fire on each token of a prompt: python examples/extraction.py ["a prompt"]"""

import sys

import gemlens

PROMPT = "The Eiffel Tower stands in Paris, the capital of France. The Colosseum stands in"


def main(prompt: str = PROMPT) -> gemlens.Analysis:
    model = gemlens.load_model("starter", device="cpu")
    sae = gemlens.load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
    analysis = gemlens.analyze(model, sae, prompt)
    for token in analysis.tokens:
        strongest = ", ".join(f"{each.feature_id} ({each.activation:.0f})" for each in token.features)
        # BOS is left out: no dictionary was trained on it, and thousands of features would fire there.
        print(f"{token.text!r:14} {strongest if token.l0 is not None else 'not read'}")
    return analysis


if __name__ == "__main__":
    main(*sys.argv[1:])
