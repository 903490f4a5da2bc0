"""Read the residual stream after block 12 of the starter, 4 x 128 tokens, float32.

The floor is Hugging Face's own embedding and blocks, called one after another and no further: the least any tool
that uses these modules can take.
"""

from __future__ import annotations

from typing import Any

from timing import Aim, Case, Work

# Many inputs: what is asked is a difference of 2 %.
BATCH, TOKENS, INPUTS = 4, 128, 15


def _batches(model: Any, count: int, seed: int) -> list[Any]:
    import torch

    from given import prompts, token_ids

    rows = [token_ids(model, prompt) for prompt in prompts(model, count * BATCH, TOKENS, seed)]
    return [torch.cat(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]


def _gemlens_way(model: Any) -> Any:
    from gemlens.lm.gemma import activations
    from given import SITE

    return lambda ids: activations(model, ids, [SITE])[SITE]


def _floor_way(model: Any) -> Any:
    """As transformers 4.57 has it. Without padding, and shorter than the window, every block is plainly causal."""
    import torch

    from given import SITE

    backbone = model.backbone

    @torch.no_grad()
    def run(ids: Any) -> Any:
        x = backbone.embed_tokens(ids)
        position = torch.arange(ids.shape[1])[None]
        rotary = {
            "position_embeddings_global": backbone.rotary_emb(x, position),
            "position_embeddings_local": backbone.rotary_emb_local(x, position),
        }
        for block in backbone.layers[: SITE.layer + 1]:
            (x,) = block(x, attention_mask=None, position_ids=position, **rotary)
        return x

    return run


def _transformer_lens_way(model: Any) -> Any:  # noqa: ARG001 - it loads its own
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    from gemlens.lm.starter import starter_folder
    from given import SITE

    bridge = TransformerBridge.boot_transformers(str(starter_folder()), device="cpu")
    name = SITE.transformer_lens

    @torch.no_grad()
    def run(ids: Any) -> Any:
        return bridge.run_with_cache(ids, names_filter=name, stop_at_layer=SITE.layer + 1)[1][name]

    run.model = bridge  # type: ignore[attr-defined]
    return run


def _side(way: Any) -> Any:
    def side(seed: int) -> Work:
        from given import starter

        model = starter()
        warm, *timed = _batches(model, 1 + INPUTS, seed)
        run = way(model)
        return Work(run, timed, warm, [getattr(run, "model", model.module)])

    return side


def _same(seed: int) -> dict[str, Any]:
    from given import starter

    model = starter()
    (ids,) = _batches(model, 1, seed)
    ours, floor, theirs = (way(model)(ids) for way in (_gemlens_way, _floor_way, _transformer_lens_way))
    apart = {
        name: float((x - ours).norm() / ours.norm()) for name, x in (("floor", floor), ("transformer_lens", theirs))
    }
    return {f"{name}_apart": each for name, each in apart.items()} | {"holds": max(apart.values()) < 1e-5}


CASES = [
    Case(
        "4 x 128 tokens",
        {"gemlens": _side(_gemlens_way), "floor": _side(_floor_way), "TransformerLens": _side(_transformer_lens_way)},
        {"floor": Aim(longer=1.02)},
        _same,
    )
]
