"""Decoders solved anew: the best for the features that fire, and untouched where nothing was learned about them."""

import pytest
import torch
from torch.nn import functional as F

from gemlens.errors import InputError
from gemlens.scope.load import load_transcoder
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.save import save_sae
from gemlens.sites import parse_site
from gemlens.train.refit import refit
from planted import INFO

D_IN, D_OUT, WIDTH, TOKENS = 12, 10, 40, 6000
READS, WRITES = parse_site("mlp_in.1"), parse_site("mlp_out.1")


def transcoder(*, skip=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return SAE(
        DenseRows(random(WIDTH, D_IN)), DenseRows(F.normalize(random(WIDTH, D_OUT), dim=1)), b_enc=random(WIDTH),
        b_dec=random(D_OUT), threshold=2 + random(WIDTH).abs(), skip=random(D_IN, D_OUT) if skip else None,
        reads=READS, writes=WRITES, info=INFO,
    )  # fmt: skip


def inputs(seed=5):
    return 3 + torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(seed))


def stream(x, y, size=700):
    return ({READS: a, WRITES: b} for a, b in zip(x.split(size), y.split(size), strict=True))


def weights_of(sae):
    return torch.cat([rows for _, rows in sae.decoder.blocks()])


def target_of(known, other):
    """What another decoder, skip and bias make of the same features."""
    return SAE(
        known.encoder, other.decoder, b_enc=known.b_enc, b_dec=other.b_dec, threshold=known.threshold,
        skip=other.skip, reads=READS, writes=WRITES, info=INFO,
    )  # fmt: skip


def best(z, y, weights):
    """Predictions of the weighted regression of y on z."""
    root = weights.sqrt()[:, None].double()
    return (z.double() @ torch.linalg.lstsq(root * z, root * y, driver="gelsd").solution).float()


@pytest.mark.parametrize("skip", [True, False])
def test_what_is_linear_in_the_features_is_found(skip, monkeypatch):
    monkeypatch.setattr("gemlens.train.refit.PRIOR", 1e-6)
    known, x = transcoder(skip=skip), inputs()
    y = target_of(known, transcoder(skip=skip, seed=1)).reconstruct(x)
    (found,) = refit([known], stream(x, y), TOKENS)
    assert (found.reconstruct(x) - y).pow(2).mean() < 1e-4 * y.var()
    assert (known.reconstruct(x) - y).pow(2).mean() > 0.1 * y.var()
    assert torch.linalg.vector_norm(weights_of(found), dim=1).tolist() == pytest.approx([1] * WIDTH, abs=1e-5)
    assert torch.equal(found.encode(x).ids, known.encode(x).ids)


def test_it_is_the_best_regression_with_tokens_of_high_norm_held_back(monkeypatch):
    monkeypatch.setattr("gemlens.train.refit.PRIOR", 0.0)
    sae, x = transcoder(), inputs()
    y = torch.randn(TOKENS, D_OUT, generator=torch.Generator().manual_seed(8)) + x[:, :D_OUT]
    y[::50] *= 30
    (found,) = refit([sae], stream(x, y, TOKENS), TOKENS)
    energy = (y - y.mean(dim=0)).pow(2).sum(dim=1)
    weights = (4 * energy.median() / energy).clamp(max=1)
    z = torch.cat([sae.encode(x).dense(), x, torch.ones(TOKENS, 1)], dim=1)

    def loss(made):
        return float((weights * (y - made).pow(2).sum(dim=1)).sum())

    assert loss(found.reconstruct(x)) == pytest.approx(loss(best(z, y, weights)), rel=0.005)
    assert loss(best(z, y, torch.ones(TOKENS))) > 1.02 * loss(best(z, y, weights)), "weights were to matter"


def test_rows_of_features_that_hardly_fire_stay():
    sae, x = transcoder(), inputs()
    sae.threshold[3], sae.threshold[4] = 1e6, sae.encode(x).dense()[:, 4].topk(3).values.min()
    x[:, 5] = 2.0
    y = target_of(sae, transcoder(seed=1)).reconstruct(x)
    (found,) = refit([sae], stream(x, y), TOKENS)
    turned = F.cosine_similarity(weights_of(found), weights_of(sae), dim=1)
    assert turned[3] == pytest.approx(1, abs=1e-6)
    assert turned[4] > 0.9 > 0.7 > turned.quantile(0.25)


def test_int8_encoders_keep_their_codes(tmp_path):
    name = "transcoder/layer_1_width_40_l0_small_affine"
    save_sae(transcoder(), tmp_path / name, l0=5, dtype=torch.int8)
    stored, x = load_transcoder(str(tmp_path), name), inputs()
    y = torch.randn(TOKENS, D_OUT, generator=torch.Generator().manual_seed(8)) + x[:, :D_OUT]
    (found,) = refit([stored], stream(x, y), TOKENS)
    assert torch.equal(found.encoder.codes, stored.encoder.codes)
    assert (y - found.reconstruct(x)).pow(2).sum() < (y - stored.reconstruct(x)).pow(2).sum()


def test_what_cannot_be_refitted_is_told():
    with pytest.raises(InputError, match="no activations to refit"):
        refit([transcoder()], iter([]), 10)
    wide = transcoder()
    wide.encoder = DenseRows(torch.zeros(1, D_IN).expand(20_000, -1))
    with pytest.raises(InputError, match="20,000 features; refits go up to 16,384"):
        refit([wide], iter([]), 10)
