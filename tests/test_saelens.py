"""Dictionaries to and from SAELens: the same features, values and reconstructions."""

import builtins
import importlib.util

import pytest
import torch

from fake_hub import FakeHub, connected
from gemlens.errors import InputError, MissingPackageError, NotFoundError, WeightsError
from gemlens.external.saelens import from_saelens, to_saelens
from gemlens.scope.activation import TopK
from gemlens.scope.export import export
from gemlens.scope.load import load_sae
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.save import save_sae
from gemlens.sites import Site, parse_site
from tiny import files_below, random_tensors, sae_of

needs_saelens = pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None,
    reason="sae-lens is not installed: its pins conflict with ours, `make bench` runs this among peers",
)
RESID, MLP_IN, MLP_OUT = (parse_site(f"{name}.3") for name in ("resid_post", "mlp_in", "mlp_out"))


def dictionary(*, reads=RESID, writes=None, skip=False, d_out=16, **info):
    tensors = random_tensors(16, 40, d_out=d_out, skip=skip)
    tensors["threshold"][:5] *= -1  # negative thresholds are relu's
    return sae_of(tensors, reads, writes, **info)


def topk(k=7):
    tensors = random_tensors(16, 40)
    made = sae_of(tensors, RESID)
    return SAE(
        DenseRows(tensors["w_enc"].T), DenseRows(tensors["w_dec"]), b_enc=tensors["b_enc"], b_dec=tensors["b_dec"],
        threshold=torch.zeros(40), reads=RESID, writes=RESID, info=made.info, activation=TopK(k),
    )  # fmt: skip


def some(n=50, d=16):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(3))


KINDS = {
    "JumpReLUSAE": dictionary,
    "JumpReLUTranscoder": lambda: dictionary(reads=MLP_IN, writes=MLP_OUT, d_out=11),
    "JumpReLUSkipTranscoder": lambda: dictionary(reads=MLP_IN, writes=MLP_OUT, skip=True, d_out=11),
    "TopKSAE": topk,
}


@needs_saelens
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_reconstructions_are_equal_there_and_back(kind):
    ours, x = KINDS[kind](), some()
    theirs = to_saelens(ours)
    assert type(theirs).__name__ == kind
    with torch.no_grad():
        assert torch.allclose(theirs.encode(x), ours.encode(x).dense(), rtol=1e-5, atol=1e-6)
        assert torch.equal(theirs.encode(x) > 0, ours.encode(x).dense() > 0)
        assert torch.allclose(theirs(x), ours.reconstruct(x), rtol=1e-5, atol=1e-4)
    back = from_saelens(theirs)
    assert torch.equal(back.encode(x).dense(), ours.encode(x).dense())
    assert torch.equal(back.reconstruct(x), ours.reconstruct(x))
    assert (back.reads, back.writes, back.info) == (ours.reads, ours.writes, ours.info)


@needs_saelens
def test_names_travel_and_saelens_finds_its_own():
    ours = dictionary(neuronpedia="gemma-3-270m/12-x", model_name="google/gemma-3-270m", revision="abc", path="a/b")
    theirs = to_saelens(ours)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert theirs.cfg.metadata.model_name == "google/gemma-3-270m"
    assert from_saelens(theirs).info == ours.info


@needs_saelens
def test_both_sides_own_their_tensors():
    ours, x = dictionary(), some()
    before = ours.encode(x).dense()
    theirs = to_saelens(ours)
    back = from_saelens(theirs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert torch.equal(ours.encode(x).dense(), before)
    assert torch.equal(back.encode(x).dense(), before)


@needs_saelens
@pytest.mark.parametrize("subtract", [True, False])
def test_a_standard_sae_of_theirs_with_its_options_folded(subtract):
    import sae_lens

    config = sae_lens.StandardSAEConfig(d_in=16, d_sae=40, apply_b_dec_to_input=subtract)
    theirs = sae_lens.StandardSAE(config)
    theirs.cfg.metadata.hook_name = "blocks.4.hook_resid_pre"
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours, x = from_saelens(theirs), some()
    with torch.no_grad():
        assert torch.allclose(ours.encode(x).dense(), theirs.encode(x), rtol=1e-5, atol=1e-5)
        assert torch.allclose(ours.reconstruct(x), theirs(x), rtol=1e-5, atol=1e-4)
    assert ours.reads == parse_site("resid_post.3")
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


@needs_saelens
def test_what_cannot_be_carried_over_is_refused():
    import sae_lens

    theirs = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=16, d_sae=40))
    with pytest.raises(NotFoundError, match="hook_name"):
        from_saelens(theirs)
    assert from_saelens(theirs, reads=Site(2, "mlp_out")).reads == Site(2, "mlp_out")
    normalised = sae_lens.StandardSAEConfig(d_in=16, d_sae=40, normalize_activations="layer_norm")
    with pytest.raises(WeightsError, match="normalize_activations"):
        from_saelens(sae_lens.StandardSAE(normalised), reads=RESID)
    gated = sae_lens.GatedSAE(sae_lens.GatedSAEConfig(d_in=16, d_sae=40))
    with pytest.raises(WeightsError, match="'gated'"):
        from_saelens(gated, reads=RESID)
    transcoder = topk()
    transcoder.writes = MLP_OUT
    with pytest.raises(InputError, match="TopK transcoder"):
        to_saelens(transcoder)


@needs_saelens
def test_what_was_exported_from_int8_is_read_by_their_own_loader(tmp_path, hub_home):
    import sae_lens
    from sae_lens.loading.pretrained_sae_loaders import gemma_3_sae_huggingface_loader

    name, repo = "resid_post/layer_3_width_40_l0_small", "me/gemma-scope-2-of-mine"
    save_sae(dictionary(model_name="google/gemma-3-270m"), tmp_path / "small" / name, l0=7, dtype=torch.int8)
    export(str(tmp_path / "small"), name, tmp_path / "large" / name, dtype=torch.float32)
    ours, x = load_sae(str(tmp_path / "small"), name), some()
    with FakeHub({repo: files_below(tmp_path / "large")}) as hub, connected(hub.url, home=hub_home):
        theirs = sae_lens.SAE.from_pretrained(repo, name, converter=gemma_3_sae_huggingface_loader)
    with torch.no_grad():
        assert torch.equal(theirs.encode(x) > 0, ours.encode(x).dense() > 0)
        assert torch.allclose(theirs(x), ours.reconstruct(x), rtol=1e-5, atol=1e-4)


def test_without_saelens_the_command_that_installs_it_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments, **settings):
        if name == "sae_lens":
            raise ModuleNotFoundError("No module named 'sae_lens'", name="sae_lens")
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match="pip install sae-lens"):
        to_saelens(dictionary())
