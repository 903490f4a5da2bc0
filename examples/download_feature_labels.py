"""Labels of one dictionary from Neuronpedia, as sae/{release}/{id with / as _}/feature_labels.json and metadata.json.

    python examples/download_feature_labels.py
    python examples/download_feature_labels.py --sae-release gemma-scope-2b-pt-res-canonical \\
        --sae-id layer_20/width_16k/canonical --neuronpedia-id gemma-2-2b/20-gemmascope-res-16k

The same as ``gemlens labels download``, which also keeps them where every view of gemlens finds them.
"""

from __future__ import annotations

import argparse

from gemlens.app.cli import main


def arguments() -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae-release", default="gemma-scope-2b-pt-res-canonical")
    parser.add_argument("--sae-id", default="layer_16/width_16k/canonical")
    parser.add_argument("--neuronpedia-id", help="MODEL/SOURCE; what the catalogue knows unless given")
    parser.add_argument("--out-dir", default="sae")
    given = parser.parse_args()
    found = ["--sae-release", given.sae_release, "--sae-id", given.sae_id, "--out-dir", given.out_dir]
    return found + (["--neuronpedia-id", given.neuronpedia_id] if given.neuronpedia_id else [])


if __name__ == "__main__":
    main(["labels", "download", *arguments()])
