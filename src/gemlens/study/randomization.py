"""Do right choices differ from wrong ones? An exact randomization test within items, and Benjamini-Hochberg.

The statistic is the sum over items of one number each. Under the hypothesis that the key says nothing, an item's number
is any of a few equally likely ones, whatever the other items' are: with two choices ``d`` or ``-d``, which is the
sign-flip test (Fisher 1935); with m, right minus the mean of the others for each choice that might have been right.

The distribution of such a sum needs no random draws: it is the convolution of the items' distributions, the product
of their Fourier transforms. Values are rounded to a lattice of 4,096 points across 24 standard deviations, and the
observed sum is that of the rounded values, so that the answer is exact for them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["adjusted", "exact_p", "flip_p", "normal_p"]

_POINTS = 4096
_WIDE = 12.0
"""Standard deviations on either side."""
_SMALLEST = 1e-12
"""What is left of a double's digits after a transform of 4,096 points."""


def normal_p(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided p of standard normal values: close in the middle, too small in the tails of few items."""
    return np.array([math.erfc(each) for each in (np.abs(z) / math.sqrt(2)).ravel()]).reshape(z.shape)


def flip_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the sum of [items] differences, each as likely to have the other sign."""
    moving = differences[differences != 0]
    return exact_p(np.stack([moving, -moving], axis=1), np.zeros(len(moving), dtype=np.int64))


def exact_p(values: NDArray[np.float64], observed: NDArray[np.int64]) -> float:
    """Two-sided p of a sum of one value an item.

    Args:
        values: [items, m], equally likely ones; NaN where an item has fewer. Their mean is 0.
        observed: [items], the column that was seen.

    Returns:
        The chance of a sum as far from 0, at least 1e-12.
    """
    there = np.isfinite(values)
    counts = there.sum(axis=1)
    filled = np.where(there, values, 0.0)
    deviation = math.sqrt(float(((filled**2).sum(axis=1) / np.maximum(counts, 1)).sum()))
    if deviation == 0:
        return 1.0
    total = abs(float(filled[np.arange(len(filled)), observed].sum()))
    # Beyond the largest possible sum there is nothing to wrap around; a narrower lattice is a finer one.
    reach = min(max(_WIDE * deviation, total + deviation), float(np.abs(filled).max(axis=1).sum()))
    # Room for the rounding of each item, or a sum of all of one sign would come round to the other end.
    step = reach / (_POINTS // 2 - 1 - min(len(filled), _POINTS // 4) // 2)
    places = np.rint(filled / step).astype(np.int64)
    seen = abs(int(places[np.arange(len(places)), observed].sum()))
    if seen >= _POINTS // 2:
        return _SMALLEST
    mass = np.fft.irfft(_transform(places, there, counts), _POINTS)
    tail = mass[seen : _POINTS - seen + 1].sum() if seen else 1.0
    return float(min(1.0, max(tail, _SMALLEST)))


def _transform(places: NDArray[np.int64], there: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray:
    """[_POINTS / 2 + 1], the product of the items' characteristic functions."""
    frequencies = np.arange(_POINTS // 2 + 1)
    angles = 2 * np.pi * np.arange(_POINTS) / _POINTS
    if places.shape[1] == 2 and there.all() and not (places[:, 0] + places[:, 1]).any():
        cosines = np.cos(angles)
        product = np.ones(len(frequencies))
        for part in np.array_split(places[:, 0], max(1, len(places) // 256)):
            product *= np.prod(cosines[(part[:, None] * frequencies) % _POINTS], axis=0)
        return product
    turns = np.exp(-1j * angles)
    whole = np.ones(len(frequencies), dtype=np.complex128)
    for row, known, count in zip(places, there, counts, strict=True):
        whole *= turns[(row[known][:, None] * frequencies) % _POINTS].sum(axis=0) / count
    return whole


def adjusted(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """False discovery rates at which each of [n] hypotheses would be rejected (Benjamini and Hochberg 1995)."""
    n = len(p)
    order = np.argsort(p, kind="stable")
    ranked = p[order] * n / np.arange(1, n + 1)
    out = np.empty(n)
    out[order] = np.minimum(1.0, np.minimum.accumulate(ranked[::-1])[::-1])
    return out
