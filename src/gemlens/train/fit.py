"""Train one dictionary on a stream of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.train.config import FitConfig
from gemlens.train.learner import Learner, Step
from gemlens.train.ranks import Ranks

__all__ = ["fit"]

SAMPLE = 65_536
"""Tokens from which mean and scale are taken, before training begins with them."""

Batch = Mapping[Site, Tensor]


def fit(
    batches: Iterable[Tensor] | Iterable[Batch],
    config: FitConfig,
    *,
    info: DictionaryInfo | None = None,
    device: torch.device | str | None = None,
    ranks: Ranks | None = None,
    report: Callable[[Step], None] = lambda _: None,
) -> SAE | MultiLayer:
    """Train a dictionary on activations, BOS left out and tokens shuffled.

    Args:
        batches: at least ``config.steps`` of them, each [config.batch, d] for every site; of an SAE, plain tensors do.
        info: how the result is named; after its site and width by default.
        device: where it learns, and where the result is; that of the first batch by default.
        ranks: the processes that share the features, each of which is given the same batches and returns the whole
            dictionary; this one alone by default.
        report: called after every step.

    Raises:
        InputError: the batches end before the tokens that the config asks for, were empty, or lack a site;
            fewer features than processes, or processes with different configs or batches.
        NetworkError: another process ended, or did not answer.
        WeightsError: the loss is no longer finite.
    """
    stream = iter(_by_site(batch, config) for batch in batches)
    first = list(_take(stream, min(config.steps, -(-SAMPLE // config.batch))))
    if not first:
        raise InputError("there are no activations to train on; the corpus is empty")
    sample = {site: torch.cat([batch[site] for batch in first]) for site in first[0]}
    learner = Learner(config, sample, info, device=device, ranks=ranks)
    del sample
    steps = 0
    for batch in _take(chain(first, stream), config.steps):
        reached = learner.step(batch)
        steps = reached.step
        report(reached)
    if steps < config.steps:
        raise InputError(
            f"the corpus gave {steps * config.batch:,} tokens, {config.tokens:,} were asked for; "
            "give more text or ask for fewer"
        )
    return learner.finish()


def _by_site(batch: Tensor | Batch, config: FitConfig) -> Batch:
    if not isinstance(batch, Tensor):
        return batch
    if config.kind != "sae":
        raise InputError(f"a {config.kind} reads one site and writes another: give the activations of each by site")
    return {config.sites_read[0]: batch}


def _take(stream: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The first ``count`` items; unlike islice it does not pull one more than it yields."""
    for _ in range(count):
        try:
            yield next(stream)
        except StopIteration:
            return
