"""Options of ``gemlens attribute`` and ``lens``: what is explained, by which method, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.scope.sae import SAE
    from gemlens.study.targets import TargetOf
    from gemlens.study.ways import Method

__all__ = [
    "FEWEST_STEPS",
    "Asked",
    "MethodName",
    "ReportKind",
    "ReportOption",
    "check_target",
    "file_names",
    "method_of",
    "target_of",
    "written",
]

FEWEST_STEPS = 5
"""Of integrated gradients; the library's, which cannot be asked before torch is imported."""


class MethodName(StrEnum):
    gradient = "gradient"
    integrated = "integrated"
    ablation = "ablation"
    direct = "direct"


class ReportKind(StrEnum):
    html = "html"
    json = "json"
    jsonl = "jsonl"


ReportOption = Annotated[
    list[ReportKind] | None,
    typer.Option(
        "--export", help="Report to write: html, json or jsonl; repeat it.  [default: table only]", metavar="KIND"
    ),
]


class Asked(NamedTuple):
    """The target as the command line has it."""

    token: str | None
    minus: str | None
    log_probability: bool
    loss: bool
    feature: int | None
    feature_sae: str | None
    position: int


def check_target(asked: Asked) -> None:
    """Refuse no target, two of them, and options that belong to another.

    Raises:
        InputError: naming the options.
    """
    given = {"--target": asked.token is not None, "--loss": asked.loss, "--target-feature": asked.feature is not None}
    named = [option for option, there in given.items() if there]
    if not named:
        raise InputError(
            "no target was given; name a token with --target ' Paris' (with the space before it), or take --loss or "
            "--target-feature"
        )
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} are two targets; take one of them")
    if asked.token is None and (asked.minus is not None or asked.log_probability):
        option = "--minus" if asked.minus is not None else "--log-prob"
        raise InputError(f"{option} needs a token with --target, and the target is {named[0]}")
    if asked.minus is not None and asked.log_probability:
        raise InputError("--minus is a difference of logits, which is that of log-probabilities; leave --log-prob out")
    if asked.feature is None and asked.feature_sae is not None:
        raise InputError("--target-sae-id needs a feature with --target-feature")
    if asked.feature is not None and asked.feature_sae is None:
        raise InputError("--target-feature needs the dictionary that has it: name it with --target-sae-id")
    if asked.feature is not None and asked.feature < 0:
        raise InputError(f"--target-feature {asked.feature}: numbers of features start at 0")
    if asked.loss and asked.position != -1:
        raise InputError(f"--position {asked.position}: a loss is of the whole prompt; leave one of them out")


def target_of(asked: Asked, dictionary: SAE | None) -> TargetOf:
    """``dictionary`` is the one of ``--target-sae-id``."""
    from gemlens.study import targets

    if asked.loss:
        return targets.loss()
    if asked.feature is not None:
        assert dictionary is not None
        return targets.feature(dictionary, asked.feature, position=asked.position)
    assert asked.token is not None
    if asked.minus is not None:
        return targets.difference(asked.token, asked.minus, position=asked.position)
    kind = targets.log_probability if asked.log_probability else targets.logit
    return kind(asked.token, position=asked.position)


def method_of(name: MethodName, steps: int) -> Method:
    from functools import partial

    from gemlens.study import ways

    methods: dict[MethodName, Method] = {
        MethodName.gradient: ways.gradient,
        MethodName.integrated: partial(ways.integrated_gradients, steps=steps),
        MethodName.ablation: ways.ablation,
        MethodName.direct: ways.direct,
    }
    return methods[name]


def file_names(name: str, kinds: Sequence[ReportKind]) -> list[str]:
    return [f"{name}.{kind.value}" for kind in kinds]


def written(
    name: str, kinds: Sequence[ReportKind], folder: Path, made: dict[ReportKind, Callable[[], str]]
) -> list[Path]:
    """Write what is asked for of ``made``, whole or not at all, and return the paths."""
    from gemlens.files import write

    paths = [folder / file for file in file_names(name, kinds)]
    for kind, path in zip(kinds, paths, strict=True):
        write(made[kind](), path)
    return paths
