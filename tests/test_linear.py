"""The linear yardstick against least squares and SVD written out, and against maps that could have done better."""

import pytest
import torch

from gemlens.study.linear import LinearFit


def tokens(n=400, d=12, seed=0):
    """Far from zero, one dimension much larger than the others, as residuals are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator)
    x[:, 3] *= 100
    return x + 10_000 * torch.randn(d, generator=generator)


def pair():
    """What is read, and what is written: partly linear in it, more numbers than are read."""
    x = tokens()
    generator = torch.Generator().manual_seed(5)
    y = (x - x.mean(0)).tanh() @ torch.randn(12, 15, generator=generator)
    return x, y + torch.randn(15, generator=generator)


def explained(y, recon):
    return float(1 - (y - recon).pow(2).sum() / (y - y.mean(0)).pow(2).sum())


def truncated(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def test_of_a_site_and_itself_it_is_pca():
    x = tokens()
    fit = LinearFit()
    for part in x.split(64):
        fit.add(part, part)
    found, x = fit.explained(), x.double()
    assert len(found) == 13
    for rank in range(13):
        recon = x.mean(0) + truncated(x - x.mean(0), rank)
        assert float(found[rank]) == pytest.approx(explained(x, recon), abs=1e-9)
    assert 0.5 < found[1] < found[5] < 1


def test_between_two_sites_it_is_reduced_rank_regression():
    x, y = pair()
    fit = LinearFit()
    for first, second in zip(x.split(64), y.split(64), strict=True):
        fit.add(first, second)
    found = fit.explained()
    assert len(found) == 16
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    best = torch.linalg.lstsq(x, y).solution
    for rank in (0, 1, 4, 12, 15):
        assert float(found[rank]) == pytest.approx(explained(y, truncated(x @ best, rank)), abs=1e-9)
    assert found[0] == 0
    # Of rank 12 at most, since no more is read; and tanh is not linear.
    assert found[12] == pytest.approx(float(found[15]), abs=1e-12)
    assert 0.3 < found[15] < 0.98


def test_no_other_map_of_that_rank_explains_more():
    """By gradient descent on the map itself, from nothing that the formula knows."""
    x, y = (each.double() - each.double().mean(0) for each in pair())
    x = x / x.std(0)  # a change of units is part of the map
    fit = LinearFit()
    fit.add(x, y)
    limit = float(fit.explained()[3])
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1 for shape in ((12, 3), (3, 15)))
    adam = torch.optim.Adam([down.requires_grad_(), up.requires_grad_()], lr=0.02)
    for _ in range(1500):
        adam.zero_grad()
        (y - x @ down @ up).pow(2).sum().backward()
        adam.step()
    reached = explained(y, (x @ down @ up).detach())
    assert reached <= limit + 1e-12
    assert reached == pytest.approx(limit, abs=1e-4)


def test_what_is_added_stays_as_it_was():
    x = tokens().double()
    before = x.clone()
    LinearFit().add(x, x)
    assert torch.equal(x, before)
