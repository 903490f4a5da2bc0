"""``Analysis`` records built by hand for the tests of ``gemlens.report``: a plain one and a hostile one."""

from __future__ import annotations

import dataclasses

import numpy as np

from gemlens.records import (
    ActiveFeatures,
    Analysis,
    DictionaryInfo,
    FeatureActivation,
    Provenance,
    TokenRecord,
)

PROVENANCE = Provenance(
    gemlens_version="0.1.0",
    torch_version="2.9.0",
    transformers_version="4.57.1",
    model_revision="9b0cfec",
    dtype="float32",
    device="cpu",
    seed=0,
    temperature=None,
    top_p=None,
    created="2026-01-02T03:04:05Z",
)
SAE = DictionaryInfo(
    release="google/gemma-scope-2-270m-it",
    category="resid_post",
    id="layer_12_width_16k_l0_small",
    site="resid_post.12",
    layer=12,
    width=16384,
    neuronpedia="gemma-3-270m-it/12-gemmascope-2-res-16k",
    model_name="google/gemma-3-270m-it",
    revision="4f1d2c7",
    path="resid_post/layer_12_width_16k_l0_small",
)
TRANSCODER = DictionaryInfo(
    release="google/gemma-scope-2-270m-it",
    category="transcoder",
    id="layer_5_width_16k_l0_small",
    site="mlp_in.5",
    layer=5,
    width=16384,
    neuronpedia=None,
)
TOP_K = 5

CHAT_HEAD = ["<bos>", "<start_of_turn>", "user", "\n"]
PROMPT = ["Write", " a", " line", " about", " the", " sea", " in", " 日本", "語", ".", "<end_of_turn>", "\n"]
MODEL_TURN = ["<start_of_turn>", "model", "\n"]
# The wave is one character in four byte tokens: only the last of them carries text.
ANSWER = ["静", "かな", "海", "、", "\n\n", "the", " tide", " keeps", " the", " time", ",", "   ", "and"]
BYTES = ["<0xF0>", "<0x9F>", "<0x8C>", "<0x8A>"]
AFTER = [" the", " moon", " keeps", " the", " tide", ".", "\t", "\u202e", "<end_of_turn>"]


def sample(dictionaries: int = 2) -> Analysis:
    """A chat prompt of 19 tokens and an answer of 26: newlines, multi-byte characters, control tokens."""
    prompt = [(text, text, False) for text in CHAT_HEAD + PROMPT + MODEL_TURN]
    answer = [(text, text, True) for text in ANSWER]
    answer += [(piece, "" if piece != "<0x8A>" else "🌊", True) for piece in BYTES]
    answer += [(text, text, True) for text in AFTER]
    return build(
        prompt + answer,
        (SAE, TRANSCODER)[:dictionaries],
        prompt="Write a line about the sea in 日本語.",
        system=None,
        warnings=("The transcoder was trained on google/gemma-3-270m-pt, not on this model.",)[: dictionaries - 1],
    )


def build(
    tokens: list[tuple[str, str, bool]],
    dictionaries: tuple[DictionaryInfo, ...],
    *,
    prompt: str,
    system: str | None,
    warnings: tuple[str, ...] = (),
    model_id: str = "google/gemma-3-270m-it",
) -> Analysis:
    """Invent activations for (piece, text, is_generated) tokens: equal texts share features, as in a real model."""
    active = tuple(_activations([text for _, text, _ in tokens], k) for k in range(len(dictionaries)))
    rows = [_top(active, i) for i in range(len(tokens))]
    records = tuple(
        TokenRecord(
            position=i,
            token_id=2 + i * 37,
            token=piece.replace(" ", "▁"),
            text=text,
            is_generated=generated,
            is_special=piece.startswith("<") and piece.endswith(("turn>", "bos>")),
            l0=len(active[0].row(i)[0]) if i else None,
            features=rows[i],
        )
        for i, (piece, text, generated) in enumerate(tokens)
    )
    return Analysis(
        prompt=prompt,
        system=system,
        prompt_text="".join(text for _, text, generated in tokens if not generated),
        model_id=model_id,
        top_k=TOP_K,
        max_new_tokens=32,
        dictionaries=dictionaries,
        tokens=records,
        activations=active,
        provenance=PROVENANCE,
        warnings=warnings,
    )


def long_sample(tokens: int) -> Analysis:
    words = [" the", " tide", " keeps", " time", ",", "\n", " moon", " and", " sea"]
    text = [(word, word, i > tokens // 2) for i, word in ((i, words[(i * i) % 9]) for i in range(tokens))]
    return build([("<bos>", "<bos>", False), *text[1:]], (SAE,), prompt="A long text", system=None)


def _activations(texts: list[str], k: int) -> ActiveFeatures:
    ids: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for i, text in enumerate(texts):
        seed = np.random.default_rng([k, *text.encode("utf-8", "replace")])
        count = int(seed.integers(12, 40)) if i else 0
        own = seed.choice(16384, size=count, replace=False)
        # Twenty features that any token may have, so that columns are not all single entries.
        common = np.random.default_rng(k).choice(16384, size=20, replace=False)[seed.random(20) < 0.4]
        row = np.unique(np.concatenate([own, common])) if i else own
        strength = seed.gamma(1.6, 90, size=len(row)) * (1 + 0.2 * np.random.default_rng([k, i]).random())
        if text == "<start_of_turn>":
            strength *= 12  # control tokens are outliers in real models
        ids.append(row)
        values.append(strength.astype(np.float32))
    indptr = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)
    return ActiveFeatures(indptr=indptr, ids=np.concatenate(ids).astype(np.int64), values=np.concatenate(values))


def _top(active: tuple[ActiveFeatures, ...], token: int) -> tuple[FeatureActivation, ...]:
    found: list[FeatureActivation] = []
    for k, features in enumerate(active):
        ids, values = features.row(token)
        for j in np.argsort(-values, kind="stable")[:TOP_K]:
            found.append(FeatureActivation(int(ids[j]), float(values[j]), k))
    return tuple(found)


PAYLOADS = (
    "</script><script>window.__xss=1</script>",
    "<script>window.__xss=2</script>",
    "<img src=x onerror=window.__xss=3>",
    "<svg onload=window.__xss=4>",
    "<svg><script>window.__xss=5</script></svg>",
    '"><script>window.__xss=6</script>',
    "' onmouseover='window.__xss=7",
    '" autofocus onfocus=window.__xss=8 x="',
    "<!--<script>window.__xss=9",
    "--><script>window.__xss=10</script>",
    "</style><script>window.__xss=11</script>",
    "</title><script>window.__xss=12</script>",
    "<iframe srcdoc='<script>parent.__xss=13</script>'></iframe>",
    "<a href=javascript:window.__xss=14>x</a>",
    "<body onload=window.__xss=15>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "{{7*7}}{% raw %}${7*7}",
    "]]>\u2028window.__xss=17//\u2029",
    "&lt;b&gt;&amp;&quot;",
    "\\u003cscript\\u003ewindow.__xss=18\\u003c/script\\u003e",
    "<input autofocus onfocus=alert(19)>",
)


def hostile() -> Analysis:
    """The payloads in every string that comes from a user, a model or somebody's file; a bare surrogate as well."""
    tokens = [("<bos>", "<bos>", False)]
    tokens += [(payload, payload, i % 2 == 1) for i, payload in enumerate(PAYLOADS)]
    tokens += [(payload, "", True) for payload in PAYLOADS] + [("\ud800", "\ud800", True)]
    everything = "\n".join(PAYLOADS) + "\ud800\x00\x1b[31m"
    unsafe = dataclasses.replace(
        SAE, release=everything, id=PAYLOADS[5], site=PAYLOADS[2], category=PAYLOADS[0], path=everything,
        neuronpedia="javascript:window.__xss=20//",
    )  # fmt: skip
    second = dataclasses.replace(unsafe, neuronpedia='gemma-3-270m/x"onclick="window.__xss=21')
    analysis = build(
        tokens, (unsafe, second), prompt=everything, system=everything, warnings=PAYLOADS, model_id=everything
    )
    provenance = dataclasses.replace(PROVENANCE, model_revision=everything, device=PAYLOADS[0], created=PAYLOADS[6])
    return dataclasses.replace(analysis, provenance=provenance)
