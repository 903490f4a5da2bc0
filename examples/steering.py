"""What a model says with a feature turned up: python examples/steering.py [a feature]

Strengths are in the largest activation that the feature had on a million tokens, which lies beside the dictionary:
activations of Gemma 3 are in the thousands, and differ from feature to feature.
"""

import sys

import gemlens

PROMPT, FEATURE = "I think that", 1634


def main(feature: int = FEATURE, new: int = 24) -> dict[float, str]:
    model = gemlens.load_model("starter", device="cpu")
    sae = gemlens.load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
    # One batch: a row for each strength, all with the same random numbers.
    steering = gemlens.steer_sweep(model, sae, feature, PROMPT, [-1, 0, 0.5, 1, 2], max_new_tokens=new)
    for dose in steering.doses:
        print(f"{dose.strength:5g}  perplexity {dose.perplexity:7.1f}  KL {dose.kl:.2f}  {dose.text!r}")
    return {dose.strength: dose.text for dose in steering.doses}


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
