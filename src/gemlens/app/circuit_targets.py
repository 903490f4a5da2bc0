"""``--targets``: what a circuit explains, in words.

" Paris"               the token; a leading space counts
id:9079                a token by its id
" Paris|| London"      the difference of two
feature:12.345@6       a feature of layer 12 at position 6; at the last one without @6
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.study.circuit.targets import Targets

__all__ = ["Wanted", "check_options", "parse_targets"]

_FEATURE = re.compile(r"feature:([0-9]{1,4})\.([0-9]{1,9})(?:@(-?[0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One target, not looked up yet."""

    tokens: tuple[str | int, ...] = ()
    """One, or the two of a difference."""
    feature: tuple[int, int, int] | None = None
    """Layer, number, position."""

    def made(self) -> Targets:
        from gemlens.study.circuit.targets import difference, feature, tokens

        if self.feature is not None:
            layer, index, position = self.feature
            return feature(layer, index, position=position)
        make: Callable[..., Targets] = tokens if len(self.tokens) == 1 else difference
        return make(*self.tokens)


def parse_targets(given: Sequence[str]) -> list[Wanted]:
    """Raises InputError for what is none of the above."""
    return [_parse(text) for text in given]


def _parse(text: str) -> Wanted:
    if text.startswith("feature:"):
        match = _FEATURE.fullmatch(text)
        if match is None:
            raise InputError(
                f"--targets {text}: a feature is written feature:LAYER.NUMBER@POSITION, like feature:12.345@6"
            )
        return Wanted(feature=(int(match[1]), int(match[2]), int(match[3] or -1)))
    sides = text.split("||")
    if len(sides) > 2 or not all(sides):
        raise InputError(f"--targets {text!r}: write one token, or two as ' Paris|| London' for their difference")
    return Wanted(tuple(map(_token, sides)))


def _token(text: str) -> str | int:
    match = re.fullmatch(r"id:([0-9]{1,9})", text)
    return int(match[1]) if match else text


def check_options(
    prompt: str | None,
    mass: float,
    node_threshold: float,
    edge_threshold: float,
    memory: float,
    paths: int,
    verify: int,
    *,
    was_mass: bool,
) -> None:
    """What can be said against the options of tracing before anything is loaded; raises InputError."""
    from gemlens.study.circuit.prune import check_thresholds

    if prompt is None:
        raise InputError("no prompt was given; name one with --prompt, or a graph file with gemlens circuit open FILE")
    if not 0 < mass <= 1:
        raise InputError(f"--mass {mass:g}: take a probability above 0 and up to 1")
    if was_mass:
        raise InputError("--mass and --targets exclude each other; --mass chooses targets where none are given")
    check_thresholds(node_threshold, edge_threshold)
    if not 0.1 <= memory < 1e6:
        raise InputError(f"--memory {memory:g}: take 0.1 GB or more")
    for option, value in (("--paths", paths), ("--verify", verify)):
        if value < 0:
            raise InputError(f"{option} {value}: 0 is none, more is more")
