"""Attribute a logit of the starter to the features of layer 12, everything loaded, float32.

Gradients of all active features against the model's own forward pass with the logits of all positions; exact ablation
of some features, each in a run of its own, against a loop over them: Hugging Face's model with one plain hook a run,
TransformerLens' hooks, and SAELens' ``run_with_saes`` with a hook on the SAE's activations, which spans the whole pass
again for every feature, as scripts do. All keep the error.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timing import Aim, Case, Work

INPUTS, SHORT = 3, 16


def _setting(seed: int, tokens: int, count: int) -> tuple[Any, Any, list[Any]]:
    """Model, dictionary and prompts, each with the token whose logit is explained."""
    from given import prompts, starter, starter_dictionary, token_ids

    model = starter()
    texts = prompts(model, count, tokens, seed)
    given = [(text, token_ids(model, text), 1000 + index) for index, text in enumerate(texts)]
    return model, starter_dictionary(), given


def _ablations(seed: int, features: int) -> tuple[Any, Any, list[Any]]:
    """The same with the number of features to remove: a few to warm up with, then all of one prompt."""
    model, sae, given = _setting(seed, SHORT, 2)
    return model, sae, [(*each, count) for each, count in zip(given, (4, features), strict=True)]


# All features at one site


def _gradient(seed: int, tokens: int) -> Work:
    import gemlens
    from gemlens.study.targets import logit

    model, sae, (warm, *timed) = _setting(seed, tokens, 1 + INPUTS)
    return Work(
        lambda given: gemlens.attribute(model, sae, given[0], logit(given[2])), timed, warm, [model.module, sae]
    )


def _forward(seed: int, tokens: int) -> Work:
    import torch

    model, _, (warm, *timed) = _setting(seed, tokens, 1 + INPUTS)

    @torch.no_grad()
    def run(given: Any) -> Any:
        return model.module(given[1], use_cache=False).logits

    return Work(run, timed, warm, [model.module])


# Some features, exactly


def _nodes(model: Any, sae: Any, ids: Any, features: int) -> list[tuple[int, int, float]]:
    """Position, feature and activation of those that are most active, over all tokens but BOS."""
    from gemlens.lm.gemma import activations

    found = sae.encode(activations(model, ids, [sae.reads])[sae.reads][0, 1:])
    entries = zip(found.tokens.tolist(), found.ids.tolist(), found.values.tolist(), strict=True)
    return sorted(((1 + token, feature, value) for token, feature, value in entries), key=lambda each: -each[2])[
        :features
    ]


def _batched(seed: int, features: int) -> Work:
    import torch

    from gemlens.study.decomposition import decompose
    from gemlens.study.passes import passes
    from gemlens.study.targets import logit
    from gemlens.study.ways import exact_effects

    model, sae, (warm, *timed) = _ablations(seed, features)

    def run(given: Any) -> Any:
        _, ids, token, count = given
        clean = passes(model, ids[0], logit(token)(model, ids[0]), reads=[sae.reads], writes=[sae.writes])
        (source,) = decompose(sae, clean.values, torch.arange(ids.shape[1]) > 0).sources
        return exact_effects(clean, source, source.features.values.argsort(descending=True)[:count])

    return Work(run, timed, warm, [model.module, sae])


def _plain(seed: int, features: int) -> Work:
    model, sae, (warm, *timed) = _ablations(seed, features)
    return Work(partial(_plain_way, model, sae), timed, warm, [model.module, sae])


def _plain_way(model: Any, sae: Any, given: Any) -> Any:
    import torch

    _, ids, token, count = given
    block = model.blocks[sae.writes.layer]

    def logit(delta: Any = None, position: int = 0) -> float:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, position] += delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = None if delta is None else block.register_forward_hook(hook)
        try:
            return float(model.module(ids, use_cache=False, logits_to_keep=1).logits[0, -1, token])
        finally:
            if handle is not None:
                handle.remove()

    with torch.no_grad():
        clean = logit()
        rows = [
            (position, -value * sae.decoder.rows(torch.tensor([feature]))[0])
            for position, feature, value in _nodes(model, sae, ids, count)
        ]
        return torch.tensor([clean - logit(row, position) for position, row in rows])


def _transformer_lens(seed: int, features: int) -> Work:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    from gemlens.lm.starter import starter_folder

    model, sae, (warm, *timed) = _ablations(seed, features)
    bridge = TransformerBridge.boot_transformers(str(starter_folder()), device="cpu")
    name = sae.writes.transformer_lens

    def add(value: Any, hook: Any, *, position: int, row: Any) -> Any:  # noqa: ARG001 - as TransformerLens calls it
        value[0, position] += row
        return value

    @torch.no_grad()
    def run(given: Any) -> Any:
        _, ids, token, count = given
        clean = float(bridge(ids)[0, -1, token])
        found = []
        for position, feature, value in _nodes(model, sae, ids, count):
            row = -value * sae.decoder.rows(torch.tensor([feature]))[0]
            hooks = [(name, partial(add, position=position, row=row))]
            found.append(clean - float(bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1, token]))
        return torch.tensor(found)

    return Work(run, timed, warm, [bridge, sae])


def _sae_lens(seed: int, features: int) -> Work:
    import torch
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    from gemlens.lm.starter import starter_folder
    from peers import sae_lens_of

    model, sae, (warm, *timed) = _ablations(seed, features)
    bridge = SAETransformerBridge.boot_transformers(str(starter_folder()), device="cpu")
    theirs = sae_lens_of(sae)
    theirs.cfg.metadata.hook_name = sae.writes.transformer_lens
    theirs.use_error_term = True
    name = bridge.get_sae_hook_name(theirs)

    def remove(acts: Any, hook: Any, *, position: int, feature: int) -> Any:  # noqa: ARG001 - as TransformerLens calls it
        acts[0, position, feature] = 0
        return acts

    @torch.no_grad()
    def run(given: Any) -> Any:
        _, ids, token, count = given
        clean = float(bridge(ids)[0, -1, token])
        found = []
        for position, feature, _ in _nodes(model, sae, ids, count):
            hooks = [(name, partial(remove, position=position, feature=feature))]
            scores = bridge.run_with_hooks_with_saes(ids, saes=[theirs], fwd_hooks=hooks)
            found.append(clean - float(scores[0, -1, token]))
        return torch.tensor(found)

    return Work(run, timed, warm, [bridge, theirs])


def _same(seed: int, features: int) -> dict[str, Any]:
    """Which side removes what: the largest difference of an effect, of those that are removed by all."""
    import torch

    sides = {name: side(seed) for name, side in _sides(features).items()}
    found = {name: work.run(work.timed[0]).float() for name, work in sides.items()}
    ours = found.pop("gemlens")
    worst = {name: float((each - ours).abs().max()) for name, each in found.items()}
    size = float(ours.abs().max())
    shown = {f"worst_{name.replace(' ', '_')}": value for name, value in worst.items()}
    holds = all(value <= 2e-3 * max(size, 1.0) for value in worst.values()) and bool(torch.isfinite(ours).all())
    return {"features": len(ours), "largest_effect": size, **shown, "holds": holds}


def _sides(features: int) -> dict[str, Any]:
    sides = {"gemlens": _batched, "loop": _plain, "transformer-lens": _transformer_lens, "sae-lens": _sae_lens}
    return {name: partial(side, features=features) for name, side in sides.items()}


CASES = [
    Case(
        "gradients of all features, 16 tokens",
        {"gemlens": partial(_gradient, tokens=SHORT), "forward": partial(_forward, tokens=SHORT)},
        {"forward": Aim(longer=3.5)},
    ),
    Case("64 features ablated, 16 tokens", _sides(64), {"loop": Aim(faster=4)}, partial(_same, features=64)),
    Case(
        "256 features ablated, 16 tokens",
        {name: side for name, side in _sides(256).items() if name in ("gemlens", "loop")},
        {"loop": Aim(faster=4)},
    ),
]
