"""SAEDashboard on a model folder, an SAE's tensors and rows of tokens, in an environment of its own.

    benchmarks/.env-dashboard/bin/python benchmarks/dashboard_side.py MODEL SAE TOKENS

Loads everything and prints ``ready``; each line that then comes on standard input, a new folder for its cache of
activations, is a run, and a line with its seconds is the answer. The data is made of all features; no page
is written, which takes longer than all else. gemlens is not installed there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

HOOK = "blocks.12.hook_resid_post"
# What it makes of a feature takes some 10 MB: so many are made at a time, then dropped, as its runner for Neuronpedia
# does once they are written.
TOGETHER = 256


def model_of(folder: str) -> Any:
    from sae_lens import HookedSAETransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    return HookedSAETransformer.from_pretrained_no_processing(
        "google/gemma-3-270m",
        hf_model=module,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype=torch.float32,
        device="cpu",
    )


def sae_of(file: str) -> Any:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    tensors = load_file(file)
    d, width = tensors["W_enc"].shape
    config = JumpReLUSAEConfig(
        d_in=d, d_sae=width, apply_b_dec_to_input=False, dtype="float32", device="cpu",
        metadata=SAEMetadata(hook_name=HOOK, model_name="google/gemma-3-270m"),
    )  # fmt: skip
    sae = JumpReLUSAE(config)
    sae.load_state_dict(tensors)
    return sae


def main() -> None:
    model_folder, sae_file, tokens_file = sys.argv[1:]
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    model, sae = model_of(model_folder), sae_of(sae_file)
    rows = torch.from_numpy(np.load(tokens_file))
    print("ready", flush=True)
    for cache in map(str.strip, sys.stdin):
        start = time.perf_counter()
        for first in range(0, sae.cfg.d_sae, TOGETHER):
            config = SaeVisConfig(
                hook_point=HOOK, features=list(range(first, first + TOGETHER)), minibatch_size_features=TOGETHER,
                minibatch_size_tokens=32, dtype="float32", device="cpu", cache_dir=Path(cache),
                ignore_positions=[0],  # BOS, as gemlens
            )  # fmt: skip
            SaeVisRunner(config).run(encoder=sae, model=model, tokens=rows)
        print("seconds", time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
