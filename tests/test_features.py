"""Sparse features say the same as the dense matrix they stand for."""

from __future__ import annotations

import pytest
import torch

from gemlens.scope.features import Features

WIDTH = 30


def sparse(dense):
    """Features of a dense [n, width], put together the slow way."""
    rows = [row.nonzero()[:, 0] for row in dense]
    return Features(
        indptr=torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()], dtype=torch.int64),
        ids=torch.cat([*rows, torch.empty(0, dtype=torch.int64)]),
        values=torch.cat([*(dense[i, row] for i, row in enumerate(rows)), torch.empty(0)]),
        width=dense.shape[1],
    )


def random_dense(seed, n=7):
    """Some rows are empty, the first and the last among them for some seeds; values repeat."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(-20, 5, (n, WIDTH), generator=generator).clamp(min=0).float()
    return dense * (torch.rand(n, 1, generator=generator) > 0.3)


EDGES = [torch.zeros(4, WIDTH), torch.ones(3, WIDTH), torch.zeros(0, WIDTH)]
DENSE = pytest.mark.parametrize("dense", [*map(random_dense, range(12)), *EDGES])


@DENSE
def test_dense_rows_and_l0(dense):
    features = sparse(dense)
    assert torch.equal(features.dense(), dense)
    assert len(features) == len(dense)
    assert torch.equal(features.l0, (dense > 0).sum(-1))
    assert torch.equal(features.tokens, dense.nonzero()[:, 0])
    for token, row in enumerate(dense):
        ids, values = features.row(token)
        assert torch.equal(ids, row.nonzero()[:, 0])
        assert torch.equal(values, row[ids])


@DENSE
@pytest.mark.parametrize("k", [1, 3, WIDTH, 10 * WIDTH])
def test_top_is_strongest_first_and_ties_go_by_id(dense, k):
    features = sparse(dense)
    for token, row in enumerate(dense.tolist()):
        expected = sorted((-value, feature) for feature, value in enumerate(row) if value > 0)[:k]
        ids, values = features.top(token, k)
        assert list(zip((-values).tolist(), ids.tolist(), strict=True)) == expected


@DENSE
@pytest.mark.parametrize("wanted", [[3], [29, 0, 7], [5, 5], [], list(range(WIDTH))], ids=str)
def test_select_is_the_columns(dense, wanted):
    features = sparse(dense)
    for form in (wanted, torch.tensor(wanted, dtype=torch.int64), (feature for feature in wanted)):
        assert torch.equal(features.select(form), dense[:, wanted])


@pytest.mark.parametrize("cuts", [[7], [0, 7], [3, 4], [1, 0, 0, 6], [2, 2, 3, 0]], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_concatenating_is_stacking(cuts, seed):
    dense = random_dense(seed)
    whole = Features.concatenate([sparse(part) for part in dense.split(cuts)])
    expected = sparse(dense)
    assert torch.equal(whole.indptr, expected.indptr)
    assert torch.equal(whole.ids, expected.ids)
    assert torch.equal(whole.values, expected.values)
    assert whole.width == WIDTH


@pytest.mark.parametrize("cuts", [[7], [0, 7], [3, 4], [1, 0, 0, 6], [2, 2, 3, 0]], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_splitting_gives_back_what_was_stacked(cuts, seed):
    dense = random_dense(seed)
    whole = sparse(dense)
    for part, expected in zip(whole.split(cuts), dense.split(cuts), strict=True):
        assert torch.equal(part.dense(), expected)
        assert part.indptr[0] == 0
        assert part.width == WIDTH
        if len(part.ids):
            assert part.ids.untyped_storage().nbytes() == part.ids.nbytes  # nothing of the whole is kept
