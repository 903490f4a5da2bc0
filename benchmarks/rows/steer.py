"""Generate 64 tokens, greedy, from the starter, with one feature of layer 12 steered at every token but BOS, float32.

gemlens' side is ``steer`` around transformers' ``generate``, held against the same call without it. TransformerLens
adds the same vector in a hook of its own generation. SAELens encodes, adds to the feature and decodes, its error kept,
inside TransformerLens' generation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timing import Absent, Aim, Case, Work

PROMPT, NEW, INPUTS, FEATURE, STRENGTH = 32, 64, 1, 1634, 0.25


def _inputs(seed: int, count: int, batch: int) -> tuple[Any, list[Any]]:
    """The starter, and ids [batch, PROMPT] each."""
    import torch

    from given import prompts, starter, token_ids

    model = starter()
    # An end of text would end one run early and not the next.
    model.module.generation_config.eos_token_id = None
    ids = [token_ids(model, prompt) for prompt in prompts(model, count * batch, PROMPT, seed)]
    return model, [torch.cat(ids[start : start + batch]) for start in range(0, len(ids), batch)]


def _generate(model: Any, ids: Any) -> Any:
    import torch

    mask = torch.ones_like(ids)
    return model.module.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)


def _steered(model: Any, sae: Any, ids: Any) -> Any:
    import gemlens

    with gemlens.steer(model, sae, FEATURE, STRENGTH, relative_to="max"):
        return _generate(model, ids)


def _gemlens(seed: int, *, batch: int) -> Work:
    from given import starter_dictionary

    model, (warm, *timed) = _inputs(seed, 1 + INPUTS, batch)
    sae = starter_dictionary()
    return Work(lambda ids: _steered(model, sae, ids), timed, warm, [model.module, sae])


def _plain(seed: int, *, batch: int) -> Work:
    model, (warm, *timed) = _inputs(seed, 1 + INPUTS, batch)
    return Work(lambda ids: _generate(model, ids), timed, warm, [model.module])


def _vector(sae: Any) -> tuple[float, Any]:
    """By how much the feature is raised, and its decoder row."""
    import torch

    from gemlens.scope.maxima import maxima

    amount = STRENGTH * float(maxima(sae.info, [FEATURE]))
    return amount, sae.decoder.rows(torch.tensor([FEATURE]))[0]


def _bridged(model: Any, hook: Callable[[Any, Any], Any]) -> tuple[Any, Callable[[Any], Any]]:
    from peers import bridge_of

    bridge = bridge_of(model)

    def run(ids: Any) -> Any:
        with bridge.hooks(fwd_hooks=[("blocks.12.hook_resid_post", hook)]):
            return bridge.generate(ids, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False)

    return bridge, run


def _transformer_lens(seed: int, *, batch: int) -> Work:
    from given import starter_dictionary

    model, (warm, *timed) = _inputs(seed, 1 + INPUTS, batch)
    amount, row = _vector(starter_dictionary())

    def add(value: Any, hook: Any) -> Any:  # noqa: ARG001 - as TransformerLens calls it
        # BOS is only in the first call, which is over more than one token.
        value[:, 1 if value.shape[1] > 1 else 0 :] += amount * row
        return value

    bridge, run = _bridged(model, add)
    return Work(run, timed, warm, [bridge])


def _sae_lens(seed: int, *, batch: int) -> Work:
    import torch

    from given import starter_dictionary
    from peers import sae_lens_of

    model, (warm, *timed) = _inputs(seed, 1 + INPUTS, batch)
    ours = starter_dictionary()
    amount, theirs = _vector(ours)[0], sae_lens_of(ours)

    @torch.no_grad()
    def add(value: Any, hook: Any) -> Any:  # noqa: ARG001 - as TransformerLens calls it
        first = 1 if value.shape[1] > 1 else 0
        x = value[:, first:]
        acts = theirs.encode(x)
        error = x - theirs.decode(acts)
        acts[..., FEATURE] += amount
        value[:, first:] = theirs.decode(acts) + error
        return value

    bridge, run = _bridged(model, add)
    return Work(run, timed, warm, [bridge, theirs])


def _same(seed: int, *, batch: int) -> dict[str, Any]:
    """Against a plain hook that adds the vector: the very tokens. The peers' own are counted."""
    from given import starter_dictionary

    model, (ids,) = _inputs(seed, 1, batch)
    sae = starter_dictionary()
    amount, row = _vector(sae)

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        new = hidden.clone()
        new[:, 1 if hidden.shape[1] > 1 else 0 :] += amount * row
        return (new, *output[1:]) if isinstance(output, tuple) else new

    ours = _steered(model, sae, ids)
    handle = model.blocks[12].register_forward_hook(hook)
    by_hook = _generate(model, ids)
    handle.remove()
    plain = _generate(model, ids)
    facts: dict[str, Any] = {"tokens": ours.numel(), "unlike_plain": int((ours != plain).sum())}
    try:
        theirs = _transformer_lens(seed, batch=1).run(ids[:1])
        facts["unlike_TransformerLens"] = int((theirs[:, : ours.shape[1]] != ours[:1]).sum())
    except (ImportError, Absent):
        pass
    return facts | {"holds": bool((ours == by_hook).all()) and ours.shape == (batch, PROMPT + NEW)}


def _case(batch: int, **peers: Callable[..., Work]) -> Case:
    of = partial(partial, batch=batch)
    sides = {"gemlens": _gemlens, "plain generate": _plain} | peers
    aims = {"plain generate": Aim(longer=1.10)}
    return Case(f"64 new tokens, batch {batch}", {name: of(side) for name, side in sides.items()}, aims, of(_same))


# The peers in one of them: all in both would take a quarter of an hour.
CASES = [_case(1, TransformerLens=_transformer_lens, SAELens=_sae_lens), _case(8)]
