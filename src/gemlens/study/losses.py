"""Stage 2 of the fidelity protocol: cross-entropy with one site at a time replaced, all else as in the clean pass.

A row is run once as it is, and read at every site on the way; for each edit it is taken up again at the block that is
edited. What zero and the mean cost depends on the site alone, so dictionaries of one site share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.lm.gemma import Model, logits, reading, writing
from gemlens.lm.resume import CleanPass, clean_pass, resume
from gemlens.sites import Site
from gemlens.study.outputs import Dictionary, Output, make, outputs

__all__ = ["Losses", "losses", "row_loss"]


class Losses(NamedTuple):
    """Mean cross-entropy of each row, float64 [rows], in nats a token."""

    clean: Tensor
    spliced: list[Tensor]
    """For each output of each dictionary."""
    zeroed: dict[Site, Tensor]
    mean_ablated: dict[Site, Tensor]


def losses(
    model: Model,
    dictionaries: Sequence[Dictionary],
    rows: Tensor,
    means: Mapping[Site, Tensor],
    report: Callable[[int], None],
) -> Losses:
    """Run [rows, n] ids, BOS first.

    Args:
        means: [d_out] of every site that is written.
        report: told how many splices are done, of rows x outputs.
    """
    parts = [part for dictionary in dictionaries for part in outputs(dictionary)]
    clean: list[Tensor] = []
    spliced: list[list[Tensor]] = [[] for _ in parts]
    zeroed: dict[Site, list[Tensor]] = {part.writes: [] for part in parts}
    averaged: dict[Site, list[Tensor]] = {part.writes: [] for part in parts}
    for done, row in enumerate(rows.split(1)):
        text = _Row(model, row, parts)
        clean.append(row_loss(model, text.clean.residual, row))
        for site in zeroed:
            nothing = torch.zeros_like(means[site])
            zeroed[site].append(text.loss(site, nothing))
            averaged[site].append(text.loss(site, means[site]))
        made = (each for dictionary in dictionaries for each in make(dictionary, text.x))
        for index, (part, each) in enumerate(zip(parts, made, strict=True)):
            spliced[index].append(text.loss(part.writes, each.recon))
            report(done * len(parts) + index + 1)
    return Losses(
        _joined(clean),
        [_joined(values) for values in spliced],
        {site: _joined(values) for site, values in zeroed.items()},
        {site: _joined(values) for site, values in averaged.items()},
    )


def row_loss(model: Model, residual: Tensor, row: Tensor) -> Tensor:
    """Mean cross-entropy of the predictions made at positions 1 to n - 2 of [1, n] tokens, from the last block."""
    scores = logits(model, residual[0, 1:-1]).float()
    return F.cross_entropy(scores, row[0, 2:].to(scores.device)).cpu()


class _Row:
    """A clean pass over [1, n] tokens, and what the dictionaries read in it."""

    def __init__(self, model: Model, row: Tensor, parts: Sequence[Output]) -> None:
        self._model, self._row = model, row
        first = min(part.writes.layer for part in parts)
        # What each block that is edited was fed.
        entries = [Site(part.writes.layer - 1, "resid_post") for part in parts if part.writes.layer > first]
        with reading(model, [*(part.reads for part in parts), *entries]) as found:
            self.clean: CleanPass = clean_pass(model, row, first)
        self._entries = {site.layer + 1: found[site][0] for site in entries} | {first: self.clean.entry}
        self.x = {part.reads: found[part.reads][0][0, 1:] for part in parts}
        """[n - 1, d] at every site read, BOS left out."""

    def loss(self, site: Site, value: Tensor) -> Tensor:
        """With ``value`` [n - 1, d] or [d] in place of what passes ``site``, position 0 left as it was."""

        def edit(old: Tensor) -> Tensor:
            return torch.cat([old[:, :1], value.to(old).expand_as(old[0, 1:])[None]], dim=1)

        skip = site.layer - self.clean.layer
        with writing(self._model, site, edit):
            residual = resume(self._model, self.clean, self._entries[site.layer], skip=skip)
        return row_loss(self._model, residual, self._row)


def _joined(values: list[Tensor]) -> Tensor:
    return torch.stack(values).double()
