"""What tells right from wrong: planted differences are found, what explains them otherwise is not believed."""

from __future__ import annotations

import numpy as np
import pytest

from gemlens.records.analysis import ActiveFeatures
from gemlens.records.choices import Item
from gemlens.study.choice_tests import Sides, halves, layer_tests, overlap, per_text

N = 120


def features_of(dense: np.ndarray) -> ActiveFeatures:
    """Of [texts, features]."""
    rows, ids = dense.nonzero()
    indptr = np.concatenate([[0], np.bincount(rows, minlength=len(dense)).cumsum()])
    return ActiveFeatures(indptr, ids, dense[rows, ids].astype(np.float32))


def sides_of(*, choices: int = 2, longer: bool = False, same_last: bool = True, seed: int = 0) -> Sides:
    rng = np.random.default_rng(seed)
    items = [
        Item(k, "", ("a",) * choices, int(rng.integers(choices)), ("",) * choices, ("a",) * choices) for k in range(N)
    ]
    n = np.full(N * choices, 5)
    if longer:  # right answers are most often the longer ones
        n += rng.integers(0, 3, len(n))
        first = np.arange(N) * choices
        n[first + [item.gold for item in items]] += 2
    last = np.repeat(np.arange(N), choices) if same_last else np.arange(N * choices)
    return Sides.of(items, n, last)


def noise(sides: Sides, features: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (len(sides.n_tokens), features)
    return rng.exponential(size=shape) * (rng.random(shape) < 0.5)


@pytest.mark.parametrize("choices", [2, 4])
def test_a_planted_feature_is_found_and_confirmed_and_noise_is_not(choices):
    sides = sides_of(choices=choices)
    dense = noise(sides, 200)
    dense[sides.gold, 7] += 1.5
    (found,) = layer_tests([features_of(dense)], sides, halves(N, 0))
    assert found.tested == 200
    assert [test.feature_id for test in found.features if test.confirmed] == [7]
    test = found.features[0]
    assert test.difference == pytest.approx(1.5, abs=0.4) and test.z > 4 and test.held_out_difference > 1
    assert test.p_same_last is not None and test.p_same_last < 1e-4


def test_a_feature_of_wrong_answers_has_the_other_sign():
    sides = sides_of()
    dense = noise(sides, 20)
    dense[sides.gold, 3] = 0
    (found,) = layer_tests([features_of(dense)], sides, halves(N, 0))
    assert found.features[0].feature_id == 3 and found.features[0].z < 0 and found.features[0].confirmed


def test_a_feature_that_counts_tokens_is_not_believed_where_right_answers_are_longer():
    sides = sides_of(longer=True)
    dense = noise(sides, 20)
    dense[:, 5] = sides.n_tokens
    dense[sides.gold, 6] += 2  # tells right from wrong, whatever the length
    (found,) = layer_tests([features_of(dense)], sides, halves(N, 0))
    by_id = {test.feature_id: test for test in found.features}
    assert by_id[5].q < 1e-6 and by_id[5].held_out_p < 1e-6
    assert by_id[5].p_length > 0.05 and not by_id[5].confirmed
    assert by_id[6].confirmed


def test_a_feature_of_the_last_token_is_not_believed_where_last_tokens_are_the_same():
    """It fires for right answers, but never in items whose choices end alike."""
    sides = sides_of()
    alike = np.arange(N) % 2 == 0
    sides = Sides(sides.first, sides.gold, sides.n_tokens, alike)
    rng = np.random.default_rng(2)
    dense = noise(sides, 20)
    dense[:, 4] = 0
    dense[sides.gold[~alike], 4] = 3
    both = np.repeat(alike, 2)
    dense[both, 4] = rng.exponential(size=both.sum())
    (found,) = layer_tests([features_of(dense)], sides, halves(N, 0))
    test = next(test for test in found.features if test.feature_id == 4)
    assert test.q < 0.01 and test.held_out_p < 0.01 and test.p_same_last > 0.05 and not test.confirmed


def test_a_difference_on_one_half_only_is_not_confirmed():
    sides, first = sides_of(), halves(N, 0)
    dense = noise(sides, 20)
    dense[sides.gold[first], 2] += 2
    (found,) = layer_tests([features_of(dense)], sides, first)
    assert found.features[0].feature_id == 2 and found.features[0].q < 0.01 and not found.features[0].confirmed


def test_rare_features_are_not_tested():
    sides, first = sides_of(), halves(N, 0)
    dense = np.zeros((2 * N, 3))
    inside = sides.gold[first]
    dense[inside[:9], 0] = 1
    dense[inside[:10], 1] = 1
    (found,) = layer_tests([features_of(dense)], sides, first)
    assert found.tested == 1 and found.features[0].feature_id == 1
    assert found.features[0].p == pytest.approx(2 / 2**10)


def test_false_discoveries_are_held_over_all_dictionaries_together():
    """Where the key is random, something is found in one run of twenty at most."""
    some = 0
    for seed in range(40):
        sides = sides_of(seed=seed)
        both = [features_of(noise(sides, 60, seed=100 + seed)), features_of(noise(sides, 60, seed=200 + seed))]
        some += any(each.significant for each in layer_tests(both, sides, halves(N, seed)))
    assert some <= 6


def test_halves_are_halves_and_drawn_by_the_seed():
    assert halves(7, 0).sum() == 4 and halves(8, 0).sum() == 4
    assert (halves(50, 1) == halves(50, 1)).all() and (halves(50, 1) != halves(50, 2)).any()


def test_overlap_by_hand():
    dense = np.zeros((4, 6))
    dense[0, [0, 1, 2]] = 1
    dense[1, [1, 2, 3]] = 1
    dense[2, [0, 1]] = 1
    dense[3, [4]] = 1
    items = [Item(k, "", ("a", "b"), k, ("", ""), ("a", "b")) for k in range(2)]
    sides = Sides.of(items, np.full(4, 3), np.array([9, 9, 8, 7]))
    found = overlap(features_of(dense), sides)
    # Item 0: {0,1,2} and {1,2,3} share 2 of 4; item 1, whose right choice is its second: {4} and {0,1} share none.
    assert (found.right_wrong, found.same_last, found.other_last) == (0.25, 0.5, 0.0)
    assert found.right_right == 0  # {0,1,2} and {4}


def test_tokens_of_a_text_become_one_row_of_their_largest():
    dense = np.array([[1.0, 0, 2], [3, 0, 0], [0, 0, 5]])
    found = per_text(features_of(dense), np.array([0, 0, 1]), 2)
    assert [row.tolist() for row in found.row(0)] == [[0, 2], [3, 2]]
    assert [row.tolist() for row in found.row(1)] == [[2], [5]]
