"""What an attribution explains: one number that a model computes from a prompt.

    logit(" Paris")                        of a token, after the last one of the prompt
    log_probability(" Paris", position=3)  the same against all other tokens, elsewhere
    difference(" have", " has")            of two logits
    loss()                                 mean cross-entropy of the prompt's own tokens, in nats
    feature(sae, 1234)                     another feature: its pre-activation
    direction(site, vector)                the activation at a site along a vector

Each returns a function of the model and the prompt's ids; ``attribute`` calls it, and refuses what it cannot find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, module_at
from gemlens.lm.lens import logits_of
from gemlens.lm.text import pieces
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.selected import select
from gemlens.sites import Site
from gemlens.study.fit_check import check_fit, site_width

__all__ = [
    "Target",
    "TargetOf",
    "difference",
    "direction",
    "feature",
    "log_probability",
    "logit",
    "loss",
    "place_of",
    "token_id",
]


@dataclass(frozen=True, eq=False)
class Target:
    """A number of one prompt."""

    name: str
    """As views show it."""
    site: Site
    """Where it is read; the last block's output for what the head computes."""
    positions: slice
    """Of the tokens whose state it is computed from."""
    measure: Callable[[Tensor], Tensor]
    """[batch, positions, d] of that site -> float32 [batch]; gradients flow."""
    heads: int = 0
    """Positions at which the logits of all tokens are computed."""
    of_logits: bool = True


TargetOf = Callable[[Model, Tensor], Target]
"""Of a model and the ids [n] of a prompt."""


def logit(token: str | int, *, position: int = -1) -> TargetOf:
    """The logit of one token as the next one after ``position``, soft-capped where the model's are.

    Args:
        token: its text, with the space that belongs to it, or its id.
        position: of the prompt's tokens, BOS counted; -1 is the last one.
    """

    def of(model: Model, ids: Tensor) -> Target:
        chosen, place = token_id(model, token), place_of(ids, position)
        wanted = torch.tensor([chosen], device=model.device)
        return Target(
            f"logit of {_shown(model, chosen)} after token {place}",
            _last(model),
            slice(place, place + 1),
            lambda state: logits_of(model, state, wanted).float()[:, 0, 0],
        )

    return of


def difference(token: str | int, other: str | int, *, position: int = -1) -> TargetOf:
    """The logit of one token minus that of another."""

    def of(model: Model, ids: Tensor) -> Target:
        pair, place = [token_id(model, token), token_id(model, other)], place_of(ids, position)
        if pair[0] == pair[1]:
            raise InputError(f"the difference of {_shown(model, pair[0])} and itself is 0; name two tokens")
        wanted = torch.tensor(pair, device=model.device)

        def measure(state: Tensor) -> Tensor:
            scores = logits_of(model, state, wanted).float()[:, 0]
            return scores[:, 0] - scores[:, 1]

        names = " minus ".join(_shown(model, each) for each in pair)
        return Target(f"logit of {names} after token {place}", _last(model), slice(place, place + 1), measure)

    return of


def log_probability(token: str | int, *, position: int = -1) -> TargetOf:
    """The log-probability of one token as the next one after ``position``, in nats."""

    def of(model: Model, ids: Tensor) -> Target:
        chosen, place = token_id(model, token), place_of(ids, position)
        return Target(
            f"log-probability of {_shown(model, chosen)} after token {place}",
            _last(model),
            slice(place, place + 1),
            lambda state: logits_of(model, state).float().log_softmax(dim=-1)[:, 0, chosen],
            heads=1,
        )

    return of


def loss() -> TargetOf:
    """Mean cross-entropy of the prompt's tokens, in nats: of all that are predicted from more than BOS alone."""

    def of(model: Model, ids: Tensor) -> Target:
        n = len(ids)
        if n < 3:
            raise InputError(f"the prompt has {n} tokens, BOS counted; a loss needs 3 or more")
        following = ids[2:].to(model.device)

        def measure(state: Tensor) -> Tensor:
            scores = logits_of(model, state).float()
            return F.cross_entropy(scores.mT, following.expand(len(scores), -1), reduction="none").mean(dim=1)

        return Target("mean cross-entropy of the prompt", _last(model), slice(1, n - 1), measure, heads=n - 2)

    return of


def feature(dictionary: SAE | MultiLayer, feature_id: int, *, position: int = -1, layer: int | None = None) -> TargetOf:
    """The pre-activation of a feature at ``position``: its activation, where it fires.

    A feature that is silent has one too, which says what keeps it from firing.

    Args:
        layer: of a CLT or crosscoder, the layer that the feature reads.
    """

    def of(model: Model, ids: Tensor) -> Target:
        check_fit(model, dictionary)
        reads = select(dictionary, [feature_id], layer=layer).reads
        part = dictionary if isinstance(dictionary, SAE) else dictionary.layer(reads)
        place = place_of(ids, position)
        chosen = torch.tensor([feature_id], device=part.b_enc.device)
        row, bias = part.encoder.rows(chosen)[0].float().to(model.device), float(part.b_enc[feature_id])
        return Target(
            f"feature {feature_id} of {reads} at token {place}",
            reads,
            slice(place, place + 1),
            lambda state: state[:, 0].float() @ row + bias,
            of_logits=False,
        )

    return of


def direction(site: Site, vector: Tensor, *, position: int = -1) -> TargetOf:
    """The activation at ``site`` and ``position``, multiplied by a vector [d] and summed."""

    def of(model: Model, ids: Tensor) -> Target:
        module_at(model, site)
        if vector.shape != (site_width(model, site),) or not torch.isfinite(vector).all():
            raise InputError(
                f"the direction has shape {list(vector.shape)}; give {site_width(model, site)} finite numbers, which "
                f"is what {model.name} has at {site}"
            )
        place, along = place_of(ids, position), vector.detach().float().to(model.device)
        return Target(
            f"{site} along a direction at token {place}",
            site,
            slice(place, place + 1),
            lambda state: state[:, 0].float() @ along,
            of_logits=False,
        )

    return of


def token_id(model: Model, token: str | int) -> int:
    """The id of one token.

    Raises:
        InputError: a text that is not one token, with its pieces; an id that the model has no logit for.
    """
    vocabulary = model.config.vocab_size
    if isinstance(token, int):
        if not 0 <= token < vocabulary:
            raise InputError(f"token id {token} does not exist in {model.name}: its ids are 0 to {vocabulary - 1}")
        return token
    ids = _ids(model, token)
    if len(ids) == 1 and ids[0] < vocabulary:
        return ids[0]
    if not ids:
        raise InputError("the target is empty; name one token, as ' Paris', with the space that belongs to it")
    shown = ", ".join(repr(piece) for piece in pieces(model, ids)[:12]) + (", …" if len(ids) > 12 else "")
    other = token[1:] if token.startswith(" ") else f" {token}"
    hint = f"take {other!r}, which is one" if len(_ids(model, other)) == 1 else "name one of them"
    raise InputError(f"the target {token[:100]!r} is not one token of {model.name} but {len(ids)}: {shown}; {hint}")


def _ids(model: Model, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def place_of(ids: Tensor, position: int) -> int:
    """``position``, which may count from the end, as a number from 0.

    Raises:
        InputError: the prompt has no such token.
    """
    n = len(ids)
    if not -n <= position < n:
        raise InputError(f"position {position} does not exist: the prompt has {n} tokens, 0 to {n - 1}, BOS counted")
    return position % n


def _last(model: Model) -> Site:
    return Site(model.n_layers - 1, "resid_post")


def _shown(model: Model, token: int) -> str:
    return repr(str(model.tokenizer.decode([token], clean_up_tokenization_spaces=False)))
