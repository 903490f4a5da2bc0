"""Analyze a prompt of 512 tokens at layer 12 of the starter, no generation, everything loaded, float32.

The other side is the plain way that scripts go: the whole forward pass with all hidden states and all logits, a dense
encode of every token, the top 5.
"""

from __future__ import annotations

from typing import Any

from timing import Aim, Case, Work

TOKENS, INPUTS, TOP = 512, 3, 5


def _inputs(seed: int, count: int) -> tuple[Any, Any, list[str]]:
    from given import prompts, starter, starter_dictionary

    model = starter()
    return model, starter_dictionary(), prompts(model, count, TOKENS, seed)


def _gemlens(seed: int) -> Work:
    import gemlens

    model, sae, (warm, *timed) = _inputs(seed, 1 + INPUTS)
    return Work(lambda prompt: gemlens.analyze(model, sae, prompt, top_k=TOP), timed, warm, [model.module, sae])


def _plain_way(model: Any, sae: Any) -> tuple[Any, list[Any]]:
    """A function of a prompt, and the tensors it holds."""
    import torch

    from equality import encoder_of
    from given import SITE

    weights = encoder_of(sae)
    w_enc, b_enc, threshold = weights.w_enc.contiguous(), weights.b_enc, weights.threshold

    @torch.no_grad()
    def run(prompt: str) -> Any:
        tokens = model.tokenizer(model.tokenizer.bos_token + prompt, add_special_tokens=False, return_tensors="pt")
        output = model.module(**tokens, output_hidden_states=True)
        # The first hidden state is the embeddings'.
        x = output.hidden_states[SITE.layer + 1][0]
        pre = x @ w_enc + b_enc
        acts = torch.relu(pre) * (pre > threshold)
        return acts.topk(TOP, dim=-1)

    return run, [w_enc, b_enc, threshold]


def _plain(seed: int) -> Work:
    model, sae, (warm, *timed) = _inputs(seed, 1 + INPUTS)
    run, weights = _plain_way(model, sae)
    del sae
    return Work(run, timed, warm, [model.module, weights])


def _same(seed: int) -> dict[str, Any]:
    import torch

    import gemlens

    model, sae, (prompt,) = _inputs(seed, 1)
    ours = gemlens.analyze(model, sae, prompt, top_k=TOP).tokens[1:]
    values, ids = (part[1:] for part in _plain_way(model, sae)[0](prompt))
    # Fewer than TOP may fire: the plain way has zeros there.
    mine = torch.tensor([[f.activation for f in t.features] + [0.0] * (TOP - len(t.features)) for t in ours])
    worst = float(((mine - values).abs() / values.clamp(min=1e-3)).max())
    # Of two that are equal within rounding either may come first, or be the last that is listed: counted only.
    theirs = [set(row[: len(token.features)]) for token, row in zip(ours, ids.tolist(), strict=True)]
    differing = sum({f.feature_id for f in token.features} != top for token, top in zip(ours, theirs, strict=True))
    return {"tokens": len(ours), "differing_top_5": differing, "worst_value": worst, "holds": worst < 1e-4}


CASES = [Case("512 tokens", {"gemlens": _gemlens, "plain way": _plain}, {"plain way": Aim(faster=2.5)}, _same)]
