"""What a model expects without its strongest features: python examples/ablation.py ["a prompt"]

Only ``activation x decoder row`` is taken out: what the dictionary does not explain, its error, stays where it is.
"""

import sys

import torch

import gemlens
from gemlens.lm.text import encode_prompt, prompt_text

PROMPT = "The Eiffel Tower stands in Paris, the capital of France. The Colosseum stands in"


def main(prompt: str = PROMPT) -> tuple[torch.Tensor, torch.Tensor]:
    model = gemlens.load_model("starter", device="cpu")
    sae = gemlens.load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
    features = [each.feature_id for each in gemlens.analyze(model, sae, prompt).tokens[-1].features]

    tokens = encode_prompt(model, prompt_text(model, prompt))
    with torch.no_grad():
        before = model.module(tokens).logits[0, -1].softmax(-1)
        with gemlens.ablate(model, sae, features):
            after = model.module(tokens).logits[0, -1].softmax(-1)
    print(f"features {features} of {sae.reads}, taken out at every token but BOS")
    for token in before.topk(5).indices.tolist():
        print(f"{model.tokenizer.decode([token])!r:14} {before[token]:.4f} -> {after[token]:.4f}")
    return before, after


if __name__ == "__main__":
    main(*sys.argv[1:])
