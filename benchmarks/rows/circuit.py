"""The attribution graph of a prompt, all features that fire: the starter's 18 transcoders, float32, all loaded.

Against circuit-tracer with the same transcoders, without affine skips and with them, at the batch size that it is
fastest with; the other two of 16, 64 and 256 were tried on a prompt each.
"""

from __future__ import annotations

from typing import Any

from timing import Aim, Case, Work

BATCH = 64


def _inputs(seed: int, tokens: int) -> tuple[Any, list[str]]:
    from given import prompts, starter

    model = starter()
    return model, [*prompts(model, 1, 6, seed + 1), *prompts(model, 1, tokens, seed)]


def _gemlens(tokens: int, *, skip: bool) -> Any:
    def side(seed: int) -> Work:
        from circuits import transcoders
        from gemlens.study.circuit.trace import circuit

        model, (warm, timed) = _inputs(seed, tokens)
        ours = transcoders(skip=skip)
        return Work(
            lambda prompt: circuit(model, ours, prompt, max_features=None),
            [timed],
            warm,
            [model.module, ours],
            lambda graph: {"features": len(graph.features)},
        )

    return side


def _circuit_tracer(tokens: int, *, skip: bool) -> Any:
    def side(seed: int) -> Work:
        from circuits import attribute, circuit_tracer, transcoders

        _, (warm, timed) = _inputs(seed, tokens)
        model = circuit_tracer(transcoders(skip=skip))
        return Work(
            lambda prompt: attribute(model, prompt, BATCH),
            [timed],
            warm,
            [model._model],
            lambda graph: {"features": len(graph.active_features)},
        )

    return side


def _same(tokens: int, *, skip: bool) -> Any:
    def same(seed: int) -> dict[str, Any]:
        from circuits import attribute, circuit_tracer, compare, transcoders
        from gemlens.study.circuit.trace import circuit
        from given import prompts

        model, _ = _inputs(seed, tokens)
        ours = transcoders(skip=skip)
        theirs = circuit_tracer(ours)
        found: dict[str, Any] = {"holds": True}
        for prompt in prompts(model, 2 if tokens < 10 else 1, tokens, seed):
            each = compare(circuit(model, ours, prompt, max_features=None), attribute(theirs, prompt, BATCH))
            for key, value in each._asdict().items():
                found[key] = max(found.get(key, 0), value)
            found["holds"] &= each.holds
        return found

    return same


CASES = [
    Case(
        f"{tokens} tokens{', affine skips' if skip else ''}{', once' if once else ''}",
        {"gemlens": _gemlens(tokens, skip=skip), "circuit-tracer": _circuit_tracer(tokens, skip=skip)},
        {"circuit-tracer": Aim(faster=aim)} if aim else {},
        _same(tokens, skip=skip),
        repetitions=1 if once else None,
    )
    for tokens, skip, aim, once in (
        (6, False, 10, False),
        (6, True, None, False),
        (19, False, 6.5, False),
        (19, True, None, True),
    )
]
