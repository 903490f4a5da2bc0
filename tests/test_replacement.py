"""The replacement model: transcoders in place of MLPs, held against plain torch hooks and the formulas written out.

Without errors, each MLP's output is what its transcoder makes of what the MLP is fed in this very pass. With errors
cached from a clean pass, that is the model itself, until something is edited.
"""

from __future__ import annotations

import pytest
import torch

from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import Model, activations, logits, writing
from gemlens.sites import Site
from gemlens.study.replacement import cached_errors, replaced, sites_of
from tiny import LAYERS, random_clt, random_sae, random_tensors, random_transcoders, sae_of, some_tokens, tiny_gemma

TOKENS = some_tokens(11, batch=2)
KINDS = ["transcoders", "clt"]


def transcoders_of(model, kind, **changes):
    return random_clt(model, **changes) if kind == "clt" else random_transcoders(model, **changes)


def parts(transcoders):
    """Weights by layer, in one notation: encoder [F, d], what is written from here to each later layer, biases."""
    if isinstance(transcoders, list):
        return [
            (t.encoder.weight, t.b_enc, t.threshold, {i: t.decoder.weight}, t.b_dec, t.skip)
            for i, t in enumerate(transcoders)
        ]
    found = []
    for i, layer in enumerate(transcoders.layers):
        rows = layer.decoder.weight.view(layer.encoder.width, layer.outputs, -1)
        found.append(
            (layer.encoder.weight, layer.b_enc, layer.threshold, {i + k: rows[:, k] for k in range(layer.outputs)},
             layer.b_dec, layer.skip)
        )  # fmt: skip
    return found


class ByHand:
    """A pass with plain torch hooks: ``acts[j]`` are dense activations, ``recon[j]`` what is written to layer j."""

    def __init__(self, model, transcoders, *, errors=None, keep=1):
        self.model, self.weights, self.errors, self.keep = model, parts(transcoders), errors, keep
        self.acts, self.recon, self.own = {}, {}, {}

    def run(self, tokens, *, splice=True):
        handles = []
        for layer, block in enumerate(self.model.backbone.layers):
            handles += [
                block.pre_feedforward_layernorm.register_forward_hook(self._reader(layer)),
                block.post_feedforward_layernorm.register_forward_hook(self._writer(layer, splice)),
            ]
        with torch.no_grad():
            scores = self.model.module(tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return scores

    def _reader(self, layer):
        encoder, b_enc, threshold, _, _, skip = self.weights[layer]

        def hook(_module, _inputs, x):
            pre = x @ encoder.T + b_enc
            self.acts[layer] = torch.relu(pre) * (pre > threshold)
            self.skipped = 0 if skip is None else x @ skip

        return hook

    def _writer(self, layer, splice):
        def hook(_module, _inputs, own):
            recon = self.weights[layer][4] + self.skipped
            for source in range(layer + 1):
                if (rows := self.weights[source][3].get(layer)) is not None:
                    recon = recon + self.acts[source] @ rows
            self.recon[layer], self.own[layer] = recon, own
            if not splice:
                return own
            new = recon if self.errors is None else recon + self.errors[layer]
            return torch.cat([own[:, : self.keep], new[:, self.keep :]], dim=1)

        return hook


def scores_of(model: Model, tokens=TOKENS):
    last = Site(model.n_layers - 1, "resid_post")
    return logits(model, activations(model, tokens, [last])[last])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_without_errors_every_mlp_is_its_transcoder(model, kind, skip):
    transcoders = transcoders_of(model, kind, skip=skip)
    expected = ByHand(model, transcoders).run(TOKENS)
    with replaced(model, transcoders):
        got = scores_of(model)
        again = model.module(TOKENS, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)  # a second pass in the same `with`
    assert (got - scores_of(model))[:, 1:].abs().max() > 0.1
    torch.testing.assert_close(got[:, 0], scores_of(model)[:, 0])  # at BOS the MLP's own output stays


@pytest.mark.parametrize("gemma", ["gemma2", "gemma3", "multimodal"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_errors_of_a_clean_pass_it_is_the_model(kind, gemma):
    model = tiny_gemma(kind=gemma)
    transcoders = transcoders_of(model, kind)
    errors = cached_errors(model, transcoders, TOKENS)
    with replaced(model, transcoders, errors=errors):
        got = scores_of(model)
    torch.testing.assert_close(got, scores_of(model), rtol=0, atol=1e-4)
    assert torch.equal(got, scores_of(model))  # to the bit: no rounding pushes a feature over its threshold
    by_hand = ByHand(model, transcoders)
    by_hand.run(TOKENS, splice=False)
    for layer in range(LAYERS):
        error = errors.at(Site(layer, "mlp_out"))
        torch.testing.assert_close(
            error[:, 1:], (by_hand.own[layer] - by_hand.recon[layer])[:, 1:], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(error[:, 0], by_hand.own[layer][:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbed_error_shows_as_it_should(model, kind):
    """Later layers answer through their transcoders, their errors stay: what plain hooks compute as well."""
    transcoders, site, at = transcoders_of(model, kind), Site(2, "mlp_out"), 5
    errors = cached_errors(model, transcoders, TOKENS)
    change = torch.zeros(2, 11, 16)
    change[1, at] = torch.randn(16, generator=torch.Generator().manual_seed(0)) * 4
    with replaced(model, transcoders, errors=errors.plus(site, change)):
        got = scores_of(model)
    clean = scores_of(model)
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[1, :at], clean[1, :at])
    assert (got[1, at] - clean[1, at]).abs().max() > 0.1
    perturbed = {layer: errors.at(Site(layer, "mlp_out")) for layer in range(LAYERS)}
    perturbed[2] = perturbed[2] + change
    expected = ByHand(model, transcoders, errors=perturbed).run(TOKENS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_change_at_bos_shows_too(model):
    """The error there is all of the MLP's output."""
    transcoders = random_transcoders(model)
    errors = cached_errors(model, transcoders, TOKENS)
    change = torch.zeros(1, 11, 16)
    change[0, 0] = 4.0
    with replaced(model, transcoders, errors=errors.plus(Site(1, "mlp_out"), change)):
        got = scores_of(model)
    assert (got - scores_of(model))[:, 0].abs().max() > 0.1


def test_tokens_left_out_keep_their_own_mlp(model):
    """The four that open a chat, say; by prompt where they differ."""
    transcoders = random_transcoders(model)
    read = torch.arange(11) > 3
    with replaced(model, transcoders, read=read):
        got = scores_of(model)
    torch.testing.assert_close(got, ByHand(model, transcoders, keep=4).run(TOKENS), rtol=1e-4, atol=1e-4)
    with replaced(model, transcoders, read=torch.stack([read, torch.zeros(11, dtype=torch.bool)])):
        mixed = scores_of(model)
    torch.testing.assert_close(mixed[0], got[0])
    torch.testing.assert_close(mixed[1], scores_of(model)[1])


def test_errors_of_one_prompt_serve_a_batch_of_its_edits(model):
    transcoders, one = random_transcoders(model), TOKENS[:1]
    errors = cached_errors(model, transcoders, one)
    with replaced(model, transcoders, errors=errors):
        got = scores_of(model, one.expand(3, -1))
    torch.testing.assert_close(got, scores_of(model, one).expand(3, -1, -1), rtol=0, atol=1e-4)


def test_some_layers_alone_and_gemma_scope_1s_site(model):
    """Other MLPs stay; what is read may lie inside the norm."""
    some = random_transcoders(model, reads="mlp_in_normalized")[2:4]
    x = activations(model, TOKENS, [each.reads for each in some])
    with replaced(model, some[:1]):
        site = Site(2, "mlp_out")
        got = activations(model, TOKENS, [site])[site]
    expected = some[0].reconstruct(x[some[0].reads][:, 1:].flatten(0, 1)).view(2, 10, 16)
    torch.testing.assert_close(got[:, 1:], expected)
    with replaced(model, some, errors=cached_errors(model, some, TOKENS)):
        same = scores_of(model)
    assert torch.equal(same, scores_of(model))


def test_it_nests_with_other_edits(model):
    """A transcoder sees what an outer `with` writes where it reads; an inner one sees what it has written."""
    transcoder = random_transcoders(model)[3]
    reads, writes, seen = transcoder.reads, transcoder.writes, []
    given = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(1))

    def look(value):
        seen.append(value)
        return value + 1

    with writing(model, reads, lambda _: given), replaced(model, [transcoder]), writing(model, writes, look):
        got = activations(model, TOKENS, [writes])[writes]
    expected = transcoder.reconstruct(given[:, 1:].flatten(0, 1)).view(2, 10, 16)
    torch.testing.assert_close(seen[0][:, 1:], expected)
    torch.testing.assert_close(got, seen[0] + 1)


def test_hooks_are_gone_after_an_error_and_passes_that_stop_early_leave_nothing(model):
    transcoders = random_transcoders(model)
    with replaced(model, transcoders):
        activations(model, TOKENS, [Site(3, "mlp_in")])  # ends between a read and its write
        got = scores_of(model)
    torch.testing.assert_close(got, ByHand(model, transcoders).run(TOKENS), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="of mine"), replaced(model, transcoders):
        raise RuntimeError("of mine")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.module.modules())


def test_what_cannot_stand_in_is_refused(model):
    transcoders = random_transcoders(model)
    deep = [sae_of(random_tensors(16, 8), Site(4, "mlp_in"), Site(3, "mlp_out"), id="upwards")]
    for given, words in (
        ([], "no transcoder"),
        ([*transcoders, transcoders[2]], r"both write mlp_out\.2"),
        (deep, r"upwards writes mlp_out\.3 before the model has reached mlp_in\.4"),
        (random_clt(model, crosscoder=True), "crosscoder"),
    ):
        with pytest.raises(InputError, match=words), replaced(model, given):
            pass
    with pytest.raises(MismatchError, match="layers are 0 to 6"), replaced(model, [random_sae(model, "mlp_out.9")]):
        pass
    errors = cached_errors(model, transcoders, TOKENS[:, :8])
    words = r"\[2, 8\] tokens, the pass of \[2, 11\]"
    with pytest.raises(InputError, match=words), replaced(model, transcoders, errors=errors):
        scores_of(model)
    with (
        pytest.raises(InputError, match=r"read is of \[4\] tokens"),
        replaced(model, transcoders, read=torch.ones(4) > 0),
    ):
        scores_of(model)
    assert sites_of(transcoders)[:2] == [Site(0, "mlp_in"), Site(0, "mlp_out")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_model_is_itself_with_errors(starter, kind):
    transcoders = transcoders_of(starter, kind, width=64)
    tokens = starter.tokenizer("The Eiffel Tower stands in Paris, the capital of", return_tensors="pt")["input_ids"]
    errors = cached_errors(starter, transcoders, tokens)
    with torch.no_grad():
        clean = starter.module(tokens).logits
    with replaced(starter, transcoders, errors=errors):
        same = scores_of(starter, tokens)
    torch.testing.assert_close(same, clean, rtol=0, atol=1e-4)
    site = Site(9, "mlp_out")
    change = torch.zeros_like(errors.outputs[site])
    change[0, 4] = errors.outputs[site][0, 4]
    with replaced(starter, transcoders, errors=errors.plus(site, change)):
        other = scores_of(starter, tokens)
    assert torch.equal(other[0, :4], same[0, :4])
    assert (other - same)[0, 4:].abs().max() > 0.1
