"""The k largest of a stream against a stable sort of all of it, with ties, whatever the chunks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlens.study import strongest
from gemlens.study.strongest import Strongest


def by_sorting(ids, keys, values, width, k):
    """What a stable sort of everything says, feature by feature."""
    found = []
    for feature in range(width):
        at = (ids == feature).nonzero().squeeze(1)
        order = at[keys[at].argsort(descending=True, stable=True)][:k]
        free = k - len(order)
        found.append(
            (
                torch.cat([keys[order], torch.zeros(free)]),
                torch.cat([order, torch.full((free,), -1)]),
                torch.cat([values[order], torch.zeros(free)]),
            )
        )
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 12),
    k=st.integers(1, 7),
    n=st.integers(0, 400),
    levels=st.integers(1, 30),
    waiting=st.sampled_from([1, 7, 50, 10**6]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_a_stream_with_ties_ends_as_a_stable_sort_of_all_of_it(seed, width, k, n, levels, waiting, cuts):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(width, (n,), generator=draw)
    keys = torch.randint(1, levels + 1, (n,), generator=draw) / 7  # few levels: most are ties
    values = torch.rand(n, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strongest, "_WAITING", waiting)
        found = Strongest(width, k)
        edges = sorted({0, n, *(min(cut, n) for cut in cuts)})
        for start, stop in itertools.pairwise(edges):
            part = slice(start, stop)
            found.add(ids[part], keys[part], torch.arange(start, stop), values[part])
        found.settle()
    for got, expected in zip(
        (found.keys, found.places, found.values), by_sorting(ids, keys, values, width, k), strict=True
    ):
        assert torch.equal(got, expected)


def test_all_positive_floats_are_ordered_by_size():
    """The order is that of the numbers' bits: the smallest, subnormal and largest that there are."""
    keys = torch.tensor([1e-45, 3.4e38, 1.0, 1e-38, 1.0000001, 65504.0])
    found = Strongest(1, 6)
    found.add(torch.zeros(6, dtype=torch.int64), keys, torch.arange(6))
    found.settle()
    assert torch.equal(found.keys[0], keys.sort(descending=True).values)


def test_it_goes_on_from_its_state():
    draw = torch.Generator().manual_seed(5)
    ids, keys = torch.randint(9, (3000,), generator=draw), torch.randint(1, 90, (3000,), generator=draw).float()
    whole, first, second = (Strongest(9, 4) for _ in range(3))
    whole.add(ids, keys, torch.arange(3000))
    first.add(ids[:1700], keys[:1700], torch.arange(1700))
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    second.add(ids[1700:], keys[1700:], torch.arange(1700, 3000))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_what_cannot_matter_does_not_wait():
    """So that memory is that of k numbers a feature, however long the stream."""
    found = Strongest(4, 2)
    found.add(torch.arange(4).repeat(2), torch.full((8,), 5.0), torch.arange(8))
    found.settle()
    found.add(torch.arange(4).repeat(1000), torch.full((4000,), 5.0), torch.arange(8, 4008))  # ties come too late
    assert found._held == 0
