"""Which features speak for " Paris"? Attribution of a logit to the features of one dictionary.

    python examples/attribution.py

The model's own error term is kept apart, BOS is left out, and the ten features of largest effect are removed one at a
time to see how far the prediction holds.
"""

from __future__ import annotations

import gemlens

PROMPT, TARGET = "The capital of France is", " Paris"


def main() -> None:
    model = gemlens.load_model("starter")
    sae = gemlens.load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
    found = gemlens.attribute(model, sae, PROMPT, TARGET, verify=10)

    print(f"{found.target}: {found.value:.2f}, by {found.method}")
    for strong in found.strongest(10):
        token = found.tokens[strong.position].text
        print(f"  feature {strong.feature:5} {strong.effect:+8.3f}, most at {token!r}")

    (complete,) = found.completeness
    print(f"features {complete.features:+.2f}, bias {complete.bias:+.2f}, error {complete.error:+.2f}")

    print("removed one at a time:")
    for each in found.removed:
        print(f"  feature {each.feature:5} predicted {each.predicted:+8.3f}, actual {each.actual:+8.3f}")
    print(f"correlation {found.correlation:.3f}")


if __name__ == "__main__":
    main()
