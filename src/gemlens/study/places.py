"""At which tokens an edit acts: all, some positions, the prompt's last token, what is generated, where a feature fires.

Positions count over the whole text, also with a KV cache, where the model is called for one token after the other.
BOS is never touched unless asked for, nor padding; with Gemma Scope 2's dictionaries of ``-it`` models neither are the
tokens that open a chat, on which none was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.following import Tokens
from gemlens.lm.gemma import Model
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.selected import Selected, select
from gemlens.study.analysis import chat_opening

__all__ = ["Active", "Places", "Positions", "active", "generated", "in_words", "last"]

Positions = int | slice | Sequence[int] | Callable[[Tokens], Tensor] | None
"""None is all tokens. Numbers and slices count from 0 over the whole text, negative ones back from the prompt's end:
``slice(-1, None)`` is the prompt's last token and everything generated. A function gives bool [batch, q]."""


def last(tokens: Tokens) -> Tensor:
    """The prompt's last token."""
    return tokens.positions == tokens.prompt - 1


def generated(tokens: Tokens) -> Tensor:
    """What the model has added. The first of these tokens is chosen before any of them is read."""
    return tokens.positions >= tokens.prompt


@dataclass(frozen=True, eq=False)
class Active:
    """Tokens at which a feature's activation exceeds ``above``."""

    feature: Selected
    above: float

    def at(self, x: Tensor) -> Tensor:
        """bool [batch, q], of [batch, q, d] activations at the site that the feature reads."""
        return self.feature.encode(x)[..., 0] > self.above


def active(dictionary: SAE | MultiLayer, feature: int, *, above: float = 0.0, layer: int | None = None) -> Active:
    """Only where ``feature``, of this or another dictionary, is active; ``layer`` as for the edit itself.

    Raises:
        InputError: no such feature, or ``above`` is not a finite number of 0 or more.
    """
    if not 0 <= above < float("inf"):
        raise InputError(f"above {above}: activations are 0 or more; give such a number")
    return Active(select(dictionary, [feature], layer=layer), above)


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens that one edit may touch."""

    positions: Positions = None
    where: Active | None = None
    bos: bool = False
    """BOS and a chat's opening too."""
    bos_id: int = -2
    opening: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Ids that open a chat, where they are left out."""

    @classmethod
    def of(
        cls, model: Model, dictionaries: Sequence[DictionaryInfo], positions: Positions, where: Active | None, bos: bool
    ) -> Places:
        opening = torch.tensor(chat_opening(model, dictionaries), dtype=torch.int64)
        _check(positions)
        return cls(positions, where, bos, model.bos, opening)

    @property
    def everywhere(self) -> bool:
        return self.positions is None and self.where is None

    def mask(self, tokens: Tokens) -> Tensor:
        """bool [batch, q], ``where`` left aside.

        Raises:
            InputError: a position that the text does not have, or at which nothing is edited unless asked for.
        """
        counted = tokens.positions >= 0
        if not self.bos:
            counted = counted & self._counted(tokens)
        if self.positions is None:
            return counted
        wanted = _wanted(self.positions, tokens)
        if tokens.first:
            _check_text(self.positions, tokens, counted)
        return wanted & counted

    def _counted(self, tokens: Tokens) -> Tensor:
        read = tokens.ids != self.bos_id
        n = len(self.opening)
        if not n or tokens.text.shape[1] < n:
            return read
        opens = (tokens.text[:, :n] == self.opening.to(tokens.text.device)).all(dim=1, keepdim=True)
        return read & ~(opens & (tokens.positions < n))


def _check(positions: Positions) -> None:
    if isinstance(positions, slice) and (positions.step is not None and positions.step < 1):
        raise InputError(f"positions {positions}: a step of 1 or more, since texts are read forwards")
    whole = [positions] if isinstance(positions, int) else list(positions) if isinstance(positions, Sequence) else []
    if wrong := [each for each in whole if not isinstance(each, int) or isinstance(each, bool)]:
        raise InputError(f"position {wrong[0]!r} is no whole number; count tokens from 0, or back from -1")


def _numbers(positions: Positions) -> list[int]:
    return [positions] if isinstance(positions, int) else list(positions) if isinstance(positions, Sequence) else []


def _wanted(positions: Positions, tokens: Tokens) -> Tensor:
    at, prompt = tokens.positions, tokens.prompt
    if callable(positions):
        return positions(tokens)
    if isinstance(positions, slice):
        start = positions.start or 0
        first = start if start >= 0 else (start + prompt).clamp(min=0)
        chosen = (at >= first) & ((at - first) % (positions.step or 1) == 0)
        if positions.stop is not None:
            chosen = chosen & (at < (positions.stop if positions.stop >= 0 else positions.stop + prompt))
        return chosen
    chosen = torch.zeros_like(at, dtype=torch.bool)
    for each in _numbers(positions):
        chosen = chosen | (at == (each if each >= 0 else each + prompt))
    return chosen


def _check_text(positions: Positions, tokens: Tokens, counted: Tensor) -> None:
    """Refuse positions that are named one by one and do not exist, or are left out."""
    for each in _numbers(positions):
        n = int(tokens.prompt.max())
        place = each if each >= 0 else each + n
        whole = tokens.text.shape[1]
        if place < 0 or (place >= whole and not tokens.more):
            raise InputError(f"position {each} does not exist: the text has {whole} tokens, 0 to {whole - 1}")
        here = tokens.positions == place
        if here.any() and not (here & counted).any():
            raise InputError(
                f"position {each} is left out: it is BOS, or opens a chat, on which no dictionary was trained; "
                "take a later one, or give bos=True"
            )


def in_words(positions: Positions, where: Active | None) -> str:
    """For records: where an edit acts."""
    said = "all tokens"
    if isinstance(positions, slice):
        start, stop = positions.start or 0, "" if positions.stop is None else positions.stop
        said = f"positions {start}:{stop}" + (f":{positions.step}" if positions.step else "")
    elif callable(positions):
        named: dict[Callable[[Tokens], Tensor], str] = {last: "the prompt's last token", generated: "generated tokens"}
        said = named.get(positions, "tokens that a function chooses")
    elif positions is not None:
        said = f"position {', '.join(map(str, _numbers(positions)))}"
    return (
        said if where is None else f"{said} where {where.feature.named(where.feature.ids[0])} exceeds {where.above:g}"
    )
