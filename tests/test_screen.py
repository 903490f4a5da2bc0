"""The quick way to encode: its bound holds, its features are those of the plain way, and it stays out of small jobs."""

from __future__ import annotations

import pytest
import torch

from gemlens.scope import screen as module
from gemlens.scope import sparse
from gemlens.scope.activation import TopK
from gemlens.scope.load import load_sae
from gemlens.scope.rows import DenseRows
from gemlens.scope.screen import Screen, products, screens_on
from gemlens.scope.starter import STARTER_DICTIONARY
from gemlens.sites import parse_site
from tiny import random_tensors, sae_of

D, WIDTH, TOKENS = 96, 300, 40

pytestmark = pytest.mark.skipif(
    not screens_on(torch.zeros(1, 8)), reason="this CPU has no bfloat16 products, so no screen is ever built here"
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def aligned():
    """Every weight and activation loses almost half a step, all in the same direction: the worst that rounding does."""
    most = 1 + 2.0**-8 * 0.499
    return torch.full((WIDTH, D), most), torch.full((TOKENS, D), most)


def one_dimension_holds_the_energy():
    weight, x = random(WIDTH, D), random(TOKENS, D, seed=1)
    x[:, 3] = 1e4 + 100 * random(TOKENS, seed=2)
    return weight, x


CASES = {
    "aligned rounding": aligned,
    "aligned, negative": lambda: (-aligned()[0], aligned()[1]),
    "outlier dimension": one_dimension_holds_the_energy,
    "random": lambda: (random(WIDTH, D), random(TOKENS, D, seed=1)),
    "large": lambda: (1e12 * random(WIDTH, D), 1e12 * random(TOKENS, D, seed=1)),
    "small": lambda: (1e-12 * random(WIDTH, D), 1e-12 * random(TOKENS, D, seed=1)),
    "zero": lambda: (torch.zeros(WIDTH, D), torch.zeros(TOKENS, D)),
}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Screens from the first token on; two parts, the second of them short."""
    monkeypatch.setattr(DenseRows, "SCREEN_FROM", 1)
    monkeypatch.setattr(module, "_PART", 256)


@pytest.fixture
def screened_only(monkeypatch):
    """Fail where the plain product is computed."""
    monkeypatch.setattr(torch, "addmm", lambda *_: pytest.fail("computed every pre-activation"))


def plain(sae, x):
    sae.encoder.screening = False
    features = sae.encode(x)
    sae.encoder.screening = True
    return features


def assert_equal(found, expected, sae, x):
    """Values to 1e-5, or to the rounding of a sum of so large numbers: some features are a small rest of it."""
    assert torch.equal(found.indptr, expected.indptr)
    assert torch.equal(found.ids, expected.ids)
    summed = x.norm(dim=1)[expected.tokens] * sae.encoder.weight.norm(dim=1)[expected.ids]
    assert ((found.values - expected.values).abs() <= 1e-5 * expected.values + 1e-6 * summed).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_exceeds_the_threshold_passes(case):
    """With the threshold of each feature just below its largest pre-activation, which must therefore pass."""
    weight, x = case()
    bias = weight.norm(dim=1) * random(WIDTH, seed=3)
    pre = x @ weight.T + bias
    most = pre.max(dim=0)
    just_below = torch.nextafter(most.values, torch.tensor(-torch.inf))
    screen = Screen(weight)
    tokens, ids = screen.passing(screen.tokens(x), 0, bias, just_below)
    passed = torch.zeros_like(pre, dtype=torch.bool)
    passed[tokens, ids] = True
    fires = pre > just_below
    assert fires.any(dim=0).all()
    assert passed[fires].all()


def test_the_bound_is_tight():
    """Else the rest of the work would be that of the plain product again."""
    weight, x = random(WIDTH, D), random(TOKENS, D, seed=1)
    pre = x @ weight.T
    screen = Screen(weight)
    passed = len(screen.passing(screen.tokens(x), 0, torch.zeros(WIDTH), torch.full((WIDTH,), 20.0))[0])
    assert 0 < (pre > 20).sum() <= passed < 1.3 * (pre > 19.8).sum()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("block", [DenseRows.BLOCK, 64])
def test_features_are_those_of_the_plain_product(case, block, monkeypatch):
    monkeypatch.setattr(DenseRows, "BLOCK", block)
    weight, x = case()
    pre = x @ weight.T
    tensors = random_tensors(D, WIDTH)
    # Not at a pre-activation, which rounding could put on either side; some 0 and negative: a ReLU and less.
    threshold = 0.999 * pre.sort(dim=0).values[-5:-3].mean(dim=0)
    threshold[:20], threshold[20:40] = 0, -1
    tensors |= {"w_enc": weight.T, "b_enc": torch.zeros(WIDTH), "threshold": threshold}
    sae = sae_of(tensors, parse_site("resid_post.2"))
    sae.encoder.weight = sae.encoder.weight.contiguous()
    expected = plain(sae, x)
    monkeypatch.setattr(torch, "addmm", lambda *_: pytest.fail("computed every pre-activation"))
    assert_equal(sae.encode(x), expected, sae, x)


def test_of_the_starter():
    """Real weights, and activations of which one dimension holds most of the energy."""
    sae = load_sae("starter", STARTER_DICTIONARY)
    sae.encoder = DenseRows(torch.cat([block for _, block in sae.encoder.blocks()]))  # stored in fewer bits or not
    x = 150 * random(600, sae.d_in, seed=4) + sae.b_dec
    expected = plain(sae, x)
    assert len(expected.ids) > 1000
    assert_equal(sae.encode(x), expected, sae, x)
    assert sae.encoder.screen_nbytes


def test_products_of_pairs():
    x, weight = random(5, D), random(7, D, seed=1)
    tokens, ids = torch.tensor([0, 0, 2, 4, 4, 4]), torch.tensor([6, 1, 3, 0, 5, 6])
    torch.testing.assert_close(products(x, weight, tokens, ids), (x @ weight.T)[tokens, ids])
    assert products(x, weight, tokens[:0], ids[:0]).shape == (0,)


@pytest.mark.filterwarnings("error")
def test_no_word_about_pytorchs_beta_state():
    products(random(2, D), random(3, D), torch.tensor([0]), torch.tensor([1]))


def contiguous_sae():
    sae = sae_of(random_tensors(D, WIDTH), parse_site("resid_post.2"))
    sae.encoder.weight = sae.encoder.weight.contiguous()
    return sae


def test_a_small_job_builds_none(monkeypatch):
    monkeypatch.setattr(DenseRows, "SCREEN_FROM", 100)
    sae = contiguous_sae()
    weights = sae.nbytes
    sae.encode(random(60, D))
    assert sae.encoder.screen_nbytes == 0
    sae.encode(random(60, D))
    assert 0 < sae.encoder.screen_nbytes <= 0.7 * sae.encoder.weight.nbytes
    assert sae.nbytes == weights + sae.encoder.screen_nbytes


def test_switched_off_it_is_gone():
    sae = contiguous_sae()
    sae.encode(random(600, D))
    sae.encoder.screening = False
    sae.encode(random(600, D))
    assert sae.encoder.screen_nbytes == 0


def test_weights_that_were_written_to_get_another(screened_only):
    sae = contiguous_sae()
    x = random(TOKENS, D)
    sae.encode(x)
    sae.encoder.weight[7] = 0
    sae.encoder.weight[8] *= -50
    pre = x @ sae.encoder.weight.T + sae.b_enc
    assert torch.equal(sae.encode(x).dense() > 0, pre > sae.threshold.clamp(min=0))
    sae.encoder.weight = 3 * sae.encoder.weight
    pre = x @ sae.encoder.weight.T + sae.b_enc
    assert torch.equal(sae.encode(x).dense() > 0, pre > sae.threshold.clamp(min=0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_activations_beyond_any_bound_go_the_plain_way(value):
    sae = contiguous_sae()
    x = random(TOKENS, D)
    x[3, 5] = value
    found, expected = sae.encode(x), plain(sae, x)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.values, expected.values, equal_nan=True)


def test_top_k_needs_every_pre_activation(monkeypatch):
    monkeypatch.setattr(module.Screen, "passing", lambda *_: pytest.fail("screened what has no threshold"))
    weight, x = random(WIDTH, D), random(TOKENS, D, seed=1)
    zeros = torch.zeros(WIDTH)
    features = sparse.encode(x, DenseRows(weight), zeros, zeros, TopK(5))
    assert features.l0.tolist() == [5] * TOKENS


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(8, 4).T, torch.zeros(2, 1 << 14)],
    ids=["bfloat16", "not contiguous", "sums too long"],
)
def test_matrices_that_are_not_screened(weight):
    assert not screens_on(weight)
