"""Exact randomization tests, held against every outcome counted and against random flips."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gemlens.study.randomization import adjusted, exact_p, flip_p, normal_p


def counted(values: list[list[float]], observed: list[int]) -> float:
    """By counting outcomes."""
    seen = abs(sum(row[k] for row, k in zip(values, observed, strict=True)))
    sums = np.array([sum(each) for each in product(*values)])
    return float((np.abs(sums) >= seen - 1e-9).mean())


def test_sums_that_tie_are_counted_but_for_what_rounding_moves():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9, 12):
        d = rng.integers(-6, 7, n).astype(float)
        if d.any():
            assert flip_p(d) == pytest.approx(counted([[x, -x] for x in d], [0] * n), abs=0.01)


def test_real_numbers_within_what_rounding_to_the_lattice_moves():
    rng = np.random.default_rng(1)
    for _ in range(5):
        d = rng.exponential(size=13) * rng.choice([-1, 1], 13)
        assert flip_p(d) == pytest.approx(counted([[x, -x] for x in d], [0] * 13), rel=0.02, abs=0.002)


def test_several_choices_of_different_number():
    """Right minus the mean of the others, for each choice that might have been right."""
    rng = np.random.default_rng(2)
    rows = []
    for m in (2, 3, 4, 2, 5, 3):
        x = rng.integers(0, 5, m).astype(float)
        rows.append([float(a - (x.sum() - a) / (m - 1)) for a in x])
    observed = [0, 1, 3, 1, 2, 0]
    most = max(map(len, rows))
    padded = np.array([row + [np.nan] * (most - len(row)) for row in rows])
    assert exact_p(padded, np.array(observed)) == pytest.approx(counted(rows, observed), rel=0.03, abs=0.002)


def test_small_p_are_the_tail_and_not_the_normal_curve():
    """Twenty items all one way: 2 of 2^20 outcomes, ten times what the normal curve says."""
    assert flip_p(np.ones(20)) == pytest.approx(2**-19, rel=1e-6)
    assert normal_p(np.array([np.sqrt(20.0)]))[0] > 2**-19
    assert flip_p(np.ones(300)) == 1e-12  # as small as it gets


def test_under_the_hypothesis_p_is_as_often_small_as_it_says():
    rng = np.random.default_rng(3)
    d = rng.exponential(size=(600, 40)) * (rng.random((600, 40)) < 0.5)
    p = np.array([flip_p(row * rng.choice([-1, 1], 40)) for row in d])
    for level in (0.05, 0.2):
        assert abs((p <= level).mean() - level) < 0.035


def test_nothing_that_moves_has_p_one():
    assert flip_p(np.zeros(5)) == 1
    assert flip_p(np.zeros(0)) == 1
    assert flip_p(np.array([3.0])) == 1
    assert flip_p(np.array([2.0, -2.0])) == 1


def test_benjamini_hochberg_by_hand():
    p = np.array([0.04, 0.001, 0.9, 0.01])
    assert adjusted(p).tolist() == pytest.approx([0.04 * 4 / 3, 0.004, 0.9, 0.02])
    assert len(adjusted(np.zeros(0))) == 0


def test_false_discoveries_stay_at_the_rate_asked_for():
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(200):
        p = np.concatenate([rng.random(180), rng.random(20) * 1e-4])
        found = adjusted(p) <= 0.1
        shares.append(found[:180].sum() / max(found.sum(), 1))
    assert np.mean(shares) < 0.11
