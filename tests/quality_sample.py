"""A quality card made by hand: four SAEs, eighteen transcoders and a CLT of three layers, with figures as they come."""

from __future__ import annotations

import math

from gemlens.records import (
    DENSITY_DECADES,
    DENSITY_STEPS,
    Density,
    DictionaryInfo,
    Fidelity,
    LossWith,
    Provenance,
    QualityCard,
    SetFidelity,
)

CLEAN = 3.421
SAES = "resid_post/layer_*_width_4k_l0_medium"
TRANSCODERS = "transcoder_all/layer_*_width_2k_l0_small_affine"
CLT = "clt/width_1536_l0_small"


def density(width: int, *, middle: float = -2.2, never: float = 0.02) -> Density:
    """Features of ``width`` around a frequency of 10^middle."""
    silent = round(never * width)
    powers = [(index + 0.5) / DENSITY_STEPS - DENSITY_DECADES for index in range(DENSITY_DECADES * DENSITY_STEPS)]
    weights = [math.exp(-(((power - middle) / 0.6) ** 2)) for power in powers]
    counts = [round(weight / sum(weights) * (width - silent)) for weight in weights]
    counts[12] += width - silent - sum(counts)
    return Density(tokens=65_024, never=silent, counts=tuple(counts))


def figures(path: str, site: str, writes: str, fvu: float, *, cost: float, **changes: object) -> Fidelity:
    """Of one output; ``cost`` in nats above clean, out of 1.0 for the mean and 4.0 for zero."""
    category, _, name = path.rpartition("/")
    layer, width = int(site.rpartition(".")[2]), 4096 if site == writes else 2048
    info = DictionaryInfo("starter", category, name, site, layer, width, None, "google/gemma-3-270m", path=path)
    made: dict[str, object] = {
        "dictionary": info,
        "writes": writes,
        "model_id": "starter",
        "tokens_measured": 65_536,
        "ce_tokens": 8_192,
        "l0": 15.0 + layer / 10,
        "l0_at_bos": 400.0,
        "variance_explained": 1 - fvu,
        "fvu": fvu,
        "variance_explained_trimmed": 1 - fvu,
        "variance_explained_tutorial": 1 - fvu / 5,
        "variance_explained_tutorial_of_mean": 0.8,
        "variance_explained_pca": 0.4,
        "variance_explained_linear": None if site == writes else 0.5,
        "cosine": 0.9,
        "silent": 0.02,
        "density": density(width, middle=-2.5 + layer / 20, never=0.02 + layer / 300),
        "dead": None,
        "dead_tokens": 0,
        "high_norm_share": 0.1,
        "norm_max_over_median": 3.0,
        "ce_clean": CLEAN,
        "spliced": LossWith(CLEAN + cost, cost, 0.004 + cost / 40),
        "zeroed": LossWith(CLEAN + 4.0, 4.0, 0.1),
        "mean_ablated": LossWith(CLEAN + 1.0, 1.0, 0.05),
        "verdict": (),
    }
    return Fidelity(**(made | changes))  # type: ignore[arg-type]


def card(**changes: object) -> QualityCard:
    saes = [
        figures(SAES.replace("*", str(layer)), f"resid_post.{layer}", f"resid_post.{layer}", fvu, cost=fvu * 2)
        for layer, fvu in ((5, 0.08), (9, 0.1), (12, 0.123), (15, 0.15))
    ]
    transcoders = [
        figures(
            TRANSCODERS.replace("*", str(layer)),
            f"mlp_in.{layer}",
            f"mlp_out.{layer}",
            0.05 + 0.5 * abs(math.sin(layer / 5)),
            cost=0.02 + layer % 7 / 40,
        )
        for layer in range(18)
    ]
    clt = [
        figures(CLT, f"mlp_in.{layer}", f"mlp_out.{layer}", 0.6 + layer / 10, cost=1.4 * layer) for layer in range(3)
    ]
    clt[1] = figures(
        CLT, "mlp_in.1", "mlp_out.1", 1.2, cost=1.4, verdict=("WRONG SITE OR SCALE: further than its mean",)
    )
    made: dict[str, object] = {
        "release": "starter",
        "model_id": "starter",
        "texts": ("wikitext2_test.jsonl",),
        "dictionaries": (*clt, *saes, *transcoders),
        "sets": (
            SetFidelity(
                name=TRANSCODERS,
                release="starter",
                layers=tuple(range(18)),
                model_id="starter",
                tokens=8_192,
                ce_clean=CLEAN,
                spliced=LossWith(CLEAN + 1.25, 1.25, 0.03),
                kl=1.421,
                kl_standard_error=0.021,
                agreement=0.4375,
                logit_error=3.1e-05,
            ),
        ),
        "failed": (),
        "provenance": Provenance(
            gemlens_version="0.1.0", torch_version="2.13.0", transformers_version="5.23.0", model_revision=None,
            dtype="float32", device="cpu", seed=0, temperature=None, top_p=None, created="2026-11-22T10:00:00+00:00",
        ),
    }  # fmt: skip
    return QualityCard(**(made | changes))  # type: ignore[arg-type]
