"""PIQA, Gemma-2-2B and every layer's SAE: the strongest features at the last token of each solution, as JSON.

    python run_sae_feature_extraction_all_layers.py --num-samples 200 --top-k 50 --output-file results.json

It needs ``pip install 'gemlens[datasets]'``, Gemma's licence accepted on the hub, and a token in HF_TOKEN. Whatever
else ``gemlens choices --help`` lists may be given too: ``--model-id starter --dataset builtin`` runs offline.
"""

from __future__ import annotations

import sys

from gemlens.app.cli import main

if __name__ == "__main__":
    main(["choices", *sys.argv[1:]])
