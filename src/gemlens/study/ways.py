"""Four ways to say what each feature does to a target; each is a function of a prompt's passes and of dictionaries.

    gradient               act * (w_dec . g), g the target's gradient at what is written: one backward pass for all.
                           Baseline: nothing is written. Exact where the target is linear in the site.
                           (Syed et al. 2023, arXiv:2310.10348; Marks et al. 2024, arXiv:2403.19647)
    integrated_gradients   the same with g averaged on the straight line from the baseline: what the dictionary writes
                           where no feature fires, without its error. (Sundararajan et al. 2017, arXiv:1703.01365)
    ablation               the target minus the target without ``act * w_dec`` at that token: one run each, many as one
                           batch. Baseline: nothing is written. Terms need not add up: one feature can stand in for
                           another.
    direct                 act * w_dec through the final norm, its division as it was, and the head: what no later block
                           takes part in. Baseline: the head is not given what is written.

All terms are of one sign: what the target would lose without it, by this method. In every sum there are the features,
the error (what the dictionary leaves over), and, where the baseline does not hold them, bias and skip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.hooks import write
from gemlens.sites import Site
from gemlens.study.decomposition import Decomposed, Source, Written
from gemlens.study.passes import Passes
from gemlens.study.path import LEAST_STEPS, mean_gradient

__all__ = ["Effects", "Method", "ablation", "direct", "exact_effects", "gradient", "integrated_gradients"]

_RESIDUAL = ("embed", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True, eq=False)
class Effects:
    """What a method says of one dictionary."""

    method: str
    baseline: str
    features: list[Tensor]
    """float64 [nnz] for each of its sources."""
    bias: list[Tensor]
    """float64 [n] for each site that it writes, as the two below."""
    skip: list[Tensor]
    error: list[Tensor]
    change: float
    """The target less the target at the baseline."""


Method = Callable[[Passes, Sequence[Decomposed]], list[Effects]]


def gradient(passes: Passes, dictionaries: Sequence[Decomposed]) -> list[Effects]:
    """Gradient times activation, of all dictionaries from one backward pass."""
    nothing = {
        each.site: torch.zeros_like(passes.values[each.site])[None] for known in dictionaries for each in known.written
    }
    found = {site: each[0] for site, each in passes.gradients(nothing).items()}
    return [
        _along(known, found, "gradient x activation", "nothing at what it writes", _zeroed(passes, known))
        for known in dictionaries
    ]


def integrated_gradients(passes: Passes, dictionaries: Sequence[Decomposed], *, steps: int = 64) -> list[Effects]:
    """Gradients along the way from "no feature fires" to the clean pass, averaged.

    Args:
        steps: gradients to take at most, in batches; fewer once the terms add up to the target's change.

    Raises:
        InputError: less than five steps.
    """
    if steps < LEAST_STEPS:
        raise InputError(f"steps {steps}: integrated gradients take {LEAST_STEPS} or more")
    return [
        _along(
            known,
            _averaged(passes, known, steps),
            f"integrated gradients, {steps} steps",
            "what it writes where no feature fires",
            _changed(passes, {each.site: each.constant - each.value for each in known.written}),
            constant=False,
        )
        for known in dictionaries
    ]


def _averaged(passes: Passes, known: Decomposed, steps: int) -> dict[Site, Tensor]:
    way = {each.site: each.value - each.constant for each in known.written}
    together = passes.batch(way)

    def deltas(shares: Tensor) -> dict[Site, Tensor]:
        return {site: (shares - 1).to(each)[:, None, None] * each for site, each in way.items()}

    def values(shares: Tensor) -> Tensor:
        return torch.cat([passes.measured(deltas(part)) for part in shares.split(together)]).double().cpu()

    def gradients(shares: Tensor) -> dict[Site, Tensor]:
        found = [passes.gradients(deltas(part)) for part in shares.split(together)]
        return {site: torch.cat([each[site] for each in found]) for site in way}

    return mean_gradient(gradients, values, way, steps)


def ablation(passes: Passes, dictionaries: Sequence[Decomposed]) -> list[Effects]:
    """Every feature at every token, every token's error, bias and skip removed in a run of its own."""
    found = []
    for known in dictionaries:
        features = [exact_effects(passes, source, torch.arange(len(source.features.ids))) for source in known.sources]
        parts = [
            [_removed(passes, written, part) for part in (written.bias, written.skip, written.error)]
            for written in known.written
        ]
        bias, skip, error = (list(each) for each in zip(*parts, strict=True))
        change = _zeroed(passes, known)
        found.append(Effects("ablation", "nothing at what it writes", features, bias, skip, error, change))
    return found


def exact_effects(passes: Passes, source: Source, entries: Tensor) -> Tensor:
    """float64 [entries], what the target loses without some of a source's activations, one at a time.

    Args:
        entries: int64, which of ``source.features.ids``.
    """
    features = source.features
    tokens, clean = features.tokens, passes.clean_target()
    if not len(entries):
        return torch.zeros(0, dtype=torch.float64)
    found = []
    for part in entries.split(passes.batch(source.writes)):
        at = torch.arange(len(part)), tokens[part]
        deltas = {}
        for site in source.writes:
            delta = passes.values[site].new_zeros(len(part), passes.n, passes.values[site].shape[1])
            rows = source.rows(site, features.ids[part]).to(delta)
            delta[at] = -rows * features.values[part].to(delta)[:, None]
            deltas[site] = delta
        found.append(clean - passes.measured(deltas).double().cpu())
    return torch.cat(found)


def _removed(passes: Passes, written: Written, part: Tensor | None) -> Tensor:
    """float64 [n], what the target loses without one token's part at a time."""
    total = torch.zeros(passes.n, dtype=torch.float64)
    if part is None or not part.any():
        return total
    clean = passes.clean_target()
    for tokens in part.any(dim=1).nonzero()[:, 0].split(passes.batch([written.site])):
        delta = part.new_zeros(len(tokens), *part.shape)
        delta[torch.arange(len(tokens)), tokens] = -part[tokens]
        total[tokens.cpu()] = clean - passes.measured({written.site: delta}).double().cpu()
    return total


def direct(passes: Passes, dictionaries: Sequence[Decomposed]) -> list[Effects]:
    """What reaches the logits without any later block.

    Raises:
        InputError: a target that is no function of the logits, or a site whose activation is not added to the residual
            stream as it is.
    """
    target, model = passes.target, passes.model
    if not target.of_logits:
        raise InputError(f"the direct effect is one on logits, and the target is {target.name}; take another method")
    for known in dictionaries:
        for written in known.written:
            if written.site.name not in _RESIDUAL:
                raise InputError(
                    f"{known.dictionary.info.id} writes {written.site}, which reaches the residual stream through more "
                    "than an addition; take another method than the direct effect"
                )
    at = target.positions
    state = passes.clean.residual[:, at].float()
    norm = model.backbone.norm
    # The norm as the linear map that it was for this prompt.
    scale = torch.rsqrt(state.pow(2).mean(dim=-1, keepdim=True) + norm.eps) * (1 + norm.weight.float())  # type: ignore[union-attr, operator]

    def measure(delta: Tensor) -> Tensor:
        with write(norm, "output", lambda value: value + delta.to(value)):  # type: ignore[arg-type]
            return target.measure(passes.clean.residual[:, at])

    leaf = torch.zeros_like(state, requires_grad=True)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(measure(leaf).sum(), [leaf])
    whole = torch.zeros_like(passes.clean.residual[0], dtype=torch.float32)
    whole[at] = (found * scale)[0]
    results = []
    for known in dictionaries:
        gradients = {written.site: whole for written in known.written}
        with torch.no_grad():
            gone = sum(written.value[at] for written in known.written)
            change = passes.clean_target() - float(measure(-gone * scale))
        results.append(_along(known, gradients, "direct effect", "the head is not given what it writes", change))
    return results


def _along(
    known: Decomposed,
    gradients: Mapping[Site, Tensor],
    method: str,
    baseline: str,
    change: float,
    *,
    constant: bool = True,
) -> Effects:
    def dot(part: Tensor | None, site: Site) -> Tensor:
        if part is None:
            return torch.zeros(len(gradients[site]), dtype=torch.float64)
        return (part.double() * gradients[site].double()).sum(dim=1).cpu()

    def each(choose: Callable[[Written], Tensor | None]) -> Iterator[Tensor]:
        return (dot(choose(written), written.site) for written in known.written)

    return Effects(
        method=method,
        baseline=baseline,
        features=[source.along(gradients) for source in known.sources],
        bias=list(each(lambda written: written.bias if constant else None)),
        skip=list(each(lambda written: written.skip if constant else None)),
        error=list(each(lambda written: written.error)),
        change=change,
    )


def _zeroed(passes: Passes, known: Decomposed) -> float:
    return _changed(passes, {written.site: -written.value for written in known.written})


def _changed(passes: Passes, deltas: Mapping[Site, Tensor]) -> float:
    """What the target loses by [n, d] added at each site."""
    return passes.clean_target() - float(passes.measured({site: each[None] for site, each in deltas.items()}))
