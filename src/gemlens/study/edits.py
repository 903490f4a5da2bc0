"""One edit of what a model computes, as a ``with``: what it reads, what it writes, at which tokens.

1. Before each forward call the edit learns which tokens it is over (``lm.following``) and which of them it may touch.
2. What passes the site that it reads is kept.
3. What passes each site that it writes is replaced, at these tokens: ``x + (new - old) @ w_dec`` for features, so that
   the dictionary's error stays, whatever the dictionary missed.

Contexts nest in order: an inner edit sees what an outer one has written, at the same site too. Two that fix one feature
at one token to different values contradict each other, and are refused.

A feature of a crosscoder also writes layers below the one that it reads. What it was is then not known yet: a pass over
the text so far, without the edit, says it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gemlens.errors import InputError
from gemlens.lm.following import Follower, Tokens, following
from gemlens.lm.gemma import Model, activations, reading, writing
from gemlens.sites import Site
from gemlens.study.places import Places

__all__ = ["Edit", "Fixed", "Now", "Write", "editing", "unedited"]


class Now(NamedTuple):
    """What an edit knows when it writes."""

    kept: Any
    """Of what passed the site that is read."""
    mask: Tensor
    """bool [batch or 1, q], the tokens to touch."""
    tokens: Tokens


Write = Callable[[Tensor, Now], Tensor]
"""Of what passes a site, [batch, q, d]: the new value."""


class Fixed(NamedTuple):
    """A feature whose activation an edit decides, whatever it was."""

    name: str
    row: Tensor
    value: float | None
    """None where it is not the same at all tokens."""

    def contradicts(self, other: Fixed) -> bool:
        same = self.name == other.name and torch.equal(self.row, other.row)
        return same and (self.value is None or self.value != other.value)


@dataclass(frozen=True, eq=False)
class Edit:
    said: str
    """For messages and records: ``ablate feature 5 of …``."""
    writes: dict[Site, Write]
    places: Places
    reads: Site | None = None
    keep: Callable[[Tensor], Any] = lambda x: x
    """What to remember of what passes ``reads``."""
    fixed: Sequence[Fixed] = field(default=())

    def __post_init__(self) -> None:
        where = self.places.where
        if where is not None and self.writes and min(self.writes) < where.feature.reads:
            raise InputError(
                f"{self.said} cannot wait for {where.feature.named(where.feature.ids[0])}: the model reaches "
                f"{min(self.writes)} first; take a feature of that site or a lower one"
            )


@dataclass(eq=False)
class _Call:
    """What an edit knows within one forward call."""

    tokens: Tokens
    places: Tensor
    """bool [batch, q], wherever a feature is active."""
    looked: bool = False
    """``kept`` comes from a pass before this one."""
    kept: Any = None
    mask: Tensor | None = None
    """bool [batch, q], the tokens to touch; None until a site is written."""


class _Running:
    """An edit between the beginning and the end of its ``with``."""

    def __init__(self, model: Model, edit: Edit, others: list[_Running]) -> None:
        self.model, self.edit, self.on = model, edit, True
        self.follower: Follower | None = None
        self.call: _Call | None = None
        self.found: dict[Site, list[Tensor]] = {}
        self.against = [other for other in others if _contradict(edit, other.edit)]
        for other in self.against:
            if edit.places.everywhere and other.edit.places.everywhere:
                raise _contradiction(other.edit, edit)

    def begin(self, tokens: Tokens) -> None:
        if not self.on:
            return
        for each in self.found.values():
            each.clear()
        self.call = _Call(tokens, self.edit.places.mask(tokens))
        reads = self.edit.reads
        if reads is not None and min(self.edit.writes, default=reads) < reads:
            self.call.looked, self.call.kept = True, self.edit.keep(self._look(tokens, reads))

    def _look(self, tokens: Tokens, site: Site) -> Tensor:
        """What will pass ``site`` without this edit, [batch, q, d]."""
        if bool((tokens.positions < 0).any()):
            raise InputError(
                f"{self.edit.said}: a crosscoder's features need texts without padding; give one at a time"
            )
        with _aside(self.model, off=[self], same_text=True):
            return activations(self.model, tokens.text, [site])[site][:, -tokens.ids.shape[1] :]

    def write(self, site: Site) -> Callable[[Tensor], Tensor]:
        change = self.edit.writes[site]

        def edit(x: Tensor) -> Tensor:
            if not self.on:
                return x
            return change(x, self._now(site, x))

        return edit

    def _now(self, site: Site, x: Tensor) -> Now:
        """Known once the pass reaches the first site that is written."""
        call = self.call
        if call is None or call.places.shape[1] != x.shape[1] or len(call.places) not in (1, len(x)):
            raise InputError(
                f"{self.edit.said} has not seen the tokens of this pass; run the model itself inside the with, "
                "not only some of its blocks"
            )
        if call.mask is None or site == min(self.edit.writes):
            where, reads = self.edit.places.where, self.edit.reads
            call.mask = call.places.to(x.device)
            if where is not None:
                call.mask = call.mask & where.at(self._at(where.feature.reads, site, x))
            if reads is not None and not call.looked:
                call.kept = self.edit.keep(self._at(reads, site, x))
            for other in self.against:
                theirs = other.call.mask if other.on and other.call is not None else None
                if theirs is not None and bool((theirs & call.mask).any()):
                    raise _contradiction(other.edit, self.edit)
        return Now(call.kept, call.mask, call.tokens)

    def _at(self, wanted: Site, site: Site, x: Tensor) -> Tensor:
        """What passes ``wanted``, of which ``site``, where ``x`` passes, may be the same."""
        return x if wanted == site else self.found[wanted][-1]


_RUNNING: WeakKeyDictionary[nn.Module, list[_Running]] = WeakKeyDictionary()


@contextmanager
def editing(model: Model, edit: Edit, *, prompt: int | None = None) -> Iterator[None]:
    """Edit every forward call of ``model``, of ``generate`` too, for the time of a ``with``.

    Args:
        prompt: tokens of the prompt, for a pass over a prompt and an answer that stood before.

    Raises:
        InputError: an outer edit contradicts this one; from the forward pass, at some tokens only, and positions that
            the text does not have.
        MismatchError: the model lacks a layer.
    """
    others = _RUNNING.setdefault(model.module, [])
    running = _Running(model, edit, others)
    first = min(edit.writes, default=None)
    where = edit.places.where
    wanted = {edit.reads, where.feature.reads if where is not None else None} - {None, first}
    with ExitStack() as stack:
        running.follower = stack.enter_context(following(model, prompt=prompt, begin=running.begin))
        running.found = stack.enter_context(reading(model, [site for site in wanted if site is not None]))
        for site in edit.writes:
            stack.enter_context(writing(model, site, running.write(site)))
        others.append(running)
        stack.callback(others.remove, running)
        yield


@contextmanager
def unedited(model: Model) -> Iterator[None]:
    """Run ``model`` as it is, whatever edits are open."""
    with _aside(model, off=list(_RUNNING.get(model.module, []))):
        yield


@contextmanager
def _aside(model: Model, off: Sequence[_Running], *, same_text: bool = False) -> Iterator[None]:
    """Run the model on something else in the middle of a text, some edits switched off; then go on as before."""
    everyone = list(_RUNNING.get(model.module, []))
    followers = [each.follower for each in everyone if each.follower is not None]
    saved = [(each, each.on, each.call, {site: list(found) for site, found in each.found.items()}) for each in everyone]
    seen = [(each, each.now, each.prompt) for each in followers]
    try:
        for running in off:
            running.on = False
        for follower in followers:
            follower.prompt = follower.now.prompt if same_text and follower.now is not None else None
        yield
    finally:
        for running, on, call, found in saved:
            running.on, running.call = on, call
            for site, tensors in found.items():
                running.found[site][:] = tensors
        for follower, now, prompt in seen:
            follower.now, follower.prompt = now, prompt


def _contradict(one: Edit, other: Edit) -> bool:
    return any(mine.contradicts(theirs) for mine in one.fixed for theirs in other.fixed)


def _contradiction(outer: Edit, inner: Edit) -> InputError:
    return InputError(
        f"{outer.said} and {inner.said} contradict each other at one place; leave one out, or give them different "
        "positions"
    )
