"""Features, reconstruction and the real output of one MLP, at the last token of a prompt.

python examples/trace_circuit.py --layer 12 --prompt "The capital of France is"
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import gemlens
from gemlens.lm.gemma import Model, activations
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE


def trace_circuit(model: Model, transcoder: SAE, tokens: Tensor) -> tuple[Features, Tensor, Tensor]:
    """What a transcoder makes of what its MLP is fed at ``tokens`` ([1, n] ids, BOS left out of the result).

    Returns:
        features; reconstruction [n - 1, d]; the MLP's real output [n - 1, d].
    """
    acts = activations(model, tokens, [transcoder.reads, transcoder.writes])
    mlp_in, mlp_out = (acts[site][0, 1:].float() for site in (transcoder.reads, transcoder.writes))
    features = transcoder.encode(mlp_in)
    return features, transcoder.output(features, mlp_in), mlp_out


def main() -> None:
    parser = argparse.ArgumentParser(description="What one transcoder makes of one MLP.")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--top", type=int, default=8)
    given = parser.parse_args()
    model = gemlens.load_model("starter")
    transcoder = gemlens.load_transcoder("starter", f"transcoder_all/layer_{given.layer}_width_2k_l0_small_affine")
    tokens = encode_prompt(model, prompt_text(model, given.prompt))
    with torch.no_grad():
        features, recon, actual = trace_circuit(model, transcoder, tokens)
    explained = 1 - (actual - recon).square().sum() / (actual - actual.mean(dim=0)).square().sum()
    print(f"{transcoder.reads} -> {transcoder.writes}: {explained:.3f} of the output's variance explained")
    ids, values = features.row(len(actual) - 1)
    for index in values.argsort(descending=True)[: given.top].tolist():
        print(f"  feature {int(ids[index]):5d}  {float(values[index]):8.2f}")


if __name__ == "__main__":
    main()
