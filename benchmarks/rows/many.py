"""Analyze 64 prompts of 20 tokens at layer 12 of the starter: batched by length, and one at a time, float32."""

from __future__ import annotations

from typing import Any

from timing import Aim, Case, Work

PROMPTS, TOKENS, INPUTS = 64, 20, 2


def _inputs(seed: int, count: int) -> tuple[Any, Any, list[list[str]]]:
    from given import prompts, starter, starter_dictionary

    model = starter()
    all_prompts = prompts(model, count * PROMPTS, TOKENS, seed)
    return model, starter_dictionary(), [all_prompts[each * PROMPTS : (each + 1) * PROMPTS] for each in range(count)]


def _batched_way(model: Any, sae: Any) -> Any:
    from gemlens import analyze_many

    return lambda prompts: list(analyze_many(model, [sae], prompts))


def _single_way(model: Any, sae: Any) -> Any:
    from gemlens import analyze

    return lambda prompts: [analyze(model, [sae], prompt) for prompt in prompts]


def _side(way: Any) -> Any:
    def side(seed: int) -> Work:
        model, sae, (warm, *timed) = _inputs(seed, 1 + INPUTS)
        return Work(way(model, sae), timed, warm, [model.module, sae])

    return side


def _same(seed: int) -> dict[str, Any]:
    import numpy as np

    model, sae, (prompts,) = _inputs(seed, 1)
    pairs = list(zip(_batched_way(model, sae)(prompts), _single_way(model, sae)(prompts), strict=True))
    differing, worst, largest = 0, 0.0, 0.0
    for batched, single in pairs:
        dense = np.zeros((2, TOKENS, sae.width), dtype=np.float32)
        for side, analysis in enumerate((batched, single)):
            active = analysis.activations[0]
            dense[side, np.repeat(np.arange(TOKENS), np.diff(active.indptr)), active.ids] = active.values
        differing += int(((dense[0] > 0) != (dense[1] > 0)).sum())
        both = (dense > 0).all(0)
        worst = max(worst, float((abs(dense[0] - dense[1])[both]).max()))
        largest = max(largest, float(dense.max()))
    # Other shapes round otherwise all the way up the model, so a feature at its threshold may come or go.
    active = sum(len(single.activations[0].ids) for _, single in pairs)
    facts = {"active": active, "differing": differing, "worst_value_of_the_largest": worst / largest}
    return facts | {"holds": differing <= active // 1000 and worst / largest < 1e-4}


CASES = [
    Case(
        "64 prompts of 20 tokens",
        {"gemlens": _side(_batched_way), "one at a time": _side(_single_way)},
        {"one at a time": Aim(faster=3)},
        _same,
    )
]
