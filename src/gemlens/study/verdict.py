"""What a dictionary's figures mean, in words: chiefly whether it sits at the right site and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gemlens.records import Fidelity
from gemlens.scope.listing import Listed

__all__ = ["is_poor", "suggest", "verdict"]

_GOOD, _FAIR = 0.9, 0.7


def verdict(figures: Fidelity) -> Fidelity:
    """The same record with ``verdict`` filled in, worst news first."""
    said = [*_site_or_scale(figures), *_quality(figures)]
    return replace(figures, verdict=tuple(said))


def is_poor(figures: Fidelity) -> bool:
    """At the right site, but too coarse: a larger dictionary would help."""
    return not _site_or_scale(figures) and figures.ce_recovered_mean < _FAIR


def suggest(figures: Fidelity, siblings: Sequence[Listed]) -> Fidelity:
    """The same record, a poor verdict followed by what to try next of what the release holds for that site."""
    mine = next((each for each in siblings if each.path == figures.dictionary.path), None)
    if mine is None or mine.is_clt or not is_poor(figures):
        return figures
    near = [
        each for each in siblings if (each.category, each.site, each.layer) == (mine.category, mine.site, mine.layer)
    ]
    denser = [each for each in near if each.width == mine.width and mine.l0_order < each.l0_order < float("inf")]
    wider = [each for each in near if mine.width and each.width and each.width > mine.width]
    tries = []
    if denser:
        tries.append(f"{min(denser, key=lambda each: each.l0_order).path} (higher L0)")
    if wider:
        # The next width, and of that the L0 that is nearest by rank.
        least = min(each.width or 0 for each in wider)
        step = sorted((each for each in wider if each.width == least), key=lambda each: each.l0_order)
        as_dense = [each for each in step if each.l0_order >= mine.l0_order]
        tries.append(f"{(as_dense or step[-1:])[0].path} (wider)")
    said = (
        f"next to try: {' or '.join(tries)}"
        if tries
        else (f"{figures.dictionary.release} names none for {mine.site}.{mine.layer} that is wider or of higher L0")
    )
    return replace(figures, verdict=(*figures.verdict, said))


def _site_or_scale(figures: Fidelity) -> list[str]:
    width, l0 = figures.dictionary.width, figures.l0
    said = []
    if figures.variance_explained < 0:
        said.append(
            f"WRONG SITE OR SCALE: the reconstruction is further from {figures.writes} than its mean is "
            f"(variance explained {figures.variance_explained:.2f}); check layer, site and model"
        )
    if l0 > max(1000.0, 0.1 * width):
        said.append(f"WRONG SITE OR SCALE: {l0:.0f} of {width} features fire on a token; a sparse code has tens")
    if l0 < 1:
        said.append(f"WRONG SITE OR SCALE: hardly any feature fires ({l0:.2f} a token)")
    if figures.spliced.above_clean > figures.zeroed.above_clean:
        said.append(
            "HARMFUL: splicing the reconstruction in costs more than zeroing the site "
            f"({figures.spliced.above_clean:.2f} against {figures.zeroed.above_clean:.2f} nats)"
        )
    return said


def _quality(figures: Fidelity) -> list[str]:
    said = []
    cost = figures.spliced
    recovered = figures.ce_recovered_mean
    if figures.variance_explained >= 0:
        word = "good" if recovered >= _GOOD else "fair" if recovered >= _FAIR else "poor"
        held = (
            f"and recovers {recovered:.0%} of what replacing {figures.writes} by its mean costs"
            if recovered >= 0
            else f"more than replacing {figures.writes} by its mean does ({figures.mean_ablated.above_clean:.3f})"
        )
        said.append(
            f"{word}: the reconstruction costs {cost.above_clean:.3f} ± {cost.standard_error:.3f} nats a token {held}"
        )
    # On less text rare features had no chance.
    if figures.silent > 0.1 and figures.tokens_measured > 10_000:
        said.append(f"{figures.silent:.0%} of the features never fired on {figures.tokens_measured:,} tokens")
    if figures.norm_max_over_median > 4:
        said.append(
            f"some tokens have {figures.norm_max_over_median:.0f} times the median norm; the largest 1 % hold "
            f"{figures.high_norm_share:.0%} of the variance"
        )
    return said
