"""Texts that begin alike, read together: what is computed is what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemlens.errors import MismatchError
from gemlens.lm.forks import fork, read_forks
from gemlens.lm.gemma import activations, logits
from gemlens.lm.scores import token_log_probabilities
from gemlens.sites import SITES, Site, parse_site
from tiny import VOCAB, some_tokens, tiny_gemma


def texts(*lengths: int, shared: int = 0, seed: int = 0) -> list[list[int]]:
    common = some_tokens(shared, seed=seed)[0].tolist() if shared else []
    return [common + some_tokens(n, seed=seed + 1 + k)[0, shared and 0 :].tolist() for k, n in enumerate(lengths)]


def test_a_fork_holds_each_text_once_and_what_they_share_once():
    one, other = [2, 7, 8, 9, 5], [2, 7, 8, 4, 5, 6]
    found = fork([one, other])
    assert [found.ids[path].tolist() for path in found.paths] == [one, other]
    assert len(found) == 3 + 2 + 3
    assert [found.positions[path].tolist() for path in found.paths] == [list(range(5)), list(range(6))]


@pytest.mark.parametrize(
    "group",
    [
        [[2, 5, 6], [2, 5, 6]],  # equal: the last token is each text's own
        [[2, 5], [2, 5, 6]],  # one begins the other
        [[2], [2]],
        [[3, 4], [5, 6]],  # nothing in common
        [[2, 5, 6, 7]],
    ],
)
def test_texts_of_every_relation_come_back_whole(group):
    found = fork(group)
    assert [found.ids[path].tolist() for path in found.paths] == group


@pytest.mark.parametrize("kind", ["gemma3", "gemma2", "multimodal"])
def test_every_site_of_every_branch_is_what_the_text_gives_alone(kind):
    """Windows of 4 tokens, soft caps low enough to matter, branches of different lengths, forks of different shapes."""
    model = tiny_gemma(kind=kind)
    groups = [texts(9, 3, shared=6, seed=1), texts(2, 12, 5, shared=3, seed=9), texts(4, seed=20)]
    forks = [fork(group) for group in groups]
    sites = [Site(0 if name == "embed" else layer, name) for name in SITES for layer in (1, 6)]
    everything = {site: [np.arange(len(each)) for each in forks] for site in set(sites)}
    found = read_forks(model, forks, everything)
    start = 0
    for group, each in zip(groups, forks, strict=True):
        for text, path in zip(group, each.paths, strict=True):
            alone = activations(model, torch.tensor([text]), sites)
            for site in everything:
                torch.testing.assert_close(found[site][start + path], alone[site][0], rtol=2e-4, atol=2e-5)
        start += len(each)


def test_wanted_places_come_in_the_order_asked_for_and_the_pass_ends_at_the_deepest_site(model):
    forks = [fork(texts(4, 5, shared=3)), fork(texts(6, 2, shared=2))]
    site = parse_site("resid_post.2")
    everything = read_forks(model, forks, {site: [np.arange(len(each)) for each in forks]})[site]
    ran = []
    handle = model.blocks[3].register_forward_hook(lambda *_: ran.append(1))
    try:
        some = read_forks(model, forks, {site: [np.array([5, 1]), np.array([0])]})[site]
    finally:
        handle.remove()
    assert torch.equal(some, everything[[5, 1, len(forks[0])]])
    assert not ran


def test_a_layer_that_the_model_lacks_is_refused(model):
    with pytest.raises(MismatchError, match="layers are 0 to 6"):
        read_forks(model, [fork([[2, 5]])], {Site(7, "resid_post"): [np.array([0])]})


@pytest.mark.parametrize("kind", ["gemma3", "gemma2"])
def test_log_probabilities_are_those_of_the_whole_softmax(kind, monkeypatch):
    from gemlens.lm import scores

    monkeypatch.setattr(scores, "_ENTRIES", 100)
    monkeypatch.setattr(scores, "_POSITIONS", 4)
    model = tiny_gemma(kind=kind)
    residual = torch.randn(11, 16, generator=torch.Generator().manual_seed(0)) * 3
    places, targets = torch.tensor([0, 0, 5, 10, 3]), torch.tensor([0, VOCAB - 1, 100, 99, 200])
    found = token_log_probabilities(model, residual, places, targets)
    wanted = logits(model, residual).double().log_softmax(-1)[places, targets]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def test_logits_beyond_float32s_exponents_do_not_overflow():
    model = tiny_gemma()
    model.module.lm_head.weight = torch.nn.Parameter(model.module.lm_head.weight * 100, requires_grad=False)
    residual = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert logits(model, residual).max() > 100
    places, targets = torch.arange(3), torch.tensor([5, 6, 7])
    wanted = logits(model, residual).double().log_softmax(-1)[places, targets]
    found = token_log_probabilities(model, residual, places, targets).double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)
