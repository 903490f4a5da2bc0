"""An attribution and lenses made by hand, with texts that try to be more than text."""

from __future__ import annotations

import numpy as np

from gemlens.records import DictionaryInfo, Provenance, TokenRecord
from gemlens.records.attribution import Attribution, Completeness, FeatureEffects, Removal
from gemlens.records.lens import FeatureLens, FeatureTokens, ResidualLens, TokenLogit
from report_sample import PAYLOADS

__all__ = ["attribution", "feature_lens", "residual_lens"]

MADE = Provenance("0.1", "2.13", "5.23", "abc", "float32", "cpu", 0, None, None, "2026-01-01T00:00:00+00:00")
SAE = DictionaryInfo(
    "release", "resid_post", "layer_2_width_16k", "resid_post.2", 2, 16384, "gemma-3-270m/2-gemmascope-2-res-16k"
)
OTHER = DictionaryInfo("release", "clt", PAYLOADS[0], "mlp_in.1", 1, 40, None)
TEXTS = ["<bos>", "The", " sea", PAYLOADS[0], "\n", "[red]x"]


def tokens(texts=TEXTS):
    return tuple(
        TokenRecord(index, 10 + index, text, text, False, index == 0, None if index == 0 else 3, ())
        for index, text in enumerate(texts)
    )


def _effects(info, entries, n):
    position, feature, activation, effect = (np.array(column) for column in zip(*entries, strict=True))
    error = np.linspace(0, 0.5, n)
    return FeatureEffects(
        info, (info.site,), position, feature, activation.astype(np.float32), effect, error * 0, error * 0, error
    )


def attribution(**changes) -> Attribution:
    first = [(1, 7, 3.0, 1.5), (2, 7, 5.0, -0.25), (2, 900, 2.0, -2.0), (4, 31, 1.0, 0.125), (5, 7, 1.0, 0.5)]
    made = {
        "prompt": "".join(TEXTS[1:]),
        "system": PAYLOADS[1],
        "prompt_text": "".join(TEXTS),
        "model_id": "google/gemma-3-270m",
        "target": f"logit of {PAYLOADS[0]!r} after token 5",
        "value": 12.25,
        "method": "gradient x activation",
        "tokens": tokens(),
        "effects": (_effects(SAE, first, 6), _effects(OTHER, [(3, 2, 1.0, 0.75)], 6)),
        "completeness": (
            Completeness(SAE, "nothing at what it writes", -0.125, 0.5, 0.0, 1.5, 2.0),
            Completeness(OTHER, "nothing at what it writes", 0.75, 0.0, -0.25, 1.5, 9.0),
        ),
        "removed": (
            Removal(0, 2, 900, -2.0, -1.75),
            Removal(0, 1, 7, 1.5, 1.25),
            Removal(1, 3, 2, 0.75, 1.0),
            Removal(0, 5, 7, 0.5, 0.0),
        ),
        "provenance": MADE,
        "warnings": (f"warning {PAYLOADS[0]}",),
    }
    return Attribution(**{**made, **changes})


def feature_lens() -> FeatureLens:
    top = tuple(TokenLogit(index, text, 3.0 - index) for index, text in enumerate([" Paris", PAYLOADS[0], "", "\n"]))
    bottom = tuple(TokenLogit(20 + index, text, -3.0 + index) for index, text in enumerate([" no", "[red]x"]))
    features = (FeatureTokens(7, top, bottom, (0, 1, 50, 51)), FeatureTokens(9, top, bottom))
    return FeatureLens("google/gemma-3-270m", SAE, ("resid_post.2",), features, MADE, (f"warning {PAYLOADS[0]}",))


def residual_lens() -> ResidualLens:
    layers, n = 4, len(TEXTS)
    ids = np.arange(layers * n * 2).reshape(layers, n, 2) % 5
    probability = np.linspace(0, 1, layers * n * 2, dtype=np.float32).reshape(layers, n, 2)
    names = {0: " Paris", 1: PAYLOADS[0], 2: "", 3: "\n", 4: "[red]x"}
    rank = np.arange(layers * n).reshape(layers, n)[::-1] % 3
    return ResidualLens(
        "".join(TEXTS[1:]), None, "".join(TEXTS), "google/gemma-3-270m", tokens(), ids, probability,
        probability[:, :, 0], rank, names, MADE,
    )  # fmt: skip
