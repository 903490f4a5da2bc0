"""Generate 64 tokens, greedy, from the starter: with every token's features beside plain ``generate``, float32.

gemlens' side is ``analyze``: generation, capture at layer 12, encode, records.
"""

from __future__ import annotations

from typing import Any

from timing import Aim, Case, Work

PROMPT, NEW, INPUTS = 32, 64, 2


def _inputs(seed: int, count: int) -> tuple[Any, list[str]]:
    from given import prompts, starter

    model = starter()
    # An end of text would end one run early and not the next.
    model.module.generation_config.eos_token_id = None
    return model, prompts(model, count, PROMPT, seed)


def _analyze(model: Any, sae: Any, prompt: str) -> Any:
    import gemlens

    return gemlens.analyze(model, sae, prompt, max_new_tokens=NEW, greedy=True)


def _plain_way(model: Any, prompt: str) -> Any:
    import torch

    from given import token_ids

    ids = token_ids(model, prompt)
    return model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)


def _gemlens(seed: int) -> Work:
    from given import starter_dictionary

    model, (warm, *timed) = _inputs(seed, 1 + INPUTS)
    sae = starter_dictionary()
    return Work(lambda prompt: _analyze(model, sae, prompt), timed, warm, [model.module, sae])


def _plain(seed: int) -> Work:
    model, (warm, *timed) = _inputs(seed, 1 + INPUTS)
    return Work(lambda prompt: _plain_way(model, prompt), timed, warm, [model.module])


def _same(seed: int) -> dict[str, Any]:
    from given import starter_dictionary

    model, (prompt,) = _inputs(seed, 1)
    ours = [token.token_id for token in _analyze(model, starter_dictionary(), prompt).tokens]
    theirs = _plain_way(model, prompt)[0].tolist()
    return {"tokens": len(ours), "holds": ours == theirs and len(ours) == PROMPT + NEW}


CASES = [
    Case("64 new tokens", {"gemlens": _gemlens, "plain generate": _plain}, {"plain generate": Aim(longer=1.15)}, _same)
]
