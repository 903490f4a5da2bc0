"""Stage 1 of the fidelity protocol: how many features fire, and how near the reconstruction comes, over a lot of text.

Of all dictionaries from one forward pass. Nothing is held that grows with text times width: of each token a few
numbers, of each site sums, the one percent of tokens of largest norm, and what ``linear`` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.lm.gemma import Model, activations
from gemlens.study.linear import LinearFit
from gemlens.study.outputs import Dictionary, Made, Output, make, outputs

__all__ = ["Measured", "reconstructions"]

_TOGETHER = 16
_ORDINARY = 0.99
"""Share of the tokens left when those of largest norm are taken out."""


class Measured(NamedTuple):
    """Of one output of a dictionary."""

    figures: dict[str, Any]
    mean: Tensor
    """[d_out], of the site that is written."""
    fired: Tensor
    """int64 [width], tokens on which each feature of the layer fired, BOS not counted."""


def reconstructions(
    model: Model, dictionaries: Sequence[Dictionary], tokens: Tensor, report: Callable[[int], None]
) -> list[Measured]:
    """Run [rows, n] ids, BOS first, and measure every output of every dictionary; ``report`` is told rows done."""
    parts = [part for dictionary in dictionaries for part in outputs(dictionary)]
    tallies = [_Tally(part) for part in parts]
    maps = {(part.reads, part.writes): LinearFit() for part in parts}
    spreads = {part.writes: _Spread(len(tokens) * (tokens.shape[1] - 1)) for part in parts}
    done = 0
    for group in tokens.split(_TOGETHER):
        found = activations(model, group, sorted({site for part in parts for site in (part.reads, part.writes)}))
        if not done:
            for tally in tallies:
                tally.at_bos(found[tally.output.reads][:1, 0].float())
        x = {site: value[:, 1:].flatten(0, 1).float() for site, value in found.items()}
        for site, spread in spreads.items():
            spread.add(x[site])
        for (reads, writes), best in maps.items():
            best.add(x[reads], x[writes])
        made = [each for dictionary in dictionaries for each in make(dictionary, x)]
        for tally, each in zip(tallies, made, strict=True):
            tally.add(each, x[tally.output.writes])
        done += len(group)
        report(done)
    by_rank = {pair: best.explained() for pair, best in maps.items()}
    return [
        tally.measured(spreads[tally.output.writes], by_rank[tally.output.reads, tally.output.writes])
        for tally in tallies
    ]


class _Spread:
    """Norms, mean and variance of what passes a site, in double precision, from a stream of it.

    Squares are taken around the mean of the first activations: around zero they would cancel, since much of what
    passes a Gemma's residual stream is its mean.
    """

    def __init__(self, tokens: int) -> None:
        self._most = math.ceil((1 - _ORDINARY) * tokens) + 1
        self._norms: list[Tensor] = []
        self._origin = self._sum = self._largest = torch.empty(0)
        self._squares = 0.0

    def add(self, x: Tensor) -> None:
        """Take in [n, d]."""
        x = x.to("cpu", torch.float64)
        if not self._norms:
            self._origin = x.mean(dim=0)
            self._sum, self._largest = torch.zeros_like(self._origin), x[:0]
        self._norms.append(x.norm(dim=1))
        self._sum += (x - self._origin).sum(dim=0)
        self._squares += float((x - self._origin).pow(2).sum())
        held = torch.cat([self._largest, x])
        self._largest = held[held.norm(dim=1).topk(min(self._most, len(held))).indices]

    @property
    def norm(self) -> Tensor:
        """[tokens]"""
        return torch.cat(self._norms)

    @property
    def mean(self) -> Tensor:
        """[d]"""
        return self._origin + self._sum / len(self.norm)

    @property
    def deviation(self) -> float:
        """Squares around the mean, summed over tokens and dimensions."""
        return self._squares - float(self._sum.pow(2).sum()) / len(self.norm)

    @property
    def variance_of_all_numbers(self) -> float:
        """Around a single mean of all dimensions."""
        numbers = len(self.norm) * len(self._origin)
        total = float(self.mean.sum()) * len(self.norm)
        return (float(self.norm.pow(2).sum()) - total**2 / numbers) / (numbers - 1)

    @property
    def ordinary(self) -> Tensor:
        """bool [tokens], all but the one percent of largest norm."""
        return self.norm <= self.norm.quantile(_ORDINARY)

    @property
    def _outliers(self) -> Tensor:
        return self._largest[self._largest.norm(dim=1) > self.norm.quantile(_ORDINARY)]

    @property
    def deviation_of_outliers(self) -> float:
        """Of ``deviation``, what the tokens that are not ordinary hold."""
        return float((self._outliers - self.mean).pow(2).sum())

    @property
    def deviation_of_ordinary(self) -> float:
        """As ``deviation``, of the ordinary tokens alone, around their own mean."""
        without = self._outliers - self._origin
        squares = self._squares - float(without.pow(2).sum())
        return squares - float((self._sum - without.sum(dim=0)).pow(2).sum()) / (len(self.norm) - len(without))


class _Tally:
    """What is counted of one output."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._errors: list[Tensor] = []
        self._cosines: list[Tensor] = []
        self._active = 0
        self._l0_at_bos = 0
        self._fired = torch.zeros(output.info.width, dtype=torch.int64)

    def at_bos(self, x: Tensor) -> None:
        """[1, d_in] of any row: nothing comes before BOS, so it is the same in all."""
        self._l0_at_bos = int(self.output.encode(x).l0)

    def add(self, made: Made, target: Tensor) -> None:
        """``target`` [n, d_out] is what passes the site that is written."""
        recon = made.recon.float()
        self._errors.append((target - recon).pow(2).sum(dim=1).cpu())
        self._cosines.append(F.cosine_similarity(target, recon, dim=1).cpu())
        self._active += len(made.features.ids)
        self._fired += torch.bincount(made.features.ids, minlength=len(self._fired)).cpu()

    def measured(self, spread: _Spread, by_rank: Tensor) -> Measured:
        """``by_rank`` is what the best linear map of each rank explains."""
        error, ordinary = torch.cat(self._errors).double(), spread.ordinary
        fvu = float(error.sum()) / spread.deviation
        # Mean squares over all numbers, as the tutorial has them.
        numbers = spread.variance_of_all_numbers * len(error) * len(spread.mean)
        l0 = self._active / len(error)
        figures = {
            "l0": l0,
            "l0_at_bos": float(self._l0_at_bos),
            "variance_explained": 1 - fvu,
            "fvu": fvu,
            "variance_explained_trimmed": 1 - float(error[ordinary].sum()) / spread.deviation_of_ordinary,
            "variance_explained_tutorial": 1 - float(error.sum()) / numbers,
            "variance_explained_tutorial_of_mean": 1 - spread.deviation / numbers,
            "variance_explained_pca": float(by_rank[: round(l0) + 1][-1]),
            "variance_explained_linear": None if self.output.reads == self.output.writes else float(by_rank[-1]),
            "cosine": float(torch.cat(self._cosines).mean()),
            "silent": float((self._fired == 0).float().mean()),
            "high_norm_share": spread.deviation_of_outliers / spread.deviation,
            "norm_max_over_median": float(spread.norm.max() / spread.norm.median()),
        }
        return Measured(figures, spread.mean.float(), self._fired)
