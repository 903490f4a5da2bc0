"""Encode saved activations to sparse features, in a few lines of Python; ``gemlens encode`` does the same.

    python examples/encode_sae_features.py acts.npy --sae-release gemma-scope-2b-pt-res-canonical \
        --sae-id layer_16/width_16k/canonical --out features.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gemlens import load_sae
from gemlens.data.saved import open_saved
from gemlens.report.sparse import sparse_file
from gemlens.study.encode import encode_saved, encoding_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help=".npy or .safetensors, [n, d] or [n, sequence, d]")
    parser.add_argument("--sae-release", default="starter")
    parser.add_argument("--sae-id", default="resid_post/layer_12_width_4k_l0_medium")
    parser.add_argument("--out", type=Path, default=Path("features.parquet"), help=".parquet, .npz or .jsonl")
    parser.add_argument("--skip", type=int, default=0, help="tokens at the start of each sequence: 1 for a BOS")
    options = parser.parse_args()
    sae = load_sae(options.sae_release, options.sae_id)
    saved = open_saved(options.file)
    with sparse_file(options.out, encoding_of(sae, saved, skip=options.skip)) as add:
        for part in encode_saved(sae, saved, skip=options.skip):
            add(part)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
