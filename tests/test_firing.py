"""Counts of a stream against the plain count of all of it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlens.scope.features import Features
from gemlens.study import firing
from gemlens.study.firing import Firing, half_octaves


def features_of(dense):
    token, ids = dense.nonzero(as_tuple=True)
    indptr = torch.zeros(len(dense) + 1, dtype=torch.int64)
    indptr[1:] = (dense > 0).sum(1).cumsum(0)
    return Features(indptr, ids, dense[token, ids], dense.shape[1])


def some(tokens, width, seed, spread=4.0):
    """[tokens, width], a third of it above 0, over many octaves."""
    draw = torch.Generator().manual_seed(seed)
    values = (torch.randn(tokens, width, generator=draw) * spread).exp2()
    return values * (torch.rand(tokens, width, generator=draw) < 1 / 3)


def counted(dense, thirds, cuts=(), **settings):
    found = Firing(dense.shape[1], **settings)
    edges = sorted({0, len(dense), *(min(cut, len(dense)) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        found.add(features_of(dense[start:stop]), thirds[start:stop])
    return found


@pytest.mark.parametrize("value", [1.0, 1.5, 2.0, 0.75, 3e-39, 1e-45, 1e30, 2**0.5, 2**-0.5, 4097.0])
def test_half_octaves_are_the_floor_of_twice_the_logarithm(value):
    tensor = torch.tensor([value])
    expected = math.floor(2 * math.log2(tensor.double().item()))
    assert half_octaves(tensor).item() == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 9), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_histograms_profiles_and_pairs_are_those_of_a_direct_count(seed, bins, cuts):
    dense = some(60, 9, seed)
    thirds = torch.arange(60) % 3
    found = counted(dense, thirds, cuts, bins=bins, coactivation=True)
    assert found.tokens == 60
    assert torch.equal(found.fired, (dense > 0).sum(0))
    for third in range(3):
        assert torch.equal(found.profile[:, third], (dense[thirds == third] > 0).sum(0))
    for feature in range(9):
        levels = [math.floor(2 * math.log2(value)) for value in dense[:, feature].tolist() if value > 0]
        if levels:
            expected = [0] * bins
            for level in levels:
                expected[min(max(levels) - level, bins - 1)] += 1
            assert int(found.top[feature]) == max(levels)
            assert found.histogram[feature].tolist() == expected
    both = (dense > 0).long().T @ (dense > 0).long()
    assert torch.equal(found.pairs, both.triu(1).int())


def test_pairs_are_counted_in_parts_of_any_size(monkeypatch):
    dense = some(40, 12, 3)
    dense[7] = 1  # one token on which everything fires
    whole = counted(dense, torch.zeros(40, dtype=torch.int64), coactivation=True).pairs
    for size in (1, 5, 66, 100):
        monkeypatch.setattr(firing, "_PAIRS", size)
        assert torch.equal(counted(dense, torch.zeros(40, dtype=torch.int64), coactivation=True).pairs, whole)


def test_together_is_the_share_of_common_tokens():
    dense = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]])
    ids, shares = counted(dense, torch.zeros(4, dtype=torch.int64), coactivation=True).together(2)
    assert ids.tolist() == [[1, 2], [0, -1], [0, -1], [-1, -1]]
    assert torch.allclose(shares, torch.tensor([[2 / 3, 1 / 4], [2 / 3, 0], [1 / 4, 0], [0, 0]]))


def test_without_pairs_nothing_is_together():
    ids, shares = counted(some(10, 5, 0), torch.zeros(10, dtype=torch.int64)).together(3)
    assert (ids == -1).all() and (shares == 0).all()


def test_it_goes_on_from_its_state():
    dense, thirds = some(50, 6, 1), torch.arange(50) % 3
    whole = counted(dense, thirds, coactivation=True)
    first, second = counted(dense[:20], thirds[:20], coactivation=True), Firing(6, coactivation=True)
    second.load(first.state())
    second.add(features_of(dense[20:]), thirds[20:])
    assert second.tokens == 50
    for name, value in whole.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.state()[name])), name
